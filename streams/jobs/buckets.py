"""The limits of the jobs of one partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.jobs.job_store import StoredLimit
from streams.jobs.limits import Bucket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.jobs.job import BaseJob
    from streams.jobs.job_store import JobStore
    from streams.jobs.record import JobRecord


class Buckets:
    """The ``Bucket`` of each limit, by the limit's name.

    The last starts and the time until which a limit is closed are in the store too, from where they are
    read once; how many run is only here, as attempts are. Nothing is taken back: after an undo a limit counts
    starts that may happen again, and so allows rather fewer than too many.
    """

    __slots__ = ("_buckets", "_jobs", "_store")

    def __init__(self, store: JobStore, jobs: Mapping[str, BaseJob[Any, Any]]) -> None:
        self._store = store
        self._jobs = jobs
        self._buckets: dict[str, Bucket] = {}

    def of(self, record: JobRecord) -> Bucket | None:
        """The limit of a job; ``None`` without one, or if its function is not known or not limited now."""
        name = record.limit
        if name is None:
            return None
        bucket = self._buckets.get(name)
        if bucket is None:
            known = self._jobs.get(record.job)
            if known is None or known.definition.limit is None:
                return None
            stored = self._store.limit(name)
            bucket = self._buckets[name] = Bucket(known.definition.limit, stored.starts, stored.closed_until)
        return bucket

    def begin(self, record: JobRecord, now: int) -> None:
        """Count a job that begins."""
        bucket = self.of(record)
        if bucket is not None:
            bucket.begin(now)
            if bucket.has_rate:
                self._put(record, bucket)

    def end(self, record: JobRecord, begun: int) -> bool:
        """Count a job that has ended, and began at that time. Returns whether it has a limit."""
        bucket = self.of(record)
        if bucket is None:
            return False
        bucket.end(begun)
        if bucket.has_rate:
            self._put(record, bucket)
        return True

    def close(self, record: JobRecord, until: int) -> None:
        """Let no job of a job's limit begin before a time."""
        bucket = self.of(record)
        assert bucket is not None, f"the limit {record.limit} of {record.job} is not known"
        bucket.closed_until = max(bucket.closed_until, until)
        self._put(record, bucket)

    def _put(self, record: JobRecord, bucket: Bucket) -> None:
        assert record.limit is not None
        self._store.put_limit(record.limit, StoredLimit(list(bucket.starts), bucket.closed_until))
