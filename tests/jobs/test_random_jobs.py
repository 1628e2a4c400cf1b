"""Random programs of jobs under random faults: what becomes of each job, against a plain oracle."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import HealthCheck, example, given, settings, strategies as st

from streams import App, Limit, Retry, current_job, seconds
from streams.jobs.job_store import stored_jobs
from streams.jobs.record import Ending, JobEnd, JobRecord, Release
from streams.records import TopicPartition
from streams.runtime.letter import PREFIX
from streams.serde import Json
from streams.simulation.run import START, Input, InputRecord, Run
from streams.simulation.schedule import Pace, Schedule, make_schedule, parse_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streams.jobs.job import Call
    from streams.simulation.points import Point

TRIES = 3
PARTITIONS = 2
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
ZOMBIES = {"evict", "freeze"}
"""Faults after which a worker may execute jobs that are another one's already."""


@dataclass(frozen=True)
class Wanted:
    """One job of a program. ``delay`` is in seconds: 0 is a time that has passed when it is read."""

    key: str | None
    delay: float | None
    limited: bool
    unique: str | None
    failing: int
    """How many of its attempts fail."""
    by_step: bool
    """Whether a step enqueues it; else its record is in the queue from the beginning."""


jobs = st.builds(
    Wanted,
    key=st.sampled_from([None, "a", "b"]),
    delay=st.sampled_from([None, None, 0.0, 1.0, 30.0]),
    limited=st.booleans(),
    unique=st.sampled_from([None, None, "u", "v"]),
    failing=st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    by_step=st.booleans(),
)


class Program:
    """An app that has the jobs of a list, and what they have done."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = wanted
        self.app = app = App("shop", job_partitions=PARTITIONS)
        self.executed: list[tuple[str, int, int, bool]] = []
        """Job, attempt, time in milliseconds, and whether it succeeded, in the order in which they began."""
        self.run: Run | None = None
        retry = Retry(TRIES, backoff=seconds(1), jitter=0)

        def work(number: int) -> int:
            job = current_job()
            assert self.run is not None
            succeeds = job.attempt > self.wanted[number].failing
            self.executed.append((job.id, job.attempt, self.run.clock.milliseconds(), succeeds))
            if not succeeds:
                raise OSError(number)
            return number

        self._plain = app.job(name="plain", retry=retry)(work)
        self._limited = app.job(name="limited", retry=retry, limit=Limit(rate=2, per=seconds(2)))(work)
        app.stream("orders", value=Json(int)).enqueue(self._plain, lambda number: self.call(number, True))
        app.stream("others", value=Json(int)).enqueue(self._limited, lambda number: self.call(number, True))

    def call(self, number: int, by_step: bool) -> Call[int]:
        """The call of a job. A step is processed at any time, so a passed time cannot be a delay there."""
        job = self.wanted[number]
        options: dict[str, Any] = {"key": job.key, "unique": job.unique or False}
        if job.delay is not None:
            options["delay"] = seconds(max(job.delay, 0.001) if by_step else job.delay)
        function = self._limited if job.limited else self._plain
        return function.using(**options).call(number)

    def execute(self, schedule: Schedule) -> Run:
        """Run it from the beginning."""
        self.executed.clear()
        now = int(START * 1000)
        inputs: dict[str, list[InputRecord]] = {"orders": [], "others": [], "shop-jobs": []}
        for number, job in enumerate(self.wanted):
            if job.by_step:
                inputs["others" if job.limited else "orders"].append(InputRecord(None, b"%d" % number, now))
            else:
                call = self.call(number, False)
                key = call.partition_key
                inputs["shop-jobs"].append(
                    InputRecord(None if key is None else key.encode(), call.payload(now), now)
                )
        self.run = run = Run(self.app, self.app.topology, Input(inputs, PARTITIONS), schedule)
        run.execute()
        return run


def values(run: Run, topic: str) -> Iterator[tuple[str, bytes]]:
    """The committed values of a topic, with the id of a job whose record is at that place."""
    for fetched in run.read([topic]):
        for offset, value in zip(fetched.offsets(), fetched.values(), strict=True):
            yield f"{fetched.partition}-{offset}", value or b""


def check(program: Program, run: Run) -> None:
    """Compare what became of the jobs with what must have become of them."""
    queue = {
        identifier: msgspec.json.decode(value, type=JobRecord) for identifier, value in run.enqueued().items()
    }
    numbers = {
        identifier: int(msgspec.json.decode(record.arguments)["number"])
        for identifier, record in queue.items()
    }
    assert sorted(numbers.values()) == list(range(len(program.wanted))), "each is enqueued once"
    rows = [msgspec.json.decode(value, type=JobEnd) for _, value in values(run, "shop-job-results")]
    ends = {end.id: end for end in rows}
    assert len(rows) == len(ends) == len(queue), "each has one end"
    for identifier, end in ends.items():
        job = program.wanted[numbers[identifier]]
        if end.ending is Ending.DUPLICATE:
            assert job.unique is not None
            continue
        failed = job.failing >= TRIES
        assert end.ending is (Ending.FAILED if failed else Ending.SUCCEEDED)
        assert end.tries == min(job.failing + 1, TRIES)
        assert msgspec.json.decode(end.result) == (None if failed else numbers[identifier])
    executed = {identifier for identifier, end in ends.items() if end.ending is not Ending.DUPLICATE}
    assert {identifier for identifier, *_ in program.executed} == executed
    check_unique(queue, ends)
    check_order(program, queue, executed)
    check_times(program, run, queue, executed)
    letters = Counter(letters_of(run))
    assert letters == {identifier: 1 for identifier, end in ends.items() if end.ending is Ending.FAILED}
    check_drained(run)


def letters_of(run: Run) -> Iterator[str]:
    """The ids of the jobs that became dead letters."""
    for fetched in run.read(["shop-dead-letters"]):
        for headers in fetched.headers() or ():
            found = dict(headers or ())
            partition, offset = (found[f"{PREFIX}{name}"] or b"" for name in ("partition", "offset"))
            yield f"{partition.decode()}-{offset.decode()}"


def place(identifier: str) -> tuple[int, int]:
    partition, _, offset = identifier.partition("-")
    return int(partition), int(offset)


def check_unique(queue: dict[str, JobRecord], ends: dict[str, JobEnd]) -> None:
    """Of jobs with one text, a duplicate is left out before the one that it repeats has ended."""
    texts: dict[str, list[JobEnd]] = defaultdict(list)
    for identifier in sorted(queue, key=place):
        text = queue[identifier].unique
        if text is not None:
            texts[f"{text} {place(identifier)[0]}"].append(ends[identifier])
    for same in texts.values():
        assert same[0].ending is not Ending.DUPLICATE
        by_id = {end.id: end for end in same}
        for end in same:
            if end.ending is Ending.DUPLICATE:
                other = by_id[end.duplicate_of or ""]
                assert other.ending is not Ending.DUPLICATE
                assert place(other.id) < place(end.id)
                assert end.ended <= other.ended


def check_order(program: Program, queue: dict[str, JobRecord], executed: set[str]) -> None:
    """The jobs of a key that are in one partition begin in the order of the queue."""
    first: dict[str, int] = {}
    for at, (identifier, *_) in enumerate(program.executed):
        first.setdefault(identifier, at)
    lines: dict[tuple[str, int], list[str]] = defaultdict(list)
    for identifier in sorted(executed, key=place):
        record = queue[identifier]
        # One that is delayed takes its place when it is due.
        if record.key is not None and record.due is None:
            lines[record.key, place(identifier)[0]].append(identifier)
    for line in lines.values():
        begun = [first[identifier] for identifier in line]
        assert begun == sorted(begun), line


def check_times(program: Program, run: Run, queue: dict[str, JobRecord], executed: set[str]) -> None:
    """Delayed jobs are released once and not early; the limit holds."""
    released = [msgspec.json.decode(value, type=Release) for _, value in values(run, "shop-job-releases")]
    due = {identifier: queue[identifier].due for identifier in executed if queue[identifier].due is not None}
    assert sorted(release.id for release in released) == sorted(due)
    assert all(release.released >= release.due == due[release.id] for release in released)
    for identifier, _, time, _ in program.executed:
        assert time >= (due.get(identifier) or 0)
    repeats = Counter((identifier, attempt) for identifier, attempt, *_ in program.executed)
    assert max(repeats.values(), default=1) <= 1 + len(run.story)
    if not ZOMBIES & {incident.event.fault for incident in run.story}:
        final = {(identifier, attempt): time for identifier, attempt, time, _ in program.executed}
        for partition in range(PARTITIONS):
            times = sorted(
                time
                for (identifier, _), time in final.items()
                if queue[identifier].limit is not None and place(identifier)[0] == partition
            )
            # At most two in any two seconds.
            assert all(later - time >= 2_000 for time, later in zip(times, times[2:], strict=False))


def check_drained(run: Run) -> None:
    """Everything is committed, markers of transactions included, and no job is left in the store."""
    places = [TopicPartition("shop-jobs", number) for number in range(PARTITIONS)]
    admin = run.broker.admin()
    ends = admin.end_offsets(places, "read_uncommitted")
    committed = admin.committed_offsets("shop")
    assert {at: committed.get(at, 0) for at in places} == ends
    entries = {
        (fetched.partition, key or b""): value
        for fetched in run.read(["shop-jobs-changelog"])
        for key, value in zip(fetched.keys(), fetched.values(), strict=True)
    }
    assert list(stored_jobs(entries.items())) == []


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
# The simulated clock once passed the time-out of an open transaction between two attempts.
@example(
    [
        Wanted(None, 30.0, limited=False, unique=None, failing=1, by_step=True),
        Wanted(None, 30.0, limited=True, unique=None, failing=1, by_step=True),
    ],
    0,
)
@given(st.lists(jobs, min_size=1, max_size=10), st.integers(0, 10_000))
def test_random_jobs_end_as_they_must_whatever_fails(wanted: list[Wanted], seed: int) -> None:
    program = Program(wanted)
    known: dict[Pace, Counter[Point]] = {}

    def counts(pace: Pace) -> Counter[Point]:
        if pace not in known:
            run = program.execute(Schedule(pace))
            check(program, run)
            known[pace] = run.counts
        return known[pace]

    check(program, program.execute(make_schedule(seed, counts, KINDS)))
