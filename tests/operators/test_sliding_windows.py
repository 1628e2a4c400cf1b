"""Sliding windows against brute force over all events, with any batches, faults and disorder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from streams import App, Json, Record, Text
from streams.aggregates import custom
from streams.durations import milliseconds
from streams.errors import TopologyError
from streams.eventtime.windows import Sliding, Tumbling, Windowed
from streams.operators.sliding import running_merges
from streams.testing import TopologyDriver
from tests.support.unordered_events import Bench, as_table, each_once, rows_of, runs

if TYPE_CHECKING:
    from tests.support.unordered_events import Row, Slice


def windows_of(
    key: str, rows: list[Row], difference: int, grace: int
) -> dict[tuple[str, int, int], list[int]]:
    """All windows of a key by their definition: what there was of each while it was open."""
    own = [
        row
        for row in rows
        if row.event.key == key and not row.event.bad and row.now <= row.event.time + difference + grace
    ]
    found = {}
    for end in {row.event.time + behind for row in own for behind in (0, difference + 1)}:
        in_time = [row.event for row in own if row.now <= end + grace]
        inside = [event for event in in_time if end - difference <= event.time <= end]
        entered = any(event.time == end for event in in_time)
        left = any(event.time == end - difference - 1 for event in in_time)
        if inside and (entered or left):
            by_time = sorted(inside, key=lambda event: (event.time, event.number))
            found[key, max(0, end - difference), end] = [event.number for event in by_time]
    return found


@settings(max_examples=150)
@given(runs(bad=True), st.integers(1, 40), st.integers(0, 40), st.booleans())
def test_sliding_windows_are_those_of_the_definition(
    slices: list[Slice], difference: int, grace: int, record_wise: bool
) -> None:
    bench = Bench(Sliding(difference=milliseconds(difference)), grace, record_wise)
    results = bench.run(slices)
    rows = rows_of(slices)
    now = rows[-1].now
    windows: dict[Any, list[int]] = {}
    for key in {row.event.key for row in rows}:
        windows |= windows_of(key, rows, difference, grace)
    closed = {place: numbers for place, numbers in windows.items() if now > place[2] + grace}
    assert each_once(results.final) == closed
    assert as_table(results.updates) == windows
    late = [row.event.number for row in rows if row.now > row.event.time + difference + grace]
    assert sorted(results.late) == late
    bad = {row.event.number for row in rows if row.event.bad}
    assert sorted(results.dead) == sorted(bad - set(late))
    # Of the state, only what an open window needs: what lies in it, or just left it.
    needed = now - grace - difference - 1
    held = bench.driver.store("w")
    deadlines = bench.driver.store("w-deadlines")
    assert {(key, time) for key, value in held.items() for time, _ in value.panes} == {
        (row.event.key, row.event.time)
        for row in rows
        if row.event.time >= needed and row.event.number not in late and not row.event.bad
    }
    assert all(not value.closing for value in held.values())
    assert all(time > now for time, _ in deadlines)
    assert {key for _, key in deadlines} >= set(held)


@given(runs(), st.integers(1, 40), st.integers(0, 40))
def test_final_results_come_in_the_order_of_their_ends(
    slices: list[Slice], difference: int, grace: int
) -> None:
    bench = Bench(Sliding(difference=milliseconds(difference)), grace)
    ends = [end for (_, _, end), _ in bench.run(slices).final]
    assert ends == sorted(ends)


@given(runs(), st.integers(1, 40), st.integers(0, 40))
def test_late_records_are_counted(slices: list[Slice], difference: int, grace: int) -> None:
    bench = Bench(Sliding(difference=milliseconds(difference)), grace)
    results = bench.run([part._replace(fails=False, restarts=False) for part in slices])
    assert bench.driver.late().get("w", 0) == len(results.late)


@given(
    st.lists(st.text("abc", min_size=1, max_size=1), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30),
)
def test_running_merges_are_those_of_each_range_in_order(parts: list[str], moves: list[tuple[int, int]]):
    first, stop = 0, 1
    ranges = []
    for ahead, further in moves:
        first = min(first + ahead, len(parts) - 1)
        stop = min(max(stop + further, first + 1), len(parts))
        ranges.append((first, stop))
    expected = ["".join(parts[first:stop]) for first, stop in ranges]
    assert list(running_merges(parts, ranges, str.__add__)) == expected


def test_many_windows_cost_few_merges():
    merges = 0

    def merge(one: int, other: int) -> int:
        nonlocal merges
        merges += 1
        return one + other

    ranges = [(first, first + 100) for first in range(900)]
    assert list(running_merges([1] * 1000, ranges, merge)) == [100] * 900
    assert merges <= 3 * 1000


def sliding_app(*, difference: int = 10, grace: int = 0, **options: Any) -> App:
    app = App("test")
    windows = (
        app.stream("in", key=Text(), value=Json())
        .group_by_key()
        .window(Sliding(difference=milliseconds(difference)), grace=milliseconds(grace), **options)
        .count("windows")
    )
    windows.updates().to("updates")
    windows.final().to("final")
    windows.late().to("late")
    return app


def test_the_windows_of_the_example_in_kafka_streams_documentation():
    driver = TopologyDriver(sliding_app(difference=5000))
    driver.send_all("in", [Record("a", 1, time) for time in (8000, 9200, 12400)])
    driver.send("in", 1, key="b", timestamp=100_000)
    assert driver.values("final") == [
        Windowed("a", 3000, 8000, 1),
        Windowed("a", 4200, 9200, 2),
        Windowed("a", 7400, 12400, 3),
        Windowed("a", 8001, 13001, 2),
        Windowed("a", 9201, 14201, 1),
    ]


def test_a_window_is_open_until_stream_time_is_past_its_end_and_grace():
    driver = TopologyDriver(sliding_app(grace=5))
    driver.send("in", 1, key="a", timestamp=100)
    driver.send("in", 1, key="b", timestamp=105)
    driver.send("in", 1, key="a", timestamp=95)
    assert driver.values("final") == []
    driver.send("in", 1, key="b", timestamp=106)
    # When the one at 95 came, the window that would end there was closed by then.
    assert driver.values("final") == [Windowed("a", 90, 100, 2)]


def test_a_record_whose_own_window_has_closed_still_counts_in_later_ones():
    driver = TopologyDriver(sliding_app())
    driver.send("in", 1, key="a", timestamp=100)
    driver.send("in", 1, key="a", timestamp=90)
    driver.send("in", 1, key="a", timestamp=89)
    assert driver.values("updates") == [
        Windowed("a", 90, 100, 1),
        Windowed("a", 90, 100, 2),
        Windowed("a", 91, 101, 1),
    ]
    assert len(driver.values("late")) == 1
    driver.send("in", 1, key="b", timestamp=1000)
    assert driver.values("final") == [Windowed("a", 90, 100, 2), Windowed("a", 91, 101, 1)]


def test_a_window_that_closed_within_the_batch_is_final_at_its_end():
    driver = TopologyDriver(sliding_app(difference=100))
    # When the one at 99 comes, the window that ends at 100 has closed without it.
    driver.send_all("in", [Record("a", 1, 100), Record("b", 1, 150), Record("a", 1, 99)])
    assert driver.values("final") == [Windowed("a", 0, 100, 1)]
    driver.send("in", 1, key="b", timestamp=1000)
    assert Windowed("a", 100, 200, 1) in driver.values("final")


def test_only_windows_that_changed_are_forwarded_again():
    driver = TopologyDriver(sliding_app(grace=100))
    driver.send_all("in", [Record("a", 1, 0), Record("a", 1, 50)])
    driver.read("updates")
    driver.send("in", 1, key="a", timestamp=52)
    assert driver.values("updates") == [Windowed("a", 42, 52, 2), Windowed("a", 51, 61, 1)]


def test_results_have_the_time_of_the_windows_end():
    driver = TopologyDriver(sliding_app())
    driver.send_all("in", [Record("a", 1, 3), Record("a", 1, 7), Record("b", 1, 100)])
    assert [record.timestamp for record in driver.read("final")] == [3, 7, 14]


def test_idle_windows_close_with_the_wall_clock_and_nothing_stays():
    driver = TopologyDriver(sliding_app(difference=10, grace=5, close_idle_after=milliseconds(1000)))
    driver.send_all("in", [Record("a", 1, 41), Record("a", 1, 50)])
    driver.advance(milliseconds(1000))
    assert driver.values("final") == [
        Windowed("a", 31, 41, 1),
        Windowed("a", 40, 50, 2),
        Windowed("a", 42, 52, 1),
    ]
    assert driver.store("windows") == driver.store("windows-deadlines") == {}


def test_reduced_values_merge_in_the_order_of_their_times():
    app = App("test")
    windows = (
        app.stream("in", key=Text(), value=Text())
        .group_by_key()
        .window(Sliding(difference=milliseconds(10)), grace=milliseconds(100))
        .reduce("text", str.__add__, value=Text())
    )
    windows.final().to("final")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", "c", 5), Record("a", "a", 1), Record("a", "b", 1)])
    driver.send("in", "z", key="b", timestamp=500)
    assert driver.values("final") == [
        Windowed("a", 0, 1, "ab"),
        Windowed("a", 0, 5, "abc"),
        Windowed("a", 2, 12, "c"),
    ]


def test_an_aggregate_that_cannot_merge_is_refused_with_what_to_do():
    grouped = App("test").stream("in", key=Text(), value=Json()).group_by_key()
    aggregate = custom(int, int.__add__, name="sum")
    with pytest.raises(TopologyError, match=r"'sums' aggregates sliding 10 ms.*\n.*merge="):
        grouped.window(Sliding(difference=milliseconds(10))).aggregate("sums", aggregate)
    grouped.window(Tumbling(size=milliseconds(10))).aggregate("sums", aggregate)
