"""How many jobs one partition's task has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.jobs.control import Control
    from streams.jobs.job_store import JobStore
    from streams.jobs.unfinished_jobs import UnfinishedJobs


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

    @classmethod
    def of(cls, unfinished: UnfinishedJobs, store: JobStore, control: Control) -> QueueNumbers:
        """Count them; from any thread."""
        # An attempt that an executor has taken may wait there for a thread.
        running = [job for job, attempt in list(unfinished.running.values()) if attempt.begun]
        begun = {job.offset for job in running}
        waiting = [job for job in list(unfinished.open.values()) if job.offset not in begun]
        return cls(
            Counter(job.record.job for job in running),
            Counter(job.record.job for job in waiting),
            Counter(job.record.job for job in running if job.stored),
            {name: list(counts) for name, counts in list(store.counts.items())},
            min((max(job.timestamp, job.record.due or 0) for job in waiting), default=None),
            sum(control.pause_of(job.record) is not None for job in waiting),
        )
