"""Reading topics from one end to the other, in no group."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streams.broker import BEGINNING, GroupSettings, Isolation
from streams.errors import BrokerError, TopicError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from streams.broker import Broker
    from streams.records import Fetched

CHUNK_RECORDS = 10_000
PATIENCE_SECONDS = 30.0


def read_to_end(
    broker: Broker, topics: Collection[str], *, isolation: Isolation = "read_committed"
) -> Iterator[Fetched]:
    """What the topics hold now, from the oldest record to the ends they have at the call.

    Each partition comes in offset order. Raises ``TopicError`` for a topic that does not exist, and
    ``BrokerError`` when nothing arrives for half a minute although there is more.
    """
    admin = broker.admin()
    existing = admin.topics()
    missing = sorted(set(topics) - existing.keys())
    if missing:
        raise TopicError(f"topics do not exist: {', '.join(missing)}")
    partitions = [
        TopicPartition(topic, number) for topic in topics for number in range(existing[topic].partitions)
    ]
    beginnings = admin.beginning_offsets(partitions)
    waiting = {
        partition: end
        for partition, end in admin.end_offsets(partitions, isolation).items()
        if end > beginnings[partition]
    }
    admin.close()
    if not waiting:
        return
    consumer = broker.consumer(
        GroupSettings(group="streams-reading", isolation=isolation, protocol="classic")
    )
    try:
        consumer.assign(dict.fromkeys(waiting, BEGINNING))
        patience = time.monotonic() + PATIENCE_SECONDS
        while waiting:
            polled = consumer.poll(CHUNK_RECORDS, 0.2)
            reached = {
                TopicPartition(item.topic, item.partition): item.next_offset for item in polled.fetched
            }
            for partition, offset in [*reached.items(), *polled.ends.items()]:
                if partition in waiting and offset >= waiting[partition]:
                    del waiting[partition]
            if reached:
                patience = time.monotonic() + PATIENCE_SECONDS
                yield from polled.fetched
            elif time.monotonic() > patience:
                raise BrokerError(
                    f"nothing arrived for {PATIENCE_SECONDS:.0f} s; not at their end: "
                    f"{', '.join(map(str, sorted(waiting)))}"
                )
    finally:
        consumer.close()
