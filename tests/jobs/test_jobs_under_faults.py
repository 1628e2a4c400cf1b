"""Jobs under injected faults: each is recorded once, and those of a key are executed in their order.

The workers run in memory on a simulated clock. A seed determines the schedule of crashes, evictions, aborted
transactions and commits of unknown outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, minutes, seconds
from streams.jobs.current import current_job
from streams.jobs.limits import Limit
from streams.jobs.occurrence import Decision, Occurrence
from streams.jobs.record import Ending, JobEnd
from streams.jobs.retry import Retry
from streams.jobs.schedule_rules import Cron, Every
from streams.serde import Json
from streams.simulation.run import Input, InputRecord, Run
from streams.simulation.schedule import Pace, Schedule, make_schedule, parse_kinds

if TYPE_CHECKING:
    from streams.simulation.points import Point

KEYS = "abcde"
ORDERS = 60
KINDS = parse_kinds(
    [
        "crash",
        "crash and lose the disk",
        "abort",
        "unknown",
        "unavailable",
        "evict",
        "freeze",
        "stall",
        "leave",
        "join",
    ]
)


class Program:
    """An app that enqueues jobs of several kinds for each order, and what its jobs have done."""

    def __init__(self) -> None:
        self.app = app = App("shop", job_partitions=2)
        self.begun: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
        """For each key the attempts, in the order in which they began: number, job and attempt."""
        self.succeeded: dict[str, list[int]] = defaultdict(list)

        @app.job(name="step", key=lambda key, number: key, retry=Retry(4, backoff=seconds(2), jitter=0))
        def step(key: str, number: int) -> int:
            job = current_job()
            self.begun[key].append((number, job.id, job.attempt))
            if number % 7 == 3 and job.attempt < 3:
                raise OSError("not now")
            if number % 13 == 5:
                raise ValueError("never")
            self.succeeded[key].append(number)
            return number

        @app.job(name="later")
        def later(number: int) -> None: ...

        @app.job(name="limited", limit=Limit(rate=3, per=seconds(2), key=lambda key, number: key))
        def limited(key: str, number: int) -> None: ...

        @app.job(name="due", schedule=Every(minutes(2), missed="all", overlap="queue"))
        def due() -> None: ...

        # Every other job is not finished when the next instants come.
        @app.job(name="slow", schedule=Cron("*/5 * * * *"), retry=Retry(2, backoff=minutes(7)))
        def slow() -> None:
            job = current_job()
            if job.attempt == 1 and job.scheduled // 300_000 % 2:
                raise OSError("not now")

        @app.job(name="single", retry=Retry(2, backoff=seconds(1)))
        def single(key: str) -> None:
            if current_job().attempt == 1 and current_job().scheduled % 3:
                raise OSError("not now")

        orders = app.stream("orders", value=Json(dict[str, Any]))
        orders.enqueue(step, lambda order: step.call(order["key"], order["number"]))
        orders.enqueue(later, lambda order: later.using(delay=seconds(20)).call(order["number"]))
        orders.enqueue(single, lambda order: single.using(unique=True).call(order["key"]))
        orders.enqueue(limited, lambda order: limited.call(order["key"], order["number"]))

    def run(self, schedule: Schedule) -> Run:
        self.begun.clear()
        self.succeeded.clear()
        records = [
            InputRecord(
                KEYS[number % len(KEYS)].encode(),
                msgspec.json.encode({"key": KEYS[number % len(KEYS)], "number": number}),
                1_800_000_000_000 + number,
            )
            for number in range(ORDERS)
        ]
        run = Run(self.app, self.app.topology, Input({"orders": records}, 2), schedule)
        run.execute()
        return run


PROGRAM = Program()


def check(run: Run) -> None:
    """Check what the run has recorded against what was enqueued."""
    enqueued = Counter(
        msgspec.json.decode(value)["job"]
        for fetched in run.read(["shop-jobs"])
        for value in fetched.values()
        if value is not None
    )
    rows = [
        msgspec.json.decode(value, type=JobEnd)
        for fetched in run.read(["shop-job-results"])
        for value in fetched.values()
        if value is not None
    ]
    assert Counter(end.id for end in rows).most_common(1)[0][1] == 1, "a job has two ends"
    check_schedules(run, {end.id: end for end in rows if end.job in {"due", "slow"}})
    rows = [end for end in rows if end.job not in {"due", "slow"}]
    assert Counter(end.job for end in rows) == dict.fromkeys(["step", "later", "limited", "single"], ORDERS)
    if enqueued:
        assert set(enqueued) <= {"step", "later", "limited", "single", "due", "slow"}
    by_job = defaultdict(list)
    for end in rows:
        by_job[end.job].append(end)
    assert {end.ending for end in by_job["single"]} == {Ending.SUCCEEDED, Ending.DUPLICATE}
    failed = {msgspec.json.decode(end.result) for end in by_job["step"] if end.ending is Ending.FAILED}
    assert failed == {None}
    assert sum(end.ending is Ending.FAILED for end in by_job["step"]) == sum(
        number % 13 == 5 for number in range(ORDERS)
    )
    released = [value for fetched in run.read(["shop-job-releases"]) for value in fetched.values()]
    assert len(released) == len(set(released)) == ORDERS
    assert all(end.ended - end.enqueued >= 20_000 for end in by_job["later"])
    letters = [value for fetched in run.read(["shop-dead-letters"]) for value in fetched.values()]
    assert len(letters) == len(set(letters)) == sum(number % 13 == 5 for number in range(ORDERS))
    for key, attempts in PROGRAM.begun.items():
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for at, (number, _, _) in enumerate(attempts):
            first.setdefault(number, at)
            last[number] = at
        numbers = list(first)
        assert numbers == sorted(numbers), f"key {key}: {numbers}"
    assert {key: sorted(set(numbers)) for key, numbers in PROGRAM.succeeded.items()} == {
        key: [number for number in range(at, ORDERS, len(KEYS)) if number % 13 != 5]
        for at, key in enumerate(KEYS)
    }


def check_schedules(run: Run, ends: dict[str, JobEnd]) -> None:
    """Check that each instant was decided once, and by the jobs that were unfinished then."""
    occurrences = [
        msgspec.json.decode(value, type=Occurrence)
        for fetched in run.read(["shop-job-occurrences"])
        for value in fetched.values()
        if value is not None
    ]
    for schedule, step in (("due", 120_000), ("slow", 300_000)):
        mine = sorted(
            (each for each in occurrences if each.schedule == schedule), key=lambda each: each.instant
        )
        instants = [each.instant for each in mine]
        assert len(instants) > 8
        assert instants == list(range(instants[0], instants[-1] + 1, step)), f"{schedule}: {instants}"
        assert instants[0] % step == 0
        jobs = [each.job for each in mine if each.job is not None]
        assert len(jobs) == len(set(jobs))
    assert {each.job for each in occurrences if each.job is not None} >= ends.keys()
    slow = [each for each in occurrences if each.schedule == "slow"]
    overlapped = {each.job for each in slow if each.decision is Decision.OVERLAPPED}
    assert overlapped
    assert overlapped == {end.id for end in ends.values() if end.ending is Ending.DUPLICATE}
    begun: list[str] = []
    for each in sorted(slow, key=lambda each: each.decided):
        if each.job is None:
            continue
        unfinished = [job for job in begun if job not in ends or ends[job].ended > each.decided]
        assert bool(unfinished) == (each.decision is Decision.OVERLAPPED), f"{each}: {unfinished}"
        if each.decision is Decision.RELEASED:
            begun.append(each.job)


@pytest.mark.parametrize("seed", range(40))
def test_each_job_is_recorded_once_whatever_fails(seed: int) -> None:
    known: dict[Pace, Counter[Point]] = {}

    def counts(pace: Pace) -> Counter[Point]:
        if pace not in known:
            run = PROGRAM.run(Schedule(pace))
            check(run)
            known[pace] = run.counts
        return known[pace]

    schedule = make_schedule(seed, counts, KINDS)
    check(PROGRAM.run(schedule))
