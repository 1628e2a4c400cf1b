"""The queue of an app in the driver: jobs that a program enqueues, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streams.jobs.handle import Handle
from streams.jobs.record import JobEnd, JobId, JobRecord
from streams.partitioning import partition_for
from streams.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.jobs.job import Call
    from streams.records import Headers
    from streams.tracing.spans import JobSpans


class EnqueuedJob(NamedTuple):
    """A job that was enqueued while a driver ran the app."""

    id: str
    name: str
    """The name of its function."""
    arguments: dict[str, Any]
    """As JSON has them, by the names of the parameters; without those that were left out."""
    key: str | None
    due: int | None
    """When it is executed at the earliest, in milliseconds since the epoch; ``None``: at once."""


class DriverQueue:
    """What jobs enqueue with while a driver runs their app: it places records in the driver's topics.

    ``place`` writes a record to a partition of the queue's topic and returns its offset.
    """

    def __init__(
        self,
        topic: str,
        partitions: int,
        clock: Callable[[], int],
        place: Callable[[int, Record[bytes | None, bytes | None]], int],
        spans: JobSpans | None = None,
    ) -> None:
        self._topic = topic
        self._spans = spans
        self._partitions = partitions
        self._clock = clock
        self._place = place
        self._next = 0
        self._enqueued: list[EnqueuedJob] = []
        self._ends: dict[str, JobEnd] = {}
        self._places: set[str] = set()
        self._records: dict[str, JobRecord] = {}

    @property
    def topic(self) -> str:
        """The queue's topic."""
        return self._topic

    def enqueue(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        """Put calls into the queue; see ``QueueClient``."""
        if self._spans is None:
            return [self._enqueue(call, None) for call in calls]
        with self._spans.send(self._topic, len(calls)) as headers:
            return [self._enqueue(call, list(headers) or None) for call in calls]

    enqueue_many = enqueue

    def wait(self, identifier: str, timeout: float) -> JobEnd | None:  # noqa: ARG002 - the test moves the clock
        """The end of a job, if it has ended."""
        return self._ends.get(identifier)

    def enqueued(self, identifier: str) -> bool:
        """Whether a job of this id was enqueued."""
        return identifier in self._places

    def find(self, identifier: str) -> JobRecord | JobEnd | None:
        """How a job has ended, or else its record; see ``QueueClient``."""
        return self._ends.get(str(JobId.parse(identifier))) or self._records.get(identifier)

    def take(self, name: str) -> list[EnqueuedJob]:
        """Take the jobs of that name since the last call."""
        taken = [job for job in self._enqueued if job.name == name]
        self._enqueued = [job for job in self._enqueued if job.name != name]
        return taken

    def note_job(self, partition: int, offset: int, value: bytes | None) -> None:
        """Note a record of the queue's topic, whoever has written it."""
        identifier = str(JobId(partition, offset))
        self._places.add(identifier)
        try:
            record = msgspec.json.decode(value or b"", type=JobRecord)
        except msgspec.DecodeError:
            return
        self._records[identifier] = record
        self._enqueued.append(
            EnqueuedJob(identifier, record.job, msgspec.json.decode(record.arguments), record.key, record.due)
        )

    def note_end(self, value: bytes | None) -> None:
        """Note a record of the results' topic."""
        end = msgspec.json.decode(value or b"", type=JobEnd)
        self._ends[end.id] = end

    def _enqueue(self, call: Call[Any], headers: Headers | None) -> Handle[Any]:
        now, key = self._clock(), call.partition_key
        record: Record[bytes | None, bytes | None] = Record(
            None if key is None else key.encode(), call.payload(now), now, headers
        )
        if key is None:
            partition = self._next % self._partitions
            self._next += 1
        else:
            partition = partition_for(key.encode(), self._partitions)
        offset = self._place(partition, record)
        return Handle(str(JobId(partition, offset)), call.job.name, self, call.job.result.decode)
