"""Rows that name a partition, and the partitions that their topic has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import RecordRefused

if TYPE_CHECKING:
    from streams.records import Output


def first_misplaced(output: Output, partitions: int) -> RecordRefused | None:
    """The first row that names another partition than the topic has, which are ``partitions`` in number."""
    named = output.partitions
    if not named or (min(named) >= 0 and max(named) < partitions):
        return None
    row = next(row for row, partition in enumerate(named) if not 0 <= partition < partitions)
    return RecordRefused(
        f"topic {output.topic} has no partition {named[row]}: it has {partitions}, counted from 0",
        position=row,
        hint=f"let partition= name a partition from 0 to {partitions - 1}, or make the topic with more",
    )
