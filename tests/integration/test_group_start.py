"""``offset_reset=latest`` on a real broker: kills before the first commit, races, new partitions."""

from __future__ import annotations

from collections import Counter

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from streams.records import Output
from tests.integration.test_workers import held

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize(
    ("protocol", "guarantee"), [("consumer", "exactly_once"), ("classic", "at_least_once")]
)
def test_no_record_after_the_groups_start_is_skipped(copy, protocol, guarantee):
    settings = {
        "offset_reset": "latest",
        "group_protocol": protocol,
        "guarantee": guarantee,
        "session_timeout": 6,
        "transaction_timeout": 3,
        # With the classic protocol, members look for new partitions themselves.
        "consumer": '{"topic.metadata.refresh.interval.ms": 2000}',
    }
    copy.produce([f"before-{number}" for number in range(50)])
    # Workers that start together.
    workers = [copy.start(**settings) for _ in range(2)]
    copy.wait_for(lambda: sum(len(held(worker)) for worker in workers) == 4, 60, "all partitions are held")
    for worker in workers:
        worker.kill()
    assert sum(len(worker.events("group begins")) for worker in workers) >= 1
    between = [f"between-{number}" for number in range(50)]
    copy.produce(between)
    worker = copy.start(**settings)
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(between)
    assert not worker.events("group begins")
    # More partitions, with records at once.
    admin = AdminClient({"bootstrap.servers": copy.servers})
    for future in admin.create_partitions([NewPartitions(copy.input, 6)]).values():
        future.result()
    copy.wait_for(lambda: copy.broker.admin().topics()[copy.input].partitions == 6, 30, "six partitions")
    new = [f"new-{number}" for number in range(20)]
    producer = copy.broker.producer()
    values = [value.encode() for value in new]
    producer.produce(Output(copy.input, values, values, [-1] * len(values), partition=5))
    producer.flush(30)
    producer.close()
    copy.wait_for(lambda: len(held(worker)) == 6, 60, "the new partitions are held")
    copy.wait_until_consumed()
    assert copy.outputs() == Counter(between + new)
    (event,) = worker.events("partitions from their beginning")
    assert event["partitions"] == [f"{copy.input}-4", f"{copy.input}-5"]
    assert worker.stop() == 0
