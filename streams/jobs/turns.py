"""Whose turn it is among the jobs of one partition that wait for their turn."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from streams.jobs.executors.batch import BatchAttempt
from streams.jobs.executors.choice import KINDS, kind_of
from streams.jobs.gathering import Gathering
from streams.jobs.openings import Openings
from streams.jobs.order import KeyLines, ReadyJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from streams.jobs.buckets import Buckets
    from streams.jobs.executors import Attempt, Executor
    from streams.jobs.executors.choice import ExecutorKind, Executors
    from streams.jobs.executors.inline import InlineExecutor
    from streams.jobs.job import BaseJob
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.unfinished_jobs import UnfinishedJobs

    Begin: TypeAlias = Callable[[QueuedJob, int, int], Attempt | None]
    """Begins a job that has the given place, now; ``None``: it does not begin, or runs already."""

NO_TIME, MILLISECOND = timedelta(), timedelta(milliseconds=1)


class Turns:
    """The order of jobs: they ``enter``, begin at their turn (``pump``), and ``leave`` their key in the end.

    A job waits behind others of its key (``KeyLines``), then by rank among those for the same kind of
    executor (``ReadyJobs``) or of the same function that takes a list (``Gathering``), then for its limit
    (``Openings``). All of these have offsets only: where one is out of date, as its job runs or has ended, it
    is passed over. Nothing is taken back: after an undo all is forgotten, and the unfinished jobs enter
    again, in the order of ``UnfinishedJobs.in_order``. Only which jobs wait for a commit (``_undecided``)
    outlives that, until the transaction is committed or undone.
    """

    def __init__(
        self,
        unfinished: UnfinishedJobs,
        jobs: Mapping[str, BaseJob[Any, Any]],
        executors: Executors | InlineExecutor,
        buckets: Buckets,
        clock: Callable[[], int],
    ) -> None:
        self._unfinished = unfinished
        self._running = unfinished.running
        self._kinds: dict[str, ExecutorKind] = {name: kind_of(job) for name, job in jobs.items()}
        self._executors = executors
        self._buckets = buckets
        self._clock = clock

        self._lines = KeyLines()
        self._ready: dict[ExecutorKind, ReadyJobs] = {kind: ReadyJobs() for kind in KINDS}
        # All of them now: while some begin, others get their first job.
        self._gathered = {
            name: Gathering(batch, (job.definition.within or NO_TIME) // MILLISECOND)
            for name, job in jobs.items()
            if (batch := job.definition.batch) is not None
        }
        """Those of functions that take a list, by function."""
        self._most = {name: job.definition.batch for name, job in jobs.items()}
        self._limited = Openings()
        self._undecided: dict[int, int | None] = {}
        """Jobs of which it is not committed that they are executed, as that depended on others; their ranks.

        One that began earlier could turn out to be left out, if what the decision was based on is undone.
        """
        self._decided = False
        """Whether jobs may begin since the last commit that waited for it."""

    # --- taking a place, and leaving it

    def enter(self, job: QueuedJob) -> None:
        """A job takes its place: behind others of its key, or among those that may begin."""
        key, rank = job.record.key, job.rank
        if key is not None:
            first, raised = self._lines.enter(key, job.offset, rank)
            if raised is not None and raised not in self._running:
                # One for which another one waits begins as early as that.
                self.make_ready(raised, rank)
            if not first:
                return
        self._add(job, rank)

    def enter_again(self, job: QueuedJob) -> None:
        """A job takes its place after it waited for its next attempt: it may have its key still."""
        if job.record.key is not None and self.has_key(job):
            self._add(job, job.rank)
        else:
            self.enter(job)

    def keep_key(self, job: QueuedJob) -> None:
        """A job that waits for its next attempt takes a place in the line of its key only."""
        if job.record.key is not None:
            self._lines.enter(job.record.key, job.offset, job.rank)

    def make_ready(self, offset: int, rank: int) -> bool:
        """Let a job begin at its turn, whatever held it back. Returns whether it waits for its turn."""
        job = self._unfinished.waiting(offset)
        if job is not None:
            self._add(job, rank)
        return job is not None

    def wait_for_commit(self, job: QueuedJob) -> None:
        """Let a job, which has no place yet, begin only once all that was changed so far is committed."""
        self._undecided.setdefault(job.offset, None)

    def wait_for_limit(self, job: QueuedJob, rank: int, opens: int | None) -> None:
        """Let a job wait for its limit, which opens at that time; ``None``: when a job of it has ended."""
        assert job.record.limit is not None
        self._limited.add(job.record.limit, rank, job.offset, opens)

    def look_at_limit(self, limit: str, now: int) -> None:
        """A limit may be open now."""
        self._limited.opens(limit, now)

    def leave(self, job: QueuedJob) -> None:
        """Give a job's key to the next one."""
        key, offset = job.record.key, job.offset
        if key is None:
            return
        while (following := self._lines.leave(key, offset)) is not None:
            offset, place = following
            if (
                offset in self._running
                or self.make_ready(offset, place)
                or self._unfinished.is_retrying(offset)
            ):
                return
            # It is finished: whatever waits for it goes on.

    def holder(self, key: str) -> int | None:
        """The offset of the job that has a key."""
        return self._lines.head(key)

    def has_key(self, job: QueuedJob) -> bool:
        """Whether no other job has the key of this one."""
        key = job.record.key
        return key is None or self._lines.head(key) == job.offset

    def waiting_for_others(self) -> list[int]:
        """The offsets of the jobs that wait for their key or limit."""
        return [*self._lines.offsets_waiting(), *self._limited.offsets()]

    def _add(self, job: QueuedJob, rank: int) -> None:
        offset, name = job.offset, job.record.job
        if offset in self._running:
            return
        if offset in self._undecided:
            self._undecided[offset] = rank
            return
        gathering = self._gathered.get(name)
        if gathering is None:
            # One that nobody knows fails at its turn.
            self._ready[self._kinds.get(name, "thread")].add(rank, offset)
        else:
            gathering.add(rank, offset, self._clock())

    # --- undoing: see BackgroundWork

    def committed(self) -> None:
        decided, self._undecided = self._undecided, {}
        for offset, rank in decided.items():
            if rank is not None and self.make_ready(offset, rank):
                self._decided = True

    def drop(self) -> None:
        """What is not committed is undone: so are the decisions that wait for the commit."""
        self._undecided.clear()

    def forget(self) -> None:
        """All jobs enter again."""
        for ready in self._ready.values():
            ready.clear()
        for gathering in self._gathered.values():
            gathering.clear()
        self._lines.clear()
        self._limited.clear()
        self._undecided = dict.fromkeys(self._undecided)

    # --- beginning

    def can_begin(self) -> bool:
        """Whether an executor can take a job that is ready."""
        return any(ready and self._executors.of(kind).free for kind, ready in self._ready.items())

    def can_begin_together(self, now: int) -> bool:
        """Whether an executor can take jobs of a function that takes a list."""
        return any(
            (opens := gathering.opens()) is not None and opens <= now and self._executor(name).free > 0
            for name, gathering in self._gathered.items()
        )

    def next_time(self) -> int:
        """When there is something to begin by its time, or since the last commit."""
        if self._decided:
            return 0
        opening = self._limited.next_opening()
        if self._gathered:
            # Those for which it is time already wait for an executor.
            now = self._clock()
            times = [gathering.opens() for gathering in self._gathered.values()]
            return min([opening, *(opens for opens in times if opens is not None and opens > now)])
        return opening

    def pump(self, begin: Begin, now: int) -> None:
        """Begin as many jobs as the executors take."""
        self._decided = False
        for limit in self._limited.open(now):
            self._pump_limit(limit, begin, now)
        for kind, ready in self._ready.items():
            if ready:
                self._pump_ready(ready, self._executors.of(kind), begin, now)
        for name, gathering in self._gathered.items():
            # An executor that nothing needs is not made.
            if gathering:
                self._pump_together(gathering, self._executor(name), begin, now)

    def _pump_ready(self, ready: ReadyJobs, executor: Executor, begin: Begin, now: int) -> None:
        free, running, unfinished = executor.free, self._running, self._unfinished
        attempts: list[Attempt] = []
        while ready and len(attempts) < free:
            rank, offset = ready.take()
            if offset in running:
                continue
            job = unfinished.waiting(offset)
            if job is None or (job.record.key is not None and not self.has_key(job)):
                continue
            attempt = begin(job, rank, now)
            if attempt is not None:
                attempts.append(attempt)
        if attempts:
            executor.submit(attempts)

    def _pump_together(self, gathering: Gathering, executor: Executor, begin: Begin, now: int) -> None:
        """Begin jobs of a function that takes a list, of a key only the first one."""
        while (opens := gathering.opens()) is not None and opens <= now and executor.free > 0:
            attempts: list[Attempt] = []
            for rank, offset in gathering.take():
                job = None if offset in self._running else self._unfinished.waiting(offset)
                if job is None or not self.has_key(job):
                    continue
                attempt = begin(job, rank, now)
                if attempt is not None:
                    attempts.append(attempt)
            if attempts:
                executor.submit([BatchAttempt.of(attempts)])

    def _pump_limit(self, limit: str, begin: Begin, now: int) -> None:
        """Let jobs that wait for a limit begin, as many as it allows."""
        together: dict[str, list[Attempt]] = {}
        self._pump_limited(limit, begin, now, together)
        for name, attempts in together.items():
            most = self._most[name]
            assert most is not None
            self._executor(name).submit(
                [BatchAttempt.of(attempts[at : at + most]) for at in range(0, len(attempts), most)]
            )

    def _pump_limited(self, limit: str, begin: Begin, now: int, together: dict[str, list[Attempt]]) -> None:
        while (first := self._limited.first(limit)) is not None:
            rank, offset = first
            job = None if offset in self._running else self._unfinished.waiting(offset)
            if job is None:
                self._limited.take(limit)
                continue
            bucket = self._buckets.of(job.record)
            opens = 0 if bucket is None else bucket.opens()
            if opens is None or opens > now:
                self._limited.wait(limit, opens)
                return
            executor = self._executor(job.record.job)
            if executor.free < 1:
                self._limited.wait(limit, now)
                return
            self._limited.take(limit)
            attempt = begin(job, rank, now)
            if attempt is None:
                continue
            if self._most[attempt.job.name] is None:
                executor.submit([attempt])
            else:
                together.setdefault(attempt.job.name, []).append(attempt)

    def _executor(self, function: str) -> Executor:
        return self._executors.of(self._kinds.get(function, "thread"))
