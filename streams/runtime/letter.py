"""Dead letters as their topic has them: what ``dead_letter_rows`` has written, read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from streams.records import TopicPartition
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.records import Fetched, Headers

PREFIX: Final = "__streams.errors."
"""The first characters of the headers in which a dead letter has its origin and reason."""


UNREAD: Final = "as in "
"""How ``payload`` begins where the input record could not be read again."""


class LetterId(NamedTuple):
    """The identity of a dead letter: its coordinates in its topic, with that topic's id."""

    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic_id}/{self.partition}/{self.offset}"

    @property
    def place(self) -> str:
        """As people write it, within one topic."""
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LetterId:
        """Read what ``str`` wrote. Raises ``ValueError``."""
        topic_id, partition, offset = text.rsplit("/", 2)
        return cls(topic_id, int(partition), int(offset))


@decodable
class Received(msgspec.Struct, array_like=True, frozen=True):
    """A record as a failing task has read it; one of an internal topic without its origin."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes | None]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A record that a step could not process.

    ``key``, ``value``, ``headers`` and ``timestamp`` (its event time in milliseconds since the epoch) are the
    record's; ``topic``, ``partition`` and ``offset`` its coordinates; ``written`` is the time in milliseconds
    since the epoch when the dead letter was written.
    """

    id: LetterId
    written: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    topic: str
    partition: int
    offset: int
    application: str
    step: str
    exception: str
    message: str
    via: TopicPartition | None
    """The internal topic's partition through which the record came."""
    payload: str
    """Why key and value are not those of the input record; empty where they are."""
    received: bytes | None
    """The record of the internal topic, ``Received`` as JSON; ``None`` where key and value were read."""
    left_out: str
    """What the broker did not accept in the dead letter; empty if it is complete."""
    row: int
    """Which of the rows that were made of the record has failed, from 0."""
    rows: int
    """How many rows were made of the record, in the batch of the failing step."""

    @property
    def record(self) -> Received:
        """The record as the failing task has read it."""
        if self.received is None:
            return Received(self.key, self.value, self.timestamp, self.headers)
        return msgspec.json.decode(self.received, type=Received)

    @property
    def is_result(self) -> bool:
        """Whether the record is made of several records or by a timer."""
        return bool(self.payload) and not self.payload.startswith(UNREAD)

    @property
    def source(self) -> TopicPartition:
        """The partition from which the failing task has read the record."""
        return self.via or TopicPartition(self.topic, self.partition)


def letters(fetched: Fetched, topic_id: str) -> Iterator[Letter]:
    """The dead letters among records of a dead-letter topic; records of other programs are left out."""
    headers = fetched.headers()
    if headers is None:
        return
    columns = fetched.offsets(), fetched.timestamps(), fetched.keys(), fetched.values(), headers
    for offset, time, key, value, own in zip(*columns, strict=True):
        if own:
            found = read_letter(LetterId(topic_id, fetched.partition, offset), time, key, value, own)
            if found is not None:
                yield found


def read_letter(
    identifier: LetterId, written: int, key: bytes | None, value: bytes | None, headers: Headers
) -> Letter | None:
    """A record as a dead letter; ``None`` if this library has not written it."""
    # A dead letter of a dead letter has the headers of both: the last ones are its own.
    begin = max((at for at, (name, _) in enumerate(headers) if name == f"{PREFIX}topic"), default=None)
    if begin is None:
        return None
    own = {name.removeprefix(PREFIX): content or b"" for name, content in headers[begin:]}
    try:
        row, _, rows = own.get("row", b"0/1").partition(b"/")
        return Letter(
            id=identifier,
            written=written,
            key=key,
            value=value,
            headers=list(headers[:begin]),
            timestamp=int(own["timestamp"]),
            topic=_text(own["topic"]),
            partition=int(own["partition"]),
            offset=int(own["offset"]),
            application=_text(own["application"]),
            step=_text(own["step"]),
            exception=_text(own["exception"]),
            message=_text(own["message"]),
            via=_partition(_text(own["via"])) if "via" in own else None,
            payload=_text(own.get("payload", b"")),
            received=own.get("received"),
            left_out=_text(own.get("left_out", b"")),
            row=int(row),
            rows=int(rows),
        )
    except (KeyError, ValueError):
        return None


def _partition(text: str) -> TopicPartition:
    topic, _, partition = text.rpartition("-")
    return TopicPartition(topic, int(partition))


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
