"""Tumbling and hopping windows against brute force, with any batches, faults and disorder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings, strategies as st

from streams.durations import milliseconds
from streams.eventtime.windows import Hopping, Tumbling
from tests.support.unordered_events import Bench, as_table, each_once, rows_of, runs

if TYPE_CHECKING:
    from tests.support.unordered_events import Slice


@st.composite
def fixed(draw: st.DrawFn) -> Tumbling | Hopping:
    size = draw(st.integers(1, 40))
    advance = draw(st.integers(max(1, size // 5), size))
    return (
        Tumbling(size=milliseconds(size))
        if draw(st.booleans())
        else Hopping(size=milliseconds(size), advance=milliseconds(advance))
    )


@settings(max_examples=150)
@given(runs(bad=True), fixed(), st.integers(0, 40), st.booleans())
def test_windows_are_those_of_the_definition(
    slices: list[Slice], window: Tumbling | Hopping, grace: int, record_wise: bool
) -> None:
    bench = Bench(window, grace, record_wise)
    results = bench.run(slices)
    size = window.end(0)
    advance = window.advance // milliseconds(1) if isinstance(window, Hopping) else size
    rows = rows_of(slices)
    now = rows[-1].now
    windows: dict[tuple[str, int, int], list[int]] = {}
    late, dead = [], []
    for event, then in rows:
        starts = [
            start
            for start in range(0, event.time + 1, advance)
            if event.time < start + size and then < start + size + grace
        ]
        if not starts:
            late.append(event.number)
        elif event.bad:
            dead.append(event.number)
        else:
            for start in starts:
                windows.setdefault((event.key, start, start + size), []).append(event.number)
    if not record_wise:
        # Values are collected in the order of event time; the user's functions get them in order of arrival.
        times = {event.number: event.time for event, _ in rows}
        for numbers in windows.values():
            numbers.sort(key=lambda number: (times[number], number))
    closed = {place: numbers for place, numbers in windows.items() if now >= place[2] + grace}
    assert each_once(results.final) == closed
    assert as_table(results.updates) == windows
    assert sorted(results.late) == late
    assert sorted(results.dead) == dead
    assert {(key, start) for start, key in bench.driver.store("w")} == {
        (key, start) for key, start, _ in set(windows) - set(closed)
    }


@given(runs(), fixed(), st.integers(0, 40))
def test_late_records_are_counted(slices: list[Slice], window: Tumbling | Hopping, grace: int) -> None:
    bench = Bench(window, grace)
    results = bench.run([part._replace(fails=False, restarts=False) for part in slices])
    assert bench.driver.late().get("w", 0) == len(results.late)
