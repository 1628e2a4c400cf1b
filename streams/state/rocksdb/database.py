"""Stores on disk, in RocksDB: they may be larger than memory, and outlive the process.

A task's database is one folder, ``<folder>/<store>/<partition>``. Each store is a column family,
``store.<name>``; the metadata is in the default one. All share a write-ahead log, which makes ``write``
atomic: it is written to the operating system before ``write`` returns, and to the disk some time later.
RocksDB syncs the log before it relies on flushed data, so that a crash of the machine loses the end of the
history and never a part in the middle.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import msgspec
from rocksdict import Cache, Rdict, ReadOptions, WriteBatch, WriteBufferManager

from streams.errors import StateError
from streams.events import Event, get_logger
from streams.process.open_files import raise_limit
from streams.state.rocksdb.damage import (
    Damaged,
    check_whole,
    complete_tables,
    explained,
    is_damage,
    left_behind,
    set_aside,
    set_aside_before,
)
from streams.state.rocksdb.options import LEAST_FILES, DatabaseOptions, database_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rocksdict import ColumnFamily

    from streams.state.store import Changes, Entry

CHUNK = 1000
"""The number of entries that a scan reads at a time."""

OTHER_FILES = 256
"""Files for the rest of the process (connections, logs, modules); at most half of the process's limit."""

_PREFIX = "store."
"""Distinguishes stores from RocksDB's own ``default``, which is a valid name for a store."""

_COLUMNS_KEY = b"\0columns"
"""The key of the mapping from stores to column families, in the default column family."""

log = get_logger()


class RocksStore:
    """A column family.

    RocksDB allows reads from any thread, but rocksdict raises if a column family is closed during a read. So
    a lock serializes the reads of a store and ``close``.
    """

    def __init__(self, name: str, folder: Path, column: Rdict) -> None:
        self._name = name
        self._folder = folder
        self._column: Rdict | None = column
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._name

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            column = self._opened()
            try:
                value: bytes | None = column.get(key)
            except Exception as error:
                raise self._failed("read", error) from error
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        # rocksdict takes any other kind of sequence for a single key.
        asked: list[Any] = list(keys)
        with self._lock:
            column = self._opened()
            try:
                values: Any = column.get(asked)
            except Exception as error:
                raise self._failed("read", error) from error
        return cast("list[bytes | None]", values)

    def scan(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[Entry]:
        # An iterator keeps the database open, even if its reader never finishes, so each chunk has its own.
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
        """RocksDB's estimate, in which an entry counts once for each write since the last compaction."""
        with self._lock:
            column = self._opened()
            try:
                return column.property_int_value("rocksdb.estimate-num-keys") or 0
            except Exception as error:
                raise self._failed("read", error) from error

    def replace(self, column: Rdict) -> None:
        """Use another column family from now on."""
        with self._lock:
            self._column = column

    def close(self) -> None:
        """Flush to disk and close. Waits for readers."""
        with self._lock:
            column, self._column = self._column, None
            if column is not None:
                # What could not be flushed is in the write-ahead log.
                with suppress(Exception):
                    column.close()

    def _chunk(self, start: bytes | None, stop: bytes | None, *, reverse: bool) -> list[Entry]:
        if start is not None and stop is not None and start >= stop:
            return []
        # rocksdict sets a lower bound as the upper one, so the lower bound is checked here. It keeps no
        # reference to the bound: ``stop`` must live as long as the iterator.
        bounds = ReadOptions()
        if stop is not None:
            bounds.set_iterate_upper_bound(stop)
        least = start if reverse and start is not None else b""
        with self._lock:
            column = self._opened()
            iterator = None
            try:
                iterator = column.iter(bounds)
                if reverse:
                    iterator.seek_to_last()
                elif start is not None:
                    iterator.seek(start)
                else:
                    iterator.seek_to_first()
                read_key, read_value = iterator.key, iterator.value
                move = iterator.prev if reverse else iterator.next
                chunk: list[Entry] = []
                while len(chunk) < CHUNK and (key := read_key()) is not None and key >= least:
                    chunk.append((key, read_value()))
                    move()
                # At a damaged block, an iterator looks as if it had reached its end.
                iterator.status()
            except Exception as error:
                raise self._failed("read", error) from error
            finally:
                # Otherwise a traceback that is kept somewhere would keep the database open.
                iterator = read_key = read_value = move = None  # type: ignore[assignment]
        return chunk

    def _opened(self) -> Rdict:
        if self._column is None:
            raise StateError(f"store {self._name} in {self._folder} is closed")
        return self._column

    def _failed(self, doing: str, error: Exception) -> StateError:
        return explained(f"cannot {doing} store {self._name} in {self._folder}", self._folder, error)


class RocksDatabase:
    """The column families of a task. Raises ``Damaged`` if it could be opened in an empty folder."""

    def __init__(self, folder: Path, stores: Sequence[str], choices: DatabaseOptions) -> None:
        options, at_rest = choices.options, choices.at_rest
        self.folder = folder
        self._options = options
        self._stores: dict[str, RocksStore] = {}
        self._handles: dict[str, ColumnFamily] = {}
        self._database: Rdict | None = None
        self._columns: dict[str, str] = {}
        """The column family of each store, including stores that this program does not have."""
        path = str(folder)
        listed: set[str] = set()
        # Listing takes no lock, so its errors are not reliable: opening reports them again, with the lock.
        with suppress(Exception):
            listed = {*Rdict.list_cf(path)}
        columns = {*listed, *(_PREFIX + store for store in stores)}
        try:
            tables = complete_tables(folder)
            # A compaction could delete known tables before they are compared with the files.
            chosen = at_rest if tables else options
            self._database = Rdict(
                path, chosen, dict.fromkeys(columns, chosen) | {"default": choices.for_metadata}
            )
            self._columns = _columns(self._database)
            check_whole(self._database, tables, listed, self._columns)
            for store in stores:
                self._use(store)
            stale = {column for column in listed if left_behind(column, self._columns)}
            for column in stale:
                self._database.drop_column_family(column)
            if tables:
                for column in columns - stale:
                    self._database.get_column_family(column).set_options(
                        {"disable_auto_compactions": "false"}
                    )
            _metadata(self._database)
        except Exception as error:
            self.close()
            if isinstance(error, Damaged):
                raise
            if is_damage(str(error)):
                raise Damaged(str(error)) from error
            raise explained(f"cannot open the state in {folder}", folder, error) from error

    @property
    def closed(self) -> bool:
        return self._database is None

    def store(self, name: str) -> RocksStore:
        database = self._opened()
        store = self._stores.get(name)
        if store is not None:
            return store
        try:
            database.create_column_family(_PREFIX + name, self._options)
            return self._use(name)
        except Exception as error:
            raise explained(f"cannot create store {name} in {self.folder}", self.folder, error) from error

    def metadata(self) -> dict[str, bytes]:
        database = self._opened()
        try:
            return _metadata(database)
        except Exception as error:
            raise explained(f"cannot read the metadata in {self.folder}", self.folder, error) from error

    def write(self, changes: Mapping[str, Changes], metadata: Mapping[str, bytes]) -> None:
        database = self._opened()
        batch = WriteBatch(raw_mode=True)
        try:
            for name, (entries, deleted) in changes.items():
                self.store(name)
                for start, stop in deleted:
                    # RocksDB takes a range with reversed bounds for a broken log, and stops all writing.
                    if start < stop:
                        batch.delete_range(start, stop, self._handles[name])
                batch.set_default_column_family(self._handles[name])
                for key, value in entries.items():
                    if value is None:
                        del batch[key]
                    else:
                        batch[key] = value
            batch.set_default_column_family(None)
            for text, value in metadata.items():
                batch[text.encode()] = value
            try:
                database.write(batch)
            except Exception as error:
                raise explained(f"cannot write to {self.folder}", self.folder, error) from error
        finally:
            # Otherwise a traceback that is kept somewhere would keep the database open.
            batch.set_default_column_family(None)
            del database

    def drop(self, name: str) -> None:
        database = self._opened()
        self.store(name)
        try:
            old = self._columns[name]
            new = _successor(name, old)
            # The new one has another name, so that they cannot be confused.
            database.create_column_family(new, self._options)
            self._use(name, new)
            # If a reader still uses it, its files are deleted when the reader is done.
            database.drop_column_family(old)
        except Exception as error:
            raise explained(f"cannot empty store {name} in {self.folder}", self.folder, error) from error

    def close(self) -> None:
        self._handles.clear()
        # The metadata is flushed last, so that it is never ahead of the stores.
        for store in self._stores.values():
            store.close()
        database, self._database = self._database, None
        if database is not None:
            # What could not be flushed is in the write-ahead log.
            with suppress(Exception):
                database.close()
            # The folder's modification time is when it was last used, for ``delete_unused``.
            with suppress(OSError):
                os.utime(self.folder)

    def _use(self, name: str, column: str | None = None) -> RocksStore:
        """Open a store's column family: the given one, else its current one, else its first one."""
        database = self._opened()
        column = column or self._columns.get(name, _PREFIX + name)
        if self._columns.get(name) != column:
            columns = self._columns | {name: column}
            database[_COLUMNS_KEY] = msgspec.json.encode(columns)
            self._columns = columns
        self._handles[name] = database.get_column_family_handle(column)
        opened = database.get_column_family(column)
        store = self._stores.get(name)
        if store is None:
            store = self._stores[name] = RocksStore(name, self.folder, opened)
        else:
            store.replace(opened)
        return store

    def _opened(self) -> Rdict:
        if self._database is None:
            raise StateError(f"the state in {self.folder} is closed")
        return self._database


class RocksDatabases:
    """Databases under one folder, for one process at a time.

    ``memory_bytes`` limits the memory of all of them together: cached blocks with their indexes and filters,
    and write buffers, which get half of it. When that half is full, the database that writes next flushes its
    own buffers. Only what is in use at the moment may exceed the limit.

    ``tasks`` is the maximum number of databases at the same time. They share the files that this process may
    open. If its soft limit is too low for them, it is raised to what they need, at most to the hard limit. If
    that is not enough, ``open`` raises ``StateError``, so that RocksDB does not reach the limit in the middle
    of a write.
    """

    def __init__(self, folder: Path, memory_bytes: int, *, tasks: int = 1) -> None:
        self._folder = folder
        self._file_limit = raise_limit(OTHER_FILES + tasks * LEAST_FILES)
        self._tasks = tasks
        self._cache = Cache(memory_bytes)
        # Writes must not stall for memory, as rocksdict holds the global interpreter lock while it writes.
        buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            memory_bytes // 2, False, self._cache
        )
        files = self._for_databases() // max(tasks, 1)
        self._choices = DatabaseOptions(
            *(database_options(memory_bytes, self._cache, buffers, tasks, files) for _ in range(3))
        )
        self._choices.at_rest.set_disable_auto_compactions(True)
        self._choices.for_metadata.set_memtable_prefix_bloom_ratio(0.0)
        self._databases: dict[Path, RocksDatabase] = {}

    def open(self, stores: Sequence[str], partition: int) -> RocksDatabase:
        places = [self._folder / store / str(partition) for store in stores]
        try:
            place = next((place for place in places if place.exists()), places[0])
        except OSError as error:
            raise explained(f"cannot search for state in {self._folder}", self._folder, error) from error
        held = self._databases.get(place)
        if held is not None and not held.closed:
            raise StateError(
                f"the state in {place} is already open", hint="close the database before opening it again"
            )
        self._require_files(place)
        damage = None
        try:
            database = RocksDatabase(place, stores, self._choices)
        except Damaged as error:
            damage = str(error)
        if damage is not None:
            try:
                aside = set_aside(place)
                log.warning(
                    Event.STATE_DAMAGED,
                    stores=list(stores),
                    partition=partition,
                    folder=str(place),
                    moved_to=str(aside),
                    error=damage,
                )
                database = RocksDatabase(place, stores, self._choices)
            except (OSError, Damaged) as error:
                raise explained(f"cannot replace the damaged state in {place}", place, error) from error
        self._databases[place] = database
        return database

    def destroy(self, stores: Sequence[str], partition: int) -> None:
        # Under all stores, as the next ``open`` would find a remaining folder.
        for store in stores:
            place = self._folder / store / str(partition)
            held = self._databases.pop(place, None)
            if held is not None:
                held.close()
            try:
                if place.exists():
                    # It fails if another process has the database open.
                    Rdict.destroy(str(place))
                # It leaves files that do not belong to a database.
                if place.exists():
                    shutil.rmtree(place)
                for aside in set_aside_before(place):
                    shutil.rmtree(aside)
            except Exception as error:
                raise explained(f"cannot delete the state in {place}", place, error) from error

    def delete_unused(self, seconds: float) -> list[tuple[str, int]]:
        deleted = []
        for place in sorted(self._folder.glob("*/*")):
            held = self._databases.get(place)
            if not place.name.isdecimal() or (held is not None and not held.closed):
                continue
            if time.time() - place.stat().st_mtime >= seconds:
                self.destroy([place.parent.name], int(place.name))
                deleted.append((place.parent.name, int(place.name)))
        return deleted

    def memory_bytes(self) -> int:
        return self._cache.get_usage()

    def _for_databases(self) -> int:
        """The number of open files that the databases may use together."""
        return max(0, self._file_limit - min(OTHER_FILES, self._file_limit // 2))

    def _require_files(self, place: Path) -> None:
        opened = sum(not database.closed for database in self._databases.values())
        if (opened + 1) * LEAST_FILES <= self._for_databases():
            return
        needed = OTHER_FILES + max(self._tasks, opened + 1) * LEAST_FILES
        self._file_limit = raise_limit(needed)
        if (opened + 1) * LEAST_FILES <= self._for_databases():
            return
        raise StateError(
            f"the state in {place} cannot be opened: this process may have {self._file_limit} files open, "
            f"which is only enough for {opened} tasks with stores",
            hint=f"raise the hard limit to {needed} or more (ulimit -n {needed}, LimitNOFILE= of systemd, "
            "--ulimit nofile= of Docker), or start more workers",
        )

    def close(self) -> None:
        for database in self._databases.values():
            database.close()
        self._databases.clear()


def _columns(database: Rdict) -> dict[str, str]:
    found: Any = database.get(_COLUMNS_KEY)
    return {} if found is None else msgspec.json.decode(found, type=dict[str, str])


def _successor(store: str, column: str) -> str:
    """The name of the column family that a store has after ``column``."""
    number = int(column.partition(".")[0].removeprefix("store") or 1)
    return f"store{number + 1}.{store}"


def _metadata(database: Rdict) -> dict[str, bytes]:
    found = {}
    iterator = None
    try:
        iterator = database.iter()
        iterator.seek_to_first()
        while (key := iterator.key()) is not None:
            if key != _COLUMNS_KEY:
                found[key.decode()] = iterator.value()
            iterator.next()
        iterator.status()
    finally:
        # Otherwise a traceback that is kept somewhere would keep the database open.
        del iterator
    return found
