"""Windows that depend on a key's events: the common part of sessions and sliding windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.aggregates.traced import lineage_of
from streams.eventtime.windows import Windowed
from streams.operators import Operator
from streams.operators.closed_windows import ClosedWindows
from streams.operators.folding import rows_by_key
from streams.operators.keys import held_keys
from streams.operators.origins import TimedChanges
from streams.operators.traced_folding import folding_of
from streams.operators.uncommitted import UncommittedNotes
from streams.operators.window import with_times
from streams.state.deadlines import Deadlines, deadlines_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.lineage import Lineage
    from streams.operators import Binding, Children, Forward
    from streams.operators.closed_windows import Window
    from streams.operators.guard import Guard
    from streams.operators.window import WindowHeads
    from streams.records import Batch
    from streams.state.definition import KeptWindows

Event: TypeAlias = "tuple[int, int, int]"
"""Its time; its floor: windows that end before this had closed when it arrived; its index in the column."""

_Result: TypeAlias = "tuple[Any, int, int, Any, Lineage | None]"
"""Key, start, end and the result of that window, and the lineage of that, if accumulators have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedAggregate(Operator):
    """One accumulator for each window of a key, where windows depend on the key's events.

    ``heads`` and ``kept`` are as for ``WindowedAggregate``; ``grace`` and ``close_idle_after`` are in
    milliseconds. Each key has one entry in ``store``, and deadlines in the associated store.
    """

    kind: ClassVar[str] = "window"
    stamps: ClassVar[bool] = True

    store: str
    grace: int
    aggregate: Aggregate[Any, Any]
    heads: WindowHeads
    close_idle_after: int | None = None
    kept: KeptWindows | None = None

    @property
    def late_child(self) -> str:
        return self.heads.late

    def forwards_at_commits_to(self, child: str) -> bool:
        return child in {self.heads.updates, self.heads.replacing}


class KeyedWindows(ABC):
    """A ``KeyedAggregate`` bound to one task.

    ``lasts`` is how long after its end a window stays open: it closes as soon as stream time is *greater*
    than its end plus ``lasts``. ``horizon`` is how long after the last record all windows have closed. Both
    are in milliseconds.

    Windows that end before a certain time have closed: that time is the *floor*. The floor of a row follows
    from stream time at the arrival of the row, so that the effect of an event depends on the events before it
    and not on how they were divided into batches.
    """

    replaces: ClassVar[bool] = False
    """Whether a window replaces those inside it."""

    def __init__(
        self, operator: KeyedAggregate, step: Binding, children: Children, *, lasts: int, horizon: int
    ) -> None:
        self._store = operator.store
        self._grace = operator.grace
        self._lasts = lasts
        self._step = step
        self._guard: Guard = step.guard
        self._account = step.account
        self._clock = step.clock
        self._state = step.state(operator.store)
        self._deadlines: Deadlines[Any] = Deadlines(step.windows(deadlines_name(operator.store)))
        self._closed = None if operator.kept is None else ClosedWindows(operator.kept, step)
        self._aggregate = operator.aggregate
        self._folding = folding_of(operator.aggregate, step.guard)
        heads = (operator.heads.updates, False), (operator.heads.replacing, True)
        self._updates = [(head, children[head], replacing) for head, replacing in heads if head in children]
        """Where updates are forwarded to, and whether with retractions of replaced windows."""
        self._final_head = operator.heads.final
        self._final = children.get(operator.heads.final)
        late = children.get(operator.heads.late)
        self._keys = held_keys(step, operator.store)
        self._late = None if late is None else self._keys.leaving(late)
        self._origins = TimedChanges()
        self._closed_now: UncommittedNotes[Any, tuple[int, int]] = UncommittedNotes()
        """Windows that closed since the last commit: one that contains them has not replaced them."""
        step.follow_slices(self._closed_now)
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
        # Late ones among rows whose neighbours have failed: alone, they belong to no open window.
        self._without(batch, late)

    # --- for subclasses: sessions and sliding windows

    @abstractmethod
    def late_rows(self, batch: Batch[Any, Any], floors: Sequence[int]) -> list[int]:
        """The rows for which no window is open any more."""

    @abstractmethod
    def added(
        self,
        value: Any,
        events: Iterable[Event],
        column: Sequence[Any],
        places: Sequence[Place] | None,
    ) -> tuple[Any, list[int]]:
        """A key's state (``None`` for none) with its events added, and the indexes of late events."""

    @abstractmethod
    def due(self, value: Any) -> int:
        """A lower bound of the end of the window that closes first: when to check the key."""

    @abstractmethod
    def split(self, value: Any, floor: int) -> tuple[list[Window], Any]:
        """Split a key's state: the windows that end before ``floor``, which close, and the remainder."""

    @abstractmethod
    def windows(self, value: Any) -> Iterable[Window]:
        """The open windows of a key."""

    @abstractmethod
    def newest(self, value: Any) -> int:
        """The highest event time of a key."""

    # --- shared by both

    def _floors(self, batch: Batch[Any, Any]) -> list[int] | None:
        """Each row's floor; ``None`` if all windows that the rows could belong to are open."""
        if min(batch.timestamps) >= self._clock.time - self._grace:
            return None
        lasts = self._lasts
        return [time - lasts for time in self._clock.times(batch)]

    def _without(self, batch: Batch[Any, Any], late: list[int]) -> Batch[Any, Any]:
        """The rows that are not late; late rows are counted and forwarded."""
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
        held = 0
        changed = {}
        for (key, own), before in zip(rows.items(), state.get_many(list(rows)), strict=True):
            events = ((times[row], floors[row], row) for row in own)
            after, missed = self.added(before, events, column, places)
            late += missed
            held += len(own) - len(missed)
            if len(missed) < len(own):
                changed[key] = after
                self._look(key, before, after)
        state.put_many(changed)
        self._account.held(held)
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

        self._account.held(self._folding.add_each(batch, change) - len(late))
        return late

    def _look(self, key: Any, before: Any, after: Any) -> None:
        """Add a deadline for the key, unless the one for its earlier state is early enough."""
        due = self.due(after)
        if before is None or due < self.due(before):
            self._deadlines.add(due + self._lasts + 1, key)

    def _close(self) -> None:
        """Close the windows that stream time has passed, and forward their last updates and final results."""
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
        if self.replaces and self._updates:
            for key, windows in closed.items():
                self._closed_now.add(key, ((start, end) for start, end, _ in windows))
        for head, forward, replacing in self._updates:
            self._forward(forward, head, self._changes(closed, replacing=replacing))
        if self._final is not None:
            result = self._aggregate.result
            self._forward(
                self._final,
                self._final_head,
                [
                    (key, start, end, result(accumulator), lineage_of(accumulator))
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
        # A window may end after its latest event, and a broker may reject a time in the future.
        newest = {key: self.newest(value) for key, value in present.items()}
        for head, forward, replacing in self._updates:
            self._forward(forward, head, self._changes(windows, replacing=replacing), newest)

    def _changes(self, windows: Mapping[Any, Iterable[Window]], *, replacing: bool) -> list[_Result]:
        """The results of these windows that have changed since the last commit, by key.

        With ``replacing``, windows that another one has replaced since then are retracted by ``None``.
        """
        keys = list(windows)
        result = self._aggregate.result
        changes: list[_Result] = []
        for key, before in zip(keys, self._state.committed_many(keys), strict=True):
            earlier = () if before is None else self.windows(before)
            known = {(start, end): accumulator for start, end, accumulator in earlier}
            closed = self._closed_now.of(key)
            for start, end, accumulator in windows[key]:
                if replacing and self.replaces:
                    changes += [
                        (key, *place, None, lineage_of(known[place]))
                        for place in _inside(known, start, end)
                        if place not in closed
                    ]
                if (start, end) not in known or not _same(known[start, end], accumulator):
                    changes.append((key, start, end, result(accumulator), lineage_of(accumulator)))
        return changes

    def _forward(
        self, to: Forward, head: str, results: list[_Result], newest: Mapping[Any, int] | None = None
    ) -> None:
        """Forward results with their windows' ends as event times, or the keys' ``newest`` if it is lower."""
        if not results:
            return
        self._account.made(len(results), head)
        # In the order in which they close, so that none is late for a windowed step downstream.
        results.sort(key=itemgetter(2))
        times = [end for _, _, end, _, _ in results]
        if newest is not None:
            times = [min(end, newest[key]) for key, _, end, _, _ in results]
        keys = self._keys.shown(key for key, _, _, _, _ in results)
        values = [
            Windowed(key, start, end, result)
            for key, (_, start, end, result, _) in zip(keys, results, strict=True)
        ]
        changed_by = self._origins.finder([(key, start, end) for key, start, end, _, _ in results])
        lineage = [item for _, _, _, _, item in results] if self._folding.traced else None
        to(self._step.derive(self._store, keys, values, times, changed_by, lineage))


def _inside(places: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The windows inside the one from ``start`` to ``end``, without that one."""
    for place in places:
        if start <= place[0] and place[1] <= end and place != (start, end):
            yield place


def _same(one: Any, other: Any) -> bool:
    """Whether two accumulators are equal; false if they cannot be compared."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - the user's class; a repeated update is harmless
        return False
