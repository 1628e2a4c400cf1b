"""The event times of windows' results: updates are never ahead of their records."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from streams import App, Hopping, Session, Sliding, Text, Tumbling, count
from streams.durations import milliseconds
from streams.testing import TopologyDriver

EVENTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), min_size=1, max_size=25)


def results(window: Any, events: list[tuple[str, int]]) -> TopologyDriver:
    app = App("times")
    grouped = app.stream("in", key=Text(), value=Text()).group_by_key()
    windows = grouped.window(window, grace=milliseconds(100)).count("counts")
    windows.updates(tombstones=True).to("updates", key=Text())
    windows.final().to("final", key=Text())
    driver = TopologyDriver(app)
    for key, time in events:
        driver.send("in", "v", key=key, timestamp=time)
    driver.send("in", "v", key="end", timestamp=10_000)
    return driver


@settings(max_examples=25)
@given(EVENTS)
@pytest.mark.parametrize(
    "window", [Tumbling(milliseconds=10), Hopping(size=milliseconds(20), advance=milliseconds(5))]
)
def test_an_update_has_the_highest_event_time_of_its_records_and_a_final_result_the_end(window, events):
    driver = results(window, events)
    seen: dict[tuple[str, int], int] = {}
    at = 0
    for record in driver.read("updates"):
        place = record.key, record.value.start
        if record.key == "end":
            continue
        # Each update stands for the events sent up to its own: find the one that made it.
        inside = [time for key, time in events if key == record.key and place[1] <= time < record.value.end]
        assert record.timestamp == max(inside[: record.value.value])
        assert record.timestamp >= seen.get(place, 0)
        seen[place] = record.timestamp
        at += 1
    assert at
    for record in driver.read("final"):
        assert record.timestamp == record.value.end - 1


@settings(max_examples=25)
@given(EVENTS)
@pytest.mark.parametrize("window", [Sliding(milliseconds=10), Session(milliseconds=10)])
def test_updates_of_windows_that_events_make_are_not_ahead_of_their_key(window, events):
    driver = results(window, events)
    highest = {key: max(time for own, time in events if own == key) for key, _ in events}
    for record in driver.read("updates"):
        if record.key != "end":
            assert record.timestamp <= highest[record.key]
            assert record.timestamp <= record.value.end


def test_one_record_of_a_wrong_clock_does_not_move_the_results_of_other_keys():
    app = App("times")
    grouped = app.stream("in", key=Text(), value=Text()).group_by_key()
    grouped.window(Tumbling(days=7)).aggregate("counts", records=count()).updates().to("updates", key=Text())
    driver = TopologyDriver(app)
    driver.send("in", "v", key="good", timestamp=1_000)
    driver.send("in", "v", key="wrong", timestamp=9_000_000)
    driver.send("in", "v", key="good", timestamp=2_000)
    assert [(record.key, record.timestamp) for record in driver.read("updates")] == [
        ("good", 1_000),
        ("wrong", 9_000_000),
        ("good", 2_000),
    ]
