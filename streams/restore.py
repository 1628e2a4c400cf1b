"""Brings the stores of newly assigned tasks up to date from their changelogs, beside the others' work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from streams.broker import GroupSettings
from streams.errors import BrokerError
from streams.events import Event, get_logger
from streams.records import TopicPartition
from streams.state.changelog import (
    RESERVED,
    Checkpoint,
    SavedCheckpoint,
    changelog_topic,
    decode_metadata,
    encode_metadata,
)
from streams.state.store import Changes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.broker import Admin, Broker, Consumer
    from streams.records import Fetched
    from streams.state.definition import StoreDefinition
    from streams.state.store import Database, Databases
    from streams.task import TaskId

CHUNK_RECORDS = 10_000

OLDEST_CHECKPOINT = 24 * 3600 * 1000
"""A database left alone for longer (milliseconds) is rebuilt when its changelog went on without it.

Compaction forgets tombstones after ``delete.retention.ms``, for changelogs two days: entries deleted
meanwhile would stay for ever.
"""

REPORT_SECONDS = 5.0

UNUSABLE = Checkpoint("", offset=-1)


@dataclass(slots=True)
class RestoreProgress:
    """How far the restoring of one task is, in records (and markers) of its changelogs."""

    total: int
    done: int = 0
    started: float = 0.0
    """On the clock of the restorer, in seconds."""

    def rate(self, now: float) -> float:
        """Records a second so far."""
        return self.done / max(now - self.started, 1e-9)

    def seconds_left(self, now: float) -> float:
        """At that rate."""
        return (self.total - self.done) / max(self.rate(now), 1e-9) if self.done else float("inf")


@dataclass(slots=True)
class Restoration:
    """One task on its way: its database, and how much of each changelog partition is still to come."""

    task: TaskId
    database: Database
    checkpoints: dict[str, Checkpoint]
    definitions: dict[TopicPartition, StoreDefinition]
    positions: dict[TopicPartition, int]
    targets: dict[TopicPartition, int]
    progress: RestoreProgress = field(default_factory=lambda: RestoreProgress(0))

    @property
    def left(self) -> dict[TopicPartition, int]:
        """The positions of partitions that are not at their targets."""
        return {
            partition: position
            for partition, position in self.positions.items()
            if position < self.targets[partition]
        }


class Restorer:
    """Reads changelogs with a consumer of its own, some records at each ``poll``.

    A task is restored when its stores have everything up to the ends that the changelogs had when it was
    added, read-committed: transactions that the task's last owner left open are waited for, as until they end
    nobody knows what was committed.
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
        self._broker = broker
        self._databases = databases
        self._application = application
        self._clock = clock
        self._wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._log = get_logger()
        self._consumer: Consumer | None = None
        self._admin: Admin | None = None
        self._restorations: dict[TaskId, Restoration] = {}
        self._assigned: set[TopicPartition] = set()
        self._reported = clock()

    @property
    def progress(self) -> dict[TaskId, RestoreProgress]:
        """The tasks being restored, and how far they are."""
        return {task: restoration.progress for task, restoration in list(self._restorations.items())}

    def add(self, task: TaskId, definitions: Sequence[StoreDefinition], committed: Mapping[str, int]) -> None:
        """Start on a task. ``committed`` are the committed offsets of topics that are tables' changelogs.

        Raises ``BrokerError`` when the broker does not answer, with nothing done; ``StateError`` when the
        database cannot be opened.
        """
        if self._admin is None:
            self._admin = self._broker.admin()
        by_partition = {
            TopicPartition(changelog_topic(self._application, store), task.partition): store
            for store in definitions
        }
        try:
            ends = self._admin.end_offsets(list(by_partition), "read_uncommitted")
            beginnings = self._admin.beginning_offsets(list(by_partition))
        except BrokerError:
            # A client that waits for a broker that hangs goes on waiting: the next attempt is a new one's.
            self._admin.close()
            self._admin = None
            raise
        targets = {
            partition: committed.get(partition.topic, 0) if store.source_topic else ends[partition]
            for partition, store in by_partition.items()
        }
        names = [store.name for store in definitions]
        database = self._databases.open(names, task.partition)
        saved = self._usable(task, database, by_partition, targets)
        checkpoints, positions = {}, {}
        for partition, store in by_partition.items():
            checkpoint = checkpoints[store.name] = Checkpoint(store.schema)
            known = saved.get(store.name)
            if known is not None:
                checkpoint.offset, checkpoint.time = known.offset, known.time
                checkpoint.time_written, checkpoint.schema_written = known.time, known.schema
            else:
                # In this order: should the process end in between, the store counts as unusable next time.
                database.write({}, encode_metadata({store.name: UNUSABLE}, self._wall_clock()))
                database.drop(store.name)
            positions[partition] = max(checkpoint.offset, min(beginnings[partition], targets[partition]))
        total = sum(targets[partition] - position for partition, position in positions.items())
        restoration = Restoration(
            task,
            database,
            checkpoints,
            by_partition,
            positions,
            targets,
            RestoreProgress(total, started=self._clock()),
        )
        self._restorations[task] = restoration
        # The consumer may be elsewhere in a partition that was restored before.
        self._assigned = set()
        self._log.info(Event.RESTORE_STARTED, task=str(task), records=total)

    def discard(self, task: TaskId) -> None:
        """Give a task up in the middle. What was restored so far is kept on disk."""
        restoration = self._restorations.pop(task, None)
        if restoration is not None:
            restoration.database.close()

    def poll(self, timeout: float) -> list[Restoration]:
        """Restore some records, and return the tasks that are done; their databases are open.

        ``timeout`` (seconds) is how long to wait for records when there are none. Raises ``BrokerError``.
        """
        wanted: dict[TopicPartition, int] = {}
        for restoration in self._restorations.values():
            wanted |= restoration.left
        if wanted:
            self._read(wanted, timeout)
        done = [item for item in self._restorations.values() if not item.left]
        now = self._clock()
        for restoration in done:
            del self._restorations[restoration.task]
            self._save(restoration)
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

    def close(self) -> None:
        """Give up what is being restored and release the clients."""
        for task in list(self._restorations):
            self.discard(task)
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
        targets: Mapping[TopicPartition, int],
    ) -> dict[str, SavedCheckpoint]:
        """The checkpoints in the database that its changelogs can go on from."""
        try:
            saved = decode_metadata(database.metadata())
        except msgspec.DecodeError as error:
            self._log.error(Event.STATE_REBUILT, task=str(task), reason=f"unreadable checkpoint: {error}")
            return {}
        usable = {}
        for partition, store in by_partition.items():
            checkpoint = saved.get(store.name)
            if checkpoint is None or checkpoint.offset < 0:
                continue
            target = targets[partition]
            age = self._wall_clock() - checkpoint.saved_at
            if checkpoint.offset > target:
                # Whatever the changelog holds now, it is not what this state was made of.
                reason = f"the checkpoint {checkpoint.offset} is ahead of {partition}, which ends at {target}"
            elif age > OLDEST_CHECKPOINT and target > checkpoint.offset:
                reason = f"left alone for {age // 3_600_000} hours: {partition} may have forgotten deletions"
            else:
                usable[store.name] = checkpoint
                continue
            self._log.warning(Event.STATE_REBUILT, task=str(task), store=store.name, reason=reason)
        return usable

    def _read(self, wanted: dict[TopicPartition, int], timeout: float) -> None:
        if self._consumer is None:
            self._consumer = self._broker.consumer(
                GroupSettings(group=f"{self._application}-restore", protocol="classic")
            )
        if wanted.keys() != self._assigned:
            self._consumer.assign(wanted)
            self._assigned = set(wanted)
        polled = self._consumer.poll(CHUNK_RECORDS, timeout)
        owners = {
            partition: restoration
            for restoration in self._restorations.values()
            for partition in restoration.targets
        }
        for fetched in polled.fetched:
            partition = TopicPartition(fetched.topic, fetched.partition)
            if partition in owners:
                self._apply(owners[partition], partition, fetched)
        for partition, end in polled.ends.items():
            if partition in owners:
                self._move(owners[partition], partition, end)

    def _apply(self, restoration: Restoration, partition: TopicPartition, fetched: Fetched) -> None:
        store = restoration.definitions[partition]
        checkpoint = restoration.checkpoints[store.name]
        entries: Mapping[bytes, bytes | None]
        if store.read_source is not None:
            offsets = fetched.offsets()
            # Behind the committed offset are changes that are still to be processed.
            fresh = sum(offset < restoration.targets[partition] for offset in offsets)
            entries = store.read_source(fetched.slice(0, fresh))
            next_offset = fetched.next_offset if fresh == len(offsets) else restoration.targets[partition]
        else:
            read = dict(zip(fetched.keys(), fetched.values(), strict=True))
            for key in [key for key in read if key is None or key.startswith(RESERVED)]:
                value = read.pop(key)
                if key is not None:
                    checkpoint.read(key, value)
            entries = read  # type: ignore[assignment]  # without the nulls
            next_offset = fetched.next_offset
        self._move(restoration, partition, next_offset)
        restoration.database.write(
            {store.name: Changes(entries)},
            encode_metadata({store.name: checkpoint}, self._wall_clock()),
        )

    def _move(self, restoration: Restoration, partition: TopicPartition, offset: int) -> None:
        before = restoration.positions[partition]
        if offset > before:
            restoration.positions[partition] = offset
            restoration.progress.done += min(offset, restoration.targets[partition]) - min(
                before, restoration.targets[partition]
            )
            restoration.checkpoints[restoration.definitions[partition].name].offset = offset

    def _save(self, restoration: Restoration) -> None:
        restoration.database.write({}, encode_metadata(restoration.checkpoints, self._wall_clock()))
