"""A message that a Celery program has sent, as a broker has it: nothing of its content is read yet."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LARGEST_MESSAGE = 4_000_000
"""The largest message that is read, in bytes. A job's record has at most about a million."""


class TaskMessage(msgspec.Struct, frozen=True):
    """The content of a message, and what is said of it."""

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    priority: int | None = None
    """As the program has chosen it; what it means depends on the broker."""


class _Properties(msgspec.Struct):
    body_encoding: str | None = None
    priority: int | None = None


class _Envelope(msgspec.Struct, rename="kebab"):
    """What kombu writes into a list: JSON that contains the content as text, in base64 by default."""

    body: str
    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    properties: _Properties | None = None


_read = msgspec.json.Decoder(_Envelope).decode
_write = msgspec.json.Encoder().encode


class KombuEnvelope:
    """Messages in the form of kombu's transports that have no headers of their own, such as Redis."""

    name = "KombuEnvelope"
    value_type = TaskMessage

    def serialize(self, values: Sequence[TaskMessage]) -> Iterable[bytes]:
        """Write messages as kombu does."""
        return map(_written, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[TaskMessage]:
        """Read messages. Raises ``ValueError`` for what kombu has not written, and for what is too large."""
        return map(_message, payloads)


def _message(payload: bytes) -> TaskMessage:
    if len(payload) > LARGEST_MESSAGE:
        raise ValueError(f"a message of Celery has at most {LARGEST_MESSAGE:,} bytes, got {len(payload):,}")
    envelope = _read(payload)
    properties = envelope.properties or _Properties()
    encoding = properties.body_encoding
    if encoding == "base64":
        try:
            body = base64.b64decode(envelope.body, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the content of the message is not base64: {error}") from error
    elif encoding is None or encoding.lower() == "utf-8":
        body = envelope.body.encode()
    else:
        raise ValueError(f"the content of the message is encoded as {encoding!r:.40}, which is not known")
    return TaskMessage(
        body,
        envelope.content_type or "",
        envelope.content_encoding or "",
        envelope.headers or {},
        properties.priority,
    )


def _written(message: TaskMessage) -> bytes:
    return _write(
        _Envelope(
            base64.b64encode(message.body).decode(),
            message.content_type,
            message.content_encoding,
            message.headers,
            _Properties("base64", message.priority),
        )
    )
