"""The producer, with or without transactions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from streams.broker.memory.group import Membership
from streams.broker.memory.log import Columns, Transaction
from streams.broker.memory.topic import record_sizes
from streams.broker.placement import first_misplaced
from streams.errors import (
    FatalBrokerError,
    OutcomeUnknown,
    RecordRefused,
    RecordsRefused,
    TopicMissing,
    TransactionAborted,
)
from streams.partitioning import partition_for
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streams.broker import Refusal
    from streams.broker.memory.cluster import Cluster
    from streams.records import Output


class MemoryProducer:
    """``Producer`` of a ``MemoryBroker``.

    Rows for a topic that does not exist are refused, and so are those with a partition of their own that it
    does not have; an output for such a partition as a whole raises ``TopicError``. Calls in a wrong order,
    such as ``begin`` before ``init_transactions``, raise ``FatalBrokerError``.
    """

    def __init__(self, cluster: Cluster, transactional_id: str | None, transaction_timeout: float) -> None:
        self._cluster = cluster
        self._transactional_id = transactional_id
        self._transaction_timeout = transaction_timeout
        self._epoch: int | None = None
        self._transaction: Transaction | None = None
        self._queue: list[tuple[TopicPartition, Columns]] = []
        self._next_partition: dict[str, int] = {}
        self._refused: list[Refusal] = []
        self._appended: Counter[str] = Counter()
        """How many records the logs have taken since the last ``take_acknowledged``, by topic."""
        self._counted = 0
        """How many entries of the queue ``take_acknowledged`` has counted."""
        self._unreported = False
        """Whether records were rejected that no flush has reported yet."""
        self._closed = False

    def produce(self, output: Output, waiting: Callable[[], None] | None = None) -> None:  # noqa: ARG002  # never full
        self._cluster.step("produce")
        with self._cluster.locked():
            self._usable()
            transaction = None if self._transactional_id is None else self._healthy_transaction()
            refused = self._first_refused(output)
            accepted = len(output) if refused is None else refused.position
            by_broker = [item for item in self._cluster.refused(output) if item.row < accepted]
            if by_broker and output.topic in self._cluster.known:
                accepted = by_broker[0].row
                refused = RecordRefused(str(by_broker[0].error), position=accepted)
            elif by_broker:
                self._refused += by_broker
                self._unreported = True
                accepted = 0
                if transaction is not None:
                    transaction.failed = True
            for partition, columns in self._partitioned(output, accepted):
                if transaction is None:
                    self._queue.append((partition, columns))
                else:
                    self._cluster.start(transaction, self._transaction_timeout)
                    self._append(partition, columns, transaction)
            self._cluster.notify()
        if refused is not None:
            raise refused

    def flush(self, timeout: float, waiting: Callable[[], None] | None = None) -> None:  # noqa: ARG002  # this broker answers at once
        self._cluster.step("flush")
        with self._cluster.locked():
            self._usable()
            queue, self._queue = self._queue, []
            counted, self._counted = self._counted, 0
            for at, (partition, columns) in enumerate(queue):
                records = self._append(partition, columns, None)
                if at < counted:
                    self._appended[partition.topic] -= records
            self._cluster.notify()
        if self._unreported:
            self._unreported = False
            raise RecordsRefused(str(self._refused[-1].error))

    def take_refused(self) -> list[Refusal]:
        refused, self._refused = self._refused, []
        self._cluster.known |= {refusal.output.topic for refusal in refused}
        return refused

    def take_acknowledged(self) -> Mapping[str, int]:
        appended, self._appended = self._appended, Counter()
        # As a client counts them when they are queued: these are not counted again when they are appended.
        for partition, columns in self._queue[self._counted :]:
            appended[partition.topic] += len(columns.values)
            appended[""] -= len(columns.values)
        self._counted = len(self._queue)
        return appended

    def _append(self, partition: TopicPartition, columns: Columns, transaction: Transaction | None) -> int:
        """Append to the log; return how many records it has taken."""
        log = self._cluster.existing_log(partition)
        before = log.next_offset
        log.append(columns, transaction)
        taken = log.next_offset - before
        self._appended[partition.topic] += taken
        return taken

    def init_transactions(self, timeout: float) -> None:  # noqa: ARG002  # this broker answers at once
        self._cluster.step("init_transactions")
        with self._cluster.locked():
            self._usable()
            if self._transactional_id is None:
                raise FatalBrokerError("this producer was created without a transactional id")
            self._epoch = self._cluster.new_producer(self._transactional_id)

    def begin(self) -> None:
        self._cluster.step("begin")
        with self._cluster.locked():
            self._usable()
            if self._transactional_id is None or self._epoch is None:
                raise FatalBrokerError("a transaction cannot begin before init_transactions")
            if self._transaction is not None:
                raise FatalBrokerError(f"{self._transactional_id}: a transaction is already open")
            self._transaction = Transaction(self._transactional_id)
            self._refused = []

    def send_offsets(
        self,
        offsets: Mapping[TopicPartition, int],
        group_metadata: object,
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        self._cluster.step("send_offsets")
        assert isinstance(group_metadata, Membership)
        texts = offset_metadata or {}
        self._cluster.require_size(texts)
        with self._cluster.locked():
            transaction = self._healthy_transaction()
            group = self._cluster.group(group_metadata.group)
            try:
                # As in Kafka: without a membership, only the transactional id is fenced.
                if group_metadata.member is not None:
                    group.check(group_metadata, offsets)
            except TransactionAborted:
                transaction.failed = True
                raise
            if offsets:
                self._cluster.start(transaction, self._transaction_timeout)
                transaction.offsets.setdefault(group, {}).update(offsets)
                own = transaction.metadata.setdefault(group, {})
                own.update({place: texts.get(place, "") for place in offsets})

    def commit(self, timeout: float) -> None:  # noqa: ARG002  # this broker answers at once
        self._cluster.step("commit.before")
        with self._cluster.locked():
            self._cluster.finish(self._healthy_transaction(), committed=True)
            self._transaction = None
        self._cluster.step("commit.after")

    def abort(self, timeout: float) -> None:  # noqa: ARG002  # this broker answers at once
        self._cluster.step("abort")
        with self._cluster.locked():
            self._cluster.finish(self._open_transaction(), committed=False)
            self._transaction = None

    def close(self) -> None:
        self._closed = True
        self._queue.clear()

    def _usable(self) -> None:
        if self._closed:
            raise FatalBrokerError("this producer is closed")
        if self._transactional_id is None or self._epoch is None:
            return
        if self._cluster.epochs[self._transactional_id] != self._epoch:
            raise OutcomeUnknown(
                f"{self._transactional_id}: fenced by a newer producer, or because its transaction timed out"
            )

    def _open_transaction(self) -> Transaction:
        self._usable()
        if self._transaction is None:
            raise FatalBrokerError("no transaction is open")
        return self._transaction

    def _healthy_transaction(self) -> Transaction:
        transaction = self._open_transaction()
        if transaction.failed:
            why = f": {self._refused[0].error}" if self._refused else ""
            raise TransactionAborted(f"{transaction.transactional_id}: the open transaction has failed{why}")
        return transaction

    def _first_refused(self, output: Output) -> RecordRefused | None:
        """The first row that is too large for the client, or for a partition that the topic does not have."""
        found = [_first_too_large(output, self._cluster.max_record_bytes)]
        topic = self._cluster.topics.get(output.topic)
        if topic is not None:
            found.append(first_misplaced(output, len(topic.logs)))
        return min((error for error in found if error), key=lambda error: error.position, default=None)

    def _partitioned(self, output: Output, accepted: int) -> Iterator[tuple[TopicPartition, Columns]]:
        """The first ``accepted`` rows of the output by partition."""
        topic = self._cluster.topics.get(output.topic)
        if topic is None:
            raise TopicMissing(output.topic)
        count, named = len(topic.logs), output.partitions
        if output.partition is not None or count == 1:
            only = TopicPartition(output.topic, output.partition or 0)
            self._cluster.existing_log(only)
            if accepted:
                yield only, Columns.of(output, None if accepted == len(output) else range(accepted))
            return
        turn = self._next_partition.get(output.topic, 0)
        chosen: dict[int, list[int]] = {}
        for row in range(accepted):
            key = output.keys[row]
            if named is not None:
                partition = named[row]
            elif key is None:
                partition = turn % count
                turn += 1
            else:
                partition = partition_for(key, count)
            chosen.setdefault(partition, []).append(row)
        self._next_partition[output.topic] = turn
        for partition, rows in chosen.items():
            yield TopicPartition(output.topic, partition), Columns.of(output, rows)


def _first_too_large(output: Output, limit: int) -> RecordRefused | None:
    """The first row whose key, value and headers have more than ``limit`` bytes."""
    sizes = record_sizes(output)
    if max(sizes, default=0) <= limit:
        return None
    row = next(row for row, size in enumerate(sizes) if size > limit)
    return RecordRefused(f"row {row} for topic {output.topic} has more than {limit} bytes", position=row)
