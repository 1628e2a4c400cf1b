"""The state that all clients share: topics, groups, open transactions, deadlines."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from streams.broker.memory.group import Group
from streams.errors import FatalBrokerError, TopicError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.broker import Isolation, Refusal
    from streams.broker.memory.log import Log, Transaction
    from streams.broker.memory.topic import MemoryTopic
    from streams.records import Output, TopicPartition

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
"""The points at which ``MemoryBroker.before`` is called: at the start of the client's call of that name.

``commit`` is the producer's, ``commit_offsets`` the consumer's. Both have a second point, ``after`` the
commit took effect and before the call returns.
"""

LARGEST_OFFSET_METADATA = 4096
"""What Kafka takes of it, in bytes, by default (``offset.metadata.max.bytes``)."""


@dataclass(slots=True)
class StaleEnd:
    """What a replaced leader takes for a partition's end, and how often it is still asked."""

    ends: dict[Isolation, int]
    answers: int


class Cluster:
    """The state that all clients share. It must only be read and changed inside ``locked``."""

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
        self.topics: dict[str, MemoryTopic] = {}
        self.topic_numbers = itertools.count(1)
        """For the ids of topics that are created."""
        self.known: set[str] = set()
        """Topics that have rejected records: from then on, producers apply their limits in ``produce``."""
        self.groups: dict[str, Group] = {}
        self.stale_ends: dict[TopicPartition, StaleEnd] = {}
        """Partitions about whose ends a leader answers that is none any more."""
        self.epochs: dict[str, int] = {}
        self.open: dict[str, Transaction] = {}
        self._wait = wait
        self._changed = Condition()

    def step(self, step: Step) -> None:
        """Call the hook, without holding the lock, so that it may use the broker."""
        if self.before is not None:
            self.before(step)

    @property
    def simulated(self) -> bool:
        """Whether a simulation controls the clock."""
        return self._wait is not None

    def locked(self) -> Self:
        """The context in which the caller holds the lock."""
        return self

    def __enter__(self) -> None:
        self._changed.acquire()
        self._enforce_deadlines()

    def __exit__(self, *_: object) -> None:
        self._changed.release()

    def notify(self) -> None:
        self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for a change, up to the next deadline. Returns whether the caller may wait again."""
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

    def log(self, partition: TopicPartition) -> Log | None:
        topic = self.topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.logs):
            return None
        return topic.logs[partition.partition]

    def existing_log(self, partition: TopicPartition) -> Log:
        log = self.log(partition)
        if log is None:
            raise TopicError(f"there is no partition {partition}", hint="create the topic first")
        return log

    def reported_end(self, partition: TopicPartition, isolation: Isolation) -> int:
        """The end of a partition as reported to a client, possibly by a replaced leader."""
        end = self.existing_log(partition).end(isolation)
        stale = self.stale_ends.get(partition)
        if stale is None:
            return end
        stale.answers -= 1
        if stale.answers <= 0:
            del self.stale_ends[partition]
        return stale.ends[isolation]

    def topics_changed(self) -> None:
        for group in self.groups.values():
            self.retarget(group)

    def refused(self, output: Output) -> list[Refusal]:
        """The rows that their topic rejects, and the reasons."""
        topic = self.topics.get(output.topic)
        return [] if topic is None else topic.refused(output, self.wall_clock)

    # Groups

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def retarget(self, group: Group) -> None:
        group.retarget({name: len(topic.logs) for name, topic in self.topics.items()}, self.first)
        self.notify()

    def unstable(self, group: Group, partition: TopicPartition) -> bool:
        """Whether an open transaction may still commit an offset for the partition."""
        return any(partition in transaction.offsets.get(group, ()) for transaction in self.open.values())

    def commit_offsets(
        self, group: Group, offsets: Mapping[TopicPartition, int], metadata: Mapping[TopicPartition, str]
    ) -> None:
        """Commit offsets with their metadata, which replaces that of the previous commit."""
        # Partitions that were deleted in the meantime have no offsets.
        there = {place: offset for place, offset in offsets.items() if self.log(place)}
        group.offsets.update(there)
        group.metadata.update({place: metadata.get(place, "") for place in there})

    def require_size(self, metadata: Mapping[TopicPartition, str]) -> None:
        """Raise ``FatalBrokerError`` for metadata that Kafka would not store with an offset."""
        for place, text in metadata.items():
            if len(text.encode()) > LARGEST_OFFSET_METADATA:
                raise FatalBrokerError(
                    f"the metadata for the offset of {place} has more than {LARGEST_OFFSET_METADATA} bytes"
                )

    # Transactions

    def start(self, transaction: Transaction, timeout: float) -> None:
        """Called at each use of a transaction: as in Kafka, its time-out starts with the first one."""
        if transaction.transactional_id not in self.open:
            transaction.deadline = self.clock() + timeout
            self.open[transaction.transactional_id] = transaction

    def finish(self, transaction: Transaction, *, committed: bool) -> None:
        self.open.pop(transaction.transactional_id, None)
        for log in transaction.rows:
            log.finish(transaction, committed=committed)
        if committed:
            for group, offsets in transaction.offsets.items():
                self.commit_offsets(group, offsets, transaction.metadata[group])
        self.notify()

    def new_producer(self, transactional_id: str) -> int:
        """Fence older producers of that id, and return the epoch of the new one."""
        left_open = self.open.get(transactional_id)
        if left_open is not None:
            self.finish(left_open, committed=False)
        epoch = self.epochs.get(transactional_id, -1) + 1
        self.epochs[transactional_id] = epoch
        return epoch
