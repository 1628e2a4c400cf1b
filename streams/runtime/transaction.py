"""The open transaction: what was processed since the last commit, and what becomes of it.

Under both guarantees: at least once there is a transaction only for changes of stores, but what is written
and not committed is given up and processed again in the same way.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn

from streams.errors import (
    BrokerError,
    OutcomeUnknown,
    RecordRefused,
    Retriable,
    TopicError,
    TopicMissing,
    TransactionAborted,
)
from streams.events import Event, get_logger
from streams.runtime.backoff import Backoff
from streams.runtime.refused_rows import RefusedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.broker import Consumer, Refusal
    from streams.records import Output, TopicPartition
    from streams.runtime.commit import Guarantee
    from streams.runtime.pacing import Pace

MISSING_SECONDS = 15.0
"""How long a topic that is written to may be missing."""

MISSING_PAUSE = 0.5
"""How long to wait for it before its records are processed again."""

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
"""The waits between attempts that fail one after another."""

CAREFUL_SECONDS = 10.0
"""So long after the broker refused records, little is processed between commits: each costs an attempt."""

UNFINISHED: Final = (TransactionAborted, OutcomeUnknown, Retriable)
"""What leaves a transaction given up or in doubt: its input is read again."""


class TransactionState(Enum):
    """Where the transaction is.

    ::

        ──> EMPTY ──processed──> OPEN ──begin commit──> COMMITTING ──committed──> EMPTY
              └───────────────begin commit────────────────^ │
                                  ^                         │
                                  └────it ends the worker───┘

        EMPTY, OPEN, COMMITTING ───────an output half written──────> TORN
        EMPTY, OPEN, COMMITTING, TORN ────given up────> ABORTED ──input read again──> EMPTY
                                                          │ ^
                                             abort failed │ │ committed offsets read back
                                                          v │
        EMPTY, OPEN, COMMITTING, TORN ─outcome unknown─> IN_DOUBT
    """

    EMPTY = "empty"
    """Nothing was processed since the last commit, or since the input was read again."""
    OPEN = "open"
    """Whole slices were processed, and what they produced is written."""
    COMMITTING = "committing"
    TORN = "torn"
    """An output was written in part: what is there must never be committed."""
    ABORTED = "aborted"
    """Given up: the input is to be read again from the committed offsets."""
    IN_DOUBT = "in doubt"
    """Nobody here knows whether it was committed: a new producer has to find out, then as ``ABORTED``."""

    def may_become(self, other: TransactionState) -> bool:
        """Whether there is a way from here to there in one step."""
        return other in _NEXT[self]


_S = TransactionState
_NEXT = {
    _S.EMPTY: {_S.OPEN, _S.COMMITTING, _S.TORN, _S.ABORTED, _S.IN_DOUBT},
    _S.OPEN: {_S.OPEN, _S.COMMITTING, _S.TORN, _S.ABORTED, _S.IN_DOUBT},
    _S.COMMITTING: {_S.EMPTY, _S.OPEN, _S.TORN, _S.ABORTED, _S.IN_DOUBT},
    _S.TORN: {_S.ABORTED, _S.IN_DOUBT},
    _S.ABORTED: {_S.ABORTED, _S.IN_DOUBT, _S.EMPTY},
    _S.IN_DOUBT: {_S.IN_DOUBT, _S.ABORTED},
}


class Transaction:
    """One worker's, one after another.

    ``own_topics`` are written to by the app itself: one that is missing is nobody's input's fault.
    ``waiting`` is called while the broker does not take what is written; ``pause`` lets seconds pass.
    ``stopping`` says whether the time for a stop is over.
    """

    def __init__(
        self,
        guarantee: Guarantee,
        pace: Pace,
        *,
        own_topics: Collection[str],
        waiting: Callable[[], None],
        clock: Callable[[], float],
        pause: Callable[[float], object],
        stopping: Callable[[], bool],
    ) -> None:
        self._guarantee = guarantee
        self._pace = pace
        self._own_topics = own_topics
        self._waiting = waiting
        self._clock = clock
        self._pause = pause
        self._stopping = stopping
        self._log = get_logger()
        self._state = TransactionState.EMPTY
        self._careful_until = -float("inf")
        """So long, little is processed between commits: the broker refuses records."""
        self._backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        self._missing: dict[str, float] = {}
        """Since when topics of the app's own have been missing as they were to be written to."""
        self.refused = RefusedRows()
        self.writing: tuple[str, float] | None = None
        """The topic that is being written to and since when, or no topic for the wait of a commit."""
        self.aborted_by = ""
        """Why the last one was aborted, if none was committed since."""
        self.commits = self.rewinds = 0

    @property
    def state(self) -> TransactionState:
        return self._state

    @property
    def given_up(self) -> bool:
        """Whether the input has to be read again before anything else is processed."""
        return self._state is TransactionState.ABORTED or self._state is TransactionState.IN_DOUBT

    @property
    def in_doubt(self) -> bool:
        """Whether the committed offsets have to be read back before that, by a new producer."""
        return self._state is TransactionState.IN_DOUBT

    @property
    def committing(self) -> bool:
        return self._state is TransactionState.COMMITTING

    @property
    def between_slices(self) -> bool:
        """Whether all that was written belongs to whole slices: not in the middle of a write or a commit."""
        return self._state is not TransactionState.COMMITTING and self.writing is None

    @property
    def careful(self) -> bool:
        """Whether little is to be processed at a time, as the broker refuses records."""
        return bool(self.refused) and self._clock() < self._careful_until

    @property
    def backoff(self) -> float:
        """How many seconds to wait before the input is read again."""
        return self._backoff.seconds

    # --- what it takes in

    def processed(self) -> None:
        """A slice is through and written, or a position has moved: that is to be committed."""
        self._become(TransactionState.OPEN)  # I3
        self._pace.processed()

    def write(self, output: Output) -> None:
        """Write all rows but those that cannot be written, which get their step's policy.

        Raises ``Interrupted`` when the worker has to stop, or has lost the input, before all are queued.
        """
        self._write(output, self._guarantee.write)

    def write_changes(self, output: Output) -> None:
        """As ``write``, for the changelogs of stores."""
        self._write(output, self._guarantee.write_changes)

    def _write(self, output: Output, write: Callable[[Output, Callable[[], None]], None]) -> None:
        assert not self.given_up, "what is written now would outlive what was given up"  # I3
        at = 0
        self.writing = output.topic, self._clock()
        try:
            while at < len(output):
                rest = output if at == 0 else output.rest(at)
                try:
                    write(rest, self._waiting)
                except RecordRefused as error:
                    if isinstance(error, TopicMissing) and error.topic in self._own_topics:
                        self._bear_missing(error)
                    rest.refuse(error.position, error)
                    at += error.position + 1
                else:
                    break
        except BaseException:
            if not self.given_up:
                self._become(TransactionState.TORN)  # I2
            raise
        finally:
            self.writing = None

    def _bear_missing(self, error: TopicMissing) -> NoReturn:
        """Give up the transaction for a topic of the app's own, or, when it stays away, the worker."""
        now = self._clock()
        if now - self._missing.setdefault(error.topic, now) > MISSING_SECONDS:
            raise TopicError(
                f"topic {error.topic} does not exist any more",
                hint="make it anew and start again: nothing was committed whose results could not be written",
            ) from error
        # A broker that has just started may not know all topics yet.
        self._pause(MISSING_PAUSE)
        raise TransactionAborted(str(error)) from error

    # --- the commit

    def begin_commit(self) -> None:
        """From here on, until ``end_commit``, nothing is whole."""
        self._become(TransactionState.COMMITTING)  # I2, I3

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        consumer: Consumer,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Make everything written permanent, with these next offsets. Raises what the guarantee does."""
        assert self.committing, f"a transaction that is {self._state.value} cannot be committed"  # I2, I3
        self.writing = "", self._clock()
        self._guarantee.commit(offsets, consumer, self._waiting, offset_metadata)
        self._become(TransactionState.EMPTY)
        self.commits += 1
        self.refused.committed()
        self._backoff.succeeded()
        self.aborted_by = ""
        self._missing.clear()

    def end_commit(self) -> None:
        """The commit is over, whatever came of it."""
        self.writing = None
        if self.committing:
            # What ends the worker leaves it as it was; it is aborted as the producer is closed.
            self._become(TransactionState.OPEN)

    # --- what may go wrong

    def failed(self, error: BrokerError) -> None:
        """What was written since the last commit is gone, or nobody knows whether it is."""
        self.aborted_by = str(error).partition("\n")[0]
        if isinstance(error, TransactionAborted):
            self._log.warning(Event.TRANSACTION_ABORTED, error=str(error))
            self.give_up()
        else:
            self._log.warning(Event.OUTCOME_UNKNOWN, error=str(error))
            self._become(TransactionState.IN_DOUBT)
        refused = self._guarantee.take_refused()
        self._note_refused(refused)
        if refused:
            # With these left out, the next attempt is another one.
            self._careful_until = self._clock() + CAREFUL_SECONDS
        else:
            self._backoff.failed()

    def give_up(self) -> None:
        """Abort what was written since the last commit; the input is to be read again."""
        if not self.in_doubt:
            self._become(TransactionState.ABORTED)
        if self._stopping():
            # The broker does so by itself, or the next worker under this id.
            self._become(TransactionState.IN_DOUBT)
            return
        try:
            self._guarantee.abort()
        except BrokerError as error:
            self._log.warning(Event.OUTCOME_UNKNOWN, error=str(error))
            self._become(TransactionState.IN_DOUBT)

    def _note_refused(self, refused: Sequence[Refusal]) -> None:
        """Remember the rows that the broker does not take: they get their step's policy when they come again.

        Raises what ends the worker for a row that has no policy.
        """
        for output, row, error in refused:
            place = None if output.owner is None else output.owner.place(output.first + row)
            if place is None:
                output.refuse(row, error)
            else:
                self.refused.add(place, error)
                self._log.warning(Event.RECORD_REFUSED, topic=output.topic, error=error.message)

    # --- the way back

    def read_back(self) -> None:
        """With a new producer, the committed offsets were read: it is known where to begin again."""
        assert self.in_doubt, f"nothing is in doubt: the transaction is {self._state.value}"  # I9
        self._become(TransactionState.ABORTED)

    def rewound(self) -> None:
        """The input is read again from the committed offsets: nothing is left of what was not committed."""
        self._become(TransactionState.EMPTY)  # I9
        self.refused.dropped()
        self._pace.discarded()
        self.rewinds += 1

    def _become(self, state: TransactionState) -> None:
        assert self._state.may_become(state), (
            f"a transaction that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
