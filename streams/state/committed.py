"""A task's store as of its last commit, for those who ask: typed, read-only, from any thread."""

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
"""Entries that are read and decoded at a time; the task's own reads wait meanwhile."""

_TIME = Struct(">Q")
_LATEST = 1 << 63


Place: TypeAlias = "tuple[bytes, Windowed[Any, Any]]"
"""A window's start and encoded key as one, by which windows are in order, and the window."""


class ClosedStore(NamedTuple):
    """Where a store's windows are once they have closed."""

    store: CommittedStore
    span: int
    ends_from: int
    """Windows that end before it (milliseconds) are kept no longer."""


class CommittedStore(NamedTuple):
    """Reads what the last commit left, and shows values as users know them.

    Windows that start before ``oldest`` (milliseconds) are closed, whether or not the store still has them;
    they are read from ``closed`` where they are kept.
    Every call raises ``StateError`` when the store's database is closed, and what a serde raises.
    """

    store: Store
    definition: StoreDefinition
    oldest: int = 0
    value: Serde[Any] | None = None
    """How values are read, where that depends on what the task's store has; else as the definition says."""
    closed: ClosedStore | None = None

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        payload = self.store.get(self.encode(key))
        return None if payload is None else next(iter(self.shown([payload])))

    def entries(self, start: bytes | None, stop: bytes | None) -> Iterator[tuple[bytes, Any, Any]]:
        """Encoded key, key and value of all with ``start <= encoded key < stop``, in that order."""
        for chunk in _chunks(self.store.scan(start, stop)):
            encoded = [key for key, _ in chunk]
            keys = self.definition.key.deserialize(encoded)
            values = self.shown([payload for _, payload in chunk])
            for entry in zip(encoded, keys, values, strict=True):
                if entry[2] is not None:
                    yield entry

    def windows(self, start: int, stop: int, limit: int | None = None) -> Iterator[Place]:
        """The windows of all keys that start in ``[start, stop)``, by start and then by encoded key.

        Raises ``QueryError`` where each key has windows of its own: they are read a key at a time.
        """
        if self.definition.lists_windows:
            raise QueryError(
                f"store {self.definition.name!r} has windows of each key's own",
                hint="ask for the windows of one key, or for its keys: their values are the open windows",
            )
        opened = self._open(start, stop)
        if self.closed is None:
            return islice(opened, limit)
        # What closes while this reads is found in both, rather than in none.
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
        """A key as the store has it. Raises ``QueryError`` for one that its serde does not take."""
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
        """Those that have closed, of windows of one size: they end in the order in which they start."""
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
        """Between which times windows that have closed are found that start in ``[start, stop)``."""
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
        """The entries that there are at these places."""
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
        # What the serde reads as None is no value.
        values = (self.value or self.definition.value).deserialize(payloads)
        return (None if value is None else show(value) for value in values)


def _together(closed: Sequence[Place], opened: Sequence[Place]) -> Iterator[Place]:
    """Windows in order, those that are in both as closed ones."""
    known = {(place, window.end) for place, window in closed}
    newer = [entry for entry in opened if (entry[0], entry[1].end) not in known]
    return merge(closed, newer, key=itemgetter(0))


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
