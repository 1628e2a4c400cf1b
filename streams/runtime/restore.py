"""Restores the stores of newly assigned tasks from their changelogs while other tasks run."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from streams.broker import GroupSettings
from streams.errors import BrokerError, RegistryUnavailable, StateError, StreamsError
from streams.events import Event, get_logger
from streams.records import TopicPartition
from streams.runtime import commit_numbers
from streams.state.changelog import (
    Checkpoint,
    SavedCheckpoint,
    changelog_topic,
    decode_metadata,
    encode_metadata,
)
from streams.state.evolution import check, kept, reading
from streams.state.store import Changes, window_range
from streams.state.unreadable import UnreadableRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from streams.broker import Admin, Broker, Consumer
    from streams.records import Fetched
    from streams.runtime.task import TaskId
    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.state.store import Database, Databases

CHUNK_RECORDS = 10_000

OLDEST_CHECKPOINT = 24 * 3600 * 1000
"""A database not used for longer (milliseconds) is rebuilt if its changelog has changed meanwhile.

Compaction removes tombstones after ``delete.retention.ms``, for changelogs two days: entries deleted
meanwhile would stay forever.
"""

SHORTEST_RETENTION = 60_000
"""Shortest interval (milliseconds of stream time) between deletions of expired windows."""

REPORT_SECONDS = 5.0

ASK_SECONDS = 1.0
"""How often the ends of changelogs are asked for again that cannot be their ends."""

ACCEPT_SECONDS = 60.0
"""After this time, a reported end before what was committed is accepted."""

LEFT_OVER_HINT = (
    "rebuild the state from the input with streams replay reset; or, to continue with the remaining "
    "state, stop the app, delete its workers' folders in state_dir, and commit its offsets unchanged with "
    "Kafka's own tool, which removes the number: kafka-consumer-groups.sh --group <app> --all-topics "
    "--reset-offsets --to-current --execute"
)

UNUSABLE = Checkpoint("", offset=-1)


@dataclass(slots=True)
class RestoreProgress:
    """The progress of restoring one task, in records (and markers) of its changelogs."""

    total: int
    done: int = 0
    started: float = 0.0
    """Start time on the restorer's clock, in seconds."""

    def rate(self, now: float) -> float:
        """Records a second so far."""
        return self.done / max(now - self.started, 1e-9)

    def seconds_left(self, now: float) -> float:
        """Remaining seconds at that rate."""
        return (self.total - self.done) / max(self.rate(now), 1e-9) if self.done else float("inf")


@dataclass(slots=True)
class Restoration:
    """One task being restored: its database, and the position in each changelog partition."""

    task: TaskId
    database: Database
    checkpoints: dict[str, Checkpoint]
    definitions: dict[TopicPartition, StoreDefinition]
    positions: dict[TopicPartition, int]
    targets: dict[TopicPartition, int]
    progress: RestoreProgress = field(default_factory=lambda: RestoreProgress(0))
    forgotten: dict[str, int] = field(default_factory=dict)
    """The start time (milliseconds since the epoch) before which windows of each store were deleted."""
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    """The committed offsets of tables' topics."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """The commit number of each store to which the committed offsets belong, as far as known."""
    ahead: set[TopicPartition] = field(default_factory=set)
    """Changelogs whose reported end is before the database's checkpoint."""
    expiring: set[TopicPartition] = field(default_factory=set)
    """Changelogs that have deleted records by age: the number of the last commit may be among them."""
    unreadable: dict[TopicPartition, UnreadableRecords] = field(init=False)
    """The unreadable records of each changelog partition, as far as it was read."""

    def __post_init__(self) -> None:
        self.unreadable = {
            partition: UnreadableRecords(store, partition, partial(_value_serde, store))
            for partition, store in self.definitions.items()
        }

    @property
    def left(self) -> dict[TopicPartition, int]:
        """The positions of partitions that have not reached their targets."""
        return {
            partition: position
            for partition, position in self.positions.items()
            if position < self.targets[partition]
        }

    def cut_short(self) -> list[TopicPartition]:
        """The partitions that were read to their reported ends although more is committed."""
        return [
            partition for partition, store in self.definitions.items() if self._cut_short(partition, store)
        ]

    def _cut_short(self, partition: TopicPartition, store: StoreDefinition) -> bool:
        if store.source_topic is not None:
            return self.targets[partition] < self.committed.get(partition, 0)
        number = self.checkpoints[store.name].number
        if number is None or (number == 0 and partition in self.expiring):
            return partition in self.ahead
        return partition in self.ahead or number < self.numbers.get(store.name, 0)

    def end_at(self, partition: TopicPartition, end: int) -> None:
        """Take over a newly reported end of a partition."""
        before = max(self.targets[partition], self.positions[partition])
        if self.definitions[partition].source_topic is not None:
            end = min(end, self.committed[partition])
        self.targets[partition] = target = max(self.targets[partition], end)
        self.progress.total += max(0, target - before)
        if target >= self.positions[partition]:
            self.ahead.discard(partition)

    def accept_ends(self) -> None:
        """Accept the reported ends. Raises ``StateError`` where the state would not match the offsets."""
        for partition in self.cut_short():
            store = self.definitions[partition]
            if store.source_topic is not None:
                # The committed offset belongs to another topic of that name.
                del self.committed[partition]
            elif partition in self.ahead:
                raise _cut_error(store, partition, self.positions[partition], self.targets[partition])
            else:
                raise self._older_error(store, partition)

    def _older_error(self, store: StoreDefinition, partition: TopicPartition) -> StateError:
        return StateError(
            f"store {store.name!r}, task {self.task}: {partition} was read to its end at offset "
            f"{self.positions[partition]} and contains the store as of its commit "
            f"{self.checkpoints[store.name].number}, but the committed offsets belong to its commit "
            f"{self.numbers[store.name]}: records are missing at the end, as after an unclean leader "
            "election, or if the changelog was deleted or truncated",
            hint=LEFT_OVER_HINT,
        )

    def continue_numbers(self) -> None:
        """Let the next commit have a higher number than any before, also if the changelog has none."""
        for name, number in self.numbers.items():
            checkpoint = self.checkpoints[name]
            if (checkpoint.number or 0) < number:
                checkpoint.number = checkpoint.number_written = number

    def expired(self, store: StoreDefinition, time: int) -> list[tuple[bytes, bytes]]:
        """The expired windows of a store at that stream time, as ranges of keys.

        It returns them only once per retention of the store, to delete rarely: a long-running replica has at
        most twice the task's windows.
        """
        if store.retention is None:
            return []
        oldest = time - store.retention + 1
        if oldest - self.forgotten.get(store.name, 0) < max(store.retention, SHORTEST_RETENTION):
            return []
        self.forgotten[store.name] = oldest
        return [window_range(0, oldest)]

    def move(self, partition: TopicPartition, offset: int) -> None:
        """Note that everything before that offset is in the database."""
        if self.definitions[partition].source_topic is not None:
            # The topic's end may be beyond records that are not processed yet: these were skipped.
            offset = min(offset, self.targets[partition])
        before = self.positions[partition]
        if offset > before:
            self.positions[partition] = offset
            target = self.targets[partition]
            self.progress.done += min(offset, target) - min(before, target)
            unreadable = self.unreadable[partition]
            # A later restore from this checkpoint has to read the unreadable records again.
            self.checkpoints[self.definitions[partition].name].offset = (
                min(offset, unreadable.first_offset) if unreadable else offset
            )

    def check(self) -> None:
        """Raise ``StateError`` if the records read so far cannot have been written by the store."""
        for partition, unreadable in self.unreadable.items():
            if not unreadable:
                continue
            store = self.definitions[partition]
            checkpoint = self.checkpoints[store.name]
            stored = checkpoint.schema_written
            # The task migrates values of an earlier schema.
            if stored is None or not check(store, stored):
                unreadable.check_again()
                if unreadable:
                    raise unreadable.error()
            checkpoint.offset = self.positions[partition]


def _cut_error(store: StoreDefinition, partition: TopicPartition, offset: int, end: int) -> StateError:
    return StateError(
        f"the state of store {store.name!r} includes {partition} up to offset {offset}, but that partition "
        f"now ends at {end}: it was deleted or truncated, and a store rebuilt from the rest would not match "
        "the committed offsets",
        hint=LEFT_OVER_HINT,
    )


@dataclass(slots=True)
class _Doubt:
    """Since when the reported ends of a task's changelogs are too low, with nothing left to read."""

    since: float
    ask_at: float
    done: int
    """The number of records read by then."""


def _value_serde(store: StoreDefinition, stored: str | None) -> Serde[Any] | None:
    """The serde for values of a stored schema; ``None`` if the task migrates or refuses them."""
    if stored is None:
        return reading(store, store.schema)
    try:
        return None if check(store, stored) else reading(store, kept(stored, store.schema))
    except StateError:
        return None


class Changelogs:
    """Updates databases from their changelogs, with separate clients.

    Only committed records are read. ``name`` distinguishes its consumer from others.
    """

    def __init__(
        self,
        broker: Broker,
        databases: Databases,
        *,
        application: str,
        name: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], int],
    ) -> None:
        self._broker = broker
        self._databases = databases
        self._application = application
        self._name = name
        self._clock = clock
        self._wall_clock = wall_clock
        self._log = get_logger()
        self._consumer: Consumer | None = None
        self._admin: Admin | None = None
        self._assigned: set[TopicPartition] = set()

    def open(
        self,
        task: TaskId,
        definitions: Sequence[StoreDefinition],
        committed: Mapping[str, int],
        database: Database | None = None,
        *,
        numbers: Mapping[str, int] | None = None,
        epoch: int = 0,
        begun: Callable[[], bool] = lambda: False,
    ) -> Restoration:
        """Determine which part of a task's database is usable, and how much is missing.

        ``committed`` are the committed offsets of topics that are tables' changelogs; ``numbers`` are the
        commits of stores, and ``epoch`` is the epoch, to which the committed offsets belong. ``database`` is
        the task's if it is already open, and ``begun`` returns whether any of the task's input was processed
        before.

        Raises ``BrokerError`` when the broker does not answer, with nothing changed; ``StateError`` when the
        database cannot be opened, or when its changelog was deleted although the group is in the middle of
        its input.
        """
        by_partition = {
            TopicPartition(changelog_topic(self._application, store), task.partition): store
            for store in definitions
        }
        with self._asking() as admin:
            ends = admin.end_offsets(list(by_partition), "read_uncommitted")
            beginnings = admin.beginning_offsets(list(by_partition))
        targets = {
            partition: min(committed.get(partition.topic, 0), ends[partition])
            if store.source_topic
            else ends[partition]
            for partition, store in by_partition.items()
        }
        names = [store.name for store in definitions]
        given, database = database, database or self._databases.open(names, task.partition)
        try:
            saved, ahead = self._usable(task, database, by_partition, beginnings, targets, epoch, begun)
        except StreamsError:
            if given is None:
                database.close()
            raise
        checkpoints, positions = {}, {}
        for partition, store in by_partition.items():
            checkpoint = checkpoints[store.name] = Checkpoint(store.schema, epoch=epoch)
            known = saved.get(store.name)
            if known is not None:
                checkpoint.follow(known)
            else:
                # In this order: if the process ends in between, the store is unusable at the next start.
                database.write({}, encode_metadata({store.name: UNUSABLE}, self._wall_clock()))
                database.drop(store.name)
            positions[partition] = max(checkpoint.offset, min(beginnings[partition], targets[partition]))
        total = sum(max(0, targets[partition] - position) for partition, position in positions.items())
        # The consumer may have another position in a partition that was read before.
        self._assigned = set()
        return Restoration(
            task,
            database,
            checkpoints,
            by_partition,
            positions,
            targets,
            RestoreProgress(total, started=self._clock()),
            committed={
                partition: committed[partition.topic]
                for partition, store in by_partition.items()
                if store.source_topic and partition.topic in committed
            },
            numbers=numbers or {},
            ahead=ahead,
            expiring={
                partition
                for partition, store in by_partition.items()
                if store.changelog_retention is not None and beginnings[partition] > 0
            },
        )

    def committed_epoch(self, partitions: Collection[TopicPartition]) -> int:
        """The epoch of a task's committed offsets, also while a transaction may still commit others.

        Raises ``BrokerError``.
        """
        with self._asking() as admin:
            return commit_numbers.epoch(admin.committed_metadata(self._application, partitions).values())

    @contextmanager
    def _asking(self) -> Iterator[Admin]:
        """The admin client. A client that waits for a hanging broker keeps waiting: it is replaced then."""
        if self._admin is None:
            self._admin = self._broker.admin()
        try:
            yield self._admin
        except BrokerError:
            self._admin.close()
            self._admin = None
            raise

    def ask_again(self, partitions: Mapping[TopicPartition, Restoration]) -> None:
        """Ask for the ends of partitions once more. Raises ``BrokerError``."""
        if self._admin is not None:
            # What the client takes for the leader may be what has answered wrongly.
            self._admin.close()
        self._admin = self._broker.admin()
        for partition, end in self._admin.end_offsets(list(partitions), "read_uncommitted").items():
            partitions[partition].end_at(partition, end)

    def read(self, restorations: Collection[Restoration], timeout: float) -> bool:
        """Read some of the missing records of these, waiting up to ``timeout`` seconds for the first.

        Returns whether there were any. Raises ``BrokerError`` and ``RegistryUnavailable``.
        """
        wanted: dict[TopicPartition, int] = {}
        for restoration in restorations:
            wanted |= restoration.left
        if not wanted:
            return False
        if self._consumer is None:
            self._consumer = self._broker.consumer(
                GroupSettings(group=f"{self._application}-{self._name}", protocol="classic")
            )
        if wanted.keys() != self._assigned:
            self._consumer.assign(wanted)
            self._assigned = set(wanted)
        polled = self._consumer.poll(CHUNK_RECORDS, timeout)
        owners = {partition: restoration for restoration in restorations for partition in restoration.targets}
        try:
            for fetched in polled.fetched:
                partition = TopicPartition(fetched.topic, fetched.partition)
                if partition in owners:
                    self._apply(owners[partition], partition, fetched)
        except RegistryUnavailable:
            # What was not applied is fetched again.
            self._assigned = set()
            raise
        for partition, end in polled.ends.items():
            if partition in owners:
                restoration = owners[partition]
                table = restoration.definitions[partition].source_topic is not None
                # After the committed offset a table's topic has changes that were skipped.
                restoration.move(partition, min(end, restoration.targets[partition]) if table else end)
        return bool(polled.fetched)

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The end offsets of these partitions as far as fetching has reported them."""
        return {} if self._consumer is None else self._consumer.known_ends(partitions)

    def save(self, restoration: Restoration) -> None:
        """Store the checkpoints in the database."""
        restoration.database.write({}, encode_metadata(restoration.checkpoints, self._wall_clock()))

    def close(self) -> None:
        """Release the clients."""
        if self._consumer is not None:
            self._consumer.close()
        if self._admin is not None:
            self._admin.close()
        self._consumer = self._admin = None

    def _usable(
        self,
        task: TaskId,
        database: Database,
        by_partition: Mapping[TopicPartition, StoreDefinition],
        beginnings: Mapping[TopicPartition, int],
        targets: Mapping[TopicPartition, int],
        epoch: int,
        begun: Callable[[], bool],
    ) -> tuple[dict[str, SavedCheckpoint], set[TopicPartition]]:
        """The checkpoints from which to continue, and the changelogs whose reported end is before theirs."""
        try:
            saved = decode_metadata(database.metadata())
        except msgspec.DecodeError as error:
            self._log.error(Event.STATE_REBUILT, task=str(task), reason=f"unreadable checkpoint: {error}")
            return {}, set()
        usable, ahead = {}, set()
        for partition, store in by_partition.items():
            checkpoint = saved.get(store.name)
            if checkpoint is None or checkpoint.offset < 0:
                continue
            if checkpoint.epoch != epoch:
                reason = f"it belongs to epoch {checkpoint.epoch}, the committed offsets to {epoch}: a reset"
                self._log.warning(Event.STATE_REBUILT, task=str(task), store=store.name, reason=reason)
                continue
            target = targets[partition]
            age = self._wall_clock() - checkpoint.saved_at
            gone = min(beginnings[partition], target) > checkpoint.offset
            if gone and store.source_topic is None and store.retention is None and begun():
                raise StateError(
                    f"the state of store {store.name!r} includes {partition} up to offset "
                    f"{checkpoint.offset}, but that partition now begins at {beginnings[partition]}: "
                    "entries in between were deleted",
                    hint="rebuild the state from the input with streams replay reset; or, to "
                    "continue with the remaining entries, delete this worker's folder in state_dir",
                )
            if checkpoint.offset > target:
                if store.source_topic is None and begun():
                    usable[store.name] = checkpoint
                    ahead.add(partition)
                    continue
                # The changelog was replaced: this state is not made of its records.
                reason = f"the checkpoint {checkpoint.offset} is ahead of {partition}, which ends at {target}"
            elif gone:
                reason = f"{partition} begins at {beginnings[partition]}, past {checkpoint.offset}"
            elif age > OLDEST_CHECKPOINT and target > checkpoint.offset:
                reason = f"not used for {age // 3_600_000} hours: {partition} may have removed tombstones"
            else:
                usable[store.name] = checkpoint
                continue
            self._log.warning(Event.STATE_REBUILT, task=str(task), store=store.name, reason=reason)
        return usable, ahead

    def _apply(self, restoration: Restoration, partition: TopicPartition, fetched: Fetched) -> None:
        store = restoration.definitions[partition]
        checkpoint = restoration.checkpoints[store.name]
        entries: Mapping[bytes, bytes | None]
        if store.read_source is not None:
            offsets = fetched.offsets()
            # Changes after the committed offset are still to be processed.
            fresh = sum(offset < restoration.targets[partition] for offset in offsets)
            entries = store.read_source(fetched.slice(0, fresh)).entries
            next_offset = fetched.next_offset
            if fresh < len(offsets):
                next_offset = restoration.targets[partition]
                # If the target moves, they have to be fetched again.
                self._assigned.discard(partition)
        else:
            entries = restoration.unreadable[partition].entries(fetched, checkpoint)
            next_offset = fetched.next_offset
        restoration.move(partition, next_offset)
        restoration.database.write(
            {store.name: Changes(entries, restoration.expired(store, checkpoint.time))},
            encode_metadata({store.name: checkpoint}, self._wall_clock()),
        )


class Restorer:
    """Restores tasks, some records at each ``poll``.

    A task is restored when its stores have all committed records up to the ends of the changelogs as of
    ``add``. It waits for transactions that the task's last owner left open, as until they end it is undecided
    what was committed. A broker that led a partition until it was frozen may report an earlier end: where
    more is committed than there is up to that end, the end is requested again.
    """

    def __init__(
        self,
        broker: Broker,
        databases: Databases,
        *,
        application: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._changelogs = Changelogs(
            broker,
            databases,
            application=application,
            name="restore",
            clock=clock,
            wall_clock=wall_clock or (lambda: time.time_ns() // 1_000_000),
        )
        self._clock = clock
        self._log = get_logger()
        self._restorations: dict[TaskId, Restoration] = {}
        self._doubts: dict[TaskId, _Doubt] = {}
        self._reported = clock()

    @property
    def progress(self) -> dict[TaskId, RestoreProgress]:
        """The progress of each task being restored."""
        return {task: restoration.progress for task, restoration in list(self._restorations.items())}

    @property
    def reading(self) -> bool:
        """Whether there is anything to be read, as far as is known."""
        return any(restoration.left for restoration in self._restorations.values())

    def add(
        self,
        task: TaskId,
        definitions: Sequence[StoreDefinition],
        committed: Mapping[str, int],
        database: Database | None = None,
        *,
        numbers: Mapping[str, int] | None = None,
        epoch: int = 0,
        begun: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start on a task; see ``Changelogs.open`` for the arguments and what is raised."""
        restoration = self._changelogs.open(
            task, definitions, committed, database, numbers=numbers, epoch=epoch, begun=begun
        )
        if not self._restorations:
            self._reported = self._clock()
        self._restorations[task] = restoration
        self._log.info(Event.RESTORE_STARTED, task=str(task), records=restoration.progress.total)

    def discard(self, task: TaskId) -> None:
        """Abandon a task. The part restored so far is kept on disk."""
        restoration = self._restorations.pop(task, None)
        self._doubts.pop(task, None)
        if restoration is not None:
            restoration.database.close()

    def poll(self, timeout: float) -> list[Restoration]:
        """Restore some records, and return the tasks that are done; their databases are open.

        ``timeout`` (seconds) is how long to wait for records when there are none. Raises ``BrokerError``,
        and ``StateError`` for state that does not match the committed offsets.
        """
        self._changelogs.read(self._restorations.values(), timeout)
        self._request_ends_again()
        done = [item for item in self._restorations.values() if not item.left and not item.cut_short()]
        now = self._clock()
        for restoration in done:
            restoration.check()
            restoration.continue_numbers()
            del self._restorations[restoration.task]
            self._changelogs.save(restoration)
            progress = restoration.progress
            self._log.info(
                Event.RESTORED,
                task=str(restoration.task),
                records=progress.done,
                seconds=round(now - progress.started, 3),
                rate=round(progress.rate(now)),
            )
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            for task, progress in self.progress.items():
                self._log.info(
                    Event.RESTORE_PROGRESS,
                    task=str(task),
                    records=progress.done,
                    of=progress.total,
                    rate=round(progress.rate(now)),
                    seconds_left=round(progress.seconds_left(now), 1),
                )
        return done

    def _request_ends_again(self) -> None:
        """Request ends again that are before what was committed; after a minute, accept them."""
        now = self._clock()
        short = {
            task: restoration.cut_short()
            for task, restoration in self._restorations.items()
            if not restoration.left
        }
        due: dict[TopicPartition, Restoration] = {}
        asked: list[TaskId] = []
        for task, partitions in short.items():
            restoration = self._restorations[task]
            doubt = self._doubts.get(task)
            if not partitions:
                self._doubts.pop(task, None)
                continue
            if doubt is None or doubt.done != restoration.progress.done:
                doubt = self._doubts[task] = _Doubt(now, now, restoration.progress.done)
                self._log.warning(
                    Event.RESTORE_INCOMPLETE,
                    task=str(task),
                    ends={str(partition): restoration.targets[partition] for partition in partitions},
                )
            if now >= doubt.ask_at:
                doubt.ask_at = now + ASK_SECONDS
                due |= dict.fromkeys(partitions, restoration)
                asked.append(task)
        if not due:
            return
        try:
            self._changelogs.ask_again(due)
        except BrokerError:
            # Without an answer, the ends are unknown: the minute begins with the next answer.
            for task in asked:
                self._doubts[task].since = now
            raise
        for task in asked:
            restoration = self._restorations[task]
            if not restoration.left and now - self._doubts[task].since >= ACCEPT_SECONDS:
                restoration.accept_ends()  # I10

    def close(self) -> None:
        """Abandon the tasks being restored and release the clients."""
        for task in list(self._restorations):
            self.discard(task)
        self._changelogs.close()
