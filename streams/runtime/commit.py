"""The two guarantees: how results and input offsets are committed together.

A worker calls ``write`` for its tasks' outputs, then ``commit`` with the offsets of their input. After
``TransactionAborted`` it calls ``abort``, after ``OutcomeUnknown`` it calls ``open`` again; in both cases it
then reads its input again from the committed offsets.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Protocol

from streams.errors import (
    BrokerError,
    RecordRefused,
    RecordsRefused,
    Retriable,
    TopicMissing,
    TransactionAborted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.broker import Broker, Consumer, Producer, Refusal
    from streams.records import Output, TopicPartition


class Guarantee(Protocol):
    """The delivery guarantee of a worker."""

    undoes: ClassVar[bool]
    """Whether ``abort`` undoes all writes since the last commit."""

    def open(self, timeout: float) -> None:
        """Open the producer; after ``OutcomeUnknown``, a new one.

        Raises ``Retriable`` or ``OutcomeUnknown`` when the broker does not answer within ``timeout`` seconds;
        the call may then be repeated.
        """

    def write(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        """Write rows that the next commit makes permanent. Raises ``RecordRefused``.

        ``waiting`` is as for ``Producer.produce``.
        """

    def write_changes(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        """As ``write``, for the changelogs of stores: permanent together with the offsets, or not at all."""

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        consumer: Consumer,
        waiting: Callable[[], None] | None = None,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Commit everything written, and these next offsets. Does nothing if there is nothing to commit.

        ``offset_metadata`` is committed with the offsets, see ``Consumer.commit``.
        """

    def take_refused(self) -> list[Refusal]:
        """Return and forget the records that the broker refused, which forced an abort."""

    def take_acknowledged(self) -> Mapping[str, int]:
        """How many records were acknowledged since the last call, by topic; see ``Producer``."""

    def abort(self) -> None:
        """Undo the writes since the last commit, as far as the guarantee can."""

    def close(self) -> None:
        """Release the producer. Uncommitted writes are discarded."""


class ExactlyOnce:
    """Outputs, dead letters and offsets in one transaction (KIP-98), fenced by group membership (KIP-447).

    ``transactional_id`` must be unique to this worker and stable over restarts: opening it fences a
    predecessor and completes or aborts its open transaction. ``timeout`` (seconds) is the time after which
    the broker aborts a transaction on its own, and the longest duration of a commit.
    """

    undoes: ClassVar[bool] = True

    def __init__(self, broker: Broker, transactional_id: str, *, timeout: float) -> None:
        self._broker = broker
        self._transactional_id = transactional_id
        self._timeout = timeout
        self._producer: Producer | None = None
        self._open = False

    def open(self, timeout: float) -> None:
        self.close()
        producer = self._broker.producer(
            transactional_id=self._transactional_id, transaction_timeout=self._timeout
        )
        try:
            producer.init_transactions(timeout)
        except BrokerError:
            producer.close()
            raise
        self._producer = producer

    def write(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        self._begun().produce(output, waiting)

    write_changes = write

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        consumer: Consumer,
        waiting: Callable[[], None] | None = None,  # noqa: ARG002 - a transaction's commit cannot be interrupted
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        if not offsets and not self._open:
            return
        producer = self._begun()
        if offsets:
            producer.send_offsets(offsets, consumer.group_metadata(), offset_metadata)
        producer.commit(self._timeout)
        self._open = False

    def abort(self) -> None:
        if self._open:
            assert self._producer is not None
            self._producer.abort(self._timeout)
            self._open = False

    def take_refused(self) -> list[Refusal]:
        return [] if self._producer is None else self._producer.take_refused()

    def take_acknowledged(self) -> Mapping[str, int]:
        return {} if self._producer is None else self._producer.take_acknowledged()

    def close(self) -> None:
        producer, self._producer = self._producer, None
        self._open = False
        if producer is not None:
            producer.close()

    def _begun(self) -> Producer:
        # A transaction begins with its first write, so that its time-out does not run while idle.
        assert self._producer is not None
        if not self._open:
            self._producer.begin()
            self._open = True
        return self._producer


class AtLeastOnce:
    """Outputs first, then offsets: after a failure records are processed again, never skipped.

    Changes of stores need more: a part of them, or those of a zombie, would corrupt the state permanently.
    They are written in a transaction with the offsets, under ``transactional_id``, fenced like
    ``ExactlyOnce``. So state always matches the committed offsets, under this guarantee too; only outputs may
    be repeated. ``timeout`` (seconds) is how long outputs may take to be acknowledged before their input is
    read again, and the longest duration of a commit.
    """

    undoes: ClassVar[bool] = False

    def __init__(self, broker: Broker, transactional_id: str, *, timeout: float) -> None:
        self._broker = broker
        self._timeout = timeout
        self._producer: Producer | None = None
        self._state = ExactlyOnce(broker, transactional_id, timeout=timeout)
        self._keeps_state = False
        self._changes: list[Output] = []

    def open(self, timeout: float) -> None:
        self.close()
        self._producer = self._broker.producer()
        if self._keeps_state:
            self._state.open(timeout)

    def write(self, output: Output, waiting: Callable[[], None] | None = None) -> None:
        assert self._producer is not None
        self._producer.produce(output, waiting)

    def write_changes(self, output: Output, waiting: Callable[[], None] | None = None) -> None:  # noqa: ARG002 - nothing is queued yet
        # Buffered until the outputs are acknowledged, so that no open transaction waits for these.
        self._changes.append(output)

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        consumer: Consumer,
        waiting: Callable[[], None] | None = None,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        assert self._producer is not None
        try:
            self._producer.flush(self._timeout, waiting)
        except (Retriable, RecordsRefused) as error:
            raise TransactionAborted(str(error)) from error
        changes, self._changes = self._changes, []
        if not changes:
            consumer.commit(offsets, offset_metadata)
            return
        if not self._keeps_state:
            self._state.open(self._timeout)
            self._keeps_state = True
        for output in changes:
            try:
                self._state.write_changes(output, waiting)
            except TopicMissing:
                raise
            except RecordRefused as error:
                output.refuse(error.position, error)
                raise
        self._state.commit(offsets, consumer, offset_metadata=offset_metadata)

    def abort(self) -> None:
        """Discard the changes of stores; outputs cannot be undone and will be repeated."""
        self._changes = []
        if self._keeps_state:
            self._state.abort()

    def take_refused(self) -> list[Refusal]:
        refused = [] if self._producer is None else self._producer.take_refused()
        return refused + self._state.take_refused()

    def take_acknowledged(self) -> Mapping[str, int]:
        total = Counter(self._state.take_acknowledged())
        if self._producer is not None:
            # Not added by +, which leaves out negative numbers.
            total.update(self._producer.take_acknowledged())
        return total

    def close(self) -> None:
        producer, self._producer = self._producer, None
        self._changes = []
        if producer is not None:
            producer.close()
        self._state.close()
