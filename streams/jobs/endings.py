"""Ends the jobs of one partition, in whatever way."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from streams.jobs.current import JobCancelled
from streams.jobs.record import Ending

if TYPE_CHECKING:
    from streams.jobs.commands import CommandNote
    from streams.jobs.control import Control
    from streams.jobs.executors import Attempt
    from streams.jobs.executors.choice import Executors
    from streams.jobs.executors.inline import InlineExecutor
    from streams.jobs.job_store import JobStore
    from streams.jobs.outcomes import SliceOutcomes
    from streams.jobs.queue_partition import QueuePartition
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.turns import Turns
    from streams.jobs.unfinished_jobs import UnfinishedJobs
    from streams.jobs.unfinished_occurrences import UnfinishedOccurrences


class Endings:
    """Ends jobs: everything that knows a job forgets it, and its end is an outcome of the slice.

    It holds nothing itself: what it changes is undone where it is.
    """

    def __init__(
        self,
        store: JobStore,
        unfinished: UnfinishedJobs,
        occurrences: UnfinishedOccurrences,
        turns: Turns,
        control: Control,
        executors: Executors | InlineExecutor,
        outcomes: SliceOutcomes,
        partition: QueuePartition,
    ) -> None:
        self._store = store
        self._unfinished = unfinished
        self._occurrences = occurrences
        self._turns = turns
        self._control = control
        self._executors = executors
        self._outcomes = outcomes
        self._partition = partition

    def succeed(self, job: QueuedJob, attempt: Attempt, tries: int, now: int) -> None:
        """A job has succeeded with this attempt, its ``tries``-th."""
        self._forget(job)
        self._outcomes.ended(job, Ending.SUCCEEDED, now, tries, result=attempt.result, began=attempt.begun)

    def fail(
        self,
        job: QueuedJob,
        error: BaseException,
        now: int,
        ending: Ending = Ending.FAILED,
        *,
        attempt: Attempt | None = None,
        tries: int | None = None,
    ) -> None:
        """A job has failed for good, with this attempt, its ``tries``-th, or without one.

        It becomes a dead letter, unless it was cancelled.
        """
        if ending is not Ending.CANCELLED:
            self._outcomes.failed(job, error)
        self._forget(job)
        began = 0 if attempt is None else attempt.begun
        self._outcomes.ended(
            job, ending, now, job.tries if tries is None else tries, error=error, began=began
        )

    def leave_out(self, job: QueuedJob, other: int, now: int) -> None:
        """A job is not executed, as another one is not finished."""
        self._forget(job)
        self._outcomes.ended(job, Ending.DUPLICATE, now, job.tries, duplicate_of=self._partition.id(other))

    def cancel(self, job: QueuedJob, note: CommandNote, now: int) -> None:
        """A job that does not run is cancelled."""
        self._forget(job, began=False)
        self._outcomes.ended(job, Ending.CANCELLED, now, job.tries, error=cancelled_by(note))

    def end_if_cancelled(self, job: QueuedJob, now: int) -> bool:
        """End a job that was cancelled before it took its place or its turn, unless it runs here."""
        note = self._control.cancelled.get(job.offset)
        if note is None or job.offset in self._unfinished.running:
            return False
        if self._executors.has_left(self._partition.idempotency_key(job.offset)):
            # It is taken over at its turn.
            return False
        self.cancel(job, note, now)
        return True

    def _forget(self, job: QueuedJob, *, began: bool = True) -> None:
        record = job.record
        self._unfinished.remove(job, began=began)
        self._control.note_end(job.offset)
        if record.unique is not None and self._store.unique(record.unique) == job.offset:
            self._store.put_unique(record.unique, None)
        if record.schedule is not None:
            self._occurrences.remove(record.schedule, job.offset)
        if record.key is not None:
            self._turns.leave(job)


def cancelled_by(note: CommandNote) -> JobCancelled:
    """The error of a job that a command has cancelled."""
    at = datetime.fromtimestamp(note.at / 1000, UTC).isoformat(timespec="seconds")
    return JobCancelled(f"cancelled by {note.by} at {at}")
