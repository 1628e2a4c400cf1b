"""The jobs in the store that wait for a time: when the next of them is due, and which are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.jobs.order import NEVER

if TYPE_CHECKING:
    from streams.jobs.job_store import JobStore

MOST_DUE = 1_000
"""How many due jobs are released in one slice."""


class DueJobs:
    """The jobs in the store that wait for a time, which is milliseconds since the epoch.

    What it holds is when the first of them is due, so as not to search the store each time. After an undo it
    is read from there again (``forget``).
    """

    __slots__ = ("_next", "_store")

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._next: int | None = None

    @property
    def next(self) -> int:
        """When the next one is due; 0 if that is not known."""
        return 0 if self._next is None else self._next

    def add(self, due: int) -> None:
        """One that is due then was put into the store."""
        if self._next is not None and due < self._next:
            self._next = due

    def forget(self) -> None:
        """The store may have changed: read it again."""
        self._next = None

    def take(self, now: int) -> list[tuple[int, int]]:
        """The times and offsets of those that are due now, of which no more than ``MOST_DUE``.

        They must not be due any more when it is called again.
        """
        if self._next is not None and self._next > now:
            return []
        found: list[tuple[int, int]] = []
        self._next = NEVER
        for due, offset in self._store.due():
            if due > now or len(found) >= MOST_DUE:
                self._next = due
                break
            found.append((due, offset))
        return found
