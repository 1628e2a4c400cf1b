"""Where the producers of the input have put its keys, from a sample, said where that matters.

Kafka Streams' clients and this library put a key where murmur2 says. librdkafka's clients (confluent-kafka in
Python, Go, .NET, Node.js and others) take CRC32 unless told otherwise, Sarama takes FNV-1a. A store does not
mind, as a key's records meet in one task all the same. A join does, if its topics are placed differently.
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
"""How long reading the sample may hold up a start. What has come by then is what there is."""

SAMPLE_RECORDS = 16
"""How many of the last records of a partition are looked at."""

SAMPLE_PARTITIONS = 32
"""How many partitions of a topic are looked at, evenly spread."""


class Placement(NamedTuple):
    """Where the keys lie that were found in a topic."""

    topic: str
    sampled: int
    """How many different keys were looked at."""
    elsewhere: int
    """How many of them do not lie where murmur2 puts them."""
    fitting: frozenset[str]
    """The partitioners, of those that are known, that put all of these keys where they lie."""

    @property
    def by(self) -> str:
        """The partitioner that was used, in words."""
        return " or ".join(sorted(self.fitting)) or "another partitioner, several, or other partition counts"


def check_key_placement(topology: Topology, broker: Broker, partitions: Mapping[str, int]) -> set[str]:
    """The input topics of stores whose keys lie elsewhere than murmur2 puts them, as far as a sample tells.

    They are logged as warnings, as are joins of topics that were placed differently. ``partitions`` are the
    input topics with their partition counts. Never fails: without an answer there is nothing to say.
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
                hint="its producers put keys elsewhere than Java clients do (murmur2): queries look for them "
                "in all partitions, and a join with a topic that was placed otherwise misses them. With "
                "librdkafka: partitioner=murmur2_random",
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
                hint="equal keys lie in different partitions, so that this step misses most of them: put "
                ".repartition(name) behind the stream of one of these topics, or have all producers use one "
                "partitioner and replay",
            )
    return {topic for topic, placement in placements.items() if placement.elsewhere}


def sample_placements(broker: Broker, topics: Mapping[str, int]) -> dict[str, Placement]:
    """Where the keys of the last records lie, by topic; ``topics`` with their partition counts.

    Topics without such records are left out. Raises ``BrokerError``.
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
                    # Without a key, or with an empty one, a record may go anywhere.
                    for key in filter(None, fetched.keys()):
                        keys.setdefault(key, set()).add(fetched.partition)
                waiting = {place: end for place, end in waiting.items() if reached.get(place, -1) < end}
        finally:
            consumer.close()
    return {topic: placement_of(topic, keys, topics[topic]) for topic, keys in found.items() if keys}


def placement_of(topic: str, keys: Mapping[bytes, Collection[int]], partitions: int) -> Placement:
    """What the partitions that keys were found in tell, of a topic with so many."""
    fitting = frozenset(
        name
        for name, hashed in _HASHES.items()
        if all(set(found) == {hashed(key) % partitions} for key, found in keys.items())
    )
    elsewhere = sum(set(found) != {partition_for(key, partitions)} for key, found in keys.items())
    return Placement(topic, len(keys), elsewhere, fitting)


def _fnv1a(key: bytes) -> int:
    """FNV-1a, of whose 32 bits, taken as a signed number, the sign does not count."""
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
"""What a key's partition follows from: the remainder of division by how many there are."""
