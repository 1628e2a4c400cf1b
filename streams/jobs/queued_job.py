"""An unfinished job of one partition's task, as its queue has it in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.jobs.job_store import StoredJob
from streams.jobs.order import rank
from streams.jobs.record import JobRecord

if TYPE_CHECKING:
    from streams.jobs.job_store import StoredState
    from streams.jobs.record import JobError
    from streams.records import Headers

_record = msgspec.json.Decoder(JobRecord).decode


class QueuedJob(NamedTuple):
    """An unfinished job: made from its record, or from what the store has of it (``loaded``)."""

    offset: int
    record: JobRecord
    key: bytes | None
    value: bytes
    timestamp: int
    headers: Headers | None
    tries: int = 0
    due: int = 0
    stored: bool = False
    """Whether it is in the store. Otherwise its record holds back the committed offset."""
    failed_at: int = 0
    """When its last attempt failed, as the store knows, in milliseconds since the epoch; 0: none did."""

    @classmethod
    def loaded(cls, offset: int, stored: StoredJob) -> QueuedJob:
        """The job in the store whose record has that offset."""
        return cls(
            offset,
            _record(stored.value),
            stored.key,
            stored.value,
            stored.timestamp,
            stored.headers,
            stored.tries,
            stored.due,
            True,
            stored.failed_at,
        )

    @property
    def rank(self) -> int:
        """Its place in the order."""
        record, time = self.record, self.timestamp
        due = self.due or record.due
        if due is not None and due > time:
            time = due
        return rank(time, record.priority)

    def as_stored(
        self, state: StoredState, due: int = 0, error: JobError | None = None, failed_at: int = 0
    ) -> StoredJob:
        """What is stored of it."""
        return StoredJob(
            state,
            due,
            self.tries,
            self.key,
            self.value,
            self.timestamp,
            None if self.headers is None else list(self.headers),
            error,
            failed_at,
        )
