"""Topics as short texts, so that what a reset has deleted can be created again after an interruption."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from streams.broker import NewTopic

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_NOTES: Final = 3000
"""In bytes, beside the rest of an offset's metadata."""


def encode_topics(topics: Sequence[NewTopic]) -> list[str]:
    """Texts without spaces from which ``decode_topics`` makes the topics again, each short enough for a note.

    A topic that is too long for itself is left out.
    """
    if not topics:
        return []
    described = [(topic.name, topic.partitions, topic.replication_factor, topic.settings) for topic in topics]
    text = base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(described), 9)).decode()
    if len(text) <= LARGEST_NOTES:
        return [text]
    half = len(topics) // 2
    return encode_topics(topics[:half]) + encode_topics(topics[half:]) if half else []


def decode_topics(text: str) -> dict[str, NewTopic]:
    """The topics that were encoded, by name; none if the text is not what ``encode_topics`` makes."""
    if not text:
        return {}
    try:
        found = msgspec.json.decode(
            zlib.decompress(base64.urlsafe_b64decode(text)),
            type=list[tuple[str, int, int | None, dict[str, str]]],
        )
    except (ValueError, zlib.error):
        return {}
    return {
        name: NewTopic(name=name, partitions=partitions, replication_factor=replication, settings=settings)
        for name, partitions, replication, settings in found
    }
