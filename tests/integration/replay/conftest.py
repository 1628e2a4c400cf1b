"""Commands of replays with the app in ``replay_app``, in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from tests.integration.conftest import HERE
from tests.replay.inputs import readings, send
from tests.support.commands import Done, run_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker

RECORDS = 6_000


@pytest.fixture
def environment(kafka: KafkaBroker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> dict[str, str]:
    with closing(kafka.admin()) as admin:
        admin.create_topics(
            [
                NewTopic(name=f"{prefix}-in", partitions=4, settings={"retention.ms": "-1"}),
                # Its records would be deleted at once: their times are long past.
                NewTopic(name=f"{prefix}-alerts", partitions=3, settings={"retention.ms": "60000"}),
            ]
        )
    send(kafka, f"{prefix}-in", readings(1, RECORDS, keys=50))
    return {
        **os.environ,
        "REPLAY_PREFIX": prefix,
        "STREAMS_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "STREAMS_STATE_DIR": str(tmp_path / "state"),
    }


@pytest.fixture
def streams(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "streams", *arguments],
            cwd=HERE,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


@pytest.fixture
def ask(environment: dict[str, str]) -> Callable[..., Done]:
    """Run a command that processes nothing, in this process."""

    def call(*arguments: str, code: int = 0) -> Done:
        done = run_streams(*arguments, folder=HERE, environment=environment)
        assert done.returncode == code, done
        return done

    return call


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in the background."""
    started = []

    def call(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "streams", *arguments]
        started.append(subprocess.Popen(command, cwd=HERE, env=environment, text=True))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()
