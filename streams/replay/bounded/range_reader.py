"""Reads a range of one partition in pieces of a fixed size, whatever the polls return."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from streams.broker import GroupSettings
from streams.errors import BrokerError, TopicError
from streams.events import Event, get_logger
from streams.records import total_bytes
from streams.replay.bounded.joined import JoinedFetched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.broker import Broker, Consumer
    from streams.records import Fetched, TopicPartition
    from streams.replay.bounded.throttle import Throttle

POLL_RECORDS: Final = 20_000
POLL_SECONDS: Final = 0.2
SILENCE_SECONDS: Final = 60.0
"""How long no record may arrive before the end of the range."""

PIECE_BYTES: Final = 16_000_000
"""A piece has no more records after the one with which its keys and values have so many bytes."""


def read_range(
    broker: Broker,
    partition: TopicPartition,
    start: int,
    end: int,
    *,
    size: int,
    throttle: Throttle,
    group: str = "streams-replay",
) -> Iterator[Fetched]:
    """The committed records with ``start <= offset < end``, in pieces of ``size``, the last one smaller.

    Those of large records are smaller too, see ``PIECE_BYTES``. A range may end with transaction markers or
    aborted records, which are never delivered. Raises ``TopicError`` if the log no longer has the range, and
    ``BrokerError`` if nothing arrives for a minute, e.g. because a transaction before its end stays open.
    """
    if start >= end:
        return
    consumer = broker.consumer(
        GroupSettings(group=group, isolation="read_committed", protocol="classic", reports_out_of_range=True)
    )
    waiting = _Waiting(size)
    try:
        consumer.assign({partition: start})
        # A poll that completes a piece, and no more, saves that its records are cut and joined.
        for fetched in _until(consumer, partition, start, end, lambda: waiting.missing):
            throttle.spend(fetched)
            yield from waiting.add(fetched)
        yield from waiting.rest()
    finally:
        consumer.close()


def _until(
    consumer: Consumer, partition: TopicPartition, start: int, end: int, wanted: Callable[[], int]
) -> Iterator[Fetched]:
    deadline = time.monotonic() + SILENCE_SECONDS
    reached, reported = start, False
    while reached < end:
        polled = consumer.poll(min(POLL_RECORDS, wanted()), POLL_SECONDS)
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


class _Waiting:
    """Records of one partition that wait until there are enough for a piece.

    Where pieces end depends on the records alone: after ``size`` of them, or after the one with which
    ``PIECE_BYTES`` are reached.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[Fetched] = []
        self._rows = 0
        self._bytes = 0
        """Of keys and values."""

    @property
    def missing(self) -> int:
        """How many records complete the next piece at most."""
        return self._size - self._rows

    def add(self, fetched: Fetched) -> Iterator[Fetched]:
        """Append records, and return the pieces that are now complete."""
        # Its columns are read here and by the task.
        fetched = JoinedFetched([fetched])
        while len(fetched):
            bytes_ = total_bytes(fetched.keys()) + total_bytes(fetched.values())
            rows, left = len(fetched), PIECE_BYTES - self._bytes
            if self._rows + rows < self._size and bytes_ < left:
                self._append(fetched, bytes_)
                return
            stop = min(rows, self._size - self._rows)
            if bytes_ >= left:
                stop = min(stop, _rows_of(fetched, left))
            self._append(fetched.slice(0, stop), 0)
            yield from self.rest()
            fetched = fetched.slice(stop, rows)

    def rest(self) -> Iterator[Fetched]:
        """The records that wait, as the last piece."""
        if self._parts:
            parts, self._parts, self._rows, self._bytes = self._parts, [], 0, 0
            yield parts[0] if len(parts) == 1 else JoinedFetched(parts)

    def _append(self, fetched: Fetched, bytes_: int) -> None:
        self._parts.append(fetched)
        self._rows += len(fetched)
        self._bytes += bytes_


def _rows_of(fetched: Fetched, bytes_: int) -> int:
    """The number of first records whose keys and values have so many bytes together; all have more."""
    sizes = [
        len(key or b"") + len(value or b"")
        for key, value in zip(fetched.keys(), fetched.values(), strict=True)
    ]
    return next(row for row, size in enumerate(accumulate(sizes), 1) if size >= bytes_)
