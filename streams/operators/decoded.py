"""Fetched records whose values are decoded once, both for their event times and for processing."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.coroutines.awaitables import is_awaitable, unawaited
from streams.operators.stateless import LATEST
from streams.records import take
from streams.serde import nullable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from streams.records import Fetched, Headers, Rows

DECODED_AT_ONCE = 2_000
"""The maximum number of a partition's records held decoded, which takes more memory than bytes."""


TOMBSTONE: Final = (
    "a tombstone: the value is null, which this stream does not hand on; with app.stream(…, tombstones=True) "
    "the steps see it as None"
)


class Columns(NamedTuple):
    """The values and event times (milliseconds since the epoch) of records."""

    values: list[Any]
    times: list[int]
    failed: Collection[int]
    """Rows that have no value or no event time."""


class DecodedRecords:
    """``Fetched`` that decodes all its values at the first request for event times.

    ``take`` returns the columns only once: if a slice is processed again, its values are decoded again, as
    user code may have modified them.
    """

    __slots__ = ("_fetched", "_shared", "_start")

    def __init__(self, fetched: Fetched, shared: SharedColumns, start: int = 0) -> None:
        self._fetched = fetched
        self._shared = shared
        self._start = start

    @property
    def topic(self) -> str:
        return self._fetched.topic

    @property
    def partition(self) -> int:
        return self._fetched.partition

    @property
    def next_offset(self) -> int:
        return self._fetched.next_offset

    def __len__(self) -> int:
        return len(self._fetched)

    def keys(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return self._fetched.keys(rows)

    def values(self, rows: Rows | None = None) -> Sequence[bytes | None]:
        return self._fetched.values(rows)

    def timestamps(self, rows: Rows | None = None) -> Sequence[int]:
        return self._fetched.timestamps(rows)

    def offsets(self, rows: Rows | None = None) -> Sequence[int]:
        return self._fetched.offsets(rows)

    def headers(self, rows: Rows | None = None) -> Sequence[Headers | None] | None:
        return self._fetched.headers(rows)

    def slice(self, start: int, stop: int) -> DecodedRecords:
        return DecodedRecords(self._fetched.slice(start, stop), self._shared, self._start + start)

    def event_times(self) -> Sequence[int]:
        """The event time of each record; the one before if it has none."""
        return self._shared.columns().times[self._start : self._start + len(self)]

    def take(self) -> Columns | None:
        """Take values and event times; ``None`` if a record failed, or if they were taken before."""
        return self._shared.take(self._start, self._start + len(self))


class SharedColumns:
    """The columns that the slices of one ``DecodedRecords`` share."""

    __slots__ = ("_columns", "_decode", "_fetched", "_taken")

    def __init__(self, fetched: Fetched, decode: Callable[[Fetched], Columns]) -> None:
        self._fetched = fetched
        self._decode = decode
        self._columns: Columns | None = None
        self._taken = 0

    def columns(self) -> Columns:
        if self._columns is None:
            self._columns = self._decode(self._fetched)
        return self._columns

    def take(self, start: int, stop: int) -> Columns | None:
        columns = self.columns()
        if start < self._taken or any(start <= row < stop for row in columns.failed):
            return None
        self._taken = stop
        values = columns.values[start:stop]
        # Released here, so that values are freed once they are processed.
        columns.values[start:stop] = [None] * len(values)
        return Columns(values, columns.times[start:stop], ())


def pieces(fetched: Fetched, decode: Callable[[Fetched], Columns]) -> Iterator[DecodedRecords]:
    """Split records into pieces that are decoded separately, each when its event times are needed."""
    for start in range(0, len(fetched), DECODED_AT_ONCE):
        stop = min(len(fetched), start + DECODED_AT_ONCE)
        piece = fetched.slice(start, stop)
        yield DecodedRecords(piece, SharedColumns(piece, decode))


def value_reader(
    deserialize: Callable[[Sequence[Any]], Iterable[Any]], *, tombstones: bool
) -> Callable[[Sequence[bytes | None]], Iterable[Any]]:
    """A source's ``deserialize`` where values may be null: ``None`` or, without ``tombstones``, an error."""
    if tombstones:
        return nullable(deserialize)

    def read(payloads: Sequence[bytes | None]) -> Iterable[Any]:
        # As in ``nullable``, all() is the fastest check; an empty payload only takes the slower path.
        if all(payloads):
            return deserialize(payloads)
        first = next((row for row, payload in enumerate(payloads) if payload is None), None)
        return deserialize(payloads) if first is None else _up_to_tombstone(deserialize(payloads[:first]))

    return read


def _up_to_tombstone(values: Iterable[Any]) -> Iterator[Any]:
    yield from values
    raise ValueError(TOMBSTONE)


def decode(
    deserialize: Callable[[Sequence[Any]], Iterable[Any]],
    timestamp: Callable[[Any], Any],
    fetched: Fetched,
    *,
    table: bool,
) -> Columns:
    """Decode the values and extract their event times; a table's deletions keep their record's time.

    A record that fails has the event time of the one before; its policy applies when it is processed.
    """
    values, failed = _attempt(deserialize, fetched.values())
    rows = [row for row in range(len(values)) if row not in failed] if failed else range(len(values))
    if table:
        written = fetched.timestamps()
        found, untimed = _attempt(
            lambda rows: (written[row] if values[row] is None else timestamp(values[row]) for row in rows),
            rows,
        )
    else:
        found, untimed = _attempt(partial(map, timestamp), take(values, rows) if failed else values)
    if not failed and not untimed and _are_event_times(found):
        return Columns(values, found, ())
    for time in filter(is_awaitable, found):
        # Closed only: it fails again when the record is processed, and the policy applies then.
        unawaited(time)
    by_row = {
        row: time
        for at, (row, time) in enumerate(zip(rows, found, strict=True))
        if at not in untimed and _are_event_times([time])
    }
    times: list[int] = []
    for row in range(len(values)):
        times.append(by_row.get(row, times[-1] if times else 0))
    return Columns(values, times, [row for row in range(len(values)) if row not in by_row])


def _are_event_times(found: Sequence[Any]) -> bool:
    return not found or (set(map(type, found)) <= {int} and min(found) >= 0 and max(found) < LATEST)


def _attempt(
    transform: Callable[[Sequence[Any]], Iterable[Any]], column: Sequence[Any]
) -> tuple[list[Any], set[int]]:
    """One result for each element, ``None`` for those that failed, and the positions of these."""
    results: list[Any] = []
    failed: set[int] = set()
    while len(results) < len(column):
        with suppress(Exception):  # fails again when the record is processed
            results.extend(transform(column[len(results) :] if results else column))
        if len(results) < len(column):
            failed.add(len(results))
            results.append(None)
    # More results than records: an error in the serde, reported when the records are processed.
    return (results, failed) if len(results) == len(column) else ([None] * len(column), {*range(len(column))})
