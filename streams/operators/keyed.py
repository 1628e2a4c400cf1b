"""Windows that each key has of its own, as its events make them: what sessions and sliding windows share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.eventtime.windows import Windowed
from streams.operators import Operator
from streams.operators.aggregate import Folding, rows_by_key
from streams.operators.closed_windows import ClosedWindows
from streams.operators.keys import held_keys
from streams.operators.origins import TimedChanges
from streams.operators.window import with_times
from streams.state.deadlines import Deadlines, deadlines_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.operators import Binding, Children, Forward
    from streams.operators.closed_windows import Window
    from streams.operators.guard import Guard
    from streams.operators.window import WindowHeads
    from streams.records import Batch
    from streams.state.definition import KeptWindows

Event: TypeAlias = "tuple[int, int, int]"
"""Its time; its floor: what ended before that had closed when it came; its place in the column."""

_Result: TypeAlias = "tuple[Any, int, int, Any]"
"""Key, start, end and what is said of that window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedAggregate(Operator):
    """One accumulator for each window that a key's events make.

    ``heads`` and ``kept`` are as for ``WindowedAggregate``; ``grace`` and ``close_idle_after`` are
    milliseconds. Each key has one entry in ``store``, and deadlines in the store that goes with it.
    """

    kind: ClassVar[str] = "window"
    stamps: ClassVar[bool] = True

    store: str
    grace: int
    aggregate: Aggregate[Any, Any]
    heads: WindowHeads
    close_idle_after: int | None = None
    kept: KeptWindows | None = None

    def forwards_at_commits_to(self, child: str) -> bool:
        return child in {self.heads.updates, self.heads.replacing}


class KeyedWindows(ABC):
    """A ``KeyedAggregate`` at work in one task.

    ``lasts`` is how long after its end a window is open: it closes as soon as stream time is *greater* than
    its end plus that. ``horizon`` is how long after the last record everything has gone. Both are
    milliseconds.

    What ends before a certain time has closed: that time is the *floor*, at a row the one that follows from
    the stream time when that row had come. So what an event does depends on the events before it and not on
    how they were cut into batches.
    """

    replaces: ClassVar[bool] = False
    """Whether a window takes the place of those that lie in it."""

    def __init__(
        self, operator: KeyedAggregate, step: Binding, children: Children, *, lasts: int, horizon: int
    ) -> None:
        self._store = operator.store
        self._grace = operator.grace
        self._lasts = lasts
        self._step = step
        self._guard: Guard = step.guard
        self._clock = step.clock
        self._state = step.state(operator.store)
        self._deadlines: Deadlines[Any] = Deadlines(step.windows(deadlines_name(operator.store)))
        self._closed = None if operator.kept is None else ClosedWindows(operator.kept, step)
        self._aggregate = operator.aggregate
        self._folding = Folding(operator.aggregate, step.guard)
        heads = (operator.heads.updates, False), (operator.heads.replacing, True)
        self._updates = [(children[head], replacing) for head, replacing in heads if head in children]
        """Where updates go, and whether with those that take back what was replaced."""
        self._final = children.get(operator.heads.final)
        late = children.get(operator.heads.late)
        self._keys = held_keys(step, operator.store)
        self._late = None if late is None else self._keys.leaving(late)
        self._origins = TimedChanges()
        self._notes = bool(self._updates) or self._final is not None
        step.at_slice_end(self._close)
        if self._updates:
            step.at_commit(self._forward_updates)
        if operator.close_idle_after is not None:
            step.close_idle_after(operator.close_idle_after, horizon)

    def run(self, batch: Batch[Any, Any]) -> None:
        batch = with_times(self._guard, batch)
        if not len(batch):
            return
        floors = self._floors(batch)
        if floors is not None:
            batch = self._without(batch, self.late_rows(batch, floors))
            if not len(batch):
                return
        if self._folding.record_wise:
            late = self._add_each(batch)
        else:
            batch, column = self._folding.column(batch)
            late = self._add(batch, column) if len(batch) else []
        if self._notes and len(batch):
            self._origins.note(batch)
        # Of those whose company has failed: alone, they come too late.
        self._without(batch, late)

    # --- what sessions and sliding windows differ in

    @abstractmethod
    def late_rows(self, batch: Batch[Any, Any], floors: Sequence[int]) -> list[int]:
        """The rows that no window can take any more."""

    @abstractmethod
    def added(
        self,
        value: Any,
        events: Iterable[Event],
        column: Sequence[Any],
        places: Sequence[Place] | None,
    ) -> tuple[Any, list[int]]:
        """What a key has (``None`` for nothing) with events of its own, and the places of those too late."""

    @abstractmethod
    def due(self, value: Any) -> int:
        """The end of the window that closes first, or earlier: when to look at the key."""

    @abstractmethod
    def split(self, value: Any, floor: int) -> tuple[list[Window], Any]:
        """The windows that close, those that end before ``floor``, and what is left of the key."""

    @abstractmethod
    def windows(self, value: Any) -> Iterable[Window]:
        """The windows that a key has open."""

    @abstractmethod
    def newest(self, value: Any) -> int:
        """The highest event time of a key."""

    # --- what they share

    def _floors(self, batch: Batch[Any, Any]) -> list[int] | None:
        """Each row's floor; ``None`` where all that the rows could belong to is open."""
        if min(batch.timestamps) >= self._clock.time - self._grace:
            return None
        lasts = self._lasts
        return [time - lasts for time in self._clock.times(batch)]

    def _without(self, batch: Batch[Any, Any], late: list[int]) -> Batch[Any, Any]:
        """The rows that are not late; the others are counted and forwarded."""
        if not late:
            return batch
        self._step.late(len(late))
        if self._late is not None:
            self._late(batch.select(late))
        gone = set(late)
        return batch.select([row for row in range(len(batch)) if row not in gone])

    def _add(self, batch: Batch[Any, Any], column: Sequence[Any]) -> list[int]:
        times, state = batch.timestamps, self._state
        floors = self._floors(batch) or [-1] * len(batch)
        places = self._folding.places(batch)
        rows = rows_by_key(batch.keys)
        late: list[int] = []
        changed = {}
        for (key, own), before in zip(rows.items(), state.get_many(list(rows)), strict=True):
            events = ((times[row], floors[row], row) for row in own)
            after, missed = self.added(before, events, column, places)
            late += missed
            if len(missed) < len(own):
                changed[key] = after
                self._look(key, before, after)
        state.put_many(changed)
        return sorted(late)

    def _add_each(self, batch: Batch[Any, Any]) -> list[int]:
        keys, times, state = batch.keys, batch.timestamps, self._state
        floors = self._floors(batch) or [-1] * len(batch)
        late: list[int] = []

        def change(row: int, entries: Sequence[Any], places: Sequence[Place] | None) -> None:
            key = keys[row]
            before = state.get(key)
            after, missed = self.added(before, [(times[row], floors[row], 0)], entries, places)
            if missed:
                late.append(row)
            else:
                state.put(key, after)
                self._look(key, before, after)

        self._folding.add_each(batch, change)
        return late

    def _look(self, key: Any, before: Any, after: Any) -> None:
        """See to it that the key has a deadline that is early enough: one for what it was before will do."""
        due = self.due(after)
        if before is None or due < self.due(before):
            self._deadlines.add(due + self._lasts + 1, key)

    def _close(self) -> None:
        """Let go of the windows that stream time has passed, with what is still to be said about them."""
        now = self._clock.time
        if self._closed is not None:
            self._closed.expire(now)
        keys = self._deadlines.due(now)
        if not keys:
            return
        closed: dict[Any, list[Window]] = {}
        left = {}
        for key, value in zip(keys, self._state.get_many(keys), strict=True):
            if value is None:
                continue
            closing, rest = self.split(value, now - self._lasts)
            if closing:
                closed[key] = closing
            if rest is not None:
                self._deadlines.add(self.due(rest) + self._lasts + 1, key)
            left[key] = rest
        for forward, replacing in self._updates:
            self._forward(forward, self._changes(closed, replacing=replacing))
        if self._final is not None:
            result = self._aggregate.result
            self._forward(
                self._final,
                [
                    (key, start, end, result(accumulator))
                    for key, windows in closed.items()
                    for start, end, accumulator in windows
                ],
            )
        if self._closed is not None:
            self._closed.add(closed)
        self._state.put_many(left)
        self._origins.forget(key for key, rest in left.items() if rest is None)

    def _forward_updates(self) -> None:
        changed = self._state.changed()
        present = {key: value for key, value in changed.items() if value is not None}
        windows = {key: self.windows(value) for key, value in present.items()}
        # A window may end later than any event has come, and a broker may not take such a time.
        newest = {key: self.newest(value) for key, value in present.items()}
        for forward, replacing in self._updates:
            self._forward(forward, self._changes(windows, replacing=replacing), newest)

    def _changes(self, windows: Mapping[Any, Iterable[Window]], *, replacing: bool) -> list[_Result]:
        """What has not been said yet of these windows of some keys.

        What has been said is what there was at the last commit. Windows that another one has replaced since
        then are taken back by ``None``, if ``replacing``.
        """
        keys = list(windows)
        result = self._aggregate.result
        changes: list[_Result] = []
        for key, before in zip(keys, self._state.committed_many(keys), strict=True):
            told = () if before is None else self.windows(before)
            known = {(start, end): accumulator for start, end, accumulator in told}
            for start, end, accumulator in windows[key]:
                if replacing and self.replaces:
                    changes += [(key, *place, None) for place in _inside(known, start, end)]
                if (start, end) not in known or not _same(known[start, end], accumulator):
                    changes.append((key, start, end, result(accumulator)))
        return changes

    def _forward(self, to: Forward, results: list[_Result], newest: Mapping[Any, int] | None = None) -> None:
        """The results, with their windows' ends as event times, or the keys' ``newest`` where it is lower."""
        if not results:
            return
        # As they close, so that a step that counts by their times finds none of them late.
        results.sort(key=itemgetter(2))
        times = [end for _, _, end, _ in results]
        if newest is not None:
            times = [min(end, newest[key]) for key, _, end, _ in results]
        keys = self._keys.shown(key for key, _, _, _ in results)
        values = [
            Windowed(key, start, end, result)
            for key, (_, start, end, result) in zip(keys, results, strict=True)
        ]
        changed_by = self._origins.finder([(key, start, end) for key, start, end, _ in results])
        to(self._step.derive(self._store, keys, values, times, changed_by))


def _inside(places: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Those that lie in the window from ``start`` to ``end`` and are not that window."""
    for place in places:
        if start <= place[0] and place[1] <= end and place != (start, end):
            yield place


def _same(one: Any, other: Any) -> bool:
    """Whether two accumulators are equal, as far as they can tell."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - the user's class; said once too often does no harm
        return False
