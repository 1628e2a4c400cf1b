"""Which entries of a group a source has: ranges of ids, all of whose entries were delivered to it."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.connectors.redis.stream_entries import id_numbers
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class IdRange(msgspec.Struct, frozen=True, array_like=True):
    """All entries from ``first`` to ``last``."""

    first: str
    last: str

    def within(self, other: IdRange) -> bool:
        """Whether the other range has all of this one."""
        return id_numbers(other.first) <= id_numbers(self.first) and id_numbers(self.last) <= id_numbers(
            other.last
        )


@decodable
class GroupPosition(msgspec.Struct, frozen=True):
    """The ranges that are not known to be acknowledged: once it is committed, their entries are in Kafka."""

    ranges: list[IdRange]
    read: int = 0
    """How many entries the source has read."""


class Delivered(NamedTuple):
    """Entries without another one between them. ``joins``: nor between the previous ones and these."""

    ids: list[str]
    joins: bool

    @property
    def range(self) -> IdRange:
        return IdRange(self.ids[0], self.ids[-1])


class StreamRanges:
    """What was delivered and is not acknowledged: to earlier readers (``inherited``), and to this one."""

    def __init__(self, inherited: Iterable[IdRange]) -> None:
        self.inherited = list(inherited)
        self.delivered: list[Delivered] = []

    def __len__(self) -> int:
        return len(self.inherited) + len(self.delivered)

    @property
    def last(self) -> str | None:
        """The last entry that was delivered to this reader."""
        return self.delivered[-1].ids[-1] if self.delivered else None

    def all(self) -> list[IdRange]:
        """The ranges, as few as possible."""
        found = list(self.inherited)
        start = None
        for number, item in enumerate(self.delivered):
            if start is None:
                start = item.ids[0]
            following = self.delivered[number + 1 : number + 2]
            if not following or not following[0].joins:
                found.append(IdRange(start, item.ids[-1]))
                start = None
        return found

    def unknown(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that are in none of the ranges."""
        ranges = sorted((id_numbers(item.first), id_numbers(item.last)) for item in self.all())
        if not ranges:
            return list(ids)
        firsts = [first for first, _ in ranges]
        # Ranges may overlap: up to the number of each, the last id of all before it.
        lasts, highest = [], ranges[0][1]
        for _, last in ranges:
            highest = max(highest, last)
            lasts.append(highest)
        found = []
        for entry_id in ids:
            number = id_numbers(entry_id)
            at = bisect_right(firsts, number) - 1
            if at < 0 or lasts[at] < number:
                found.append(entry_id)
        return found

    def confirmed(self, ranges: Sequence[IdRange]) -> list[str]:
        """The ids of this reader's entries in confirmed ranges."""
        return [
            entry_id
            for item in self.delivered
            if any(item.range.within(each) for each in ranges)
            for entry_id in item.ids
        ]

    def inherited_parts(self, ranges: Sequence[IdRange]) -> list[IdRange]:
        """The confirmed ranges that earlier readers' entries are in."""
        return [
            each for each in ranges if any(each.within(item) or item.within(each) for item in self.inherited)
        ]

    def acknowledged(self, ranges: Sequence[IdRange]) -> None:
        """Forget what is in confirmed ranges."""
        self.delivered = [
            item for item in self.delivered if not any(item.range.within(each) for each in ranges)
        ]
        self.inherited = [item for item in self.inherited if not any(item.within(each) for each in ranges)]


def runs(ids: Sequence[str], among: Sequence[str]) -> list[Delivered]:
    """Divide ids into those that follow each other among all ids that the stream has there."""
    places = {entry_id: place for place, entry_id in enumerate(among)}
    found: list[Delivered] = []
    previous = None
    for entry_id in ids:
        place = places.get(entry_id)
        if place is not None and previous is not None and place == previous + 1:
            found[-1].ids.append(entry_id)
        else:
            found.append(Delivered([entry_id], joins=False))
        previous = place
    return found
