"""When to look at which key again, so that letting entries go costs what goes and not what there is."""

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
"""Deadlines that have passed are deleted one by one; what is left of a restored store goes with a range."""


def deadlines_name(store: str) -> str:
    """The name of the store that has the deadlines of another store's keys."""
    return f"{store}-deadlines"


def deadlines_definition(store: str, key: Serde[Any]) -> StoreDefinition:
    """The store for the deadlines of another store's keys.

    Its changelog forgets nothing by age: stream time may stand still for longer than any age. Deadlines that
    have passed are deleted from it one by one.
    """
    return StoreDefinition(
        name=deadlines_name(store),
        key=key,
        value=Bytes(),
        purpose="deadlines",
        retention=0,
        expired_span=EXPIRED_SPAN,
        shown=None,
    )


class Deadlines(Generic[K]):
    """Keys by the stream time (milliseconds since the epoch) at which to look at them.

    A key may have several. Whoever looks at one too early sets another one: so a deadline need not be moved
    each time that the key's entry lasts longer, as long as it has one that is not too late.
    """

    def __init__(self, state: WindowState[K, bytes]) -> None:
        self._state = state

    def add(self, time: int, key: K) -> None:
        """Look at the key at that time, which has not been yet."""
        self._state.put(time, key, b"")

    def remove(self, time: int, key: K) -> None:
        """Do not look at the key at that time."""
        self._state.put(time, key, None)

    def due(self, now: int) -> list[K]:
        """Take out the keys to look at by stream time ``now``, in the order of their deadlines, each once."""
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
