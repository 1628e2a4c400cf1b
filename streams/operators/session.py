"""Aggregation in sessions: periods of activity of a key, separated by a gap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.aggregates.traced import unpack
from streams.durations import whole_milliseconds
from streams.eventtime.windows import merge_sessions
from streams.operators.folding import rows_by_key
from streams.operators.keyed import KeyedAggregate, KeyedWindows
from streams.operators.keys import held_keys
from streams.operators.packed import PackedSerde
from streams.state.definition import StoreDefinition

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.eventtime.windows import Session
    from streams.operators import Binding, Children, Forward
    from streams.operators.closed_windows import Window
    from streams.operators.keyed import Event
    from streams.records import Batch
    from streams.serde import Serde
    from streams.state.definition import KeptWindows

_Sessions: TypeAlias = "tuple[Window, ...]"
"""A key's sessions, ascending. Open ones are more than the gap apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAggregate(KeyedAggregate):
    """One accumulator for each session.

    A session closes when stream time is greater than its end plus gap and grace: until then, events that
    belong to it may arrive. An event is late if a session of that event alone would have closed already and
    no open session is within the gap.
    """

    window: Session

    @property
    def idle_reach(self) -> int:
        return 2 * whole_milliseconds(self.window.gap) + self.grace

    def bind(self, step: Binding, children: Children) -> Forward:
        return held_keys(step, self.store).entering(step.guard, _Sessioning(self, step, children).run)


def session_store(
    name: str, key: Serde[Any], window: Session, aggregate: Aggregate[Any, Any], kept: KeptWindows | None
) -> StoreDefinition:
    """The store for the open sessions of each key."""
    return StoreDefinition(
        name=name,
        key=key,
        value=PackedSerde("sessions", aggregate, _pack, _unpack),
        purpose=f"{window.describe()}, aggregate",
        lists_windows=True,
        kept=kept,
        view=lambda sessions: [
            {"start": start, "end": end, "value": aggregate.result(accumulator)}
            for start, end, accumulator in sessions
        ],
    )


@dataclass(slots=True)
class _Share:
    """A session while a batch is being added to it."""

    accumulator: Any = None
    places: list[int] = field(default_factory=list)
    """The indexes in the column of the entries to add."""


class _Sessioning(KeyedWindows):
    replaces: ClassVar[bool] = True

    def __init__(self, operator: SessionAggregate, step: Binding, children: Children) -> None:
        gap = whole_milliseconds(operator.window.gap)
        lasts = gap + operator.grace
        super().__init__(operator, step, children, lasts=lasts, horizon=lasts + 1)
        self._gap = gap

    def late_rows(self, batch: Batch[Any, Any], floors: Sequence[int]) -> list[int]:
        keys, times = batch.keys, batch.timestamps
        # One of these is only in time for an older session; all others start a session if necessary.
        suspects = {keys[row] for row, floor in enumerate(floors) if times[row] < floor}
        if not suspects:
            return []
        late: list[int] = []
        rows = {key: own for key, own in rows_by_key(keys).items() if key in suspects}
        for own, before in zip(rows.values(), self._state.get_many(list(rows)), strict=True):
            sessions: list[Window] = list(before or ())
            for row in own:
                found = self._find(sessions, times[row], floors[row])
                if found is None:
                    late.append(row)
                else:
                    sessions[found] = [_union(sessions[found], times[row], None)]
        return sorted(late)

    def added(
        self,
        value: _Sessions | None,
        events: Iterable[Event],
        column: Sequence[Any],
        places: Sequence[Place] | None,
    ) -> tuple[_Sessions, list[int]]:
        sessions: list[tuple[int, int, _Share]] = [
            (start, end, _Share(accumulator)) for start, end, accumulator in value or ()
        ]
        late: list[int] = []
        for time, floor, place in events:
            found = self._find(sessions, time, floor)
            if found is None:
                late.append(place)
                continue
            merged = sessions[found]
            share = self._united([share for _, _, share in merged], column, places)
            share.places.append(place)
            sessions[found] = [_union(merged, time, share)]
        return tuple(
            (start, end, self._folded(share, column, places)) for start, end, share in sessions
        ), late

    def due(self, value: _Sessions) -> int:
        return value[0][1]

    def split(self, value: _Sessions, floor: int) -> tuple[list[Window], _Sessions | None]:
        closed = [session for session in value if session[1] < floor]
        return closed, value[len(closed) :] or None

    def windows(self, value: _Sessions) -> Iterable[Window]:
        return value

    def newest(self, value: _Sessions) -> int:
        return value[-1][1]

    def _find(self, sessions: Sequence[Window], time: int, floor: int) -> slice | None:
        """The slice of sessions that an event merges with, empty for a new session; ``None`` if it is late.

        Sessions that had closed at its arrival may still be present until the end of the slice.
        """
        found = merge_sessions(sessions, time, time, self._gap)
        first = found.start
        while first < found.stop and sessions[first][1] < floor:
            first += 1
        return None if first == found.stop and time < floor else slice(first, found.stop)

    def _united(self, shares: list[_Share], column: Sequence[Any], places: Sequence[Place] | None) -> _Share:
        if not shares:
            return _Share()
        united = shares[0]
        for share in shares[1:]:
            both = self._folded(united, column, places), self._folded(share, column, places)
            united = _Share(self._aggregate.merge(*both))
        return united

    def _folded(self, share: _Share, column: Sequence[Any], places: Sequence[Place] | None) -> Any:
        if not share.places:
            return share.accumulator
        return self._folding.fold(share.accumulator, share.places, column, places)


def _union(merged: Sequence[tuple[int, int, Any]], time: int, content: Any) -> tuple[int, int, Any]:
    """Merge these sessions and an event into one."""
    if not merged:
        return time, time, content
    return min(time, merged[0][0]), max(time, merged[-1][1]), content


def _pack(aggregate: Aggregate[Any, Any], sessions: _Sessions) -> Any:
    return [(start, end, aggregate.pack(accumulator)) for start, end, accumulator in sessions]


def _unpack(aggregate: Aggregate[Any, Any], packed: Any) -> _Sessions:
    return tuple((start, end, unpack(aggregate, accumulator)) for start, end, accumulator in packed)
