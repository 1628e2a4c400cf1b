"""Where a group without committed offsets begins, and offsets that the log no longer has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Bytes, Text
from streams.broker import GroupSettings
from streams.errors import OffsetOutOfRange, StateError, TransactionAborted
from streams.events import Event
from streams.monitoring.metrics import WorkerMetrics
from streams.records import Output, TopicPartition
from streams.runtime.cleanup import PURGE_SECONDS
from streams.state.memory import MemoryDatabases
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from streams.runtime.worker import Worker

PLACE = TopicPartition("in", 0)


class Cluster(MemoryCluster):
    """The topics of an app, two partitions each, and workers of it."""

    def __init__(self, app: App) -> None:
        self.app = app
        super().__init__({"in": 2, "out": 2})
        self.databases = MemoryDatabases()
        self._made = 0

    def worker(self) -> Worker:
        self._made += 1
        worker = self.make_worker(
            self.app,
            f"slot-{self._made}",
            partitions=self.prepare(self.app, create_outputs=False),
            databases=self.databases,
            wall_clock=self.clock.milliseconds,
        )
        worker.start()
        return worker

    def send(self, start: int, stop: int, topic: str = "in") -> None:
        values: list[bytes | None] = [b"%d" % number for number in range(start, stop)]
        self.write(Output(topic, values, values, [0] * len(values), partition=0))

    def commit(self, offset: int) -> None:
        """Commit an offset of the input for the app's group."""
        consumer = self.broker.consumer(GroupSettings(group=self.app.name))
        consumer.commit({PLACE: offset})
        consumer.close()

    def committed(self) -> int | None:
        return self.admin.committed_offsets(self.app.name).get(PLACE)

    def values(self) -> list[int]:
        return sorted(map(int, self.payloads("out")))


def copying(**settings: Any) -> App:
    app = App("copy", **settings)
    app.stream("in", value=Bytes()).to("out", value=Bytes())
    return app


def run(worker: Worker, rounds: int = 30) -> None:
    for _ in range(rounds):
        worker.run_once()


@pytest.mark.parametrize(("reset", "expected"), [("earliest", [0, 1, 2, 3, 4]), ("latest", [3, 4])])
def test_a_group_that_committed_nothing_begins_where_it_is_told(reset, expected):
    cluster = Cluster(copying(offset_reset=reset))
    cluster.send(0, 3)
    worker = cluster.worker()
    run(worker)
    cluster.send(3, 5)
    run(worker)
    assert cluster.values() == expected
    worker.close()


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_records_deleted_before_they_were_processed_stop_the_worker(guarantee):
    cluster = Cluster(copying(guarantee=guarantee))
    cluster.send(0, 10)
    cluster.commit(2)
    cluster.admin.delete_records({PLACE: 7})
    worker = cluster.worker()
    with pytest.raises(OffsetOutOfRange) as stopped:
        run(worker)
    text = str(stopped.value)
    assert "group copy, topic in, partition 0: committed offset 2 is not in the log" in text
    assert "has 7 to 10: 5 records" in text
    assert "out_of_range_reset=earliest" in text
    assert "STREAMS_OUT_OF_RANGE_RESET" in text
    assert stopped.value.exit_code == 11
    assert cluster.values() == []
    assert cluster.committed() == 2


@pytest.mark.parametrize(
    ("reset", "values", "skipped"), [("earliest", [7, 8, 9, 10], 5), ("latest", [10], 8)]
)
def test_what_is_left_out_is_said_and_counted(reset, values, skipped):
    cluster = Cluster(copying(out_of_range_reset=reset))
    cluster.send(0, 10)
    cluster.commit(2)
    cluster.admin.delete_records({PLACE: 7})
    worker = cluster.worker()
    with capture_logs() as logs:
        run(worker)
        cluster.send(10, 11)
        run(worker)
    assert cluster.values() == values
    (event,) = [entry for entry in logs if entry["event"] == Event.OFFSET_OUT_OF_RANGE]
    assert event["log_level"] == "warning"
    assert (event["topic"], event["partition"], event["offset"]) == ("in", 0, 2)
    assert (event["beginning"], event["end"], event["lost"], event["skipped"]) == (7, 10, 5, skipped)
    text = WorkerMetrics(worker).exposition().decode()
    line = f'streams_out_of_range_skipped_total{{partition="0",topic="in"}} {skipped}.0'
    assert line in text
    worker.close()


def test_the_jump_is_committed_so_that_it_is_made_once():
    cluster = Cluster(copying(out_of_range_reset="latest"))
    cluster.send(0, 10)
    cluster.commit(2)
    cluster.admin.delete_records({PLACE: 7})
    worker = cluster.worker()
    run(worker)
    assert cluster.committed() == 10
    worker.close()
    successor = cluster.worker()
    run(successor)
    assert successor.skipped_offsets == {}
    successor.close()


@pytest.mark.parametrize("reset", ["fail", "earliest"])
def test_a_committed_offset_past_the_end_is_another_topics(reset):
    cluster = Cluster(copying(out_of_range_reset=reset))
    cluster.send(0, 4)
    cluster.commit(50)
    worker = cluster.worker()
    if reset == "fail":
        with pytest.raises(OffsetOutOfRange, match="it ends before that"):
            run(worker)
        return
    run(worker)
    assert cluster.values() == [0, 1, 2, 3]
    assert (cluster.committed() or 50) < 50
    worker.close()


@pytest.mark.parametrize("reset", ["fail", "earliest"])
def test_retention_overtakes_a_slow_worker(reset):
    app = App("slow", out_of_range_reset=reset, max_poll_records=2, commit_interval=0.001)
    seen: list[int] = []

    def work(value: bytes) -> bytes:
        seen.append(int(value))
        if int(value) == 3:
            cluster.admin.delete_records({PLACE: 8})
        return value

    app.stream("in", value=Bytes()).map(work).to("out", value=Bytes())
    cluster = Cluster(app)
    cluster.send(0, 10)
    worker = cluster.worker()
    if reset == "fail":
        with pytest.raises(OffsetOutOfRange, match="4 records"):
            run(worker)
        assert cluster.values() == [0, 1, 2, 3]
        assert cluster.committed() == 4
        return
    run(worker)
    assert seen == cluster.values() == [0, 1, 2, 3, 8, 9]
    assert worker.skipped_offsets == {PLACE: 4}
    worker.close()


def test_a_rewind_after_the_jump_does_not_count_it_again():
    app = copying(out_of_range_reset="earliest")
    cluster = Cluster(app)
    cluster.send(0, 10)
    cluster.commit(2)
    cluster.admin.delete_records({PLACE: 7})
    failures = iter([True])

    def before(step: str) -> None:
        if step == "commit.before" and next(failures, False):
            raise TransactionAborted("as told by the test")

    worker = cluster.worker()
    cluster.broker.before = before
    run(worker)
    assert cluster.values() == [7, 8, 9]
    assert worker.skipped_offsets == {PLACE: 5}
    worker.close()


def counting(**settings: Any) -> App:
    app = App("count", **settings)
    by_value = app.stream("in", value=Text()).group_by(lambda value: value, store="by-value", key=Text())
    by_value.count("counts").to("out")
    return app


def test_records_that_the_app_deletes_itself_are_not_lost():
    cluster = Cluster(counting())
    internal = TopicPartition("count-by-value-repartition", 0)
    worker = cluster.worker()
    for turn in range(4):
        cluster.send(0, 20)
        run(worker, 60)
        cluster.clock.advance(PURGE_SECONDS + 1)
        cluster.send(0, 1)
        run(worker, 60)
        if turn == 1:
            worker.close()
            worker = cluster.worker()
    names = [name for name in cluster.admin.topics() if name.endswith("repartition")]
    places = [TopicPartition(name, number) for name in names for number in range(2)]
    assert any(cluster.admin.beginning_offsets(places).values()), internal
    assert worker.skipped_offsets == {}
    worker.close()


def test_a_worker_that_others_went_past_continues_from_what_they_committed():
    """A frozen worker's positions are behind those that others have committed, and deleted from the log."""
    app = copying()
    cluster = Cluster(app)
    cluster.send(0, 10)
    worker = cluster.worker()
    run(worker, 3)
    consumer = cluster.consumer_of(worker)
    run(worker)
    cluster.send(10, 20)
    # Only members can commit offsets of a living group, so the worker's own client does it for the others.
    consumer.commit({PLACE: 18})
    cluster.admin.delete_records({PLACE: 15})
    consumer.seek({PLACE: 11})
    run(worker)
    assert cluster.values() == [*range(10), 18, 19]
    worker.close()


def test_a_store_waits_for_its_changelog_and_then_the_input_is_out_of_range():
    cluster = Cluster(counting())
    cluster.send(0, 10)
    worker = cluster.worker()
    run(worker, 60)
    worker.close()
    cluster.send(10, 20)
    cluster.admin.delete_records({PLACE: 15})
    with pytest.raises(OffsetOutOfRange, match="topic in, partition 0"):
        run(cluster.worker(), 60)


@pytest.mark.parametrize("reset", ["fail", "earliest"])
def test_a_table_whose_topic_forgot_what_was_not_read_is_rebuilt_or_refused(reset):
    app = App("table", out_of_range_reset=reset)
    app.table("in", key=Bytes(), value=Bytes(), store="prices").to_stream().to("out", value=Bytes())
    cluster = Cluster(app)
    cluster.send(0, 10)
    worker = cluster.worker()
    run(worker, 60)
    worker.close()
    cluster.send(10, 20)
    cluster.admin.delete_records({PLACE: 15})
    worker = cluster.worker()
    if reset == "fail":
        with pytest.raises(OffsetOutOfRange, match="topic in, partition 0"):
            run(worker, 60)
        return
    run(worker, 60)
    assert cluster.values() == [*range(10), *range(15, 20)]
    worker.close()


def test_a_changelog_that_lost_entries_the_state_lacks_is_refused():
    cluster = Cluster(counting())
    changelog = TopicPartition("count-counts-changelog", 0)
    cluster.send(0, 10)
    worker = cluster.worker()
    run(worker, 60)
    worker.close()
    other, cluster.databases = cluster.databases, MemoryDatabases()
    cluster.send(10, 30)
    worker = cluster.worker()
    run(worker, 60)
    worker.close()
    ends = cluster.admin.end_offsets([changelog])
    cluster.admin.delete_records(ends)
    # The disk of the first worker, without the second one's changes.
    cluster.databases = other
    with pytest.raises(StateError, match="entries in between were deleted"):
        run(cluster.worker(), 60)
