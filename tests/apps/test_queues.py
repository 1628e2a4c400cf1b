"""The small programs of ``apps/queues``, as they are started."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from streams.broker.reading import read_to_end
from streams.jobs.record import JobEnd, ends_topic
from streams.records import TopicPartition
from tests.support.messages import free_address
from tests.support.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker


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


def results(kafka: KafkaBroker, app: str) -> int:
    """About how many jobs have ended: markers of transactions count, too."""
    with contextlib.closing(kafka.admin()) as admin:
        found = admin.topics().get(ends_topic(app))
        places = [
            TopicPartition(ends_topic(app), number) for number in range(found.partitions if found else 0)
        ]
        return sum(admin.end_offsets(places, "read_committed").values()) if places else 0


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
    programs.wait_until(lambda: results(kafka, app), "a parcel that is shipped")
    first.kill()
    first.wait()
    before = len(ended(kafka, app))
    assert 0 < before < 300
    second = programs.start("streams", "run", "apps.queues.threads:app")
    programs.wait_until(lambda: results(kafka, app) >= 300 <= len(ended(kafka, app)), "all parcels")
    programs.stop(second)
    assert len({end.id for end in ended(kafka, app)}) == len(ended(kafka, app)) == 300


@pytest.mark.kafka
def test_readings_are_sent_and_saved_in_batches(programs, kafka, prefix, tmp_path):
    lines = [f"s{number % 7},{number}" for number in range(1_200)]
    lines[5] = "s5,broken"
    assert programs.module("apps.queues.batches").send(lines) == 1_200
    worker = programs.start("streams", "run", "apps.queues.batches:app")
    app = f"{prefix}-readings"
    programs.wait_until(lambda: results(kafka, app) >= 1_200 <= len(ended(kafka, app)), "all readings")
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
    program = programs.module("apps.queues.push_pull")
    sums: list[int] = []
    collector = threading.Thread(target=lambda: sums.append(program.pull(100)), daemon=True)
    collector.start()
    program.push(100)
    programs.wait_until(lambda: sums, "all results")
    programs.stop(worker)
    assert sums == [sum(number * number for number in range(100))]
