"""What stores are, as protocols: bytes in, bytes out, in key order; no Kafka.

A task has one ``Database`` with a ``Store`` for each store that its subtopology names. The implementations
are ``memory`` and ``rocksdb``; what is not committed yet never reaches them (see ``buffered``).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Entry: TypeAlias = "tuple[bytes, bytes]"
"""A key and its value."""


START = Struct(">Q")
"""How a window's start leads a windowed store's keys, in milliseconds since the epoch: what is old lies
together at the beginning."""


def window_range(low: int, high: int) -> tuple[bytes, bytes]:
    """The keys ``[start, stop)`` of windows that start at ``low`` or later and before ``high``."""
    return START.pack(low), START.pack(high)


class Store(Protocol):
    """An ordered map from bytes to bytes. Keys compare as unsigned bytes and are not empty; values may be.

    Reading is allowed from any thread, also while the task's thread writes; a scan then sees the state at
    its start or later, each entry as a whole. Every call raises ``StateError`` when the database is closed
    or found to be damaged.
    """

    @property
    def name(self) -> str: ...

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None`` where there is none."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As ``get`` for each key, in one call: what makes a store on disk fast."""

    def scan(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[Entry]:
        """Entries with ``start <= key < stop`` in key order, or backwards; ``None`` leaves that side open."""

    def approximate_count(self) -> int:
        """About how many entries there are; cheap."""


class Changes(NamedTuple):
    """What one commit does to one store. ``entries`` win over ``deleted``, whatever their keys."""

    entries: Mapping[bytes, bytes | None]
    """New values; ``None`` deletes."""

    deleted: Sequence[tuple[bytes, bytes]] = ()
    """Ranges ``[start, stop)`` that are deleted as a whole, before the entries are written. One that is
    empty, or the wrong way round, deletes nothing."""


class Database(Protocol):
    """One task's stores, written together. Used by one thread, apart from reading its stores."""

    def store(self, name: str) -> Store:
        """The store of that name, made when there is none. The same object each time."""

    def metadata(self) -> dict[str, bytes]:
        """What ``write`` was given as metadata, by key."""

    def write(self, changes: Mapping[str, Changes], metadata: Mapping[str, bytes]) -> None:
        """Apply all changes and set all metadata given, or nothing of it, whatever happens meanwhile.

        It survives the process, not necessarily the machine: what the machine loses, the changelog has.
        """

    def drop(self, name: str) -> None:
        """Empty one store."""

    def close(self) -> None:
        """Release the files. The database may be opened again. Closing twice is allowed."""


class Databases(Protocol):
    """Where a worker's databases come from; they share one budget of memory."""

    def open(self, stores: Sequence[str], partition: int) -> Database:
        """The database of the task that has these stores (at least one, by name) for that partition number.

        What an earlier process, or an earlier version of the program with more, fewer or reordered stores,
        kept for it is found again. Raises ``StateError`` where it cannot be opened for a reason that
        deleting it would not mend, e.g. because it is open already; a database that is damaged is set aside
        and an empty one opened.
        """

    def destroy(self, stores: Sequence[str], partition: int) -> None:
        """Delete what is kept for that task, under whichever of its stores. Closes it if it is open."""

    def delete_unused(self, seconds: float) -> list[tuple[str, int]]:
        """Delete what was closed so many seconds ago or earlier; each one's store and partition number.

        Raises ``StateError`` where that is not possible.
        """

    def memory_bytes(self) -> int:
        """Memory that the databases use now, as far as they know."""

    def close(self) -> None:
        """Close all databases that are still open."""
