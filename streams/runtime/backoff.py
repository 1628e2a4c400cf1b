"""Growing waits between attempts that fail."""

from __future__ import annotations


class Backoff:
    """Seconds to wait before the next attempt: none after one failure, then doubling from ``first``."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def failed(self) -> None:
        """Count a failed attempt."""
        self._failures += 1

    def succeeded(self) -> None:
        """Reset after a success."""
        self._failures = 0

    @property
    def seconds(self) -> float:
        """The wait before the next attempt."""
        if self._failures < 2:
            return 0.0
        return min(self._first * 2.0 ** min(self._failures - 2, 60), self._longest)
