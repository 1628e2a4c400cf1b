"""Whether an app keeps up, from a course of waiting times."""

from __future__ import annotations

from streams.monitoring.condition import Condition, ConditionJudge, Judgement
from streams.monitoring.partition_figures import PartitionFigures
from streams.records import TopicPartition


def figures(waiting: float | None, *, lag: int = 100, arriving: float = 10, processing: float = 10):
    place = TopicPartition("in", 0)
    return [PartitionFigures(place, 0, lag, lag, waiting, arriving, processing, None, 0.0)]


class Course:
    """A judge with a goal of 30 seconds, asked each second from 0 on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.judge = ConditionJudge(30.0, 0.0)

    def run(self, *waits: float | None, stalled: bool = False, restoring: bool = False, **rates) -> Judgement:
        for wait in waits:
            self.now += 1
            judgement = self.judge.judge(
                figures(wait, **rates), stalled=stalled, restoring=restoring, now=self.now
            )
        return judgement


def test_short_waits_are_keeping_up_from_the_first_look():
    assert Course().run(0.4) == Judgement(Condition.KEEPING_UP, 1.0)


def test_unknown_is_no_condition_of_its_own():
    assert Course().run(None, None).condition is Condition.UNKNOWN


def test_growing_waits_are_falling_behind_since_they_passed_the_goal():
    course = Course()
    course.run(*range(30))
    assert course.run(*range(30, 40)) == Judgement(Condition.FALLING_BEHIND, 32.0)


def test_waits_that_stay_long_are_falling_behind_too():
    assert Course().run(*[300.0] * 20).condition is Condition.FALLING_BEHIND


def test_falling_waits_are_catching_up_with_a_time():
    course = Course()
    judgement = course.run(*(300.0 - second for second in range(20)), lag=600, arriving=10, processing=70)
    assert judgement == Judgement(Condition.CATCHING_UP, 6.0, 10.0)
    assert course.run(*[0.1] * 10).condition is Condition.KEEPING_UP


def test_one_long_wait_is_no_news():
    course = Course()
    course.run(*[0.1] * 10)
    assert course.run(31.0, 32.0, 33.0, 0.1).condition is Condition.KEEPING_UP
    assert course.run(0.1) == Judgement(Condition.KEEPING_UP, 1.0)


def test_stalls_and_restores_come_first():
    course = Course()
    course.run(0.1)
    assert course.run(*[0.1] * 10, restoring=True) == Judgement(Condition.RESTORING, 2.0)
    assert course.run(*[50.0] * 10, stalled=True) == Judgement(Condition.STALLED, 12.0)


def test_the_worst_partition_is_what_counts():
    judge = ConditionJudge(30.0, 0.0)
    for second in range(1, 20):
        judged = judge.judge(
            [*figures(0.0), *figures(100.0 + second)], stalled=False, restoring=False, now=float(second)
        )
    assert judged.condition is Condition.FALLING_BEHIND


def test_without_partitions_nothing_waits():
    assert ConditionJudge(30.0, 0.0).judge([], stalled=False, restoring=False, now=1.0).condition is (
        Condition.KEEPING_UP
    )
