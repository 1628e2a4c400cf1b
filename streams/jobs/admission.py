"""Decides what becomes of the jobs whose records one partition's task has read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.jobs.job_store import StoredState
from streams.jobs.occurrence import Decision, Occurrence, said
from streams.jobs.scheduler import LATE_MILLISECONDS

if TYPE_CHECKING:
    from streams.jobs.control import Control
    from streams.jobs.endings import Endings
    from streams.jobs.job_store import JobStore
    from streams.jobs.outcomes import SliceOutcomes
    from streams.jobs.queue_partition import QueuePartition
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.turns import Turns
    from streams.jobs.unfinished_jobs import UnfinishedJobs
    from streams.jobs.unfinished_occurrences import UnfinishedOccurrences


class Admission:
    """Whether a job is executed, and whether at once or later.

    That depends on other jobs with its ``unique`` or of its schedule, and is decided once: the decisions are
    in the store, and are undone there. So a record that is read again, or a job that takes its place again
    after an undo, gets the same one as long as that holds. Nothing is held in memory.
    """

    def __init__(
        self,
        store: JobStore,
        unfinished: UnfinishedJobs,
        occurrences: UnfinishedOccurrences,
        turns: Turns,
        control: Control,
        endings: Endings,
        outcomes: SliceOutcomes,
        partition: QueuePartition,
    ) -> None:
        self._store = store
        self._unfinished = unfinished
        self._occurrences = occurrences
        self._turns = turns
        self._control = control
        self._endings = endings
        self._outcomes = outcomes
        self._partition = partition

    def admit(self, job: QueuedJob, now: int) -> QueuedJob | None:
        """The job as it is to take its place; ``None``: it has ended, or is delayed."""
        record = job.record
        if record.schedule is not None and not self._occurs(job, record.schedule, now):
            return None
        if job.offset in self._control.cancelled and self._endings.end_if_cancelled(job, now):
            return None
        if record.unique is not None:
            other = self._store.unique(record.unique)
            if other is None:
                self._store.put_unique(record.unique, job.offset)
                self._turns.wait_for_commit(job)
            elif other != job.offset:
                self._endings.leave_out(job, other, now)
                return None
        if record.due is not None:
            if record.due > now:
                self._unfinished.to_store(job, StoredState.DELAYED, record.due)
                return None
            # It became due before it was read. The store knows that it was released, should it be read again.
            job = self._unfinished.to_store(job, StoredState.WAITING)
            self._outcomes.released(job, record.due, now)
        return job

    def _occurs(self, job: QueuedJob, schedule: str, now: int) -> bool:
        """Whether the job of a schedule is executed: it is decided once, and recorded."""
        if self._occurrences.has(schedule, job.offset):
            return True
        record, earlier = job.record, self._occurrences.first(schedule)
        instant = job.timestamp if record.scheduled is None else record.scheduled
        reasons = [f"{said(now - instant)} late"] if now - instant > LATE_MILLISECONDS else []
        if earlier is not None:
            reasons.append(f"job {self._partition.id(earlier)} of an earlier instant was not finished")
        overlapped = earlier if record.overlap == "skip" else None
        self._outcomes.occurred(
            Occurrence(
                schedule,
                instant,
                Decision.RELEASED if overlapped is None else Decision.OVERLAPPED,
                now,
                "; ".join(reasons),
                self._partition.id(job.offset),
            )
        )
        if overlapped is not None:
            self._endings.leave_out(job, overlapped, now)
            return False
        self._occurrences.add(schedule, job.offset)
        self._turns.wait_for_commit(job)
        return True
