from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, strategies as st

from apps.log_analysis.alert import CALM, Rule, Watch, watched
from apps.log_analysis.traffic import Traffic

RULE = Rule(raise_at=0.5, clear_below=0.1, windows=3, fewest_hits=10)


def traffic(errors: int, hits: int = 100) -> Traffic:
    return Traffic(
        path="/",
        start=0,
        end=60_000,
        hits=hits,
        bytes=0,
        errors=errors,
        error_share=errors / hits,
        p50_bytes=0,
        p99_bytes=0,
    )


def states(*windows: Traffic, watch: Watch = CALM) -> list[bool]:
    """Whether there is an alert after each window."""
    found = []
    for window in windows:
        watch = watched(watch, window, RULE)
        found.append(watch.raised)
    return found


def of_errors(*errors: int) -> list[bool]:
    return states(*map(traffic, errors))


def test_an_alert_is_raised_by_the_last_of_enough_windows_in_a_row():
    assert of_errors(50, 50, 50, 50) == [False, False, True, True]


def test_one_good_window_restarts_the_sequence():
    assert of_errors(90, 90, 49, 90, 90, 90) == [False] * 5 + [True]


def test_it_is_cleared_by_the_last_of_enough_windows_below_the_lower_threshold():
    assert of_errors(50, 50, 50, 9, 9, 9, 9) == [False, False, True, True, True, False, False]


def test_between_the_thresholds_everything_stays_as_it_is():
    assert of_errors(*[30] * 10) == [False] * 10
    assert of_errors(50, 50, 50, *[30] * 10) == [False, False, *[True] * 11]
    assert of_errors(50, 50, 50, 9, 9, 10, 9, 9, 9) == [False, False, *[True] * 6, False]


def test_windows_with_few_hits_neither_count_nor_interrupt():
    few = traffic(9, hits=9)
    assert states(traffic(50), few, traffic(50), few, traffic(50)) == [False, False, False, False, True]
    assert states(few, few, few) == [False] * 3


def test_a_path_without_errors_needs_no_memory():
    watch = CALM
    for errors in (0, 50, 0, 50, 50, 50, 0, 0, 0):
        watch = watched(watch, traffic(errors), RULE)
    assert watch == CALM


@pytest.mark.parametrize(("share", "raised"), [(0.24, False), (0.25, True)])
def test_the_default_rule_raises_at_a_quarter_in_three_windows(share, raised):
    watch = CALM
    for _ in range(3):
        watch = watched(watch, traffic(round(share * 100)), Rule())
    assert watch.raised == raised


@given(st.lists(st.integers(0, 100), max_size=60))
def test_every_change_has_its_row_of_windows_behind_it_and_every_such_row_its_change(shares):
    found = of_errors(*shares)
    alerting, begin = False, 0
    for raised, group in groupby(found):
        if raised != alerting:
            row = shares[begin - 2 : begin + 1]
            assert len(row) == 3
            assert all(share < 10 for share in row) if alerting else all(share >= 50 for share in row)
            alerting = raised
        begin += len(list(group))
    for end in range(3, len(shares) + 1):
        row = shares[end - 3 : end]
        if all(share >= 50 for share in row):
            assert found[end - 1]
        if all(share < 10 for share in row):
            assert not found[end - 1]
