"""``offset_reset=latest``: the group's start is committed before it reads; later partitions are new."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Bytes, Text
from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.errors import Retriable
from streams.events import Event
from streams.records import Output, TopicPartition
from streams.state.memory import MemoryDatabases
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from streams.runtime.worker import Worker

GUARANTEES = ["exactly_once", "at_least_once"]


class Killed(BaseException):
    """A worker's process ends here."""


class Cluster(MemoryCluster):
    """Topics, and workers that can be killed, whose sessions end by the clock."""

    def __init__(self, *topics: str, partitions: int = 2) -> None:
        super().__init__(dict.fromkeys(topics, partitions), Clock(tick=0.0))
        self._made = 0

    def create(self, *topics: str, partitions: int = 2) -> None:
        self.admin.create_topics([NewTopic(name=name, partitions=partitions) for name in topics])

    def worker(self, app: App, *, start: bool = True) -> Worker:
        self._made += 1
        worker = self.make_worker(
            app,
            f"slot-{self._made}",
            partitions=self.prepare(app, create_outputs=True),
            databases=MemoryDatabases(),
            wall_clock=self.clock.milliseconds,
        )
        if start:
            worker.start()
        return worker

    def kill(self) -> None:
        """Kill all workers: their sessions and transactions end."""
        self.clock.advance(1_000.0)

    def send(self, *values: str, topic: str = "in", partition: int = 0) -> None:
        encoded = [value.encode() for value in values]
        self.write(Output(topic, encoded, encoded, [1_000] * len(encoded), partition=partition))

    def values(self, topic: str = "out") -> list[str]:
        return sorted(
            (value or b"").decode()
            for fetched in read_to_end(self.broker, [topic])
            for value in fetched.values()
        )

    def counts(self) -> dict[str, int]:
        """The last count of each key in ``out``."""
        return {(key or b"").decode(): int(value or b"") for key, value in self.rows("out")}


def copying(*topics: str | re.Pattern[str], **settings: Any) -> App:
    app = App("copy", offset_reset="latest", **settings)
    app.stream(topics or ("in",), value=Bytes()).to("out", value=Bytes())
    return app


def counting(**settings: Any) -> App:
    app = App("copy", offset_reset="latest", **settings)
    app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to("out")
    return app


def run(*workers: Worker, rounds: int = 30) -> None:
    for _ in range(rounds):
        for worker in workers:
            worker.run_once()


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_worker_killed_before_its_first_record_skips_nothing(guarantee):
    cluster = Cluster("in")
    cluster.send("before")
    run(cluster.worker(copying(guarantee=guarantee)))
    cluster.kill()
    cluster.send("between")
    run(cluster.worker(copying(guarantee=guarantee)))
    cluster.send("later", partition=1)
    cluster.kill()
    run(cluster.worker(copying(guarantee=guarantee)))
    assert cluster.values() == ["between", "later"]


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_same_holds_for_a_task_with_a_store(guarantee):
    cluster = Cluster("in")
    cluster.send("a", "b")
    run(cluster.worker(counting(guarantee=guarantee)))
    cluster.kill()
    cluster.send("a", "c")
    run(cluster.worker(counting(guarantee=guarantee)))
    cluster.kill()
    cluster.send("a")
    run(cluster.worker(counting(guarantee=guarantee)))
    assert cluster.counts() == {"a": 2, "c": 1}


def test_starts_are_committed_for_idle_partitions_before_the_group_is_joined():
    cluster = Cluster("in", partitions=3)
    cluster.send("x", "y", partition=1)
    with capture_logs() as logs:
        cluster.worker(copying())
    starts = {TopicPartition("in", 0): 0, TopicPartition("in", 1): 2, TopicPartition("in", 2): 0}
    assert cluster.admin.committed_offsets("copy") == starts
    (event,) = [entry for entry in logs if entry["event"] == Event.GROUP_BEGINS]
    assert event["starts"] == {"in-0": 0, "in-1": 2, "in-2": 0}
    cluster.send("z", partition=1)
    cluster.kill()
    cluster.worker(copying())
    assert cluster.admin.committed_offsets("copy") == starts


def start_and_run(worker: Worker) -> None:
    worker.start()
    run(worker)


STEPS = ["init_transactions", "committed", "begin", "send_offsets", "commit.before", "commit.after", "poll"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("make", [copying, counting])
def test_a_kill_at_any_step_of_the_start_skips_no_later_record(step, make):
    cluster = Cluster("in")
    cluster.send("before")
    app = make()
    worker = cluster.worker(app, start=False)

    def before(reached: str) -> None:
        if reached == step:
            raise Killed

    cluster.broker.before = before
    with pytest.raises(Killed):
        start_and_run(worker)
    cluster.broker.before = None
    cluster.kill()
    # Without a commit the group has not begun, so the next worker is the first.
    begun = bool(cluster.admin.committed_offsets("copy"))
    assert begun == (step in ("commit.after", "poll"))
    cluster.send("between")
    worker = cluster.worker(app)
    cluster.send("later")
    run(worker)
    came = {"later", *(["between"] if begun else [])}
    assert set(cluster.values() if make is copying else cluster.counts()) == came


@pytest.mark.parametrize("step", ["committed", "begin", "send_offsets", "commit.before"])
def test_of_workers_that_start_together_one_decides_where_the_group_begins(step):
    cluster = Cluster("in")
    cluster.send("before")
    app = copying()
    slow = cluster.worker(app, start=False)
    others: list[Worker] = []

    def before(reached: str) -> None:
        if reached == step:
            cluster.broker.before = None
            # In the middle of it, another one starts and works.
            others.append(cluster.worker(app))
            cluster.send("a", "b")
            run(others[0])
            cluster.send("c")

    cluster.broker.before = before
    slow.start()
    run(slow, *others)
    cluster.send("d", partition=1)
    run(slow, *others)
    assert cluster.values() == ["a", "b", "c", "d"]


def test_a_broker_that_does_not_answer_at_the_start_is_called_again():
    cluster = Cluster("in")
    cluster.send("before")
    failures = iter([True, True])

    def before(reached: str) -> None:
        if reached in ("init_transactions", "send_offsets") and next(failures, False):
            raise Retriable("as told by the test")

    cluster.broker.before = before
    worker = cluster.worker(copying())
    cluster.send("after")
    run(worker)
    assert cluster.values() == ["after"]


@pytest.mark.parametrize("killed", [False, True])
def test_partitions_added_later_are_read_from_their_beginning(killed):
    cluster = Cluster("in")
    cluster.send("before")
    worker = cluster.worker(copying())
    run(worker)
    cluster.broker.add_partitions("in", 4)
    new = [f"new-{number}" for number in range(20)]
    cluster.send(*new, partition=2)
    with capture_logs() as logs:
        if killed:
            cluster.kill()
            worker = cluster.worker(copying())
        run(worker)
    assert cluster.values() == sorted(new)
    (event,) = [entry for entry in logs if entry["event"] == Event.PARTITIONS_FROM_BEGINNING]
    assert event["partitions"] == ["in-2", "in-3"]
    worker.close()


def test_a_topic_that_was_deleted_and_created_again_under_a_running_group_is_read_from_its_beginning():
    cluster = Cluster("in")
    cluster.send("before")
    worker = cluster.worker(copying())
    run(worker)
    cluster.admin.delete_topics(["in"])
    worker.run_once()
    cluster.create("in")
    cluster.send("new")
    run(worker)
    assert cluster.values() == ["new"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_topic_that_a_pattern_matches_later_is_read_from_its_beginning(stopped):
    cluster = Cluster("in-a")
    app = copying(re.compile("in-.*"))
    cluster.send("before", topic="in-a")
    worker = cluster.worker(app)
    run(worker)
    if stopped:
        worker.close()
    cluster.create("in-b")
    cluster.send("new", topic="in-b", partition=1)
    if stopped:
        worker = cluster.worker(app)
    run(worker)
    assert cluster.values() == ["new"]
    assert cluster.admin.committed_offsets("copy").keys() >= {TopicPartition("in-a", 0)}


def test_a_topic_that_the_program_reads_from_now_on_begins_at_its_end():
    cluster = Cluster("in", "more")
    run(cluster.worker(copying()))
    cluster.kill()
    cluster.send("old", topic="more")
    cluster.send("between")
    worker = cluster.worker(copying("in", "more"))
    cluster.send("new", topic="more")
    run(worker)
    assert cluster.values() == ["between", "new"]


def test_a_program_that_reads_more_joins_a_group_that_is_running():
    cluster = Cluster("in", "more")
    old = cluster.worker(copying())
    run(old)
    cluster.send("old", topic="more")
    new = cluster.worker(copying("in", "more"))
    cluster.send("a", topic="more")
    cluster.send("b")
    run(old, new)
    assert cluster.values() == ["a", "b"]


def test_internal_topics_are_never_read_from_their_end():
    app = App("copy", offset_reset="latest")
    app.stream("in", value=Text()).group_by(lambda value: value[0], store="by", key=Text()).count("n").to(
        "out"
    )
    cluster = Cluster("in")
    worker = cluster.worker(app)
    cluster.send("a1", "a2", "b1")

    def before(step: str) -> None:
        # The first commit of input has taken effect: its records in the internal topic exist, unread.
        if step == "commit.after":
            raise Killed

    cluster.broker.before = before
    with pytest.raises(Killed):
        run(worker)
    cluster.broker.before = None
    cluster.kill()
    run(cluster.worker(app))
    assert cluster.counts() == {"a": 2, "b": 1}


def test_a_table_is_complete_although_the_group_begins_at_the_end():
    app = App("copy", offset_reset="latest")
    owners = app.table("owners", key=Text(), value=Text())
    app.stream("in", key=Text(), value=Text()).join(owners, lambda value, owner: f"{value} {owner}").to(
        "out", value=Text()
    )
    cluster = Cluster("in", "owners")
    cluster.send("k", "l", topic="owners")
    cluster.send("k")
    worker = cluster.worker(app)
    cluster.send("l")
    run(worker)
    assert cluster.values() == ["l l"]
