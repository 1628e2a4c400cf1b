"""Commands for jobs in the driver: cancel, pause and resume, retry; what is stored of them, and undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, hours, minutes, seconds
from streams.jobs.commands import Action, Command
from streams.jobs.current import current_job
from streams.jobs.limits import Limit
from streams.jobs.retry import Retry
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from streams.jobs.job import Call

NOON = 1_800_000_000_000


class Work:
    """An app whose jobs note what they do, a driver of it, and commands as the command line writes them."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.app = App("work")

    def begin(self) -> None:
        self.driver = TopologyDriver(self.app, clock=NOON)

    def send(self, *calls: Call[Any]) -> None:
        for call in calls:
            key = call.partition_key
            self.driver.send_bytes(
                "work-jobs", call.payload(self.driver.clock), key=None if key is None else key.encode()
            )

    def command(self, action: Action, *jobs: str, **scope: str) -> None:
        command = Command(action, self.driver.clock, "ann@desk", list(jobs), **scope)
        self.driver.send_bytes("work-job-commands", msgspec.json.encode(command))

    def ends(self) -> list[tuple[str, str, int]]:
        ends = self.driver.read("work-job-results")
        return [(end.key, end.value.ending.value, end.value.tries) for end in ends]


@pytest.fixture
def work() -> Work:
    return Work()


def test_a_job_that_is_cancelled_while_it_waits_never_begins_and_has_one_end(work: Work) -> None:
    @work.app.job(name="step", key=lambda number: "k", retry=Retry(2, backoff=hours(1), jitter=0))
    def step(number: int) -> None:
        work.done.append(number)
        if number == 1:
            raise OSError("not now")

    work.begin()
    work.send(step.call(1), step.call(2), step.call(3), step.using(delay=hours(2)).call(4))
    work.command(Action.CANCEL, "0-1", "0-3")
    work.command(Action.CANCEL, "0-1", "0-0")
    assert work.done == [1, 3]
    work.driver.restart()
    work.driver.advance(hours(3))
    assert work.done == [1, 3]
    ends = work.driver.read("work-job-results")
    assert [(end.key, end.value.ending.value, end.value.tries) for end in ends] == [
        ("0-1", "cancelled", 0),
        ("0-3", "cancelled", 0),
        ("0-0", "cancelled", 1),
        ("0-2", "succeeded", 1),
    ]
    assert ends[0].value.error.message == "cancelled by ann@desk at 2027-01-15T08:00:00+00:00"
    assert work.driver.read("work-job-releases") == [], "a delayed job that is cancelled is not released"
    assert work.driver.dead_letters() == []


def test_a_job_that_is_cancelled_before_its_record_is_read_never_begins(work: Work) -> None:
    @work.app.job(name="step")
    def step(number: int) -> None:
        work.done.append(number)

    work.begin()
    work.send(step.call(0))
    work.command(Action.CANCEL, "0-1", "0-0", "7-2")
    work.driver.restart()
    work.send(step.call(1), step.call(2))
    assert work.done == [0, 2]
    assert work.ends() == [("0-0", "succeeded", 1), ("0-1", "cancelled", 0), ("0-2", "succeeded", 1)]


def test_thousands_of_cancelled_jobs_of_a_key_let_the_next_one_pass(work: Work) -> None:
    @work.app.job(name="step", key=lambda number: "k", retry=Retry(2, backoff=hours(1), jitter=0))
    def step(number: int) -> None:
        work.done.append(number)
        if work.done == [0]:
            raise OSError("not now")

    work.begin()
    work.send(*(step.call(number) for number in range(3_000)))
    jobs = [f"0-{number}" for number in range(1, 2_999)]
    for at in range(0, len(jobs), 1_000):
        work.command(Action.CANCEL, *jobs[at : at + 1_000])
    work.driver.advance(hours(1))
    assert work.done == [0, 0, 2_999]


def test_paused_functions_keys_and_queues_begin_nothing_and_hold_up_no_others(work: Work) -> None:
    @work.app.job(name="a", key=lambda key: key)
    def a(key: str) -> None:
        work.done.append(("a", key))

    rate = Limit(rate=1, per=minutes(1), name="all", key=lambda key: key)

    @work.app.job(name="b", key=lambda key: key, limit=rate)
    def b(key: str) -> None:
        work.done.append(("b", key))

    work.begin()
    work.send(a.call("0"))
    work.command(Action.PAUSE, function="a")
    work.command(Action.PAUSE, key="x")
    work.driver.restart()
    work.send(a.call("1"), b.call("2"), b.call("x"), a.call("x"), b.call("1"))
    assert work.done == [("a", "0"), ("b", "2")]
    work.command(Action.RESUME, function="a")
    assert work.done[2:] == [("a", "1"), ("b", "1")]
    work.command(Action.PAUSE)
    work.command(Action.RESUME, key="x")
    work.driver.advance(minutes(1))
    work.driver.restart()
    work.driver.advance(minutes(1))
    assert work.done[4:] == []
    work.command(Action.RESUME)
    assert work.done[4:] == [("b", "x"), ("a", "x")]


def test_retry_lets_a_job_that_waits_for_its_next_attempt_begin(work: Work) -> None:
    @work.app.job(name="step", retry=Retry(3, backoff=hours(1), jitter=0))
    def step() -> None:
        work.done.append(current_job().attempt)
        if len(work.done) < 3:
            raise OSError("not now")

    work.begin()
    work.send(step.call())
    work.command(Action.RETRY, "0-0")
    assert work.done == [1, 2]
    work.command(Action.RETRY, "0-0", "0-7")
    assert work.ends() == [("0-0", "succeeded", 3)]
    assert {key[:1] for key in work.driver.store("jobs")} <= {b"c"}


def test_nothing_is_kept_of_jobs_that_had_ended_when_they_were_cancelled(work: Work) -> None:
    @work.app.job(name="step")
    def step() -> None: ...

    work.begin()
    work.send(step.call())
    work.driver.restart()
    work.driver.advance(seconds(1))
    work.command(Action.CANCEL, "0-0")
    work.send(step.call())
    assert work.ends() == [("0-0", "succeeded", 1), ("0-1", "succeeded", 1)]
    assert {key[:1] for key in work.driver.store("jobs")} == {b"c"}


def test_a_record_that_is_no_command_is_skipped(work: Work) -> None:
    @work.app.job(name="step")
    def step() -> None:
        work.done.append(1)

    work.begin()
    work.driver.send_bytes("work-job-commands", b"{}")
    work.command(Action.CANCEL, "0--7")
    work.command(Action.CANCEL, f"0-{1 << 64}")
    work.command(Action.PAUSE)
    work.send(step.call())
    assert work.done == []
    assert work.driver.skipped() == {"job-commands": 3}


def test_an_async_job_that_waits_is_cancelled_like_others(work: Work) -> None:
    @work.app.job(name="step")
    async def step(number: int) -> None:
        work.done.append(number)

    work.begin()
    work.send(step.using(delay=seconds(5)).call(1), step.call(2))
    work.command(Action.CANCEL, "0-0")
    work.driver.advance(seconds(5))
    assert work.done == [2]
