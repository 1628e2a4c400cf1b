"""The samples that a worker keeps for charts."""

from __future__ import annotations

from streams.monitoring.partition_figures import PartitionObserver
from streams.monitoring.series import KEPT_SAMPLES, SAMPLE_SECONDS, Series
from streams.records import TopicPartition

STEP = SAMPLE_SECONDS * 1000


def figures(lag: int, now: float):
    observer = PartitionObserver(TopicPartition("t", 0))
    observer.end(100, now)
    observer.position(100 - lag, now)
    return {observer.figures(now).partition: observer.figures(now)}


def test_a_sample_is_kept_for_each_ten_seconds():
    series = Series()
    for second in range(35):
        series.observe(
            second * 1000, figures(second, second), elapsed=second, busy=second / 4, dead_letters=second
        )
    samples = series.since(-1)
    assert [item.time for item in samples] == [STEP, 2 * STEP, 3 * STEP]
    assert [item.lag for item in samples] == [10, 20, 30]
    assert [item.dead_letters for item in samples] == [10, 20, 30]
    assert [item.busy for item in samples] == [0.25, 0.25, 0.25]
    assert list(series.since(2 * STEP)) == [samples[2]]


def test_without_partitions_nothing_waits_and_what_is_unknown_is_unknown():
    series = Series()
    unknown = PartitionObserver(TopicPartition("t", 0)).figures(0.0)
    for second, item in ((1, {}), (11, {}), (21, {unknown.partition: unknown})):
        series.observe(second * 1000, item, elapsed=second, busy=0.0, dead_letters=0)
    none, one = series.since(0)
    assert (none.waiting, none.lag) == (0.0, 0)
    assert (one.waiting, one.lag) == (None, None)


def test_six_hours_are_kept():
    series = Series()
    for at in range(KEPT_SAMPLES + 50):
        series.observe(at * STEP, {}, elapsed=at, busy=0.0, dead_letters=0)
    assert len(series.since(0)) == KEPT_SAMPLES
