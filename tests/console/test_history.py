"""Samples of workers, and what is made of them for charts."""

from __future__ import annotations

import pytest

from streams.console.history import STEP, History, Mark
from streams.monitoring.series import KEPT_SAMPLES, Sample


def sample(at: int, *, waiting: float | None = 1.0, lag: int | None = 5, letters: int = 0) -> Sample:
    return Sample(at * STEP, waiting, lag, 10.0, 8.0, 0.5, letters)


def test_figures_of_several_workers_are_put_together():
    history = History()
    history.add("a", [sample(1, waiting=1.0, lag=3), sample(2, waiting=4.0)])
    history.add("b", [sample(1, waiting=2.0, lag=4)])
    first, second = history.points(0, 10 * STEP)
    assert (first.waiting, first.lag, first.arrival_rate, first.workers) == (2.0, 7, 20.0, 2)
    assert (second.waiting, second.workers) == (4.0, 1)


def test_what_one_worker_does_not_know_is_unknown():
    history = History()
    history.add("a", [sample(1, waiting=None, lag=None)])
    history.add("b", [sample(1)])
    (point,) = history.points(0, STEP)
    assert (point.waiting, point.lag) == (None, None)
    assert point.arrival_rate == 20.0


@pytest.mark.parametrize(
    ("totals", "new"), [([5, 5, 9], [0, 0, 4]), ([5, 9, 2, 3], [0, 4, 2, 1]), ([0, 1], [0, 1])]
)
def test_dead_letters_are_counted_although_a_worker_starts_again(totals, new):
    history = History()
    history.add("a", [sample(at, letters=total) for at, total in enumerate(totals, 1)])
    assert [point.dead_letters for point in history.points(0, 100 * STEP)] == new


def test_the_same_sample_is_counted_once_and_old_ones_are_dropped():
    history = History()
    history.add("a", [sample(at) for at in range(1, KEPT_SAMPLES + 10)])
    history.add("a", [sample(KEPT_SAMPLES)])
    assert len(history.points(0, 2 * KEPT_SAMPLES * STEP)) == KEPT_SAMPLES
    assert history.newest("a") == (KEPT_SAMPLES + 9) * STEP
    history.forget_before(2 * KEPT_SAMPLES * STEP)
    assert history.points(0, 2 * KEPT_SAMPLES * STEP) == []


def test_marks_are_kept_once_and_in_order():
    history = History()
    later, earlier = Mark(20, "start", "b was started"), Mark(10, "rebalance", "a: 2 partitions lost")
    history.mark([later])
    history.mark([earlier, later])
    assert history.marks(0) == [earlier, later]
    assert history.marks(15) == [later]
