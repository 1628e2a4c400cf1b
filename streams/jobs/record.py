"""What the topics of a task queue contain: jobs, and what became of them."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

import msgspec

from streams.errors import ConfigurationError
from streams.structs import decodable

_NUMBER = re.compile("[0-9]{1,18}")

NOTHING = msgspec.Raw(b"{}")
NULL = msgspec.Raw(b"null")


@decodable
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
    schedule: str | None = None
    """The schedule that has made it."""
    scheduled: int | None = None
    """The instant of the schedule."""
    overlap: str | None = None
    """With ``skip`` it is left out if a job of an earlier instant of the schedule is not finished."""
    correlation_id: str | None = None
    """The id by which another system knows it, which its end has too."""
    reply_to: str | None = None
    """The bridge that reports its end to that system."""


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
        if not (dash and _NUMBER.fullmatch(partition) and _NUMBER.fullmatch(offset)):
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
    """Another job with the same ``unique``, or of the same schedule, was not finished: it was left out."""


class JobError(msgspec.Struct, omit_defaults=True, frozen=True):
    """The exception of the last attempt."""

    type: str
    message: str
    path: str = ""
    """Module and qualified name of its class. This and ``traceback`` are only in the job's end."""
    traceback: str = ""
    """The end of the text that Python prints for it."""


@decodable
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
    result: msgspec.Raw = NULL
    error: JobError | None = None
    duplicate_of: str | None = None
    record: msgspec.Raw = NULL
    """The job's record, unless it has succeeded, to enqueue it again."""
    began: int = 0
    """When its last attempt began; 0: it was not executed."""
    correlation_id: str | None = None
    """This and ``reply_to`` are those of its record."""
    reply_to: str | None = None


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
