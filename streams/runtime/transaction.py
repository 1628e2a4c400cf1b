"""The open transaction: the work since the last commit, and its outcome.

Used under both guarantees: at least once there is a Kafka transaction only for changes of stores, but
uncommitted work is discarded and processed again in the same way.
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
    from streams.runtime.pacing import Pacing
    from streams.runtime.worker_ledger import WorkerLedger

MISSING_SECONDS = 15.0
"""How long a topic that the app writes to may be missing."""

MISSING_PAUSE = 0.5
"""Wait before the records for a missing topic are processed again."""

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
"""Waits between consecutive failed attempts."""

CAREFUL_SECONDS = 10.0
"""How long slices stay small, each with a commit, after the broker refused records.

Every refused record costs an attempt.
"""

UNFINISHED: Final = (TransactionAborted, OutcomeUnknown, Retriable)
"""Errors after which the input of the transaction is read again."""


class TransactionState(Enum):
    """The states of a transaction.

    ::

        ──> EMPTY ──processed──> OPEN ──begin commit──> COMMITTING ──committed──> EMPTY
              └───────────────begin commit────────────────^ │
                                  ^                         │
                                  └───fatal error at commit─┘

        EMPTY, OPEN, COMMITTING ───────output partly written───────> TORN
        EMPTY, OPEN, COMMITTING, TORN ─────abort──────> ABORTED ────────rewind──────> EMPTY
                                                          │ ^
                                             abort failed │ │ committed offsets read back
                                                          v │
        EMPTY, OPEN, COMMITTING, TORN ─outcome unknown─> IN_DOUBT
    """

    EMPTY = "empty"
    """Nothing was processed since the last commit or rewind."""
    OPEN = "open"
    """Complete slices were processed, and their outputs are written."""
    COMMITTING = "committing"
    TORN = "torn"
    """An output was written only in part: the transaction must never be committed."""
    ABORTED = "aborted"
    """The input has to be read again from the committed offsets."""
    IN_DOUBT = "in doubt"
    """It is not known whether it was committed: a new producer has to find out, then as ``ABORTED``."""

    def may_become(self, other: TransactionState) -> bool:
        """Whether the transition is allowed."""
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
    """The transactions of one worker, one after another.

    ``own_topics`` are the fixed topics that the app writes to: that one is missing is not the fault of an
    input record. ``waiting`` is called while the producer waits for the broker; ``pause`` waits for the given
    seconds. ``stopping`` says whether the time for a graceful stop is over.
    """

    def __init__(
        self,
        guarantee: Guarantee,
        pacing: Pacing,
        ledger: WorkerLedger,
        *,
        own_topics: Collection[str],
        waiting: Callable[[], None],
        clock: Callable[[], float],
        pause: Callable[[float], object],
        stopping: Callable[[], bool],
    ) -> None:
        self._guarantee = guarantee
        self._pacing = pacing
        self._ledger = ledger
        self._own_topics = own_topics
        self._waiting = waiting
        self._clock = clock
        self._pause = pause
        self._stopping = stopping
        self._log = get_logger()
        self._state = TransactionState.EMPTY
        self._careful_until = -float("inf")
        """Until then slices are small and each is committed, as the broker refuses records."""
        self._backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        self._missing: dict[str, float] = {}
        """When each missing topic of ``own_topics`` was first found missing."""
        self.refused = RefusedRows()
        self.writing: tuple[str, float] | None = None
        """The topic that is being written to and since when; an empty topic while a commit waits."""
        self.aborted_by = ""
        """Why the last transaction was aborted, if none was committed since."""
        self.commits = self.rewinds = 0

    @property
    def state(self) -> TransactionState:
        return self._state

    @property
    def must_rewind(self) -> bool:
        """Whether the input has to be read again before anything else is processed."""
        return self._state is TransactionState.ABORTED or self._state is TransactionState.IN_DOUBT

    @property
    def in_doubt(self) -> bool:
        """Whether a new producer has to read back the committed offsets before that."""
        return self._state is TransactionState.IN_DOUBT

    @property
    def dirty(self) -> bool:
        """Whether there is work that is not committed."""
        return self._state is not TransactionState.EMPTY

    @property
    def committing(self) -> bool:
        return self._state is TransactionState.COMMITTING

    @property
    def between_slices(self) -> bool:
        """Whether everything written belongs to complete slices: not in the middle of a write or a commit."""
        return self._state is not TransactionState.COMMITTING and self.writing is None

    @property
    def careful(self) -> bool:
        """Whether slices have to be small, as the broker refuses records."""
        return bool(self.refused) and self._clock() < self._careful_until

    @property
    def backoff(self) -> float:
        """How many seconds to wait before the input is read again."""
        return self._backoff.seconds

    # --- writes

    def processed(self) -> None:
        """Note that a slice is completed and written, or a position has moved."""
        self._become(TransactionState.OPEN)  # I3
        self._pacing.processed()

    def write(self, output: Output) -> int:
        """Write all rows; rows that cannot be written get their step's policy. Returns how many were written.

        Raises ``Interrupted`` when the worker has to stop, or has lost the input, before all are queued.
        """
        return self._write(output, self._guarantee.write)

    def write_changes(self, output: Output) -> None:
        """As ``write``, for the changelogs of stores."""
        self._write(output, self._guarantee.write_changes)

    def _write(self, output: Output, write: Callable[[Output, Callable[[], None]], None]) -> int:
        assert not self.must_rewind, "written after an abort and before the rewind"  # I3
        at = written = 0
        self.writing = output.topic, self._clock()
        try:
            while at < len(output):
                rest = output if at == 0 else output.rest(at)
                try:
                    write(rest, self._waiting)
                except RecordRefused as error:
                    if isinstance(error, TopicMissing) and error.topic in self._own_topics:
                        self._tolerate_missing(error)
                    rest.refuse(error.position, error)
                    at += error.position + 1
                    written += error.position
                else:
                    written += len(rest)
                    break
        except BaseException:
            if not self.must_rewind:
                self._become(TransactionState.TORN)  # I2
            raise
        finally:
            self.writing = None
        self._ledger.handed(output.topic, written)
        return written

    def _tolerate_missing(self, error: TopicMissing) -> NoReturn:
        """Abort for a missing topic of the app's own; end the worker if it stays missing."""
        now = self._clock()
        if now - self._missing.setdefault(error.topic, now) > MISSING_SECONDS:
            raise TopicError(
                f"topic {error.topic} no longer exists",
                hint="create it again and restart: no input was committed whose results could not be written",
            ) from error
        # A broker that has just started may not know all topics yet.
        self._pause(MISSING_PAUSE)
        raise TransactionAborted(str(error)) from error

    # --- the commit

    def begin_commit(self) -> None:
        """Enter the commit: until ``end_commit`` there are no complete slices to commit."""
        self._become(TransactionState.COMMITTING)  # I2, I3

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        consumer: Consumer,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Commit everything written with these next offsets. Raises the errors of ``Guarantee.commit``."""
        assert self.committing, f"a transaction that is {self._state.value} cannot be committed"  # I2, I3
        self.writing = "", self._clock()
        self._guarantee.commit(offsets, consumer, self._waiting, offset_metadata)
        self._become(TransactionState.EMPTY)
        self._ledger.acknowledged(self._guarantee.take_acknowledged())
        self.commits += 1
        self.refused.committed()
        self._backoff.succeeded()
        self.aborted_by = ""
        self._missing.clear()

    def end_commit(self) -> None:
        """Leave the commit, with or without success."""
        self.writing = None
        if self.committing:
            # An error that ends the worker: the transaction is aborted when the producer is closed.
            self._become(TransactionState.OPEN)

    # --- errors

    def failed(self, error: BrokerError) -> None:
        """Handle an error after which the transaction was not committed, or may not have been."""
        self.aborted_by = str(error).partition("\n")[0]
        if isinstance(error, TransactionAborted):
            self._log.warning(Event.TRANSACTION_ABORTED, error=str(error))
            self.abort()
        else:
            self._log.warning(Event.OUTCOME_UNKNOWN, error=str(error))
            self._become(TransactionState.IN_DOUBT)
        refused = self._guarantee.take_refused()
        self._note_refused(refused)
        if refused:
            # The next attempt does not write these, so it may succeed without a backoff.
            self._careful_until = self._clock() + CAREFUL_SECONDS
        else:
            self._backoff.failed()

    def abort(self) -> None:
        """Abort everything written since the last commit; the input has to be read again."""
        if not self.in_doubt:
            self._become(TransactionState.ABORTED)
        if self._stopping():
            # The broker aborts it by itself, or when the next worker with this transactional id starts.
            self._become(TransactionState.IN_DOUBT)
            return
        try:
            self._guarantee.abort()
        except BrokerError as error:
            self._log.warning(Event.OUTCOME_UNKNOWN, error=str(error))
            self._become(TransactionState.IN_DOUBT)

    def _note_refused(self, refused: Sequence[Refusal]) -> None:
        """Remember the rows that the broker refused: they get their step's policy when processed again.

        Raises the error that ends the worker for a row without a policy.
        """
        for output, row, error in refused:
            place = None if output.owner is None else output.owner.place(output.first + row)
            if place is None:
                output.refuse(row, error)
            else:
                self.refused.add(place, error)
                self._log.warning(Event.RECORD_REFUSED, topic=output.topic, error=error.message)

    # --- rewinding

    def read_back(self) -> None:
        """Note that the committed offsets were read back with a new producer."""
        assert self.in_doubt, f"nothing is in doubt: the transaction is {self._state.value}"  # I9
        self._become(TransactionState.ABORTED)

    def rewound(self) -> None:
        """Note the rewind: uncommitted work is discarded, input is read from the committed offsets."""
        self._become(TransactionState.EMPTY)  # I9
        self.refused.dropped()
        self._pacing.discarded()
        self._ledger.discard()
        self._guarantee.take_acknowledged()
        self.rewinds += 1

    def _become(self, state: TransactionState) -> None:
        assert self._state.may_become(state), (
            f"a transaction that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
