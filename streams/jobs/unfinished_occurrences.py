"""Which jobs of each schedule are not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.jobs.job_store import JobStore


class UnfinishedOccurrences:
    """The offsets of unfinished jobs by schedule: a copy of what the store has, so as not to search it."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._offsets: dict[str, dict[int, None]] = {}

    def first(self, schedule: str) -> int | None:
        """The offset of the first one."""
        return next(iter(self._of(schedule)), None)

    def has(self, schedule: str, offset: int) -> bool:
        return offset in self._of(schedule)

    def add(self, schedule: str, offset: int) -> None:
        self._of(schedule)[offset] = None
        self._store.put_occurrence(schedule, offset, unfinished=True)

    def remove(self, schedule: str, offset: int) -> None:
        """Remove one, if it is there: a job that was left out is not."""
        offsets = self._of(schedule)
        if offset in offsets:
            del offsets[offset]
            self._store.put_occurrence(schedule, offset, unfinished=False)

    def forget(self) -> None:
        """The store may have changed: read it again."""
        self._offsets.clear()

    def _of(self, schedule: str) -> dict[int, None]:
        offsets = self._offsets.get(schedule)
        if offsets is None:
            offsets = self._offsets[schedule] = dict.fromkeys(self._store.occurrences(schedule))
        return offsets
