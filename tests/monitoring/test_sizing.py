"""How many workers and how many jobs at once the measured figures ask for."""

from __future__ import annotations

from hypothesis import given, strategies as st

from streams.monitoring.sizing import (
    JobDemand,
    TaskDemand,
    Verdict,
    concurrency_needed,
    workers_needed,
)


def tasks(*busy: float, each: float = 0.001, lag: int = 0) -> list[TaskDemand]:
    return [TaskDemand(f"0_{number}", share / each, each, lag) for number, share in enumerate(busy)]


def test_workers_that_have_enough_time_are_enough():
    needed = workers_needed(tasks(0.3, 0.3, 0.3, 0.3), 2)
    assert (needed.verdict, needed.wanted) == (Verdict.ENOUGH, 2)
    assert round(needed.busy, 9) == 1.2


def test_more_workers_are_needed_and_help():
    needed = workers_needed(tasks(0.5, 0.5, 0.5, 0.5), 2)
    assert (needed.verdict, needed.wanted) == (Verdict.MORE, 3)


def test_one_task_takes_more_than_a_worker_may_give():
    needed = workers_needed(tasks(0.1, 1.2, 0.1, 0.1), 4)
    assert needed.verdict is Verdict.SKEW
    assert needed.hottest is not None
    assert needed.hottest.task == "0_1"


def test_there_are_fewer_tasks_than_workers_are_needed():
    needed = workers_needed(tasks(0.65, 0.65), 2, share=0.65)
    assert (needed.verdict, needed.wanted) == (Verdict.ENOUGH, 2)
    needed = workers_needed(tasks(0.45, 0.45, 0.45), 3, share=0.5)
    assert (needed.verdict, needed.wanted, needed.unlimited) == (Verdict.ENOUGH, 3, 3)


def test_without_work_nothing_is_known():
    assert workers_needed([], 1).verdict is Verdict.UNKNOWN
    assert workers_needed([TaskDemand("0_0", 100.0, 0.0)], 1).verdict is Verdict.UNKNOWN


def test_the_backlog_is_to_be_worked_off_in_time():
    # 6,000 records of a millisecond in a minute take a tenth of a worker, beside the 60 % that arrive.
    demands = tasks(0.3, 0.3, lag=3_000)
    assert workers_needed(demands, 1).wanted == 1
    assert workers_needed(demands, 1, drain=60).wanted == 1
    assert workers_needed(demands, 1, drain=50).wanted == 2
    assert workers_needed(demands, 1, drain=1).verdict is Verdict.SKEW


@given(
    st.lists(st.floats(0, 0.69), min_size=1, max_size=12),
    st.integers(1, 12),
    st.sampled_from([0.7, 0.8, 1.0]),
)
def test_the_wanted_workers_are_the_fewest_that_are_not_too_busy(busy, running, share):
    needed = workers_needed(tasks(*busy), running, share=share)
    fewest = next(count for count in range(1, 100) if sum(busy) <= share * count + 1e-6)
    assert needed.unlimited == fewest
    assert needed.wanted == min(fewest, len(busy))
    if any(busy):
        expected = Verdict.ENOUGH if running >= needed.wanted else Verdict.MORE
        assert needed.verdict is expected


def test_places_for_jobs():
    mails, reports = JobDemand("mail", 20.0, 0.35), JobDemand("report", 0.1, 30.0)
    needed = concurrency_needed([reports, mails], 16)
    # 7 mails and 3 reports at once.
    assert (round(needed.at_once, 9), needed.wanted, needed.enough) == (10.0, 15, True)
    assert [item.job for item in needed.demands] == ["mail", "report"]
    assert not concurrency_needed([reports, mails], 14).enough


def test_jobs_that_have_never_ended_count_as_they_were_seen_to_run():
    needed = concurrency_needed([JobDemand("index", 0.01, None, running=4.0)], 4)
    assert (needed.at_once, needed.wanted, needed.enough) == (4.0, 6, False)


def test_waiting_jobs_are_to_be_executed_in_time():
    waiting = JobDemand("mail", 2.0, 0.5, backlog=600)
    assert concurrency_needed([waiting], 16).wanted == 2
    assert concurrency_needed([waiting], 16, drain=60).wanted == 9
