"""Records that a real broker deleted before they were processed, and topics created again, under workers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from tests.integration.conftest import Copy

pytestmark = pytest.mark.kafka

PROTOCOLS = pytest.mark.parametrize("protocol", ["consumer", "classic"])


def send(copy: Copy, start: int, stop: int, *, batch: int | None = None) -> None:
    """Write to the first partition, in batches of that many records."""
    producer = copy.broker.producer()
    step = batch or stop - start
    for first in range(start, stop, step):
        values: list[bytes | None] = [b"value-%d" % number for number in range(first, first + step)]
        producer.produce(Output(copy.input, values, values, [-1] * len(values), partition=0))
        producer.flush(30)
    producer.close()


def values(start: int, stop: int) -> Counter[str]:
    return Counter(f"value-{number}" for number in range(start, stop))


@PROTOCOLS
def test_a_worker_ends_when_its_group_lost_records_and_continues_when_configured(copy: Copy, protocol: str):
    place = TopicPartition(copy.input, 0)
    send(copy, 0, 10)
    first = copy.start(group_protocol=protocol)
    copy.wait_until_consumed()
    assert first.stop() == 0
    committed = copy.broker.admin().committed_offsets(copy.group)[place]
    send(copy, 10, 30)
    copy.broker.admin().delete_records({place: 17})
    second = copy.start(group_protocol=protocol)
    assert second.wait(60) == 11
    text = second.log.read_text()
    assert f"group {copy.group}, topic {copy.input}, partition 0: committed offset {committed}" in text
    assert "which has 17 to 30: 7 records" in text
    assert "out_of_range_reset=earliest" in text
    assert copy.broker.admin().committed_offsets(copy.group)[place] == committed
    third = copy.start(group_protocol=protocol, out_of_range_reset="earliest")
    copy.wait_until_consumed()
    assert copy.outputs() == values(0, 10) + values(17, 30)
    (event,) = third.events("offset out of range")
    assert (event["lost"], event["skipped"], event["offset"]) == (7, 7, committed)
    assert third.stop() == 0
    fourth = copy.start(group_protocol=protocol)
    send(copy, 30, 31)
    copy.wait_until_consumed()
    assert copy.outputs() == values(0, 10) + values(17, 31)
    assert fourth.stop() == 0


@PROTOCOLS
def test_retention_that_overtakes_a_running_worker_ends_it(copy: Copy, protocol: str):
    copy.environment["COPY_SLOW_SECONDS"] = "0.005"
    # Small fetches, so that most of the log is not in the worker's memory when it is deleted.
    consumer = '{"fetch.message.max.bytes": 1000, "queued.max.messages.kbytes": 1, "fetch.max.bytes": 1000, '
    consumer += '"message.max.bytes": 1000, "queued.min.messages": 1}'
    place = TopicPartition(copy.input, 0)
    # In many batches, as a fetch brings at least a complete one.
    send(copy, 0, 6_000, batch=100)
    worker = copy.start(group_protocol=protocol, consumer=consumer, max_poll_records=50)
    copy.wait_for(lambda: copy.lag() < 6_000, 60, "under way")
    copy.broker.admin().delete_records({place: 5_500})
    assert worker.wait(60) == 11
    text = worker.log.read_text()
    assert "which has 5500 to 6000" in text
    committed = copy.broker.admin().committed_offsets(copy.group)[place]
    # The records read before are processed and committed.
    assert copy.outputs() == values(0, committed)


def test_an_input_created_again_while_nothing_runs_is_read_from_its_beginning(copy: Copy):
    send(copy, 0, 10)
    worker = copy.start()
    copy.wait_until_consumed()
    assert worker.stop() == 0
    admin = copy.broker.admin()
    admin.delete_topics([copy.input])
    copy.wait_for(lambda: copy.input not in admin.topics(), 30, "deleted")
    copy.wait_for(lambda: admin.create_topics([NewTopic(name=copy.input, partitions=4)]), 30, "created again")
    send(copy, 10, 15)
    worker = copy.start()
    copy.wait_until_consumed()
    assert copy.outputs() == values(0, 15)
    assert worker.stop() == 0


@PROTOCOLS
def test_an_input_created_again_under_a_worker_is_not_mistaken_for_the_old_one(copy: Copy, protocol: str):
    send(copy, 0, 10)
    worker = copy.start(group_protocol=protocol)
    copy.wait_until_consumed()
    admin = copy.broker.admin()
    admin.delete_topics([copy.input])
    copy.wait_for(lambda: copy.input not in admin.topics(), 30, "deleted")
    copy.wait_for(lambda: admin.create_topics([NewTopic(name=copy.input, partitions=4)]), 30, "created again")
    send(copy, 10, 15)

    def settled() -> bool:
        return worker.process.poll() is not None or copy.outputs().total() == 15

    copy.wait_for(settled, 90, "it either reads the new topic or ends")
    code = worker.process.poll()
    if code is None:
        assert copy.outputs() == values(0, 15)
        assert worker.stop() == 0
    else:
        # Either the offset is out of range, or the topic was found deleted: both are reported.
        assert code in (3, 11)
