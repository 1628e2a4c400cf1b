"""The input records that last changed the results of a step, for errors downstream of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.records import Batch, Rows, Trace, Tracing

MOST_KEPT = 20_000
"""The maximum number of results whose records are kept after a commit, for windows that close later."""

MOST_UNSORTED = 100_000
"""The maximum number of records whose columns are kept, which is free, before they are indexed by key."""

MOST_OF_A_KEY = 8
"""The maximum number of records kept for each key, for windows that are distinguished only by time."""


class LastChanges:
    """The input record that last changed the result of each key.

    Kept in memory only, and lost in a restart or a rebalance: it does not affect results. Records are looked
    up only when a result fails, so the columns of batches are kept unchanged up to a maximum.
    """

    def __init__(self) -> None:
        self._known = _Known()

    def __len__(self) -> int:
        return len(self._known)

    def note(self, batch: Batch[Any, Any], keys: Sequence[Any], rows: Rows | None = None) -> None:
        """Note rows (by default all) that changed the results of these keys, one key per row."""
        self._known.add(keys, batch.tracing(rows))

    def clear(self) -> None:
        """Discard all records; functions that ``finder`` has returned still find them."""
        self._known = _Known()

    def finder(self, keys: Sequence[Any]) -> Callable[[Rows], list[Trace | None]]:
        """A function that finds the records for rows with these keys; ``None`` for unknown ones."""
        return partial(self._known.find, keys)


class _Known:
    """The records of each key: an index, and the columns of batches that are not in it yet.

    For records of one partition, offsets are enough.
    """

    __slots__ = ("_last", "_place", "_unsorted", "_waiting")

    def __init__(self) -> None:
        self._place: tuple[str, int] | None = None
        self._last: dict[Any, int | Trace] = {}
        self._unsorted: list[tuple[Sequence[Any], Tracing]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._last) + self._waiting

    def add(self, keys: Sequence[Any], traces: Tracing) -> None:
        self._unsorted.append((keys, traces))
        self._waiting += len(keys)
        if self._waiting > MOST_UNSORTED:
            self._sort()

    def find(self, keys: Sequence[Any], rows: Rows) -> list[Trace | None]:
        self._sort()
        known = map(self._last.get, map(keys.__getitem__, rows))
        place = self._place
        return [(*place, item) if isinstance(item, int) and place is not None else item for item in known]  # type: ignore[misc]  # offsets are only stored with a place

    def _sort(self) -> None:
        for keys, traces in self._unsorted:
            if self._place is None:
                self._place = traces.place
            same = traces.place is not None and traces.place == self._place
            self._last.update(zip(keys, traces.find() if same else traces, strict=True))
        self._unsorted.clear()
        self._waiting = 0


class WindowChanges:
    """As ``LastChanges``, for each window and key. With ``keeps``, for windows that close after a commit."""

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._windows: dict[int, LastChanges] = {}

    def note(self, start: int, batch: Batch[Any, Any], keys: Sequence[Any], rows: Rows | None = None) -> None:
        """Note rows that changed the results of these keys in the window that starts at ``start``."""
        window = self._windows.get(start)
        if window is None:
            window = self._windows[start] = LastChanges()
        window.note(batch, keys, rows)

    def finder(self, starts: Sequence[int], keys: Sequence[Any]) -> Callable[[Rows], list[Trace | None]]:
        """A function that finds the records for rows with these windows' starts and keys."""
        finders = {
            start: self._windows[start].finder(keys) for start in set(starts) if start in self._windows
        }

        def find(rows: Rows) -> list[Trace | None]:
            return [
                None if (finder := finders.get(starts[row])) is None else finder([row])[0] for row in rows
            ]

        return find

    def close(self, bound: int) -> None:
        """Discard the windows that start before ``bound``."""
        for start in [start for start in self._windows if start < bound]:
            del self._windows[start]

    def committed(self) -> None:
        """Discard what is not needed after a commit, and the oldest windows above the maximum."""
        if not self._keeps:
            self._windows.clear()
            return
        kept = sum(map(len, self._windows.values()))
        for start in sorted(self._windows):
            if kept <= MOST_KEPT:
                return
            kept -= len(self._windows.pop(start))


class TimedChanges:
    """The last input records of each key with their event times, for sessions, sliding windows and joins."""

    def __init__(self) -> None:
        self._records: dict[Any, tuple[tuple[int, Trace], ...]] = {}

    def note(self, batch: Batch[Any, Any]) -> None:
        """Note the rows, each for its key."""
        found: dict[Any, list[tuple[int, Trace]]] = {}
        for key, time, trace in zip(
            batch.keys, batch.timestamps, batch.traces(range(len(batch))), strict=True
        ):
            found.setdefault(key, []).append((time, trace))
        records = self._records
        for key, own in found.items():
            # Moved to the end: the least recently updated keys are discarded first.
            records[key] = (*records.pop(key, ()), *own)[-MOST_OF_A_KEY:]
        while len(records) > MOST_KEPT:
            del records[next(iter(records))]

    def finder(self, places: Sequence[tuple[Any, int, int]]) -> Callable[[Rows], list[Trace | None]]:
        """A function that finds the last record of a key between two times, inclusive, for each row."""
        known = [self._records.get(key, ()) for key, _, _ in places]

        def find(rows: Rows) -> list[Trace | None]:
            return [_last_between(known[row], *places[row][1:]) for row in rows]

        return find

    def forget(self, keys: Iterable[Any]) -> None:
        """Discard these keys."""
        for key in keys:
            self._records.pop(key, None)


def _last_between(records: Sequence[tuple[int, Trace]], start: int, end: int) -> Trace | None:
    return next((trace for time, trace in reversed(records) if start <= time <= end), None)
