"""When a record was appended, by the ends that were observed."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given, strategies as st

from streams.monitoring.offset_history import RESOLUTION, Age, OffsetHistory


def observed(*ends: tuple[float, int]) -> OffsetHistory:
    history = OffsetHistory()
    for now, end in ends:
        history.observe(end, now)
    return history


def test_a_record_was_appended_between_the_last_end_before_it_and_the_first_after_it():
    history = observed((10, 5), (11, 5), (12, 9), (13, 12))
    assert history.age(4, 20.0) == Age(10, None)
    assert history.age(5, 20.0) == Age(8, 9)
    assert history.age(8, 20.0) == Age(8, 9)
    assert history.age(9, 20.0) == Age(7, 8)
    assert history.age(12, 20.0) == Age(0, 0)


def test_a_timestamp_decides_only_within_what_was_observed():
    assert Age(8, 9).nearest(8.5) == 8.5
    assert Age(8, 9).nearest(31_536_000) == 9
    assert Age(8, 9).nearest(0) == 8
    assert Age(8, None).nearest(31_536_000) == 31_536_000


def test_an_end_that_went_back_is_that_of_another_topic():
    history = observed((10, 500), (11, 2))
    assert history.age(1, 20.0) == Age(9, None)
    assert history.latest == 2


def test_the_rate_is_measured_over_the_last_seconds():
    history = observed(*((float(second), 10 * second) for second in range(100)), (100.0, 990))
    assert history.rate(10, 100.0) == pytest.approx(9.0)
    assert observed((5.0, 3)).rate(60, 5.0) is None
    # Nothing arrives any more.
    history.observe(990, 500.0)
    assert history.rate(60, 500.0) == 0


STEPS = st.lists(st.tuples(st.floats(0.5, 5), st.integers(0, 3)), min_size=1, max_size=2_000)


@given(STEPS, st.data())
def test_thinned_histories_know_moments_to_a_share_of_their_age(steps, data):
    now, end = 0.0, 0
    exact: list[tuple[float, int]] = []
    history = OffsetHistory()
    for elapsed, grown in steps:
        now, end = now + elapsed, end + grown
        exact.append((now, end))
        history.observe(end, now)
    if exact[0][1] >= end:
        return
    offset = data.draw(st.integers(exact[0][1], end - 1))
    at = bisect_right(exact, offset, key=lambda item: item[1])
    least, most = now - exact[at][0], now - exact[at - 1][0]
    found = history.age(offset, now)
    assert found.most is not None
    # Never wrong, and not much less exact than what was observed.
    assert found.least <= least
    assert found.most >= most
    assert found.width <= (most - least) + 2 * RESOLUTION * found.most + 5


def test_a_long_backlog_takes_bounded_memory():
    history = OffsetHistory()
    for second in range(200_000):
        history.observe(second, float(second))
    assert len(history) < 2_000
    age = history.age(100, 200_000.0)
    assert age.least <= 199_900 <= (age.most or 0)


def test_what_is_processed_is_forgotten_but_for_what_rates_need():
    history = OffsetHistory()
    for second in range(1_000):
        history.observe(second, float(second))
        history.forget(second, float(second))
    assert len(history) < 150
    assert history.rate(60, 999.0) == pytest.approx(1.0)
