"""Jobs that take longer than their ``timeout``: the error where they can be ended, a report where not."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streams.events import Event, get_logger

if TYPE_CHECKING:
    from streams.jobs.executors import Attempt
    from streams.jobs.job import BaseJob

LOOK_SECONDS = 0.5
"""How often it is looked for overdue jobs."""


def exceeded(job: BaseJob[Any, Any], what: str) -> TimeoutError:
    """The error of a job that took longer than its limit, and what was done about it."""
    limit = job.definition.timeout
    assert limit is not None, f"{job} has no limit"
    return TimeoutError(f"{job.name} took longer than its timeout of {limit.total_seconds():g} s: {what}")


@dataclass(slots=True)
class Seat:
    """What one thread executes."""

    attempt: Attempt | None = None
    begun: float = 0.0
    """On the monotonic clock."""
    reported: Attempt | None = None


class OverdueWatch:
    """Logs each job once that takes longer than its limit in a thread, which nothing can end.

    A thread of its own looks at what the others execute, so that a job costs no lock. It starts with the
    first job that has a limit.
    """

    def __init__(self) -> None:
        self._seats: list[Seat] = []
        self._closed = threading.Event()
        self._started = False
        self._lock = threading.Lock()

    def seat(self) -> Seat:
        """That of one more thread."""
        seat = Seat()
        self._seats.append(seat)
        return seat

    def start(self) -> None:
        """Look from now on, if it does not yet. From any thread."""
        with self._lock:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._run, name="streams-overdue-jobs", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    @property
    def overdue(self) -> int:
        """How many jobs run now that take longer than their limit. From any thread."""
        return sum(len(attempt.members) for _, attempt in self._late())

    def _late(self) -> list[tuple[Seat, Attempt]]:
        now = time.monotonic()
        found = []
        for seat in list(self._seats):
            begun, attempt = seat.begun, seat.attempt
            if attempt is None or seat.attempt is not attempt:
                continue
            limit = attempt.job.definition.timeout
            if limit is not None and now - begun > limit.total_seconds():
                found.append((seat, attempt))
        return found

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            for seat, attempt in self._late():
                if seat.reported is attempt:
                    continue
                seat.reported = attempt
                limit = attempt.job.definition.timeout
                assert limit is not None
                get_logger().warning(
                    Event.JOB_OVERDUE,
                    job=attempt.job.name,
                    ids=[each.current.id for each in attempt.members],
                    timeout=limit.total_seconds(),
                )
