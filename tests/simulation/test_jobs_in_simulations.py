"""Apps with jobs in simulations: what becomes of each job must not depend on faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, ConfigurationError, Cron, Limit, Retry, seconds
from streams.jobs.record import JobRecord
from streams.records import FetchedLists
from streams.serde import Json
from streams.simulation import Simulator
from streams.simulation.comparisons import TIMED
from streams.simulation.inputs import read_inputs
from streams.simulation.jobs import JOBS, JobComparison, QueueTopics

if TYPE_CHECKING:
    from pathlib import Path

    from streams.simulation.run import InputRecord

ORDERS: list[tuple[Any, ...]] = [
    (b"%d" % number, msgspec.json.encode({"key": "abc"[number % 3], "number": number}), number)
    for number in range(20)
]
TOPICS = {"shop-jobs", "shop-job-results", "shop-job-releases", "shop-jobs-changelog"}


def shop(guarantee: Any = "exactly_once") -> App:
    """An app with jobs of all kinds."""
    app = App("shop", job_partitions=1, guarantee=guarantee)

    @app.job(name="charge", key=lambda key, number: key, retry=Retry(3, backoff=seconds(2)))
    def charge(key: str, number: int) -> int:
        if number % 5 == 3:
            raise ValueError(number)
        return number

    @app.job(name="remind")
    def remind(number: int) -> int:
        return number

    @app.job(name="limited", limit=Limit(rate=2, per=seconds(3)))
    def limited(number: int) -> int:
        return number

    @app.job(name="once", expires=seconds(1))
    def once(key: str) -> str:
        return key

    orders = app.stream("orders", value=Json(dict[str, Any]))
    orders.enqueue(charge, lambda order: charge.call(order["key"], order["number"]))
    orders.enqueue(remind, lambda order: remind.using(delay=seconds(20)).call(order["number"]))
    orders.enqueue(limited, lambda order: limited.call(order["number"]))
    orders.enqueue(once, lambda order: once.using(unique=True).call(order["key"]))
    return app


def counting(topic: str = "") -> App:
    """An app whose job's result depends on how often it was executed before."""
    app = App("shop", job_partitions=1)
    executed: list[int] = []

    @app.job(name="count")
    def count(number: int) -> int:
        executed.append(number)
        return len(executed)

    orders = app.stream("orders", value=Json(dict[str, Any]))
    orders.enqueue(count, lambda order: count.call(order["number"]))
    if topic:
        app.stream("shop-job-results", value=Json(dict[str, Any])).to(topic, value=Json())
    return app


def test_faults_do_not_change_what_becomes_of_jobs() -> None:
    jobs: list[tuple[Any, ...]] = [
        (
            b"z",
            msgspec.json.encode({"job": "charge", "arguments": {"key": "z", "number": number}, "key": "z"}),
            0,
        )
        for number in range(5)
    ]
    simulator = Simulator(shop(), {"orders": ORDERS, "shop-jobs": [*jobs, (b"y", b'{"job":"nobody"}', 0)]})
    assert {topic for topic, how in simulator.topics.items() if how == JOBS} == TOPICS
    *_, report = simulator.run(range(12))
    assert report.differences == []
    assert report.faults.total() > 12
    expected = simulator.expected["shop-job-results", b"charge"]
    assert len(expected) == len(ORDERS) + len(jobs)
    assert sum(b'"failed"' in (found.value or b"") for found in expected) == 5
    # Those of unique jobs, and of jobs that may expire, depend on times; each has an end.
    assert len(simulator.expected["shop-job-results", b"once"]) == len(ORDERS)
    assert len(simulator.expected["shop-dead-letters", None]) == 6


def test_the_order_of_partitions_does_not_change_what_becomes_of_jobs() -> None:
    *_, report = Simulator(shop(), {"orders": ORDERS}, partitions=2).run(range(6))
    assert report.differences == []


def test_at_least_once_may_repeat_jobs() -> None:
    *_, report = Simulator(shop("at_least_once"), {"orders": ORDERS}).run(range(6))
    assert report.differences == []
    assert report.compared["shop-job-results"] == JOBS


def test_a_result_that_depends_on_repetitions_is_a_difference() -> None:
    *_, report = Simulator(counting(), {"orders": ORDERS}).run(range(10))
    (difference,) = report.differences
    assert difference.topic == "shop-job-results"
    assert difference.key == b"count"
    assert difference.expected != difference.got
    assert b'"result":' in (difference.expected[0].value or b"")


def test_schedules_may_release_more_in_a_run_that_takes_longer() -> None:
    app = shop()

    @app.job(name="nightly", schedule=Cron("*/5 * * * *", zone="Europe/Berlin"))
    def nightly() -> str:
        return "done"

    simulator = Simulator(app, {"orders": ORDERS})
    *_, report = simulator.run(range(6))
    assert report.differences == []
    assert report.faults.total() > 6
    # They are not lost from the comparison of the others.
    assert len(simulator.expected["shop-job-results", b"charge"]) == len(ORDERS)


@pytest.mark.parametrize(("may_repeat", "found"), [(False, 1), (True, 0)])
def test_an_instant_of_a_schedule_that_is_released_twice_is_a_difference(
    may_repeat: bool, found: int
) -> None:
    queue = QueueTopics("jobs", "ends", "releases", "changelog")
    jobs = [
        msgspec.json.encode(JobRecord("nightly", schedule="nightly", scheduled=instant))
        for instant in (1, 2, 2, 3)
    ]
    comparison = JobComparison(queue, {}, may_repeat=may_repeat)
    batch = FetchedLists("jobs", 0, [None] * 4, jobs, [0] * 4, range(4))
    said = list(comparison.take(batch) or ())
    assert [b'"scheduled":2' in item.value for item in said] == [True] * found


def test_what_is_made_of_results_depends_on_times() -> None:
    simulator = Simulator(counting("totals"), {"orders": ORDERS[:2]})
    assert simulator.topics["totals"] == TIMED


def test_jobs_left_in_the_store_are_compared() -> None:
    app = App("shop", job_partitions=1)

    @app.job(name="remind")
    def remind(number: int) -> None: ...

    orders = app.stream("orders", value=Json(dict[str, Any]))
    orders.enqueue(remind, lambda order: remind.using(delay=seconds(400_000)).call(order["number"]))
    simulator = Simulator(app, {"orders": ORDERS})
    assert len(simulator.expected["shop-jobs-changelog", b"remind"]) == len(ORDERS)
    *_, report = simulator.run(range(6))
    assert report.differences == []


def read(tmp_path: Path, app: App, lines: str) -> list[InputRecord]:
    orders, jobs = tmp_path / "orders", tmp_path / "jobs"
    orders.write_text("")
    jobs.write_text(lines)
    return read_inputs(app.topology, {"orders": orders, "shop-jobs": jobs}, {})["shop-jobs"]


def test_lines_of_jobs_go_where_a_program_would_have_put_them(tmp_path: Path) -> None:
    lines = [
        '{"job":"charge","key":"a"}',
        '{"job":"limited","key":"a","limit":"l"}',
        '{"job":"once","unique":"u"}',
        '{"job":"remind"}',
        "no job",
    ]
    found = read(tmp_path, shop(), "\n".join(lines))
    assert [record.key for record in found] == [b"a", b"l", b"u", None, None]


def test_the_input_of_the_queue_is_optional(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    orders.write_text("")
    assert set(read_inputs(shop().topology, {"orders": orders}, {})) == {"orders"}
    with pytest.raises(ConfigurationError, match="does not read others"):
        read_inputs(shop().topology, {"orders": orders, "others": orders}, {})
