"""The executors of one worker, which its tasks share."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from streams.jobs.executors.event_loop import EventLoopExecutor
from streams.jobs.executors.processes import ProcessExecutor
from streams.jobs.executors.threads import ThreadExecutor

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable

    from streams.jobs.executors import Attempt, Executor
    from streams.jobs.job import BaseJob
    from streams.jobs.record import Ending

ExecutorKind: TypeAlias = Literal["thread", "process", "event_loop"]

KEPT_SECONDS = 600
"""How long the outcome of an attempt is kept whose partition was given away.

Another worker has begun the job again by then.
"""

KINDS: tuple[ExecutorKind, ...] = ("thread", "process", "event_loop")


_MAKE: dict[ExecutorKind, Callable[[int], Executor]] = {
    "thread": ThreadExecutor,
    "process": ProcessExecutor,
    "event_loop": EventLoopExecutor,
}


def kind_of(job: BaseJob[Any, Any]) -> ExecutorKind:
    """What executes a job."""
    return "event_loop" if job.asynchronous else job.definition.executor


class Executors:
    """One executor of each kind that is used, each for up to ``concurrency`` jobs at once."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._made: dict[ExecutorKind, Executor] = {}
        self._begins_until = float("inf")
        self.ended_counts: Counter[tuple[str, Ending]] = Counter()
        """How many jobs have ended in this worker, by function and ending."""
        self.seconds: dict[str, float] = {}
        """How long the attempts of each function took that have ended in this worker, together."""
        self._left: dict[str, tuple[float, Attempt]] = {}
        """Attempts whose outcome was not taken when their task was closed, by their idempotency keys.

        With the time of that, on the monotonic clock.
        """

    def of(self, kind: ExecutorKind) -> Executor:
        """The executor of that kind."""
        found = self._made.get(kind)
        if found is None:
            found = self._made[kind] = _MAKE[kind](self._concurrency)
            found.begins_until = self._begins_until
        return found

    @property
    def places(self) -> int:
        """How many jobs are executed at once, by the executors that are used; from any thread."""
        return self._concurrency * max(1, len(self._made))

    def confirm(self, until: float) -> None:
        """Let attempts begin until that time on the monotonic clock, and later only after another call.

        A process that is frozen loses its partitions, and continues where it was: what waits for a thread
        must not begin then.
        """
        self._begins_until = until
        for executor in self._made.values():
            executor.begins_until = until

    def withdraw(self, ended: deque[Attempt]) -> list[Attempt]:
        """Take back the attempts of one task that have not begun."""
        return [attempt for made in self._made.values() for attempt in made.withdraw(ended)]

    def leave(self, attempts: Iterable[Attempt]) -> None:
        """Let attempts run whose task is closed: its partition was given away, and may come back.

        Outcomes of attempts that were left ``KEPT_SECONDS`` ago are forgotten.
        """
        now = time.monotonic()
        self._left = {
            key: (left, attempt)
            for key, (left, attempt) in self._left.items()
            if not attempt.finished or now - left < KEPT_SECONDS
        }
        self._left.update((attempt.current.idempotency_key, (now, attempt)) for attempt in attempts)

    def has_left(self, idempotency_key: str) -> bool:
        """Whether an attempt at a job was left running here."""
        return idempotency_key in self._left

    def adopt(self, idempotency_key: str, failed_at: int, ended: deque[Attempt]) -> Attempt | None:
        """The attempt at a job that was left running here, if there is one, for its task.

        ``failed_at`` is when the last attempt failed, as the store knows. If that was another time when this
        one began, another worker has executed the job since, and a failure here is out of date. What runs
        still is taken, as the job must not run twice at once, and so is a success: it has no other yet.
        """
        _, attempt = self._left.pop(idempotency_key, (0, None))
        if attempt is None:
            return None
        if attempt.finished and attempt.error is not None and attempt.failed_before != failed_at:
            return None
        attempt.adopt(ended)
        return attempt

    @property
    def overdue(self) -> int:
        """How many jobs run longer than their ``timeout``, as nothing can end them; from any thread."""
        return sum(executor.overdue for executor in list(self._made.values()))

    def close(self) -> None:
        """Begin nothing more, and end what runs in processes and coroutines."""
        for executor in self._made.values():
            executor.close()
