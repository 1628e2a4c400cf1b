"""Executes jobs of async functions in the process's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from streams.coroutines.event_loop import current_loop
from streams.jobs.executors.time_limit import exceeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.jobs.executors import Attempt

CANCEL_SECONDS = 1.0
"""How long cancelled calls may take to end when the worker ends, before they are abandoned."""


class EventLoopExecutor:
    """Up to ``concurrency`` calls at once."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._taken = 0
        self._ended: deque[None] = deque()
        self._running: dict[int, asyncio.Task[None]] = {}
        """By the identity of the attempt, which the task refers to."""
        self._ending: asyncio.Task[None] | None = None
        self._closed = False
        self.begins_until = float("inf")
        """Without effect: none waits, all begin at once."""

    @property
    def free(self) -> int:
        for _ in range(len(self._ended)):
            self._ended.popleft()
            self._taken -= 1
        return 0 if self._closed else self._concurrency - self._taken

    @property
    def overdue(self) -> int:
        """None run longer than their limit: they are cancelled."""
        return 0

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
        if self._taken == len(self._ended):
            return
        cancelled = threading.Event()
        current_loop().loop.call_soon_threadsafe(self._cancel_all, cancelled)
        cancelled.wait(CANCEL_SECONDS)

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

    def _cancel_all(self, cancelled: threading.Event) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if not running:
            cancelled.set()
            return
        self._ending = asyncio.get_running_loop().create_task(_ended(running, cancelled))

    async def _execute(self, attempt: Attempt) -> None:
        attempt.begin()
        attempt.enter()
        args, kwargs = attempt.arguments
        timeout = attempt.job.definition.timeout
        limit = asyncio.timeout(None if timeout is None else timeout.total_seconds())
        try:
            async with limit:
                attempt.succeed(await attempt.job.function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of this job
            late = limit.expired() and isinstance(error, TimeoutError)
            attempt.fail(exceeded(attempt.job, "it was cancelled") if late else error)
        attempt.finish()
        self._ended.append(None)


async def _ended(tasks: Sequence[asyncio.Task[None]], ended: threading.Event) -> None:
    await asyncio.wait(tasks)
    ended.set()
