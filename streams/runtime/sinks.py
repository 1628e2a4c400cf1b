"""The sinks of a worker: rows of completed slices are written to them at each commit.

A commit has this order: the rows are written in the sink's open transaction, which moves the positions first;
then the Kafka transaction is committed, with the dead letters of rows that the sink refused; then the sink's.
A crash between the two leaves the group's offsets ahead of the sink's positions. Since a restart continues
from the sink's positions, nothing is lost, and a row that is refused again is a second dead letter.

A sink that keeps no positions has the rows when they are written. A crash before the Kafka transaction is
committed repeats them, as a restart continues from the group's offsets.
"""

from __future__ import annotations

from bisect import bisect_right
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.connectors.sink import SinkContext, SinkRows
from streams.errors import SinkUnavailable
from streams.records import TopicPartition
from streams.runtime.retried import retried_from
from streams.runtime.sink_session import LOOK_SECONDS, SinkSession, SinkState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import Admin, Broker
    from streams.connectors.sink import RefusedRow
    from streams.runtime.outbox import Delivery
    from streams.runtime.task import Task
    from streams.topology.graph import Topology


class Sinks:
    """The sessions of one worker with the sinks of its topology.

    ``committed`` reads the group's offsets, ``waiting`` serves the group while a sink is waited for.
    ``lock_timeout`` is in seconds.
    """

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        *,
        application: str,
        worker: str,
        lock_timeout: float,
        committed: Callable[[Collection[TopicPartition]], Mapping[TopicPartition, int]],
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
            node.name: SinkSession(
                node, self.contexts[node.name], committed=committed, waiting=waiting, clock=clock
            )
            for node in topology.sink_connectors
        }
        self._sinks_of: dict[TopicPartition, list[SinkSession]] = {}
        """The sinks of each partition that is held."""
        self._read_for: dict[TopicPartition, frozenset[str]] = {}
        """The sinks for which a partition is being read: those that could be reached when it began."""
        self._settled: dict[TopicPartition, int] = {}
        """The next offset of a partition before which all dead letters of its steps are committed."""
        self._waiting: set[TopicPartition] = set()
        self._lost_a_sink: set[TopicPartition] = set()
        """Partitions that are read for fewer sinks than before, since ``claim`` looked last."""
        self._losses = 0
        """How often sessions had been abandoned when ``_drop_lost`` looked last."""
        self._delivering: list[Task] = []
        """The tasks whose rows were written last."""
        self._changed = False
        """Whether positions were read, or a sink cannot be reached any more, since ``claim`` looked last."""
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

    @property
    def seconds(self) -> dict[str, float]:
        """How long the worker has waited for each sink, by its step; from any thread."""
        return {name: session.seconds for name, session in self._sessions.items()}

    def _used_by(self, task: Task) -> list[SinkSession]:
        return [self._sessions[name] for name in self._of_subtopology.get(task.id.subtopology, ())]

    # --- partitions

    def assigned(self, task: Task, partition: TopicPartition) -> None:
        """A partition of a task with sinks was assigned: it waits for its position."""
        self._read_for.pop(partition, None)
        self._waiting.add(partition)
        self._sinks_of[partition] = sessions = self._used_by(task)
        for session in sessions:
            session.add(partition)

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions are no longer held."""
        for session in self._sessions.values():
            session.release(partitions)
        self._waiting.difference_update(partitions)
        for partition in partitions:
            for known in (self._sinks_of, self._read_for, self._settled):
                known.pop(partition, None)

    def claim(self, held: Mapping[TopicPartition, Task]) -> dict[TopicPartition, int]:
        """Continue to read positions, and return where partitions are to be read from now.

        A partition begins when each of its sinks has a position or cannot be reached. One that can be reached
        later is read for from its own position: then the partitions of its task begin again, and the other
        sinks leave out what they have. Those that keep no positions are waited for. Raises ``ConnectorError``
        and ``BrokerError``.
        """
        self._drop_lost()
        for session in self._sessions.values():
            try:
                self._changed = bool(session.claim(self._topic_ids)) or self._changed
            except SinkUnavailable:
                self._drop_lost()
        if not self._changed:
            return {}
        ready = self._ready_positions(held)
        tasks = {
            held[partition]
            for partition, positions in ready.items()
            if self._begins(partition, positions, held[partition])
        }
        self._changed = False
        self._lost_a_sink.clear()
        for partition in self._sinks_of:
            if held.get(partition) not in tasks:
                continue
            if partition in ready:
                positions = ready[partition]
                self._read_for[partition] = frozenset(positions)
                self._waiting.discard(partition)
                self._settled[partition] = max(*positions.values(), self._settled.get(partition, 0))
            else:
                self._read_for.pop(partition, None)
                self._waiting.add(partition)
        return {
            partition: min(positions.values())
            for partition, positions in ready.items()
            if held[partition] in tasks
        }

    def _ready_positions(self, held: Mapping[TopicPartition, Task]) -> dict[TopicPartition, dict[str, int]]:
        """The positions of partitions in each of their sinks, without those that were just tried in vain."""
        ready = {}
        for partition, sessions in self._sinks_of.items():
            untried = any(partition not in item.positions and not item.problem for item in sessions)
            positions = {
                item.node.name: item.positions[partition] for item in sessions if partition in item.positions
            }
            if partition in held and positions and not untried and not _waits(sessions, positions):
                ready[partition] = positions
        return ready

    def _begins(self, partition: TopicPartition, positions: Mapping[str, int], task: Task) -> bool:
        """Whether a partition is to be read from another position than the next one."""
        before = self._read_for.get(partition)
        if before is None or positions.keys() - before:
            return True
        # What was read for a sink that is gone again: the others have it.
        return partition in self._lost_a_sink and task.positions.get(partition, 0) < min(positions.values())

    def hold(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were paused, and what was read of them is discarded: they begin again."""
        for partition in partitions:
            self._read_for.pop(partition, None)
            self._waiting.add(partition)
        self._changed = True

    def unreachable(self, name: str, error: SinkUnavailable) -> None:
        """A sink did not answer before the worker joined its group: it is checked when it does."""
        self._sessions[name].must_check = True
        self._sessions[name].failed(error)

    def _drop_lost(self) -> None:
        """Read no longer for sinks that cannot be reached; a partition without any other one waits."""
        losses = sum(session.losses for session in self._sessions.values())
        if losses == self._losses:
            return
        self._losses = losses
        self._changed = True
        for partition, names in list(self._read_for.items()):
            left = frozenset(
                session.node.name
                for session in self._sinks_of[partition]
                if session.node.name in names and partition in session.positions
            )
            if left != names:
                self._lost_a_sink.add(partition)
            self._read_for[partition] = left
            if not left or _waits(self._sinks_of[partition], left):
                del self._read_for[partition]
                self._waiting.add(partition)

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
        self._drop_lost()
        self._delivering = delivering = [task for task in tasks if task.delivers]
        rows: dict[str, list[PartitionRows]] = {name: [] for name in self._sessions}
        for task in delivering:
            task.drop_dead_letters(self._is_settled)
            by_sink: dict[str, list[Delivery]] = {}
            for delivery in task.take_deliveries():
                by_sink.setdefault(delivery.sink, []).append(delivery)
            for session in self._used_by(task):
                rows[session.node.name] += rows_of(
                    task.positions, session.positions, by_sink.get(session.node.name, ())
                )
        errors: dict[str, SinkUnavailable] = {}
        for name, own in rows.items():
            session = self._sessions[name]
            if not own:
                continue
            try:
                session.finish_claim()
                refused = session.write([item.rows for item in own])
            except SinkUnavailable as error:
                errors[name] = error
                continue
            refuse_rows(own, refused)
        self._begin_again(errors)
        return list(errors.values())

    def _begin_again(self, failed: Collection[str]) -> None:
        """Undo what was written for tasks with retried dead letters, if one of their sinks is among these.

        What is retried has its results once, in all sinks and topics or in none. All partitions of the
        subtopology begin again, as their rows are in the transactions that are rolled back.
        """
        retrying = {task.id.subtopology for task in self._delivering if task.retried}
        for number in retrying:
            names = self._of_subtopology[number]
            if set(failed).isdisjoint(names):
                continue
            for name in names:
                self._sessions[name].rollback()
            for partition, sessions in self._sinks_of.items():
                if any(session.node.name in names for session in sessions):
                    self._read_for.pop(partition, None)
                    self._waiting.add(partition)
            self._changed = True

    def may_retry(self, partition: TopicPartition) -> bool:
        """Whether rows of retried dead letters would reach each sink of the partition."""
        return all(partition in session.positions for session in self._sinks_of.get(partition, ()))

    def _is_settled(self, partition: TopicPartition, offset: int) -> bool:
        return offset < self._settled.get(partition, 0)

    def commit(self) -> list[SinkUnavailable]:
        """Commit what was written, after Kafka's commit. Returns the errors of sinks whose commit failed."""
        errors: dict[str, SinkUnavailable] = {}
        for name, session in self._sessions.items():
            if session.state is SinkState.WRITTEN:
                try:
                    session.commit(self._lock_timeout)
                except SinkUnavailable as error:
                    errors[name] = error
        for task in self._delivering:
            # Their rows may be missing in a sink. What they wrote to topics is committed.
            if task.retried and not errors.keys().isdisjoint(self._of_subtopology[task.id.subtopology]):
                task.forget_retried()
        return list(errors.values())

    def rollback(self) -> None:
        """Discard what was written since the last commit."""
        for session in self._sessions.values():
            session.rollback()

    def waiting_partitions(self) -> set[TopicPartition]:
        """The partitions that are not read: no sink of theirs can be reached, or one was not tried yet.

        Also those with a sink that keeps no positions and cannot be reached.
        """
        self._drop_lost()
        return self._waiting

    def close(self, *, overdue: Callable[[], bool] = lambda: True) -> None:
        """Release the connections.

        What was handed to a sink without positions is not repeated once the offsets are committed, and may
        still be on its way: it is waited for until it is gone, or ``overdue`` says that the time is over.
        """
        released = [(session, session.close()) for session in self._sessions.values()]
        for session, future in released:
            if future is None or session.keeps_positions:
                continue
            while not future.done() and not overdue():
                wait((future,), LOOK_SECONDS)
        if self._admin is not None:
            self._admin.close()


def _waits(sessions: Iterable[SinkSession], reached: Collection[str]) -> bool:
    """Whether a sink that keeps no positions is not among those that are reached, by their names.

    The group's offsets are its positions: they must not move past what it has not got.
    """
    return any(not session.keeps_positions and session.node.name not in reached for session in sessions)


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
    """The rows of each partition whose position has moved, without those that the sink has already.

    Dead letters that are retried are beside the positions: they are written in any case.
    """
    by_partition: dict[TopicPartition, list[Delivery]] = {
        partition: []
        for partition, position in positions.items()
        if partition in starts and position > starts[partition]
    }
    for delivery in deliveries:
        batch = delivery.batch
        partition = TopicPartition(batch.topic, batch.partition)
        start = starts.get(partition)
        if retried_from(batch.fetched) is not None and start is not None:
            by_partition.setdefault(partition, []).append(delivery)
            continue
        if start is None or partition not in by_partition:
            continue
        if batch.offset(0) < start:
            # Another sink of the task is behind: these rows are read again for that one only.
            batch = batch.select([row for row, offset in enumerate(batch.offsets) if offset >= start])
        if len(batch):
            by_partition[partition].append(delivery._replace(batch=batch))
    return [
        _joined(partition, starts[partition], max(starts[partition], positions[partition]), own)
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
