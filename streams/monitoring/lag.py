"""How far a group is behind its input, asked from the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection

    from streams.broker import Admin, Isolation


class PartitionLag(NamedTuple):
    """One partition: the group's committed next offset (``None`` for none yet) and the partition's end."""

    partition: TopicPartition
    committed: int | None
    beginning: int
    end: int

    @property
    def lag(self) -> int:
        """Records (and transaction markers) not yet processed and committed."""
        return self.end - max(self.beginning, self.committed or 0)


def measure_lag(
    admin: Admin,
    group: str,
    topics: Collection[str] | None = None,
    isolation: Isolation = "read_committed",
) -> list[PartitionLag]:
    """The lag of a group on every partition of ``topics``, or of the topics it has committed offsets for.

    A transaction's offsets are there a moment before its records can be read. Who asks whether a group is
    through with its own topics as well counts those already: ``isolation`` "read_uncommitted".

    Raises ``BrokerUnreachable``; topics that do not exist are left out.
    """
    existing = admin.topics()
    # Without topics, the group's offsets are asked of every partition there is, to see which it has.
    everywhere = admin.committed_offsets(group) if topics is None else {}
    wanted = {partition.topic for partition in everywhere} if topics is None else set(topics)
    partitions = [
        TopicPartition(topic, number)
        for topic in sorted(wanted & existing.keys())
        for number in range(existing[topic].partitions)
    ]
    committed = everywhere if topics is None else admin.committed_offsets(group, partitions)
    ends, beginnings = admin.end_offsets(partitions, isolation), admin.beginning_offsets(partitions)
    return [
        PartitionLag(partition, committed.get(partition), beginnings[partition], ends[partition])
        for partition in partitions
    ]
