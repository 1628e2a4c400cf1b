"""The reports of workers, put together."""

from __future__ import annotations

from typing import Any

from streams.monitoring.app_report import put_together
from streams.monitoring.worker_report import BottleneckStatus, PartitionStatus, TaskStatus, WorkerReport
from streams.records import TopicPartition

PLACES = [TopicPartition("in", number) for number in range(4)]


def partition(number: int, **figures: Any) -> PartitionStatus:
    known: dict[str, Any] = {
        "task": f"0_{number}",
        "position": 5,
        "end": 5,
        "lag": 0,
        "waiting_seconds": 0.0,
        "arrival_rate": 1.0,
        "processing_rate": 1.0,
        "caught_up_in_seconds": 0.0,
        "deleted_in_seconds": None,
        "age_seconds": 0.5,
        "problem": "",
    }
    return PartitionStatus(topic="in", partition=number, **(known | figures))


def cause(subject: str, share: float = 0.9) -> BottleneckStatus:
    return BottleneckStatus(
        cause="step", subject=subject, share=share, sentence=f"step {subject!r} takes {share:.0%}"
    )


def worker(name: str, *partitions: PartitionStatus, **report: Any) -> WorkerReport:
    known: dict[str, Any] = {
        "app": "shop",
        "version": "1",
        "started": 0,
        "memory_bytes": None,
        "state": "running",
        "time": 1_000,
        "measured": 1_000,
        "condition": "keeping up",
        "since": 500,
        "caught_up_in_seconds": None,
        "waiting_seconds": 0.0,
        "bottlenecks": [],
        "busy_seconds": {},
        "commits": 1,
        "transactions_aborted": 0,
        "problems": {},
        "tasks": [],
        "steps": [],
        "rebalances": [],
    }
    return WorkerReport(worker=name, partitions=list(partitions), **(known | report))


def test_an_app_is_as_well_as_its_worst_worker():
    one = worker("a", partition(0), partition(1, lag=7, waiting_seconds=40.0), condition="falling behind")
    other = worker("b", partition(2), partition(3))
    found = put_together("shop", {"a:1": one, "b:1": other}, PLACES)
    assert (found.condition, found.since) == ("falling behind", 500)
    assert (found.lag, found.waiting, found.arrival_rate) == (7, 40.0, 4.0)
    assert (found.silent, found.missing) == ([], [])


def test_catching_up_takes_as_long_as_the_slowest_worker():
    reports = {
        name: worker(name, condition="catching up", caught_up_in_seconds=seconds, since=since)
        for name, seconds, since in (("a", 10.0, 700), ("b", 90.0, 600))
    }
    found = put_together("shop", reports, [])
    assert (found.condition, found.since, found.caught_up_in) == ("catching up", 600, 90.0)
    reports["c"] = worker("c", condition="catching up")
    assert put_together("shop", reports, []).caught_up_in is None


def test_what_a_silent_worker_has_is_unknown_and_not_zero():
    found = put_together("shop", {"a:1": worker("a", partition(0), partition(1)), "b:1": None}, PLACES)
    assert found.condition == "keeping up"
    assert found.silent == ["b:1"]
    assert found.missing == PLACES[2:]
    assert (found.lag, found.waiting, found.arrival_rate, found.processing_rate) == (None,) * 4


def test_without_workers_nothing_is_known():
    found = put_together("shop", {"a:1": None}, PLACES)
    assert (found.condition, found.since, found.lag) == ("no workers", None, None)


def test_workers_of_another_app_at_a_published_address_are_left_out():
    found = put_together("shop", {"a:1": worker("a", partition(0), app="other")}, PLACES[:1])
    assert found.condition == "no workers"
    assert found.missing == PLACES[:1]


def test_a_partition_that_moves_is_counted_once_with_its_newest_figures():
    old = worker("a", partition(0, lag=9), measured=1_000)
    new = worker("b", partition(0, lag=4), measured=2_000)
    assert put_together("shop", {"b:1": new, "a:1": old}, PLACES[:1]).lag == 4


def test_a_cause_at_several_workers_is_said_once_with_its_largest_share():
    reports = {
        "a": worker("a", bottlenecks=[cause("enrich", 0.8)]),
        "b": worker("b", bottlenecks=[cause("enrich", 0.9)]),
        "c": worker("c", bottlenecks=[cause("parse")]),
    }
    found = put_together("shop", reports, [])
    assert list(found.bottlenecks) == ["step 'enrich' takes 90% (a, b)", "step 'parse' takes 90% (c)"]


def test_a_hot_partition_is_found_over_all_workers():
    reports = {
        "a": worker("a", partition(0, arrival_rate=900.0), partition(1, arrival_rate=30.0)),
        "b": worker("b", partition(2, arrival_rate=30.0), partition(3, arrival_rate=40.0)),
    }
    (sentence,) = put_together("shop", reports, PLACES).bottlenecks
    assert sentence.startswith("partition in-0 gets 90% of the records of in, which has 4")


def test_lag_in_one_partition_makes_it_hot_while_nothing_arrives():
    items = [partition(number, arrival_rate=0.0, lag=5 if number else 985) for number in range(4)]
    (sentence,) = put_together("shop", {"a": worker("a", *items)}, PLACES).bottlenecks
    assert sentence.startswith("partition in-0 gets 98% of the records of in, which has 4")


def test_a_few_records_make_no_partition_hot():
    items = [
        partition(number, arrival_rate=0.0 if number else 0.2, lag=0 if number else 9) for number in range(4)
    ]
    assert put_together("shop", {"a": worker("a", *items)}, PLACES).bottlenecks == []


def test_workers_that_are_wanted_are_summed_before_they_are_rounded():
    reports = {
        "a": worker("a", workers_wanted=1.2, workers_useful=0.5),
        "b": worker("b", workers_wanted=1.2, workers_useful=0.4),
    }
    found = put_together("shop", reports, [])
    assert (found.wanted, found.useful) == (3, 1)
    assert put_together("shop", {**reports, "c": None}, []).wanted is None
    assert put_together("shop", {**reports, "c": worker("c")}, []).wanted is None


def test_an_app_without_records_wants_one_worker():
    found = put_together("shop", {"a": worker("a", workers_wanted=0.0, workers_useful=0.0)}, [])
    assert (found.wanted, found.useful) == (1, 1)


def test_the_task_that_needs_most_is_the_one_with_most_records_times_what_one_takes():
    def task(number: int, records: int, seconds: float) -> TaskStatus:
        return TaskStatus(
            task=f"0_{number}",
            records=records,
            seconds=seconds,
            stream_time=None,
            restored=None,
            to_restore=None,
        )

    # The first has been there for longer.
    report = worker(
        "a",
        partition(0, arrival_rate=1.0),
        partition(1, arrival_rate=50.0),
        tasks=[task(0, 1_000, 10.0), task(1, 100, 1.0)],
    )
    assert put_together("shop", {"a": report}, []).largest_task == "0_1"
