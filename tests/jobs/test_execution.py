"""Jobs in the driver: order within keys, retries, delays, limits, uniqueness, dead letters, restarts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streams import (
    App,
    Call,
    Limit,
    Record,
    Retry,
    RetryLater,
    current_job,
    days,
    hours,
    milliseconds,
    minutes,
    seconds,
)
from streams.jobs.record import Ending
from streams.testing import TopologyDriver

NOON = 1_800_000_000_000
"""A time in milliseconds since the epoch."""


class Work:
    """An app whose jobs note what they do, and a driver of it that fills its queue."""

    driver: TopologyDriver

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.app = App("work")

    def begin(self) -> None:
        self.driver = TopologyDriver(self.app, clock=NOON)

    def send(self, *calls: Call[Any]) -> None:
        """Enqueue calls, as a client does."""
        for call in calls:
            key = call.partition_key
            self.driver.send_bytes(
                "work-jobs", call.payload(self.driver.clock), key=None if key is None else key.encode()
            )

    def ends(self) -> list[tuple[str, str, int]]:
        return [
            (end.key, end.value.ending.value, end.value.tries) for end in self.driver.read("work-job-results")
        ]


def message(letter: Record[bytes | None, bytes | None]) -> str:
    """The message of the error that a dead letter names."""
    return (dict(letter.headers or [])["__streams.errors.message"] or b"").decode()


@pytest.fixture
def work() -> Work:
    return Work()


def test_a_job_that_fails_keeps_its_key_closed_until_it_has_succeeded(work: Work) -> None:
    attempts = {2: 2}

    @work.app.job(name="step", key=lambda key, number: key, retry=Retry(5, backoff=seconds(10), jitter=0))
    def step(key: str, number: int) -> None:
        if attempts.get(number, 0):
            attempts[number] -= 1
            raise OSError("not now")
        work.done.append((key, number))

    work.begin()
    work.send(
        *(step.call(key, number) for number in range(5) for key in ("a", "b") if key == "a" or number != 2)
    )
    assert work.done == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 3), ("b", 4)]
    work.driver.advance(seconds(10))
    assert len(work.done) == 6
    work.driver.advance(seconds(19))
    assert len(work.done) == 6
    work.driver.advance(seconds(1))
    assert work.done[6:] == [("a", 2), ("a", 3), ("a", 4)]
    assert ("0-4", "succeeded", 3) in work.ends()
    assert work.driver.store("jobs") == {}


def test_with_on_failure_continue_others_of_the_key_do_not_wait(work: Work) -> None:
    @work.app.job(
        name="step", key=lambda number: "k", retry=Retry(2, backoff=minutes(1)), on_failure="continue"
    )
    def step(number: int) -> None:
        work.done.append(number)
        if work.done == [1]:
            raise OSError("not now")

    work.begin()
    work.send(step.call(1), step.call(2))
    assert work.done == [1, 2]
    work.driver.advance(minutes(1))
    assert work.done == [1, 2, 1]


def test_a_job_that_fails_for_good_becomes_a_dead_letter_and_opens_its_key(work: Work) -> None:
    @work.app.job(name="step", key=lambda number: "k", retry=Retry(2, backoff=seconds(1), on=(OSError,)))
    def step(number: int) -> int:
        if number == 1:
            raise OSError("down")
        if number == 2:
            raise ValueError("wrong")
        return number

    work.begin()
    work.send(step.call(1), step.call(2), step.call(3))
    work.driver.advance(seconds(1))
    assert work.ends() == [("0-0", "failed", 2), ("0-1", "failed", 1), ("0-2", "succeeded", 1)]
    letters = work.driver.dead_letters()
    assert [msgspec.json.decode(letter.value)["arguments"] for letter in letters] == [
        {"number": 1},
        {"number": 2},
    ]
    headers = [dict(letter.headers or []) for letter in letters]
    assert [header["__streams.errors.message"] for header in headers] == [b"down", b"wrong"]
    assert [header["__streams.errors.offset"] for header in headers] == [b"0", b"1"]


def test_delayed_jobs_wait_in_the_store_for_months_and_are_released_once(work: Work) -> None:
    @work.app.job(name="remind")
    def remind(number: int) -> None:
        work.done.append(number)

    work.begin()
    work.send(*(remind.using(delay=days(90)).call(number) for number in range(100)))
    work.send(remind.using(at=datetime(2027, 1, 16, tzinfo=UTC)).call(-1))
    work.driver.restart()
    work.driver.advance(days(89))
    assert work.done == [-1]
    work.driver.restart()
    work.driver.advance(days(1))
    assert sorted(work.done) == list(range(-1, 100))
    assert len(work.driver.read("work-job-releases")) == 101
    assert work.driver.store("jobs") == {}
    work.driver.restart()
    work.driver.advance(days(1))
    assert len(work.done) == 101


def test_a_due_job_takes_its_place_behind_those_of_its_key_that_came_before(work: Work) -> None:
    @work.app.job(name="step", key=lambda number: "k", retry=Retry(2, backoff=minutes(10), jitter=0))
    def step(number: int) -> None:
        work.done.append(number)
        if work.done == [1]:
            raise OSError("not now")

    work.begin()
    work.send(step.using(delay=minutes(5)).call(3), step.call(1), step.call(2))
    work.driver.advance(minutes(5))
    assert work.done == [1]
    work.driver.advance(minutes(5))
    assert work.done == [1, 1, 2, 3]


def test_a_rate_holds_over_all_jobs_of_a_limit_and_others_pass_by(work: Work) -> None:
    @work.app.job(name="mail", limit=Limit(rate=2, per=seconds(10), key=lambda to: to.partition("@")[2]))
    def mail(to: str) -> None:
        work.done.append(to)

    @work.app.job(name="other")
    def other() -> None:
        work.done.append("other")

    work.begin()
    work.send(*(mail.call(f"{number}@a.de") for number in range(5)), mail.call("x@b.de"), other.call())
    assert work.done == ["0@a.de", "1@a.de", "x@b.de", "other"]
    times = []
    for _ in range(40):
        before = len(work.done)
        work.driver.advance(milliseconds(500))
        times += [work.driver.clock - NOON] * (len(work.done) - before)
    assert times == [10_000, 10_000, 20_000]


def test_a_limit_is_kept_over_a_restart(work: Work) -> None:
    @work.app.job(name="mail", limit=Limit(rate=1, per=minutes(1)))
    def mail(number: int) -> None:
        work.done.append(number)

    work.begin()
    work.send(mail.call(1), mail.call(2))
    work.driver.restart()
    work.driver.advance(seconds(59))
    work.send(mail.call(3))
    assert work.done == [1]
    work.driver.advance(seconds(1))
    work.driver.advance(minutes(1))
    assert work.done == [1, 2, 3]


def test_retry_later_closes_the_limit_for_all_jobs_of_it_and_counts_as_no_failure(work: Work) -> None:
    @work.app.job(name="push", limit=Limit(running=5, key=lambda host, number: host))
    def push(host: str, number: int) -> None:
        job = current_job()
        work.done.append((host, number, job.attempt))
        if len(work.done) == 1:
            raise RetryLater(after=seconds(30))

    work.begin()
    work.send(push.call("a", 1))
    work.send(push.call("a", 2), push.call("b", 3))
    assert work.done == [("a", 1, 1), ("b", 3, 1)]
    work.driver.advance(seconds(30))
    assert sorted(work.done[2:]) == [("a", 1, 1), ("a", 2, 1)]
    assert [tries for _, _, tries in work.ends()] == [1, 1, 1]


def test_higher_priorities_begin_earlier_and_lower_ones_are_not_starved(work: Work) -> None:
    @work.app.job(name="gate", key=lambda number: "k")
    def gate(number: int) -> None:
        work.done.append(number)

    work.begin()
    calls = [gate.using(priority=priority).call(priority) for priority in (0, -5, 5, 1)]
    work.send(gate.using(delay=seconds(1)).call(100))
    work.driver.advance(seconds(1))
    work.send(*calls)
    assert work.done == [100, 0, -5, 5, 1], "within a key the order is that of the queue"


def test_unique_jobs_are_left_out_while_an_equal_one_is_not_finished(work: Work) -> None:
    @work.app.job(name="sync", retry=Retry(2, backoff=hours(1), jitter=0))
    def sync(table: str) -> str:
        work.done.append(table)
        if len(work.done) == 1:
            raise OSError("not now")
        return table

    work.begin()
    once = sync.using(unique=True)
    work.send(once.call("a"), once.call("a"), once.call("b"), sync.using(unique="c").call("a"))
    assert work.done == ["a", "b", "a"]
    work.driver.restart()
    work.send(once.call("a"))
    work.driver.advance(hours(1))
    assert work.done == ["a", "b", "a", "a"]
    ends = {end.key: end.value for end in work.driver.read("work-job-results")}
    assert ends["0-1"].ending is ends["0-4"].ending is Ending.DUPLICATE
    assert ends["0-1"].duplicate_of == ends["0-4"].duplicate_of == "0-0"
    assert ends["0-0"].tries == 2
    work.send(once.call("a"))
    assert len(work.done) == 5


def test_a_job_that_has_not_begun_in_time_becomes_a_dead_letter_that_says_so(work: Work) -> None:
    @work.app.job(name="step", key=lambda number: "k", retry=Retry(2, backoff=minutes(10), jitter=0))
    def step(number: int) -> None:
        work.done.append(number)
        if work.done == [1]:
            raise OSError("not now")

    work.begin()
    work.send(step.call(1), step.using(expires=minutes(1)).call(2), step.call(3))
    work.driver.advance(minutes(10))
    assert work.done == [1, 1, 3]
    assert work.ends() == [("0-0", "succeeded", 2), ("0-1", "expired", 0), ("0-2", "succeeded", 1)]
    (letter,) = work.driver.dead_letters()
    assert "expired" in message(letter)


def test_unknown_functions_and_arguments_that_do_not_fit_hold_up_nobody(work: Work) -> None:
    @work.app.job(name="step")
    def step(number: int) -> None:
        work.done.append(number)

    work.begin()
    for value in (
        b'{"job":"gone","arguments":{}}',
        b'{"job":"step","arguments":{"number":"x"}}',
        b'{"job":"step","arguments":{"numbr":1}}',
        b"no json",
        b'{"job":"step","arguments":{"number":4}}',
    ):
        work.driver.send_bytes("work-jobs", value)
    assert work.done == [4]
    messages = list(map(message, work.driver.dead_letters()))
    assert len(messages) == 4
    assert "no function is registered as 'gone'" in messages[0]
    assert "do not fit step" in messages[1]
    assert "numbr" in messages[2]


def test_the_code_of_a_job_knows_its_attempt_and_a_key_that_stays_the_same(work: Work) -> None:
    seen = []

    @work.app.job(name="step", retry=Retry(3, backoff=seconds(1), jitter=0))
    def step() -> None:
        job = current_job()
        seen.append((job.id, job.attempt, job.idempotency_key, job.scheduled))
        if job.attempt < 3:
            raise OSError("not now")

    work.begin()
    work.send(step.call())
    work.driver.advance(seconds(5))
    work.driver.advance(seconds(5))
    assert [attempt for _, attempt, _, _ in seen] == [1, 2, 3]
    assert {(job, key) for job, _, key, _ in seen} == {("0-0", "work-jobs-0-0")}


def test_what_cannot_travel_fails_where_it_is_enqueued(work: Work) -> None:
    @work.app.job(name="step")
    def step(number: int, *, when: datetime | None = None) -> None: ...

    with pytest.raises(TypeError, match="number"):
        step.call("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="missing a required argument"):
        step.call()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="unexpected keyword"):
        step.call(1, wen=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert bytes(step.call(1).record.arguments) == b'{"number":1}'


def test_an_async_job_and_one_that_enqueues_nothing(work: Work) -> None:
    @work.app.job(name="fetch")
    async def fetch(number: int) -> int:
        work.done.append((number, current_job().id))
        return number

    work.app.stream("numbers").enqueue(fetch, lambda number: fetch.call(number) if number % 2 else None)
    work.begin()
    for number in range(4):
        work.driver.send("numbers", number)
    assert work.done == [(1, "0-0"), (3, "0-1")]
