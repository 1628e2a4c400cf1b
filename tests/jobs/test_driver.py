"""Jobs that a program under test enqueues itself, in the driver."""

from __future__ import annotations

from typing import Any

import pytest

from streams import (
    App,
    JobFailed,
    JobPending,
    JobUnknown,
    Json,
    Retry,
    Text,
    current_job,
    days,
    minutes,
    seconds,
)
from streams.testing import TopologyDriver

NOON = 1_800_000_000_000

app = App("driven")
done: list[str] = []


@app.job(name="charge", retry=Retry(3, backoff=seconds(10), jitter=0))
def charge(order: str, cents: int = 1) -> str:
    done.append(order)
    return f"{order}: {cents}"


@app.job(name="order")
def order(name: str) -> None:
    charge.enqueue(f"{name}-1")
    charge.using(delay=minutes(1)).enqueue(f"{name}-2")


@app.job(name="order-async")
async def order_async(name: str) -> str:
    charge.enqueue(name)
    return current_job().id


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


def test_a_program_enqueues_jobs_and_reads_their_results() -> None:
    with TopologyDriver(app, clock=NOON) as driver:
        handle = charge.enqueue("o-1", 500)
        assert handle.result(timeout=seconds(1)) == "o-1: 500"
        assert app.job_handle(handle.id).result(timeout=seconds(1)) == "o-1: 500"
        later = charge.using(delay=days(90)).enqueue("o-2")
        with pytest.raises(JobPending):
            later.result(timeout=seconds(1))
        with pytest.raises(JobUnknown):
            app.job_handle("0-99").result(timeout=seconds(1))
        assert [(job.id, job.arguments, job.due) for job in driver.enqueued(charge)] == [
            ("0-0", {"order": "o-1", "cents": 500}, None),
            ("0-1", {"order": "o-2"}, NOON + 90 * 86_400_000),
        ]
        assert driver.enqueued(charge) == []
        driver.advance(days(90))
        assert later.result(timeout=seconds(1)) == "o-2: 1"
        assert [handle.id for handle in charge.enqueue_many([charge.call("a"), charge.call("b")])] == [
            "0-2",
            "0-3",
        ]
    assert done == ["o-1", "o-2", "a", "b"]


def test_jobs_that_jobs_enqueue_follow_them() -> None:
    with TopologyDriver(app, clock=NOON) as driver:
        order.enqueue("x")
        assert order_async("y").close() is None
        order_async.enqueue("y")
        assert done == ["x-1", "y"]
        driver.advance(minutes(1))
        assert done == ["x-1", "y", "x-2"]


def test_jobs_wait_until_the_test_runs_them() -> None:
    with TopologyDriver(app, clock=NOON, run_jobs=False) as driver:
        handle = charge.enqueue("o-1")
        driver.advance(minutes(1))
        assert done == []
        driver.restart()
        driver.run_due()
        assert done == ["o-1"]
        assert handle.result(timeout=seconds(1)) == "o-1: 1"


def test_executions_can_be_made_to_fail() -> None:
    with TopologyDriver(app, clock=NOON, check_dead_letters=False) as driver:
        driver.fail_next(charge, times=2)
        handle = charge.enqueue("o-1")
        driver.advance(seconds(10))
        driver.advance(seconds(20))
        assert done == ["o-1"]
        assert handle.result(timeout=seconds(1)) == "o-1: 1"
        driver.fail_next(charge, times=3, error=ValueError("no"))
        failing = charge.enqueue("o-2")
        driver.advance(minutes(1))
        driver.advance(minutes(1))
        with pytest.raises(JobFailed, match="has failed after 3 attempts: ValueError: no") as raised:
            failing.result(timeout=seconds(1))
        assert (raised.value.ending, raised.value.tries, raised.value.error_type) == (
            "failed",
            3,
            "ValueError",
        )
        assert len(driver.dead_letters()) == 1


def test_a_stream_reads_the_results_and_enqueues_what_follows() -> None:
    family = App("family")

    @family.job(name="part", key=lambda number: f"part-{number}")
    def part(number: int) -> int:
        return number

    @family.job(name="all-done", key=lambda count: f"total-{count}")
    def all_done(count: int) -> None:
        done.append(str(count))

    ends = family.stream("family-job-results", key=Text(), value=Json(dict[str, Any]))
    parts = ends.filter(lambda end: end["job"] == "part").group_by(lambda end: end["job"])
    totals = parts.count("parts").to_stream().filter(lambda count: count == 5)
    totals.enqueue(all_done, all_done.call)
    with TopologyDriver(family, partitions=4, clock=NOON) as driver:
        part.enqueue_many([part.call(number) for number in range(5)])
        assert done == ["5"]
        assert [job.arguments["number"] for job in driver.enqueued(part)] == [0, 1, 2, 3, 4]
        assert [job.arguments for job in driver.enqueued(all_done)] == [{"count": 5}]
