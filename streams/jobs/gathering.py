"""Jobs that wait until there are enough of them, or it is time, to execute them together."""

from __future__ import annotations

from heapq import heappop, heappush


class Gathering:
    """Offsets of jobs of one function that may begin, by rank: up to ``most`` of them together.

    They begin once there are ``most``, or ``within`` milliseconds after the first of them could. Times are
    milliseconds since the epoch.
    """

    __slots__ = ("_heap", "_most", "_since", "_within")

    def __init__(self, most: int, within: int) -> None:
        self._most = most
        self._within = within
        self._heap: list[tuple[int, int, int]] = []
        self._since: int | None = None
        """Since when the first of them has waited."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, rank: int, offset: int, now: int) -> None:
        """Add a job that may begin."""
        heappush(self._heap, (rank, offset, now))
        if self._since is None:
            self._since = now

    def opens(self) -> int | None:
        """When they begin; ``None`` if there are none."""
        if not self._heap:
            return None
        assert self._since is not None
        return 0 if len(self._heap) >= self._most else self._since + self._within

    def take(self) -> list[tuple[int, int]]:
        """Remove the next ones to begin together: their ranks and offsets, in that order."""
        heap = self._heap
        taken = [heappop(heap)[:2] for _ in range(min(self._most, len(heap)))]
        self._since = min((since for _, _, since in heap), default=None)
        return taken

    def clear(self) -> None:
        """Forget the jobs, as they are added again: they do not wait anew."""
        self._heap.clear()
