"""Restoring stores from their changelogs, by the restorer alone and in workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Json, Text, Tumbling, key_value_store
from streams.broker import GroupSettings, NewTopic
from streams.durations import milliseconds
from streams.errors import StateError, TopicError, TransactionAborted
from streams.events import Event
from streams.records import Output, TopicPartition
from streams.runtime.restore import OLDEST_CHECKPOINT, Restorer
from streams.runtime.task import TaskId
from streams.state.changelog import (
    METADATA,
    RESERVED,
    SCHEMA_KEY,
    TIME_KEY,
    Checkpoint,
    decode_metadata,
    encode_metadata,
)
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases
from streams.state.store import Changes
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streams.broker.memory import Step
    from streams.records import Headers
    from streams.runtime.restore import Restoration
    from streams.runtime.worker import Worker
    from streams.state.definition import StoreDefinition
    from streams.state.store import Databases

TASK = TaskId(0, 0)
STORE = key_value_store("s")
CHANGELOG = TopicPartition("app-s-changelog", 0)
HOUR = 3_600_000


class Site(MemoryCluster):
    """A changelog of one store, and a restorer for it."""

    def __init__(self, databases: Databases | None = None) -> None:
        super().__init__({CHANGELOG.topic: 2})
        self.hours = 0
        self.databases: Databases = databases or MemoryDatabases()
        self.restorer = Restorer(
            self.broker,
            self.databases,
            application="app",
            clock=self.clock,
            wall_clock=lambda: self.hours * HOUR,
        )

    def write_entries(self, entries: Mapping[str, int | None], partition: int = 0) -> None:
        keys: list[bytes | None] = [key.encode() for key in entries]
        values = [None if value is None else b"%d" % value for value in entries.values()]
        self.write(Output(CHANGELOG.topic, keys, values, [0] * len(keys), partition=partition))

    def produce(self, records: Mapping[bytes, bytes], *, marked: bool) -> None:
        for key, value in records.items():
            headers: list[Headers | None] | None = (
                [[METADATA]] if marked and key.startswith(RESERVED) else None
            )
            self.write(Output(CHANGELOG.topic, [key], [value], [0], headers, partition=0))

    def add(self, task: TaskId = TASK, stores: Sequence[StoreDefinition] = (STORE,)) -> None:
        self.restorer.add(task, stores, {})

    def restore(self, rounds: int = 20) -> list[Restoration]:
        done: list[Restoration] = []
        for _ in range(rounds):
            done += self.restorer.poll(0)
        return done

    def restored(self) -> Restoration:
        self.add()
        (done,) = self.restore()
        return done


def content(restoration: Restoration, store: str = "s") -> dict[str, int]:
    return {key.decode(): int(value) for key, value in restoration.database.store(store).scan()}


def test_a_store_has_the_last_value_of_each_key():
    site = Site()
    site.write_entries({"a": 1, "b": 1, "c": 1})
    site.write_entries({"a": 2, "b": None})
    site.write_entries({"x": 9}, partition=1)
    done = site.restored()
    assert content(done) == {"a": 2, "c": 1}
    assert done.progress.done == done.progress.total == 5
    assert done.checkpoints["s"].offset == 5


@pytest.mark.parametrize("records", [0, 1])
def test_a_changelog_of_no_record_or_of_one(records):
    site = Site()
    site.write_entries(dict.fromkeys("a"[:records], 7))
    done = site.restored()
    assert content(done) == dict.fromkeys("a"[:records], 7)
    assert decode_metadata(done.database.metadata())["s"].offset == records


def test_metadata_is_no_entry():
    site = Site()
    later = RESERVED + b"of a later version"
    records = {b"a": b"1", TIME_KEY: b"800", later: b"?", SCHEMA_KEY: STORE.schema.encode()}
    for marked in (True, False):
        site.produce({TIME_KEY: b"700"}, marked=marked)
        # Earlier versions wrote no headers, and no metadata but these two.
        site.produce({key: value for key, value in records.items() if marked or key != later}, marked=marked)
        done = site.restored()
        assert content(done) == {"a": 1}
        assert done.checkpoints["s"].time == 800
        assert done.checkpoints["s"].schema_written == STORE.schema
        done.database.close()


def test_a_record_without_a_key_is_none_of_the_stores():
    """Compacted topics refuse such records, but their settings may have been different for a while."""
    site = Site()
    site.write_entries({"a": 1})
    producer = site.broker.producer()
    producer.produce(Output(CHANGELOG.topic, [None], [b"1"], [0], partition=0))
    producer.flush(1)
    site.add()
    with pytest.raises(StateError, match=r"'s'.*app-s-changelog-0.*offset 1 .*it has no key"):
        site.restore()


def test_the_same_database_continues_from_its_tail():
    site = Site()
    site.write_entries({"a": 1, "b": 1})
    site.restored().database.close()
    site.write_entries({"b": 2})
    done = site.restored()
    assert done.progress.total == 1
    assert content(done) == {"a": 1, "b": 2}


def test_the_tail_is_read_from_where_the_database_is_and_not_from_where_the_consumer_was():
    site = Site()
    site.write_entries({"a": 1})
    done = site.restored()
    # The task continues, as after commits, and is restored again.
    site.write_entries({"a": 2, "b": 2})
    site.write_entries({"a": 3})
    checkpoint = Checkpoint(STORE.schema, offset=3)
    done.database.write({"s": Changes({b"a": b"2", b"b": b"2"})}, encode_metadata({"s": checkpoint}, 0))
    done.database.close()
    site.add()
    values = []
    for _ in range(3):
        values += [content(item) for item in site.restorer.poll(0)]
    assert values == [{"a": 3, "b": 2}]


def test_a_database_that_is_created_again_gets_all_although_the_consumer_has_read_it_before():
    site = Site()
    site.write_entries({"a": 1, "b": 2})
    site.restored().database.close()
    site.databases.destroy(["s"], 0)
    assert content(site.restored()) == {"a": 1, "b": 2}


def test_a_checkpoint_ahead_of_the_changelog_means_that_it_is_another_one():
    site = Site()
    site.write_entries({"a": 1, "b": 1, "gone": 1})
    site.restored().database.close()
    site.admin.delete_topics([CHANGELOG.topic])
    site.admin.create_topics([NewTopic(name=CHANGELOG.topic, partitions=2)])
    site.write_entries({"a": 5})
    with capture_logs() as logs:
        done = site.restored()
    assert content(done) == {"a": 5}
    (rebuilt,) = [entry for entry in logs if entry["event"] == Event.STATE_REBUILT]
    assert rebuilt["reason"] == "the checkpoint 3 is ahead of app-s-changelog-0, which ends at 1"


@pytest.mark.parametrize(("hours", "more", "rebuilt"), [(23, 1, False), (25, 1, True), (25, 0, False)])
def test_a_database_left_alone_for_long_is_created_again_if_the_changelog_went_on(hours, more, rebuilt):
    site = Site()
    site.write_entries({"a": 1, "forgotten": 1})
    site.restored().database.close()
    # Compaction may have removed the tombstone of a key that was deleted meanwhile.
    site.broker.truncate(CHANGELOG, 2)
    site.write_entries({"a": 2} if more else {})
    site.hours = hours
    assert hours * HOUR != OLDEST_CHECKPOINT
    with capture_logs() as logs:
        done = site.restored()
    expected = {"a": 2} if rebuilt else {"a": 1 + more, "forgotten": 1}
    assert content(done) == expected
    assert any(entry["event"] == Event.STATE_REBUILT for entry in logs) == rebuilt


def test_a_checkpoint_that_cannot_be_read_makes_the_database_anew():
    site = Site()
    site.write_entries({"a": 1})
    done = site.restored()
    done.database.write({"s": Changes({b"stray": b"1"})}, {"s": b"no JSON"})
    done.database.close()
    with capture_logs() as logs:
        assert content(site.restored()) == {"a": 1}
    assert "unreadable checkpoint" in next(e["reason"] for e in logs if e["event"] == Event.STATE_REBUILT)


def test_a_damaged_database_is_restored_from_the_beginning(tmp_path):
    site = Site(RocksDatabases(tmp_path, 8 * 1024 * 1024))
    site.write_entries({"a": 1, "b": 2})
    site.restored().database.close()
    (tmp_path / "s" / "0" / "CURRENT").write_text("broken\n")
    done = site.restored()
    assert content(done) == {"a": 1, "b": 2}
    assert done.progress.total == 2
    site.databases.close()


def test_an_open_transaction_is_waited_for():
    site = Site()
    site.write_entries({"a": 1})
    producer = site.broker.producer(transactional_id="dead", transaction_timeout=10)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output(CHANGELOG.topic, [b"a", b"b"], [b"2", b"2"], [0, 0], partition=0))
    site.add()
    assert site.restore() == []
    assert site.restorer.progress[TASK].done == 1
    producer.commit(1)
    (done,) = site.restore()
    assert content(done) == {"a": 2, "b": 2}


def test_what_a_transaction_left_is_not_restored_when_it_times_out():
    site = Site()
    site.write_entries({"a": 1})
    producer = site.broker.producer(transactional_id="dead", transaction_timeout=10)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output(CHANGELOG.topic, [b"a"], [b"2"], [0], partition=0))
    site.add()
    assert site.restore(2) == []
    site.clock.advance(11)
    (done,) = site.restore()
    assert content(done) == {"a": 1}


def test_a_task_that_waits_holds_up_no_other():
    site = Site()
    site.write_entries({"a": 1})
    site.write_entries({"b": 1}, partition=1)
    producer = site.broker.producer(transactional_id="dead", transaction_timeout=10)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output(CHANGELOG.topic, [b"a"], [b"2"], [0], partition=0))
    site.add()
    site.add(TaskId(0, 1))
    (done,) = site.restore()
    assert done.task == TaskId(0, 1)
    assert list(site.restorer.progress) == [TASK]
    producer.abort(1)
    assert [content(item) for item in site.restore()] == [{"a": 1}]


def test_a_restore_that_was_given_up_continues_where_it_was(monkeypatch):
    monkeypatch.setattr("streams.runtime.restore.CHUNK_RECORDS", 10)
    site = Site()
    site.write_entries({f"key-{number}": number for number in range(100)})
    site.add()
    for _ in range(4):
        assert site.restorer.poll(0) == []
    site.restorer.discard(TASK)
    assert site.restorer.progress == {}
    site.add()
    assert site.restorer.progress[TASK].total == 60
    (done,) = site.restore()
    assert content(done) == {f"key-{number}": number for number in range(100)}


def test_one_new_store_beside_one_that_is_up_to_date():
    site = Site()
    other = key_value_store("t")
    site.admin.create_topics([NewTopic(name="app-t-changelog", partitions=2)])
    site.write_entries({"a": 1})
    site.restored().database.close()
    producer = site.broker.producer()
    producer.produce(Output("app-t-changelog", [b"k"], [b"3"], [0], partition=0))
    producer.flush(1)
    site.add(stores=[STORE, other])
    assert site.restorer.progress[TASK].total == 1
    (done,) = site.restore()
    assert (content(done), content(done, "t")) == ({"a": 1}, {"k": 3})


def test_progress_is_logged_with_the_time_left(monkeypatch):
    monkeypatch.setattr("streams.runtime.restore.CHUNK_RECORDS", 10)
    site = Site()
    site.write_entries({f"key-{number}": number for number in range(100)})
    site.add()
    with capture_logs() as logs:
        site.restorer.poll(0)
        site.clock.advance(6)
        site.restorer.poll(0)
        site.restore()
    (progress,) = [entry for entry in logs if entry["event"] == Event.RESTORE_PROGRESS]
    assert (progress["records"], progress["of"]) == (20, 100)
    assert progress["seconds_left"] == pytest.approx(24, abs=1)
    (done,) = [entry for entry in logs if entry["event"] == Event.RESTORED]
    assert done["records"] == 100


# --- workers


class Counting(MemoryCluster):
    """An app that counts keys of ``in``, for all time and by the second, and its workers."""

    def __init__(self, *, grace: int = 0) -> None:
        self.app = App("count", commit_interval=0.05)
        grouped = self.app.stream("in", key=Text(), value=Text()).group_by_key()
        grouped.count("counts").to("counts")
        windows = grouped.window(Tumbling(seconds=1), grace=milliseconds(grace)).count("windows")
        windows.final().to("final")
        windows.late().to("late", value=Text())
        super().__init__(dict.fromkeys(("in", "counts", "final", "late"), 2))
        self.partitions = self.prepare(self.app, create_outputs=False)
        self._made = 0

    def worker(self, databases: Databases | None = None) -> Worker:
        self._made += 1
        worker = self.make_worker(
            self.app, f"worker-{self._made}", partitions=self.partitions, databases=databases
        )
        worker.start()
        return worker

    def send(self, *records: tuple[str, int], partition: int = 0) -> None:
        keys: list[bytes | None] = [key.encode() for key, _ in records]
        times = [time for _, time in records]
        self.write(Output("in", keys, [b"x"] * len(keys), times, partition=partition))

    def run(self, *workers: Worker, rounds: int = 300) -> None:
        partitions = [TopicPartition("in", number) for number in range(2)]
        for _ in range(rounds):
            for worker in workers:
                worker.run_once()
            committed = self.admin.committed_offsets("count")
            ends = self.admin.end_offsets(partitions)
            if all(committed.get(item, 0) == end for item, end in ends.items()):
                return
        pytest.fail("not all was committed")

    def once(self, databases: Databases | None = None) -> list[Any]:
        """Run a worker until all input is processed; returns its log lines."""
        with capture_logs() as logs:
            worker = self.worker(databases)
            self.run(worker)
            for _ in range(20):
                worker.run_once()
            worker.close()
        return logs

    def read(self, topic: str) -> list[Any]:
        payloads = self.payloads(topic)
        return payloads if topic == "late" else [msgspec.json.decode(value) for value in payloads]


def restored(logs: list[Any]) -> int:
    return sum(entry["records"] for entry in logs if entry["event"] == Event.RESTORED)


@pytest.mark.parametrize("kept", [True, False])
def test_a_restart_counts_on_whether_or_not_the_disk_is_still_there(kept):
    site = Counting()
    databases = MemoryDatabases()
    site.send(*[("a", 100)] * 7)
    site.once(databases)
    site.send(*[("a", 200)] * 3)
    logs = site.once(databases if kept else None)
    assert max(site.read("counts")) == 10
    # With the disk, only the markers are missing.
    assert restored(logs) <= 8 if kept else restored(logs) >= 6


def test_windows_that_closed_before_are_gone_after_a_restore_and_not_told_again():
    site = Counting()
    site.send(("a", 100), ("a", 1_500), ("b", 2_500))
    site.once()
    assert [(item["key"], item["start"]) for item in site.read("final")] == [("a", 0), ("a", 1_000)]
    site.send(("c", 3_600))
    databases = MemoryDatabases()
    site.once(databases)
    assert [(item["key"], item["start"], item["value"]) for item in site.read("final")] == [
        ("a", 0, 1),
        ("a", 1_000, 1),
        ("b", 2_000, 1),
    ]
    database = databases.open(["counts", "windows"], 0)
    assert [key for key, _ in database.store("windows").scan()] == [(3_000).to_bytes(8, "big") + b"c"]


def test_windows_that_closed_before_stay_so_when_the_first_commit_after_a_restore_fails():
    site = Counting()
    # Each window is in the changelog before it closes.
    for number in range(3):
        site.send(("a", number * 1_000))
        site.once()
    worker = site.worker()
    site.send(("b", 2_500))
    failures = iter([True])

    def fail(step: Step) -> None:
        if step == "send_offsets" and next(failures, False):
            raise TransactionAborted("made to fail")

    site.broker.before = fail
    site.run(worker)
    site.send(("b", 3_500))
    site.run(worker)
    worker.close()
    assert [(item["key"], item["start"]) for item in site.read("final")] == [
        ("a", 0),
        ("a", 1_000),
        ("a", 2_000),
        ("b", 2_000),
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_a_record_that_would_have_been_late_is_late_after_a_restart_too(kept):
    site = Counting()
    databases = MemoryDatabases()
    site.send(("a", 5_000))
    site.once(databases)
    site.send(("a", 3_000), ("a", 5_500))
    site.once(databases if kept else None)
    assert site.read("late") == [b"x"]
    assert site.read("final") == []


def test_an_open_transaction_of_a_dead_owner_is_waited_for_before_anything_is_counted():
    site = Counting()
    site.send(*[("a", 100)] * 4)
    dead = site.worker()

    class Death(BaseException):
        pass

    def die(step: Step) -> None:
        if step == "commit.before":
            raise Death

    site.broker.before = die
    with pytest.raises(Death):
        site.run(dead)
    site.broker.before = None
    site.expire(dead)
    worker = site.worker()
    for _ in range(5):
        worker.run_once()
    assert not worker.ready
    site.clock.advance(11)
    site.run(worker)
    worker.close()
    assert max(site.read("counts")) == 4


def test_a_task_that_is_still_restored_does_not_hold_up_another():
    site = Counting()
    site.send(("a", 100))
    site.send(("b", 100), partition=1)
    site.once()
    # An open transaction in one changelog: that task waits.
    producer = site.broker.producer(transactional_id="somebody", transaction_timeout=1_000)
    producer.init_transactions(1)
    producer.begin()
    producer.produce(Output("count-counts-changelog", [b"z"], [b"z"], [0], partition=0))
    site.send(("a", 200))
    site.send(("b", 200), partition=1)
    worker = site.worker()
    for _ in range(100):
        worker.run_once()
    assert site.admin.committed_offsets("count")[TopicPartition("in", 0)] == 1
    assert site.admin.committed_offsets("count")[TopicPartition("in", 1)] == 2
    assert list(worker.restoring) == [TaskId(0, 0)]
    producer.abort(1)
    site.run(worker)
    assert worker.ready
    worker.close()
    assert sorted(site.read("counts")) == [1, 1, 2, 2]


def test_a_partition_that_goes_away_while_it_is_restored_is_restored_elsewhere():
    site = Counting()
    site.send(*[("a", 100)] * 3)
    site.send(*[("b", 100)] * 3, partition=1)
    site.once()
    producer = site.broker.producer(transactional_id="somebody", transaction_timeout=1_000)
    producer.init_transactions(1)
    producer.begin()
    for number in range(2):
        producer.produce(Output("count-counts-changelog", [b"z"], [b"z"], [0], partition=number))
    first = site.worker()
    for _ in range(5):
        first.run_once()
    assert len(first.restoring) == 2
    second = site.worker()
    for _ in range(5):
        second.run_once()
        first.run_once()
    assert list(first.restoring) == [TaskId(0, 0)]
    assert list(second.restoring) == [TaskId(0, 1)]
    second.close()
    producer.abort(1)
    site.send(("a", 200))
    site.send(("b", 200), partition=1)
    site.run(first)
    first.close()
    assert sorted(site.read("counts")) == [3, 3, 4, 4]


def test_another_partition_count_of_the_input_is_refused():
    site = Counting()
    site.admin.delete_topics(["in"])
    site.admin.create_topics([NewTopic(name="in", partitions=3)])
    with pytest.raises(
        TopicError, match="'counts': count-counts-changelog has 2 partitions, but its input has 3"
    ):
        site.prepare(site.app, create_outputs=False)


def test_a_state_folder_that_was_deleted_is_filled_again(tmp_path: Path):
    site = Counting()
    for number in range(3):
        databases = RocksDatabases(tmp_path / str(number == 2), 8 * 1024 * 1024)
        site.send(*[("a", 100)] * 5)
        site.once(databases)
    assert max(site.read("counts")) == 15


def site_of_a_table() -> tuple[Site, StoreDefinition]:
    """Three prices in the table's topic, at the offsets 0 to 2."""
    app = App("app")
    app.table("prices", key=Text(), value=Json(int)).to_stream().to("out")
    (table,) = app.topology.subtopologies[0].stores
    site = Site()
    site.admin.create_topics([NewTopic(name="prices", partitions=1)])
    producer = site.broker.producer()
    producer.produce(Output("prices", [b"a", b"b", b"c"], [b"1", b"2", b"3"], [0, 0, 0]))
    producer.flush(1)
    return site, table


def test_a_table_is_restored_to_the_committed_offset_though_its_topic_goes_on():
    site, table = site_of_a_table()
    site.restorer.add(TASK, [table], {"prices": 1})
    (done,) = site.restore()
    assert [key for key, _ in done.database.store("prices").scan()] == [b"a"]
    assert done.checkpoints["prices"].offset == 1


def test_the_end_of_a_tables_topic_moves_no_checkpoint_past_what_was_restored(monkeypatch):
    """A worker that stops before it has processed the remaining records must not skip them at the next
    start.
    """
    site, table = site_of_a_table()
    make = site.broker.consumer

    def consumer(settings: GroupSettings) -> Any:
        made = make(settings)
        poll = made.poll
        place = TopicPartition("prices", 0)
        monkeypatch.setattr(made, "poll", lambda *given: poll(*given)._replace(ends={place: 3}))
        return made

    monkeypatch.setattr(site.broker, "consumer", consumer)
    site.restorer.add(TASK, [table], {"prices": 1})
    (done,) = site.restore()
    assert done.checkpoints["prices"].offset == 1


def test_a_tables_topic_is_read_to_the_committed_offset_although_a_replaced_leader_tells_an_earlier_end():
    site, table = site_of_a_table()
    site.broker.replace_leader(TopicPartition("prices", 0), answers=3)
    producer = site.broker.producer()
    producer.produce(Output("prices", [b"d"], [b"4"], [0]))
    producer.flush(1)
    site.restorer.add(TASK, [table], {"prices": 4})
    with capture_logs() as logs:
        assert site.restore() == []
        site.clock.advance(1)
        assert site.restore() == []
        site.clock.advance(1)
        (done,) = site.restore()
    assert [key for key, _ in done.database.store("prices").scan()] == [b"a", b"b", b"c", b"d"]
    assert done.checkpoints["prices"].offset == done.progress.done == done.progress.total == 4
    (doubted,) = [entry for entry in logs if entry["event"] == Event.RESTORE_INCOMPLETE]
    assert doubted["ends"] == {"prices-0": 3}


def test_a_tables_topic_that_ends_before_the_committed_offset_is_believed_to_after_a_minute():
    """It was deleted and made again; what becomes of the committed offset is the worker's to settle."""
    site, table = site_of_a_table()
    site.restorer.add(TASK, [table], {"prices": 9})
    for _ in range(59):
        assert site.restore(2) == []
        site.clock.advance(1)
    site.clock.advance(1)
    (done,) = site.restore()
    assert done.checkpoints["prices"].offset == 3
