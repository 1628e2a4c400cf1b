"""Convert partitions to and from the client library's class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import TopicPartition as ClientPartition

from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def to_client(partitions: Iterable[TopicPartition]) -> list[ClientPartition]:
    """Convert partitions to the client's class, without offsets."""
    return [ClientPartition(topic, partition) for topic, partition in partitions]


def with_offsets(
    positions: Mapping[TopicPartition, int], metadata: Mapping[TopicPartition, str] | None = None
) -> list[ClientPartition]:
    """Convert partitions to the client's class, with (logical) offsets and the metadata to commit."""
    if not metadata:
        return [ClientPartition(topic, partition, offset) for (topic, partition), offset in positions.items()]
    return [ClientPartition(*place, offset, metadata.get(place, "")) for place, offset in positions.items()]


def from_client(partitions: Iterable[ClientPartition]) -> list[TopicPartition]:
    """Convert partitions from the client's class."""
    return [TopicPartition(item.topic, item.partition) for item in partitions]
