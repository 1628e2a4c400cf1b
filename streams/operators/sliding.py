"""Aggregation in sliding windows: every distinct set of a key's events within a time difference."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.aggregates.traced import unpack
from streams.durations import whole_milliseconds
from streams.eventtime.windows import sliding_windows
from streams.operators.keyed import KeyedAggregate, KeyedWindows
from streams.operators.keys import held_keys
from streams.operators.packed import PackedSerde
from streams.state.definition import StoreDefinition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.eventtime.windows import Sliding
    from streams.operators import Binding, Children, Forward
    from streams.operators.closed_windows import Window
    from streams.operators.keyed import Event
    from streams.records import Batch
    from streams.serde import Serde
    from streams.state.definition import KeptWindows

FOREVER = 1 << 64
"""After the end of every window, in milliseconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingAggregate(KeyedAggregate):
    """One accumulator for each sliding window.

    A window closes when stream time is greater than its end plus grace; later events are not added to it. An
    event is late if all windows that could contain it have closed: if stream time is greater than its time
    plus difference and grace.
    """

    window: Sliding

    @property
    def idle_reach(self) -> int:
        return 2 * whole_milliseconds(self.window.difference) + self.grace

    def bind(self, step: Binding, children: Children) -> Forward:
        return held_keys(step, self.store).entering(step.guard, _SlidingWindows(self, step, children).run)


class Panes(NamedTuple):
    """The events of one key, aggregated by time; a window's result is merged from its panes."""

    closed_before: int
    """Windows that end before this time are closed."""
    panes: tuple[tuple[int, Any], ...]
    """The distinct times of events, ascending, with their accumulators."""
    closing: tuple[Window, ...] = ()
    """Windows that have closed during the open slice; empty after it."""


def sliding_store(
    name: str, key: Serde[Any], window: Sliding, aggregate: Aggregate[Any, Any], kept: KeptWindows | None
) -> StoreDefinition:
    """The store for the panes of each key."""
    difference = whole_milliseconds(window.difference)
    return StoreDefinition(
        name=name,
        key=key,
        value=PackedSerde("panes", aggregate, _pack, _unpack),
        purpose=f"{window.describe()}, aggregate",
        lists_windows=True,
        kept=kept,
        view=lambda value: [
            {"start": start, "end": end, "value": aggregate.result(accumulator)}
            for start, end, accumulator in _windows(value, difference, aggregate.merge)
        ],
    )


class _SlidingWindows(KeyedWindows):
    def __init__(self, operator: SlidingAggregate, step: Binding, children: Children) -> None:
        difference = whole_milliseconds(operator.window.difference)
        horizon = difference + operator.grace + 2
        super().__init__(operator, step, children, lasts=operator.grace, horizon=horizon)
        self._difference = difference

    def late_rows(self, batch: Batch[Any, Any], floors: Sequence[int]) -> list[int]:
        difference = self._difference
        return [
            row
            for row, (time, floor) in enumerate(zip(batch.timestamps, floors, strict=True))
            if time + difference < floor
        ]

    def added(
        self,
        value: Panes | None,
        events: Iterable[Event],
        column: Sequence[Any],
        order: Sequence[Place] | None,
    ) -> tuple[Panes, list[int]]:
        closed_before, panes, closing = value or Panes(0, ())
        accumulators = dict(panes)
        places: dict[int, list[int]] = {}
        for time, floor, place in events:
            if time < floor and closed_before < floor:
                # Some windows that contain it had closed before it arrived.
                self._fold(accumulators, places, column, order)
                closing += tuple(self._between(_ascending(accumulators), closed_before, floor))
                closed_before = floor
            if time in places:
                places[time].append(place)
            else:
                places[time] = [place]
        self._fold(accumulators, places, column, order)
        return Panes(closed_before, _ascending(accumulators), closing), []

    def due(self, value: Panes) -> int:
        closed_before, panes, closing = value
        # A window ends at each event, and one may end just after the first event leaves: then that can go.
        entered = next((time for time, _ in panes if time >= closed_before), FOREVER)
        due = min(entered, panes[0][0] + self._difference + 1)
        return min(due, closing[0][1]) if closing else due

    def split(self, value: Panes, floor: int) -> tuple[list[Window], Panes | None]:
        closed_before, panes, closing = value
        closed = [*closing, *self._between(panes, closed_before, floor)]
        # An event just outside of an open window still causes that window to exist.
        needed = floor - self._difference - 1
        kept = tuple(pane for pane in panes if pane[0] >= needed)
        return closed, Panes(max(closed_before, floor), kept) if kept else None

    def windows(self, value: Panes) -> Iterable[Window]:
        return _windows(value, self._difference, self._aggregate.merge)

    def newest(self, value: Panes) -> int:
        return value.panes[-1][0]

    def _between(self, panes: Sequence[tuple[int, Any]], low: int, high: int) -> Iterator[Window]:
        return _between(panes, self._difference, self._aggregate.merge, low, high)

    def _fold(
        self,
        accumulators: dict[int, Any],
        places: dict[int, list[int]],
        column: Sequence[Any],
        order: Sequence[Place] | None,
    ) -> None:
        for time, own in places.items():
            accumulators[time] = self._folding.fold(accumulators.get(time), own, column, order)
        places.clear()


def _ascending(accumulators: dict[int, Any]) -> tuple[tuple[int, Any], ...]:
    return tuple(sorted(accumulators.items(), key=itemgetter(0)))


def _windows(value: Panes, difference: int, merge: Callable[[Any, Any], Any]) -> Iterator[Window]:
    """The open windows of one key."""
    return _between(value.panes, difference, merge, value.closed_before, FOREVER)


def _between(
    panes: Sequence[tuple[int, Any]], difference: int, merge: Callable[[Any, Any], Any], low: int, high: int
) -> Iterator[Window]:
    """The windows that end in ``[low, high)``, ascending by end."""
    if low >= high or not panes:
        return
    found = list(sliding_windows([time for time, _ in panes], difference, low, high))
    merged = running_merges(
        [accumulator for _, accumulator in panes], [window[2:] for window in found], merge
    )
    for (start, end, _, _), accumulator in zip(found, merged, strict=True):
        yield start, end, accumulator


def running_merges(
    accumulators: Sequence[Any], ranges: Iterable[tuple[int, int]], merge: Callable[[Any, Any], Any]
) -> Iterator[Any]:
    """Merge ``accumulators[first:stop]`` for each range; none is empty, and both ends only ascend.

    An accumulator is merged two or three times, however many ranges contain it: ``back`` has the merges from
    each index up to a pivot, ``front`` the merge of all after the pivot so far.
    """
    back: list[Any] = []
    front: Any = None
    turn = reached = 0
    for first, stop in ranges:
        if first >= turn:
            back = list(accumulate(reversed(accumulators[first:stop]), lambda later, one: merge(one, later)))
            turn = reached = stop
        for accumulator in accumulators[reached:stop]:
            front = accumulator if reached == turn else merge(front, accumulator)
            reached += 1
        before = back[turn - 1 - first]
        yield before if reached == turn else merge(before, front)


def _pack(aggregate: Aggregate[Any, Any], value: Panes) -> Any:
    return value.closed_before, [(time, aggregate.pack(accumulator)) for time, accumulator in value.panes]


def _unpack(aggregate: Aggregate[Any, Any], packed: Any) -> Panes:
    closed_before, panes = packed
    return Panes(closed_before, tuple((time, unpack(aggregate, accumulator)) for time, accumulator in panes))
