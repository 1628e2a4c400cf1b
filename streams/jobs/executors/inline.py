"""Executes jobs in the task's own thread when it looks for outcomes: in tests and simulations."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from streams.coroutines.event_loop import current_loop
from streams.jobs.current import enter_job
from streams.jobs.executors.threads import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.jobs.executors import Attempt
    from streams.jobs.record import Ending


class InlineExecutor:
    """Executes what was submitted in ``run``, one after another, in that order. Time comes from ``clock``."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.ended_counts: Counter[tuple[str, Ending]] = Counter()
        self._waiting: deque[Attempt] = deque()

    @property
    def waiting(self) -> bool:
        """Whether ``run`` has anything to do."""
        return bool(self._waiting)

    @property
    def free(self) -> int:
        return 1_000_000

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
            if attempt.job.asynchronous:
                future = asyncio.run_coroutine_threadsafe(_awaited(attempt), current_loop().loop)
                future.result()
            else:
                execute(attempt)
            attempt.begun = self._clock()

    def close(self) -> None:
        self._waiting.clear()


async def _awaited(attempt: Attempt) -> None:
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(_call(attempt), context=attempt.context)
    try:
        await task
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of this job
        attempt.error = error
    attempt.finish()


async def _call(attempt: Attempt) -> None:
    enter_job(attempt.current)
    args, kwargs = attempt.arguments
    attempt.result = attempt.job.result.encode(await attempt.job.function(*args, **kwargs))
