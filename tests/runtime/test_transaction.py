"""The transaction's states with a real producer: the allowed and refused transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams.broker import GroupSettings
from streams.config import Settings
from streams.errors import OutcomeUnknown, RecordRefused, TopicError, TransactionAborted
from streams.operators.guard import Interrupted
from streams.records import Output, TopicPartition
from streams.runtime.commit import ExactlyOnce
from streams.runtime.pacing import Pacing
from streams.runtime.transaction import MISSING_SECONDS, Transaction, TransactionState
from streams.runtime.worker_ledger import WorkerLedger
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Hashable

S = TransactionState
PLACE = TopicPartition("in", 0)


class Site(MemoryCluster):
    """One transaction on a broker of its own."""

    def __init__(self) -> None:
        super().__init__({"in": 1, "out": 1}, Clock(0.0, tick=0.0))
        self.overdue = False
        self.guarantee = ExactlyOnce(self.broker, "worker", timeout=10)
        self.guarantee.open(1)
        self.pacing = Pacing(Settings(), self.clock)
        self.consumer = self.broker.consumer(GroupSettings(group="app"))
        self.transaction = Transaction(
            self.guarantee,
            self.pacing,
            WorkerLedger(),
            own_topics={"missing"},
            waiting=lambda: None,
            clock=self.clock,
            pause=lambda _: None,
            stopping=lambda: self.overdue,
        )

    def process(self, *values: bytes, topic: str = "out") -> None:
        self.transaction.write(
            Output(topic, [None] * len(values), list(values), [0] * len(values), owner=Rows())
        )

    def commit(self, offset: int = 1) -> None:
        self.transaction.begin_commit()
        try:
            self.transaction.commit({PLACE: offset}, self.consumer)
        finally:
            self.transaction.end_commit()

    def tear(self) -> None:
        with pytest.raises(RecordRefused):
            self.process(b"lost", topic="nowhere")

    def doubt(self) -> None:
        self.transaction.failed(OutcomeUnknown("no answer"))

    def values(self) -> list[bytes | None]:
        return [value for _, value in self.rows("out")]

    def state(self) -> TransactionState:
        return self.transaction.state


class Rows:
    """Rows whose step has the policy ``fail``."""

    def place(self, row: int) -> Hashable:
        return row

    def refuse(self, row: int, error: Exception) -> None:
        del row
        raise error


def test_what_is_processed_is_open_until_it_is_committed():
    site = Site()
    assert site.state() is S.EMPTY
    site.process(b"a")
    site.transaction.processed()
    site.transaction.processed()
    assert site.state() is S.OPEN
    assert site.pacing.dirty
    assert site.values() == []
    site.transaction.begin_commit()
    assert site.transaction.committing
    assert not site.transaction.between_slices
    site.transaction.commit({PLACE: 1}, site.consumer)
    site.transaction.end_commit()
    assert site.state() is S.EMPTY
    assert site.values() == [b"a"]
    assert site.consumer.committed([PLACE]) == {PLACE: 1}
    assert site.transaction.commits == 1


def test_a_commit_without_anything_processed_is_fine():
    site = Site()
    site.commit()
    assert site.state() is S.EMPTY


def test_what_ends_the_worker_in_a_commit_leaves_it_open():
    site = Site()
    site.transaction.begin_commit()
    site.transaction.end_commit()
    assert site.state() is S.OPEN
    assert site.transaction.between_slices


def test_a_commit_that_did_not_begin_is_refused():
    site = Site()
    site.transaction.processed()
    with pytest.raises(AssertionError, match="a transaction that is open cannot be committed"):
        site.transaction.commit({PLACE: 1}, site.consumer)
    site.transaction.begin_commit()
    with pytest.raises(AssertionError, match="committing cannot become committing"):
        site.transaction.begin_commit()


def test_what_was_written_in_part_is_never_committed():
    site = Site()
    site.process(b"a")
    site.transaction.processed()
    site.tear()
    assert site.state() is S.TORN
    with pytest.raises(AssertionError, match="torn cannot become committing"):
        site.transaction.begin_commit()
    with pytest.raises(AssertionError, match="torn cannot become open"):
        site.transaction.processed()
    site.transaction.abort()
    assert site.state() is S.ABORTED
    site.transaction.rewound()
    site.commit()
    assert site.values() == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_wait_that_is_interrupted_leaves_an_output_written_in_part(begun):
    site = Site()
    if begun:
        site.transaction.begin_commit()

    class Stuck(Rows):
        def refuse(self, row: int, error: Exception) -> None:
            del row, error
            raise Interrupted

    with pytest.raises(Interrupted):
        site.transaction.write(Output("nowhere", [None], [b"a"], [0], owner=Stuck()))
    assert site.state() is S.TORN
    assert site.transaction.writing is None


@pytest.mark.parametrize("doubt", [False, True])
def test_after_an_abort_nothing_is_written_until_the_input_is_read_again(doubt):
    site = Site()
    site.process(b"a")
    site.transaction.processed()
    if doubt:
        site.doubt()
    else:
        site.transaction.abort()
    assert site.transaction.must_rewind
    name = "in doubt" if doubt else "aborted"
    with pytest.raises(AssertionError, match="written after an abort"):
        site.process(b"b")
    with pytest.raises(AssertionError, match=f"{name} cannot become open"):
        site.transaction.processed()
    with pytest.raises(AssertionError, match=f"{name} cannot become committing"):
        site.transaction.begin_commit()


def test_giving_up_undoes_what_was_written():
    site = Site()
    site.process(b"a")
    site.transaction.processed()
    site.transaction.abort()
    site.transaction.abort()
    site.transaction.rewound()
    assert site.state() is S.EMPTY
    assert not site.pacing.dirty
    assert site.transaction.rewinds == 1
    site.process(b"b")
    site.transaction.processed()
    site.commit()
    assert site.values() == [b"b"]


def test_what_is_in_doubt_is_read_back_before_the_input_is_read_again():
    site = Site()
    site.process(b"a")
    site.doubt()
    assert site.state() is S.IN_DOUBT
    with pytest.raises(AssertionError, match="in doubt cannot become empty"):
        site.transaction.rewound()
    # An abort does not resolve a transaction in doubt.
    site.transaction.abort()
    assert site.state() is S.IN_DOUBT
    site.guarantee.open(1)
    site.transaction.read_back()
    assert site.state() is S.ABORTED
    site.transaction.rewound()
    assert site.state() is S.EMPTY


def test_only_what_is_in_doubt_is_read_back():
    site = Site()
    with pytest.raises(AssertionError, match="nothing is in doubt: the transaction is empty"):
        site.transaction.read_back()
    site.transaction.abort()
    with pytest.raises(AssertionError, match="nothing is in doubt: the transaction is aborted"):
        site.transaction.read_back()


def test_only_an_aborted_transaction_is_rewound():
    site = Site()
    site.transaction.processed()
    with pytest.raises(AssertionError, match="open cannot become empty"):
        site.transaction.rewound()


def test_an_abort_that_there_is_no_time_for_leaves_it_in_doubt():
    site = Site()
    site.process(b"a")
    site.overdue = True
    site.transaction.abort()
    assert site.state() is S.IN_DOUBT


def test_a_zombies_commit_is_in_doubt():
    site = Site()
    site.process(b"a")
    site.transaction.processed()
    ExactlyOnce(site.broker, "worker", timeout=10).open(1)
    site.transaction.begin_commit()
    with pytest.raises(OutcomeUnknown) as raised:
        site.transaction.commit({PLACE: 1}, site.consumer)
    site.transaction.failed(raised.value)
    site.transaction.end_commit()
    assert site.state() is S.IN_DOUBT
    assert site.transaction.aborted_by
    assert site.values() == []


def test_failures_one_after_another_are_waited_after_until_a_commit_succeeds():
    site = Site()
    for _ in range(3):
        site.transaction.failed(TransactionAborted("refused"))
        site.transaction.rewound()
    assert site.transaction.backoff > 0
    assert site.transaction.aborted_by == "refused"
    site.commit()
    assert site.transaction.backoff == 0
    assert site.transaction.aborted_by == ""


def test_an_own_topic_may_be_missing_for_a_while():
    site = Site()
    with pytest.raises(TransactionAborted):
        site.process(b"a", topic="missing")
    site.transaction.failed(TransactionAborted("missing"))
    site.transaction.rewound()
    site.clock.advance(MISSING_SECONDS + 1)
    with pytest.raises(TopicError, match="topic missing no longer exists"):
        site.process(b"a", topic="missing")
