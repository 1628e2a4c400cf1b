"""What executes jobs beside the worker's thread: threads, processes, the event loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from streams.jobs.current import enter_jobs

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence
    from contextvars import Context

    from streams.jobs.current import CurrentJob
    from streams.jobs.job import BaseJob
    from streams.tracing.spans import JobSpan


@dataclass(slots=True)
class Attempt:
    """One execution of a job, and where its outcome is put."""

    offset: int
    job: BaseJob[Any, Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    current: CurrentJob
    context: Context
    """The context of the worker's thread, so that the app's resources are available."""
    ended: deque[Attempt]
    """The outcomes that its task has not taken yet."""
    begun: int = 0
    """When it began, in milliseconds since the epoch; 0: not yet."""
    result: bytes = b""
    """The result as JSON, if there is no error."""
    error: BaseException | None = None
    share: int = 1
    """How many jobs are executed together with it, itself included."""
    seconds: float = 0.0
    """Its part of the time that the function took."""
    counted: bool = False
    """Whether its end was counted for its limit."""
    finished: bool = False
    payload: bytes = b""
    """The arguments as JSON, for executors in other processes."""
    failed_before: int = 0
    """When the attempt before it failed, as was known when it began; see ``QueuedJob.failed_at``."""
    span: JobSpan | None = None
    """With the setting ``tracing``."""

    @property
    def members(self) -> Sequence[Attempt]:
        """The attempts at single jobs: this one, or those of a batch."""
        return (self,)

    def begin(self) -> None:
        """Note that it begins now."""
        self.begun = time.time_ns() // 1_000_000
        if self.span is not None:
            self.span.begin()

    def enter(self) -> None:
        """Let ``current_job`` return its job, in this context."""
        enter_jobs([self.current])
        if self.span is not None:
            self.span.enter()

    def succeed(self, returned: Any) -> None:
        """Keep what the function has returned. Raises ``TypeError`` if that cannot be written as JSON."""
        self.result = self.job.result.encode(returned)

    def fail(self, error: BaseException) -> None:
        """Keep why it has failed."""
        self.error = error

    def finish(self) -> None:
        """Report the outcome, in whatever thread."""
        if self.begun:
            self.seconds = max(0, time.time_ns() // 1_000_000 - self.begun) / 1000 / self.share
        if self.span is not None:
            self.span.finish([] if self.error is None else [self.error])
        # In this order: see ``adopt``.
        self.finished = True
        self.ended.append(self)

    def adopt(self, ended: deque[Attempt]) -> None:
        """Let the outcome go to another task. It may be reported there twice."""
        self.ended = ended
        if self.finished:
            ended.append(self)


class Executor(Protocol):
    """Executes attempts, and puts each into its ``ended`` when it has ended.

    Used by the worker's thread only, but for what it executes.
    """

    begins_until: float
    """Attempts that wait do not begin after that time, on the monotonic clock, unless it is moved on."""

    @property
    def free(self) -> int:
        """How many attempts it takes now."""

    @property
    def overdue(self) -> int:
        """How many jobs run longer than their ``timeout``, as nothing can end them; from any thread."""

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Begin these attempts as soon as possible, in this order."""

    def withdraw(self, ended: deque[Attempt]) -> list[Attempt]:
        """Take back the attempts of one task that have not begun."""

    def cancel(self, attempt: Attempt) -> None:
        """End an attempt whose job was cancelled, where that is possible from outside of its function."""

    def close(self) -> None:
        """Begin nothing more, and end what runs where that is possible: processes and coroutines."""
