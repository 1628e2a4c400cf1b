"""Jobs that wait for a limit, and when each limit lets the next one begin."""

from __future__ import annotations

from heapq import heappop, heappush

from streams.jobs.order import NEVER


class Openings:
    """Offsets of jobs by limit, in the order of their rank, and the times at which limits open.

    So a limit costs nothing while it is closed, however many jobs wait for it. Times are milliseconds since
    the epoch.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, list[tuple[int, int]]] = {}
        self._times: list[tuple[float, str]] = []

    def add(self, limit: str, rank: int, offset: int, opens: float | None) -> None:
        """Add a job. ``opens`` is when the limit opens; ``None``: when a job of it has ended."""
        waiting = self._jobs.get(limit)
        if waiting is None:
            waiting = self._jobs[limit] = []
            self.wait(limit, opens)
        heappush(waiting, (rank, offset))

    def wait(self, limit: str, opens: float | None) -> None:
        """Look at the limit at that time again; ``None``: when ``opens`` is called."""
        if opens is not None:
            heappush(self._times, (opens, limit))

    def opens(self, limit: str, now: int) -> None:
        """The limit may be open now."""
        if limit in self._jobs:
            heappush(self._times, (now, limit))

    def open(self, now: int) -> list[str]:
        """Take the limits that may be open now."""
        found: dict[str, None] = {}
        while self._times and self._times[0][0] <= now:
            found[heappop(self._times)[1]] = None
        return list(found)

    def first(self, limit: str) -> tuple[int, int] | None:
        """The rank and offset of the first job that waits for a limit."""
        waiting = self._jobs.get(limit)
        return waiting[0] if waiting else None

    def take(self, limit: str) -> None:
        """Remove the first job that waits for a limit."""
        waiting = self._jobs[limit]
        heappop(waiting)
        if not waiting:
            del self._jobs[limit]

    def next_opening(self) -> int:
        """When the next limit may be open."""
        return -int(-self._times[0][0] // 1) if self._times else NEVER

    def offsets(self) -> list[int]:
        """The offsets of all waiting jobs."""
        return [offset for waiting in self._jobs.values() for _, offset in waiting]

    def clear(self) -> None:
        self._jobs.clear()
        self._times.clear()
