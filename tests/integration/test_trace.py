"""Traces by the command on a real broker, through a repartition topic that is purged as it is processed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.records import Output, Record, TopicPartition
from tests.integration.conftest import HERE
from tests.support.commands import run_streams
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka

READINGS = [(f"k{number % 7}", number, number % 3) for number in range(30)]
"""Key, size and team; one second apart."""


class Traced:
    """The app's worker and the command, in processes of their own."""

    def __init__(self, kafka: KafkaBroker, servers: str, prefix: str, folder: Path) -> None:
        self.kafka, self.prefix = kafka, prefix
        self.environment = os.environ | {
            "TRACE_PREFIX": prefix,
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(folder),
        }

    def send(self, *readings: tuple[str, int, int]) -> None:
        rows = [json.dumps({"size": size, "team": team}).encode() for _, size, team in readings]
        with closing(self.kafka.producer()) as producer:
            producer.produce(
                Output(
                    f"{self.prefix}-in",
                    [key.encode() for key, _, _ in readings],
                    rows,
                    [1_000 * (1 + abs(size)) for _, size, _ in readings],
                )
            )
            producer.flush(30)

    @contextmanager
    def worker(self, *, lineage: bool) -> Iterator[None]:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams", "run", "trace_app:app", "--set", f"lineage={lineage}"],
            cwd=HERE,
            env=self.environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0

    def records(self, topic: str) -> list[Record[bytes | None, bytes | None]]:
        with closing(self.kafka.admin()) as admin:
            if f"{self.prefix}-{topic}" not in admin.topics():
                return []
        return [
            Record(key, value, time, None, fetched.topic, fetched.partition, offset)
            for fetched in read_to_end(self.kafka, [f"{self.prefix}-{topic}"])
            for key, value, time, offset in zip(
                fetched.keys(), fetched.values(), fetched.timestamps(), fetched.offsets(), strict=True
            )
        ]

    def counted(self) -> int:
        counts = {record.key: int(record.value or 0) for record in self.records("counts")}
        return sum(counts.values())

    def command(self, *arguments: str, code: int = 0) -> str:
        done = run_streams("trace", "trace_app:app", *arguments, folder=HERE, environment=self.environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def trace(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command(*arguments, "--json"))
        return found


@pytest.fixture
def traced(kafka: KafkaBroker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Traced:
    with closing(kafka.admin()) as admin:
        admin.create_topics([NewTopic(name=f"{prefix}-in", partitions=2, settings={"retention.ms": "-1"})])
    return Traced(kafka, kafka_bootstrap, prefix, tmp_path)


def inputs(node: dict[str, Any]) -> list[dict[str, Any]]:
    own = [node] if node["kind"] in ("input", "gone", "candidate") else []
    return own + [found for child in node.get("from", ()) for found in inputs(child)]


def place(record: Record[Any, Any]) -> str:
    return f"{record.topic}:{record.partition}:{record.offset}"


def last(records: list[Record[Any, Any]], keep: Callable[[Record[Any, Any]], bool]) -> Record[Any, Any]:
    return next(record for record in reversed(records) if keep(record))


def test_results_are_traced_through_a_repartition_topic_and_after_retention(
    traced: Traced, kafka: KafkaBroker
):
    prefix = traced.prefix
    traced.send(*READINGS[:9])
    with traced.worker(lineage=False):
        wait_until(lambda: traced.counted() == 9, 90)
    unknown = traced.trace(place(traced.records("large")[0]), "--search", "1000")
    assert [item["kind"] for item in inputs(unknown)] == ["candidate"]
    assert inputs(unknown)[0]["value"] == unknown["value"]
    traced.send(*READINGS[9:], ("k1", -40, 1))
    with traced.worker(lineage=True):
        wait_until(lambda: traced.counted() == len(READINGS), 90)
        wait_until(lambda: traced.records("app-dead-letters"), 90)
    large = last(traced.records("large"), lambda record: json.loads(record.value)["size"] == 20)
    (source,) = inputs(traced.trace(place(large)))
    assert source["value"] == {"size": 20, "team": 2}
    assert source["key"] == large.key.decode()
    count = last(traced.records("counts"), lambda record: record.key == b"1")
    tree = traced.trace(place(count))
    assert tree["value"] == 10
    path = tree["from"][0]
    # Three of the ten were counted before the setting was on.
    assert path["lineage"]["complete"] is False
    assert path["lineage"]["records"] == 7
    assert [item["value"]["size"] for item in inputs(tree)] == [10, 28]
    assert "from before lineage was on" in path["title"]
    assert any(f"{prefix}-app-teams-repartition" in way for way in path["ways"])
    final = last(traced.records("final"), lambda record: json.loads(record.value)["start"] == 10_000)
    window = traced.trace(place(final))
    assert min(item["value"]["size"] for item in inputs(window)) >= 9
    entry = traced.trace("--store", "counts", "--key", "1")
    assert entry["value"] == 10
    assert [item["value"]["size"] for item in inputs(entry)] == [10, 28]
    opened = traced.trace("--store", "windows", "--key", "1", "--window", "20000")
    assert [item["value"]["size"] for item in inputs(opened)] == [19, 28]
    letter = traced.records("app-dead-letters")[0]
    failed = traced.trace("--dead-letter", f"{letter.partition}:{letter.offset}")
    assert failed["error"] == "ValueError: a negative size"
    assert [item["value"]["size"] for item in inputs(failed)] == [-40]
    people = traced.command(place(count))
    assert '{"size": 28, "team": 1}' in people
    assert f"{prefix}-in-" in people
    with closing(kafka.admin()) as admin:
        ends = admin.end_offsets([TopicPartition(f"{prefix}-in", number) for number in range(2)])
        admin.delete_records(ends)
    gone = traced.trace(place(count))
    assert [item["kind"] for item in inputs(gone)] == ["gone", "gone"]
    assert "it was deleted (retention)" in inputs(gone)[0]["remarks"][0]


def test_what_does_not_exist_is_refused(traced: Traced):
    prefix = traced.prefix
    assert "neither writes nor reads the topic nothing" in traced.command("nothing:0:0", code=2)
    assert f"{prefix}-in has no partition 7" in traced.command(f"{prefix}-in:7:0", code=3)
    assert "has no record at offset 3" in traced.command(f"{prefix}-in:0:3", code=3)
    assert "does not exist" in traced.command(f"{prefix}-large:0:0", code=3)
