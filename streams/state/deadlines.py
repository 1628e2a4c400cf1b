"""Deadlines of keys, so that expiring entries only costs as much as there are expired entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streams.serde import Bytes
from streams.state.definition import StoreDefinition

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.serde import Serde
    from streams.state.buffered import WindowState

K = TypeVar("K")

EXPIRED_SPAN = 60_000
"""Passed deadlines are deleted one by one; what remains in a restored store is deleted as a range."""


def deadlines_name(store: str) -> str:
    """The name of the store for the deadlines of another store's keys."""
    return f"{store}-deadlines"


def deadlines_definition(store: str, key: Serde[Any]) -> StoreDefinition:
    """The store for the deadlines of another store's keys.

    Its changelog deletes nothing by age, as stream time may stand still for any length of time. Passed
    deadlines are deleted from it one by one.
    """
    return StoreDefinition(
        name=deadlines_name(store),
        key=key,
        value=Bytes(),
        purpose="deadlines",
        retention=0,
        expired_span=EXPIRED_SPAN,
        view=None,
    )


class Deadlines(Generic[K]):
    """Keys by the stream time (milliseconds since the epoch) at which to check them.

    A key may have several deadlines. A check that is too early sets another one. So a deadline need not be
    moved each time the lifetime of the key's entry is extended, if there is one that is not too late.
    """

    def __init__(self, state: WindowState[K, bytes]) -> None:
        self._state = state

    def add(self, time: int, key: K) -> None:
        """Add a deadline for the key, at a time in the future."""
        self._state.put(time, key, b"")

    def remove(self, time: int, key: K) -> None:
        """Remove a deadline of the key."""
        self._state.put(time, key, None)

    def due(self, now: int) -> list[K]:
        """Remove the deadlines up to stream time ``now``, and return their keys in that order, each once."""
        if now < self._state.expired:
            return []
        passed = list(self._state.windows(0, now + 1))
        for time, entries in passed:
            self._state.put_many(time, _nothing(key for key, _ in entries))
        self._state.expire(now)
        return list(dict.fromkeys(key for _, entries in passed for key, _ in entries))

    def mark(self) -> None:
        self._state.mark()

    def keep(self) -> None:
        self._state.keep()

    def rollback(self) -> None:
        self._state.rollback()


def _nothing(keys: Iterable[K]) -> dict[K, bytes | None]:
    return dict.fromkeys(keys)
