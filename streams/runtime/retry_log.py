"""The topic with what happened to an app's dead letters after they were written: ``<app>-retries``.

It has one partition and is compacted. Each record belongs to one dead letter; its key is the record's kind
and the dead letter's identity. Operators' commands write requests, edits and purges; workers write outcomes,
in the transaction that has the results of the retry.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from streams.records import TopicPartition
from streams.runtime.letter import LetterId
from streams.structs import decodable

if TYPE_CHECKING:
    from streams.runtime.letter import Letter, Received

SETTINGS: Final = {
    "cleanup.policy": "compact",
    # A worker that was away for less than this has not missed that a request was withdrawn.
    "delete.retention.ms": str(7 * 24 * 3600 * 1000),
    "message.timestamp.type": "LogAppendTime",
}


def retry_topic(application: str) -> TopicPartition:
    """The only partition of an app's topic."""
    return TopicPartition(f"{application}-retries", 0)


class Kind(StrEnum):
    """What a record says of its dead letter; the last of each kind counts."""

    REQUEST = "request"
    OUTCOME = "outcome"
    EDIT = "edit"
    PURGE = "purge"


@decodable
class RetryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Process a dead letter's record again at its step.

    ``number`` counts the requests for one dead letter from 1 on: of several with one number the first counts.
    ``topic`` and ``partition`` are where the step's task has read the record, which is ``key``, ``value``,
    ``timestamp`` and ``headers``; ``origin`` is the topic, partition and offset of its input record.
    """

    number: int
    step: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes | None]] | None
    origin: tuple[str, int, int]
    is_result: bool = False
    """Whether the record is a result that came through an internal topic."""
    row: int = 0
    rows: int = 1
    """The row that failed, of those that were made of the record, see ``Letter``."""

    @property
    def source(self) -> TopicPartition:
        """The partition from which the step's task reads."""
        return TopicPartition(self.topic, self.partition)


def request_for(letter: Letter, record: Received, *, number: int, partition: int) -> RetryRequest:
    """The request to retry a dead letter with this record, in that partition of what its step reads."""
    return RetryRequest(
        number=number,
        step=letter.step,
        topic=letter.source.topic,
        partition=partition,
        key=record.key,
        value=record.value,
        timestamp=record.timestamp,
        headers=record.headers or None,
        origin=(letter.topic, letter.partition, letter.offset),
        is_result=letter.is_result,
        row=letter.row,
        rows=letter.rows,
    )


class Result(StrEnum):
    """How a retry ended."""

    DONE = "done"
    """The step has processed the record."""
    FAILED = "failed"
    """The record has failed again: it is still a dead letter."""
    REFUSED = "refused"
    """Nothing was processed: the program cannot retry this record."""


@decodable
class RetryOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the request of that ``number`` ended; ``step``, ``exception`` and ``message`` where it failed."""

    number: int
    result: Result
    at: int
    """In milliseconds since the epoch."""
    tries: int
    """How often the step has been given the record: once when it became a dead letter, and by retries."""
    step: str = ""
    exception: str = ""
    message: str = ""


@decodable
class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """Key and value with which the dead letter's record is retried."""

    key: bytes | None
    value: bytes | None
    at: int
    """In milliseconds since the epoch."""


@decodable
class Purge(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letter is discarded, as of the request with that number."""

    number: int
    at: int
    """In milliseconds since the epoch."""


Entry: TypeAlias = "RetryRequest | RetryOutcome | Edit | Purge"

_TYPES: Final[dict[Kind, type[Entry]]] = {
    Kind.REQUEST: RetryRequest,
    Kind.OUTCOME: RetryOutcome,
    Kind.EDIT: Edit,
    Kind.PURGE: Purge,
}
_KINDS: Final = {entry: kind for kind, entry in _TYPES.items()}


def encode_key(kind: Kind, letter: LetterId) -> bytes:
    """The key of a record about a dead letter."""
    return f"{kind}/{letter}".encode()


def decode_key(key: bytes | None) -> tuple[Kind, LetterId] | None:
    """The kind and the dead letter of a record; ``None`` for a record of another program."""
    try:
        kind, _, letter = (key or b"").decode().partition("/")
        return Kind(kind), LetterId.parse(letter)
    except ValueError:
        return None


def encode_entry(entry: Entry) -> bytes:
    """The value of a record."""
    return msgspec.json.encode(entry)


def decode_entry(kind: Kind, value: bytes) -> Entry | None:
    """The value of a record; ``None`` for one of another program."""
    try:
        return msgspec.json.decode(value, type=_TYPES[kind])
    except msgspec.DecodeError:
        return None


def kind_of(entry: Entry) -> Kind:
    """The kind of an entry."""
    return _KINDS[type(entry)]
