"""Partitions as the client library has them, and as everybody else does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import TopicPartition as ClientPartition

from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def plain(partitions: Iterable[TopicPartition]) -> list[ClientPartition]:
    """For the client, where only their names matter."""
    return [ClientPartition(topic, partition) for topic, partition in partitions]


def with_offsets(
    positions: Mapping[TopicPartition, int], metadata: Mapping[TopicPartition, str] | None = None
) -> list[ClientPartition]:
    """For the client, each with an offset or what stands for one, and with the text to commit beside it."""
    if not metadata:
        return [ClientPartition(topic, partition, offset) for (topic, partition), offset in positions.items()]
    return [ClientPartition(*place, offset, metadata.get(place, "")) for place, offset in positions.items()]


def placed(partitions: Iterable[ClientPartition]) -> list[TopicPartition]:
    """As everybody else has them."""
    return [TopicPartition(item.topic, item.partition) for item in partitions]
