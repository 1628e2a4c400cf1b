"""Input for bounded runs on the broker in memory, and what is written."""

from __future__ import annotations

import json
import random
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker import Broker


class Row(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes | None]] | None


def memory_broker(topics: Mapping[str, int]) -> MemoryBroker:
    broker = MemoryBroker(wall_clock=None)
    with closing(broker.admin()) as admin:
        admin.create_topics([NewTopic(name=name, partitions=count) for name, count in topics.items()])
    return broker


def send(broker: Broker, topic: str, rows: Sequence[tuple[bytes | None, Any, int]]) -> None:
    """Write records with JSON values."""
    with closing(broker.producer()) as producer:
        values = [None if value is None else json.dumps(value).encode() for _, value, _ in rows]
        producer.produce(Output(topic, [key for key, _, _ in rows], values, [time for *_, time in rows]))
        producer.flush(10)


def readings(seed: int, count: int, *, keys: int = 8, late: int = 400) -> list[tuple[bytes, Any, int]]:
    """Records a millisecond or some apart; their times are up to ``late`` out of order."""
    chance = random.Random(seed)
    found, now = [], 1_000
    for number in range(count):
        now += chance.randint(0, 9)
        key = b"k%d" % chance.randrange(keys)
        found.append(
            (key, {"n": number, "size": chance.randrange(100)}, max(0, now - chance.randrange(late)))
        )
    return found


def written(broker: Broker, topic: str) -> dict[int, list[Row]]:
    """A topic's records by partition."""
    found: dict[int, list[Row]] = {}
    for fetched in read_to_end(broker, [topic]):
        headers = fetched.headers() or [None] * len(fetched)
        rows = zip(fetched.keys(), fetched.values(), fetched.timestamps(), headers, strict=True)
        found.setdefault(fetched.partition, []).extend(map(Row._make, rows))
    return found
