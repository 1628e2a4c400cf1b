"""The inputs, identical in every run."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from streams.broker import NewTopic
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streams.broker import Broker

PARTITIONS = 4
RECORDS_PER_MILLISECOND = 10
"""Start of event time, which is also the records' timestamp."""

FIRST_MILLISECOND = 1_790_000_000_000
CHUNK_RECORDS = 10_000
FLUSH_SECONDS = 60.0

_ADDRESSES = [
    f"10.{second}.{third}.{fourth}" for second in range(8) for third in range(64) for fourth in range(20)
]
TEAMS = {address.encode(): f"team-{number % 100}" for number, address in enumerate(_ADDRESSES)}
"""The team of each address, for joins with the access log."""

_METHODS = ["GET", "GET", "GET", "POST"]
_PATHS = ["/", "/login", "/cart", "/api/items", "/static/app.js", "/checkout"]
_PATHS += [f"/api/items/{number}" for number in range(1000)]
_PATH_WEIGHTS = list(accumulate([1.0] * 6 + [0.001] * 1000))
_STATUSES = {200: 80, 301: 5, 404: 9, 500: 4, 503: 2}
_STATUS_WEIGHTS = list(accumulate(_STATUSES.values()))
# Exponentially distributed around 40 ms.
_LATENCIES = [f"{-40 * math.log(1 - (step + 0.5) / 5000):.2f}" for step in range(5000)]


class Chunk(NamedTuple):
    """Records as columns; ``statuses`` are the HTTP statuses in the values, if there are any."""

    keys: list[bytes]
    values: list[bytes]
    timestamps: list[int]
    statuses: Sequence[int] = ()


@dataclass(slots=True)
class Tally:
    """A checksum of an output, expected or found: the number of records, and the sum of a number for each."""

    records: int = 0
    checksum: int = 0

    def add(self, numbers: Sequence[int]) -> None:
        self.records += len(numbers)
        self.checksum += sum(numbers)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.records + other.records, self.checksum + other.checksum)


def generate_chunks(count: int) -> Iterator[Chunk]:
    """``count`` records of about 230 bytes in order of event time; always the same."""
    choose = random.Random(7)
    for start in range(0, count, CHUNK_RECORDS):
        size = min(CHUNK_RECORDS, count - start)
        addresses = choose.choices(_ADDRESSES, k=size)
        statuses = choose.choices(list(_STATUSES), cum_weights=_STATUS_WEIGHTS, k=size)
        timestamps = _timestamps(start, size)
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
        # Formatted by hand: there are millions, and all but eight fields are constant.
        values = [
            f'{{"ts":{timestamp},"ip":"{address}","method":"{method}","path":"{path}","status":{status},'
            f'"bytes":{size},"latency_ms":{latency},'
            f'"user_agent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) '
            f'Chrome/{version}.0.0.0 Safari/537.36"}}'.encode()
            for timestamp, address, method, path, status, size, latency, version in fields
        ]
        yield Chunk([address.encode() for address in addresses], values, timestamps, statuses)


def generate_small_chunks(count: int) -> Iterator[Chunk]:
    """Records with keys of 8 bytes and values of up to 8: repeatedly all of ``count`` keys, shuffled."""
    choose = random.Random(7)
    keys = [b"%08d" % number for number in range(count)]
    for round_start in itertools.count(step=count):
        choose.shuffle(keys)
        for start in range(0, count, CHUNK_RECORDS):
            part = keys[start : start + CHUNK_RECORDS]
            first = round_start + start
            values = [b"%d" % number for number in range(first, first + len(part))]
            yield Chunk(part, values, _timestamps(first, len(part)))


def generate_teams() -> Chunk:
    """A table's records: the team of each address of the access log, from before the log."""
    values = [f'{{"team":"{team}"}}'.encode() for team in TEAMS.values()]
    return Chunk(list(TEAMS), values, [FIRST_MILLISECOND - 1] * len(TEAMS))


def _timestamps(start: int, count: int) -> list[int]:
    return [FIRST_MILLISECOND + number // RECORDS_PER_MILLISECOND for number in range(start, start + count)]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an input.

    ``starts`` are its first offsets by partition. The tallies are those of the expected outputs for its
    records, by the names of jobs.
    """

    records: int
    starts: dict[TopicPartition, int]
    tallies: dict[str, Tally]


@dataclass(frozen=True, slots=True)
class Input:
    """A topic in consecutive parts; the first one is for warming up."""

    topic: str
    parts: list[Part] = field(default_factory=list)

    def records_before(self, part: int) -> int:
        """The number of records of all parts before this one."""
        return sum(part.records for part in self.parts[:part])

    def tally(self, job: str, first: int) -> Tally:
        """The tally of the expected output of a job that begins with the part ``first``."""
        return sum((part.tallies[job] for part in self.parts[first:]), start=Tally())


def make_topic(broker: Broker, name: str) -> None:
    """Create a topic without retention: the broker would delete the records by their event times."""
    admin = broker.admin()
    admin.create_topics([NewTopic(name=name, partitions=PARTITIONS, settings={"retention.ms": "-1"})])
    admin.close()


def write_input(
    broker: Broker,
    source: Input,
    chunks: Iterator[Chunk],
    sizes: Sequence[int],
    expected: Mapping[str, Callable[[Chunk], list[int]]],
) -> None:
    """Create and write the topic, with parts of these sizes, multiples of ``CHUNK_RECORDS``.

    ``expected`` are the numbers of jobs' outputs for a chunk's records, see ``Tally``.
    """
    make_topic(broker, source.topic)
    partitions = [TopicPartition(source.topic, number) for number in range(PARTITIONS)]
    admin = broker.admin()
    producer = broker.producer()
    starts = dict.fromkeys(partitions, 0)
    for size in sizes:
        assert size % CHUNK_RECORDS == 0
        part = Part(size, starts, {job: Tally() for job in expected})
        for chunk in itertools.islice(chunks, size // CHUNK_RECORDS):
            producer.produce(Output(source.topic, chunk.keys, chunk.values, chunk.timestamps))
            for job, numbers in expected.items():
                part.tallies[job].add(numbers(chunk))
        producer.flush(FLUSH_SECONDS)
        source.parts.append(part)
        starts = admin.end_offsets(partitions)
    producer.close()
    admin.close()
