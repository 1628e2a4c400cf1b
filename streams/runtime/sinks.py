"""The sinks of a worker: rows of completed slices are written to them at each commit.

A commit has this order: the rows are written in the sink's open transaction, which moves the positions first;
then the Kafka transaction is committed, with the dead letters of rows that the sink refused; then the sink's.
A crash between the two leaves the group's offsets ahead of the sink's positions. Since a restart continues
from the sink's positions, nothing is lost, and a row that is refused again is a second dead letter.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.connectors.sink import SinkContext, SinkRows
from streams.errors import SinkUnavailable
from streams.records import TopicPartition
from streams.runtime.sink_session import SinkSession, SinkState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import Admin, Broker
    from streams.connectors.sink import RefusedRow
    from streams.runtime.outbox import Delivery
    from streams.runtime.task import Task
    from streams.topology.graph import Topology


class Sinks:
    """The sessions of one worker with the sinks of its topology.

    ``waiting`` serves the group while a sink is waited for. ``lock_timeout`` is in seconds.
    """

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        *,
        application: str,
        worker: str,
        lock_timeout: float,
        waiting: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._admin: Admin | None = None
        self._lock_timeout = lock_timeout
        self.contexts = {
            node.name: SinkContext(
                application=application, name=node.store, worker=worker, lock_timeout=lock_timeout
            )
            for node in topology.sink_connectors
        }
        self._sessions = {
            node.name: SinkSession(node, self.contexts[node.name], waiting=waiting, clock=clock)
            for node in topology.sink_connectors
        }
        self._of_subtopology = {
            part.number: tuple(node.name for node in part.sink_connectors)
            for part in topology.subtopologies
            if part.sink_connectors
        }

    def __bool__(self) -> bool:
        return bool(self._sessions)

    @property
    def problems(self) -> dict[str, str]:
        """The sinks that cannot be written to, and why; from any thread."""
        return {name: session.problem for name, session in self._sessions.items() if session.problem}

    def _used_by(self, task: Task) -> list[SinkSession]:
        return [self._sessions[name] for name in self._of_subtopology.get(task.id.subtopology, ())]

    # --- partitions

    def assigned(self, task: Task, partition: TopicPartition) -> None:
        """A partition of a task with sinks was assigned: it waits for its position."""
        for session in self._used_by(task):
            session.add(partition)

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions are no longer held."""
        for session in self._sessions.values():
            session.release(partitions)

    def claim(self, held: Mapping[TopicPartition, Task]) -> dict[TopicPartition, int]:
        """Continue to read positions, and return those of partitions that all their sinks have by now.

        A sink that cannot be reached is tried again later. Raises ``ConnectorError`` and ``BrokerError``.
        """
        found: set[TopicPartition] = set()
        for session in self._sessions.values():
            with suppress(SinkUnavailable):
                found |= session.claim(self._topic_ids).keys()
        return {
            partition: min(session.positions[partition] for session in sessions)
            for partition in found
            if (task := held.get(partition)) is not None
            and (sessions := self._used_by(task))
            and all(partition in session.positions for session in sessions)
        }

    def _topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        if self._admin is None:
            self._admin = self._broker.admin()
        return self._admin.topic_ids(topics)

    def position(self, task: Task, partition: TopicPartition) -> int:
        """The lowest position that the task's sinks have committed for a partition; -1 if unknown."""
        return min(session.positions.get(partition, -1) for session in self._used_by(task))

    # --- commits

    def full(self, tasks: Iterable[Task]) -> bool:
        """Whether enough rows wait for a commit to be due."""
        waiting = {task: task.undelivered for task in tasks if task.delivers}
        return any(
            sum(rows for task, rows in waiting.items() if session in self._used_by(task))
            >= session.node.connector.max_rows
            for session in self._sessions.values()
        )

    def write(self, tasks: Iterable[Task]) -> list[SinkUnavailable]:
        """Write the rows of completed slices; refused rows meet their sink's policy.

        Returns the errors of the sinks that could not be written to; their partitions wait again.
        """
        delivering = [task for task in tasks if task.delivers]
        rows: dict[str, list[PartitionRows]] = {name: [] for name in self._sessions}
        for task in delivering:
            by_sink: dict[str, list[Delivery]] = {}
            for delivery in task.take_deliveries():
                by_sink.setdefault(delivery.sink, []).append(delivery)
            for session in self._used_by(task):
                rows[session.node.name] += rows_of(
                    task.positions, session.positions, by_sink.get(session.node.name, ())
                )
        errors: list[SinkUnavailable] = []
        for name, own in rows.items():
            session = self._sessions[name]
            if not own:
                continue
            try:
                session.finish_claim()
                refused = session.write([item.rows for item in own])
            except SinkUnavailable as error:
                errors.append(error)
                continue
            refuse_rows(own, refused)
        return errors

    def commit(self) -> list[SinkUnavailable]:
        """Commit what was written, after Kafka's commit. Returns the errors of sinks whose commit failed."""
        errors = []
        for session in self._sessions.values():
            if session.state is SinkState.WRITTEN:
                try:
                    session.commit(self._lock_timeout)
                except SinkUnavailable as error:
                    errors.append(error)
        return errors

    def rollback(self) -> None:
        """Discard what was written since the last commit."""
        for session in self._sessions.values():
            session.rollback()

    def waiting_partitions(self) -> set[TopicPartition]:
        """The partitions that wait for their positions in any sink."""
        return set().union(*(session.unclaimed for session in self._sessions.values()))

    def close(self) -> None:
        """Release the connections."""
        for session in self._sessions.values():
            session.close()
        if self._admin is not None:
            self._admin.close()


class PartitionRows(NamedTuple):
    """The rows of a partition for a sink, and the batches that they come from."""

    rows: SinkRows
    deliveries: Sequence[Delivery]
    ends: Sequence[int]
    """How many rows there are up to each batch and with it."""


def rows_of(
    positions: Mapping[TopicPartition, int],
    starts: Mapping[TopicPartition, int],
    deliveries: Iterable[Delivery],
) -> list[PartitionRows]:
    """The rows of each partition whose position has moved, without those that the sink has already."""
    by_partition: dict[TopicPartition, list[Delivery]] = {
        partition: []
        for partition, position in positions.items()
        if partition in starts and position > starts[partition]
    }
    for delivery in deliveries:
        batch = delivery.batch
        partition = TopicPartition(batch.topic, batch.partition)
        start = starts.get(partition)
        if start is None or partition not in by_partition:
            continue
        if batch.offset(0) < start:
            # Another sink of the task is behind: these rows are read again for that one only.
            batch = batch.select([row for row, offset in enumerate(batch.offsets) if offset >= start])
        if len(batch):
            by_partition[partition].append(delivery._replace(batch=batch))
    return [
        _joined(partition, starts[partition], positions[partition], own)
        for partition, own in sorted(by_partition.items())
    ]


def _joined(
    partition: TopicPartition, start: int, next_offset: int, deliveries: Sequence[Delivery]
) -> PartitionRows:
    keys: list[Any] = []
    values: list[Any] = []
    timestamps: list[int] = []
    headers: list[Any] = []
    offsets: list[int] = []
    ends: list[int] = []
    for _, _, batch in deliveries:
        keys += batch.keys
        values += batch.values
        timestamps += batch.timestamps
        own = batch.headers
        headers += [None] * len(batch) if own is None else own
        offsets += batch.offsets
        ends.append(len(values))
    rows = SinkRows(
        partition=partition,
        start=start,
        next_offset=next_offset,
        keys=keys,
        values=values,
        timestamps=timestamps,
        headers=headers,
        offsets=offsets,
    )
    return PartitionRows(rows, deliveries, ends)


def refuse_rows(written: Iterable[PartitionRows], refused: Iterable[RefusedRow]) -> None:
    """Apply the policy of each row's sink to the refused rows."""
    by_partition = {item.rows.partition: item for item in written}
    for partition, row, error in refused:
        item = by_partition[partition]
        index = bisect_right(item.ends, row)
        delivery = item.deliveries[index]
        delivery.guard.refuse(delivery.batch, row - (item.ends[index - 1] if index else 0), error)
