"""The unfinished jobs of one partition: those in the store, those in memory, and those that run."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.jobs.due_jobs import DueJobs
from streams.jobs.job_store import StoredState
from streams.jobs.queued_job import QueuedJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.jobs.executors import Attempt
    from streams.jobs.job_store import JobStore
    from streams.jobs.outcomes import SliceOutcomes
    from streams.jobs.record import JobError


class _Undo(NamedTuple):
    """What memory has forgotten since a point to which stores may return."""

    opened: list[QueuedJob]
    """Jobs that were not in the store, and are finished or in the store now."""
    settled: list[tuple[QueuedJob, Attempt]]
    """Attempts whose outcome was taken."""

    def move_to(self, earlier: _Undo) -> None:
        """Add it to what was forgotten since an earlier point."""
        if self.opened:
            earlier.opened.extend(self.opened)
            self.opened.clear()
        if self.settled:
            earlier.settled.extend(self.settled)
            self.settled.clear()


class UnfinishedJobs:
    """The unfinished jobs: each is in the store, or its record is not committed (``open``).

    In memory are those of the second kind, the attempts that run, and the outcomes that were not taken
    (``ended``). A slice or a transaction that is undone returns the store to what it was, and what had left
    memory since then is taken back (``_Undo``): so a job is in the store or in ``open`` at any time. Attempts
    are nowhere else, and go on whatever is undone; only their outcomes are taken again. A new owner of the
    partition makes ``open`` of the records from the committed offset on.
    """

    def __init__(self, store: JobStore, outcomes: SliceOutcomes, clock: Callable[[], int]) -> None:
        self._store = store
        self._outcomes = outcomes
        self._clock = clock
        self.open: dict[int, QueuedJob] = {}
        """Jobs that are not in the store, by offset, in that order."""
        self.running: dict[int, tuple[QueuedJob, Attempt]] = {}
        """Attempts that have begun, until their outcome is taken."""
        self.ended: deque[Attempt] = deque()
        """Those whose outcome was not taken."""
        self.due = DueJobs(store)
        self._slice = _Undo([], [])
        self._uncommitted = _Undo([], [])
        """Of complete slices."""

    # --- finding one

    def find(self, offset: int) -> QueuedJob | None:
        """A job that has not ended."""
        running = self.running.get(offset)
        job = self.open.get(offset) if running is None else running[0]
        if job is not None:
            return job
        stored = self._store.find(offset)
        return None if stored is None else QueuedJob.loaded(offset, stored)

    def waiting(self, offset: int) -> QueuedJob | None:
        """A job that waits for its turn."""
        job = self.open.get(offset)
        if job is not None:
            return job
        stored = self._store.job(offset)
        if stored is None or stored.state is not StoredState.WAITING:
            return None
        return QueuedJob.loaded(offset, stored)

    def is_retrying(self, offset: int) -> bool:
        """Whether a job waits for the time of its next attempt."""
        stored = self._store.job(offset)
        return stored is not None and stored.state is StoredState.RETRYING

    # --- what happens to one

    def to_store(
        self, job: QueuedJob, state: StoredState, due: int = 0, error: JobError | None = None
    ) -> QueuedJob:
        """Keep a job in the store, so that its record may be committed. Returns it as it is then."""
        self.remove(job)
        self._store.put(job.offset, job.as_stored(state, due, error, 0 if error is None else self._clock()))
        if due:
            self.due.add(due)
        job = job._replace(stored=True)
        running = self.running.get(job.offset)
        if running is not None:
            self.running[job.offset] = job, running[1]
        return job

    def remove(self, job: QueuedJob, *, began: bool = True) -> None:
        """Take a job out of the store, or of the jobs that hold back the committed offset."""
        if not job.stored:
            self._slice.opened.append(self.open.pop(job.offset))
            return
        stored = self._store.find(job.offset)
        assert stored is not None, f"job {job.offset} should be in the store"
        if stored.state is StoredState.DELAYED and began:
            # It was released and has run, and its release was undone.
            self._outcomes.released(job, stored.due, self._clock())
        self._store.delete(job.offset, stored)

    def retry_now(self, offset: int, now: int) -> None:
        """Let the next attempt at a job be due now, if the job waits for that time."""
        stored = self._store.job(offset)
        if stored is not None and stored.state is StoredState.RETRYING and offset not in self.running:
            self._store.delete(offset, stored)
            self._store.put(offset, msgspec.structs.replace(stored, due=now))
            self.due.add(now)

    def release(self, now: int) -> Iterator[tuple[QueuedJob, StoredState]]:
        """Let jobs whose time has come wait for their turn, one by one. Yields also what they waited for."""
        for due, offset in self.due.take(now):
            stored = self._store.find(offset)
            assert stored is not None, f"job {offset} is due and not stored"
            self._store.delete(offset, stored)
            waiting = msgspec.structs.replace(stored, state=StoredState.WAITING, due=0, released=due)
            self._store.put(offset, waiting)
            job = QueuedJob.loaded(offset, stored)
            if stored.state is StoredState.DELAYED:
                self._outcomes.released(job, due, now)
            yield job, stored.state

    def settle(self, attempt: Attempt) -> QueuedJob | None:
        """Note that the outcome of an attempt is taken, and return its job.

        ``None``: it was taken before, as an adopted attempt may be reported twice.
        """
        running = self.running.get(attempt.offset)
        if running is None or running[1] is not attempt:
            return None
        del self.running[attempt.offset]
        self._slice.settled.append(running)
        return running[0]

    # --- slices and commits: see BackgroundWork

    def end_slice(self) -> None:
        self._slice.move_to(self._uncommitted)

    def committed(self) -> None:
        self._uncommitted = _Undo([], [])

    def drop_slice(self) -> None:
        self._take_back(self._slice)

    def drop(self) -> None:
        self._slice.move_to(self._uncommitted)
        self._take_back(self._uncommitted)

    def _take_back(self, undo: _Undo) -> None:
        """Remember again what stores have not changed after all."""
        for job in undo.opened:
            self.open.setdefault(job.offset, job)
        self.open = dict(sorted(self.open.items()))
        for job, attempt in reversed(undo.settled):
            if job.offset in self.running:
                # The next attempt has begun meanwhile: its outcome counts, as a third one must not begin.
                continue
            self.running[job.offset] = job, attempt
            self.ended.appendleft(attempt)
        undo.opened.clear()
        undo.settled.clear()

    def in_order(self) -> list[tuple[QueuedJob, bool]]:
        """All jobs but the delayed ones, in the order in which they take their places again.

        Those that run come first, then those that wait for their next attempt, of which that is returned.
        """
        self.due.forget()
        found: list[tuple[int, int, QueuedJob]] = []
        running = self.running
        known: set[int] = set()
        for offset, stored in self._store.jobs():
            known.add(offset)
            group = 1 if stored.state is StoredState.RETRYING else 2
            if offset in running:
                job, attempt = running[offset]
                running[offset] = job._replace(stored=True), attempt
                group = 0
            found.append((group, offset, QueuedJob.loaded(offset, stored)))
        for offset, job in self.open.items():
            if offset in running and running[offset][0].stored:
                running[offset] = job, running[offset][1]
            found.append((0 if offset in running else 2, offset, job))
        # Jobs that run although their release was undone are among the delayed ones.
        found += [
            (0, offset, job)
            for offset, (job, _) in running.items()
            if offset not in known and offset not in self.open
        ]
        found.sort(key=lambda item: item[:2])
        return [(job, group == 1) for group, _, job in found]
