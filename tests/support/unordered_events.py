"""For tests of windows: out-of-order events in random slices, with failures and restarts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import strategies as st

from streams import App, Json, Record, Text
from streams.aggregates import collect, count, custom
from streams.durations import milliseconds
from streams.errors import ProcessingError
from streams.policy import dead_letter, fail
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.eventtime.windows import Hopping, Session, Sliding, Tumbling

KEYS = "abcdefgh"


class Event(NamedTuple):
    """An event; ``number`` is its position in the input. A ``bad`` one cannot be aggregated."""

    key: str
    time: int
    number: int
    bad: bool = False


class Row(NamedTuple):
    """An event with the stream time after its arrival."""

    event: Event
    now: int


class Slice(NamedTuple):
    """Events that are processed together; the slice may fail once before, or a restart may come before it."""

    events: Sequence[Event]
    fails: bool = False
    restarts: bool = False


class Results(NamedTuple):
    """The results: windows as (key, start, end), with the numbers of their events."""

    updates: list[tuple[tuple[str, int, int], list[int] | None]]
    final: list[tuple[tuple[str, int, int], list[int]]]
    late: list[int]
    dead: list[int]


@st.composite
def runs(draw: st.DrawFn, *, bad: bool = False) -> list[Slice]:
    """Events whose times mostly increase, in random slices."""
    moves = draw(
        st.lists(
            st.tuples(
                st.sampled_from(KEYS[: draw(st.sampled_from([1, 2, 8]))]),
                st.one_of(st.integers(0, 4), st.integers(0, 60)),
                st.one_of(st.just(0), st.integers(0, 8), st.integers(0, 90)),
                st.integers(0, 6),
            ),
            min_size=1,
            max_size=60,
        )
    )
    ahead = 0
    events = []
    for number, (key, further, behind, chance) in enumerate(moves):
        ahead += further
        events.append(Event(key, max(0, ahead - behind), number, bad and chance == 0))
    cuts = sorted(draw(st.sets(st.integers(1, len(events)), max_size=12)) | {0, len(events)})
    disturbance = st.tuples(st.integers(0, 3), st.integers(0, 3))
    slices = []
    for start, stop in pairwise(cuts):
        fails, restarts = draw(disturbance)
        slices.append(Slice(events[start:stop], fails == 0, restarts == 0))
    return slices


def rows_of(slices: Iterable[Slice]) -> list[Row]:
    now = -1
    rows = []
    for part in slices:
        for event in part.events:
            now = max(now, event.time)
            rows.append(Row(event, now))
    return rows


def listing() -> Any:
    """The numbers of events, collected by user code, record by record."""
    return custom(list, lambda numbers, number: [*numbers, number], name="list", of="n", merge=list.__add__)


@dataclass
class Bench:
    """An app with one windowed step, all of whose results are written."""

    window: Tumbling | Hopping | Session | Sliding
    grace: int
    record_wise: bool = False
    keep: int = 0
    failing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        app = App("bench")
        stream = app.stream("in", key=Text(), value=Json())
        keep = milliseconds(self.keep)
        grouped = stream.group_by_key().window(self.window, grace=milliseconds(self.grace), keep=keep)
        windows = (
            grouped.aggregate("w", listing(), on_error=dead_letter)
            if self.record_wise
            else grouped.aggregate("w", count=count(), numbers=collect("n"), on_error=dead_letter)
        )
        windows.updates(tombstones=True).to("updates")
        windows.final().to("final")
        windows.late().to("late")
        # Fails after the windowed step, whose changes of the slice have to be rolled back.
        stream.peek(self._explode, on_error=fail)
        self.driver = TopologyDriver(app)

    def _explode(self, _value: Any) -> None:
        if self.failing:
            raise RuntimeError("the slice fails")

    def run(self, slices: Iterable[Slice]) -> Results:
        results = Results([], [], [], [])
        for part in slices:
            if part.restarts:
                self.driver.restart()
            records = [
                Record(event.key, {} if event.bad else {"n": event.number}, event.time)
                for event in part.events
            ]
            for record, event in zip(records, part.events, strict=True):
                record.value["id"] = event.number
            if part.fails:
                self.failing = True
                with pytest.raises(ProcessingError, match="the slice fails"):
                    self.driver.send_all("in", records)
                self.failing = False
            self.driver.send_all("in", records)
            results.updates.extend(map(self._window, self.driver.read("updates")))
            results.final.extend(map(self._window, self.driver.read("final")))
            results.late.extend(value["id"] for value in self.driver.values("late"))
            results.dead.extend(
                record.value["id"]
                for record in self.driver.read("bench-dead-letters", key=Text(), value=Json())
            )
        return results

    def _window(self, record: Record[Any, Any]) -> tuple[tuple[str, int, int], Any]:
        window = record.value
        assert record.key == window.key
        if window.value is None or self.record_wise:
            numbers = window.value
        else:
            assert window.value["count"] == len(window.value["numbers"])
            numbers = window.value["numbers"]
        return (window.key, window.start, window.end), numbers


def as_table(updates: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The final state of the updates; only earlier results may be retracted."""
    table: dict[Any, Any] = {}
    for place, numbers in updates:
        if numbers is None:
            del table[place]
        else:
            table[place] = numbers
    return table


def each_once(final: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Final results by window, each exactly once."""
    found = list(final)
    assert max(Counter(place for place, _ in found).values(), default=1) == 1
    return dict(found)
