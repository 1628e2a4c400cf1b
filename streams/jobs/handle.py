"""A job that was enqueued, for the program that waits for its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from streams.durations import to_milliseconds
from streams.errors import JobFailed, JobPending, JobUnknown
from streams.jobs.record import Ending

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from streams.jobs.record import JobEnd

R = TypeVar("R")


class Ends(Protocol):
    """Where handles find out about the ends of jobs."""

    @property
    def topic(self) -> str:
        """The queue's topic."""

    def wait(self, identifier: str, timeout: float) -> JobEnd | None:
        """Wait for the end of a job; ``None`` if it has not ended within ``timeout`` seconds."""

    def enqueued(self, identifier: str) -> bool:
        """Whether a job of this id was enqueued at any time."""


class Handle(Generic[R]):
    """A job in the queue: its id, and its result once it has ended."""

    __slots__ = ("_client", "_decode", "id", "job")

    def __init__(self, identifier: str, job: str, client: Ends, decode: Callable[[Any], R]) -> None:
        self.id = identifier
        """Partition and offset of its record in the queue's topic, e.g. ``3-1024``."""
        self.job = job
        """The name of the function."""
        self._client = client
        self._decode = decode

    def result(self, *, timeout: timedelta) -> R:
        """The result of the function, once the job has succeeded.

        Raises ``JobFailed`` if it has failed for good, has expired or was cancelled, ``JobPending`` if it has
        not ended within ``timeout``, and ``JobUnknown`` if there is no such job, or its result was
        deleted because it was too old.
        """
        end = self._end(timeout)
        if end.ending is Ending.DUPLICATE:
            assert end.duplicate_of is not None
            return Handle(end.duplicate_of, self.job, self._client, self._decode).result(timeout=timeout)
        if end.ending is not Ending.SUCCEEDED:
            error = end.error
            why = "" if error is None else f": {error.type}: {error.message}"
            raise JobFailed(
                f"job {self.id} ({end.job}) {_SAID[end.ending]} after {end.tries} "
                f"attempt{'' if end.tries == 1 else 's'}{why}",
                ending=end.ending.value,
                tries=end.tries,
                error_type=None if error is None else error.type,
                hint="its record is among the dead letters: streams dead-letters list"
                if end.ending is not Ending.CANCELLED
                else None,
            )
        return self._decode(end.result)

    def _end(self, timeout: timedelta) -> JobEnd:
        seconds = to_milliseconds(timeout, "Handle.result: timeout") / 1000
        end = self._client.wait(self.id, seconds)
        if end is not None:
            return end
        if not self._client.enqueued(self.id):
            raise JobUnknown(f"there is no job {self.id} in the queue {self._client.topic}")
        raise JobPending(
            f"job {self.id} has not ended within {seconds:g} s",
            hint="it waits, runs, or ended so long ago that its result was deleted: see streams jobs show",
        )

    def __repr__(self) -> str:
        return f"<job {self.id} {self.job}>"


_SAID = {
    Ending.FAILED: "has failed",
    Ending.EXPIRED: "has expired",
    Ending.CANCELLED: "was cancelled",
}
