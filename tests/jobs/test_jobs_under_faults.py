"""Jobs under injected faults: each is recorded once, and those of a key are executed in their order.

The workers run in memory on a simulated clock. A seed determines the schedule of crashes, evictions, aborted
transactions and commits of unknown outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import msgspec
import pytest

from streams import App, seconds
from streams.jobs.current import current_job
from streams.jobs.limits import Limit
from streams.jobs.record import Ending, JobEnd
from streams.jobs.retry import Retry
from streams.serde import Json
from streams.simulation.run import Input, InputRecord, Run
from streams.simulation.schedule import Pace, Point, Schedule, make_schedule, parse_kinds

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

        self.batches: list[list[int]] = []

        @app.job(name="together", key=lambda number: str(number % len(KEYS)), batch=5, within=seconds(3))
        def together(numbers: list[int]) -> list[int | Exception]:
            self.batches.append(numbers)
            assert len({number % len(KEYS) for number in numbers}) == len(numbers), "two of a key at once"
            return [ValueError("never") if number % 13 == 5 else number for number in numbers]

        orders = app.stream("orders", value=Json(dict[str, Any]))
        orders.enqueue(step, lambda order: step.call(order["key"], order["number"]))
        orders.enqueue(together, lambda order: together.call(order["number"]))
        orders.enqueue(later, lambda order: later.using(delay=seconds(20)).call(order["number"]))
        orders.enqueue(limited, lambda order: limited.call(order["key"], order["number"]))

    def run(self, schedule: Schedule) -> Run:
        self.begun.clear()
        self.succeeded.clear()
        self.batches.clear()
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
    assert Counter(end.job for end in rows) == {
        "step": ORDERS,
        "later": ORDERS,
        "limited": ORDERS,
        "together": ORDERS,
    }
    if enqueued:
        assert set(enqueued) <= {"step", "later", "limited", "together"}
    by_job = defaultdict(list)
    for end in rows:
        by_job[end.job].append(end)
    failed = {msgspec.json.decode(end.result) for end in by_job["step"] if end.ending is Ending.FAILED}
    assert failed == {None}
    never = sum(number % 13 == 5 for number in range(ORDERS))
    for name in ("step", "together"):
        assert sum(end.ending is Ending.FAILED for end in by_job[name]) == never
    assert max(map(len, PROGRAM.batches)) > 1
    for at, key in enumerate(KEYS):
        order = list(dict.fromkeys(n for batch in PROGRAM.batches for n in batch if n % len(KEYS) == at))
        assert order == sorted(order), f"batches, key {key}: {order}"
    released = [value for fetched in run.read(["shop-job-releases"]) for value in fetched.values()]
    assert len(released) == len(set(released)) == ORDERS
    assert all(end.ended - end.enqueued >= 20_000 for end in by_job["later"])
    letters = [value for fetched in run.read(["shop-dead-letters"]) for value in fetched.values()]
    assert len(letters) == len(set(letters)) == 2 * never
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
