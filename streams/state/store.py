"""The protocols of stores: ordered maps of bytes, independent of Kafka.

A task has one ``Database`` with a ``Store`` for each store of its subtopology. The implementations are
``memory`` and ``rocksdb``; they never contain uncommitted changes (see ``buffered``).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Entry: TypeAlias = "tuple[bytes, bytes]"
"""A key and its value."""


START = Struct(">Q")
"""The prefix of a windowed store's keys: the window's start in milliseconds since the epoch, so that old
windows are together at the beginning."""


def window_range(low: int, high: int) -> tuple[bytes, bytes]:
    """The range of keys ``[start, stop)`` of windows with ``low <= window start < high``."""
    return START.pack(low), START.pack(high)


class Store(Protocol):
    """An ordered map from bytes to bytes. Keys compare as unsigned bytes and are not empty; values may be.

    Any thread may read, also while the task's thread writes; a scan then sees the state at its start or
    later, but never a part of an entry. Every call raises ``StateError`` if the database is closed or
    damaged.
    """

    @property
    def name(self) -> str: ...

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None`` if there is none."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same as ``get`` for each key, in one call, which is much faster for a store on disk."""

    def scan(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[Entry]:
        """Entries with ``start <= key < stop`` in key order, or backwards; ``None`` leaves that side open."""

    def approximate_count(self) -> int:
        """The approximate number of entries; cheap."""


class Changes(NamedTuple):
    """The changes of a store in one commit. ``entries`` are applied after ``deleted``."""

    entries: Mapping[bytes, bytes | None]
    """New values; ``None`` deletes."""

    deleted: Sequence[tuple[bytes, bytes]] = ()
    """Ranges ``[start, stop)`` to delete before the entries are written. A range that is empty, or has its
    bounds in the wrong order, deletes nothing."""


class Database(Protocol):
    """The stores of a task, written atomically. Only one thread may use it, except for reading its stores."""

    def store(self, name: str) -> Store:
        """The store of that name, created if it does not exist. Returns the same object each time."""

    def metadata(self) -> dict[str, bytes]:
        """The metadata that was set by ``write``, by key."""

    def write(self, changes: Mapping[str, Changes], metadata: Mapping[str, bytes]) -> None:
        """Apply all changes and set the metadata atomically.

        It survives the end of the process, but not necessarily of the machine; the changelog has what is lost
        then.
        """

    def drop(self, name: str) -> None:
        """Delete all entries of a store."""

    def close(self) -> None:
        """Close the files. The database may be opened again. A second call does nothing."""


class Databases(Protocol):
    """Opens and deletes a worker's databases, which share a memory budget."""

    def open(self, stores: Sequence[str], partition: int) -> Database:
        """Open the database of the task with these stores (at least one, by name) and that partition number.

        It finds the database of an earlier process, also of an earlier version of the program with more,
        fewer or reordered stores. Raises ``StateError`` if it cannot be opened for a reason that deleting it
        would not fix, e.g. because it is already open. A damaged database is moved aside, and an empty one
        opened.
        """

    def destroy(self, stores: Sequence[str], partition: int) -> None:
        """Delete the task's database, whichever of its stores it is kept under. Closes it if it is open."""

    def delete_unused(self, seconds: float) -> list[tuple[str, int]]:
        """Delete databases that were closed at least ``seconds`` ago; returns their stores and partitions.

        Raises ``StateError`` if that is not possible.
        """

    def memory_bytes(self) -> int:
        """The memory that the databases currently use, as far as it is known."""

    def close(self) -> None:
        """Close all databases that are still open."""
