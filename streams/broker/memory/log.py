"""The log of a partition, and the state of transactions in it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from streams.records import FetchedLists, Headers, TopicPartition, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.broker import Isolation
    from streams.broker.memory.group import Group
    from streams.records import Output, Rows

T = TypeVar("T")

Ranges: TypeAlias = "list[tuple[int, int]]"
"""Ranges of positions in a log's columns: (first, last + 1)."""


class Log:
    """The log of a partition: columns of records in offset order, with aborted and open transactions.

    A transaction's marker has an offset but no row. Aborted records keep their rows.
    """

    __slots__ = (
        "_aborted",
        "_any_headers",
        "_headers",
        "_keys",
        "_offsets",
        "_open",
        "_timestamps",
        "_values",
        "next_offset",
        "start",
    )

    def __init__(self) -> None:
        self.start = 0
        self.next_offset = 0
        self._offsets: list[int] = []
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._timestamps: list[int] = []
        self._headers: list[Headers | None] = []
        self._any_headers = False
        self._aborted: Ranges = []
        self._open: dict[Transaction, int] = {}

    def append(self, columns: Columns, transaction: Transaction | None) -> None:
        count = len(columns.keys)
        row = len(self._offsets)
        if transaction is not None:
            self._open.setdefault(transaction, self.next_offset)
            ranges = transaction.rows.setdefault(self, [])
            if ranges and ranges[-1][1] == row:
                ranges[-1] = (ranges[-1][0], row + count)
            else:
                ranges.append((row, row + count))
        self._offsets.extend(range(self.next_offset, self.next_offset + count))
        self._keys.extend(columns.keys)
        self._values.extend(columns.values)
        self._timestamps.extend(columns.timestamps)
        if columns.headers is None:
            self._headers.extend([None] * count)
        else:
            self._headers.extend(list(entry) if entry else None for entry in columns.headers)
            self._any_headers = True
        self.next_offset += count

    def finish(self, transaction: Transaction, *, committed: bool) -> None:
        """Write the transaction's marker."""
        del self._open[transaction]
        self.next_offset += 1
        if not committed:
            for rows in transaction.rows[self]:
                insort(self._aborted, rows)

    def end(self, isolation: Isolation) -> int:
        """The offset up to which readers can read: for committed reads, the last stable offset."""
        if isolation == "read_committed" and self._open:
            return min(self._open.values())
        return self.next_offset

    def first_at(self, time: int, isolation: Isolation) -> int:
        """The offset of the first record with this timestamp or a later one; the end if there is none."""
        end = self.end(isolation)
        first, last = (bisect_left(self._offsets, offset) for offset in (self.start, end))
        rows = range(first, last)
        return next((self._offsets[row] for row in rows if self._timestamps[row] >= time), end)

    def readable(self, offset: int, isolation: Isolation, limit: int) -> tuple[Ranges, int]:
        """Up to ``limit`` rows from ``offset`` on, and the offset to continue from."""
        end = self.end(isolation)
        if offset >= end:
            return [], offset
        row = bisect_left(self._offsets, offset)
        stop = bisect_left(self._offsets, end)
        hidden = self._aborted if isolation == "read_committed" else []
        gap = bisect_right(hidden, row, key=itemgetter(1))
        ranges: Ranges = []
        while row < stop and limit > 0:
            gap_start, gap_stop = hidden[gap] if gap < len(hidden) else (stop, stop)
            until = min(gap_start, stop, row + limit)
            if until > row:
                ranges.append((row, until))
                limit -= until - row
                row = until
            if row >= gap_start:
                row = gap_stop
                gap += 1
        # After the last readable row there are only markers and aborted rows, which a reader skips.
        return ranges, self._offsets[row] if row < stop else end

    def fetched(self, partition: TopicPartition, ranges: Ranges) -> FetchedLists:
        """The columns of these rows."""
        headers = _cut(self._headers, ranges) if self._any_headers else None
        return FetchedLists(
            partition.topic,
            partition.partition,
            _cut(self._keys, ranges),
            _cut(self._values, ranges),
            _cut(self._timestamps, ranges),
            _cut(self._offsets, ranges),
            headers if headers is not None and any(headers) else None,
        )


def _cut(column: list[T], ranges: Ranges) -> list[T]:
    if len(ranges) == 1:
        ((first, last),) = ranges
        return column[first:last]
    return [element for first, last in ranges for element in column[first:last]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of one partition."""

    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    timestamps: Sequence[int]
    headers: Sequence[Headers | None] | None

    @classmethod
    def of(cls, output: Output, rows: Rows | None) -> Columns:
        """These rows of an output; all for ``None``."""
        return cls(
            take(output.keys, rows),
            take(output.values, rows),
            take(output.timestamps, rows),
            None if output.headers is None else take(output.headers, rows),
        )


@dataclass(eq=False, slots=True)
class Transaction:
    """An open transaction: its rows and offsets. ``failed`` means that it can only abort."""

    transactional_id: str
    rows: dict[Log, Ranges] = field(default_factory=dict)
    offsets: dict[Group, dict[TopicPartition, int]] = field(default_factory=dict)
    metadata: dict[Group, dict[TopicPartition, str]] = field(default_factory=dict)
    """What is to stand beside the offsets."""
    deadline: float = math.inf
    failed: bool = False
