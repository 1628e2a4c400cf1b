"""Reads single records at their coordinates, without a group."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeAlias

from streams.broker import GroupSettings
from streams.errors import BrokerError, TopicError
from streams.records import Record, TopicPartition

if TYPE_CHECKING:
    from streams.broker import Admin, Broker, Consumer

SECONDS: Final = 30.0
"""Longest wait for one record."""

POLL_SECONDS: Final = 0.2

Bytes: TypeAlias = "Record[bytes | None, bytes | None]"


class RecordReader:
    """Reads the records that a trace names, one at a time. Close it in the end."""

    def __init__(self, broker: Broker) -> None:
        self._consumer: Consumer = broker.consumer(GroupSettings(group="streams-trace", protocol="classic"))
        self._admin: Admin = broker.admin()
        self._topics = self._admin.topics()
        self._found: dict[tuple[str, int, int], Bytes | str] = {}

    def close(self) -> None:
        """Release the clients."""
        self._consumer.close()
        self._admin.close()

    def partitions(self, topic: str) -> int:
        """The number of a topic's partitions. Raises ``TopicError`` if it does not exist."""
        if topic not in self._topics:
            raise TopicError(
                f"topic {topic} does not exist", hint="list the topics with: streams topics list"
            )
        return self._topics[topic].partitions

    def exists(self, topic: str) -> bool:
        """Whether the cluster has the topic."""
        return topic in self._topics

    def ends(self, place: TopicPartition) -> tuple[int, int]:
        """The offsets of the oldest record that exists and of the end of what is committed."""
        return self._admin.beginning_offsets([place])[place], self._admin.end_offsets([place])[place]

    def at_time(self, place: TopicPartition, timestamp: int) -> int:
        """The offset of the first record with this timestamp or a later one."""
        return self._admin.offsets_for_times({place: timestamp})[place]

    def required(self, topic: str, partition: int, offset: int) -> Bytes:
        """The record there. Raises ``TopicError`` if there is none, with the reason."""
        count = self.partitions(topic)
        if not 0 <= partition < count:
            raise TopicError(f"topic {topic} has no partition {partition}: it has {count}, numbered from 0")
        found = self.read(topic, partition, offset)
        if isinstance(found, str):
            raise TopicError(f"{topic}-{partition} has no record at offset {offset}: {found}")
        return found

    def read(self, topic: str, partition: int, offset: int) -> Bytes | str:
        """The record there, or why there is none. Raises ``BrokerError`` if it does not arrive in time."""
        place = (topic, partition, offset)
        if place not in self._found:
            self._found[place] = self._read(TopicPartition(topic, partition), offset)
        return self._found[place]

    def _read(self, place: TopicPartition, offset: int) -> Bytes | str:
        if place.topic not in self._topics:
            return "the topic no longer exists"
        if not 0 <= place.partition < self._topics[place.topic].partitions:
            return "the topic no longer has this partition"
        first, end = self.ends(place)
        if offset < first:
            return f"it was deleted (retention); the oldest record has offset {first}"
        if offset >= end:
            return f"the end of what is committed is {end}"
        self._consumer.assign({place: offset})
        try:
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                polled = self._consumer.poll(1, POLL_SECONDS)
                for fetched in polled.fetched:
                    if fetched.offsets([0])[0] != offset:
                        return "it was compacted away, was aborted, or is a transaction's marker"
                    headers = fetched.headers([0])
                    return Record(
                        fetched.keys([0])[0],
                        fetched.values([0])[0],
                        fetched.timestamps([0])[0],
                        headers[0] if headers else None,
                        place.topic,
                        place.partition,
                        offset,
                    )
                if polled.ends.get(place, -1) > offset:
                    return "it was compacted away, was aborted, or is a transaction's marker"
        finally:
            self._consumer.assign({})
        raise BrokerError(f"{place} offset {offset} did not arrive within {SECONDS:.0f} s")
