"""A read-only view of a task's store as of its last commit, for queries from any thread."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from streams.errors import QueryError
from streams.eventtime.windows import ClosedWindow, Windowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.state.store import Entry, Store

CHUNK = 1000
"""The number of entries that are read and decoded at a time, while the task's own reads wait."""

_TIME = Struct(">Q")
_LATEST = 1 << 63


Place: TypeAlias = "tuple[bytes, Windowed[Any, Any]]"
"""A window's start and encoded key together, which is the order of windows, and the window."""


class ClosedStore(NamedTuple):
    """The store of a windowed store's closed windows."""

    store: CommittedStore
    span: int
    ends_from: int
    """Windows that end before this time (milliseconds) are no longer kept."""


class CommittedStore(NamedTuple):
    """Reads the committed state, and returns values in the users' form.

    Windows that start before ``oldest`` (milliseconds) are closed, even if the store still has them; they are
    read from ``closed`` if they are kept.
    Every call raises ``StateError`` when the store's database is closed, and the errors of serdes.
    """

    store: Store
    definition: StoreDefinition
    oldest: int = 0
    value: Serde[Any] | None = None
    """The serde of values if it differs from the definition's, for a store with earlier aggregates."""
    closed: ClosedStore | None = None

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        payload = self.store.get(self.encode(key))
        return None if payload is None else next(iter(self.shown([payload])))

    def entries(self, start: bytes | None, stop: bytes | None) -> Iterator[tuple[bytes, Any, Any]]:
        """Encoded key, key and value of entries with ``start <= encoded key < stop``, in this order."""
        for chunk in _chunks(self.store.scan(start, stop)):
            encoded = [key for key, _ in chunk]
            keys = self.definition.key.deserialize(encoded)
            values = self.shown([payload for _, payload in chunk])
            for entry in zip(encoded, keys, values, strict=True):
                if entry[2] is not None:
                    yield entry

    def windows(self, start: int, stop: int, limit: int | None = None) -> Iterator[Place]:
        """The windows of all keys that start in ``[start, stop)``, by start and then by encoded key.

        Raises ``QueryError`` for sessions and sliding windows, which can only be read by key.
        """
        if self.definition.lists_windows:
            raise QueryError(
                f"store {self.definition.name!r} has sessions or sliding windows, which differ for each key",
                hint="query the windows of one key, or query keys: their values are the open windows",
            )
        opened = self._open(start, stop)
        if self.closed is None:
            return islice(opened, limit)
        # In this order, a window that closes meanwhile is read twice rather than not at all.
        newer = list(islice(opened, limit))
        return islice(_together(list(islice(self._closed(start, stop), limit)), newer), limit)

    def windows_of(self, key: Any, start: int, stop: int, limit: int | None = None) -> Iterator[Place]:
        """The windows of one key that start in ``[start, stop)``, in that order."""
        opened = self._open_of(key, start, stop)
        if self.closed is None:
            return islice(opened, limit)
        newer = list(islice(opened, limit))
        return islice(_together(list(islice(self._closed_of(key, start, stop), limit)), newer), limit)

    def encode(self, key: Any) -> bytes:
        """Encode a key for the store. Raises ``QueryError`` for one that its serde cannot write."""
        return encode_key(self.definition, key)

    def _open(self, start: int, stop: int) -> Iterator[Place]:
        bounds = self._bounds(start, stop)
        if bounds is None:
            return
        for chunk in _chunks(self.store.scan(*map(_TIME.pack, bounds))):
            yield from self._windows(chunk)

    def _open_of(self, key: Any, start: int, stop: int) -> Iterator[Place]:
        encoded = self.encode(key)
        if self.definition.lists_windows:
            for window in self.get(key) or ():
                if start <= window["start"] < stop:
                    yield _TIME.pack(window["start"]) + encoded, Windowed(key, **window)
            return
        bounds = self._bounds(start, stop)
        if bounds is None:
            return
        for starts in _chunks(self.starts(*bounds)):
            yield from self._windows(self.stored([_TIME.pack(at) + encoded for at in starts]))

    def _closed(self, start: int, stop: int) -> Iterator[Place]:
        """The closed windows, for windows of one size, which end in the order in which they start."""
        assert self.closed is not None
        bounds = self._ends(start, stop)
        if bounds is None:
            return
        for chunk in _chunks(self.closed.store.store.scan(*map(_TIME.pack, bounds))):
            keys = self.definition.key.deserialize([place[_TIME.size :] for place, _ in chunk])
            yield from self._kept(zip(chunk, keys, strict=True), start, stop)

    def _closed_of(self, key: Any, start: int, stop: int) -> Iterator[Place]:
        assert self.closed is not None
        bounds, store = self._ends(start, stop), self.closed.store
        if bounds is None:
            return
        encoded = self.encode(key)
        for times in _chunks(store.starts(*bounds)):
            entries = store.stored([_TIME.pack(at) + encoded for at in times])
            yield from self._kept(((entry, key) for entry in entries), start, stop)

    def _ends(self, start: int, stop: int) -> tuple[int, int] | None:
        """The range of times at which closed windows that start in ``[start, stop)`` are stored."""
        assert self.closed is not None
        window_end, low, high = self.definition.window_end, start, _LATEST
        if window_end is not None:
            low, high = window_end(start, None), min(window_end(stop, None), _LATEST)
        low = max(low, self.closed.ends_from) - self.closed.span + 1
        return (max(0, low), high) if low < high else None

    def _kept(self, entries: Iterable[tuple[Entry, Any]], start: int, stop: int) -> Iterator[Place]:
        assert self.closed is not None
        _, _, ends_from = self.closed
        found = list(entries)
        values = self.closed.store.shown([payload for (_, payload), _ in found])
        for ((place, _), key), windows in zip(found, values, strict=True):
            for window in windows or ():
                if window["end"] >= ends_from and start <= window["start"] < stop:
                    yield _TIME.pack(window["start"]) + place[_TIME.size :], ClosedWindow(key, **window)

    def stored(self, places: Sequence[bytes]) -> list[Entry]:
        """The entries that exist at these places."""
        found = zip(places, self.store.get_many(places), strict=True)
        return [(place, payload) for place, payload in found if payload is not None]

    def _bounds(self, start: int, stop: int) -> tuple[int, int] | None:
        low, high = max(start, self.oldest), min(stop, _LATEST)
        return (low, high) if low < high else None

    def starts(self, low: int, high: int) -> Iterator[int]:
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

    def shown(self, payloads: Sequence[bytes]) -> Iterable[Any]:
        show = self.definition.view
        assert show is not None
        # If the serde reads None, the entry has no value.
        values = (self.value or self.definition.value).deserialize(payloads)
        return (None if value is None else show(value) for value in values)


def _together(closed: Sequence[Place], opened: Sequence[Place]) -> Iterator[Place]:
    """Merge windows in order; a window that is in both is returned as closed."""
    known = {(place, window.end) for place, window in closed}
    newer = [entry for entry in opened if (entry[0], entry[1].end) not in known]
    return merge(closed, newer, key=itemgetter(0))


def encode_key(definition: StoreDefinition, key: Any) -> bytes:
    """Encode a key for the store. Raises ``QueryError`` for one that its serde cannot write."""
    serde = definition.key
    try:
        # The canonical bytes, after a round trip: an integer may be passed for a float.
        return next(iter(serde.serialize(list(serde.deserialize(list(serde.serialize([key])))))))
    except Exception as error:
        raise QueryError(
            f"store {definition.name!r} has keys of {definition.key.name}, not {key!r:.80}: {error}"
        ) from error


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
