"""Closed windows can be queried as long as they are kept, and have no other effect."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from streams import (
    App,
    ClosedWindow,
    Hopping,
    Json,
    QueryError,
    Record,
    Session,
    Sliding,
    Text,
    TopologyError,
    Tumbling,
    Windowed,
    count,
    milliseconds,
    minutes,
    seconds,
    total,
)
from streams.testing import TopologyDriver
from tests.support.crew import Crew
from tests.support.unordered_events import KEYS, Bench, rows_of, runs

if TYPE_CHECKING:
    from tests.support.unordered_events import Results, Row, Slice

OVERLAPPING = Hopping(size=milliseconds(12), advance=milliseconds(5))
WINDOWS = (Tumbling(milliseconds=10), OVERLAPPING, Session(milliseconds=10), Sliding(milliseconds=10))

WindowKind = Tumbling | Hopping | Session | Sliding


def numbers_by_window(windows: list[Windowed[Any, Any]]) -> dict[tuple[str, int, int, bool], list[int]]:
    found = {
        (item.key, item.start, item.end, isinstance(item, ClosedWindow)): list(item.value.numbers)
        for item in windows
    }
    assert len(found) == len(windows)
    return found


def visible(results: Results, now: int, until: int) -> dict[tuple[str, int, int, bool], list[int]]:
    """The final results so far that are kept: each until stream time has passed its end by that long."""
    return {
        (key, start, end, True): list(numbers)
        for (key, start, end), numbers in results.final
        if now < end + until
    }


@settings(max_examples=100)
@given(runs(), st.sampled_from(WINDOWS), st.integers(0, 20), st.integers(1, 60), st.data())
def test_after_each_slice_what_has_closed_is_found_as_long_as_it_is_kept(
    slices: list[Slice], window: WindowKind, grace: int, keep: int, data: st.DataObject
) -> None:
    bench = Bench(window, grace, keep=keep)
    closes_after = grace + (11 if isinstance(window, Session) else 1 if isinstance(window, Sliding) else 0)
    results = bench.run([])
    for done, part in enumerate(slices, 1):
        results.final.extend(bench.run([part]).final)
        now = rows_of(slices[:done])[-1].now if any(each.events for each in slices[:done]) else -1
        closed = visible(results, now, closes_after + keep)
        for key in KEYS:
            found = bench.driver.windows("w", key)
            assert [item.start for item in found] == sorted(item.start for item in found)
            shown = numbers_by_window(found)
            own = {place: numbers for place, numbers in closed.items() if place[0] == key}
            assert {place: numbers for place, numbers in shown.items() if place[3]} == own
            # Windows stand still when they have closed: what is open is none of them.
            assert not {place[:3] for place in own} & {place[:3] for place in shown if not place[3]}
            low = data.draw(st.integers(0, 100))
            high = data.draw(st.integers(0, 100))
            within = {place: numbers for place, numbers in shown.items() if low <= place[1] < high}
            assert numbers_by_window(bench.driver.windows("w", key, start=low, stop=high)) == within
        if isinstance(window, Tumbling | Hopping):
            everything = [item for key in KEYS for item in bench.driver.windows("w", key)]
            everything.sort(key=lambda item: (item.start, item.key))
            assert bench.driver.windows("w") == everything


@settings(max_examples=100)
@given(
    runs(),
    st.sampled_from([Tumbling(milliseconds=10), OVERLAPPING]),
    st.integers(0, 20),
    st.integers(1, 60),
)
def test_windows_of_one_size_are_those_of_a_look_at_each_event(
    slices: list[Slice], window: Tumbling | Hopping, grace: int, keep: int
) -> None:
    bench = Bench(window, grace, keep=keep)
    bench.run(slices)
    rows = rows_of(slices)
    size = window.size // milliseconds(1)
    advance = window.advance // milliseconds(1) if isinstance(window, Hopping) else size
    wanted: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        for start in range(0, row.event.time + 1, advance):
            if row.event.time < start + size and row.now < start + size + grace:
                wanted.setdefault((row.event.key, start, start + size), []).append(row)
    now = rows[-1].now
    found = {
        (key, start, end, now >= end + grace): sorted(row.event.number for row in own)
        for (key, start, end), own in wanted.items()
        if now < end + grace + keep
    }
    shown = numbers_by_window(bench.driver.windows("w"))
    assert {place: sorted(numbers) for place, numbers in shown.items()} == found


def app_of(window: WindowKind = Tumbling(milliseconds=10), *, grace: int = 0, keep: int = 0) -> App:  # noqa: B008 - frozen
    app = App("test")
    stream = app.stream("in", key=Text(), value=Json(int))
    windows = (
        stream.group_by_key().window(window, grace=milliseconds(grace), keep=milliseconds(keep)).count("w")
    )
    windows.updates().to("updates")
    windows.final().to("final")
    windows.late().to("late")
    return app


def test_a_late_record_neither_opens_a_window_that_is_kept_nor_emits_it_again():
    driver = TopologyDriver(app_of(keep=100))
    driver.send_all("in", [Record("a", 1, 3), Record("b", 1, 25)])
    assert driver.values("final") == [Windowed("a", 0, 10, 1)]
    driver.values("updates")
    driver.send("in", 7, key="a", timestamp=4)
    assert (driver.values("late"), driver.values("final"), driver.values("updates")) == ([7], [], [])
    assert driver.late() == {"w": 1}
    assert driver.windows("w", "a") == [ClosedWindow("a", 0, 10, 1)]


def test_a_window_is_found_closed_until_stream_time_has_passed_its_close_by_keep():
    driver = TopologyDriver(app_of(grace=5, keep=20))
    driver.send("in", 1, key="a", timestamp=0)
    for time, found in (
        (14, [Windowed("a", 0, 10, 1)]),
        (15, [ClosedWindow("a", 0, 10, 1)]),
        (34, [ClosedWindow("a", 0, 10, 1)]),
        (35, []),
    ):
        driver.send("in", 1, key="b", timestamp=time)
        assert driver.windows("w", "a") == found
    driver.restart()
    driver.send("in", 1, key="b", timestamp=35)
    assert driver.windows("w", "a") == []


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: type(window).__name__)
def test_windows_are_kept_without_a_step_for_their_results(window: WindowKind):
    app = App("test")
    stream = app.stream("in", key=Text(), value=Json(int))
    stream.group_by_key().window(window, keep=seconds(1)).count("w")
    driver = TopologyDriver(app)
    driver.send("in", 1, key="a", timestamp=20)
    driver.send("in", 1, key="b", timestamp=80)
    found = driver.windows("w", "a")
    assert found
    assert all(isinstance(item, ClosedWindow) and item.value == 1 for item in found)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: type(window).__name__)
def test_a_program_may_keep_windows_for_longer_or_shorter_than_the_one_before(window: WindowKind):
    driver = TopologyDriver(app_of(window, grace=5))
    driver.send("in", 1, key="a", timestamp=0)
    driver.send("in", 1, key="a", timestamp=100)
    now = 100

    def after(keep: int) -> list[int]:
        """The starts of the closed windows that a program finds that keeps them for so long."""
        nonlocal now
        before = driver.values("final")
        assert len({(item.key, item.start, item.end) for item in before}) == len(before)
        finals.extend(before)
        driver.restart(app_of(window, grace=5, keep=keep))
        now += 1
        driver.send("in", 1, key="b", timestamp=now)
        shown = driver.windows("w", "a")
        assert any(item.end >= 100 and not isinstance(item, ClosedWindow) for item in shown)
        return [item.start for item in shown if isinstance(item, ClosedWindow)]

    finals: list[Windowed[Any, Any]] = []
    # What had closed before anything was kept is gone.
    assert after(1_000) == []
    driver.send("in", 1, key="a", timestamp=160)
    now = 160
    closed = {item.start for item in driver.windows("w", "a") if isinstance(item, ClosedWindow)}
    assert closed
    driver.send("in", 1, key="a", timestamp=now)
    assert set(after(5_000)) == closed
    assert after(1) == []
    assert after(0) == []
    driver.send("in", 1, key="a", timestamp=now)
    finals += driver.values("final")
    assert len({(item.key, item.start, item.end) for item in finals}) == len(finals)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: type(window).__name__)
def test_what_is_kept_no_longer_leaves_the_store(window: WindowKind):
    driver = TopologyDriver(app_of(window, keep=20_000))
    held = []
    for time in range(0, 200_000, 1_000):
        driver.send("in", 1, key=str(time % 7), timestamp=time)
        held.append(len(driver.entries("w-closed")))
    assert max(held[100:]) <= max(held[:50])
    assert held[-1] > 0


def test_what_is_kept_no_longer_is_deleted_from_the_disk():
    app = App("kept", commit_interval=0.05)
    app.stream("in", key=Text()).group_by_key().window(Session(milliseconds=10), keep=minutes(1)).count("w")
    crew = Crew(app)
    crew.start()
    for step in range(40):
        records: list[Record[bytes | None, bytes | None]] = [
            Record(b"a", b"1", step * 50_000 + more * 5_000) for more in range(10)
        ]
        crew.send("in", *records)
        crew.settle()
    crew.stop()
    database = crew.disks[0].open(["w", "w-closed", "w-deadlines"], 0)
    assert 12 <= len(list(database.store("w-closed").scan())) <= 40
    database.close()


def test_windows_over_windows_find_none_late_and_keep_their_own():
    app = App("test")
    stream = app.stream("in", key=Text(), value=Json(int))
    first = stream.group_by_key().window(Tumbling(milliseconds=10), keep=seconds(1)).count("first")
    values = first.final().map(lambda window: window.value)
    values.group_by_key().window(Tumbling(milliseconds=100), keep=seconds(1)).aggregate(
        "second", total()
    ).final().to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", 1, time) for time in (*range(0, 300, 3), 500)])
    assert driver.late() == {}
    assert driver.windows("second", "a")[0] == ClosedWindow("a", 0, 100, 34)


def test_fields_that_are_added_begin_empty_in_windows_that_are_kept():
    def app(**fields: Any) -> App:
        app = App("test")
        stream = app.stream("in", key=Text(), value=Json(int))
        stream.group_by_key().window(Tumbling(milliseconds=10), keep=seconds(1)).aggregate("w", **fields)
        return app

    driver = TopologyDriver(app(n=count()))
    driver.send_all("in", [Record("a", 1, 0), Record("a", 1, 10)])
    driver.restart(app(n=count(), sum=total()))
    driver.send("in", 5, key="a", timestamp=20)
    assert [(item.value.n, item.value.sum) for item in driver.windows("w", "a")] == [(1, 0), (1, 0), (1, 5)]


@pytest.mark.parametrize(
    "window",
    [Session(milliseconds=10), Sliding(milliseconds=10)],
    ids=["session", "sliding"],
)
def test_sessions_and_sliding_windows_are_queried_by_key(window: WindowKind):
    driver = TopologyDriver(app_of(window, keep=100))
    driver.send("in", 1, key="a", timestamp=0)
    with pytest.raises(
        QueryError,
        match=r"'w' has sessions or sliding windows, which differ for each key\n.*windows of one key",
    ):
        driver.windows("w")


def test_what_cannot_be_a_time_to_keep_windows_for_is_refused():
    grouped = App("test").stream("in", key=Text(), value=Json()).group_by_key()
    with pytest.raises(TopologyError, match="keep must be 0 ms or more, got -1"):
        grouped.window(Tumbling(milliseconds=10), keep=timedelta(milliseconds=-1))
