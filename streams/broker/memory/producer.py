"""The producer, plain and in transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.broker.memory.group import Membership
from streams.broker.memory.log import Columns, Transaction
from streams.broker.memory.topic import record_sizes
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

    Rows for a topic that does not exist are refused, those for a partition that it does not have raise
    ``TopicError``. Calls in an order that makes no sense, such as ``begin`` before ``init_transactions``,
    raise ``FatalBrokerError``.
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
        self._unreported = False
        """Whether a flush is still to say that records were refused."""
        self._closed = False

    def produce(self, output: Output, waiting: Callable[[], None] | None = None) -> None:  # noqa: ARG002  # never full
        self._cluster.step("produce")
        with self._cluster.locked():
            self._usable()
            transaction = None if self._transactional_id is None else self._healthy_transaction()
            refused = _first_too_large(output, self._cluster.max_record_bytes)
            accepted = len(output) if refused is None else refused
            why = (
                f"row {refused} for topic {output.topic} has more than {self._cluster.max_record_bytes} bytes"
            )
            by_broker = [item for item in self._cluster.refused(output) if item.row < accepted]
            if by_broker and output.topic in self._cluster.known:
                refused = accepted = by_broker[0].row
                why = str(by_broker[0].error)
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
                    self._cluster.existing_log(partition).append(columns, transaction)
            self._cluster.notify()
        if refused is not None:
            raise RecordRefused(why, position=refused)

    def flush(self, timeout: float, waiting: Callable[[], None] | None = None) -> None:  # noqa: ARG002  # this broker answers at once
        self._cluster.step("flush")
        with self._cluster.locked():
            self._usable()
            queue, self._queue = self._queue, []
            for partition, columns in queue:
                self._cluster.existing_log(partition).append(columns, None)
            self._cluster.notify()
        if self._unreported:
            self._unreported = False
            raise RecordsRefused(str(self._refused[-1].error))

    def take_refused(self) -> list[Refusal]:
        refused, self._refused = self._refused, []
        self._cluster.known |= {refusal.output.topic for refusal in refused}
        return refused

    def init_transactions(self, timeout: float) -> None:  # noqa: ARG002  # this broker answers at once
        self._cluster.step("init_transactions")
        with self._cluster.locked():
            self._usable()
            if self._transactional_id is None:
                raise FatalBrokerError("this producer was made without a transactional id")
            self._epoch = self._cluster.new_producer(self._transactional_id)

    def begin(self) -> None:
        self._cluster.step("begin")
        with self._cluster.locked():
            self._usable()
            if self._transactional_id is None or self._epoch is None:
                raise FatalBrokerError("a transaction cannot begin before init_transactions")
            if self._transaction is not None:
                raise FatalBrokerError(f"{self._transactional_id}: a transaction is open already")
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
                # As Kafka does: without a membership, only the transactional id fences.
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
                f"{self._transactional_id}: fenced by a newer producer, or since its transaction timed out"
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

    def _partitioned(self, output: Output, accepted: int) -> Iterator[tuple[TopicPartition, Columns]]:
        """The first ``accepted`` rows of the output by partition."""
        topic = self._cluster.topics.get(output.topic)
        if topic is None:
            raise TopicMissing(output.topic)
        count = len(topic.logs)
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
            if key is None:
                partition = turn % count
                turn += 1
            else:
                partition = partition_for(key, count)
            chosen.setdefault(partition, []).append(row)
        self._next_partition[output.topic] = turn
        for partition, rows in chosen.items():
            yield TopicPartition(output.topic, partition), Columns.of(output, rows)


def _first_too_large(output: Output, limit: int) -> int | None:
    """The position of the first row whose key, value and headers have more than ``limit`` bytes."""
    sizes = record_sizes(output)
    if max(sizes, default=0) <= limit:
        return None
    return next(row for row, size in enumerate(sizes) if size > limit)
