"""One partition of the queue's topic, and the names of the jobs whose records are there."""

from __future__ import annotations

from typing import NamedTuple


class QueuePartition(NamedTuple):
    """A partition of the queue's topic. Jobs are named by the offsets of their records."""

    topic: str
    partition: int

    def id(self, offset: int) -> str:
        """``str(JobId(partition, offset))``: made for each job, so without the object."""
        return f"{self.partition}-{offset}"

    def idempotency_key(self, offset: int) -> str:
        """See ``CurrentJob.idempotency_key``."""
        return f"{self.topic}-{self.partition}-{offset}"
