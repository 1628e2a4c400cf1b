"""Detects from a sample which partitioner the producers of the input used, and warns where it matters.

Java clients and this library use murmur2. librdkafka's clients (confluent-kafka in Python, Go, .NET, Node.js
and others) use CRC32 by default, Sarama uses FNV-1a. A store works with any of them, as a key's records are
still in one partition. A join does not, if its topics were partitioned differently.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

from streams.broker import GroupSettings
from streams.errors import BrokerError
from streams.events import Event, get_logger
from streams.partitioning import murmur2, partition_for
from streams.records import TopicPartition
from streams.topology.graph import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.broker import Broker
    from streams.topology.graph import Topology

SAMPLE_SECONDS = 1.0
"""Longest time for reading the sample at a start; whatever was read by then is used."""

SAMPLE_RECORDS = 16
"""The number of last records of a partition in the sample."""

SAMPLE_PARTITIONS = 32
"""The largest number of partitions of a topic in the sample, evenly spread."""


class Placement(NamedTuple):
    """The placement of the sampled keys of a topic."""

    topic: str
    sampled: int
    """The number of different keys in the sample."""
    elsewhere: int
    """How many of them are in another partition than murmur2's."""
    fitting: frozenset[str]
    """The known partitioners that explain the placement of all of these keys."""

    @property
    def by(self) -> str:
        """The partitioner that was used, as text."""
        return " or ".join(sorted(self.fitting)) or "another partitioner, several, or other partition counts"


def check_key_placement(topology: Topology, broker: Broker, partitions: Mapping[str, int]) -> set[str]:
    """The input topics of stores whose sampled keys were not partitioned by murmur2.

    They are logged as warnings, as are joins of topics that were partitioned differently. ``partitions`` are
    the input topics with their partition counts. Never fails: if the broker does not answer, nothing is
    reported.
    """
    together = {
        step: [topic for topic in partitions if any(matches(wanted, topic) for wanted in topics)]
        for step, topics in topology.copartitions
    }
    outside = {
        topic: partitions[topic]
        for topics in together.values()
        for topic in topics
        if topic not in topology.repartitions and partitions[topic] > 1
    }
    if not outside:
        return set()
    try:
        placements = sample_placements(broker, outside)
    except BrokerError as error:
        get_logger().debug(Event.BROKER_TROUBLE, error=f"sample of keys: {error}")
        return set()
    for placement in placements.values():
        if placement.elsewhere:
            get_logger().warning(
                Event.KEYS_ELSEWHERE,
                topic=placement.topic,
                sampled=placement.sampled,
                elsewhere=placement.elsewhere,
                placed_by=placement.by,
                hint="its producers put keys in other partitions than Java clients do (murmur2): queries "
                "search all partitions for them, and a join with a topic that was partitioned differently "
                "misses them. With librdkafka: partitioner=murmur2_random",
            )
    internal = frozenset({MURMUR2})
    for step, topics in together.items():
        fitting = {topic: placements[topic].fitting for topic in topics if topic in placements}
        fitting |= {topic: internal for topic in topics if topic in topology.repartitions}
        if len(fitting) > 1 and not frozenset.intersection(*fitting.values()) and any(fitting.values()):
            get_logger().warning(
                Event.JOINED_KEYS_APART,
                step=step,
                topics={topic: " or ".join(sorted(found)) or "unknown" for topic, found in fitting.items()},
                hint="equal keys are in different partitions, so that this step misses most of them: add "
                ".repartition(name) to the stream of one of these topics, or let all producers use one "
                "partitioner and replay the input",
            )
    return {topic for topic, placement in placements.items() if placement.elsewhere}


def sample_placements(broker: Broker, topics: Mapping[str, int]) -> dict[str, Placement]:
    """The placement of the keys of the last records, by topic; ``topics`` with their partition counts.

    Topics without records with keys are omitted. Raises ``BrokerError``.
    """
    places = [
        TopicPartition(topic, number)
        for topic, count in topics.items()
        for number in range(0, count, -(-count // SAMPLE_PARTITIONS))
    ]
    admin = broker.admin()
    try:
        beginnings, ends = admin.beginning_offsets(places), admin.end_offsets(places)
    finally:
        admin.close()
    waiting = {place: ends[place] for place in places if ends[place] > beginnings[place]}
    found: dict[str, dict[bytes, set[int]]] = {}
    if waiting:
        consumer = broker.consumer(GroupSettings(group="streams-reading", protocol="classic"))
        try:
            consumer.assign(
                {place: max(beginnings[place], end - SAMPLE_RECORDS) for place, end in waiting.items()}
            )
            until = time.monotonic() + SAMPLE_SECONDS
            while waiting and (left := until - time.monotonic()) > 0:
                polled = consumer.poll(SAMPLE_RECORDS * len(places), min(left, 0.2))
                reached = dict(polled.ends)
                for fetched in polled.fetched:
                    reached[TopicPartition(fetched.topic, fetched.partition)] = fetched.next_offset
                    keys = found.setdefault(fetched.topic, {})
                    # Without a key, or with an empty one, a record may be in any partition.
                    for key in filter(None, fetched.keys()):
                        keys.setdefault(key, set()).add(fetched.partition)
                waiting = {place: end for place, end in waiting.items() if reached.get(place, -1) < end}
        finally:
            consumer.close()
    return {topic: placement_of(topic, keys, topics[topic]) for topic, keys in found.items() if keys}


def placement_of(topic: str, keys: Mapping[bytes, Collection[int]], partitions: int) -> Placement:
    """The placement of keys found in these partitions of a topic with ``partitions`` partitions."""
    fitting = frozenset(
        name
        for name, hashed in _HASHES.items()
        if all(set(found) == {hashed(key) % partitions} for key, found in keys.items())
    )
    elsewhere = sum(set(found) != {partition_for(key, partitions)} for key, found in keys.items())
    return Placement(topic, len(keys), elsewhere, fitting)


def _fnv1a(key: bytes) -> int:
    """FNV-1a as Sarama uses it: the absolute value of the 32 bits as a signed number."""
    value = 0x811C9DC5
    for byte in key:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return (1 << 32) - value if value & (1 << 31) else value


MURMUR2 = "murmur2"

_HASHES: dict[str, Callable[[bytes], int]] = {
    MURMUR2: lambda key: murmur2(key) & 0x7FFFFFFF,
    "CRC32 (librdkafka's default)": zlib.crc32,
    "FNV-1a (Sarama's default)": _fnv1a,
}
"""Hash functions of known partitioners: the partition is the hash modulo the partition count."""
