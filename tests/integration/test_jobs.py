"""Jobs on the real broker: longer than the poll deadline, in order beyond partitions, stops and kills."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from streams import seconds
from streams.broker.reading import read_to_end
from streams.jobs.record import JobEnd
from streams.process.identity import ProcessIdentity
from streams.records import TopicPartition
from streams.serde import Json
from tests.integration.conftest import Copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

TIME = seconds(90)


class Jobs(Copy):
    """The app with jobs: enqueues in this process, executes in workers."""

    name = "jobs"

    def __init__(self, servers: str, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(servers, prefix, folder)
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.environment = {"JOBS_FOLDER": str(self.notes), "STREAMS_COMMIT_INTERVAL": "0.1"}
        monkeypatch.setenv("JOBS_PREFIX", prefix)
        monkeypatch.setenv("STREAMS_BOOTSTRAP_SERVERS", servers)
        sys.modules.pop("tests.integration.jobs_app", None)
        self.app: Any = importlib.import_module("tests.integration.jobs_app")
        self.queue = TopicPartition(f"{self.group}-jobs", 0)

    def read_notes(self, name: str) -> list[list[str]]:
        path = self.notes / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def committed(self) -> int:
        """The group's committed offset in the queue; 0 if there is none."""
        return self._admin.committed_offsets(self.group, [self.queue]).get(self.queue, 0)

    def ends(self) -> list[JobEnd]:
        """The recorded results."""
        topic = f"{self.group}-job-results"
        self.wait_until_settled(topic)
        values = [value for _, value in self.read_values(topic)]
        return list(Json(JobEnd).deserialize(values))

    def read_values(self, topic: str) -> list[tuple[bytes | None, bytes]]:
        return [
            (key, value)
            for fetched in read_to_end(self.broker, [topic])
            for key, value in zip(fetched.keys(), fetched.values(), strict=True)
            if value is not None
        ]


@pytest.fixture
def jobs(
    kafka_bootstrap: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Jobs]:
    made = Jobs(kafka_bootstrap, prefix, tmp_path, monkeypatch)
    yield made
    made.app.app._queue.client.close()  # noqa: SLF001 - programs use it until they end
    made.end()


def offset_of(handle: Any) -> int:
    return int(handle.id.partition("-")[2])


def test_a_job_longer_than_the_poll_deadline_holds_up_nobody_and_is_not_repeated(jobs: Jobs):
    app = jobs.app
    # A job before it, so that there is something to commit.
    first = app.sleep.enqueue("first", 0)
    settings = {"poll_deadline": 3, "session_timeout": 6}
    worker = jobs.start(**settings)
    first.result(timeout=TIME)
    long = app.sleep.enqueue("long", 10)
    short = app.sleep.enqueue_many([app.sleep.call(f"short-{number}", 0) for number in range(200)])
    for handle in short:
        handle.result(timeout=TIME)
    assert not [note for note in jobs.read_notes("long") if note[0] == "ended"], "they did not wait for it"
    jobs.wait_for(lambda: jobs.committed() == offset_of(long), 30, "committed up to the unfinished job")
    while not [note for note in jobs.read_notes("long") if note[0] == "ended"]:
        assert jobs.committed() <= offset_of(long)
        time.sleep(0.1)
    long.result(timeout=TIME)
    # One more that is killed before its end, and is repeated with the same key.
    other = app.sleep.enqueue("other", 5)
    jobs.wait_for(lambda: jobs.read_notes("other"), 30, "it begins")
    assert len(worker.events("partitions assigned")) == 1
    assert not worker.events("partitions revoked", "partitions lost")
    worker.kill()
    second = jobs.start(**settings)
    assert other.result(timeout=TIME) == "other"
    assert second.stop() == 0
    begun = {
        name: [note[1] for note in jobs.read_notes(name) if note[0] == "begun"]
        for name in ("long", "other", *(f"short-{number}" for number in range(200)))
    }
    assert len(begun["other"]) == 2
    assert len(set(begun["other"])) == 1
    assert all(len(keys) == 1 for name, keys in begun.items() if name != "other")
    ids = [end.id for end in jobs.ends()]
    assert len(ids) == len(set(ids)) == 203
    jobs.wait_until_settled(jobs.queue.topic)


def test_keys_are_in_order_and_do_not_wait_for_each_other(jobs: Jobs):
    app, keys, count = jobs.app, 100, 20
    calls = [app.step.call(key, number) for number in range(count) for key in range(keys)]
    handles = app.step.enqueue_many(calls)
    worker = jobs.start()
    for handle in handles:
        handle.result(timeout=TIME)
    assert worker.stop() == 0
    ended: dict[int, float] = {}
    for key in range(keys):
        notes = jobs.read_notes(f"key-{key}")
        running: set[str] = set()
        order = []
        for what, number, _, _, when in notes:
            if what == "begun":
                assert not running, f"key {key}: {number} begins while {running} runs"
                running.add(number)
                order.append(int(number))
            else:
                running.remove(number)
                ended[key] = float(when)
        expected = [*range(count)]
        if key == 3:
            expected[10:11] = [10] * 4
        assert order == expected
    # It waits three seconds for its attempts. The others need less than half a second, one after another.
    waited = max(float(note[4]) for note in jobs.read_notes("key-3") if note[1] == "10")
    done = sum(when < waited for key, when in ended.items() if key != 3)
    assert done > keys / 2, "others have ended before key 3 goes on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_short_jobs_finish_ends_long_ones_and_hands_back_the_others(
    jobs: Jobs, number: signal.Signals
):
    app = jobs.app
    jobs.environment["STREAMS_JOB_CONCURRENCY"] = "1"
    worker = jobs.start(shutdown_timeout=8)
    long = [app.separate.enqueue("process", 60), app.nap.enqueue("nap", 60), app.gate.enqueue("short")]
    waiting = [app.sleep.enqueue(f"waiting-{at}", 0) for at in range(5)]
    jobs.wait_for(lambda: all(map(jobs.read_notes, ("process", "nap", "short"))), 60, "they begin")
    child = ProcessIdentity.of(int((jobs.notes / "process.pid").read_text()))
    begun = time.monotonic()
    os.kill(worker.process.pid, number)
    jobs.wait_for(lambda: worker.events("stop requested"), 8, "it stops")
    os.kill(worker.process.pid, number)
    (jobs.notes / "go").touch()
    assert worker.wait() == 0
    assert time.monotonic() - begun < 8
    assert not worker.events("stop overdue")
    assert worker.events("worker stopped")
    jobs.wait_for(lambda: child.status() is None, 5, "its process has ended")
    assert [note[0] for note in jobs.read_notes("short")] == ["begun", "ended"]
    assert [note[0] for note in jobs.read_notes("nap")] == ["begun", "cancelled"]
    assert [note[0] for note in jobs.read_notes("process")] == ["begun"]
    assert not any(jobs.read_notes(f"waiting-{at}") for at in range(5)), "not begun ones are handed back"
    assert {end.id for end in jobs.ends()} == {long[2].id}
    assert jobs.committed() == offset_of(long[0])
    second = jobs.start(shutdown_timeout=4)
    for handle in waiting:
        handle.result(timeout=TIME)
    jobs.wait_for(lambda: len(jobs.read_notes("process")) == 2, 30, "the process begins again")
    assert second.stop() == 0
    counts: dict[str, int] = defaultdict(int)
    for at in range(5):
        counts[f"waiting-{at}"] = sum(note[0] == "begun" for note in jobs.read_notes(f"waiting-{at}"))
    assert set(counts.values()) == {1}
    assert [note[0] for note in jobs.read_notes("short")] == ["begun", "ended"]
