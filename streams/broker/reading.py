"""Read topics without joining a group."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streams.broker import BEGINNING, GroupSettings, Isolation
from streams.errors import BrokerError, TopicError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping

    from streams.broker import Broker, Consumer
    from streams.records import Fetched

CHUNK_RECORDS = 10_000
TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.2


def read_to_end(
    broker: Broker, topics: Collection[str], *, isolation: Isolation = "read_committed"
) -> Generator[Fetched, None, None]:
    """Read the topics from the oldest record to the ends that they have at the call.

    Records of a partition are in offset order. Raises ``TopicError`` for a topic that does not exist, and
    ``BrokerError`` if no records arrive for 30 seconds before the ends are reached.
    """
    starts = dict.fromkeys(find_partitions(broker, topics), BEGINNING)
    yield from read_from(broker, starts, isolation=isolation)


def find_partitions(broker: Broker, topics: Collection[str]) -> list[TopicPartition]:
    """The partitions of these topics. Raises ``TopicError`` for a topic that does not exist."""
    admin = broker.admin()
    try:
        existing = admin.topics()
    finally:
        admin.close()
    missing = sorted(set(topics) - existing.keys())
    if missing:
        raise TopicError(
            f"topics do not exist: {', '.join(missing)}", hint="list the topics with: streams topics"
        )
    return [TopicPartition(topic, number) for topic in topics for number in range(existing[topic].partitions)]


def read_from(
    broker: Broker, starts: Mapping[TopicPartition, int], *, isolation: Isolation = "read_committed"
) -> Generator[Fetched, None, None]:
    """Read partitions from an offset (or ``BEGINNING``) to the ends that they have at the call.

    Records of a partition are in offset order. Raises ``BrokerError`` if no records arrive for 30 seconds
    before the ends are reached.
    """
    admin = broker.admin()
    try:
        beginnings = admin.beginning_offsets(starts.keys())
        waiting = {
            partition: end
            for partition, end in admin.end_offsets(starts.keys(), isolation).items()
            if end > max(beginnings[partition], starts[partition])
        }
    finally:
        admin.close()
    if not waiting:
        return
    consumer = _reader(broker, isolation)
    try:
        consumer.assign({partition: starts[partition] for partition in waiting})
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while waiting:
            polled = consumer.poll(CHUNK_RECORDS, POLL_SECONDS)
            reached = {
                TopicPartition(item.topic, item.partition): item.next_offset for item in polled.fetched
            }
            for partition, offset in [*reached.items(), *polled.ends.items()]:
                if partition in waiting and offset >= waiting[partition]:
                    del waiting[partition]
            if reached:
                deadline = time.monotonic() + TIMEOUT_SECONDS
                yield from polled.fetched
            elif time.monotonic() > deadline:
                raise BrokerError(
                    f"no records arrived for {TIMEOUT_SECONDS:.0f} s; partitions not read to their end: "
                    f"{', '.join(map(str, sorted(waiting)))}"
                )
    finally:
        consumer.close()


def follow(
    broker: Broker,
    starts: Mapping[TopicPartition, int],
    stopped: Callable[[], bool],
    *,
    isolation: Isolation = "read_committed",
) -> Generator[Fetched, None, None]:
    """Read partitions from an offset (or ``BEGINNING``, ``END``) on, until ``stopped``.

    At the ends it waits for new records. Records of a partition are in offset order.
    """
    consumer = _reader(broker, isolation)
    try:
        consumer.assign(starts)
        while not stopped():
            yield from consumer.poll(CHUNK_RECORDS, POLL_SECONDS).fetched
    finally:
        consumer.close()


def _reader(broker: Broker, isolation: Isolation) -> Consumer:
    return broker.consumer(GroupSettings(group="streams-reading", isolation=isolation, protocol="classic"))
