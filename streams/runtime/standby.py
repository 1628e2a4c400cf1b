"""Standby replicas: copies of the stores of other workers' tasks, kept up to date for a failover.

The group's assignor runs on the broker and does not know who has a replica. But it is the range assignor, so
its result is predictable: members are in a fixed order and each gets the next contiguous range of partition
numbers. When others leave, a member moves up by at most as many places, and the ranges get longer. A worker
keeps replicas of the tasks that it may get in that way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.errors import StateError
from streams.events import Event, get_logger
from streams.records import TopicPartition
from streams.runtime.restore import Changelogs
from streams.runtime.task import TaskId

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.broker import Broker
    from streams.runtime.restore import Restoration
    from streams.state.store import Database, Databases
    from streams.topology.graph import Topology

PLACE_SECONDS = 1.0
"""How often the set of replicas, and the limits of topics that are tables, are updated."""

READ_SECONDS = 0.05
"""Time for lagging replicas in each round of the worker's loop."""

OPEN_SECONDS = 0.1
"""Longest time for opening replicas in one round of the worker's loop."""

UNPLACED_SECONDS = 60.0
"""How long the assignment may differ from the predicted one before a warning is logged."""

REST_SECONDS = 0.1
"""Pause after a read without new records."""

SAVE_SECONDS = 60.0
"""How often the checkpoints of replicas without new records are saved."""

_NO_END = 1 << 62


def assigned_range(position: int, members: int, partitions: int) -> range:
    """The partition numbers that the range assignor gives the member at a position among ``members``.

    Equal to ``RangeAssignor`` of Kafka ≥ 4.0 and that of the classic protocol.
    """
    quota, extra = divmod(partitions, members)
    start = position * quota + min(position, extra)
    return range(start, start + quota + (position < extra))


def predicted_partitions(position: int, members: int, partitions: int, failures: int) -> set[int]:
    """The partition numbers that the member may own after up to ``failures`` others have left."""
    numbers: set[int] = set()
    for gone in range(1, min(failures, members - 1) + 1):
        left = members - gone
        behind = members - 1 - position
        for before in range(max(0, gone - behind), min(gone, position) + 1):
            numbers.update(assigned_range(position - before, left, partitions))
    return numbers


@dataclass(slots=True)
class _Replica:
    restoration: Restoration
    ends: dict[TopicPartition, int]
    """The ends of its changelogs when it began. Those that the client knows may be of an earlier replica."""
    began: float
    lag: int
    complete: bool = False
    """Whether it has been up to date at least once."""


class Standbys:
    """The standby replicas of one worker, advanced a little at each ``poll``.

    ``partitions`` are the input topics with their partition counts. ``failures`` is the number of workers
    that may be away at once while all their tasks find a replica. ``members`` returns the group's members, as
    ``Consumer.member`` names them, or nothing while they are not known.
    """

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        databases: Databases,
        *,
        application: str,
        partitions: Mapping[str, int],
        failures: int,
        members: Callable[[], Sequence[str]],
        clock: Callable[[], float],
        wall_clock: Callable[[], int],
    ) -> None:
        self._topology = topology
        self._partitions = partitions
        self._stores = {part.number: part.stores for part in topology.subtopologies if part.stores}
        self._counts = {
            number: max(
                (count for topic, count in partitions.items() if topology.subtopologies[number].reads(topic)),
                default=0,
            )
            for number in self._stores
        }
        self._changelogs = Changelogs(
            broker,
            databases,
            application=application,
            name="standby",
            clock=clock,
            wall_clock=wall_clock,
        )
        self._failures = failures
        self._members = members
        self._clock = clock
        self._log = get_logger()
        self._replicas: dict[TaskId, _Replica] = {}
        self._wanted: set[TaskId] = set()
        self._abandoned: set[TaskId] = set()
        """Tasks whose replica cannot be kept, as their changelogs or files cannot be used."""
        self._placed = self._saved = -float("inf")
        self._rest_until = -float("inf")
        self._unplaced_since: float | None = None

    @property
    def lag(self) -> dict[TaskId, int]:
        """The replicas, and how many records (and markers) each was behind at the last check."""
        return {task: replica.lag for task, replica in list(self._replicas.items())}

    @property
    def abandoned(self) -> int:
        """The number of tasks whose replica cannot be kept."""
        return len(self._abandoned)

    def poll(
        self,
        member: str | None,
        held: Collection[TaskId],
        committed: Callable[[Collection[TopicPartition]], Mapping[TopicPartition, int]],
    ) -> None:
        """Advance the replicas for a while.

        ``member`` is this worker's name among ``members``, ``held`` are its own tasks; ``committed`` returns
        the group's committed offsets, which replicas of tables' topics do not pass. Raises ``BrokerError``
        when the broker does not answer. A replica that raises ``StateError`` is abandoned: the task's owner
        continues without it.
        """
        now = self._clock()
        if now - self._placed >= PLACE_SECONDS:
            self._placed = now
            self._place(member, held)
            self._open_next(committed)
            self._follow_tables(committed)
        if not self._replicas or now < self._rest_until:
            return
        restorations = [replica.restoration for replica in self._replicas.values()]
        while self._changelogs.read(restorations, 0.0):
            if self._clock() - now >= READ_SECONDS:
                break
        else:
            self._rest_until = self._clock() + REST_SECONDS
        self._note_lag()
        if now - self._saved >= SAVE_SECONDS:
            self._saved = now
            for replica in self._replicas.values():
                self._changelogs.save(replica.restoration)

    def release(self, task: TaskId) -> Database | None:
        """Release the replica of a task that was assigned here, and return its open database, if any."""
        replica = self._replicas.pop(task, None)
        self._wanted.discard(task)
        self._abandoned.discard(task)
        if replica is None:
            return None
        self._changelogs.save(replica.restoration)
        return replica.restoration.database

    def close(self) -> None:
        """Close the databases, which keep their contents, and release the clients."""
        for task in list(self._replicas):
            self._drop(task)
        self._changelogs.close()

    def _place(self, member: str | None, held: Collection[TaskId]) -> None:
        """Determine which replicas to keep. Where the assignment is not predictable now, nothing changes."""
        members = sorted(self._members())
        position = members.index(member) if member in members else None
        placed = position is not None
        for number, count in self._counts.items():
            own = {task.partition for task in held if task.subtopology == number}
            # During a rebalance, not every worker knows all members.
            if position is None or own != set(assigned_range(position, len(members), count)):
                placed = False
                continue
            others = {task for task in self._wanted if task.subtopology != number}
            numbers = predicted_partitions(position, len(members), count, self._failures)
            self._wanted = others | {TaskId(number, partition) for partition in numbers - own}
        self._note_placed(placed, members)
        self._wanted.difference_update(held)
        for task in self._replicas.keys() - self._wanted:
            self._drop(task)

    def _note_placed(self, placed: bool, members: Sequence[str]) -> None:
        if placed:
            self._unplaced_since = None
        elif self._unplaced_since is None:
            self._unplaced_since = self._clock()
        elif self._clock() - self._unplaced_since > UNPLACED_SECONDS:
            self._unplaced_since = float("inf")
            self._log.warning(Event.STANDBY_UNPLACED, members=list(members))

    def _open_next(
        self, committed: Callable[[Collection[TopicPartition]], Mapping[TopicPartition, int]]
    ) -> None:
        for task in sorted(self._wanted - self._replicas.keys() - self._abandoned):
            stores = self._stores[task.subtopology]
            sources = [
                TopicPartition(store.source_topic, task.partition) for store in stores if store.source_topic
            ]
            offsets = committed(sources) if sources else {}
            try:
                restoration = self._changelogs.open(
                    task,
                    stores,
                    {partition.topic: offset for partition, offset in offsets.items()},
                    epoch=self._changelogs.committed_epoch(self._inputs(task)),
                )
            except StateError as error:
                self._abandon(task, error)
                continue
            missing = restoration.progress.total
            ends = dict(restoration.targets)
            for partition, store in restoration.definitions.items():
                if not store.source_topic:
                    restoration.targets[partition] = _NO_END
            self._replicas[task] = _Replica(restoration, ends, self._clock(), lag=missing)
            self._log.info(Event.STANDBY_STARTED, task=str(task), records=missing)
            if self._clock() - self._placed >= OPEN_SECONDS:
                # Continue in the next round of the loop.
                self._placed = -float("inf")
                return

    def _inputs(self, task: TaskId) -> list[TopicPartition]:
        subtopology = self._topology.subtopologies[task.subtopology]
        return [
            TopicPartition(topic, task.partition)
            for topic, count in self._partitions.items()
            if task.partition < count and subtopology.reads(topic)
        ]

    def _follow_tables(
        self, committed: Callable[[Collection[TopicPartition]], Mapping[TopicPartition, int]]
    ) -> None:
        places = {
            partition: replica.restoration
            for replica in self._replicas.values()
            for partition, store in replica.restoration.definitions.items()
            if store.source_topic
        }
        if places:
            for partition, offset in committed(list(places)).items():
                places[partition].targets[partition] = offset

    def _note_lag(self) -> None:
        for task, replica in list(self._replicas.items()):
            left = replica.restoration.left
            ends = self._changelogs.known_ends(left)
            replica.lag = sum(
                max(0, end - left[partition], replica.ends[partition] - left[partition])
                for partition, end in ends.items()
            )
            if replica.lag or ends.keys() != left.keys():
                continue
            try:
                replica.restoration.check()
            except StateError as error:
                self._abandon(task, error)
                continue
            if not replica.complete:
                replica.complete = True
                self._log.info(
                    Event.STANDBY_READY,
                    task=str(task),
                    records=replica.restoration.progress.done,
                    seconds=round(self._clock() - replica.began, 3),
                )

    def _abandon(self, task: TaskId, error: StateError) -> None:
        """Stop keeping a replica of a task."""
        self._abandoned.add(task)
        self._log.error(Event.STANDBY_ABANDONED, task=str(task), error=str(error))
        if task in self._replicas:
            self._drop(task)

    def _drop(self, task: TaskId) -> None:
        replica = self._replicas.pop(task)
        try:
            self._changelogs.save(replica.restoration)
        finally:
            replica.restoration.database.close()
        self._log.info(Event.STANDBY_STOPPED, task=str(task))
