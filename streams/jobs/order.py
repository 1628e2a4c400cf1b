"""In which order ready jobs begin, and which jobs wait for another one of their key."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Final

NEVER: Final = 1 << 62
"""A time that does not come, in milliseconds since the epoch."""

PRIORITY_MILLISECONDS: Final = 60_000
"""By how much a job of the next higher priority is ahead.

So a job waits at most this long, for each step of priority, for others that were enqueued after it: no
priority starves another one.
"""


def rank(time: int, priority: int) -> int:
    """The place of a job in the order: lower begins earlier. ``time`` is in milliseconds since the epoch."""
    return time - priority * PRIORITY_MILLISECONDS


class ReadyJobs:
    """Offsets of jobs that may begin, by rank."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, rank: int, offset: int) -> None:
        heappush(self._heap, (rank, offset))

    def take(self) -> tuple[int, int]:
        """Remove and return the first one: rank and offset."""
        return heappop(self._heap)

    def clear(self) -> None:
        self._heap.clear()


class _Line:
    __slots__ = ("head", "rank", "waiting")

    def __init__(self, head: int, rank: int) -> None:
        self.head = head
        self.rank = rank
        self.waiting: deque[tuple[int, int]] = deque()


class KeyLines:
    """The jobs of each key, one after another: the first has the key, the others wait for it."""

    __slots__ = ("_lines", "_waiting")

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """How many jobs wait for their key."""
        return self._waiting

    def head(self, key: str) -> int | None:
        """The offset of the job that has the key."""
        line = self._lines.get(key)
        return None if line is None else line.head

    def enter(self, key: str, offset: int, rank: int) -> tuple[bool, int | None]:
        """Put a job at the end of its key's line.

        Returns whether it has the key now. If not, also the offset of the job that has it, if that should
        begin earlier now: a job with a low priority must not hold up one with a higher one.
        """
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = _Line(offset, rank)
            return True, None
        line.waiting.append((offset, rank))
        self._waiting += 1
        if rank < line.rank:
            line.rank = rank
            return False, line.head
        return False, None

    def leave(self, key: str, offset: int) -> tuple[int, int] | None:
        """Give the key to the next job, if this one has it. Returns its offset and rank."""
        line = self._lines.get(key)
        if line is None or line.head != offset:
            return None
        if not line.waiting:
            del self._lines[key]
            return None
        self._waiting -= 1
        following, rank = line.waiting.popleft()
        line.head = following
        line.rank = min([rank, *(each for _, each in line.waiting)]) if len(line.waiting) < 64 else rank
        return following, line.rank

    def offsets_waiting(self) -> list[int]:
        """The offsets of all jobs that wait for their key."""
        return [offset for line in self._lines.values() for offset, _ in line.waiting]

    def clear(self) -> None:
        self._lines.clear()
        self._waiting = 0
