"""Typed views of a task's stores, with the uncommitted changes in memory.

Changes are in two layers. ``slice`` has those of the slice being processed: they are discarded if the slice
is abandoned, and added to ``uncommitted`` when it is completed. ``uncommitted`` is written by the next
commit: its entries are encoded once per commit, however often they changed. The changes of the last commit
stay as a ``cache``, so that values in frequent use are not decoded again.

Layers share values, so a value must not be modified: put a new object instead.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from heapq import merge
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streams.errors import StateError
from streams.serde import nullable
from streams.state.store import START, Changes, window_range

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from streams.serde import Serde
    from streams.state.store import Entry, Store

K = TypeVar("K")
V = TypeVar("V")

_ABSENT: Any = object()


class KeyValueState(Generic[K, V]):
    """A step's view of one store of a task. The value ``None`` means that there is no entry.

    Keys must be hashable; keys that compare equal are the same key.
    """

    def __init__(self, store: Store, key: Serde[K], value: Serde[V]) -> None:
        self._store = store
        self._key = key
        self._serialize = nullable(value.serialize)
        self._deserialize = _reading(store.name, value)
        self._slice: dict[K, V | None] = {}
        self._uncommitted: dict[K, V | None] = {}
        self._cache: dict[K, V | None] = {}
        self._journal: list[tuple[K, Any]] | None = None
        self._ordered: list[tuple[bytes, K]] | None = None
        """The changed keys in their encoded order; ``None`` after further changes."""
        self._defers = self._forwarded = False
        self._forwarding: Mapping[K, V | None] = {}

    @property
    def name(self) -> str:
        return self._store.name

    @property
    def dirty(self) -> int:
        """The number of entries that the next commit would write."""
        return len(self._uncommitted) + len(self._slice)

    def get(self, key: K) -> V | None:
        for layer in (self._slice, self._uncommitted, self._cache):
            value = layer.get(key, _ABSENT)
            if value is not _ABSENT:
                return value
        return self._read([key])[0]

    def get_many(self, keys: Sequence[K]) -> list[V | None]:
        """The values of these keys, with one read of the store for those that are not in memory."""
        return _look_up([self._slice, self._uncommitted, self._cache], keys, self._read)

    def committed_many(self, keys: Sequence[K]) -> list[V | None]:
        """The values of these keys as of the last commit."""
        return _look_up([self._cache], keys, self._read)

    def forwarded_many(self, keys: Sequence[K], *, before: bool = False) -> list[V | None]:
        """The values of these keys that the owner has forwarded to its downstream steps.

        ``before`` excludes the changes that are being forwarded now.
        """
        if self._defers and not self._forwarded:
            return self.committed_many(keys)
        values = self.get_many(keys)
        forwarding = self._forwarding
        if not before or not forwarding:
            return values
        return [forwarding.get(key, value) for key, value in zip(keys, values, strict=True)]

    def defer(self) -> None:
        """Forward changes at commits only."""
        self._defers = True

    def begin_forwarding(self, before: Mapping[K, V | None]) -> None:
        """The owner begins to forward changes of the values ``before``."""
        self._forwarded, self._forwarding = True, before

    def end_forwarding(self) -> None:
        """The owner has forwarded these changes."""
        self._forwarding = {}

    def put(self, key: K, value: V | None) -> None:
        """Set a value; ``None`` deletes."""
        self._ordered = None
        if self._journal is not None:
            self._journal.append((key, self._slice.get(key, _ABSENT)))
        self._slice[key] = value

    def put_many(self, entries: Mapping[K, V | None] | Iterable[tuple[K, V | None]]) -> None:
        """Set several values; ``None`` deletes."""
        self._ordered = None
        if self._journal is not None:
            for key, value in dict(entries).items():
                self.put(key, value)
            return
        self._slice.update(entries)

    def delete(self, key: K) -> None:
        """Remove the entry, if there is one."""
        self.put(key, None)

    def changed(self) -> dict[K, V | None]:
        """The changes of completed slices since the last commit."""
        return self._uncommitted

    def scan(
        self, start: K | None = None, stop: K | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Entries with ``start <= key < stop``, in the order of their encoded keys."""
        bounds = [None if bound is None else self._encode_keys([bound])[0] for bound in (start, stop)]
        return self._scan(bounds[0], bounds[1], reverse=reverse)

    def prefix(self, prefix: bytes) -> Iterator[tuple[K, V]]:
        """Entries whose encoded key begins with ``prefix``, in order."""
        return self._scan(prefix, prefix_stop(prefix), reverse=False)

    def entries(self) -> Iterator[tuple[K, V]]:
        """All entries, in the order of their encoded keys."""
        return self._scan(None, None, reverse=False)

    def _scan(self, start: bytes | None, stop: bytes | None, *, reverse: bool) -> Iterator[tuple[K, V]]:
        opened, uncommitted = self._slice, self._uncommitted
        if self._ordered is None:
            keys = list(uncommitted | opened)
            self._ordered = sorted(zip(self._encode_keys(keys), keys, strict=True), key=_encoded)
        ordered = self._ordered
        first = 0 if start is None else bisect_left(ordered, start, key=_encoded)
        last = len(ordered) if stop is None else bisect_left(ordered, stop, key=_encoded)
        changed = ordered[first:last]
        layered = {key: opened[key] if key in opened else uncommitted[key] for _, key in changed}
        if reverse:
            changed.reverse()
        hidden = {encoded for encoded, _ in changed}
        kept = (
            (encoded, None, value)
            for encoded, value in self._store.scan(start, stop, reverse=reverse)
            if encoded not in hidden
        )
        new = ((encoded, key, b"") for encoded, key in changed if layered[key] is not None)
        for encoded, key, payload in merge(kept, new, key=lambda item: item[0], reverse=reverse):
            if encoded in hidden:
                yield key, layered[key]  # type: ignore[index,misc]  # from ``new``: it has a key and a value
            else:
                value = next(iter(self._deserialize([payload])))
                if value is not None:
                    yield self._decode_key(encoded), value

    # --- for the task

    def mark(self) -> None:
        """Start to record changes, so that ``rollback`` can undo them."""
        self._journal = []

    def keep(self) -> None:
        """Keep the changes since ``mark``."""
        self._journal = None

    def rollback(self) -> None:
        """Undo the changes since ``mark``."""
        journal, self._journal = self._journal or [], None
        self._ordered = None
        for key, before in reversed(journal):
            if before is _ABSENT:
                del self._slice[key]
            else:
                self._slice[key] = before

    def end_slice(self) -> None:
        """The slice is completed: its changes belong to the next commit."""
        if self._slice:
            if self._uncommitted:
                self._uncommitted.update(self._slice)
                self._slice.clear()
            else:
                self._uncommitted, self._slice = self._slice, self._uncommitted

    def drop_slice(self) -> None:
        """Discard the changes of the open slice."""
        self._slice.clear()
        self._journal = self._ordered = None
        self._forwarded, self._forwarding = False, {}

    def drop(self) -> None:
        """Discard all changes since the last commit."""
        self.drop_slice()
        self._uncommitted = {}

    def take(self) -> Changes:
        """The encoded changes for the next commit."""
        changes = self._uncommitted
        keys = self._encode_keys(list(changes))
        return Changes(dict(zip(keys, self._serialize(list(changes.values())), strict=True)))

    def committed(self) -> None:
        """The changes that ``take`` returned are now in the store."""
        self._cache, self._uncommitted = self._uncommitted, {}
        self._ordered = None
        self._forwarded = False

    def expire(self, _stream_time: int) -> None:
        """Do nothing: entries of this store do not expire."""

    def _read(self, keys: Sequence[K]) -> list[V | None]:
        return list(self._deserialize(self._store.get_many(self._encode_keys(keys))))

    def _encode_keys(self, keys: Sequence[K]) -> list[bytes]:
        return list(self._key.serialize(keys))

    def _decode_key(self, encoded: bytes) -> K:
        return next(iter(self._key.deserialize([encoded])))


class WindowState(Generic[K, V]):
    """A step's view of one windowed store of a task: a value for each window start and key.

    Starts are milliseconds since the epoch. ``retention`` is how long after its start, in stream time, an
    entry is needed; older ones are deleted as a range, without reading them. ``stream_time`` is the committed
    stream time: a restored store may still have windows that have expired by then. Expired windows are
    deleted from the store once they span more than ``expired_span`` milliseconds.
    """

    def __init__(
        self,
        store: Store,
        key: Serde[K],
        value: Serde[V],
        *,
        retention: int,
        stream_time: int = -1,
        expired_span: int = 0,
    ) -> None:
        self._store = store
        self._key = key
        self._serialize = nullable(value.serialize)
        self._deserialize = _reading(store.name, value)
        self._retention = retention
        self._expired_span = expired_span
        self._deleting = 0
        """The commit in progress deletes windows that start before this time."""
        self._slice: dict[int, dict[K, V | None]] = {}
        self._uncommitted: dict[int, dict[K, V | None]] = {}
        self._cache: dict[int, dict[K, V | None]] = {}
        # Lower bounds of the layers' starts, as most checks for expired windows find none in them.
        self._changed_from = self._cache_from = _LATEST
        expired = max(0, stream_time - retention + 1)
        self._expired = self._expired_before = self._expired_committed = expired
        self._journal: list[tuple[int, K, Any]] | None = None
        # The range of the store's starts: others need no read.
        self._oldest, self._newest = _ends(store)

    @property
    def name(self) -> str:
        return self._store.name

    @property
    def dirty(self) -> int:
        """The number of entries that the next commit would write."""
        return sum(map(len, self._uncommitted.values())) + sum(map(len, self._slice.values()))

    @property
    def expired(self) -> int:
        """Windows that start before this time have expired."""
        return self._expired

    def get(self, start: int, key: K) -> V | None:
        return self.get_many(start, [key])[0]

    def get_many(self, start: int, keys: Sequence[K]) -> list[V | None]:
        """The values of one window's keys, with one read of the store for those that are not in memory."""
        if start < self._expired:
            return [None] * len(keys)
        layers = [layer[start] for layer in (self._slice, self._uncommitted, self._cache) if start in layer]
        return _look_up(layers, keys, partial(self._read, start))

    def put(self, start: int, key: K, value: V | None) -> None:
        """Set a value; ``None`` deletes."""
        self.put_many(start, {key: value})

    def put_many(self, start: int, entries: Mapping[K, V | None] | Iterable[tuple[K, V | None]]) -> None:
        """Set several values of one window; ``None`` deletes."""
        window = self._slice.get(start)
        if window is None:
            window = self._slice[start] = {}
            self._changed_from = min(self._changed_from, start)
        if self._journal is not None:
            entries = dict(entries)
            self._journal += [(start, key, window.get(key, _ABSENT)) for key in entries]
        window.update(entries)

    def changed(self) -> dict[int, dict[K, V | None]]:
        """The changes of completed slices since the last commit, by window start."""
        return self._uncommitted

    def changed_before(self, bound: int) -> Iterator[tuple[int, dict[K, V | None]]]:
        """The changes of windows that start before ``bound``, with the open slice, in order of start."""
        starts = {start for layer in self._changed(bound) for start in layer if start < bound}
        for start in sorted(starts):
            yield start, self._uncommitted.get(start, {}) | self._slice.get(start, {})

    def windows(self, low: int, high: int) -> Iterator[tuple[int, list[tuple[K, V]]]]:
        """The windows that start in ``[low, high)`` with their entries, in order of start and encoded key.

        While it runs, only windows that it has already returned may be changed.
        """
        low = max(low, self._expired)
        starts = {start for layer in self._changed(high) for start in layer if low <= start < high}
        changed: Iterable[tuple[int, list[Entry]]] = ((start, []) for start in sorted(starts))
        stored = groupby(self._stored(low, high), key=_start_of)
        both = merge(stored, changed, key=itemgetter(0))
        for start, group in groupby(both, key=itemgetter(0)):
            entries = self._entries(start, [entry for _, part in group for entry in part])
            if entries:
                yield start, entries

    def keys(self, low: int, high: int) -> list[tuple[int, K]]:
        """Starts and keys of the entries of windows that start in ``[low, high)``, in the order of both."""
        low = max(low, self._expired)
        encoded = [entry for entry, _ in self._stored(low, high)]
        decoded = self._key.deserialize([entry[8:] for entry in encoded])
        starts = [START.unpack_from(entry)[0] for entry in encoded]
        found: dict[bytes, tuple[int, K] | None] = dict(
            zip(encoded, zip(starts, decoded, strict=True), strict=True)
        )
        for layer in self._changed(high):
            changed = [
                (start, key, value is None)
                for start, window in layer.items()
                if low <= start < high
                for key, value in window.items()
            ]
            for (start, key, gone), raw in zip(
                changed, self._key.serialize([key for _, key, _ in changed]), strict=True
            ):
                found[START.pack(start) + raw] = None if gone else (start, key)
        return [place for _, place in sorted(found.items()) if place is not None]

    def entries(self) -> Iterator[tuple[tuple[int, K], V]]:
        """All entries by window start and key, in that order."""
        for start, entries in self.windows(0, _LATEST):
            for key, value in entries:
                yield (start, key), value

    def expire(self, stream_time: int) -> None:
        """Expire the windows whose ``retention`` has passed at that stream time."""
        self._expired = max(self._expired, stream_time - self._retention + 1)

    # --- for the task

    def mark(self) -> None:
        """Start to record changes, so that ``rollback`` can undo them."""
        self._journal = []

    def keep(self) -> None:
        """Keep the changes since ``mark``."""
        self._journal = None

    def rollback(self) -> None:
        """Undo the changes since ``mark``."""
        journal, self._journal = self._journal or [], None
        for start, key, before in reversed(journal):
            if before is _ABSENT:
                del self._slice[start][key]
            else:
                self._slice[start][key] = before

    def end_slice(self) -> None:
        """The slice is completed: its changes belong to the next commit."""
        if self._expired > self._expired_before:
            self._forget()
        for start, window in self._slice.items():
            known = self._uncommitted.get(start)
            if known is None:
                self._uncommitted[start] = window
            else:
                known.update(window)
        self._slice = {}
        self._expired_before = self._expired

    def drop_slice(self) -> None:
        """Discard the changes of the open slice."""
        self._slice = {}
        self._journal = None
        self._expired = self._expired_before

    def drop(self) -> None:
        """Discard all changes since the last commit."""
        self._slice, self._uncommitted = {}, {}
        self._journal = None
        self._expired = self._expired_before = self._expired_committed

    def take(self) -> Changes:
        """The encoded changes for the next commit."""
        windows = self._uncommitted
        keys = self._key.serialize([key for window in windows.values() for key in window])
        values = self._serialize([value for window in windows.values() for value in window.values()])
        prefixes = chain.from_iterable(
            repeat(START.pack(start), len(window)) for start, window in windows.items()
        )
        entries = dict(zip(map(bytes.__add__, prefixes, keys), values, strict=True))
        deleted = []
        self._deleting = 0
        if self._oldest + self._expired_span < self._expired:
            self._deleting = self._expired
            # Ranges that overlap make RocksDB slower with each one.
            first = self._oldest if self._expired_span else 0
            deleted.append(window_range(first, self._expired))
        return Changes(entries, deleted)

    def committed(self) -> None:
        """The changes that ``take`` returned are now in the store."""
        if self._uncommitted:
            self._oldest = min(self._oldest, *self._uncommitted)
            self._newest = max(self._newest, *self._uncommitted)
        self._oldest = max(self._oldest, self._deleting)
        self._expired_committed = self._expired
        self._cache, self._uncommitted = self._uncommitted, {}
        self._cache_from, self._changed_from = self._changed_from, min(self._slice, default=_LATEST)

    def _forget(self) -> None:
        """Remove expired windows from memory.

        This is done when the slice is completed, as an abandoned slice undoes its expiry. Deletions of single
        entries stay: they still have to be written to the changelog, where nothing expires.
        """
        expired = self._expired
        cache = (self._cache,) if self._cache_from < expired else ()
        for layer in (*self._changed(expired), *cache):
            for start in [start for start in layer if start < expired]:
                deleted = {key: None for key, value in layer.pop(start).items() if value is None}
                if deleted and layer is not self._cache:
                    layer[start] = deleted

    def _changed(self, bound: int) -> tuple[dict[int, dict[K, V | None]], ...]:
        """The layers of changes, later ones last; none if they have no window before ``bound``."""
        return (self._uncommitted, self._slice) if self._changed_from < bound else ()

    def _entries(self, start: int, stored: Sequence[Entry]) -> list[tuple[K, V]]:
        """The entries of a window: those stored, with the changes applied."""
        changed = self._uncommitted.get(start, {}) | self._slice.get(start, {})
        raw = [encoded[8:] for encoded, _ in stored]
        values = self._deserialize([payload for _, payload in stored])
        found: dict[bytes, tuple[K, V | None]] = dict(
            zip(raw, zip(self._key.deserialize(raw), values, strict=True), strict=True)
        )
        found.update(zip(self._key.serialize(list(changed)), changed.items(), strict=True))
        return [(key, value) for _, (key, value) in sorted(found.items(), key=_encoded) if value is not None]

    def _stored(self, low: int, high: int) -> Iterable[Entry]:
        if low >= high or self._newest < low or self._oldest >= high:
            return ()
        return self._store.scan(*window_range(low, high))

    def _read(self, start: int, keys: Sequence[K]) -> list[V | None]:
        if not self._oldest <= start <= self._newest:
            return [None] * len(keys)
        return list(self._deserialize(self._store.get_many(self._encode_keys(start, keys))))

    def _encode_keys(self, start: int, keys: Collection[K]) -> list[bytes]:
        prefix = START.pack(start)
        return [prefix + encoded for encoded in self._key.serialize(list(keys))]


def _look_up(
    layers: Sequence[Mapping[K, V | None]],
    keys: Sequence[K],
    read: Callable[[Sequence[K]], list[V | None]],
) -> list[V | None]:
    """The values of keys in the first layer that has them, with one ``read`` for all others."""
    if not layers:
        return read(keys)
    first, *others = layers
    if not first:
        return _look_up(others, keys, read)
    values: list[Any] = list(map(first.get, keys, repeat(_ABSENT)))
    absent = [row for row, value in enumerate(values) if value is _ABSENT]
    if absent:
        found = _look_up(others, [keys[row] for row in absent], read)
        for row, value in zip(absent, found, strict=True):
            values[row] = value
    return values


def _reading(store: str, value: Serde[V]) -> Callable[[Sequence[bytes | None]], list[V | None]]:
    """Deserialize stored values. A failure is a ``StateError``, not one of the record being processed."""
    read = nullable(value.deserialize)

    def run(payloads: Sequence[bytes | None]) -> list[V | None]:
        try:
            return list(read(payloads))
        except Exception as error:
            raise StateError(
                f"store {store!r} has a value that {value.name} cannot decode: {error!r:.200}",
                hint="something else wrote to its changelog topic or its files, or the serde cannot decode "
                "what it has encoded. Delete this worker's folder in state_dir: the restore from the "
                "changelog then names the record",
            ) from error

    return run


def prefix_stop(prefix: bytes) -> bytes | None:
    """The first key after all those that begin with ``prefix``; ``None`` if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def _start_of(entry: Entry) -> int:
    start: int = START.unpack_from(entry[0])[0]
    return start


def _ends(store: Store) -> tuple[int, int]:
    """The oldest and the newest start in a windowed store; an empty range if it has no entries."""
    first = next(store.scan(), None)
    last = next(store.scan(reverse=True), None)
    if first is None or last is None:
        return _LATEST, -1
    return START.unpack_from(first[0])[0], START.unpack_from(last[0])[0]


_LATEST = 1 << 63

_encoded = itemgetter(0)
