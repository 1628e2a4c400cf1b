"""A task's store as of its last commit, for those who ask: typed, read-only, from any thread."""

from __future__ import annotations

from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.errors import QueryError
from streams.eventtime.windows import Windowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.state.store import Store

CHUNK = 1000
"""Entries that are read and decoded at a time; the task's own reads wait meanwhile."""

_TIME = Struct(">Q")
_LATEST = 1 << 63


class CommittedStore(NamedTuple):
    """Reads what the last commit left, and shows values as users know them.

    Windows that start before ``oldest`` (milliseconds) are closed, whether or not the store still has them.
    Every call raises ``StateError`` when the store's database is closed, and what a serde raises.
    """

    store: Store
    definition: StoreDefinition
    oldest: int = 0
    value: Serde[Any] | None = None
    """How values are read, where that depends on what the task's store has; else as the definition says."""

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        payload = self.store.get(self.encode(key))
        return None if payload is None else next(iter(self._shown([payload])))

    def entries(self, start: bytes | None, stop: bytes | None) -> Iterator[tuple[bytes, Any, Any]]:
        """Encoded key, key and value of all with ``start <= encoded key < stop``, in that order."""
        for chunk in _chunks(self.store.scan(start, stop)):
            encoded = [key for key, _ in chunk]
            keys = self.definition.key.deserialize(encoded)
            values = self._shown([payload for _, payload in chunk])
            for entry in zip(encoded, keys, values, strict=True):
                if entry[2] is not None:
                    yield entry

    def windows(self, start: int, stop: int) -> Iterator[tuple[bytes, Windowed[Any, Any]]]:
        """The windows of all keys that start in ``[start, stop)``, by start and then by encoded key."""
        bounds = self._bounds(start, stop)
        if bounds is None:
            return
        for chunk in _chunks(self.store.scan(*map(_TIME.pack, bounds))):
            yield from self._windows(chunk)

    def windows_of(self, key: Any, start: int, stop: int) -> Iterator[tuple[bytes, Windowed[Any, Any]]]:
        """The windows of one key that start in ``[start, stop)``, in that order."""
        bounds = self._bounds(start, stop)
        if bounds is None:
            return
        encoded = self.encode(key)
        for starts in _chunks(self._starts(*bounds)):
            places = [_TIME.pack(at) + encoded for at in starts]
            found = zip(places, self.store.get_many(places), strict=True)
            yield from self._windows([(place, payload) for place, payload in found if payload is not None])

    def encode(self, key: Any) -> bytes:
        """A key as the store has it. Raises ``QueryError`` for one that its serde does not take."""
        return encode_key(self.definition, key)

    def _bounds(self, start: int, stop: int) -> tuple[int, int] | None:
        low, high = max(start, self.oldest), min(stop, _LATEST)
        return (low, high) if low < high else None

    def _starts(self, low: int, high: int) -> Iterator[int]:
        """The different starts in ``[low, high)``, without reading all entries of windows with many."""
        while True:
            last, seen = -1, 0
            for encoded, _ in self.store.scan(_TIME.pack(low), _TIME.pack(high)):
                at: int = _TIME.unpack_from(encoded)[0]
                if at != last:
                    last, seen = at, 0
                    yield at
                seen += 1
                if seen == CHUNK:
                    break
            else:
                return
            low = last + 1

    def _windows(self, entries: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Windowed[Any, Any]]]:
        window_end, show = self.definition.window_end, self.definition.view
        assert window_end is not None
        assert show is not None
        keys = self.definition.key.deserialize([place[8:] for place, _ in entries])
        stored = (self.value or self.definition.value).deserialize([payload for _, payload in entries])
        for (place, _), key, value in zip(entries, keys, stored, strict=True):
            shown = None if value is None else show(value)
            if shown is not None:
                start: int = _TIME.unpack_from(place)[0]
                yield place, Windowed(key, start, window_end(start, value), shown)

    def _shown(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        show = self.definition.view
        assert show is not None
        # What the serde reads as None is no value.
        values = (self.value or self.definition.value).deserialize(payloads)
        return (None if value is None else show(value) for value in values)


def encode_key(definition: StoreDefinition, key: Any) -> bytes:
    """A key as the store has it. Raises ``QueryError`` for one that its serde does not take."""
    serde = definition.key
    try:
        # As it is written once it was read: an integer may stand for a float.
        return next(iter(serde.serialize(list(serde.deserialize(list(serde.serialize([key])))))))
    except Exception as error:
        raise QueryError(
            f"store {definition.name!r} has keys of {definition.key.name}, not {key!r:.80}: {error}"
        ) from error


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
