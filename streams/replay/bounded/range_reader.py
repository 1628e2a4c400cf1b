"""Reads a range of one partition in pieces of a fixed size, whatever the polls return."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streams.broker import GroupSettings
from streams.errors import BrokerError, TopicError
from streams.events import Event, get_logger
from streams.records import FetchedLists, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.broker import Broker, Consumer
    from streams.records import Fetched, Headers
    from streams.replay.bounded.throttle import Throttle

POLL_RECORDS: Final = 5_000
POLL_SECONDS: Final = 0.2
SILENCE_SECONDS: Final = 60.0
"""How long no record may arrive before the end of the range."""


def read_range(
    broker: Broker,
    partition: TopicPartition,
    start: int,
    end: int,
    *,
    size: int,
    throttle: Throttle,
    group: str = "streams-replay",
) -> Iterator[FetchedLists]:
    """The committed records with ``start <= offset < end``, in pieces of ``size``, the last one smaller.

    A range may end with transaction markers or aborted records, which are never delivered. Raises
    ``TopicError`` if the log no longer has the range, and ``BrokerError`` if nothing arrives for a minute,
    e.g. because a transaction before its end stays open.
    """
    if start >= end:
        return
    consumer = broker.consumer(
        GroupSettings(group=group, isolation="read_committed", protocol="classic", reports_out_of_range=True)
    )
    columns = _Columns(partition)
    try:
        consumer.assign({partition: start})
        for fetched in _until(consumer, partition, start, end):
            throttle.spend(fetched)
            columns.add(fetched)
            while len(columns) >= size:
                yield columns.take(size)
        if len(columns):
            yield columns.take(len(columns))
    finally:
        consumer.close()


def _until(consumer: Consumer, partition: TopicPartition, start: int, end: int) -> Iterator[Fetched]:
    deadline = time.monotonic() + SILENCE_SECONDS
    reached, reported = start, False
    while reached < end:
        polled = consumer.poll(POLL_RECORDS, POLL_SECONDS)
        if partition in polled.out_of_range:
            lost = polled.out_of_range[partition]
            raise TopicError(
                f"{partition} has no offset {lost.offset} any more: it has {lost.beginning} to {lost.end}",
                hint="records were deleted by retention while they were being replayed: begin later, or keep "
                "them longer (retention.ms)",
            )
        for fetched in polled.fetched:
            reached = fetched.next_offset
            yield fetched if reached <= end else _before(fetched, end)
        reached = max(reached, polled.ends.get(partition, 0))
        now = time.monotonic()
        if polled.fetched:
            deadline = now + SILENCE_SECONDS
        elif reached < end and now > deadline:
            raise BrokerError(
                f"{partition} was read to offset {reached}, and nothing arrived for {SILENCE_SECONDS:.0f} s: "
                f"the range ends at {end}",
                hint="a transaction before that offset is open: wait until its producer ends it, or abort it",
            )
        elif partition in polled.ends and reached < end and not reported:
            reported = True
            get_logger().info(
                Event.REPLAY_WAITS,
                partition=str(partition),
                offset=reached,
                end=end,
                hint="a transaction before the end of the range is open",
            )


def _before(fetched: Fetched, end: int) -> Fetched:
    """The records before an offset."""
    offsets = fetched.offsets()
    return fetched.slice(0, next(row for row, offset in enumerate(offsets) if offset >= end))


class _Columns:
    """Records of one partition that wait until there are enough of them."""

    def __init__(self, partition: TopicPartition) -> None:
        self._partition = partition
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._timestamps: list[int] = []
        self._offsets: list[int] = []
        self._headers: list[Headers | None] = []

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, fetched: Fetched) -> None:
        self._keys += fetched.keys()
        self._values += fetched.values()
        self._timestamps += fetched.timestamps()
        self._offsets += fetched.offsets()
        self._headers += fetched.headers() or [None] * len(fetched)

    def take(self, count: int) -> FetchedLists:
        headers = self._headers[:count]
        taken = FetchedLists(
            self._partition.topic,
            self._partition.partition,
            self._keys[:count],
            self._values[:count],
            self._timestamps[:count],
            self._offsets[:count],
            headers if any(headers) else None,
        )
        for column in (self._keys, self._values, self._timestamps, self._offsets, self._headers):
            del column[:count]
        return taken
