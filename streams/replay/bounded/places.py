"""Which partitions of a topic records are for, as far as it can be known at little cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from streams.partitioning import partition_for

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

T = TypeVar("T")

KNOWN_KEYS: Final = 50_000
"""Of how many keys the partition is computed: with more of them, a merge of the records costs less."""


class Places:
    """The partitions, of ``count``, that the records of a file are for."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys: set[bytes | None] | None = set()
        """The keys whose partition was found; ``None`` when no more are looked at."""
        self._found: set[int] = set()

    @property
    def found(self) -> list[int] | None:
        """The partitions; ``None``: any of them."""
        return None if self._keys is None else sorted(self._found)

    def knows(self, keys: Sequence[bytes | None]) -> bool:
        """Whether records with these keys are for partitions that were found; none is ``None`` then."""
        return self._keys is not None and self._keys.issuperset(keys)

    def note(self, keys: Sequence[bytes | None], chosen: Sequence[int | None] | None) -> None:
        """Note records. ``chosen`` are the partitions of those that are not where their key belongs."""
        if self._keys is None:
            return
        if chosen is None:
            new = {*keys} - self._keys
        else:
            self._found.update(place for place in chosen if place is not None)
            new = {key for key, place in zip(keys, chosen, strict=True) if place is None} - self._keys
        self._found.update(partition_for(key, self._count) for key in new if key is not None)
        self._keys |= new
        if len(self._found) >= self._count or len(self._keys) > KNOWN_KEYS:
            self._keys = None


def apart(places: Mapping[T, Collection[int] | None]) -> list[list[T]]:
    """Files in groups that have no partition in common, by the partitions of each; ``None`` is any.

    Within a group they keep their order.
    """
    if None in places.values():
        return [[*places]]
    groups: list[tuple[set[int], set[T]]] = []
    for file, own in places.items():
        joined: tuple[set[int], set[T]] = {*(own or ())}, {file}
        others = []
        for group in groups:
            if group[0].isdisjoint(joined[0]):
                others.append(group)
            else:
                joined = group[0] | joined[0], group[1] | joined[1]
        groups = [*others, joined]
    return [[file for file in places if file in group] for _, group in groups]
