"""The input: access-log records as JSON, the same ones in every run."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from streams.broker import NewTopic
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.broker import Broker

PARTITIONS = 4
RECORDS_PER_MILLISECOND = 10
"""Of event time, which is also the records' timestamps."""

FIRST_MILLISECOND = 1_790_000_000_000
WARM_UP_PARTS = 2
"""How many times the measured records come before them, for who needs to warm up."""

CHUNK_RECORDS = 10_000
FLUSH_SECONDS = 60.0

_ADDRESSES = [
    f"10.{second}.{third}.{fourth}" for second in range(8) for third in range(64) for fourth in range(20)
]
_METHODS = ["GET", "GET", "GET", "POST"]
_PATHS = ["/", "/login", "/cart", "/api/items", "/static/app.js", "/checkout"]
_PATHS += [f"/api/items/{number}" for number in range(1000)]
_PATH_WEIGHTS = list(accumulate([1.0] * 6 + [0.001] * 1000))
_STATUSES = {200: 80, 301: 5, 404: 9, 500: 4, 503: 2}
_STATUS_WEIGHTS = list(accumulate(_STATUSES.values()))
# Exponentially distributed around 40 ms.
_LATENCIES = [f"{-40 * math.log(1 - (step + 0.5) / 5000):.2f}" for step in range(5000)]


class Chunk(NamedTuple):
    """Some records as columns."""

    keys: list[bytes]
    values: list[bytes]
    timestamps: list[int]
    statuses: list[int]


@dataclass(slots=True)
class Tally:
    """What an output topic must hold: how many records, and the sum of their timestamps."""

    records: int = 0
    timestamps: int = 0

    def add(self, timestamps: list[int]) -> None:
        self.records += len(timestamps)
        self.timestamps += sum(timestamps)


def generate_chunks(count: int) -> Iterator[Chunk]:
    """``count`` records of about 230 bytes in order of event time; the same ones each time."""
    choose = random.Random(7)
    for start in range(0, count, CHUNK_RECORDS):
        size = min(CHUNK_RECORDS, count - start)
        addresses = choose.choices(_ADDRESSES, k=size)
        statuses = choose.choices(list(_STATUSES), cum_weights=_STATUS_WEIGHTS, k=size)
        timestamps = [
            FIRST_MILLISECOND + number // RECORDS_PER_MILLISECOND for number in range(start, start + size)
        ]
        fields = zip(
            timestamps,
            addresses,
            choose.choices(_METHODS, k=size),
            choose.choices(_PATHS, cum_weights=_PATH_WEIGHTS, k=size),
            statuses,
            choose.choices(range(200, 60_000), k=size),
            choose.choices(_LATENCIES, k=size),
            choose.choices(range(90, 130), k=size),
            strict=True,
        )
        # Not by a JSON library: there are millions, and all but eight fields are the same.
        values = [
            f'{{"ts":{timestamp},"ip":"{address}","method":"{method}","path":"{path}","status":{status},'
            f'"bytes":{size},"latency_ms":{latency},'
            f'"user_agent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) '
            f'Chrome/{version}.0.0.0 Safari/537.36"}}'.encode()
            for timestamp, address, method, path, status, size, latency, version in fields
        ]
        yield Chunk([address.encode() for address in addresses], values, timestamps, statuses)


@dataclass(frozen=True, slots=True)
class Input:
    """A topic with the warm-up records, then the measured ones.

    ``starts`` is where the measured ones begin. ``warm_up`` and ``measured`` tally the records of each part
    with a status of 400 or more.
    """

    topic: str
    records: int
    starts: dict[TopicPartition, int] = field(default_factory=dict)
    warm_up: Tally = field(default_factory=Tally)
    measured: Tally = field(default_factory=Tally)

    @property
    def warm_up_records(self) -> int:
        return self.records * WARM_UP_PARTS


def write_input(broker: Broker, topic: str, records: int, progress: Callable[[int], None]) -> Input:
    """Make the topic with ``records`` to measure after those to warm up. ``progress`` is told of each chunk.

    ``records`` is a multiple of ``CHUNK_RECORDS``. Event time goes on from the one part to the other, so that
    the measured records are never late.
    """
    assert records % CHUNK_RECORDS == 0
    admin = broker.admin()
    # The events' times are not now, by which the broker would delete them.
    admin.create_topics([NewTopic(name=topic, partitions=PARTITIONS, settings={"retention.ms": "-1"})])
    source = Input(topic, records)
    producer = broker.producer()
    written = 0
    for chunk in generate_chunks(records * (WARM_UP_PARTS + 1)):
        if written == source.warm_up_records:
            producer.flush(FLUSH_SECONDS)
            partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            source.starts.update(admin.end_offsets(partitions))
        producer.produce(Output(topic, chunk.keys, chunk.values, chunk.timestamps))
        part = source.warm_up if written < source.warm_up_records else source.measured
        part.add(
            [
                timestamp
                for timestamp, status in zip(chunk.timestamps, chunk.statuses, strict=True)
                if status >= 400
            ]
        )
        written += len(chunk.values)
        progress(len(chunk.values))
    producer.flush(FLUSH_SECONDS)
    producer.close()
    admin.close()
    return source
