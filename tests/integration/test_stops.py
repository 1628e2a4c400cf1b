"""A signal ends a worker in time, whatever hangs; exit code 0 means that everything processed is
committed.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Copy

pytestmark = pytest.mark.kafka

SECONDS = 4.0
"""``shutdown_timeout`` of these tests."""

RECORDS = 6_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A cluster that a test may freeze."""
    folder = tmp_path_factory.mktemp("hanging")
    # When it resumes, its controller must not consider it dead.
    properties = QUICK_GROUPS | {"broker.session.timeout.ms": "60000"}
    with LocalKafka.start(folder, heap_mb=384, properties=properties, java_options=QUICK_JAVA) as cluster:
        yield cluster


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def seconds_to_end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> float:
    begun = time.monotonic()
    process.send_signal(number)
    process.wait(30)
    return time.monotonic() - begun


def listens(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has a handler for SIGTERM: a container's process 1 ignores it without one."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["worker", "supervisor"])
def test_a_stop_while_connecting_ends_with_code_0_within_seconds(
    make_copy: Callable[[str], Copy], silent: str, workers: tuple[str, ...]
):
    copy = make_copy(silent)
    worker = copy.start(*workers)
    copy.wait_for(lambda: listens(worker.process), 30, "signals are heard")
    assert seconds_to_end(worker.process) < 5
    assert worker.process.returncode == 0


def test_a_stop_while_the_apps_module_is_loaded_ends_with_code_0(tmp_path: Path):
    (tmp_path / "slow_app.py").write_text("import time\nfor _ in range(1200):\n    time.sleep(0.05)\n")
    command = [sys.executable, "-m", "streams", "run", "slow_app:app"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not listens(process):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert seconds_to_end(process, signal.SIGINT) < 5
    assert process.returncode == 0


def test_a_function_that_hangs_is_ended_with_code_13_and_reports_where_it_hung(copy: Copy):
    worker = copy.start(shutdown_timeout=SECONDS)
    copy.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")
    copy.produce(["fine"])
    copy.wait_until_consumed()
    copy.produce(["hang"])
    copy.wait_for(lambda: hangs(copy), 30, "it hangs")
    assert seconds_to_end(worker.process) < SECONDS + 0.5
    assert worker.process.returncode == 13
    assert "in work\n" in worker.events("stop overdue")[0]["stack"]
    assert copy.outputs() == {"fine": 1}


def hangs(copy: Copy) -> bool:
    return copy.lag() == 1


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_stop_under_a_broker_that_hangs_takes_no_longer_and_does_not_claim_that_all_is_committed(
    make_copy: Callable[[str], Copy], cluster: LocalKafka, guarantee: str
):
    copy = make_copy(cluster.bootstrap_servers)
    copy.create_topics()
    copy.environment["COPY_SLOW_SECONDS"] = "0.001"
    worker = copy.start(
        shutdown_timeout=SECONDS,
        guarantee=guarantee,
        commit_interval=0.5,
        # Small, so that writes soon wait for space in the queue.
        producer='{"queue.buffering.max.messages": 500}',
    )
    copy.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")
    copy.produce([f"value-{number}" for number in range(1_000)])
    copy.wait_for(lambda: copy.lag() < 800, 60, "some of it is committed")
    # On a busy machine the look at the lag takes longer than the worker needs for what it looks at.
    copy.produce([f"value-{number}" for number in range(1_000, RECORDS)])
    # Else the broker may stand still before the worker has received them, with everything committed.
    copy.wait_for(lambda: copy.lag() < RECORDS - 1_100, 60, "some of these are committed")
    cluster.node(1).pause()
    try:
        # Long enough to process records that cannot be written or committed.
        time.sleep(2)
        assert worker.process.poll() is None
        assert seconds_to_end(worker.process) < SECONDS + 0.5
        assert worker.process.returncode == 13
    finally:
        cluster.node(1).resume()
    cluster.wait()
    copy.environment.clear()
    second = copy.start(guarantee=guarantee)
    copy.wait_until_consumed()
    assert second.stop() == 0
    found = copy.outputs()
    assert set(found) == {f"value-{number}" for number in range(RECORDS)}
    if guarantee == "exactly_once":
        assert set(found.values()) == {1}


def test_a_supervisor_does_not_end_with_code_0_where_a_worker_did_not(copy: Copy):
    supervisor = copy.start("--workers", "1", shutdown_timeout=SECONDS)
    copy.wait_for(lambda: supervisor.events("partitions assigned"), 60, "assigned")
    copy.produce(["hang"])
    copy.wait_for(lambda: hangs(copy), 30, "it hangs")
    assert seconds_to_end(supervisor.process) < SECONDS + 1.0
    assert supervisor.process.returncode == 13


def test_a_worker_waits_for_room_in_its_queue_as_a_member_of_the_group(
    make_copy: Callable[[str], Copy], cluster: LocalKafka
):
    """The broker hangs for longer than the poll deadline, which the client enforces."""
    copy = make_copy(cluster.bootstrap_servers)
    copy.create_topics()
    copy.environment["COPY_SLOW_SECONDS"] = "0.0005"
    worker = copy.start(
        guarantee="at_least_once",
        poll_deadline=3,
        group_protocol="classic",
        producer='{"queue.buffering.max.messages": 500}',
    )
    copy.wait_for(lambda: worker.events("partitions assigned"), 60, "assigned")
    copy.produce([f"value-{number}" for number in range(RECORDS)])
    copy.wait_for(lambda: copy.lag() < RECORDS, 60, "some of it is committed")
    cluster.node(1).pause()
    try:
        time.sleep(5)
    finally:
        cluster.node(1).resume()
    cluster.wait()
    copy.wait_until_consumed()
    assert set(copy.outputs()) == {f"value-{number}" for number in range(RECORDS)}
    # The client's message about a member that does not poll in time.
    assert "MAXPOLL" not in worker.log.read_text()
    assert worker.stop() == 0
