"""Records of one partition that several polls returned, as one piece."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from streams.records import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Fetched, Headers, Rows


class JoinedFetched:
    """``Fetched`` of others that follow each other: a column is only joined when it is read, and kept."""

    __slots__ = ("_columns", "_parts", "_starts", "partition", "topic")

    def __init__(self, parts: Sequence[Fetched]) -> None:
        self.topic = parts[0].topic
        self.partition = parts[0].partition
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]
        """The number of each part's first row, and of all rows."""
        self._columns: dict[str, Sequence[Any]] = {}

    @property
    def next_offset(self) -> int:
        return self._parts[-1].next_offset

    def __len__(self) -> int:
        return self._starts[-1]

    def keys(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return take(self._column("keys"), rows)

    def values(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return take(self._column("values"), rows)

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        return take(self._column("timestamps"), rows)

    def offsets(self, rows: Rows | None = None) -> Sequence[int]:
        first, stop = self._parts[0].offsets([0])[0], self.next_offset
        # Without a gap (of a transaction's marker), they need not be read.
        return take(range(first, stop) if stop - first == len(self) else self._column("offsets"), rows)

    def headers(self, rows: Rows | None = None) -> Sequence[Headers | None] | None:
        column = self._columns.get("headers")
        if column is None:
            found = [part.headers() for part in self._parts]
            lists = [own or [None] * len(part) for own, part in zip(found, self._parts, strict=True)]
            column = self._columns["headers"] = [*chain.from_iterable(lists)] if any(found) else []
        return take(column, rows) if column else None

    def slice(self, start: int, stop: int) -> Fetched:
        parts, starts = self._parts, self._starts
        if start == 0 and stop == len(self):
            return self
        first = min(bisect_right(starts, start), len(parts)) - 1
        if stop <= starts[first + 1]:
            return parts[first].slice(start - starts[first], stop - starts[first])
        last = bisect_right(starts, stop - 1) - 1
        return JoinedFetched(
            [
                part.slice(max(start - at, 0), min(stop - at, len(part)))
                for part, at in zip(parts[first : last + 1], starts[first:], strict=False)
            ]
        )

    def _column(self, name: str) -> Sequence[Any]:
        column = self._columns.get(name)
        if column is None:
            found = [getattr(part, name)() for part in self._parts]
            column = self._columns[name] = found[0] if len(found) == 1 else [*chain.from_iterable(found)]
        return column
