"""The job that runs here, for the code of the function."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Sequence


class JobCancelled(Exception):
    """Raised by ``CurrentJob.check_cancelled`` in a job that was cancelled."""


@dataclass(slots=True)
class CurrentJob:
    """The job that runs here."""

    id: str
    name: str
    attempt: int
    """The number of this attempt, from 1."""
    scheduled: int
    """When it was to be executed at the earliest, in milliseconds since the epoch."""
    idempotency_key: str
    """The same text for all attempts, and for no other job: the place of its record in Kafka.

    A job may be executed again although it has succeeded, if its worker dies before that is recorded.
    Another system that knows this key can recognise that.
    """
    cancelled: bool = False
    """Whether it was cancelled since it began: a long function should look at this from time to time."""
    progress: str = field(default="", compare=False)
    """What it last reported by ``report``."""
    correlation_id: str | None = None
    """The id by which the system that has sent it knows it, e.g. that of a task of Celery."""

    def report(self, progress: str) -> None:
        """Say how far it is, in a few words."""
        self.progress = progress

    def check_cancelled(self) -> None:
        """Raise ``JobCancelled`` if it was cancelled."""
        if self.cancelled:
            raise JobCancelled(f"job {self.id} was cancelled")


_CURRENT: ContextVar[tuple[Sequence[CurrentJob], bool]] = ContextVar("streams_job", default=((), False))
"""The jobs that run here, and whether they are a batch."""


def current_job() -> CurrentJob:
    """The job that this code is executed for. Raises ``StreamsError`` elsewhere, and in a batch."""
    jobs, together = _CURRENT.get()
    if not jobs:
        raise StreamsError(
            "no job runs here", hint="call current_job() in the function of a job, while a worker executes it"
        )
    if together:
        raise StreamsError(
            f"several jobs run here: the {len(jobs)} of a batch",
            hint="call current_jobs(), a list in the order of the function's list",
        )
    return jobs[0]


def current_jobs() -> list[CurrentJob]:
    """The jobs that this code is executed for: those of a batch, in their order, or one.

    Raises ``StreamsError`` where no job runs.
    """
    jobs, _ = _CURRENT.get()
    return list(jobs) or [current_job()]


def enter_jobs(jobs: Sequence[CurrentJob], *, together: bool = False) -> None:
    """Let ``current_job`` return this job, in this context, or ``current_jobs`` these of a batch."""
    _CURRENT.set((jobs, together))
