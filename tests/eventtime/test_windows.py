"""Windows against brute force over all events."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams.durations import days, hours, milliseconds, minutes
from streams.errors import TopologyError
from streams.eventtime.windows import (
    Hopping,
    JoinWindow,
    Session,
    Sliding,
    Tumbling,
    Windowed,
    merge_sessions,
    sliding_windows,
)

times = st.integers(0, 200)
durations = st.integers(1, 40)


def test_durations_of_a_window_add_up():
    assert Tumbling(minutes=1).size == milliseconds(60_000)
    assert Tumbling(minutes=1, seconds=1.5, milliseconds=3) == Tumbling(size=milliseconds(61_503))
    assert Sliding(seconds=10) == Sliding(difference=milliseconds(10_000))
    assert Session(days=1, hours=1).gap == milliseconds(90_000_000)
    assert replace(Tumbling(seconds=1), size=milliseconds(5)) == Tumbling(milliseconds=5)
    assert len({Session(seconds=1), Session(milliseconds=1000)}) == 1


def test_windows_of_one_length_take_it_first_or_by_name_or_in_parts_that_add_up():
    assert Tumbling(minutes(1)) == Tumbling(size=minutes(1)) == Tumbling(minutes=1)
    assert Tumbling(minutes(1), seconds=30) == Tumbling(seconds=90)
    assert Sliding(hours(1)) == Sliding(difference=hours(1)) == Sliding(minutes=60)
    assert Session(days(1)) == Session(gap=days(1)) == Session(hours=24)


def test_what_was_written_is_what_is_read():
    hopping = Hopping(size=minutes(5), advance=timedelta(minutes=1))
    assert (hopping.size, hopping.advance) == (timedelta(minutes=5), timedelta(minutes=1))
    assert replace(hopping, size=minutes(2)) == Hopping(size=minutes(2), advance=minutes(1))
    assert replace(JoinWindow(after=minutes(5)), before=minutes(1)).after == timedelta(minutes=5)
    assert [Tumbling(minutes(1)).end(60_000), hopping.end(60_000)] == [120_000, 360_000]


@pytest.mark.parametrize(
    "length", [0, 5, 5.0, True, None, "5", float("nan"), timedelta(seconds=-1), timedelta(microseconds=1)]
)
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Tumbling, "tumbling windows, size:"),
        (Sliding, "sliding windows, difference:"),
        (Session, "session windows, gap:"),
        (lambda length: Hopping(size=length, advance=minutes(1)), "hopping windows, size:"),
        (lambda length: Hopping(size=minutes(1), advance=length), "hopping windows, advance:"),
        (lambda length: JoinWindow(before=length), "join windows, before:"),
        (lambda length: JoinWindow(after=length), "join windows, after:"),
    ],
)
def test_a_window_refuses_what_is_no_duration_with_advice(make, what, length):
    with pytest.raises(TopologyError, match=what) as refused:
        make(length)
    if not isinstance(length, timedelta):
        assert f"must be a duration, got {length!r}" in str(refused.value)
        assert "minutes(5), or timedelta(minutes=5)" in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Tumbling, "tumbling windows need at least 1 ms of size, got 0 ms"),
        (lambda: Tumbling(seconds=-1), "tumbling windows, size: .* got -1 seconds"),
        (lambda: Tumbling(minutes=1, seconds=0.0001), "got 0.0001 seconds"),
        (
            lambda: Hopping(size=milliseconds(0), advance=milliseconds(1)),
            "hopping windows need at least 1 ms of size",
        ),
        (
            lambda: Hopping(size=milliseconds(5), advance=milliseconds(0)),
            "hopping windows need at least 1 ms of advance, got 0 ms",
        ),
        (
            lambda: Hopping(size=milliseconds(5), advance=timedelta(milliseconds=-2)),
            "hopping windows, advance: .* got -2",
        ),
        (
            lambda: Hopping(size=milliseconds(5), advance=milliseconds(6)),
            "advance of at most their size of 5 ms, got 6 ms",
        ),
        (Sliding, "sliding windows need at least 1 ms of difference"),
        (Session, "session windows need at least 1 ms of gap"),
    ],
)
def test_windows_that_cannot_be_say_why(make, message):
    with pytest.raises(TopologyError, match=message):
        make()


def test_descriptions_stay_as_they_are():
    assert Tumbling(minutes=1).describe() == "tumbling 60000 ms"
    assert (
        Hopping(size=milliseconds(60_000), advance=milliseconds(7_000)).describe()
        == "hopping 60000 ms every 7000 ms"
    )
    assert Sliding(seconds=10).describe() == "sliding 10000 ms"
    assert Session(minutes=30).describe() == "session 1800000 ms"


def test_a_windowed_result_is_a_value_with_fields():
    result = Windowed("a", 0, 10, 3)
    assert hash(result) == hash(Windowed("a", 0, 10, 3))
    assert msgspec.json.encode(result) == b'{"key":"a","start":0,"end":10,"value":3}'
    assert msgspec.json.decode(msgspec.json.encode(result), type=Windowed[str, int]) == result


def by_rule(timestamps: list[int], gap: int) -> list[tuple[int, int]]:
    """Sessions by definition: split sorted events where the next one is more than the gap away."""
    found: list[tuple[int, int]] = []
    for timestamp in sorted(timestamps):
        if found and timestamp - found[-1][1] <= gap:
            found[-1] = (found[-1][0], timestamp)
        else:
            found.append((timestamp, timestamp))
    return found


@given(st.lists(times, max_size=12), times, times, durations)
def test_sessions_to_merge_are_those_within_the_gap(timestamps, one, other, gap):
    sessions = [(start, end, index) for index, (start, end) in enumerate(by_rule(timestamps, gap))]
    start, end = min(one, other), max(one, other)
    found = merge_sessions(sessions, start, end, gap)
    assert sessions[found] == [
        session for session in sessions if session[0] - gap <= end and session[1] + gap >= start
    ]


@given(st.lists(times, max_size=20), durations)
def test_sessions_merged_event_by_event_are_those_of_all_events(timestamps, gap):
    sessions: list[tuple[int, int, Any]] = []
    for timestamp in timestamps:
        found = merge_sessions(sessions, timestamp, timestamp, gap)
        merged = sessions[found]
        sessions[found] = [
            (
                min([timestamp, *(session[0] for session in merged)]),
                max([timestamp, *(session[1] for session in merged)]),
                None,
            )
        ]
    assert [(start, end) for start, end, _ in sessions] == by_rule(timestamps, gap)


@given(st.sets(times, max_size=15), st.integers(1, 60), st.integers(-5, 280), st.integers(-5, 280))
def test_sliding_windows_are_all_that_exist_with_an_end_in_the_range(events, difference, low, high):
    timestamps = sorted(events)
    expected = set()
    for end in range(low, high):
        start = end - difference
        inside = [timestamp for timestamp in timestamps if start <= timestamp <= end]
        if inside and (end in events or start - 1 in events):
            first = timestamps.index(inside[0])
            expected.add((max(start, 0), end, first, first + len(inside)))
    found = list(sliding_windows(timestamps, difference, low, high))
    assert set(found) == expected
    assert len(found) == len(expected)
    assert found == sorted(found, key=lambda window: window[1])


def test_sliding_windows_of_the_example_in_kafka_streams_documentation():
    assert list(sliding_windows([8000, 9200, 12400], 5000, 0, 10**6)) == [
        (3000, 8000, 0, 1),
        (4200, 9200, 0, 2),
        (7400, 12400, 0, 3),
        (8001, 13001, 1, 3),
        (9201, 14201, 2, 3),
    ]
