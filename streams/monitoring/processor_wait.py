"""How long a worker's thread was ready to run and did not: for want of a processor, or by a limit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

SCHEDULE = "/proc/self/task/{}/schedstat"
"""Of a thread: nanoseconds on a processor, nanoseconds ready to run without one, and how often it ran."""

LIMIT = "/sys/fs/cgroup/cpu.stat"
"""Of the container: for how many microseconds its limit has stopped it, among others."""


class Waited(NamedTuple):
    """In seconds up to now; ``None`` where the system does not say it."""

    for_processor: float | None
    by_limit: float | None


class ProcessorWait:
    """Reads it for the worker's thread, from any thread. The paths are those of Linux."""

    def __init__(self, schedule: str = SCHEDULE, limit: str = LIMIT) -> None:
        self._schedule = schedule
        self._limit = Path(limit)

    def read(self, thread: int | None) -> Waited:
        """How long the thread with this identifier has waited."""
        native = next((item.native_id for item in threading.enumerate() if item.ident == thread), None)
        return Waited(None if native is None else self._for_processor(native), self._by_limit())

    def _for_processor(self, native: int) -> float | None:
        try:
            return int(Path(self._schedule.format(native)).read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            # Another system, or a kernel without these figures.
            return None

    def _by_limit(self) -> float | None:
        try:
            lines = dict(line.split() for line in self._limit.read_text().splitlines())
            return int(lines["throttled_usec"]) / 1e6
        except (OSError, ValueError, KeyError):
            # No container, or one without a limit.
            return None
