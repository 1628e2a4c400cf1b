"""How far the records of a queue's partition were read, and which of them are read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.jobs.job_store import Progress, ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.jobs.job_store import JobStore
    from streams.jobs.queued_job import QueuedJob


class InputProgress:
    """Which records were taken, and which unfinished ones a new owner has yet to read again.

    It begins with the stored ``Progress``, which is that of the last commit; without one, nothing behind the
    committed offset is finished. Nothing is undone: a record that was taken once stays taken, as its job
    is in memory or in the store from then on, whatever else is undone. ``read_again`` only notes that the
    input is read from the committed offset again.
    """

    __slots__ = ("_expected", "_next", "_reached", "_read", "_store")

    def __init__(self, store: JobStore) -> None:
        self._store = store
        progress = store.progress()
        self._next: int | None = None if progress is None else progress.position
        """One past the last record that was taken."""
        self._read = 0
        """One past the last record that was read since it began, or since records are read again."""
        self._reached = 0
        """An offset before which all records that exist were read since it began."""
        self._expected: set[int] = set()
        """The unfinished records before ``_next`` that are read again."""
        if progress is not None:
            self._expected = {offset for start, stop in progress.unfinished for offset in range(start, stop)}

    @property
    def position(self) -> int | None:
        """One past the last record that was taken; ``None``: none was."""
        return self._next

    @property
    def first_expected(self) -> int | None:
        """The first record that is read again."""
        return min(self._expected, default=None)

    @property
    def is_complete(self) -> bool:
        """Whether all unfinished records that still exist are read again.

        Time says nothing of that: records may arrive late, and a job that is not waited for is lost.
        """
        return not self._expected or max(self._expected) < self._reached

    def is_to_come(self, offset: int) -> bool:
        """Whether a record is still to be taken."""
        return self._next is None or offset >= self._next or offset in self._expected

    def take(self, jobs: Sequence[QueuedJob]) -> Sequence[QueuedJob]:
        """Take records that were read, in the order of their offsets. Returns those that were not yet."""
        if not jobs:
            return jobs
        known, self._read = self._next, jobs[-1].offset + 1
        self._reached = max(self._reached, self._read)
        if known is None or jobs[0].offset >= known:
            self._next = self._read
            return jobs
        expected = self._expected
        # Others are finished, or in the store.
        taken = [job for job in jobs if job.offset >= known or job.offset in expected]
        expected.difference_update([job.offset for job in taken])
        self._next = max(known, self._read)
        return taken

    def reached(self, end: int) -> None:
        """All records before that offset were read, as far as they exist."""
        self._reached = max(self._reached, end)

    def complete(self) -> None:
        """Expect no more: the records that were not read again were deleted."""
        self._expected.clear()

    def read_again(self) -> None:
        """The input is read from the committed offset again."""
        self._read = 0

    def put(self, open_offsets: Iterable[int]) -> None:
        """Store it, with the records of unfinished jobs that are not in the store."""
        unfinished = sorted({*open_offsets, *self._expected})
        position = self._next
        behind = 0 if position is None or not unfinished else position - unfinished[0]
        self._store.put_progress(
            None
            # Records that are finished and will be read again must still be known then.
            if position is None or (behind == len(unfinished) and self._read >= position)
            else Progress(position, ranges(unfinished))
        )
