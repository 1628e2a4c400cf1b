"""The coordinates of rows, by which systems without transactions can recognise what is sent again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import TopicPartition


def origins_of(partition: TopicPartition, offsets: Sequence[int]) -> list[bytes]:
    """``topic/partition/offset`` of each row; further rows of one record have ``/1``, ``/2`` after it."""
    # A topic's name has no character that means anything here.
    template = f"{partition.topic}/{partition.partition}/%d".encode()
    if len(set(offsets)) == len(offsets):
        return list(map(template.__mod__, offsets))
    found: list[bytes] = []
    seen: Counter[int] = Counter()
    for offset in offsets:
        number = seen[offset]
        seen[offset] += 1
        found.append(template % offset + (b"/%d" % number if number else b""))
    return found
