"""The small programs of ``apps/queues``, as they are started."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from streams.broker.reading import read_to_end
from streams.jobs.record import JobEnd, ends_topic
from tests.support.messages import free_address
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streams.broker.kafka import KafkaBroker

ROOT = Path(__file__).parents[2]


class Programs:
    """Starts programs in a folder, with an environment; what still runs at the end is killed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = os.environ | {"PYTHONPATH": str(ROOT), **environment}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with (self._folder / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._started.append(process)
        return process

    def output(self, *arguments: str) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, (self._folder / "log").read_text()
        return output

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0, (self._folder / "log").read_text()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def programs(tmp_path: Path, kafka_bootstrap: str, prefix: str) -> Iterator[Programs]:
    made = Programs(
        tmp_path,
        {
            "STREAMS_BOOTSTRAP_SERVERS": kafka_bootstrap,
            "STREAMS_STATE_DIR": str(tmp_path / "state"),
            "STREAMS_SESSION_TIMEOUT": "6",
            "STREAMS_TRANSACTION_TIMEOUT": "6",
            "QUEUES_PREFIX": f"{prefix}-",
            "NUMBERS": free_address(),
            "RESULTS": free_address(),
            "READINGS": str(tmp_path / "readings.db"),
            "LABEL_SECONDS": "0.02",
        },
    )
    with contextlib.closing(made):
        yield made


def ended(kafka: KafkaBroker, app: str) -> list[JobEnd]:
    with contextlib.closing(kafka.admin()) as admin:
        if ends_topic(app) not in admin.topics():
            return []
    decode = msgspec.json.Decoder(JobEnd).decode
    return [decode(value or b"") for each in read_to_end(kafka, [ends_topic(app)]) for value in each.values()]


def test_threads_with_a_queue_lose_what_jobs_try_again(tmp_path):
    programs = Programs(tmp_path, {"STREAMS_STATE_DIR": str(tmp_path / "state")})
    with contextlib.closing(programs):
        lines = programs.output("apps.queues.threads").splitlines()
    assert lines[-2] == "queue: 180 of 200 parcels shipped"
    assert lines[-1] == "jobs: 200 of 200 parcels shipped"


@pytest.mark.kafka
def test_jobs_of_a_killed_process_are_executed_by_the_next_one(programs, kafka, prefix):
    app = f"{prefix}-parcels"
    first = programs.start("apps.queues.threads", "jobs", "300")
    wait_until(lambda: ended(kafka, app), 120, what="a parcel that is shipped")
    first.kill()
    first.communicate()
    before = len(ended(kafka, app))
    assert 0 < before < 300
    second = programs.start("streams", "run", "apps.queues.threads:app")
    wait_until(lambda: len(ended(kafka, app)) >= 300, 120, what="all parcels")
    programs.stop(second)
    assert len({end.id for end in ended(kafka, app)}) == len(ended(kafka, app)) == 300


@pytest.mark.kafka
def test_readings_are_sent_and_saved_in_batches(programs, kafka, prefix, tmp_path):
    lines = [f"s{number % 7},{number}" for number in range(1_200)]
    lines[5] = "s5,broken"
    (tmp_path / "readings.csv").write_text("\n".join(lines))
    assert programs.output("apps.queues.batches", "readings.csv") == "1200 readings sent\n"
    worker = programs.start("streams", "run", "apps.queues.batches:app")
    app = f"{prefix}-readings"
    wait_until(lambda: len(ended(kafka, app)) >= 1_200, 120, what="all readings")
    programs.stop(worker)
    with contextlib.closing(sqlite3.connect(tmp_path / "readings.db")) as database:
        assert database.execute("select count(*), sum(value) from readings").fetchone() == (
            1_199,
            sum(range(1_200)) - 5,
        )
    assert sum(end.ending.value == "failed" for end in ended(kafka, app)) == 1


@pytest.mark.kafka
def test_numbers_are_pushed_to_workers_and_results_pulled(programs):
    worker = programs.start("streams", "run", "apps.queues.push_pull:app")
    collector = programs.start("apps.queues.push_pull", "pull", "100")
    programs.output("apps.queues.push_pull", "push", "100")
    results, _ = collector.communicate(timeout=120)
    programs.stop(worker)
    assert results == f"{sum(number * number for number in range(100))}\n"
