"""Measure a group's lag from the broker's offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.jobs.record import jobs_topic
from streams.jobs.unfinished import count_due, read_unfinished
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection

    from streams.broker import Admin, Broker, Isolation


class PartitionLag(NamedTuple):
    """The lag of one partition. ``committed`` is the group's committed next offset, ``None`` without one."""

    partition: TopicPartition
    committed: int | None
    beginning: int
    end: int
    unfinished: int | None = None
    """For a queue of jobs: how many that have not ended could run."""

    @property
    def lag(self) -> int:
        """Records (and transaction markers) not yet processed and committed, or a queue's unfinished jobs."""
        if self.unfinished is not None:
            return self.unfinished
        return self.end - max(self.beginning, self.committed or 0)


def with_jobs(broker: Broker, group: str, lags: list[PartitionLag], now: int) -> list[PartitionLag]:
    """The same, with the lag of the app's queue of jobs, if it has one, as the number of jobs that could run.

    Jobs that are delayed, wait for their next attempt or are paused are no lag, and jobs that have ended are
    none even while an older one holds back the committed offset. ``now`` is in milliseconds since the epoch.
    Raises ``BrokerError``.
    """
    topic = jobs_topic(group)
    if not any(item.partition.topic == topic for item in lags):
        return lags
    counts = count_due(read_unfinished(broker, group), now)
    return [
        item._replace(unfinished=counts.get(item.partition.partition, 0))
        if item.partition.topic == topic
        else item
        for item in lags
    ]


def measure_lag(
    admin: Admin,
    group: str,
    topics: Collection[str] | None = None,
    isolation: Isolation = "read_committed",
) -> list[PartitionLag]:
    """Measure the lag of a group on all partitions of ``topics``, default: those with committed offsets.

    A transaction's offsets are visible a moment before its records can be read. To find out whether a group
    has finished its own internal topics too, count these records with ``isolation`` "read_uncommitted".

    Raises ``BrokerUnreachable``; topics that do not exist are left out.
    """
    existing = admin.topics()
    # Without topics, request the group's offsets of all partitions, to see for which it has any.
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
