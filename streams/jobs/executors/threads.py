"""Executes jobs in threads of the worker's process."""

from __future__ import annotations

import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

from streams.jobs.executors.time_limit import OverdueWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.jobs.executors import Attempt

LONGEST_QUEUE = 1_000
"""The maximum number of attempts that wait for a thread."""

CONFIRM_SECONDS = 0.02
"""How often a thread looks whether attempts may begin again."""


class ThreadExecutor:
    """Up to ``threads`` threads, which start when they are needed. They cannot be ended.

    More attempts than threads are taken where jobs are short: the number that has ended since the last look.
    Otherwise threads would wait for the worker's thread after each job.
    """

    reports_overdue = True
    """Whether jobs may run longer than their limit, as nothing ends them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._waiting: deque[Attempt] = deque()
        self._idle: deque[None] = deque()
        """An entry for each thread that waits in ``_wake``."""
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._started = 0
        self._taken = 0
        self._ended: deque[None] = deque()
        """An entry for each attempt that has ended since the last look."""
        self._ahead = 0
        self._closed = False
        self._watch = OverdueWatch()
        self.begins_until = float("inf")
        """When attempts stop to begin, on the monotonic clock, unless it is moved on."""

    @property
    def overdue(self) -> int:
        """How many jobs run longer than their ``timeout``; from any thread."""
        return self._watch.overdue

    @property
    def free(self) -> int:
        ended = len(self._ended)
        if ended:
            for _ in range(ended):
                self._ended.popleft()
            self._taken -= ended
            self._ahead = min(max(ended * 2, self._ahead // 2), LONGEST_QUEUE)
        return 0 if self._closed else max(0, self._threads + self._ahead - self._taken)

    def submit(self, attempts: Sequence[Attempt]) -> None:
        assert not self._closed, "the executor is closed"
        self._taken += len(attempts)
        self._waiting.extend(attempts)
        for _ in range(len(attempts)):
            try:
                self._idle.pop()
            except IndexError:
                if self._started >= self._threads:
                    break
                self._started += 1
                threading.Thread(target=self._run, name=f"streams-job-{self._started}", daemon=True).start()
            else:
                self._wake.put(True)

    def withdraw(self, ended: deque[Attempt]) -> list[Attempt]:
        withdrawn: list[Attempt] = []
        kept: list[Attempt] = []
        while True:
            try:
                attempt = self._waiting.popleft()
            except IndexError:
                break
            (withdrawn if attempt.ended is ended else kept).append(attempt)
        self._taken -= len(withdrawn) + len(kept)
        if kept:
            self.submit(kept)
        return withdrawn

    def cancel(self, attempt: Attempt) -> None:
        """A thread cannot be ended: its function looks at ``CurrentJob.cancelled``."""

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._watch.close()
        for _ in range(self._started):
            self._wake.put(False)

    # --- the threads

    def _run(self) -> None:
        seat = self._watch.seat()
        while True:
            attempt = self._next()
            if attempt is None:
                return
            if self.reports_overdue and attempt.job.definition.timeout is not None:
                seat.begun, seat.attempt = time.monotonic(), attempt
                self._watch.start()
                self._execute(attempt)
                seat.attempt = None
            else:
                self._execute(attempt)
            self._ended.append(None)

    def _next(self) -> Attempt | None:
        """The next attempt, once there is one; ``None`` at the end."""
        while not self._closed:
            if time.monotonic() >= self.begins_until:
                # The attempts may be another worker's by now: they stay where they can be withdrawn.
                time.sleep(CONFIRM_SECONDS)
                continue
            try:
                return self._waiting.popleft()
            except IndexError:
                pass
            # Announced before the second look, so that an attempt in between is seen or wakes it.
            self._idle.append(None)
            try:
                attempt = self._waiting.popleft()
            except IndexError:
                if not self._wake.get():
                    return None
                continue
            try:
                self._idle.pop()
            except IndexError:
                # Somebody has taken the announcement: the wake-up is on its way.
                self._wake.get()
            return attempt
        return None

    def _execute(self, attempt: Attempt) -> None:
        execute(attempt)


def execute(attempt: Attempt) -> None:
    """Execute an attempt in this thread."""
    attempt.begin()
    try:
        attempt.context.run(_call, attempt)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome of this job
        attempt.fail(error)
    attempt.finish()


def _call(attempt: Attempt) -> None:
    attempt.enter()
    args, kwargs = attempt.arguments
    attempt.succeed(attempt.job.function(*args, **kwargs))
