"""Sessions against a model that adds event by event, with any batches, faults and disorder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings, strategies as st

from streams import App, Json, Record, Text
from streams.aggregates import custom
from streams.durations import milliseconds
from streams.errors import TopologyError
from streams.eventtime.windows import Session, Tumbling, Windowed
from streams.policy import skip
from streams.testing import TopologyDriver
from tests.support.unordered_events import Bench, Event, Slice, as_table, each_once, rows_of, runs

if TYPE_CHECKING:
    from tests.support.unordered_events import Row


class Model:
    """The definition: every open session is checked for every event."""

    def __init__(self, gap: int, grace: int) -> None:
        self.gap = gap
        self.lasts = gap + grace
        self.sessions: dict[tuple[str, int, int], list[int]] = {}
        self.closed: dict[tuple[str, int, int], list[int]] = {}
        self.late: list[int] = []
        self.dead: list[int] = []

    def take(self, row: Row) -> None:
        event, now = row
        for place in [place for place in self.sessions if now > place[2] + self.lasts]:
            self.closed[place] = self.sessions.pop(place)
        near = sorted(
            (key, start, end)
            for key, start, end in self.sessions
            if key == event.key and start - self.gap <= event.time <= end + self.gap
        )
        if not near and now > event.time + self.lasts:
            self.late.append(event.number)
        elif event.bad:
            self.dead.append(event.number)
        else:
            numbers = [number for place in near for number in self.sessions.pop(place)]
            start = min([event.time, *(start for _, start, _ in near)])
            end = max([event.time, *(end for _, _, end in near)])
            self.sessions[event.key, start, end] = [*numbers, event.number]


@settings(max_examples=150)
@example(
    [Slice([Event("a", 0, 0)]), Slice([Event("a", 3, 1, bad=True), Event("a", 1, 2), Event("a", 0, 3)])],
    1,
    1,
    False,
)
@given(runs(bad=True), st.integers(1, 40), st.integers(0, 40), st.booleans())
def test_sessions_are_those_of_the_model(
    slices: list[Slice], gap: int, grace: int, record_wise: bool
) -> None:
    bench = Bench(Session(gap=milliseconds(gap)), grace, record_wise)
    results = bench.run(slices)
    model = Model(gap, grace)
    rows = rows_of(slices)
    for row in rows:
        model.take(row)
    now = rows[-1].now
    for place in [place for place in model.sessions if now > place[2] + model.lasts]:
        model.closed[place] = model.sessions.pop(place)
    if not record_wise:
        # Values are collected in the order of event time; the user's functions get them in order of arrival.
        times = {row.event.number: row.event.time for row in rows}
        for numbers in (*model.closed.values(), *model.sessions.values()):
            numbers.sort(key=lambda number: (times[number], number))
    assert each_once(results.final) == model.closed
    assert as_table(results.updates) == model.closed | model.sessions
    # Two records that are each bad and would be late without the other may count as either.
    assert set(results.late) | set(results.dead) == set(model.late) | set(model.dead)
    bad = {row.event.number for row in rows if row.event.bad}
    assert set(results.late) - bad == set(model.late) - bad
    assert len(results.late) + len(results.dead) == len(model.late) + len(model.dead)
    # The state is what is open, and each key of it will be looked at.
    held = {
        (key, start, end) for key, sessions in bench.driver.store("w").items() for start, end, _ in sessions
    }
    assert held == set(model.sessions)
    deadlines = bench.driver.store("w-deadlines")
    assert all(time > now for time, _ in deadlines)
    for key in {key for key, _, _ in held}:
        first = min(end for other, _, end in held if other == key)
        assert min(time for time, other in deadlines if other == key) <= first + model.lasts + 1


@given(runs(), st.integers(1, 40), st.integers(0, 40))
def test_final_results_come_in_the_order_of_their_ends(slices: list[Slice], gap: int, grace: int) -> None:
    ends = [end for (_, _, end), _ in Bench(Session(gap=milliseconds(gap)), grace).run(slices).final]
    assert ends == sorted(ends)


@given(runs(), st.integers(1, 40), st.integers(0, 40))
def test_late_records_are_counted(slices: list[Slice], gap: int, grace: int) -> None:
    bench = Bench(Session(gap=milliseconds(gap)), grace)
    results = bench.run([part._replace(fails=False, restarts=False) for part in slices])
    assert bench.driver.late().get("w", 0) == len(results.late)


def sessions_app(*, gap: int = 10, grace: int = 0, **options: Any) -> App:
    app = App("test")
    windows = (
        app.stream("in", key=Text(), value=Json())
        .group_by_key()
        .window(Session(gap=milliseconds(gap)), grace=milliseconds(grace), **options)
        .count("sessions")
    )
    windows.updates(tombstones=True).to("updates")
    windows.final().to("final")
    return app


def test_an_event_at_the_end_of_the_gap_belongs_to_the_session_and_one_after_it_does_not():
    driver = TopologyDriver(sessions_app())
    for time in (0, 10, 21):
        driver.send("in", 1, key="a", timestamp=time)
    assert driver.values("final") == [Windowed("a", 0, 10, 2)]


def test_a_session_is_open_until_stream_time_is_past_its_end_and_gap_and_grace():
    driver = TopologyDriver(sessions_app(grace=5))
    driver.send("in", 1, key="a", timestamp=100)
    driver.send("in", 1, key="b", timestamp=115)
    driver.send("in", 1, key="a", timestamp=90)
    assert driver.values("final") == []
    driver.send("in", 1, key="b", timestamp=116)
    assert driver.values("final") == [Windowed("a", 90, 100, 2)]


def test_a_session_that_closed_within_the_batch_takes_nothing_more():
    driver = TopologyDriver(sessions_app())
    # At 5, stream time is 11: the session at 0 has just closed, one of the event alone would not have.
    driver.send_all("in", [Record("a", 1, 0), Record("b", 1, 11), Record("a", 1, 5)])
    assert driver.values("final") == [Windowed("a", 0, 0, 1)]
    assert driver.store("sessions")["a"] == ((5, 5, 1),)


def test_of_two_sessions_of_a_key_only_the_one_whose_time_has_come_closes():
    driver = TopologyDriver(sessions_app(grace=100))
    driver.send_all("in", [Record("a", 1, 0), Record("a", 1, 11)])
    for time, expected in ((111, [Windowed("a", 0, 0, 1)]), (121, []), (122, [Windowed("a", 11, 11, 1)])):
        driver.send("in", 1, key="b", timestamp=time)
        assert driver.values("final") == expected


def test_forwarded_results_of_merged_sessions_are_retracted():
    driver = TopologyDriver(sessions_app(grace=100))
    driver.send_all("in", [Record("a", 1, 0), Record("a", 1, 4), Record("a", 1, 20)])
    # Not forwarded: the one at 40 is in the same commit as the one that merges it with another.
    driver.send_all("in", [Record("a", 1, 40), Record("a", 1, 12), Record("a", 1, 35)])
    assert driver.values("updates") == [
        Windowed("a", 0, 4, 2),
        Windowed("a", 20, 20, 1),
        Windowed("a", 0, 4, None),
        Windowed("a", 20, 20, None),
        Windowed("a", 0, 20, 4),
        Windowed("a", 35, 40, 2),
    ]


def test_a_session_that_has_closed_is_not_retracted_by_one_that_covers_its_time_later():
    driver = TopologyDriver(sessions_app(gap=1, grace=1))
    driver.send("in", 1, key="a", timestamp=0)
    assert driver.values("updates") == [Windowed("a", 0, 0, 1)]
    # At 3 it has closed. The event at 1 is in time for a session of its own, which the one at 0 then extends.
    driver.send_all("in", [Record("b", 1, 3), Record("a", 1, 1), Record("a", 1, 0)])
    assert driver.values("final") == [Windowed("a", 0, 0, 1)]
    assert driver.values("updates") == [Windowed("a", 0, 1, 2), Windowed("b", 3, 3, 1)]


def test_a_session_that_has_closed_is_not_retracted_by_one_that_closes_in_the_same_batch():
    driver = TopologyDriver(sessions_app(gap=1, grace=1))
    driver.send("in", 1, key="a", timestamp=0)
    assert driver.values("updates") == [Windowed("a", 0, 0, 1)]
    driver.send_all("in", [Record("b", 1, 3), Record("a", 1, 1), Record("a", 1, 0), Record("b", 1, 50)])
    assert driver.values("final") == [Windowed("a", 0, 0, 1), Windowed("a", 0, 1, 2), Windowed("b", 3, 3, 1)]
    assert driver.values("updates") == [
        Windowed("a", 0, 1, 2),
        Windowed("b", 3, 3, 1),
        Windowed("b", 50, 50, 1),
    ]


def test_a_session_that_grows_and_closes_before_the_next_commit_is_updated_before_it_is_final():
    driver = TopologyDriver(sessions_app())
    driver.send("in", 1, key="a", timestamp=0)
    assert driver.values("updates") == [Windowed("a", 0, 0, 1)]
    driver.send_all("in", [Record("a", 1, 5), Record("b", 1, 100)])
    assert driver.values("updates") == [
        Windowed("a", 0, 0, None),
        Windowed("a", 0, 5, 2),
        Windowed("b", 100, 100, 1),
    ]
    assert driver.values("final") == [Windowed("a", 0, 5, 2)]


def test_results_have_the_time_of_the_sessions_last_event():
    driver = TopologyDriver(sessions_app())
    driver.send_all("in", [Record("a", 1, 3), Record("a", 1, 7), Record("a", 1, 100)])
    assert [record.timestamp for record in driver.read("final")] == [7]
    assert [record.timestamp for record in driver.read("updates")] == [7, 100]


def test_a_long_session_is_looked_at_once_for_each_gap_and_has_one_deadline():
    driver = TopologyDriver(sessions_app(gap=100))
    for time in range(1000):
        driver.send("in", 1, key="a", timestamp=time)
        assert len(driver.store("sessions-deadlines")) == 1
    assert driver.store("sessions") == {"a": ((0, 999, 1000),)}


def test_idle_sessions_close_with_the_wall_clock():
    driver = TopologyDriver(sessions_app(gap=10, grace=5, close_idle_after=milliseconds(1000)))
    driver.send("in", 1, key="a", timestamp=50)
    driver.advance(milliseconds(999))
    assert driver.values("final") == []
    driver.advance(milliseconds(1000))
    assert driver.values("final") == [Windowed("a", 50, 50, 1)]
    assert driver.store("sessions") == driver.store("sessions-deadlines") == {}


def test_reduced_values_merge_by_the_function():
    app = App("test")
    windows = (
        app.stream("in", key=Text(), value=Json())
        .group_by_key()
        .window(Session(gap=milliseconds(10)), grace=milliseconds(100))
    ).reduce("longest", max, value=Json())
    windows.final().to("final")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", 5, 0), Record("a", 9, 20), Record("a", 1, 10), Record("a", 1, 500)])
    assert driver.values("final") == [Windowed("a", 0, 20, 9)]


def test_the_policy_applies_to_a_merge_that_fails_and_both_sessions_are_unchanged():
    def refuse(_first: int, _second: int) -> int:
        raise ValueError("no")

    app = App("test")
    aggregate = custom(int, int.__add__, name="sum", merge=refuse)
    windows = (
        app.stream("in", key=Text(), value=Json())
        .group_by_key()
        .window(Session(seconds=1), grace=milliseconds(2000))
    ).aggregate("sums", aggregate, on_error=skip)
    windows.updates(tombstones=True).to("updates")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", 1, 0), Record("a", 2, 2000), Record("a", 4, 1000)])
    assert driver.values("updates") == [Windowed("a", 0, 0, 1), Windowed("a", 2000, 2000, 2)]
    assert sum(driver.skipped().values()) == 1


def test_an_aggregate_that_cannot_merge_is_refused_with_what_to_do():
    grouped = App("test").stream("in", key=Text(), value=Json()).group_by_key()
    aggregate = custom(int, int.__add__, name="sum")
    with pytest.raises(TopologyError, match=r"'sums' aggregates session 10 ms.*\n.*merge="):
        grouped.window(Session(gap=milliseconds(10))).aggregate("sums", aggregate)
    grouped.window(Tumbling(size=milliseconds(10))).aggregate("sums", aggregate)


def test_windows_over_sessions_find_none_of_them_late():
    app = App("test")
    sessions = (
        app.stream("in", key=Text(), value=Json())
        .group_by_key()
        .window(Session(gap=milliseconds(10)))
        .count("visits")
    )
    (
        sessions.final()
        .group_by_key()
        .window(Tumbling(size=milliseconds(50)))
        .count("per-window")
        .final()
        .to("out")
    )
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", 1, time) for time in (0, 5, 20, 45, 60, 200, 400)])
    assert driver.values("out") == [Windowed("a", 0, 50, 3), Windowed("a", 50, 100, 1)]
    assert driver.late() == {}
