"""The part of the queue that one task has: which of its jobs run, wait, are delayed or done."""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streams.jobs.current import CurrentJob, JobCancelled
from streams.jobs.executors import Attempt
from streams.jobs.executors.choice import KINDS, ExecutorKind, kind_of
from streams.jobs.executors.inline import InlineExecutor
from streams.jobs.job import describe
from streams.jobs.job_store import JobStore, Progress, StoredJob, StoredLimit, StoredState, ranges
from streams.jobs.limits import Bucket
from streams.jobs.openings import Openings
from streams.jobs.order import KeyLines, ReadyJobs, rank
from streams.jobs.record import Ending, JobEnd, JobError, JobId, JobRecord, Release
from streams.jobs.retry import RetryLater
from streams.records import FetchedLists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streams.jobs.executors import Executor
    from streams.jobs.executors.choice import Executors
    from streams.jobs.job import BaseJob
    from streams.records import Headers, TopicPartition

MOST_OPEN = 10_000
"""How many unfinished records are kept in memory before the input is paused, or jobs go to the store."""

MOST_BEHIND = 100_000
"""How many offsets the committed one may be behind before the jobs that hold it back go to the store."""

LONGEST_OPEN_MILLISECONDS = 600_000
"""How long a record may hold back the committed offset before its job goes to the store."""

RECOVERY_MILLISECONDS = 10_000
"""How long to wait for records that should be read again and do not arrive, as they were deleted."""

LOOK_MILLISECONDS = 1_000
"""How often jobs that hold back the committed offset are looked at."""

MOST_DUE = 1_000
"""How many due jobs are released in one slice."""


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
        return rank(max(self.timestamp, self.due, self.record.due or 0), self.record.priority)

    def as_stored(self, state: StoredState, due: int = 0, tries: int | None = None) -> StoredJob:
        """What is stored of it."""
        return StoredJob(
            state,
            due,
            self.tries if tries is None else tries,
            self.key,
            self.value,
            self.timestamp,
            None if self.headers is None else list(self.headers),
        )


@dataclass(slots=True)
class Undo:
    """What memory has forgotten since a point to which stores may return."""

    opened: list[Job] = field(default_factory=list)
    """Jobs that were not in the store, and are finished or in the store now."""
    settled: list[tuple[Job, Attempt]] = field(default_factory=list)
    """Attempts whose outcome was taken."""

    def extend(self, later: Undo) -> None:
        """Add what was forgotten later."""
        self.opened += later.opened
        self.settled += later.settled
        later.opened, later.settled = [], []


class Outcomes(NamedTuple):
    """Where a queue forwards what has happened, within a slice."""

    ended: Callable[[list[tuple[JobEnd, int, int]]], None]
    """Results, with the offset and time of each job's record."""
    released: Callable[[list[Release]], None]
    failed: Callable[[FetchedLists, BaseException], None]
    """The record of a job that failed for good, and why."""


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
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._executors = executors
        self._outcomes = outcomes
        self._topic = topic
        self._partition = partition
        self._clock = clock
        self._state = QueueState.RECOVERING
        self._began = clock()

        progress = store.progress()
        self._next: int | None = None if progress is None else progress.position
        """One past the last record that was taken."""
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
        self._lines = KeyLines()
        self._buckets: dict[str, Bucket] = {}
        self._limited = Openings()
        self._next_due: int | None = None
        """When the next job in the store is due; ``None``: not known."""
        self._next_look = self._began + LOOK_MILLISECONDS

        self._undo_slice = Undo()
        self._undo = Undo()
        self._ends: list[tuple[JobEnd, int, int]] = []
        self._releases: list[Release] = []
        self._changed = False
        if not self._expected:
            self._become(QueueState.RUNNING)
        self._rebuild()

    # --- the task's view: see BackgroundWork

    def has_finished(self) -> bool:
        if self._ended or self._changed:
            return True
        if isinstance(self._executors, InlineExecutor) and self._executors.waiting:
            return True
        if self._state is QueueState.RUNNING and any(
            ready and self._executor(kind).free for kind, ready in self._ready.items()
        ):
            return True
        return self._wakes() <= self._clock()

    def is_running(self) -> bool:
        return bool(self._running)

    def wait_milliseconds(self) -> int:
        return max(0, self._wakes() - self._clock())

    def is_full(self) -> bool:
        return len(self._open) >= MOST_OPEN

    def first_unfinished(self, partition: TopicPartition) -> int | None:  # noqa: ARG002 - it reads one only
        first = next(iter(self._open), None)
        if self._expected:
            expected = min(self._expected)
            return expected if first is None else min(first, expected)
        return first

    def stop(self) -> None:
        self._become(QueueState.STOPPING)
        for kind in KINDS:
            for attempt in self._executor(kind).withdraw(self._ended):
                del self._running[attempt.offset]

    def close(self) -> None:
        """The task ends: what has not begun is begun by the next owner of the partition."""
        self.stop()
        if not isinstance(self._executors, InlineExecutor):
            self._executors.leave(attempt for _, attempt in self._running.values())

    def end_slice(self) -> None:
        self._undo.extend(self._undo_slice)

    def committed(self) -> None:
        self._undo = Undo()

    def drop_slice(self) -> None:
        self._take_back(self._undo_slice)

    def drop(self) -> None:
        self._undo.extend(self._undo_slice)
        self._take_back(self._undo)

    # --- within slices

    def admit(self, jobs: Iterable[Job]) -> None:
        """Take jobs whose records were read, in the order of their offsets."""
        if self._changed:
            self._rebuild()
        now = self._clock()
        for job in jobs:
            if self._next is not None and job.offset < self._next:
                if job.offset not in self._expected:
                    # Known, finished or in the store.
                    continue
                self._expected.discard(job.offset)
            else:
                self._next = job.offset + 1
            self._open[job.offset] = job
            self._begin(job, now)
        if self._state is QueueState.RECOVERING and (
            not self._expected or (self._next is not None and max(self._expected) < self._first_read())
        ):
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
        if self._state is QueueState.RECOVERING and now - self._began >= RECOVERY_MILLISECONDS:
            self._expected.clear()
            self._recovered()
        if self._state is QueueState.RUNNING:
            self._release_due(now)
        if now >= self._next_look:
            self._look(now)
        self._pump(now)
        self._forward()

    def store_progress(self) -> None:
        """Store which records are unfinished, before a commit."""
        unfinished = sorted({*self._open, *self._expected})
        behind = 0 if self._next is None or not unfinished else self._next - unfinished[0]
        self._store.put_progress(
            None
            if self._next is None or behind == len(unfinished)
            else Progress(self._next, ranges(unfinished))
        )

    # --- what happens to a job

    def _begin(self, job: Job, now: int) -> None:
        """A job was read: it is unique, delayed, or takes its place."""
        record = job.record
        if record.unique is not None:
            other = self._store.unique(record.unique)
            if other is not None and other != job.offset:
                self._finish(job, Ending.DUPLICATE, now, duplicate_of=other)
                return
            self._store.put_unique(record.unique, job.offset)
        if record.due is not None and record.due > now:
            self._to_store(job, StoredState.DELAYED, record.due)
            return
        if self._state is not QueueState.RECOVERING:
            self._enter(job)

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
        known = self._jobs.get(job.record.job)
        self._ready["thread" if known is None else kind_of(known)].add(rank, job.offset)

    def _find(self, offset: int) -> Job | None:
        """A job that waits for its turn, in memory or in the store."""
        job = self._open.get(offset)
        if job is not None:
            return job
        stored = self._store.job(offset)
        return None if stored is None or stored.state is not StoredState.WAITING else _loaded(offset, stored)

    def _pump(self, now: int) -> None:
        """Begin as many jobs as the executors take."""
        if self._state is not QueueState.RUNNING:
            return
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
                job = None if offset in self._running else self._find(offset)
                if job is None or not self._is_head(job):
                    continue
                attempt = self._attempt(job, place, now)
                if attempt is not None:
                    attempts.append(attempt)
            if attempts:
                executor.submit(attempts)

    def _is_head(self, job: Job) -> bool:
        return job.record.key is None or self._lines.head(job.record.key) == job.offset

    def _attempt(self, job: Job, place: int, now: int) -> Attempt | None:
        """Begin a job, unless it has to wait for its limit or cannot be executed."""
        record = job.record
        if record.expires is not None and now >= record.expires:
            error = TimeoutError(
                f"job {self._id(job)} expired at {record.expires} before it began"
                if not job.tries
                else f"job {self._id(job)} expired at {record.expires} before attempt {job.tries + 1}"
            )
            self._fail(job, error, now, Ending.EXPIRED)
            return None
        known = self._jobs.get(record.job)
        if known is None:
            names = ", ".join(sorted(self._jobs)) or "none"
            self._fail(
                job, LookupError(f"no function is registered as {record.job!r}; there are: {names}"), now
            )
            return None
        bucket = self._bucket(job)
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
                self._store.put_limit(record.limit, StoredLimit(bucket.full_at, bucket.closed_until))
        identifier = self._id(job)
        left = self._adopt(f"{self._topic}-{identifier}")
        if left is not None:
            self._running[job.offset] = job, left
            return None
        attempt = Attempt(
            job.offset,
            known,
            arguments,
            CurrentJob(
                identifier,
                record.job,
                job.tries + 1,
                job.due or record.due or job.timestamp,
                f"{self._topic}-{identifier}",
            ),
            self._context,
            self._ended,
        )
        self._running[job.offset] = job, attempt
        return attempt

    def _adopt(self, idempotency_key: str) -> Attempt | None:
        executors = self._executors
        return (
            None if isinstance(executors, InlineExecutor) else executors.adopt(idempotency_key, self._ended)
        )

    def _settle(self, attempt: Attempt, now: int) -> None:
        """Take the outcome of an attempt."""
        known = self._running.get(attempt.offset)
        if known is None or known[1] is not attempt:
            # An adopted attempt that was reported twice.
            return
        job, _ = self._running.pop(attempt.offset)
        self._undo_slice.settled.append((job, attempt))
        bucket = self._bucket(job)
        if bucket is not None and not attempt.counted:
            assert job.record.limit is not None
            bucket.running -= 1
            self._limited.opens(job.record.limit, now)
        attempt.counted = True
        error, retry = attempt.error, attempt.job.definition.retry
        if error is None:
            self._finish(job, Ending.SUCCEEDED, now, result=attempt.result)
        elif isinstance(error, JobCancelled) or (attempt.current.cancelled and error is not None):
            self._fail(job, error, now, Ending.CANCELLED, tries=attempt.current.attempt)
        elif isinstance(error, RetryLater):
            self._later(job, error, now)
        elif retry.again(attempt.current.attempt, error):
            self._wait(job, attempt, now + retry.delay(attempt.current.attempt))
        else:
            self._fail(job, error, now, tries=attempt.current.attempt)

    def _wait(self, job: Job, attempt: Attempt, due: int) -> None:
        """A job that failed is executed again at ``due``; its key stays closed if its order matters."""
        again = job._replace(tries=attempt.current.attempt)
        self._to_store(again, StoredState.RETRYING, due)
        if attempt.job.definition.on_failure == "continue":
            self._leave(job)

    def _later(self, job: Job, error: RetryLater, now: int) -> None:
        due = error.due(now)
        limit = job.record.limit
        if limit is not None and not error.alone:
            bucket = self._bucket(job)
            assert bucket is not None
            bucket.closed_until = max(bucket.closed_until, due)
            self._store.put_limit(limit, StoredLimit(bucket.full_at, bucket.closed_until))
        self._to_store(job, StoredState.RETRYING, due)
        if error.alone:
            self._leave(job)

    def _fail(
        self,
        job: Job,
        error: BaseException,
        now: int,
        ending: Ending = Ending.FAILED,
        *,
        tries: int | None = None,
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
        self._finish(job, ending, now, error=error, tries=tries)

    def _finish(
        self,
        job: Job,
        ending: Ending,
        now: int,
        *,
        result: bytes = b"null",
        error: BaseException | None = None,
        tries: int | None = None,
        duplicate_of: int | None = None,
    ) -> None:
        record = job.record
        self._forget(job)
        if record.unique is not None and duplicate_of is None:
            self._store.put_unique(record.unique, None)
        self._leave(job)
        if tries is None:
            tries = job.tries + (ending is Ending.SUCCEEDED)
        end = JobEnd(
            self._id(job),
            record.job,
            ending,
            tries,
            job.timestamp,
            now,
            msgspec.Raw(result),
            None if error is None else JobError(type(error).__name__, describe(error)),
            None if duplicate_of is None else str(JobId(self._partition, duplicate_of)),
        )
        self._ends.append((end, job.offset, now))

    def _leave(self, job: Job) -> None:
        """Give a job's key to the next one."""
        if job.record.key is None:
            return
        following = self._lines.leave(job.record.key, job.offset)
        if following is None:
            return
        offset, place = following
        if offset in self._running:
            return
        found = self._find(offset)
        if found is not None:
            self._make_ready(found, place)
        elif (stored := self._store.job(offset)) is None or stored.state is not StoredState.RETRYING:
            # It is finished: whatever waits for it goes on.
            self._leave(job._replace(offset=offset))

    def _to_store(self, job: Job, state: StoredState, due: int = 0) -> None:
        """Keep a job in the store, so that its record may be committed."""
        self._forget(job)
        self._store.put(job.offset, job.as_stored(state, due))
        if due and self._next_due is not None:
            self._next_due = min(self._next_due, due)

    def _forget(self, job: Job) -> None:
        """Take a job out of the store, or of the jobs that hold back the committed offset."""
        if not job.stored:
            self._undo_slice.opened.append(self._open.pop(job.offset))
            return
        stored = self._store.delayed(job.offset) or self._store.job(job.offset)
        assert stored is not None, f"job {job.offset} should be in the store"
        if stored.state is StoredState.DELAYED:
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
            waiting = msgspec.structs.replace(stored, state=StoredState.WAITING, due=0)
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
            bucket = self._buckets[name] = Bucket(known.definition.limit, stored.full_at, stored.closed_until)
        return bucket

    def _pump_limit(self, name: str, now: int) -> None:
        """Let jobs that wait for a limit begin, as many as it allows."""
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
            if attempt is not None:
                executor.submit([attempt])

    # --- memory

    def _make_room(self) -> None:
        """Put jobs that wait for others into the store where there are too many, so that reading goes on."""
        if len(self._open) < MOST_OPEN or self._state is QueueState.RECOVERING:
            return
        for offset in [*self._lines.offsets_waiting(), *self._limited.offsets()]:
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
        undo.opened, undo.settled = [], []
        self._ends.clear()
        self._releases.clear()
        # The stores are not as before yet.
        self._changed = True

    def _rebuild(self) -> None:
        """Make the order of jobs of what is in the store, not committed, or running."""
        self._changed = False
        for ready in self._ready.values():
            ready.clear()
        self._lines.clear()
        self._limited.clear()
        self._next_due = None
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

    def _recovered(self) -> None:
        self._expected.clear()
        self._become(QueueState.RUNNING)
        self._rebuild()

    def _first_read(self) -> int:
        """An offset before which all expected records would have been read again."""
        return max(self._open, default=-1)

    def _forward(self) -> None:
        if self._releases:
            releases, self._releases = self._releases, []
            self._outcomes.released(releases)
        if self._ends:
            ends, self._ends = self._ends, []
            self._outcomes.ended(ends)

    def _wakes(self) -> int:
        """When there is something to do without an outcome, in milliseconds since the epoch."""
        if self._state is QueueState.STOPPING:
            return _NEVER
        if self._state is QueueState.RECOVERING:
            return self._began + RECOVERY_MILLISECONDS
        times = [0 if self._next_due is None else self._next_due, self._limited.next_opening()]
        if self._open:
            times.append(self._next_look)
        return min(times)

    def _executor(self, kind: ExecutorKind) -> Executor:
        executors = self._executors
        return executors if isinstance(executors, InlineExecutor) else executors.of(kind)

    @property
    def _context(self) -> Any:
        return copy_context()

    def _id(self, job: Job) -> str:
        return str(JobId(self._partition, job.offset))

    def _become(self, state: QueueState) -> None:
        assert self._state.may_become(state), (
            f"a queue that is {self._state.value} cannot become {state.value}"
        )
        self._state = state


_NEVER = 1 << 62


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
