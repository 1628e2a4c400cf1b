"""What the topics of a task queue contain: jobs, and what became of them."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from streams.errors import ConfigurationError

NOTHING = msgspec.Raw(b"{}")


class JobRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """The value of a record of the queue's topic, as JSON. Any program may write one.

    The record's key, if it has one, decides the partition. It should be ``limit``, else ``key``, else
    ``unique``: what shares one of them must be in one partition. Times are milliseconds since the epoch.
    """

    job: str
    """The name of the function."""
    arguments: msgspec.Raw = NOTHING
    """A JSON object: its arguments by the names of the parameters."""
    key: str | None = None
    """Jobs of one key are executed one after another, in their order."""
    limit: str | None = None
    """The limit that it counts for."""
    due: int | None = None
    """It is not executed before this time."""
    expires: int | None = None
    """It must have begun before this time."""
    priority: int = 0
    """Higher is earlier; see ``Order``."""
    unique: str | None = None
    """It is left out if another job with this text is not finished."""


def partition_key(record: JobRecord) -> str | None:
    """The key that a job's record should have."""
    return record.limit or record.key or record.unique


class JobId(NamedTuple):
    """Identifies a job by the place of its record: the partition and offset in the queue's topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> JobId:
        """Read ``str(identifier)``. Raises ``ConfigurationError``."""
        partition, dash, offset = text.partition("-")
        if not (dash and partition.isdecimal() and offset.isdecimal()):
            raise ConfigurationError(
                f"{text!r:.80} is no job", hint="a job is named by partition and offset, e.g. 3-1024"
            )
        return cls(int(partition), int(offset))


class Ending(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DUPLICATE = "duplicate"
    """Another job with the same ``unique`` was not finished: nothing was executed."""


class JobError(msgspec.Struct, frozen=True):
    """The exception of the last attempt."""

    type: str
    message: str


class JobEnd(msgspec.Struct, omit_defaults=True, frozen=True):
    """The value of a record of the results' topic, as JSON. Its key is the job's id."""

    id: str
    job: str
    ending: Ending
    tries: int
    """How often it was executed."""
    enqueued: int
    """Times are milliseconds since the epoch."""
    ended: int
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: JobError | None = None
    duplicate_of: str | None = None


class Release(msgspec.Struct, omit_defaults=True, frozen=True):
    """The value of a record of the releases' topic, as JSON: a delayed job that became due.

    Its key is the job's id.
    """

    id: str
    job: str
    due: int
    released: int


def jobs_topic(application: str) -> str:
    """The topic of an app's queue."""
    return f"{application}-jobs"


def ends_topic(application: str) -> str:
    """The topic of the results of an app's jobs."""
    return f"{application}-job-results"


def releases_topic(application: str) -> str:
    """The topic of the releases of an app's delayed jobs."""
    return f"{application}-job-releases"
