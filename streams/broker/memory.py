"""A broker in this process, for tests: partitioned logs with groups, rebalances and transactions.

It behaves as Kafka does where a caller can tell: transaction markers take offsets, ``read_committed``
stops at the first open transaction, groups rebalance incrementally by the ``range`` assignor of KIP-848, and
members and producers that are out of date are fenced. Clients may live in several threads; used from one
thread, the same calls give the same results, as nothing here is random.

Where Kafka leaves something open or late, this broker takes the strict side at once, so that a wrong caller
fails in a test and not by chance:

- A plain producer's rows are written by ``flush``, not before. A transaction's rows are written at once.
- A member may commit only for partitions that it holds. Kafka compares the membership alone.
- A poll in which the assignment changed brings no records.
- A fenced commit, plain or in a transaction, raises ``TransactionAborted``: it did not happen and never will.
- A producer whose transaction timed out is fenced: ``OutcomeUnknown`` from every further call.
- Offsets that an open transaction has sent hide the last committed ones, as Kafka's stable offset fetch does:
  ``Consumer.committed`` raises ``Retriable`` and a new owner reads nothing of these partitions until the
  transaction ends. ``Admin.committed_offsets`` returns what was committed last.
- Records that Kafka refuses after they were queued (times too far ahead, larger than the topic takes,
  without a key in a compacted topic) have none of their ``Output`` written, and fail the transaction at once.
  Once ``take_refused`` has told of one, others for the topic are refused by ``produce``.
- With ``instance_id``, a closed member's partitions stay reserved for ``session_timeout`` or until its
  successor joins; joining under the instance id of a living member raises ``FatalBrokerError``.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field, replace
from operator import itemgetter
from threading import Condition
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypeVar, cast

from streams.broker import BEGINNING, END, OutOfRange, Polled, Refusal, TopicDescription
from streams.errors import (
    FatalBrokerError,
    OutcomeUnknown,
    RecordRefused,
    RecordsRefused,
    Retriable,
    TopicError,
    TopicMissing,
    TransactionAborted,
)
from streams.partitioning import partition_for
from streams.records import FetchedLists, Headers, TopicPartition, take

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from streams.broker import (
        Consumer,
        GroupSettings,
        Isolation,
        NamePattern,
        NewTopic,
        OffsetReset,
        RebalanceListener,
    )
    from streams.records import Fetched, Output, Rows

T = TypeVar("T")

Step: TypeAlias = Literal[
    "poll",
    "keep_alive",
    "committed",
    "commit_offsets.before",
    "commit_offsets.after",
    "produce",
    "flush",
    "init_transactions",
    "begin",
    "send_offsets",
    "commit.before",
    "commit.after",
    "abort",
]
"""Where ``MemoryBroker.before`` is called: at the start of the client's call of that name.

``commit`` is the producer's, ``commit_offsets`` the consumer's. Both have a second one, ``after`` the commit
took effect and before the caller learns of it.
"""

_Ranges: TypeAlias = "list[tuple[int, int]]"
"""Ranges of positions in a log's columns: (first, one past the last)."""

LARGEST_RECORD = 60_000_000
"""What clients take at most: bytes of key, value and headers."""

DEFAULT_TOPIC_SETTINGS = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000",
}
"""As of Kafka 4.0, as far as this broker goes by them."""

OTHER_TOPIC_SETTINGS = {
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.type",
    "compression.zstd.level",
    "delete.retention.ms",
    "file.delete.delay.ms",
    "flush.messages",
    "flush.ms",
    "follower.replication.throttled.replicas",
    "index.interval.bytes",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "max.compaction.lag.ms",
    "message.timestamp.before.max.ms",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "min.insync.replicas",
    "preallocate",
    "remote.copy.disable",
    "remote.log.delete.on.disable",
    "remote.storage.enable",
    "retention.bytes",
    "retention.ms",
    "segment.bytes",
    "segment.index.bytes",
    "segment.jitter.ms",
    "segment.ms",
    "unclean.leader.election.enable",
}
"""What else Kafka knows, and this broker ignores."""

_KNOWN_SETTINGS = OTHER_TOPIC_SETTINGS | DEFAULT_TOPIC_SETTINGS.keys()

_RECORD_BYTES = 70
"""What a record alone in its batch has besides key, value and headers, at the least."""

_LEGAL_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class _Log:
    """One partition: columns of records in offset order, and what transactions did to them.

    A transaction's marker takes an offset and has no row. Aborted records keep theirs.
    """

    __slots__ = (
        "_aborted",
        "_any_headers",
        "_headers",
        "_keys",
        "_offsets",
        "_open",
        "_timestamps",
        "_values",
        "next_offset",
        "start",
    )

    def __init__(self) -> None:
        self.start = 0
        self.next_offset = 0
        self._offsets: list[int] = []
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._timestamps: list[int] = []
        self._headers: list[Headers | None] = []
        self._any_headers = False
        self._aborted: _Ranges = []
        self._open: dict[_Transaction, int] = {}

    def append(self, columns: _Columns, transaction: _Transaction | None) -> None:
        count = len(columns.keys)
        row = len(self._offsets)
        if transaction is not None:
            self._open.setdefault(transaction, self.next_offset)
            ranges = transaction.rows.setdefault(self, [])
            if ranges and ranges[-1][1] == row:
                ranges[-1] = (ranges[-1][0], row + count)
            else:
                ranges.append((row, row + count))
        self._offsets.extend(range(self.next_offset, self.next_offset + count))
        self._keys.extend(columns.keys)
        self._values.extend(columns.values)
        self._timestamps.extend(columns.timestamps)
        if columns.headers is None:
            self._headers.extend([None] * count)
        else:
            self._headers.extend(list(entry) if entry else None for entry in columns.headers)
            self._any_headers = True
        self.next_offset += count

    def finish(self, transaction: _Transaction, *, committed: bool) -> None:
        """Write the transaction's marker."""
        del self._open[transaction]
        self.next_offset += 1
        if not committed:
            for rows in transaction.rows[self]:
                insort(self._aborted, rows)

    def end(self, isolation: Isolation) -> int:
        """The offset readers of that isolation can get to: for committed reads, the last stable offset."""
        if isolation == "read_committed" and self._open:
            return min(self._open.values())
        return self.next_offset

    def readable(self, offset: int, isolation: Isolation, limit: int) -> tuple[_Ranges, int]:
        """Up to ``limit`` rows from ``offset`` on, and the offset to go on from afterwards."""
        end = self.end(isolation)
        if offset >= end:
            return [], offset
        row = bisect_left(self._offsets, offset)
        stop = bisect_left(self._offsets, end)
        hidden = self._aborted if isolation == "read_committed" else []
        gap = bisect_right(hidden, row, key=itemgetter(1))
        ranges: _Ranges = []
        while row < stop and limit > 0:
            gap_start, gap_stop = hidden[gap] if gap < len(hidden) else (stop, stop)
            until = min(gap_start, stop, row + limit)
            if until > row:
                ranges.append((row, until))
                limit -= until - row
                row = until
            if row >= gap_start:
                row = gap_stop
                gap += 1
        # Past the last readable row there are only markers and aborted rows: they are read by skipping them.
        return ranges, self._offsets[row] if row < stop else end

    def fetched(self, partition: TopicPartition, ranges: _Ranges) -> FetchedLists:
        """The columns of these rows."""
        headers = _cut(self._headers, ranges) if self._any_headers else None
        return FetchedLists(
            partition.topic,
            partition.partition,
            _cut(self._keys, ranges),
            _cut(self._values, ranges),
            _cut(self._timestamps, ranges),
            _cut(self._offsets, ranges),
            headers if headers is not None and any(headers) else None,
        )


def _cut(column: list[T], ranges: _Ranges) -> list[T]:
    if len(ranges) == 1:
        ((first, last),) = ranges
        return column[first:last]
    return [element for first, last in ranges for element in column[first:last]]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Rows for one partition."""

    keys: list[bytes | None]
    values: list[bytes | None]
    timestamps: list[int]
    headers: list[Headers | None] | None

    @classmethod
    def of(cls, output: Output, rows: Rows | None) -> _Columns:
        """Those rows of an output, ``None`` for all."""
        return cls(
            take(output.keys, rows),
            take(output.values, rows),
            take(output.timestamps, rows),
            None if output.headers is None else take(output.headers, rows),
        )


@dataclass(eq=False, slots=True)
class _Transaction:
    """An open transaction: its rows and the offsets it will commit. ``failed`` once it can only abort."""

    transactional_id: str
    rows: dict[_Log, _Ranges] = field(default_factory=dict)
    offsets: dict[_Group, dict[TopicPartition, int]] = field(default_factory=dict)
    deadline: float = math.inf
    failed: bool = False


@dataclass(frozen=True, slots=True)
class _Membership:
    """What commits are fenced by. ``member`` is ``None`` for a consumer that is in no group."""

    group: str
    member: str | None
    epoch: int


@dataclass(eq=False, slots=True)
class _Member:
    """A member as the group has it. ``target`` is what it should hold once others have let go of it."""

    name: str
    settings: GroupSettings
    topics: frozenset[str]
    patterns: tuple[NamePattern, ...]
    deadline: float
    epoch: int = 0
    target: set[TopicPartition] = field(default_factory=set)
    departed: bool = False

    def wants(self, topic: str) -> bool:
        if topic in self.topics:
            return True
        return not topic.startswith("__") and any(pattern.fullmatch(topic) for pattern in self.patterns)

    def order(self) -> tuple[bool, str]:
        """Members with an instance id come first, so that they get the same ranges after a restart."""
        instance = self.settings.instance_id
        return (instance is None, instance or self.name)


class _Group:
    """The coordinator of one group.

    A partition has at most one owner. Owners give up what is no longer in their target, and others take from
    their target what has no owner: both happen in the member's own poll.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.members: dict[str, _Member] = {}
        self.owners: dict[TopicPartition, _Member] = {}
        self.offsets: dict[TopicPartition, int] = {}
        self._names_given = 0

    def has(self, member: _Member) -> bool:
        return self.members.get(member.name) is member

    def join(
        self,
        settings: GroupSettings,
        topics: frozenset[str],
        patterns: tuple[NamePattern, ...],
        now: float,
    ) -> _Member:
        instance = settings.instance_id
        if instance is not None:
            before = next((m for m in self.members.values() if m.settings.instance_id == instance), None)
            if before is not None and not before.departed:
                raise FatalBrokerError(
                    f"group {self.name}: the living member {before.name} has the instance id {instance!r}",
                    hint="give each member an instance id of its own",
                )
            if before is not None:
                self.remove(before)
        self._names_given += 1
        # Names are compared as text by the assignor: the padding keeps them in the order of joining.
        name = f"{self.name}-{self._names_given:06d}"
        member = _Member(name, settings, topics, patterns, now + settings.poll_deadline)
        self.members[name] = member
        self.epoch += 1
        return member

    def remove(self, member: _Member) -> None:
        del self.members[member.name]
        self.owners = {partition: owner for partition, owner in self.owners.items() if owner is not member}
        self.epoch += 1

    def retarget(self, partition_counts: Mapping[str, int], first: Callable[[str], int]) -> None:
        """Range assignment: per topic, each subscribed member gets the next contiguous range.

        ``first`` is the place, among those members, of the one that a topic's ranges begin with.
        """
        members = sorted(self.members.values(), key=_Member.order)
        targets: dict[_Member, set[TopicPartition]] = {member: set() for member in members}
        for topic, count in partition_counts.items():
            subscribed = [member for member in members if member.wants(topic)]
            begin = first(topic) % len(subscribed) if subscribed else 0
            start = 0
            for position, member in enumerate([*subscribed[begin:], *subscribed[:begin]]):
                quota = count // len(subscribed) + (position < count % len(subscribed))
                targets[member].update(TopicPartition(topic, p) for p in range(start, start + quota))
                start += quota
        if any(member.target != target for member, target in targets.items()):
            self.epoch += 1
            for member, target in targets.items():
                member.target = target

    def release(self, member: _Member, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            if self.owners.get(partition) is member:
                del self.owners[partition]

    def available(self, member: _Member) -> list[TopicPartition]:
        """What the member may take now: its target, without what others have not released yet."""
        if member.target <= self.owners.keys():
            return []
        return sorted(partition for partition in member.target if partition not in self.owners)

    def take(self, member: _Member) -> list[TopicPartition]:
        gained = self.available(member)
        for partition in gained:
            self.owners[partition] = member
        member.epoch = self.epoch
        return gained

    def check(self, membership: _Membership, partitions: Collection[TopicPartition]) -> None:
        """Raise ``TransactionAborted`` unless that membership may commit for these partitions."""
        if membership.member is None:
            if self.members:
                raise TransactionAborted(
                    f"group {self.name} has members: offsets can be committed by them alone",
                    hint="stop the group's members first",
                )
            return
        member = self.members.get(membership.member)
        if member is None:
            raise TransactionAborted(f"{membership.member} is no member of group {self.name} any more")
        if member.epoch != membership.epoch:
            raise TransactionAborted(
                f"{membership.member} of group {self.name} commits as of epoch {membership.epoch}, "
                f"it is at epoch {member.epoch} since",
                hint="ask for the group metadata anew before each commit",
            )
        foreign = sorted(partition for partition in partitions if self.owners.get(partition) is not member)
        if foreign:
            raise TransactionAborted(
                f"{membership.member} of group {self.name} does not hold {', '.join(map(str, foreign))}"
            )


@dataclass(frozen=True, slots=True)
class _Topic:
    description: TopicDescription
    settings: dict[str, str]
    logs: list[_Log]


class _Cluster:
    """The state that all clients share. Everything in it is read and changed inside ``locked``."""

    def __init__(
        self,
        clock: Callable[[], float],
        wait: Callable[[float], None] | None,
        max_record_bytes: int,
        first: Callable[[str], int],
        wall_clock: Callable[[], int] | None,
    ) -> None:
        self.clock = clock
        self.max_record_bytes = max_record_bytes
        self.wall_clock = wall_clock
        self.first = first
        self.before: Callable[[Step], None] | None = None
        self.topics: dict[str, _Topic] = {}
        self.known: set[str] = set()
        """Topics that have refused records: from then on, producers know what they do not take."""
        self.groups: dict[str, _Group] = {}
        self.epochs: dict[str, int] = {}
        self.open: dict[str, _Transaction] = {}
        self._wait = wait
        self._changed = Condition()

    def step(self, step: Step) -> None:
        """Call the hook: outside of the lock, so that it may use the broker."""
        if self.before is not None:
            self.before(step)

    @property
    def simulated(self) -> bool:
        """Whether somebody else moves the time on."""
        return self._wait is not None

    def locked(self) -> Self:
        """The cluster as a context: inside, its state is the caller's."""
        return self

    def __enter__(self) -> None:
        self._changed.acquire()
        self._enforce_deadlines()

    def __exit__(self, *_: object) -> None:
        self._changed.release()

    def notify(self) -> None:
        self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for a change, up to the next deadline. False when the caller should not wait once more."""
        if self._wait is None:
            self._changed.wait(min(seconds, self._next_deadline() - self.clock()))
            return True
        self._changed.release()
        try:
            self._wait(seconds)
        finally:
            self._changed.acquire()
        return False

    def _next_deadline(self) -> float:
        earliest = math.inf
        for transaction in self.open.values():
            earliest = min(earliest, transaction.deadline)
        for group in self.groups.values():
            for member in group.members.values():
                earliest = min(earliest, member.deadline)
        return earliest

    def _enforce_deadlines(self) -> None:
        now = self.clock()
        if now < self._next_deadline():
            return
        for transaction in [t for t in self.open.values() if t.deadline <= now]:
            self.finish(transaction, committed=False)
            self.epochs[transaction.transactional_id] += 1
        for group in self.groups.values():
            overdue = [member for member in group.members.values() if member.deadline <= now]
            for member in overdue:
                group.remove(member)
            if overdue:
                self.retarget(group)

    # Topics

    def log(self, partition: TopicPartition) -> _Log | None:
        topic = self.topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.logs):
            return None
        return topic.logs[partition.partition]

    def existing_log(self, partition: TopicPartition) -> _Log:
        log = self.log(partition)
        if log is None:
            raise TopicError(f"there is no partition {partition}", hint="create the topic first")
        return log

    def topics_changed(self) -> None:
        for group in self.groups.values():
            self.retarget(group)

    def refused(self, output: Output) -> list[Refusal]:
        """The rows that their topic does not take, and why."""
        topic = self.topics.get(output.topic)
        if topic is None:
            return []
        settings = DEFAULT_TOPIC_SETTINGS | topic.settings
        name, found = output.topic, {}
        if "compact" in settings["cleanup.policy"] and None in output.keys:
            for row, key in enumerate(output.keys):
                if key is None:
                    found[row] = (
                        f"topic {name} is compacted and takes no record without a key (INVALID_RECORD)"
                    )
        ahead = int(settings["message.timestamp.after.max.ms"])
        if self.wall_clock is not None and settings["message.timestamp.type"] == "CreateTime":
            latest = self.wall_clock() + ahead
            if max(output.timestamps, default=0) > latest:
                for row, stamp in enumerate(output.timestamps):
                    if stamp > latest:
                        found[row] = f"topic {name} takes no event time {ahead} ms ahead (INVALID_TIMESTAMP)"
        most = int(settings["max.message.bytes"]) - _RECORD_BYTES
        for row, size in enumerate(_sizes(output)):
            if size > most:
                found[row] = f"topic {name} takes no record of {size} bytes (MSG_SIZE_TOO_LARGE)"
        return [Refusal(output, row, RecordRefused(found[row], position=row)) for row in sorted(found)]

    # Groups

    def group(self, name: str) -> _Group:
        return self.groups.setdefault(name, _Group(name))

    def retarget(self, group: _Group) -> None:
        group.retarget({name: len(topic.logs) for name, topic in self.topics.items()}, self.first)
        self.notify()

    def unstable(self, group: _Group, partition: TopicPartition) -> bool:
        """Whether an open transaction may still commit an offset for the partition."""
        return any(partition in transaction.offsets.get(group, ()) for transaction in self.open.values())

    def commit_offsets(self, group: _Group, offsets: Mapping[TopicPartition, int]) -> None:
        # What was deleted meanwhile has no offsets any more.
        group.offsets.update({place: offset for place, offset in offsets.items() if self.log(place)})

    # Transactions

    def start(self, transaction: _Transaction, timeout: float) -> None:
        """Called at each use: as on a real broker, the time runs from the first one on."""
        if transaction.transactional_id not in self.open:
            transaction.deadline = self.clock() + timeout
            self.open[transaction.transactional_id] = transaction

    def finish(self, transaction: _Transaction, *, committed: bool) -> None:
        self.open.pop(transaction.transactional_id, None)
        for log in transaction.rows:
            log.finish(transaction, committed=committed)
        if committed:
            for group, offsets in transaction.offsets.items():
                self.commit_offsets(group, offsets)
        self.notify()

    def new_producer(self, transactional_id: str) -> int:
        """Fence older producers of that id; returns the epoch of the new one."""
        left_open = self.open.get(transactional_id)
        if left_open is not None:
            self.finish(left_open, committed=False)
        epoch = self.epochs.get(transactional_id, -1) + 1
        self.epochs[transactional_id] = epoch
        return epoch


class _Position:
    """Where a consumer stands in a partition.

    ``offset`` may be ``BEGINNING`` or ``END`` until the next poll finds out, and is ``None`` while it is to
    come from the group. ``end_reported`` is the end told to the caller last; ``lost`` is set once the caller
    was told that the log has no such offset.
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

    Beyond the protocol: ``seek`` takes ``BEGINNING`` and ``END`` too and raises ``FatalBrokerError`` for a
    partition that is not assigned, ``pause`` and ``resume`` ignore these. Positions given as ``END``, or by
    ``offset_reset``, are fixed by the next poll. ``commit`` raises ``TransactionAborted`` when the member was
    fenced.
    """

    def __init__(self, cluster: _Cluster, settings: GroupSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._listener: RebalanceListener | None = None
        self._topics: frozenset[str] = frozenset()
        self._patterns: tuple[NamePattern, ...] = ()
        self._member: _Member | None = None
        # In the order in which the partitions take their turns: who is served goes to the back.
        self._positions: dict[TopicPartition, _Position] = {}
        self._reader = False
        self._closed = False

    def subscribe(self, topics: Collection[str | NamePattern], listener: RebalanceListener) -> None:
        self._usable()
        if self._reader:
            raise FatalBrokerError("this consumer reads assigned partitions: it cannot subscribe")
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
            raise FatalBrokerError("this consumer is in a group: it cannot be assigned partitions")
        self._reader = True
        self._positions = {partition: _Position(offset) for partition, offset in positions.items()}

    def poll(self, max_records: int, timeout: float) -> Polled:
        self._usable()
        self._cluster.step("poll")
        # A simulation's own clock passes in the wait alone, and by the same amount in every run.
        give_up = math.inf if self._cluster.simulated else time.monotonic() + timeout
        may_wait = True
        while not self._serve_group():
            with self._cluster.locked():
                polled = self._fetch(max_records)
                remaining = timeout if self._cluster.simulated else give_up - time.monotonic()
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
                    f"{', '.join(map(str, unstable))} has not ended yet"
                )
            return {p: group.offsets[p] for p in partitions if p in group.offsets}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._usable()
        self._cluster.step("commit_offsets.before")
        with self._cluster.locked():
            group = self._group()
            group.check(self._membership(), offsets)
            self._cluster.commit_offsets(group, offsets)
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
            self._let_go()
        finally:
            self._closed = True
            self._positions.clear()
            with self._cluster.locked():
                self._leave()

    def _usable(self) -> None:
        if self._closed:
            raise FatalBrokerError("this consumer is closed")

    def _group(self) -> _Group:
        return self._cluster.group(self._settings.group)

    def _membership(self) -> _Membership:
        if self._member is None:
            return _Membership(self._settings.group, None, -1)
        return _Membership(self._settings.group, self._member.name, self._member.epoch)

    def _set_paused(self, partitions: Collection[TopicPartition], *, paused: bool) -> None:
        self._usable()
        for partition in partitions:
            position = self._positions.get(partition)
            if position is not None:
                position.paused = paused

    # Group

    def _serve_group(self) -> bool:
        """Bring the assignment nearer to the group's target; says whether it changed."""
        if self._listener is None:
            return False
        with self._cluster.locked():
            if self._member is not None and not self._group_has_news():
                self._extend_deadline()
                return False
        changed = self._give_up_lost(self._listener)
        with self._cluster.locked():
            group = self._group()
            if self._member is None:
                now = self._cluster.clock()
                self._member = group.join(self._settings, self._topics, self._patterns, now)
                self._cluster.retarget(group)
            member = self._member
            # A callback takes its time out of the poll deadline, as the caller's own work does.
            self._extend_deadline()
            leaving = sorted(partition for partition in self._positions if partition not in member.target)
        if leaving:
            changed = True
            self._revoke(leaving, self._listener)
        with self._cluster.locked():
            gained = group.take(member) if group.has(member) else []
            self._positions.update((partition, _Position()) for partition in gained)
        if gained:
            changed = True
            self._listener.assigned(gained)
        with self._cluster.locked():
            self._extend_deadline()
            for partition in gained:
                self._locate(partition)
        return changed

    def _give_up_lost(self, listener: RebalanceListener) -> bool:
        """Forget a membership that the group ended."""
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
            # Also when the callback failed: a partition that nobody can take would stop the group.
            for partition in partitions:
                self._positions.pop(partition, None)
            with self._cluster.locked():
                if self._member is not None:
                    self._group().release(self._member, partitions)
                self._cluster.notify()

    def _let_go(self) -> None:
        """Tell the listener that all is over."""
        if self._listener is None or self._give_up_lost(self._listener) or not self._positions:
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
        """Place a partition that was just assigned where the group is in it, if that is known by now."""
        position = self._positions[partition]
        if position.offset is None:
            group = self._group()
            if self._cluster.unstable(group, partition):
                return False
            start = BEGINNING if self._settings.offset_reset == "earliest" else END
            position.offset = group.offsets.get(partition, start)
        return True

    def _locate(self, partition: TopicPartition) -> _Log | None:
        """The partition's log, with the position in it known as far as it can be."""
        position = self._positions[partition]
        if self._reader:
            log: _Log | None = self._cluster.existing_log(partition)
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
            and not self._settings.tells_out_of_range
        ):
            position.offset = BEGINNING if reset == "earliest" else END
        if position.offset == BEGINNING:
            position.offset = log.start
        elif position.offset == END:
            position.offset = log.end(self._settings.isolation)
        return log


class MemoryProducer:
    """``Producer`` of a ``MemoryBroker``.

    Rows for a topic that does not exist are refused, those for a partition that it does not have raise
    ``TopicError``. Calls in an order that makes no sense, such as ``begin`` before ``init_transactions``,
    raise ``FatalBrokerError``.
    """

    def __init__(self, cluster: _Cluster, transactional_id: str | None, transaction_timeout: float) -> None:
        self._cluster = cluster
        self._transactional_id = transactional_id
        self._transaction_timeout = transaction_timeout
        self._epoch: int | None = None
        self._transaction: _Transaction | None = None
        self._queue: list[tuple[TopicPartition, _Columns]] = []
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
            self._transaction = _Transaction(self._transactional_id)
            self._refused = []

    def send_offsets(self, offsets: Mapping[TopicPartition, int], group_metadata: object) -> None:
        self._cluster.step("send_offsets")
        assert isinstance(group_metadata, _Membership)
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

    def _open_transaction(self) -> _Transaction:
        self._usable()
        if self._transaction is None:
            raise FatalBrokerError("no transaction is open")
        return self._transaction

    def _healthy_transaction(self) -> _Transaction:
        transaction = self._open_transaction()
        if transaction.failed:
            why = f": {self._refused[0].error}" if self._refused else ""
            raise TransactionAborted(f"{transaction.transactional_id}: the open transaction has failed{why}")
        return transaction

    def _partitioned(self, output: Output, accepted: int) -> Iterator[tuple[TopicPartition, _Columns]]:
        """The first ``accepted`` rows of the output by partition."""
        topic = self._cluster.topics.get(output.topic)
        if topic is None:
            raise TopicMissing(output.topic)
        count = len(topic.logs)
        if output.partition is not None or count == 1:
            only = TopicPartition(output.topic, output.partition or 0)
            self._cluster.existing_log(only)
            if accepted:
                yield only, _Columns.of(output, None if accepted == len(output) else range(accepted))
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
            yield TopicPartition(output.topic, partition), _Columns.of(output, rows)


def _sizes(output: Output) -> list[int]:
    """How many bytes key, value and headers of each row have."""
    sizes = [
        (0 if key is None else len(key)) + (0 if value is None else len(value))
        for key, value in zip(output.keys, output.values, strict=True)
    ]
    if output.headers is not None:
        for row, headers in enumerate(output.headers):
            for name, value in headers or ():
                sizes[row] += len(name.encode()) + (0 if value is None else len(value))
    return sizes


def _first_too_large(output: Output, limit: int) -> int | None:
    """The position of the first row whose key, value and headers have more than ``limit`` bytes."""
    sizes = _sizes(output)
    if max(sizes, default=0) <= limit:
        return None
    return next(row for row, size in enumerate(sizes) if size > limit)


class MemoryAdmin:
    """``Admin`` of a ``MemoryBroker``. Partitions that do not exist raise ``TopicError``."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster

    def topics(self) -> dict[str, TopicDescription]:
        with self._cluster.locked():
            return {name: topic.description for name, topic in self._cluster.topics.items()}

    def create_topics(self, topics: Collection[NewTopic]) -> set[str]:
        for topic in topics:
            if not _LEGAL_TOPIC.fullmatch(topic.name) or topic.partitions < 1:
                raise TopicError(
                    f"topic {topic.name!r} with {topic.partitions} partitions cannot be created",
                    hint="a name has 1 to 249 of a-z A-Z 0-9 . _ -, a topic has at least one partition",
                )
        created = set()
        with self._cluster.locked():
            for topic in topics:
                if topic.name in self._cluster.topics:
                    continue
                replication = 1 if topic.replication_factor is None else topic.replication_factor
                unknown = sorted(topic.settings.keys() - _KNOWN_SETTINGS)
                if unknown:
                    raise TopicError(f"creating topic {topic.name}: unknown setting {unknown[0]}")
                wished = {name: value for name, value in topic.wished.items() if name in _KNOWN_SETTINGS}
                description = TopicDescription(topic.name, topic.partitions, replication)
                logs = [_Log() for _ in range(topic.partitions)]
                self._cluster.topics[topic.name] = _Topic(description, wished | dict(topic.settings), logs)
                created.add(topic.name)
            self._cluster.topics_changed()
        return created

    def delete_topics(self, names: Collection[str]) -> None:
        with self._cluster.locked():
            for name in names:
                self._cluster.topics.pop(name, None)
            for group in self._cluster.groups.values():
                group.offsets = {p: offset for p, offset in group.offsets.items() if p.topic not in names}
            self._cluster.topics_changed()

    def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        with self._cluster.locked():
            for partition, offset in offsets.items():
                log = self._cluster.existing_log(partition)
                log.start = max(log.start, min(offset, log.next_offset))

    def require_rights(self, rights: Mapping[str, Collection[str]]) -> None:
        """Do nothing: here everybody may do everything."""

    def settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        with self._cluster.locked():
            missing = [topic for topic in topics if topic not in self._cluster.topics]
            if missing:
                raise TopicError(f"settings of topic {missing[0]}: the topic does not exist")
            return {topic: dict(self._cluster.topics[topic].settings) for topic in topics}

    def end_offsets(
        self, partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            return {p: self._cluster.existing_log(p).end(isolation) for p in partitions}

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            return {p: self._cluster.existing_log(p).start for p in partitions}

    def committed_offsets(
        self, group: str, partitions: Collection[TopicPartition] | None = None
    ) -> dict[TopicPartition, int]:
        with self._cluster.locked():
            offsets = self._cluster.group(group).offsets
            return {
                place: offset
                for place, offset in offsets.items()
                if partitions is None or place in partitions
            }

    def close(self) -> None:
        """There is no connection to release."""


class MemoryBroker:
    """A cluster in this process. Its clients may be used from several threads, each client by one.

    ``clock`` returns seconds and decides poll deadlines, sessions and transaction timeouts. ``poll`` waits in
    real time until something changes; a simulation that moves its own clock passes ``wait``, which is called
    once with the seconds that the poll would wait, and may use the broker. A row whose key, value and headers
    have more than ``max_record_bytes`` is not taken by clients; what the broker refuses follows from the
    topic's settings, and event times are compared with ``wall_clock`` (milliseconds since the epoch; ``None``
    takes any). ``first`` gives, for a topic, the place of the group's
    member that its ranges of partitions begin with: where topics have one partition, the first member would
    hold them all.

    ``before``, when set, is called with a ``Step`` wherever a client is about to do something: what it raises
    is the client's error, and whatever else it does (expire a member, end a process) happens right there.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] | None = None,
        max_record_bytes: int = LARGEST_RECORD,
        first: Callable[[str], int] = lambda _: 0,
        wall_clock: Callable[[], int] | None = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._cluster = _Cluster(clock, wait, max_record_bytes, first, wall_clock)

    @property
    def before(self) -> Callable[[Step], None] | None:
        """The hook that tests make calls fail with."""
        return self._cluster.before

    @before.setter
    def before(self, hook: Callable[[Step], None] | None) -> None:
        self._cluster.before = hook

    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        return MemoryConsumer(self._cluster, settings)

    def producer(
        self, *, transactional_id: str | None = None, transaction_timeout: float = 10.0
    ) -> MemoryProducer:
        return MemoryProducer(self._cluster, transactional_id, transaction_timeout)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self._cluster)

    def expire(self, consumer: Consumer) -> None:
        """End the consumer's session as if its process were dead or frozen: others get its partitions now.

        A consumer that polls again learns that it lost them, and rejoins as a new member.
        """
        membership = consumer.group_metadata()
        assert isinstance(membership, _Membership)
        with self._cluster.locked():
            group = self._cluster.group(membership.group)
            member = group.members.get(membership.member or "")
            if member is not None:
                group.remove(member)
                self._cluster.retarget(group)

    def truncate(self, partition: TopicPartition, offset: int) -> None:
        """Make the records before ``offset`` unreadable, as a topic's retention does."""
        with self._cluster.locked():
            log = self._cluster.existing_log(partition)
            log.start = max(log.start, min(offset, log.next_offset))

    def add_partitions(self, topic: str, total: int) -> None:
        """Give a topic more partitions, ``total`` in all. Keys go to other partitions from then on."""
        with self._cluster.locked():
            before = self._cluster.topics[topic]
            logs = [*before.logs, *(_Log() for _ in range(total - len(before.logs)))]
            description = replace(before.description, partitions=len(logs))
            self._cluster.topics[topic] = _Topic(description, before.settings, logs)
            self._cluster.topics_changed()

    def topic_settings(self, topic: str) -> dict[str, str]:
        """The settings that the topic was created with."""
        with self._cluster.locked():
            return dict(self._cluster.topics[topic].settings)
