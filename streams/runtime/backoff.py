"""Growing waits between attempts that fail."""

from __future__ import annotations


class Backoff:
    """How many seconds to wait before the next attempt: none at first, then doubling from ``first``."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def failed(self) -> None:
        """One more attempt has failed."""
        self._failures += 1

    def succeeded(self) -> None:
        """Begin again without a wait."""
        self._failures = 0

    @property
    def seconds(self) -> float:
        """Before the next attempt."""
        if self._failures < 2:
            return 0.0
        return min(self._first * 2.0 ** min(self._failures - 2, 60), self._longest)
