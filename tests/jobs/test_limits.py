"""How many jobs of a limit begin in any span of time, against a count of all starts."""

from __future__ import annotations

from bisect import bisect_right
from datetime import timedelta

from hypothesis import given, strategies as st

from streams import Limit
from streams.jobs.limits import Bucket


@given(
    rate=st.integers(1, 200),
    per=st.integers(1, 20_000),
    waits=st.lists(st.integers(0, 3_000), max_size=300),
    restart=st.integers(1, 50),
)
def test_no_span_of_time_has_more_starts_than_the_rate(
    rate: int, per: int, waits: list[int], restart: int
) -> None:
    limit = Limit(rate=rate, per=timedelta(milliseconds=per))
    bucket, now, begun = Bucket(limit), 1_000_000, []
    for number, wait in enumerate(waits):
        opens = bucket.opens()
        assert opens is not None
        # A job that waits begins as soon as it may.
        now = max(now + wait, opens)
        bucket.begin(now)
        begun.append(now)
        assert len(bucket.starts) <= 130, "what is stored does not grow"
        if number % restart == 0:
            bucket = Bucket(limit, bucket.starts)
    for place, time in enumerate(begun):
        assert bisect_right(begun, time + per - 1) - place <= rate


def test_the_rate_is_used_up_at_once_where_it_was_not_used_before() -> None:
    bucket = Bucket(Limit(rate=100, per=timedelta(minutes=1)))
    for _ in range(100):
        assert (bucket.opens() or 0) <= 5_000
        bucket.begin(5_000)
    assert bucket.opens() == 65_000
    assert [group.count for group in bucket.starts] == [100]


def test_at_most_so_many_run_at_once() -> None:
    bucket = Bucket(Limit(running=2))
    bucket.begin(1)
    assert bucket.opens() == 0
    bucket.begin(1)
    assert bucket.opens() is None
