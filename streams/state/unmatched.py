"""The records of a stream join that had no partner when they arrived, by the time at which they expire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streams.serde import Bytes
from streams.state.definition import StoreDefinition

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.serde import Serde
    from streams.state.buffered import WindowState

K = TypeVar("K")

SHORTEST_SPAN = 60_000
"""Expired records are deleted from the store once they span at least this event time (milliseconds)."""


def unmatched_name(join: str) -> str:
    """The name of the store for a join's unmatched records by time."""
    return f"{join}-unmatched"


def unmatched_definition(join: str, key: Serde[Any], lasts: int) -> StoreDefinition:
    """The store for ``UnmatchedRecords``, which expire ``lasts`` milliseconds after their event time."""
    return StoreDefinition(
        name=unmatched_name(join),
        key=key,
        value=Bytes(),
        purpose="unmatched records of a join",
        retention=lasts + 1,
        changelog_retention=lasts + 1,
        expired_span=max(SHORTEST_SPAN, lasts // 8),
        view=None,
    )


class UnmatchedRecords(Generic[K]):
    """Event times and keys of records that had no partner when they arrived.

    The records themselves are in the stores of their sides; those that find a partner later stay listed here.
    As entries are in the order of their times, finding the expiring ones only reads these, and they are
    removed as one range.
    """

    def __init__(self, state: WindowState[K, bytes]) -> None:
        self._state = state

    @property
    def reached(self) -> int:
        """Records with earlier event times (milliseconds since the epoch) have expired; 0 at the start."""
        return self._state.expired

    def add(self, records: Iterable[tuple[int, K]]) -> None:
        """Add records by event time and key."""
        by_time: dict[int, dict[K, bytes]] = {}
        for time, key in records:
            by_time.setdefault(time, {})[key] = b""
        for time, entries in by_time.items():
            self._state.put_many(time, entries)

    def before(self, time: int) -> list[tuple[int, K]]:
        """Event times before ``time`` with keys, in that order, each once."""
        return self._state.keys(0, time)

    def expire(self, stream_time: int) -> None:
        """Remove the records that expire at that stream time."""
        self._state.expire(stream_time)
