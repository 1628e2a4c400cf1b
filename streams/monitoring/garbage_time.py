"""How much of its time a process spends on collecting garbage, measured only while somebody asks."""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any

SHORTEST_SECONDS = 5.0
"""How long it must have been measured until the share is known."""


class GarbageTime:
    """Measures the time of all collections: whichever thread one runs in, the others stand still.

    Times are given in seconds by the caller.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._spent = 0.0
        self._begun: float | None = None

    def share(self, now: float) -> float | None:
        """The share of the time since the first call; it begins to measure. ``None`` while that is short."""
        if self._since is None:
            self._since, self._spent, self._begun = now, 0.0, None
            gc.callbacks.append(self._collecting)
            return None
        elapsed = now - self._since
        return self._spent / elapsed if elapsed >= SHORTEST_SECONDS else None

    def stop(self) -> None:
        """Do not measure any more."""
        if self._since is not None:
            self._since = None
            gc.callbacks.remove(self._collecting)

    def _collecting(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._begun = perf_counter()
        elif self._begun is not None:
            self._spent += perf_counter() - self._begun
            self._begun = None
