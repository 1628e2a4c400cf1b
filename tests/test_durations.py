"""Durations in a program: ``timedelta``s everywhere, and bare numbers refused where they are written."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, strategies as st

from streams import (
    App,
    ConfigurationError,
    Json,
    Text,
    TopologyError,
    Tumbling,
    days,
    hours,
    key_value_store,
    milliseconds,
    minutes,
    retry,
    seconds,
)
from streams.testing import TopologyDriver


def test_durations_are_timedeltas():
    assert [milliseconds(5), seconds(2), minutes(1), hours(1), days(1)] == [
        timedelta(milliseconds=5),
        timedelta(seconds=2),
        timedelta(minutes=1),
        timedelta(hours=1),
        timedelta(days=1),
    ]
    assert seconds(0.25) == timedelta(milliseconds=250)
    assert type(seconds(0.25)) is timedelta
    assert seconds(0) == timedelta()


@given(st.integers(0, 10**9))
def test_a_float_of_seconds_counts_as_it_is_written(number):
    assert seconds(float(Fraction(number, 1000))) == timedelta(milliseconds=number)


@pytest.mark.parametrize("number", [-1, 0.0001, float("nan"), float("inf"), True, "1", None, 10**30])
def test_a_duration_that_is_no_whole_number_of_milliseconds_is_refused(number):
    with pytest.raises(ConfigurationError, match="a duration"):
        seconds(number)


def both(one: Any, other: Any) -> Any:
    return [one, other]


def joined(**options: Any) -> None:
    app = App("shop")
    left, right = (app.stream(topic, key=Text(), value=Json()) for topic in ("left", "right"))
    left.join(right, both, **{"within": minutes(1), "store": "pairs", **options})


def windowed(**options: Any) -> None:
    App("shop").stream("in", key=Text()).group_by_key().window(Tumbling(minutes(1)), **options)


async def look_up(value: Any) -> Any:
    return value


def called(**options: Any) -> None:
    App("shop").stream("in").map_async(look_up, **options)


def scheduled(every: Any) -> None:
    class Reporting:
        def open(self, context: Any) -> None:
            context.schedule(every, print, on="stream_time")

        def process(self, record: Any, context: Any) -> None:
            pass

    app = App("shop")
    app.stream("in").process(Reporting)
    TopologyDriver(app).send("in", 1)


def advanced(duration: Any) -> None:
    app = App("shop")
    app.stream("in").peek(print)
    TopologyDriver(app).advance(duration)


TAKERS: dict[str, Any] = {
    "within": lambda duration: joined(within=duration),
    "grace": lambda duration: joined(grace=duration),
    "close_idle_after": lambda duration: joined(close_idle_after=duration),
    "grace of windows": lambda duration: windowed(grace=duration),
    "close_idle_after of windows": lambda duration: windowed(close_idle_after=duration),
    "ttl": lambda duration: key_value_store("seen", ttl=duration),
    "timeout": lambda duration: called(timeout=duration),
    "backoff": lambda duration: retry(3, backoff=duration),
    "longest_backoff": lambda duration: retry(3, longest_backoff=duration),
    "schedule": scheduled,
    "the time to advance by": advanced,
}
"""What a duration is given to, by what an error calls it."""


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("number", [0, 300_000, -1, 0.5, float("nan"), True, "5m", 10**30])
def test_a_bare_number_is_refused_where_it_is_written(taker, number):
    with pytest.raises(ConfigurationError, match=taker.partition(" of ")[0]) as refused:
        TAKERS[taker](number)
    assert f"must be a duration, got {number!r}" in str(refused.value)
    assert "minutes(5), or timedelta(minutes=5)" in str(refused.value)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("duration", [timedelta(microseconds=1500), timedelta(milliseconds=-5)])
def test_durations_that_are_negative_or_no_whole_milliseconds_are_refused(taker, duration):
    with pytest.raises(ConfigurationError):
        TAKERS[taker](duration)


@pytest.mark.parametrize("taker", ["ttl", "timeout", "schedule", "close_idle_after of windows"])
def test_none_at_all_is_refused_where_it_would_mean_nothing(taker):
    with pytest.raises(TopologyError):
        TAKERS[taker](timedelta())


@pytest.mark.parametrize("window", [minutes(1), 60_000])
def test_a_duration_alone_is_no_window(window):
    with pytest.raises(
        TopologyError, match=r"(?s)needs Tumbling.*, got .*window\(Tumbling\(minutes\(1\)\)\)"
    ):
        App("shop").stream("in", key=Text()).group_by_key().window(window)
    with pytest.raises(TopologyError, match="'pairs': window must be a JoinWindow, got"):
        joined(within=None, window=window)


@pytest.mark.parametrize("taker", TAKERS)
def test_a_timedelta_is_taken_as_what_the_functions_make(taker):
    TAKERS[taker](timedelta(seconds=5))
