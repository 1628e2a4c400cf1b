"""Aggregation in windows of fixed size: tumbling and hopping."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

from streams.aggregates.traced import lineage_of
from streams.durations import whole_milliseconds
from streams.eventtime.windows import Hopping, Tumbling, Windowed
from streams.operators import Operator
from streams.operators.aggregate import in_order, latest_times
from streams.operators.closed_windows import ClosedWindows
from streams.operators.folding import rows_by_key
from streams.operators.keys import held_keys
from streams.operators.origins import WindowChanges
from streams.operators.traced_folding import folding_of
from streams.records import take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.operators import Binding, Children, Forward
    from streams.operators.guard import Guard
    from streams.records import Batch
    from streams.state.definition import KeptWindows

RESULTS_AT_ONCE = 1_000
"""Results of small windows are forwarded together, about this many at a time."""

MOST_TIMES = 100_000
"""The number of results of open windows for which a task remembers the latest event times."""


@dataclass(frozen=True, slots=True)
class WindowedAggregate(Operator):
    """One accumulator for each window and key.

    ``heads`` names the steps that receive the latest results at each commit, the final results of closed
    windows, and the late records. ``grace`` and ``close_idle_after`` are in milliseconds. ``kept`` is where
    closed windows are kept for queries, if they are.
    """

    kind: ClassVar[str] = "window"
    stamps: ClassVar[bool] = True

    store: str
    window: Tumbling | Hopping
    grace: int
    aggregate: Aggregate[Any, Any]
    heads: WindowHeads
    close_idle_after: int | None = None
    kept: KeptWindows | None = None

    @property
    def idle_reach(self) -> int:
        advance = whole_milliseconds(self.window.advance) if isinstance(self.window, Hopping) else 0
        return 2 * (whole_milliseconds(self.window.size) + advance) + self.grace

    @property
    def late_child(self) -> str:
        return self.heads.late

    def forwards_at_commits_to(self, child: str) -> bool:
        return child in {self.heads.updates, self.heads.replacing}

    def bind(self, step: Binding, children: Children) -> Forward:
        return held_keys(step, self.store).entering(step.guard, _Windowing(self, step, children).run)


@dataclass(frozen=True, slots=True)
class WindowHeads:
    """The names of the steps that receive the outputs of a windowed step; unused ones do not exist."""

    updates: str
    final: str
    late: str
    replacing: str = ""
    """Receives updates, with retractions of windows that another one has replaced."""


class _Windowing:
    def __init__(self, operator: WindowedAggregate, step: Binding, children: Children) -> None:
        self._store = operator.store
        window = operator.window
        self._size = whole_milliseconds(window.size)
        self._advance = whole_milliseconds(window.advance) if isinstance(window, Hopping) else self._size
        self._lasts = self._size + operator.grace
        self._result = operator.aggregate.result
        self._step = step
        self._guard: Guard = step.guard
        self._account = step.account
        self._heads = operator.heads
        self._clock = step.clock
        self._state = step.windows(operator.store)
        self._closed = None if operator.kept is None else ClosedWindows(operator.kept, step)
        self._folding = folding_of(operator.aggregate, step.guard)
        self._updates = children.get(operator.heads.updates)
        self._final = children.get(operator.heads.final)
        late = children.get(operator.heads.late)
        self._keys = held_keys(step, operator.store)
        self._late = None if late is None else self._keys.leaving(late)
        self._highest: dict[int, int] = {}
        """The highest event time of all records in each window."""
        self._times: dict[int, dict[Any, int]] = {}
        """For updates: the highest event time of each result's records, by window start and key.

        Only of the records that this task has processed. Entries from a dropped slice are harmless, because
        its records are processed again.
        """
        self._changes: WindowChanges | None = None
        if self._updates is not None or self._final is not None:
            self._changes = WindowChanges(keeps=self._final is not None)
        step.at_slice_end(self._close)
        if self._changes is not None:
            step.at_commit(self._at_commit)
        if operator.close_idle_after is not None:
            step.close_idle_after(operator.close_idle_after, self._lasts)

    def run(self, batch: Batch[Any, Any]) -> None:
        batch = with_times(self._guard, batch)
        if not len(batch):
            return
        advance, lasts = self._advance, self._lasts
        earliest = min(batch.timestamps)
        # The oldest window of the earliest record: if it is open, no record is late.
        oldest = max(0, (earliest - self._size) // advance * advance + advance)
        floors: Sequence[int] | None = None
        if oldest + lasts <= self._clock.time and not self._within_grace():
            floors = [time - lasts for time in self._clock.times(batch)]
            batch, floors = self._without_late(batch, floors)
            if not len(batch):
                return
        if self._folding.record_wise:
            self._account.held(self._add_each(batch, floors))
            return
        before = batch
        batch, column = self._folding.column(batch)
        if floors is not None and len(batch) < len(before):
            floors = [time - lasts for time in self._clock.times(batch)]
        places = self._folding.places(batch)
        times = batch.timestamps
        ordered = in_order(times)
        rows = self._cut(times) if ordered and floors is None else self._rows_by_window(times, floors)
        for start in sorted(rows):
            self._add_to_window(start, rows[start], batch, column, places, ordered=ordered)
        self._account.held(_distinct(rows))

    def _cut(self, times: Sequence[int]) -> dict[int, range]:
        """The rows in each window, for ascending times: found by bisection instead of row by row."""
        size, advance = self._size, self._advance
        found: dict[int, range] = {}
        row = 0
        while row < len(times):
            last = times[row] - times[row] % advance
            for start in range(last, max(-1, last - size), -advance):
                if start not in found:
                    found[start] = range(bisect_left(times, start), bisect_left(times, start + size))
            row = bisect_left(times, last + advance, row)
        return {start: rows for start, rows in found.items() if rows}

    def _rows_by_window(
        self, times: Sequence[int], floors: Sequence[int] | None
    ) -> Mapping[int, Sequence[int]]:
        """The rows in each window that is open for them."""
        size, advance = self._size, self._advance
        by_latest = rows_by_key([time - time % advance for time in times])
        if size == advance:
            return by_latest
        found: dict[int, list[int]] = {}
        for last, rows in by_latest.items():
            for start in range(last, max(-1, last - size), -advance):
                taken = rows
                if floors is not None or start + size < last + advance:
                    taken = [
                        row
                        for row in rows
                        if start + size > times[row] and (floors is None or start > floors[row])
                    ]
                if start in found:
                    found[start] += taken
                elif taken:
                    found[start] = list(taken)
        # Some aggregates need events in order of arrival, and not grouped by advance.
        return {start: sorted(rows) for start, rows in found.items()}

    def _add_to_window(
        self,
        start: int,
        rows: Sequence[int],
        batch: Batch[Any, Any],
        column: Sequence[Any],
        places: Sequence[Place] | None,
        *,
        ordered: bool,
    ) -> None:
        folding, state = self._folding, self._state
        keys, times = batch.keys, batch.timestamps
        if len(rows) < len(keys):
            keys, times = take(keys, rows), take(times, rows)
            column = take(column, rows) if column else ()
            places = None if places is None else take(places, rows)
        if self._updates is not None:
            self._note_times(start, keys, times, ordered=ordered)
        if self._changes is not None:
            self._changes.note(start, batch, keys, rows if len(keys) < len(batch) else None)
        shares = folding.shares(keys, places)
        distinct = list(shares)
        added = folding.add(state.get_many(start, distinct), shares.values(), column, places)
        state.put_many(start, zip(distinct, added, strict=True))

    def _add_each(self, batch: Batch[Any, Any], floors: Sequence[int] | None) -> int:
        """Add record by record; return how many were added."""
        keys, times, state, folding = batch.keys, batch.timestamps, self._state, self._folding

        def change(row: int, entries: Sequence[Any], places: Sequence[Place] | None) -> None:
            key = keys[row]
            added = {
                start: folding.add_one(state.get(start, key), entries, places)
                for start in self._starts(times[row])
                if floors is None or start > floors[row]
            }
            for start, accumulator in added.items():
                state.put(start, key, accumulator)
                if self._updates is not None:
                    self._note_times(start, (key,), (times[row],), ordered=True)

        added_rows = folding.add_each(batch, change)
        if self._changes is not None:
            rows: dict[int, list[int]] = {}
            for row, time in enumerate(times):
                for start in self._starts(time):
                    rows.setdefault(start, []).append(row)
            for start, own in rows.items():
                self._changes.note(start, batch, take(keys, own), own)
        return added_rows

    def _note_times(self, start: int, keys: Sequence[Any], times: Sequence[int], *, ordered: bool) -> None:
        known, highest = self._times.setdefault(start, {}), self._highest.get(start, -1)
        if ordered and times[0] >= highest:
            # The common case, in which the last time of each key is its highest.
            known.update(zip(keys, times, strict=True))
            self._highest[start] = times[-1]
            return
        latest = latest_times(keys, times)
        known.update({key: time for key, time in latest.items() if time > known.get(key, -1)})
        self._highest[start] = max(highest, *latest.values())

    def _starts(self, time: int) -> list[int]:
        latest = time - time % self._advance
        starts = range(latest, max(-1, time - self._size), -self._advance)
        return [start for start in starts if start >= 0]

    def _within_grace(self) -> bool:
        """Whether all windows of each row are open for it, as no row is behind by more than the grace.

        So it is for most batches that are long enough for windows to close in them.
        """
        behind = self._clock.most_behind()
        return behind is not None and behind <= self._lasts - self._size

    def _without_late(
        self, batch: Batch[Any, Any], floors: Sequence[int]
    ) -> tuple[Batch[Any, Any], Sequence[int]]:
        """The rows with an open window; a window is open for a row if its start is above the row's floor."""
        times, advance = batch.timestamps, self._advance
        kept: list[int] = []
        late: list[int] = []
        for row, floor in enumerate(floors):
            (kept if times[row] - times[row] % advance > floor else late).append(row)
        if late:
            self._step.late(len(late))
            if self._late is not None:
                self._late(batch.select(late))
            return batch.select(kept), take(floors, kept)
        return batch, floors

    def _close(self) -> None:
        """Close the windows that stream time has passed, and forward their last updates and final results."""
        if self._closed is not None:
            self._closed.expire(self._clock.time)
        bound = self._clock.time - self._lasts + 1
        if bound <= self._state.expired:
            return
        if self._updates is not None:
            changed = self._state.changed_before(bound)
            self._forward(self._updates, self._heads.updates, changed, as_of=self._times)
            for start in [start for start in self._times if start < bound]:
                del self._times[start], self._highest[start]
        closed: Iterable[tuple[int, dict[Any, Any]]] = (
            (start, dict(entries)) for start, entries in self._state.windows(0, bound)
        )
        if self._closed is not None:
            closed = list(closed)
            for start, entries in closed:
                self._closed.add_window(start, start + self._size, entries)
        if self._final is not None:
            self._forward(self._final, self._heads.final, closed)
        self._state.expire(self._clock.time)
        if self._changes is not None:
            self._changes.close(bound)

    def _at_commit(self) -> None:
        assert self._changes is not None
        if self._updates is not None:
            changed = sorted(self._state.changed().items())
            self._forward(self._updates, self._heads.updates, changed, as_of=self._times)
            if sum(map(len, self._times.values())) > MOST_TIMES:
                self._times.clear()
                self._highest.clear()
        self._changes.committed()

    def _forward(
        self,
        to: Callable[[Batch[Any, Any]], None],
        head: str,
        windows: Iterable[tuple[int, Mapping[Any, Any]]],
        *,
        as_of: Mapping[int, Mapping[Any, int]] | None = None,
    ) -> None:
        """Forward the results of windows in that order, those of many small windows together.

        The event time of an open window's result is the latest of its records, from ``as_of``: a broker may
        reject a time in the future, as the window's end may be. That of a closed window's result is the last
        millisecond of the window, so that it belongs to the same time in a windowed step downstream.
        """
        result, changes = self._result, self._changes
        assert changes is not None
        keys: list[Any] = []
        values: list[Windowed[Any, Any]] = []
        times: list[int] = []
        starts: list[int] = []
        traced = self._folding.traced
        lineage: list[Any] = []
        own: list[Any] = []
        """The keys in the form in which the step holds them."""
        for start, held in windows:
            end = start + self._size
            self._account.made(len(held), head)
            shown = self._keys.shown(held)
            keys += shown
            values += [
                Windowed(key, start, end, result(accumulator))
                for key, accumulator in zip(shown, held.values(), strict=True)
            ]
            if as_of is None:
                times += [end - 1] * len(held)
            else:
                known, else_then = as_of.get(start, {}), max(start, min(self._clock.time, end - 1))
                times += map(known.get, held, repeat(else_then))
            starts += [start] * len(held)
            own += held
            if traced:
                lineage += map(lineage_of, held.values())
            if len(keys) >= RESULTS_AT_ONCE:
                found = changes.finder(starts, own)
                to(self._step.derive(self._store, keys, values, times, found, lineage if traced else None))
                keys, values, times, starts, own, lineage = [], [], [], [], [], []
        if keys:
            found = changes.finder(starts, own)
            to(self._step.derive(self._store, keys, values, times, found, lineage if traced else None))


def _distinct(rows: Mapping[int, Sequence[int]]) -> int:
    """How many rows there are in windows that may overlap."""
    if len(rows) == 1:
        return len(next(iter(rows.values())))
    found = 0
    reached = 0
    if all(type(own) is range for own in rows.values()):
        for start in sorted(rows):
            own = rows[start]
            found += max(0, own[-1] + 1 - max(own[0], reached))
            reached = max(reached, own[-1] + 1)
        return found
    return len(set().union(*rows.values()))


def with_times(guard: Guard, batch: Batch[Any, Any]) -> Batch[Any, Any]:
    """The rows that have an event time; the policy applies to the others."""
    times = batch.timestamps
    if min(times) >= 0:
        return batch
    kept = []
    for row, time in enumerate(times):
        if time < 0:
            guard.refuse(batch, row, ValueError(f"a window needs an event time of 0 or later, got {time}"))
        else:
            kept.append(row)
    return batch.select(kept)
