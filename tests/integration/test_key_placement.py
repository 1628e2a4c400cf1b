"""Detecting the partitioners of real clients from a sample of a topic."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from streams.runtime.key_placement import sample_placements

pytestmark = pytest.mark.kafka


def test_the_partitioners_of_the_client_are_recognized(kafka_bootstrap, kafka, topic):
    partitioners = {
        None: "CRC32 (librdkafka's default)",
        "consistent": "CRC32 (librdkafka's default)",
        "fnv1a_random": "FNV-1a (Sarama's default)",
        "murmur2_random": "murmur2",
    }
    topics = {}
    for partitioner in partitioners:
        name = topics[partitioner] = topic(f"by-{partitioner}", partitions=4)
        settings = {} if partitioner is None else {"partitioner": partitioner}
        producer = Producer({"bootstrap.servers": kafka_bootstrap, **settings})
        for number in range(60):
            producer.produce(name, b"value", key=f"user-{number}".encode())
        assert producer.flush(30) == 0
    found = sample_placements(kafka, dict.fromkeys(topics.values(), 4))
    assert {topic: placement.by for topic, placement in found.items()} == {
        topics[partitioner]: by for partitioner, by in partitioners.items()
    }
    assert all(placement.sampled > 30 for placement in found.values())
