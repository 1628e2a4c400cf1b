"""A processor's store that hands out and keeps copies, so that only what is put changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from streams.snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class RevertibleStore(Protocol):
    """A store with what a task does to it besides what a processor does."""

    def get(self, key: Any) -> Any: ...

    def get_many(self, keys: Sequence[Any]) -> list[Any]: ...

    def put(self, key: Any, value: Any) -> None: ...

    def put_many(self, entries: Mapping[Any, Any]) -> None: ...

    def delete(self, key: Any) -> None: ...

    def scan(
        self, start: Any = None, stop: Any = None, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]: ...

    def prefix(self, prefix: bytes) -> Iterator[tuple[Any, Any]]: ...

    def mark(self) -> None:
        """From here on, changes may be taken back by ``rollback``."""

    def keep(self) -> None:
        """The changes since ``mark`` stay."""

    def rollback(self) -> None:
        """Take back the changes since ``mark``."""


class SnapshotStore:
    """See ``streams.processor.KeyValueStore``. The store beneath keeps values as objects until a commit.

    A value is written and read at a commit only. If the object that was put, or one that was got, were the
    store's own, changing it would change the store: what a failed call or an aborted transaction did could
    not be taken back, and a restored store would differ.
    """

    def __init__(self, store: RevertibleStore) -> None:
        self._store = store
        self.mark = store.mark
        self.keep = store.keep
        self.rollback = store.rollback

    def get(self, key: Any) -> Any:
        """The value, or ``None``."""
        return snapshot(self._store.get(key))

    def get_many(self, keys: Sequence[Any]) -> list[Any]:
        """The values of these keys, in one read."""
        return list(map(snapshot, self._store.get_many(keys)))

    def put(self, key: Any, value: Any) -> None:
        """Set a value; ``None`` deletes."""
        self._store.put(key, snapshot(value))

    def put_many(self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        """Set several values; ``None`` deletes."""
        self._store.put_many({key: snapshot(value) for key, value in dict(entries).items()})

    def delete(self, key: Any) -> None:
        """Remove the entry if there is one."""
        self._store.delete(key)

    def scan(
        self, start: Any = None, stop: Any = None, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """Entries from ``start`` up to, without, ``stop``, in the order of their encoded keys."""
        for key, value in self._store.scan(start, stop, reverse=reverse):
            yield key, snapshot(value)

    def prefix(self, prefix: bytes) -> Iterator[tuple[Any, Any]]:
        """Entries whose encoded key begins so, in order."""
        for key, value in self._store.prefix(prefix):
            yield key, snapshot(value)
