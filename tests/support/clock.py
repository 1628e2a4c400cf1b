"""Time for brokers and workers in memory, which passes only when it is looked at or waited for."""

from __future__ import annotations


class Clock:
    """Seconds. Each look moves them on by ``tick``, so that what happens later is later."""

    def __init__(self, now: float = 1_000.0, *, tick: float = 0.0005) -> None:
        self.now = now
        self._tick = tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def milliseconds(self) -> int:
        """The same moment as a wall clock has it, without a tick."""
        return round(self.now * 1000)
