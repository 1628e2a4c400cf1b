"""A worker's assignment, with a real consumer: which offsets may be committed, and which may not."""

from __future__ import annotations

import pytest

from streams import App, Bytes
from streams.broker import GroupSettings, Polled
from streams.config import Settings
from streams.errors import StreamsError
from streams.records import Output, TopicPartition
from streams.runtime.assignment import Assignment
from streams.runtime.cleanup import Cleanup
from streams.runtime.commit import ExactlyOnce
from streams.runtime.lost_offsets import LostOffsets
from streams.runtime.pacing import Pacing
from streams.runtime.pending import PendingTasks
from streams.runtime.restore import Restorer
from streams.runtime.sinks import Sinks
from streams.runtime.slice import Slice
from streams.runtime.task import Task, TaskId
from streams.runtime.task_life import TaskLives, TaskState
from streams.runtime.transaction import Transaction
from streams.runtime.worker_ledger import WorkerLedger
from streams.state.memory import MemoryDatabases
from streams.testing import TopologyDriver
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster

PLACE = TopicPartition("in", 0)
TASK = TaskId(0, 0)


class Site(MemoryCluster):
    """An assignment of one partition, with 10 records in it, whose group is at ``committed``."""

    def __init__(self, committed: int = 0) -> None:
        super().__init__({"in": 1, "out": 1}, Clock(0.0, tick=0.0))
        broker, clock, databases, settings = self.broker, self.clock, MemoryDatabases(), Settings()
        self.write(Output("in", [None] * 10, [b"x"] * 10, [0] * 10))
        app = App("app")
        app.stream("in", value=Bytes()).to("out")
        topology = app.topology
        guarantee = ExactlyOnce(broker, "worker", timeout=10)
        guarantee.open(1)
        pacing = Pacing(settings, clock)
        self.commits = 0
        self.error: StreamsError | None = None
        self.transaction = Transaction(
            guarantee,
            pacing,
            WorkerLedger(),
            own_topics={"out"},
            waiting=lambda: None,
            clock=clock,
            pause=lambda _: None,
            stopping=lambda: False,
        )
        self.lives = TaskLives()
        restorer = Restorer(broker, databases, application="app", clock=clock, wall_clock=lambda: 0)
        self.assignment = Assignment(
            topology,
            pending=PendingTasks(
                topology, restorer, None, partitions={"in": 1}, lives=self.lives, clock=clock
            ),
            sinks=Sinks(
                topology,
                broker,
                application="app",
                worker="worker",
                lock_timeout=10,
                committed=lambda _: {},
                waiting=lambda: None,
                clock=clock,
            ),
            lives=self.lives,
            lost=LostOffsets(settings, "app"),
            cleanup=Cleanup(topology, broker, databases, settings, clock),
            pacing=pacing,
            transaction=self.transaction,
            ledger=WorkerLedger(),
            at_work=Slice(),
            partitions={"in": 1},
            matched=(),
            make_task=lambda identifier, _: Task(
                identifier,
                topology.subtopologies[0],
                TopologyDriver(app),
                application="app",
                dead_letter_topic="app-dead-letters",
            ),
            consumer=lambda: self.consumer,
            commit=self.commit,
            hand_over=lambda _: None,
            may_commit=lambda: True,
            notes_beginnings=False,
            clock=clock,
        )
        self.consumer = broker.consumer(GroupSettings(group="app", offset_reset="earliest"))
        if committed:
            broker.consumer(GroupSettings(group="app")).commit({PLACE: committed})
        self.consumer.subscribe(["in"], self.assignment)
        while not self.consumer.assignment():
            self.consumer.poll(1, 0.1)

    def commit(self) -> None:
        self.commits += 1
        if self.error is not None:
            raise self.error

    @property
    def task(self) -> Task:
        return self.assignment.tasks[TASK]

    def poll(self, records: int, *, stopping: bool = False) -> Polled:
        while True:
            polled = self.consumer.poll(records, 0.1)
            if polled.fetched or polled.ends:
                self.assignment.received(polled, stopping=stopping)
                return polled

    def process(self, polled: Polled) -> None:
        for fetched in polled.fetched:
            self.task.process(fetched)
            self.assignment.processed(PLACE, self.task, fetched)


def test_what_was_polled_is_processed_before_more_is():
    site = Site()
    site.process(site.poll(4))
    site.process(site.poll(3))
    assert site.assignment.offsets() == {PLACE: 7}


@pytest.mark.parametrize("processed", [0, 2])
def test_records_that_were_polled_and_not_processed_are_not_passed_over(processed):
    site = Site()
    (fetched,) = site.poll(4).fetched
    if processed:
        site.task.process(fetched.slice(0, processed))
    with pytest.raises(AssertionError, match=r"in-0 was polled up to 4 and processed up to .*skipped"):
        site.poll(3)


def test_a_worker_that_stops_may_leave_what_it_polled():
    site = Site()
    site.poll(4)
    site.poll(3, stopping=True)
    assert site.assignment.offsets() == {}


def test_what_is_read_again_need_not_have_been_processed():
    site = Site()
    site.poll(4)
    site.transaction.abort()
    positions = site.assignment.drop(states_unknown=False)
    assert positions == {PLACE: 0}
    site.transaction.rewound()
    site.assignment.seek(positions)
    site.process(site.poll(10))
    assert site.assignment.offsets() == {PLACE: 10}


def test_an_end_counts_once_everything_before_it_is_processed():
    site = Site()
    (fetched,) = (polled := site.poll(10)).fetched
    ended = polled._replace(ends={PLACE: 11})
    site.task.process(fetched.slice(0, 4))
    site.assignment.note_ends(ended, site.assignment.progress)
    assert site.assignment.offsets() == {PLACE: 4}
    site.assignment.note_ends(Polled([], {PLACE: 11}), site.assignment.progress)
    assert site.assignment.offsets() == {PLACE: 4}
    site.task.process(fetched.slice(4, 10))
    site.assignment.note_ends(ended, site.assignment.progress)
    assert site.assignment.offsets() == {PLACE: 11}


def test_an_offset_that_goes_back_is_refused():
    site = Site()
    site.process(site.poll(4))
    site.assignment.committed[PLACE] = 9
    with pytest.raises(AssertionError, match="in-0 would go back from 9 to 4"):
        site.assignment.offsets()


def test_a_jump_may_go_back():
    site = Site()
    site.process(site.poll(4))
    site.assignment.committed[PLACE] = 4
    site.assignment.jump(PLACE, 1)
    assert site.assignment.offsets() == {PLACE: 1}
    site.process(site.poll(2))
    assert site.assignment.offsets() == {PLACE: 3}


def test_a_partition_that_is_gone_is_not_committed():
    site = Site()
    site.process(site.poll(4))
    assert site.lives.state(TASK) is TaskState.RUNNING
    site.assignment.revoked([PLACE])
    assert site.commits == 1
    assert site.assignment.offsets() == {}
    assert site.lives.state(TASK) is TaskState.CLOSED


def test_lost_partitions_are_released_without_a_commit():
    site = Site()
    site.process(site.poll(4))
    site.assignment.lost([PLACE])
    assert site.commits == 0
    assert site.transaction.must_rewind
    assert site.assignment.progress == {}


def test_an_error_in_a_rebalance_is_raised_after_it():
    site = Site()
    site.process(site.poll(4))
    site.error = StreamsError("no room")
    site.assignment.revoked([PLACE])
    assert not site.assignment.in_callback
    # Nothing is committed until the error was raised.
    site.assignment.revoked([])
    assert site.commits == 1
    assert site.transaction.must_rewind
    with pytest.raises(StreamsError, match="no room"):
        site.assignment.raise_error()
    site.assignment.raise_error()


def test_in_the_middle_of_a_commit_a_rebalance_finds_nothing_to_commit():
    site = Site()
    site.process(site.poll(4))
    site.transaction.begin_commit()
    site.assignment.revoked([PLACE])
    assert site.commits == 0
    assert site.transaction.must_rewind


def test_a_group_continues_where_it_is():
    site = Site(committed=6)
    site.process(site.poll(10))
    assert site.assignment.uncommitted() == {PLACE: (6, 10)}
    site.assignment.take_committed({PLACE: 10})
    assert site.assignment.uncommitted() == {}
