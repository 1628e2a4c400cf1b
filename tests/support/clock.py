"""A clock for in-memory brokers and workers that only advances when it is read or waited for."""

from __future__ import annotations


class Clock:
    """A clock in seconds. Each reading advances it by ``tick``, so that later events have later times."""

    def __init__(self, now: float = 1_000.0, *, tick: float = 0.0005) -> None:
        self.now = now
        self._tick = tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def milliseconds(self) -> int:
        """The same time as a wall clock, without a tick."""
        return round(self.now * 1000)
