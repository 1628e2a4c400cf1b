"""The broker: it creates the clients, and simulates what a network and other processes do to them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from streams.broker.memory.admin import MemoryAdmin
from streams.broker.memory.appender import MemoryAppender
from streams.broker.memory.cluster import Cluster, StaleEnd
from streams.broker.memory.consumer import MemoryConsumer
from streams.broker.memory.group import Membership
from streams.broker.memory.log import Log
from streams.broker.memory.producer import MemoryProducer
from streams.broker.memory.topic import MemoryTopic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker import Consumer, GroupSettings, Isolation
    from streams.broker.memory.cluster import Step
    from streams.broker.throttling import Throttled
    from streams.records import TopicPartition

LARGEST_RECORD = 60_000_000
"""The maximum size of key, value and headers that clients accept, in bytes."""


class MemoryBroker:
    """An in-memory cluster. Its clients may be used from several threads, each client by one thread.

    ``clock`` returns seconds and determines poll deadlines, sessions and transaction time-outs. ``poll``
    waits in real time until something changes; a simulation with its own clock passes ``wait``, which is
    called once with the seconds that the poll would wait, and may use the broker. Clients reject a row whose
    key, value and headers have more than ``max_record_bytes``; the broker rejects rows by the topic's
    settings, and compares event times with ``wall_clock`` (milliseconds since the epoch; ``None`` accepts
    all). ``first`` returns, for a topic, the position of the member with which its ranges of partitions
    begin: with one partition per topic, the first member would otherwise get all of them.

    ``before``, if set, is called with a ``Step`` before each step of a client: what it raises is the client's
    error, and what else it does (expire a member, end a process) happens at that point.
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
        self._cluster = Cluster(clock, wait, max_record_bytes, first, wall_clock)

    @property
    def before(self) -> Callable[[Step], None] | None:
        """The hook that is called before each step of a client."""
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

    def appender(self, transactional_id: str) -> MemoryAppender:
        return MemoryAppender(self._cluster, transactional_id)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self._cluster)

    def throttled(self) -> Sequence[Throttled]:
        # There are no quotas in memory.
        return ()

    def expire(self, consumer: Consumer) -> None:
        """End the consumer's session as if its process were dead or frozen: others get its partitions.

        If the consumer polls again, its listener's ``lost`` is called, and it rejoins as a new member.
        """
        membership = consumer.group_metadata()
        assert isinstance(membership, Membership)
        with self._cluster.locked():
            group = self._cluster.group(membership.group)
            member = group.members.get(membership.member or "")
            if member is not None:
                group.remove(member)
                self._cluster.retarget(group)

    def truncate(self, partition: TopicPartition, offset: int) -> None:
        """Delete the records before ``offset``, as a topic's retention does."""
        with self._cluster.locked():
            log = self._cluster.existing_log(partition)
            log.start = max(log.start, min(offset, log.next_offset))

    def replace_leader(self, partition: TopicPartition, *, answers: int) -> None:
        """Have the old leader answer the next requests for the partition's end: with the end as it is now.

        So does a broker that stood still until another one had its partitions: it first answers what has
        waited in its sockets. Records come from the new leader.
        """
        with self._cluster.locked():
            log = self._cluster.existing_log(partition)
            ends: dict[Isolation, int] = {
                "read_committed": log.end("read_committed"),
                "read_uncommitted": log.end("read_uncommitted"),
            }
            self._cluster.stale_ends[partition] = StaleEnd(ends, answers)

    def add_partitions(self, topic: str, total: int) -> None:
        """Add partitions to a topic up to ``total``. Keys go to other partitions from then on."""
        with self._cluster.locked():
            before = self._cluster.topics[topic]
            logs = [*before.logs, *(Log() for _ in range(total - len(before.logs)))]
            description = replace(before.description, partitions=len(logs))
            self._cluster.topics[topic] = MemoryTopic(
                description, before.settings, logs, identifier=before.identifier
            )
            self._cluster.topics_changed()

    def topic_settings(self, topic: str) -> dict[str, str]:
        """The settings that the topic was created with."""
        with self._cluster.locked():
            return dict(self._cluster.topics[topic].settings)
