"""The consumer: its group membership, and its position in each partition."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, cast

from streams.broker import BEGINNING, END, OutOfRange, Polled
from streams.broker.memory.group import Membership
from streams.errors import FatalBrokerError, Retriable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import GroupSettings, NamePattern, OffsetReset, RebalanceListener
    from streams.broker.memory.cluster import Cluster
    from streams.broker.memory.group import Group, Member
    from streams.broker.memory.log import Log
    from streams.records import Fetched, TopicPartition


class Position:
    """A consumer's position in a partition.

    ``offset`` may be ``BEGINNING`` or ``END`` until the next poll resolves it, and is ``None`` while the
    committed offset is not known. ``end_reported`` is the last end reported to the caller; ``lost`` is set
    once it was reported that the offset is out of range.
    """

    __slots__ = ("end_reported", "lost", "offset", "paused")

    def __init__(self, offset: int | None = None) -> None:
        self.offset = offset
        self.paused = False
        self.end_reported = -1
        self.lost = False

    @property
    def located(self) -> bool:
        return self.offset is not None and self.offset >= 0

    def move(self, offset: int) -> None:
        self.offset = offset
        self.end_reported = -1
        self.lost = False


class MemoryConsumer:
    """``Consumer`` of a ``MemoryBroker``.

    Beyond the protocol: ``seek`` raises ``FatalBrokerError`` for a partition that is not assigned, ``pause``
    and ``resume`` ignore such partitions. Positions given as ``END``, or by ``offset_reset``, are resolved by
    the next poll. ``commit`` raises ``TransactionAborted`` if the member was fenced.
    """

    def __init__(self, cluster: Cluster, settings: GroupSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._listener: RebalanceListener | None = None
        self._topics: frozenset[str] = frozenset()
        self._patterns: tuple[NamePattern, ...] = ()
        self._member: Member | None = None
        # In the order in which partitions are read: one that returned records moves to the end.
        self._positions: dict[TopicPartition, Position] = {}
        self._reader = False
        self._closed = False

    def subscribe(self, topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
        self._usable()
        if self._reader:
            raise FatalBrokerError("a consumer cannot subscribe after assign")
        self._listener = listener
        self._topics = frozenset(topic for topic in topics if isinstance(topic, str))
        self._patterns = tuple(topic for topic in topics if not isinstance(topic, str))
        with self._cluster.locked():
            group = self._group()
            if self._member is not None and group.has(self._member):
                self._member.topics, self._member.patterns = self._topics, self._patterns
                self._cluster.retarget(group)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._usable()
        if self._listener is not None:
            raise FatalBrokerError("a consumer cannot be assigned partitions after subscribe")
        self._reader = True
        self._positions = {partition: Position(offset) for partition, offset in positions.items()}

    def poll(self, max_records: int, timeout: float) -> Polled:
        self._usable()
        self._cluster.step("poll")
        # In a simulation only the wait advances the clock, by the same amount in every run.
        deadline = math.inf if self._cluster.simulated else time.monotonic() + timeout
        may_wait = True
        while not self._serve_group():
            with self._cluster.locked():
                polled = self._fetch(max_records)
                remaining = timeout if self._cluster.simulated else deadline - time.monotonic()
                if any(polled) or remaining <= 0 or not may_wait:
                    self._extend_deadline()
                    return polled
                if not self._group_has_news():
                    self._suspend_deadline()
                    may_wait = self._cluster.wait(remaining)
                    self._extend_deadline()
        return Polled([], {})

    def keep_alive(self) -> None:
        self._usable()
        self._cluster.step("keep_alive")
        self._serve_group()

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        self._usable()
        strangers = sorted(partition for partition in positions if partition not in self._positions)
        if strangers:
            raise FatalBrokerError(f"cannot seek in {', '.join(map(str, strangers))}: not assigned")
        for partition, offset in positions.items():
            self._positions[partition].move(offset)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._set_paused(partitions, paused=True)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._set_paused(partitions, paused=False)

    def assignment(self) -> set[TopicPartition]:
        return set(self._positions)

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            found = {}
            for partition in self._positions.keys() & set(partitions):
                if self._begin(partition):
                    found[partition] = cast("int", self._positions[partition].offset)
            return found

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        self._usable()
        self._cluster.step("committed")
        with self._cluster.locked():
            group = self._group()
            unstable = sorted(p for p in partitions if self._cluster.unstable(group, p))
            if unstable:
                raise Retriable(
                    f"group {group.name}: a transaction that commits offsets of "
                    f"{', '.join(map(str, unstable))} is still open"
                )
            return {p: group.offsets[p] for p in partitions if p in group.offsets}

    def committed_metadata(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, str]:
        committed = self.committed(partitions)
        with self._cluster.locked():
            metadata = self._group().metadata
            return {p: metadata[p] for p in committed if metadata.get(p)}

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        offset_metadata: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        self._usable()
        self._cluster.require_size(offset_metadata or {})
        self._cluster.step("commit_offsets.before")
        with self._cluster.locked():
            group = self._group()
            group.check(self._membership(), offsets)
            self._cluster.commit_offsets(group, offsets, offset_metadata or {})
        self._cluster.step("commit_offsets.after")

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            ends = {}
            for partition in partitions:
                position = self._positions.get(partition)
                log = self._cluster.log(partition)
                if log is not None and position is not None and position.located:
                    ends[partition] = log.next_offset
            return ends

    @property
    def member(self) -> str | None:
        with self._cluster.locked():
            if self._member is None:
                return None
            dynamic, name = self._member.order()
            return f"{int(dynamic)}{name}"

    def group_metadata(self) -> object:
        self._usable()
        with self._cluster.locked():
            return self._membership()

    def close(self) -> None:
        if self._closed:
            return
        try:
            self._release_all()
        finally:
            self._closed = True
            self._positions.clear()
            with self._cluster.locked():
                self._leave()

    def _usable(self) -> None:
        if self._closed:
            raise FatalBrokerError("this consumer is closed")

    def _group(self) -> Group:
        return self._cluster.group(self._settings.group)

    def _membership(self) -> Membership:
        if self._member is None:
            return Membership(self._settings.group, None, -1)
        return Membership(self._settings.group, self._member.name, self._member.epoch)

    def _set_paused(self, partitions: Collection[TopicPartition], *, paused: bool) -> None:
        self._usable()
        for partition in partitions:
            position = self._positions.get(partition)
            if position is not None:
                position.paused = paused

    # Group

    def _serve_group(self) -> bool:
        """Change the assignment towards the group's target. Returns whether it changed."""
        if self._listener is None:
            return False
        with self._cluster.locked():
            if self._member is not None and not self._group_has_news():
                self._extend_deadline()
                return False
        changed = self._drop_lost(self._listener)
        with self._cluster.locked():
            group = self._group()
            if self._member is None:
                now = self._cluster.clock()
                self._member = group.join(self._settings, self._topics, self._patterns, now)
                self._cluster.retarget(group)
            member = self._member
            # The time of callbacks counts towards the poll deadline, like the caller's own work.
            self._extend_deadline()
            leaving = sorted(partition for partition in self._positions if partition not in member.target)
        if leaving:
            changed = True
            self._revoke(leaving, self._listener)
        with self._cluster.locked():
            gained = group.take(member) if group.has(member) else []
            self._positions.update((partition, Position()) for partition in gained)
        if gained:
            changed = True
            self._listener.assigned(gained)
        with self._cluster.locked():
            self._extend_deadline()
            for partition in gained:
                self._locate(partition)
        return changed

    def _drop_lost(self, listener: RebalanceListener) -> bool:
        """Drop a membership that the group has ended. Returns whether partitions were lost."""
        with self._cluster.locked():
            if self._member is None or self._group().has(self._member):
                return False
            self._member = None
            held = sorted(self._positions)
            self._positions.clear()
        if held:
            listener.lost(held)
        return bool(held)

    def _revoke(self, partitions: list[TopicPartition], listener: RebalanceListener) -> None:
        try:
            listener.revoked(partitions)
        finally:
            # Released even if the callback failed: otherwise no other member could ever take them.
            for partition in partitions:
                self._positions.pop(partition, None)
            with self._cluster.locked():
                if self._member is not None:
                    self._group().release(self._member, partitions)
                self._cluster.notify()

    def _release_all(self) -> None:
        """Call the listener for all assigned partitions before leaving."""
        if self._listener is None or self._drop_lost(self._listener) or not self._positions:
            return
        self._listener.revoked(sorted(self._positions))

    def _leave(self) -> None:
        member, group = self._member, self._group()
        if member is None or not group.has(member):
            return
        if self._settings.instance_id is not None:
            member.departed = True
            member.deadline = self._cluster.clock() + self._settings.session_timeout
            return
        group.remove(member)
        self._cluster.retarget(group)

    def _group_has_news(self) -> bool:
        """Whether serving the group now would change anything."""
        if self._member is None:
            return False
        group = self._group()
        return (
            not group.has(self._member)
            or self._member.epoch != group.epoch
            or bool(group.available(self._member))
        )

    def _extend_deadline(self) -> None:
        if self._member is not None:
            self._member.deadline = self._cluster.clock() + self._settings.poll_deadline

    def _suspend_deadline(self) -> None:
        if self._member is not None:
            self._member.deadline = math.inf

    # Records

    def _fetch(self, max_records: int) -> Polled:
        room = max_records
        fetched: list[Fetched] = []
        ends: dict[TopicPartition, int] = {}
        out_of_range: dict[TopicPartition, OutOfRange] = {}
        for partition in list(self._positions):
            position = self._positions[partition]
            if position.paused:
                continue
            log = self._locate(partition)
            if log is None or position.offset is None:
                continue
            if not log.start <= position.offset <= log.next_offset:
                if not position.lost:
                    out_of_range[partition] = OutOfRange(position.offset, log.start, log.next_offset)
                    position.lost = True
                continue
            rows, position.offset = log.readable(position.offset, self._settings.isolation, room)
            if rows:
                fetched.append(log.fetched(partition, rows))
                room -= len(fetched[-1])
                self._positions[partition] = self._positions.pop(partition)
            at_end = position.offset == log.end(self._settings.isolation)
            if at_end and position.offset != position.end_reported:
                ends[partition] = position.end_reported = position.offset
            if room <= 0:
                break
        return Polled(fetched, ends, out_of_range)

    def _begin(self, partition: TopicPartition) -> bool:
        """Set the position of a new partition to its committed offset. Returns whether that is known."""
        position = self._positions[partition]
        if position.offset is None:
            group = self._group()
            if self._cluster.unstable(group, partition):
                return False
            start = BEGINNING if self._settings.offset_reset == "earliest" else END
            position.offset = group.offsets.get(partition, start)
        return True

    def _locate(self, partition: TopicPartition) -> Log | None:
        """The partition's log, after resolving the position in it as far as possible."""
        position = self._positions[partition]
        if self._reader:
            log: Log | None = self._cluster.existing_log(partition)
        else:
            log = self._cluster.log(partition)
        if log is None:
            return None
        reset: OffsetReset = self._settings.offset_reset
        if not self._begin(partition):
            return log
        assert position.offset is not None
        if (
            position.offset >= 0
            and not log.start <= position.offset <= log.next_offset
            and not self._settings.reports_out_of_range
        ):
            position.offset = BEGINNING if reset == "earliest" else END
        if position.offset == BEGINNING:
            position.offset = log.start
        elif position.offset == END:
            position.offset = log.end(self._settings.isolation)
        return log
