"""Executes jobs of async functions in the process's event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from streams.coroutines.event_loop import current_loop
from streams.jobs.current import enter_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.jobs.executors import Attempt


class EventLoopExecutor:
    """Up to ``concurrency`` calls at once."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._taken = 0
        self._ended: deque[None] = deque()
        self._running: dict[int, asyncio.Task[None]] = {}
        """By the identity of the attempt, which the task refers to."""
        self._closed = False

    @property
    def free(self) -> int:
        for _ in range(len(self._ended)):
            self._ended.popleft()
            self._taken -= 1
        return 0 if self._closed else self._concurrency - self._taken

    def submit(self, attempts: Sequence[Attempt]) -> None:
        assert not self._closed, "the executor is closed"
        self._taken += len(attempts)
        current_loop().loop.call_soon_threadsafe(self._begin, tuple(attempts))

    def withdraw(self, ended: deque[Attempt]) -> list[Attempt]:  # noqa: ARG002 - all have begun
        return []

    def cancel(self, attempt: Attempt) -> None:
        current_loop().loop.call_soon_threadsafe(self._cancel, attempt)

    def close(self) -> None:
        self._closed = True

    # --- in the event loop

    def _begin(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            task = asyncio.get_running_loop().create_task(self._execute(attempt), context=attempt.context)
            # The loop has only weak references to tasks.
            self._running[id(attempt)] = task
            task.add_done_callback(partial(self._discard, id(attempt)))

    def _discard(self, identity: int, _task: asyncio.Task[None]) -> None:
        del self._running[identity]

    def _cancel(self, attempt: Attempt) -> None:
        task = self._running.get(id(attempt))
        if task is not None and not attempt.finished:
            task.cancel()

    async def _execute(self, attempt: Attempt) -> None:
        attempt.begun = time.time_ns() // 1_000_000
        enter_job(attempt.current)
        args, kwargs = attempt.arguments
        timeout = attempt.job.definition.timeout
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                attempt.result = attempt.job.result.encode(await attempt.job.function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of this job
            attempt.error = error
        attempt.finish()
        self._ended.append(None)
