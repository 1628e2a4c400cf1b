"""The part of the queue that one task has: which of its jobs run, wait, are delayed or done."""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streams.jobs.control import Control
from streams.jobs.current import CurrentJob, JobCancelled
from streams.jobs.executors import Attempt
from streams.jobs.executors.batch import BatchAttempt
from streams.jobs.executors.choice import KINDS, ExecutorKind, kind_of
from streams.jobs.executors.inline import InlineExecutor
from streams.jobs.failure import error_of_end, job_error
from streams.jobs.fields import unfinished_fields
from streams.jobs.gathering import Gathering
from streams.jobs.job_store import JobStore, Progress, StoredJob, StoredLimit, StoredState, ranges
from streams.jobs.limits import Bucket
from streams.jobs.occurrence import Decision, Occurrence, said
from streams.jobs.openings import Openings
from streams.jobs.order import KeyLines, ReadyJobs, rank
from streams.jobs.reasons import Case, JobState
from streams.jobs.record import NULL, Ending, JobEnd, JobError, JobId, JobRecord, Release
from streams.jobs.retry import RetryLater
from streams.jobs.scheduler import LATE_MILLISECONDS
from streams.jobs.unfinished_occurrences import UnfinishedOccurrences
from streams.records import FetchedLists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streams.jobs.commands import CommandLog, CommandNote
    from streams.jobs.executors import Executor
    from streams.jobs.executors.choice import Executors
    from streams.jobs.job import BaseJob
    from streams.jobs.scheduler import Released, Scheduler
    from streams.records import Headers, TopicPartition

MOST_OPEN = 10_000
"""How many unfinished records are kept in memory before the input is paused, or jobs go to the store."""

MOST_BEHIND = 100_000
"""How many offsets the committed one may be behind before the jobs that hold it back go to the store."""

LONGEST_OPEN_MILLISECONDS = 600_000
"""How long a record may hold back the committed offset before its job goes to the store."""

LOOK_MILLISECONDS = 1_000
"""How often jobs that hold back the committed offset are looked at."""

MOST_DUE = 1_000
"""How many due jobs are released in one slice."""


NO_TIME, MILLISECOND = timedelta(), timedelta(milliseconds=1)


class QueueState(Enum):
    """The states of a task's queue.

    ::

        RECOVERING ──all unfinished records are read again──> RUNNING ──stop──> STOPPING
             └──────────────────────────stop─────────────────────────────────────┘
    """

    RECOVERING = "recovering"
    """Nothing begins: the order of jobs is not known yet."""
    RUNNING = "running"
    STOPPING = "stopping"
    """What runs may finish, nothing begins."""

    def may_become(self, other: QueueState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    QueueState.RECOVERING: {QueueState.RUNNING, QueueState.STOPPING},
    QueueState.RUNNING: {QueueState.STOPPING},
    QueueState.STOPPING: {QueueState.STOPPING},
}

_record = msgspec.json.Decoder(JobRecord).decode
_encode = msgspec.json.Encoder().encode


class Job(NamedTuple):
    """An unfinished job of this task."""

    offset: int
    record: JobRecord
    key: bytes | None
    value: bytes
    timestamp: int
    headers: Headers | None
    tries: int
    due: int
    stored: bool

    @property
    def rank(self) -> int:
        """Its place in the order."""
        record, time = self.record, self.timestamp
        due = self.due or record.due
        if due is not None and due > time:
            time = due
        return rank(time, record.priority)

    def as_stored(
        self, state: StoredState, due: int = 0, error: JobError | None = None, failed_at: int = 0
    ) -> StoredJob:
        """What is stored of it."""
        return StoredJob(
            state,
            due,
            self.tries,
            self.key,
            self.value,
            self.timestamp,
            None if self.headers is None else list(self.headers),
            error,
            failed_at,
        )


@dataclass(slots=True)
class Undo:
    """What memory has forgotten since a point to which stores may return."""

    opened: list[Job] = field(default_factory=list)
    """Jobs that were not in the store, and are finished or in the store now."""
    settled: list[tuple[Job, Attempt]] = field(default_factory=list)
    """Attempts whose outcome was taken."""
    ended: Counter[tuple[str, Ending]] = field(default_factory=Counter)
    """How many jobs have ended since, by function and ending."""

    def extend(self, later: Undo) -> None:
        """Add what was forgotten later."""
        self.opened += later.opened
        self.settled += later.settled
        self.ended += later.ended
        later.opened, later.settled, later.ended = [], [], Counter()


class Outcomes(NamedTuple):
    """Where a queue forwards what has happened, within a slice."""

    ended: Callable[[list[tuple[JobEnd, int, int]]], None]
    """Results, with the offset and time of each job's record."""
    released: Callable[[list[Release]], None]
    failed: Callable[[FetchedLists, BaseException], None]
    """The record of a job that failed for good, and why."""
    enqueued: Callable[[list[Released]], None]
    """Jobs of schedules, for the queue's topic."""
    occurred: Callable[[list[Occurrence]], None]
    """What became of instants of schedules."""


class QueueNumbers(NamedTuple):
    """How many jobs one partition's task has, by function."""

    running: Counter[str]
    waiting: Counter[str]
    """Those that are not in the store and do not run."""
    running_stored: Counter[str]
    """Those that run and are in the store."""
    stored: dict[str, list[int]]
    """Those in the store, by ``StoredState``."""
    oldest: int | None
    """The time since which a job of ``waiting`` may run, in milliseconds since the epoch."""
    paused: int
    """How many of ``waiting`` are paused."""


class JobQueue:
    """Implements ``operators.background.BackgroundWork`` for the jobs of one partition.

    The unfinished jobs are in the store, or their records are not committed (``_open``). What is in memory
    can be made of both at any time (``_rebuild``), and is when a slice or a transaction was undone: only
    attempts that run, or whose outcome was not taken, are nowhere else.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: Mapping[str, BaseJob[Any, Any]],
        executors: Executors | InlineExecutor,
        outcomes: Outcomes,
        *,
        topic: str,
        partition: int,
        clock: Callable[[], int],
        commands: CommandLog | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._store = store
        self._control = Control(store, commands, partition)
        self._scheduler = scheduler
        self._unfinished = UnfinishedOccurrences(store)
        self._jobs = jobs
        self._executors = executors
        self._outcomes = outcomes
        self._topic = topic
        self._partition = partition
        self._clock = clock
        self._state = QueueState.RECOVERING

        progress = store.progress()
        self._next: int | None = None if progress is None else progress.position
        """One past the last record that was taken."""
        self._read = 0
        """One past the last record that was read since it began, or since records are read again."""
        self._reached = 0
        """An offset before which all records that exist were read since it began."""
        self._expected: set[int] = set()
        """The unfinished records before that, which are read again."""
        if progress is not None:
            self._expected = {offset for start, stop in progress.unfinished for offset in range(start, stop)}
        self._open: dict[int, Job] = {}
        """Jobs that are not in the store, by offset, in that order."""
        self._running: dict[int, tuple[Job, Attempt]] = {}
        """Attempts that have begun, until their outcome is taken."""
        self._ended: deque[Attempt] = deque()

        self._ready: dict[ExecutorKind, ReadyJobs] = {kind: ReadyJobs() for kind in KINDS}
        self._gathered: dict[str, Gathering] = {}
        """Those of functions that take a list, by function."""
        self._lines = KeyLines()
        self._buckets: dict[str, Bucket] = {}
        self._limited = Openings()
        self._next_due: int | None = None
        """When the next job in the store is due; ``None``: not known."""
        self._next_look = clock() + LOOK_MILLISECONDS
        self._undecided: dict[int, int | None] = {}
        """Jobs of which it is not committed that they are executed, as that depended on others; their ranks.

        One that began earlier could turn out to be left out, if what the decision was based on is undone.
        """
        self._decided = False

        self._undo_slice = Undo()
        self._undo = Undo()
        self._questions: deque[tuple[int, Future[dict[str, Any] | None]]] = deque()
        """Jobs by their offsets, of which another thread wants to know what they wait for."""
        self.ended_counts = executors.ended_counts
        """How many jobs have ended in this worker, by function and ending."""
        self._ends: list[tuple[JobEnd, int, int]] = []
        self._releases: list[Release] = []
        self._occurrences: list[Occurrence] = []
        self._changed = False
        if not self._expected:
            self._become(QueueState.RUNNING)
        self._rebuild()

    # --- the task's view: see BackgroundWork

    def has_finished(self) -> bool:
        if self._ended or self._changed or self._questions or self._has_recovered():
            return True
        if self._state is not QueueState.STOPPING and self._control.has_news:
            return True
        if isinstance(self._executors, InlineExecutor) and self._executors.waiting:
            return True
        if self._state is QueueState.RUNNING and any(
            ready and self._executor(kind).free for kind, ready in self._ready.items()
        ):
            return True
        now = self._clock()
        return self._wakes() <= now or self._together_free(now)

    def is_running(self) -> bool:
        return bool(self._running)

    def wait_milliseconds(self) -> int:
        return max(0, self._wakes() - self._clock())

    def due_milliseconds(self) -> int | None:
        if self._state is not QueueState.RUNNING or (due := self._next_time()) == _NEVER:
            return None
        return max(0, due - self._clock())

    def is_full(self) -> bool:
        # What is read again was in memory before, and nothing begins before all of it is.
        return len(self._open) >= MOST_OPEN and self._state is not QueueState.RECOVERING

    def first_unfinished(self, partition: TopicPartition) -> int | None:  # noqa: ARG002 - it reads one only
        first = next(iter(self._open), None)
        if self._expected:
            expected = min(self._expected)
            return expected if first is None else min(first, expected)
        return first

    def reached(self, partition: TopicPartition, end: int) -> None:  # noqa: ARG002 - it reads one only
        self._reached = max(self._reached, end)

    @property
    def partition(self) -> int:
        """The partition of the queue that it has."""
        return self._partition

    def ask(self, offset: int) -> Future[dict[str, Any] | None]:
        """The fields of a job that has not ended, else ``None``; from any thread. See ``fields``."""
        answer: Future[dict[str, Any] | None] = Future()
        self._questions.append((offset, answer))
        return answer

    def numbers(self) -> QueueNumbers:
        """How many jobs there are now; from any thread."""
        running = [job for job, _ in list(self._running.values())]
        begun = {job.offset for job in running}
        waiting = [job for job in list(self._open.values()) if job.offset not in begun]
        return QueueNumbers(
            Counter(job.record.job for job in running),
            Counter(job.record.job for job in waiting),
            Counter(job.record.job for job in running if job.stored),
            {name: list(counts) for name, counts in list(self._store.counts.items())},
            min((max(job.timestamp, job.record.due or 0) for job in waiting), default=None),
            sum(self._control.pause_of(job.record) is not None for job in waiting),
        )

    @property
    def places(self) -> int:
        """How many jobs the worker executes at once, in all tasks; from any thread."""
        return self._executors.places

    @property
    def seconds(self) -> dict[str, float]:
        """How long the attempts of each function took that have ended in this worker; from any thread."""
        return dict(self._executors.seconds)

    @property
    def overdue(self) -> int:
        """How many jobs of the worker, in all tasks, run longer than their time limit; from any thread."""
        return self._executors.overdue

    def confirm(self, until: float) -> None:
        self._executors.confirm(until)

    def stop(self) -> None:
        self._become(QueueState.STOPPING)
        for kind in KINDS:
            for attempt in self._executor(kind).withdraw(self._ended):
                for each in attempt.members:
                    del self._running[each.offset]

    def close(self) -> None:
        """The task ends: what has not begun is begun by the next owner of the partition."""
        self.stop()
        if not isinstance(self._executors, InlineExecutor):
            self._executors.leave(attempt for _, attempt in self._running.values())

    def end_slice(self) -> None:
        self._undo.extend(self._undo_slice)

    def committed(self) -> None:
        self.ended_counts.update(self._undo.ended)
        self._undo = Undo()
        decided, self._undecided = self._undecided, {}
        for offset, place in decided.items():
            if place is not None and (job := self._find(offset)) is not None:
                self._make_ready(job, place)
                self._decided = True

    def drop_slice(self) -> None:
        self._take_back(self._undo_slice)

    def drop(self) -> None:
        self._undo.extend(self._undo_slice)
        self._undecided.clear()
        self._take_back(self._undo)

    # --- within slices

    def admit(self, jobs: Iterable[Job]) -> None:
        """Take jobs whose records were read, in the order of their offsets."""
        if self._changed:
            self._rebuild()
        now = self._clock()
        if self._state is not QueueState.STOPPING:
            self._control.apply(self, now)
        for job in jobs:
            self._read = job.offset + 1
            self._reached = max(self._reached, self._read)
            if self._next is not None and job.offset < self._next:
                if job.offset not in self._expected:
                    # Known, finished or in the store.
                    continue
                self._expected.discard(job.offset)
            else:
                if self._next is None:
                    self._forget_cancelled(job.offset)
                self._next = job.offset + 1
            self._open[job.offset] = job
            self._begin(job, now)
        if self._has_recovered():
            self._recovered()
        self._make_room()
        self._pump(now)
        self._forward()

    def collect(self) -> None:
        """Take outcomes, release what is due, and begin what can begin."""
        if self._changed:
            self._rebuild()
        if isinstance(self._executors, InlineExecutor):
            self._executors.run()
        # Not those that end meanwhile: they would be recorded with a time before their end.
        ended = len(self._ended)
        now = self._clock()
        for _ in range(ended):
            self._settle(self._ended.popleft(), now)
        if self._has_recovered():
            self._recovered()
        if self._state is not QueueState.STOPPING:
            self._control.apply(self, now)
        if self._state is QueueState.RUNNING:
            self._release_due(now)
            if self._scheduler is not None and self._scheduler.wakes() <= now:
                released, occurrences = self._scheduler.decide(now)
                if occurrences:
                    self._outcomes.occurred(occurrences)
                if released:
                    self._outcomes.enqueued(released)
        if now >= self._next_look:
            self._look(now)
        while self._questions:
            offset, answer = self._questions.popleft()
            answer.set_result(self._explained(offset, now))
        self._pump(now)
        self._forward()

    def store_progress(self) -> None:
        """Store which records are unfinished, before a commit."""
        unfinished = sorted({*self._open, *self._expected})
        behind = 0 if self._next is None or not unfinished else self._next - unfinished[0]
        self._store.put_progress(
            None
            # Records that are finished and will be read again must still be known then.
            if self._next is None or (behind == len(unfinished) and self._read >= self._next)
            else Progress(self._next, ranges(unfinished))
        )

    # --- what happens to a job

    def _begin(self, job: Job, now: int) -> None:
        """A job was read: it is unique, delayed, or takes its place."""
        record = job.record
        if record.schedule is not None and not self._occurs(job, record.schedule, now):
            return
        if self._ends_cancelled(job, now):
            return
        if record.unique is not None:
            other = self._store.unique(record.unique)
            if other is not None and other != job.offset:
                self._finish(job, Ending.DUPLICATE, now, duplicate_of=other)
                return
            if other is None:
                self._store.put_unique(record.unique, job.offset)
                self._undecided.setdefault(job.offset, None)
        if record.due is not None:
            if record.due > now:
                self._to_store(job, StoredState.DELAYED, record.due)
                return
            # It became due before it was read. The store knows that it was released, should it be read again.
            self._to_store(job, StoredState.WAITING)
            job = job._replace(stored=True)
            if job.offset in self._running:
                self._running[job.offset] = job, self._running[job.offset][1]
            self._releases.append(Release(self._id(job), record.job, record.due, now))
        if self._state is not QueueState.RECOVERING:
            self._enter(job)

    def _occurs(self, job: Job, schedule: str, now: int) -> bool:
        """Whether the job of a schedule is executed: it is decided once, and recorded."""
        if self._unfinished.has(schedule, job.offset):
            return True
        record, earlier = job.record, self._unfinished.first(schedule)
        instant = job.timestamp if record.scheduled is None else record.scheduled
        reasons = [f"{said(now - instant)} late"] if now - instant > LATE_MILLISECONDS else []
        overlapped = record.overlap == "skip" and earlier is not None
        if earlier is not None:
            before = str(JobId(self._partition, earlier))
            reasons.append(f"job {before} of an earlier instant was not finished")
        self._occurrences.append(
            Occurrence(
                schedule,
                instant,
                Decision.OVERLAPPED if overlapped else Decision.RELEASED,
                now,
                "; ".join(reasons),
                self._id(job),
            )
        )
        if overlapped:
            self._finish(job, Ending.DUPLICATE, now, duplicate_of=earlier)
            return False
        self._unfinished.add(schedule, job.offset)
        self._undecided.setdefault(job.offset, None)
        return True

    def _enter(self, job: Job) -> None:
        """A job takes its place: behind others of its key, or among those that may begin."""
        record = job.record
        if record.key is not None:
            first, raised = self._lines.enter(record.key, job.offset, job.rank)
            if raised is not None:
                self._prefer(raised, job.rank)
            if not first:
                return
        self._make_ready(job, job.rank)

    def _prefer(self, offset: int, rank: int) -> None:
        """Let a job begin as early as one that waits for it."""
        if offset not in self._running and (job := self._find(offset)) is not None:
            self._make_ready(job, rank)

    def _make_ready(self, job: Job, rank: int) -> None:
        if job.offset in self._running:
            return
        if job.offset in self._undecided:
            self._undecided[job.offset] = rank
            return
        known = self._jobs.get(job.record.job)
        if known is not None and known.definition.batch is not None:
            self._gathering(known).add(rank, job.offset, self._clock())
            return
        self._ready["thread" if known is None else kind_of(known)].add(rank, job.offset)

    def _gathering(self, job: BaseJob[Any, Any]) -> Gathering:
        found = self._gathered.get(job.name)
        if found is None:
            batch, within = job.definition.batch, job.definition.within or NO_TIME
            assert batch is not None
            found = self._gathered[job.name] = Gathering(batch, within // MILLISECOND)
        return found

    def _find(self, offset: int) -> Job | None:
        """A job that waits for its turn, in memory or in the store."""
        job = self._open.get(offset)
        if job is not None:
            return job
        stored = self._store.job(offset)
        return None if stored is None or stored.state is not StoredState.WAITING else _loaded(offset, stored)

    def _pump(self, now: int) -> None:
        """Begin as many jobs as the executors take."""
        if self._state is not QueueState.RUNNING or self._control.has_news:
            # What was cancelled or paused must not begin.
            return
        self._decided = False
        for limit in self._limited.open(now):
            self._pump_limit(limit, now)
        for kind, ready in self._ready.items():
            if not ready:
                continue
            executor = self._executor(kind)
            free = executor.free
            attempts: list[Attempt] = []
            while ready and len(attempts) < free:
                place, offset = ready.take()
                if offset in self._running:
                    continue
                job = self._open.get(offset) or self._find(offset)
                if job is None or (job.record.key is not None and not self._is_head(job)):
                    continue
                attempt = self._attempt(job, place, now)
                if attempt is not None:
                    attempts.append(attempt)
            if attempts:
                executor.submit(attempts)
        if self._gathered:
            self._pump_together(now)

    def _pump_together(self, now: int) -> None:
        """Begin jobs of functions that take a list, of a key only the first one."""
        for name, gathering in self._gathered.items():
            executor = self._executor(kind_of(self._jobs[name]))
            while (opens := gathering.opens()) is not None and opens <= now and executor.free > 0:
                attempts = []
                for place, offset in gathering.take():
                    job = None if offset in self._running else self._find(offset)
                    if job is None or not self._is_head(job):
                        continue
                    attempt = self._attempt(job, place, now)
                    if attempt is not None:
                        attempts.append(attempt)
                if attempts:
                    executor.submit([BatchAttempt.of(attempts)])

    def _together_free(self, now: int) -> bool:
        """Whether jobs of a function that takes a list can begin now."""
        return self._state is QueueState.RUNNING and any(
            (opens := gathering.opens()) is not None
            and opens <= now
            and self._executor(kind_of(self._jobs[name])).free > 0
            for name, gathering in self._gathered.items()
        )

    def _is_head(self, job: Job) -> bool:
        return job.record.key is None or self._lines.head(job.record.key) == job.offset

    def _attempt(self, job: Job, place: int, now: int) -> Attempt | None:
        """Begin a job, unless it has to wait for its limit or cannot be executed."""
        record = job.record
        idempotency_key = self._idempotency_key(job)
        left = self._adopt(idempotency_key)
        if left is not None:
            # It has begun before, whatever would hold it back now.
            self._take_over(job, left, now)
            return None
        if self._ends_cancelled(job, now):
            return None
        if record.expires is not None and now >= record.expires:
            error = TimeoutError(
                f"job {self._id(job)} expired at {record.expires} before it began"
                if not job.tries
                else f"job {self._id(job)} expired at {record.expires} before attempt {job.tries + 1}"
            )
            self._fail(job, error, now, Ending.EXPIRED)
            return None
        paused = self._control.pause_of(record)
        if paused is not None:
            self._control.hold(paused, job.offset, place)
            return None
        known = self._jobs.get(record.job)
        if known is None:
            names = ", ".join(sorted(self._jobs)) or "none"
            self._fail(
                job, LookupError(f"no function is registered as {record.job!r}; there are: {names}"), now
            )
            return None
        bucket = None if record.limit is None else self._bucket(job)
        if bucket is not None:
            opens = bucket.opens()
            if opens is None or opens > now:
                assert record.limit is not None
                self._limited.add(record.limit, place, job.offset, opens)
                return None
        try:
            arguments = known.arguments.decode(record.arguments)
        except (ValueError, TypeError) as error:
            self._fail(job, ValueError(f"the arguments do not fit {record.job}: {error}"), now)
            return None
        if bucket is not None:
            assert record.limit is not None
            bucket.begin(now)
            if bucket.has_rate:
                self._store.put_limit(record.limit, StoredLimit(list(bucket.starts), bucket.closed_until))
        identifier = self._id(job)
        attempt = Attempt(
            job.offset,
            known,
            arguments,
            CurrentJob(
                identifier,
                record.job,
                job.tries + 1,
                record.scheduled or job.due or record.due or job.timestamp,
                idempotency_key,
            ),
            copy_context(),
            self._ended,
            payload=bytes(record.arguments),
        )
        self._running[job.offset] = job, attempt
        return attempt

    def _adopt(self, idempotency_key: str) -> Attempt | None:
        executors = self._executors
        return (
            None if isinstance(executors, InlineExecutor) else executors.adopt(idempotency_key, self._ended)
        )

    def _take_over(self, job: Job, attempt: Attempt, now: int) -> None:
        """Continue an attempt that was left running when the partition was given away."""
        self._running[job.offset] = job, attempt
        bucket = self._bucket(job)
        if bucket is not None:
            bucket.begin(now)
        if job.offset in self._control.cancelled:
            self._ask_to_end(attempt)

    def _settle(self, attempt: Attempt, now: int) -> None:
        """Take the outcome of an attempt."""
        known = self._running.get(attempt.offset)
        if known is None or known[1] is not attempt:
            # An adopted attempt that was reported twice.
            return
        job, _ = self._running.pop(attempt.offset)
        spent = self._executors.seconds
        spent[job.record.job] = spent.get(job.record.job, 0.0) + attempt.seconds
        self._undo_slice.settled.append((job, attempt))
        bucket = None if job.record.limit is None else self._bucket(job)
        if bucket is not None and not attempt.counted:
            assert job.record.limit is not None
            bucket.end(attempt.begun)
            if bucket.has_rate:
                self._store.put_limit(job.record.limit, StoredLimit(list(bucket.starts), bucket.closed_until))
            self._limited.opens(job.record.limit, now)
        attempt.counted = True
        error = attempt.error
        if error is None:
            self._finish(job, Ending.SUCCEEDED, now, result=attempt.result, attempt=attempt)
            return
        retry = attempt.job.definition.retry
        if isinstance(error, JobCancelled) or attempt.current.cancelled:
            note = self._control.cancelled.get(job.offset)
            why = error if note is None else _cancelled_by(note)
            self._fail(job, why, now, Ending.CANCELLED, attempt=attempt)
        elif isinstance(error, RetryLater):
            self._later(job, error, now)
        elif retry.again(attempt.current.attempt, error):
            self._wait(job, attempt, now + retry.delay(attempt.current.attempt))
        else:
            self._fail(job, error, now, attempt=attempt)

    def _wait(self, job: Job, attempt: Attempt, due: int) -> None:
        """A job that failed is executed again at ``due``; its key stays closed if its order matters."""
        again = job._replace(tries=attempt.current.attempt)
        assert attempt.error is not None
        error = job_error(attempt.error)
        self._to_store(again, StoredState.RETRYING, due, error)
        if attempt.job.definition.on_failure == "continue":
            self._leave(job)

    def _later(self, job: Job, error: RetryLater, now: int) -> None:
        due = error.due(now)
        limit = job.record.limit
        if limit is not None and not error.alone:
            bucket = self._bucket(job)
            assert bucket is not None
            bucket.closed_until = max(bucket.closed_until, due)
            self._store.put_limit(limit, StoredLimit(list(bucket.starts), bucket.closed_until))
        self._to_store(job, StoredState.RETRYING, due, job_error(error))
        if error.alone:
            self._leave(job)

    def _fail(
        self,
        job: Job,
        error: BaseException,
        now: int,
        ending: Ending = Ending.FAILED,
        *,
        attempt: Attempt | None = None,
    ) -> None:
        """A job has failed for good: it becomes a dead letter, unless it was cancelled."""
        if ending is not Ending.CANCELLED:
            self._outcomes.failed(
                FetchedLists(
                    self._topic,
                    self._partition,
                    [job.key],
                    [job.value],
                    [job.timestamp],
                    [job.offset],
                    None if job.headers is None else [job.headers],
                ),
                error,
            )
        self._finish(job, ending, now, error=error, attempt=attempt)

    def _finish(
        self,
        job: Job,
        ending: Ending,
        now: int,
        *,
        result: bytes = b"null",
        error: BaseException | None = None,
        attempt: Attempt | None = None,
        duplicate_of: int | None = None,
        began: bool = True,
    ) -> None:
        record = job.record
        self._forget(job, began=began)
        self._control.note_end(job.offset)
        if record.unique is not None and self._store.unique(record.unique) == job.offset:
            self._store.put_unique(record.unique, None)
        if record.schedule is not None:
            self._unfinished.remove(record.schedule, job.offset)
        if record.key is not None:
            self._leave(job)
        end = JobEnd(
            self._id(job),
            record.job,
            ending,
            job.tries if attempt is None else attempt.current.attempt,
            job.timestamp,
            now,
            msgspec.Raw(result),
            None if error is None else error_of_end(error),
            None if duplicate_of is None else str(JobId(self._partition, duplicate_of)),
            NULL if ending in _UNREPEATED else msgspec.Raw(job.value),
            0 if attempt is None else attempt.begun,
        )
        self._ends.append((end, job.offset, now))

    def _leave(self, job: Job) -> None:
        """Give a job's key to the next one."""
        key, offset = job.record.key, job.offset
        if key is None:
            return
        while (following := self._lines.leave(key, offset)) is not None:
            offset, place = following
            if offset in self._running:
                return
            found = self._find(offset)
            if found is not None:
                self._make_ready(found, place)
                return
            stored = self._store.job(offset)
            if stored is not None and stored.state is StoredState.RETRYING:
                return
            # It is finished: whatever waits for it goes on.

    def _to_store(self, job: Job, state: StoredState, due: int = 0, error: JobError | None = None) -> None:
        """Keep a job in the store, so that its record may be committed."""
        self._forget(job)
        failed_at = 0 if error is None else self._clock()
        self._store.put(job.offset, job.as_stored(state, due, error, failed_at))
        if due and self._next_due is not None:
            self._next_due = min(self._next_due, due)

    def _forget(self, job: Job, *, began: bool = True) -> None:
        """Take a job out of the store, or of the jobs that hold back the committed offset."""
        if not job.stored:
            self._undo_slice.opened.append(self._open.pop(job.offset))
            return
        stored = self._store.delayed(job.offset) or self._store.job(job.offset)
        assert stored is not None, f"job {job.offset} should be in the store"
        if stored.state is StoredState.DELAYED and began:
            # It was released and has run, and its release was undone.
            self._releases.append(Release(self._id(job), job.record.job, stored.due, self._clock()))
        self._store.delete(job.offset, stored)

    def _release_due(self, now: int) -> None:
        """Let jobs whose time has come take their place."""
        if self._next_due is not None and self._next_due > now:
            return
        due_now: list[tuple[int, int]] = []
        self._next_due = None
        for due, offset in self._store.due():
            if due > now or len(due_now) >= MOST_DUE:
                self._next_due = due
                break
            due_now.append((due, offset))
        if self._next_due is None:
            self._next_due = _NEVER
        for due, offset in due_now:
            stored = self._store.delayed(offset) or self._store.job(offset)
            assert stored is not None, f"job {offset} is due and not stored"
            self._store.delete(offset, stored)
            waiting = msgspec.structs.replace(stored, state=StoredState.WAITING, due=0, released=due)
            self._store.put(offset, waiting)
            job = _loaded(offset, stored)
            if stored.state is StoredState.DELAYED:
                self._releases.append(Release(self._id(job), job.record.job, due, now))
            if offset in self._running:
                # Its release was undone while it ran: it has its place.
                continue
            if stored.state is StoredState.DELAYED:
                self._enter(job)
            elif job.record.key is not None and self._lines.head(job.record.key) == offset:
                self._make_ready(job, job.rank)
            else:
                self._enter(job)

    # --- commands: see control.Controlled

    def cancel(self, offset: int, note: CommandNote, now: int) -> None:
        if offset in self._running:
            self._control.note_cancelled(offset, note)
            self._ask_to_end(self._running[offset][1])
            return
        job = self._open.get(offset)
        if job is None:
            stored = self._store.job(offset) or self._store.delayed(offset)
            if stored is None:
                if self._next is None or offset >= self._next or offset in self._expected:
                    # Its record is read later.
                    self._control.note_cancelled(offset, note)
                return
            job = _loaded(offset, stored)
        self._finish(job, Ending.CANCELLED, now, error=_cancelled_by(note), began=False)

    def retry_now(self, offset: int, now: int) -> None:
        stored = self._store.job(offset)
        if stored is not None and stored.state is StoredState.RETRYING and offset not in self._running:
            self._store.delete(offset, stored)
            self._store.put(offset, msgspec.structs.replace(stored, due=now))
            self._next_due = now if self._next_due is None else min(self._next_due, now)

    def ready_again(self, offset: int, rank: int) -> None:
        job = self._find(offset)
        if job is not None:
            self._make_ready(job, rank)

    def _ends_cancelled(self, job: Job, now: int) -> bool:
        """End a job that was cancelled, unless it runs here."""
        note = self._control.cancelled.get(job.offset)
        if note is None or job.offset in self._running:
            return False
        executors = self._executors
        if not isinstance(executors, InlineExecutor) and executors.has_left(self._idempotency_key(job)):
            # It is taken over at its turn.
            return False
        self._finish(job, Ending.CANCELLED, now, error=_cancelled_by(note), began=False)
        return True

    def _explained(self, offset: int, now: int) -> dict[str, Any] | None:
        job = self._known(offset)
        if job is None:
            if self._next is not None and offset < self._next:
                return None
            identifier = str(JobId(self._partition, offset))
            return {"id": identifier, "state": JobState.WAITING.value, "why": "no worker has read it yet"}
        return unfinished_fields(self._id(job), job.timestamp, self._case(job, now))

    def _known(self, offset: int) -> Job | None:
        """A job that has not ended."""
        running = self._running.get(offset)
        job = self._open.get(offset) if running is None else running[0]
        if job is not None:
            return job
        stored = self._store.job(offset) or self._store.delayed(offset)
        return None if stored is None else _loaded(offset, stored)

    def _case(self, job: Job, now: int, *, alone: bool = False) -> Case:
        """Why a job does not run; with ``alone``, whatever its key says."""
        record, offset = job.record, job.offset
        known = self._jobs.get(record.job)
        case = Case(record, now, JobState.WAITING, tries=job.tries, registered=known is not None)
        case.most_tries = None if known is None else known.definition.retry.tries
        case.cancelled = self._control.cancelled.get(offset)
        stored = self._store.job(offset) or self._store.delayed(offset)
        if stored is not None:
            case.error, case.failed_at = stored.error, stored.failed_at
        if offset in self._running:
            current = self._running[offset][1]
            if current.begun:
                case.stage, case.began = JobState.RUNNING, current.begun
                case.progress = current.current.progress
            return case
        if stored is not None and stored.due:
            delayed = stored.state is StoredState.DELAYED
            case.stage, case.due = JobState.DELAYED if delayed else JobState.RETRYING, stored.due
            return case
        paused = self._control.pause_of(record)
        if paused is not None:
            case.pause = paused, self._control.pauses[paused]
        bucket = self._bucket(job)
        if bucket is not None:
            opens = bucket.opens()
            case.opens, case.ahead = opens or 0.0, bucket.most if opens is None else None
        head = None if record.key is None else self._lines.head(record.key)
        if head is not None and head != offset and not alone:
            holder = self._known(head)
            if holder is not None:
                case.holder = self._id(holder), self._case(holder, now, alone=True).does()
        return case

    def _forget_cancelled(self, first: int) -> None:
        """Jobs before the first record that is read, and not known, had ended when they were cancelled."""
        for offset in list(self._control.cancelled):
            if offset < first and self._known(offset) is None:
                self._control.note_end(offset)

    def _ask_to_end(self, attempt: Attempt) -> None:
        attempt.current.cancelled = True
        self._executor(kind_of(attempt.job)).cancel(attempt)

    # --- limits

    def _bucket(self, job: Job) -> Bucket | None:
        name = job.record.limit
        if name is None:
            return None
        bucket = self._buckets.get(name)
        if bucket is None:
            known = self._jobs.get(job.record.job)
            if known is None or known.definition.limit is None:
                return None
            stored = self._store.limit(name)
            bucket = self._buckets[name] = Bucket(known.definition.limit, stored.starts, stored.closed_until)
        return bucket

    def _pump_limit(self, name: str, now: int) -> None:
        """Let jobs that wait for a limit begin, as many as it allows."""
        together: dict[str, list[Attempt]] = {}
        self._pump_limited(name, now, together)
        for job, attempts in together.items():
            most = self._jobs[job].definition.batch
            assert most is not None
            self._executor(kind_of(self._jobs[job])).submit(
                [BatchAttempt.of(attempts[at : at + most]) for at in range(0, len(attempts), most)]
            )

    def _pump_limited(self, name: str, now: int, together: dict[str, list[Attempt]]) -> None:
        while (first := self._limited.first(name)) is not None:
            place, offset = first
            job = None if offset in self._running else self._find(offset)
            if job is None:
                self._limited.take(name)
                continue
            bucket = self._bucket(job)
            opens = 0 if bucket is None else bucket.opens()
            if opens is None or opens > now:
                self._limited.wait(name, opens)
                return
            known = self._jobs.get(job.record.job)
            executor = self._executor("thread" if known is None else kind_of(known))
            if executor.free < 1:
                self._limited.wait(name, now)
                return
            self._limited.take(name)
            attempt = self._attempt(job, place, now)
            if attempt is None:
                continue
            if attempt.job.definition.batch is None:
                executor.submit([attempt])
            else:
                together.setdefault(attempt.job.name, []).append(attempt)

    # --- memory

    def _make_room(self) -> None:
        """Put jobs that wait for others into the store where there are too many, so that reading goes on."""
        if len(self._open) < MOST_OPEN or self._state is QueueState.RECOVERING:
            return
        for offset in [*self._lines.offsets_waiting(), *self._limited.offsets(), *self._control.held()]:
            job = self._open.get(offset)
            if job is not None and offset not in self._running:
                self._to_store(job, StoredState.WAITING)

    def _look(self, now: int) -> None:
        """Put jobs that hold back the committed offset for long into the store."""
        self._next_look = now + LOOK_MILLISECONDS
        if self._state is QueueState.RECOVERING or self._next is None:
            return
        for offset, job in list(self._open.items()):
            if self._next - offset <= MOST_BEHIND and now - job.timestamp <= LONGEST_OPEN_MILLISECONDS:
                break
            self._to_store(job, StoredState.WAITING)
            if offset in self._running:
                _, attempt = self._running[offset]
                self._running[offset] = job._replace(stored=True), attempt

    def _take_back(self, undo: Undo) -> None:
        """Remember again what stores have not changed after all."""
        for job in undo.opened:
            self._open.setdefault(job.offset, job)
        self._open = dict(sorted(self._open.items()))
        for job, attempt in reversed(undo.settled):
            self._running[job.offset] = job, attempt
            self._ended.appendleft(attempt)
        undo.opened, undo.settled, undo.ended = [], [], Counter()
        self._read = 0
        self._ends.clear()
        self._releases.clear()
        self._occurrences.clear()
        # The stores are not as before yet.
        self._changed = True

    def _rebuild(self) -> None:
        """Make the order of jobs of what is in the store, not committed, or running."""
        self._changed = False
        self._store.reload()
        self._control.reload()
        for ready in self._ready.values():
            ready.clear()
        for gathering in self._gathered.values():
            gathering.clear()
        self._lines.clear()
        self._limited.clear()
        self._next_due = None
        self._undecided = dict.fromkeys(self._undecided)
        self._unfinished.forget()
        if self._scheduler is not None:
            self._scheduler.forget()
        found: list[tuple[int, int, Job]] = []
        for offset, stored in self._store.jobs():
            retrying = stored.state is StoredState.RETRYING
            if offset in self._running:
                running, attempt = self._running[offset]
                self._running[offset] = running._replace(stored=True), attempt
            found.append((1 if retrying else 2, offset, _loaded(offset, stored)))
        known = {offset for _, offset, _ in found}
        for offset, job in self._open.items():
            if offset in self._running and self._running[offset][0].stored:
                self._running[offset] = job, self._running[offset][1]
            found.append((2, offset, job))
        # Jobs that run although their release was undone are among the delayed ones.
        found += [
            (0, offset, job)
            for offset, (job, _) in self._running.items()
            if offset not in known and offset not in self._open
        ]
        ordered = sorted(
            ((0 if offset in self._running else group, offset, job) for group, offset, job in found),
            key=lambda item: item[:2],
        )
        now = self._clock()
        for group, offset, job in ordered:
            if not job.stored:
                # It may have been in the store in what was undone.
                self._begin(job, now)
            elif group != 1:
                self._enter(job)
            elif job.record.key is not None and self._holds_key(job):
                self._lines.enter(job.record.key, offset, job.rank)

    def _holds_key(self, job: Job) -> bool:
        known = self._jobs.get(job.record.job)
        return known is None or known.definition.on_failure == "wait"

    def _has_recovered(self) -> bool:
        """Whether all unfinished records that still exist are read again.

        Time says nothing of that: records may arrive late, and a job that is not waited for is lost.
        """
        return self._state is QueueState.RECOVERING and (
            not self._expected or max(self._expected) < self._reached
        )

    def _recovered(self) -> None:
        # Those that were not read were deleted.
        self._expected.clear()
        self._become(QueueState.RUNNING)
        self._rebuild()

    def _forward(self) -> None:
        self._store.put_counts()
        if self._releases:
            releases, self._releases = self._releases, []
            self._outcomes.released(releases)
        if self._occurrences:
            occurrences, self._occurrences = self._occurrences, []
            self._outcomes.occurred(occurrences)
        if self._ends:
            ends, self._ends = self._ends, []
            self._undo_slice.ended.update([(end.job, end.ending) for end, _, _ in ends])
            self._outcomes.ended(ends)

    def _wakes(self) -> int:
        """When there is something to do without an outcome, in milliseconds since the epoch."""
        if self._state is not QueueState.RUNNING:
            return _NEVER
        if self._open:
            return min(self._next_time(), self._next_look)
        return self._next_time()

    def _next_time(self) -> int:
        """When anything is due by its time, or can begin since the last commit."""
        times = [
            0 if self._next_due is None or self._decided else self._next_due,
            self._limited.next_opening(),
            _NEVER if self._scheduler is None else self._scheduler.wakes(),
        ]
        if self._gathered:
            # Those for which it is time already wait for an executor.
            now = self._clock()
            opening = [gathering.opens() for gathering in self._gathered.values()]
            times += [opens for opens in opening if opens is not None and opens > now]
        return min(times)

    def _executor(self, kind: ExecutorKind) -> Executor:
        executors = self._executors
        return executors if isinstance(executors, InlineExecutor) else executors.of(kind)

    def _idempotency_key(self, job: Job) -> str:
        return f"{self._topic}-{self._id(job)}"

    def _id(self, job: Job) -> str:
        # As ``str(JobId(…))``, several times for each job.
        return f"{self._partition}-{job.offset}"

    def _become(self, state: QueueState) -> None:
        assert self._state.may_become(state), (
            f"a queue that is {self._state.value} cannot become {state.value}"
        )
        self._state = state


_NEVER = 1 << 62

_UNREPEATED = (Ending.SUCCEEDED, Ending.DUPLICATE)
"""Endings after which the job cannot be enqueued again."""


def _cancelled_by(note: CommandNote) -> JobCancelled:
    at = datetime.fromtimestamp(note.at / 1000, UTC).isoformat(timespec="seconds")
    return JobCancelled(f"cancelled by {note.by} at {at}")


def _loaded(offset: int, stored: StoredJob) -> Job:
    return Job(
        offset,
        _record(stored.value),
        stored.key,
        stored.value,
        stored.timestamp,
        stored.headers,
        stored.tries,
        stored.due,
        stored=True,
    )
