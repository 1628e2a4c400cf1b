"""In-memory stores: for tests, and for state that is restored at every start."""

from __future__ import annotations

import time
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING

# The package ships no types.
from sortedcontainers import SortedDict  # type: ignore[import-untyped]

from streams.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.state.store import Changes, Entry

CHUNK = 1000
"""Entries that a scan copies at a time, while holding the lock."""

BYTES_PER_ENTRY = 200
"""The approximate overhead of an entry in bytes: two ``bytes`` objects and their slots in the map."""


class _Content:
    """The content of a database, which outlives the database object, as files do."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.stores: dict[str, SortedDict] = {}
        self.metadata: dict[str, bytes] = {}
        self.opened: MemoryDatabase | None = None
        self.closed_at = 0.0

    def of(self, store: str) -> SortedDict:
        found = self.stores.get(store)
        if found is None:
            found = self.stores[store] = SortedDict()
        return found


class MemoryStore:
    """A sorted map, protected by its database's lock: readers see a ``write`` completely or not at all."""

    def __init__(self, name: str, database: MemoryDatabase) -> None:
        self._name = name
        self._database = database

    @property
    def name(self) -> str:
        return self._name

    def get(self, key: bytes) -> bytes | None:
        content = self._database.content()
        with content.lock:
            value: bytes | None = content.of(self._name).get(key)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        content = self._database.content()
        with content.lock:
            return list(map(content.of(self._name).get, keys))

    def scan(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[Entry]:
        while chunk := self._chunk(start, stop, reverse=reverse):
            yield from chunk
            if len(chunk) < CHUNK:
                return
            last = chunk[-1][0]
            if reverse:
                stop = last
            else:
                start = last + b"\x00"

    def approximate_count(self) -> int:
        content = self._database.content()
        with content.lock:
            return len(content.of(self._name))

    def _chunk(self, start: bytes | None, stop: bytes | None, *, reverse: bool) -> list[Entry]:
        content = self._database.content()
        with content.lock:
            entries = content.of(self._name)
            keys = entries.irange(start, stop, inclusive=(True, False), reverse=reverse)
            return [(key, entries[key]) for key in islice(keys, CHUNK)]


class MemoryDatabase:
    """One task's maps, until it is closed."""

    def __init__(self, content: _Content, stores: Sequence[str], partition: int) -> None:
        self._content: _Content | None = content
        self._names = tuple(stores)
        self._partition = partition
        self._stores = {name: MemoryStore(name, self) for name in stores}

    def content(self) -> _Content:
        """The content of the database. Raises ``StateError`` if it is closed."""
        if self._content is None:
            raise StateError(f"the stores {self._names} of partition {self._partition} are closed")
        return self._content

    def store(self, name: str) -> MemoryStore:
        self.content()
        return self._stores.setdefault(name, MemoryStore(name, self))

    def metadata(self) -> dict[str, bytes]:
        return dict(self.content().metadata)

    def write(self, changes: Mapping[str, Changes], metadata: Mapping[str, bytes]) -> None:
        content = self.content()
        with content.lock:
            for name, (entries, deleted) in changes.items():
                store = content.of(name)
                for start, stop in deleted:
                    for key in list(store.irange(start, stop, inclusive=(True, False))):
                        del store[key]
                for key, value in entries.items():
                    if value is None:
                        store.pop(key, None)
                    else:
                        store[key] = value
            content.metadata.update(metadata)

    def drop(self, name: str) -> None:
        content = self.content()
        with content.lock:
            content.stores[name] = SortedDict()

    def close(self) -> None:
        content, self._content = self._content, None
        if content is not None:
            content.opened, content.closed_at = None, time.monotonic()


class MemoryDatabases:
    """Databases that last as long as this object: closed ones keep their content."""

    def __init__(self) -> None:
        self._contents: dict[tuple[str, int], _Content] = {}

    def open(self, stores: Sequence[str], partition: int) -> MemoryDatabase:
        places = [(store, partition) for store in stores]
        place = next((place for place in places if place in self._contents), places[0])
        content = self._contents.setdefault(place, _Content())
        if content.opened is not None:
            raise StateError(
                f"the stores {tuple(stores)} of partition {partition} are already open",
                hint="close the database before opening it again",
            )
        content.opened = self._opened(content, stores, partition)
        return content.opened

    def _opened(self, content: _Content, stores: Sequence[str], partition: int) -> MemoryDatabase:
        return MemoryDatabase(content, stores, partition)

    def destroy(self, stores: Sequence[str], partition: int) -> None:
        for store in stores:
            content = self._contents.pop((store, partition), None)
            if content is not None and content.opened is not None:
                content.opened.close()

    def delete_unused(self, seconds: float) -> list[tuple[str, int]]:
        now = time.monotonic()
        unused = [
            place
            for place, content in self._contents.items()
            if content.opened is None and now - content.closed_at >= seconds
        ]
        for place in unused:
            del self._contents[place]
        return unused

    def memory_bytes(self) -> int:
        total = 0
        for content in list(self._contents.values()):
            with content.lock:
                for store in content.stores.values():
                    # Measuring every entry would scan all state, so the size is estimated by a sample.
                    sample = [len(key) + len(value) for key, value in islice(store.items(), CHUNK)]
                    if sample:
                        total += len(store) * (BYTES_PER_ENTRY + sum(sample) // len(sample))
        return total

    def close(self) -> None:
        for content in list(self._contents.values()):
            if content.opened is not None:
                content.opened.close()
