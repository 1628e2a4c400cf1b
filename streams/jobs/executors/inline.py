"""Executes jobs in the task's own thread when it looks for outcomes: in tests and simulations."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from streams.coroutines.event_loop import current_loop
from streams.jobs.executors.threads import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.jobs.executors import Attempt
    from streams.jobs.executors.choice import ExecutorKind
    from streams.jobs.record import Ending


class InlineExecutor:
    """Executes what was submitted in ``run``, one after another, in that order. Time comes from ``clock``.

    ``failures`` are raised instead of what the next executions of a job do, by its name.
    """

    def __init__(self, clock: Callable[[], int], failures: Mapping[str, list[Exception]]) -> None:
        self._clock = clock
        self._failures = failures
        self.ended_counts: Counter[tuple[str, Ending]] = Counter()
        self.seconds: dict[str, float] = {}
        self._waiting: deque[Attempt] = deque()
        self.begins_until = float("inf")
        """Without effect: the task's own thread executes."""

    @property
    def waiting(self) -> bool:
        """Whether ``run`` has anything to do."""
        return bool(self._waiting)

    def of(self, kind: ExecutorKind) -> InlineExecutor:  # noqa: ARG002 - it executes all kinds
        """Itself, in the place of a worker's ``Executors``."""
        return self

    def leave(self, attempts: Iterable[Attempt]) -> None:
        """Nothing runs when a task is closed in its own thread."""

    def has_left(self, idempotency_key: str) -> bool:  # noqa: ARG002 - no attempt is left
        """Whether an attempt at a job was left running here: none is."""
        return False

    def adopt(self, idempotency_key: str, failed_at: int, ended: deque[Attempt]) -> None:
        """No attempt was left running here."""

    @property
    def free(self) -> int:
        return 1_000_000

    @property
    def places(self) -> int:
        """One, as jobs are executed one after another."""
        return 1

    @property
    def overdue(self) -> int:
        """There is no limit here."""
        return 0

    def submit(self, attempts: Sequence[Attempt]) -> None:
        self._waiting.extend(attempts)

    def withdraw(self, ended: deque[Attempt]) -> list[Attempt]:
        withdrawn = [attempt for attempt in self._waiting if attempt.ended is ended]
        self._waiting = deque(attempt for attempt in self._waiting if attempt.ended is not ended)
        return withdrawn

    def cancel(self, attempt: Attempt) -> None:
        """It has not begun: what has begun has ended."""

    def run(self) -> None:
        """Execute what is waiting."""
        while self._waiting:
            attempt = self._waiting.popleft()
            failures = self._failures.get(attempt.job.name)
            if failures:
                attempt.error = failures.pop(0)
                attempt.finish()
            elif attempt.job.asynchronous:
                future = asyncio.run_coroutine_threadsafe(_awaited(attempt), current_loop().loop)
                future.result()
            else:
                execute(attempt)
            for each in attempt.members:
                each.begun = self._clock()

    def confirm(self, until: float) -> None:
        """The task's own thread executes: it has just found that the partition is its own."""

    def close(self) -> None:
        self._waiting.clear()


async def _awaited(attempt: Attempt) -> None:
    attempt.begin()
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(_call(attempt), context=attempt.context)
    try:
        await task
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of this job
        attempt.fail(error)
    attempt.finish()


async def _call(attempt: Attempt) -> None:
    attempt.enter()
    args, kwargs = attempt.arguments
    attempt.succeed(await attempt.job.function(*args, **kwargs))
