"""What has happened to the jobs of one partition, and is forwarded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.jobs.failure import error_of_end
from streams.jobs.record import NULL, Ending, JobEnd, Release
from streams.records import FetchedLists

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.jobs.occurrence import Occurrence
    from streams.jobs.queue_partition import QueuePartition
    from streams.jobs.queued_job import QueuedJob
    from streams.jobs.scheduler import Released

UNREPEATED = (Ending.SUCCEEDED, Ending.DUPLICATE)
"""Endings after which the job cannot be enqueued again."""


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


class SliceOutcomes:
    """What has happened in the open slice, which is forwarded together at its end.

    It is not rebuilt: what is undone with its slice happens again. How many jobs have ended is kept until
    that is committed, and then added to the counts of the worker.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        partition: QueuePartition,
        counts: Counter[tuple[str, Ending]],
    ) -> None:
        self._outcomes = outcomes
        self._partition = partition
        self._counts = counts
        self._ends: list[tuple[JobEnd, int, int]] = []
        self._releases: list[Release] = []
        self._occurrences: list[Occurrence] = []
        self._ended_in_slice: Counter[tuple[str, Ending]] = Counter()
        self._ended: Counter[tuple[str, Ending]] = Counter()
        """In complete slices that are not committed."""

    # --- what happens

    def ended(
        self,
        job: QueuedJob,
        ending: Ending,
        now: int,
        tries: int,
        *,
        result: bytes = b"null",
        error: BaseException | None = None,
        duplicate_of: str | None = None,
        began: int = 0,
    ) -> None:
        """A job has ended, with an attempt that ``began`` then, if it was executed."""
        end = JobEnd(
            self._partition.id(job.offset),
            job.record.job,
            ending,
            tries,
            job.timestamp,
            now,
            msgspec.Raw(result),
            None if error is None else error_of_end(error),
            duplicate_of,
            NULL if ending in UNREPEATED else msgspec.Raw(job.value),
            began,
            job.record.correlation_id,
            job.record.reply_to,
        )
        self._ends.append((end, job.offset, now))

    def released(self, job: QueuedJob, due: int, now: int) -> None:
        """A delayed job became due."""
        self._releases.append(Release(self._partition.id(job.offset), job.record.job, due, now))

    def occurred(self, occurrence: Occurrence) -> None:
        """Something became of an instant of a schedule."""
        self._occurrences.append(occurrence)

    def failed(self, job: QueuedJob, error: BaseException) -> None:
        """A job has failed for good: its record becomes a dead letter now."""
        self._outcomes.failed(
            FetchedLists(
                *self._partition,
                [job.key],
                [job.value],
                [job.timestamp],
                [job.offset],
                None if job.headers is None else [job.headers],
            ),
            error,
        )

    def scheduled(self, released: list[Released], occurrences: list[Occurrence]) -> None:
        """Instants of schedules were decided: forward that now."""
        if occurrences:
            self._outcomes.occurred(occurrences)
        if released:
            self._outcomes.enqueued(released)

    def forward(self) -> None:
        """Forward what has happened in the slice."""
        if self._releases:
            releases, self._releases = self._releases, []
            self._outcomes.released(releases)
        if self._occurrences:
            occurrences, self._occurrences = self._occurrences, []
            self._outcomes.occurred(occurrences)
        if self._ends:
            ends, self._ends = self._ends, []
            self._ended_in_slice.update([(end.job, end.ending) for end, _, _ in ends])
            self._outcomes.ended(ends)

    # --- slices and commits: see BackgroundWork

    def end_slice(self) -> None:
        if self._ended_in_slice:
            self._ended += self._ended_in_slice
            self._ended_in_slice.clear()

    def committed(self) -> None:
        self._counts.update(self._ended)
        self._ended.clear()

    def drop_slice(self) -> None:
        self._ended_in_slice.clear()
        self._ends.clear()
        self._releases.clear()
        self._occurrences.clear()

    def drop(self) -> None:
        self._ended.clear()
        self.drop_slice()
