"""The content of a message: JSON alone is read, with a bound on its size."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from streams.celery.extended_json import read_json
from streams.celery.refusal import DISALLOWED, TaskRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.celery.message import TaskMessage

LARGEST_CONTENT: Final = 1_000_000
"""The largest content, in bytes after it is decompressed, which is about what a record of Kafka may have."""

_SERIALIZERS = {
    "application/x-python-serialize": "pickle",
    "application/x-yaml": "yaml",
    "application/x-msgpack": "msgpack",
}
"""Celery's names of other serializers."""

_ENCODINGS = {"", "utf-8", "utf8", "us-ascii", "ascii", "binary"}


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
"""By the names that kombu writes into the header ``compression``."""


def read_content(message: TaskMessage) -> Any:
    """The content of a message. Raises ``TaskRefused`` for all but JSON: nothing else is ever read."""
    kind = message.content_type
    if kind != "application/json":
        name = _SERIALIZERS.get(kind, "another serializer")
        raise TaskRefused(
            f"its content is {kind or 'of no type'!r:.80} ({name}), which is never read: "
            "set task_serializer = 'json' in the program that sends it",
            DISALLOWED,
        )
    if message.content_encoding.lower() not in _ENCODINGS:
        raise TaskRefused(f"its content is encoded as {message.content_encoding!r:.40}, and not as utf-8")
    body = _decompressed(message)
    if len(body) > LARGEST_CONTENT:
        raise TaskRefused(f"its content has more than {LARGEST_CONTENT:,} bytes")
    try:
        return read_json(body)
    except ValueError as error:
        raise TaskRefused(f"its content cannot be read: {error}") from error


def _decompressed(message: TaskMessage) -> bytes:
    name = message.headers.get("compression")
    if name is None:
        return message.body
    make = _DECOMPRESSORS.get(name) if isinstance(name, str) else None
    if make is None:
        raise TaskRefused(
            f"its content is compressed as {name!r:.80}, which is not read: use gzip, bz2 or lzma",
            DISALLOWED,
        )
    decompressor = make()
    try:
        # One byte more shows that a content is too large.
        body = decompressor.decompress(message.body, LARGEST_CONTENT + 1)
    except (zlib.error, OSError, lzma.LZMAError) as error:
        raise TaskRefused(f"its content cannot be decompressed ({name}): {error}") from error
    if not decompressor.eof and len(body) <= LARGEST_CONTENT:
        raise TaskRefused(f"its content cannot be decompressed ({name}): it is cut off")
    return body
