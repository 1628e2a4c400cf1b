"""Stores on disk, in RocksDB: they may be larger than memory, and outlive the process.

A task's database is one folder, ``<folder>/<store>/<partition>``. Each store is a column family,
``store.<name>``; the metadata is in the default one. All share a write-ahead log, which makes ``write``
atomic: it is written to the operating system before ``write`` returns, and to the disk some time later.
RocksDB syncs the log before it relies on flushed data, so that a crash of the machine loses the end of the
history and never a part in the middle.

RocksDB does not detect a MANIFEST with a broken end: it opens an earlier version of the database, without the
tables and column families that only the lost part names, and applies newer log files to it. So a database
counts as damaged if there are tables of its stores that it does not know after opening, or if a column family
is missing that it had before according to the metadata.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
)

from streams.errors import StateError
from streams.events import Event, get_logger
from streams.process.open_files import raise_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rocksdict import ColumnFamily

    from streams.state.store import Changes, Entry

CHUNK = 1000
"""The number of entries that a scan reads at a time."""

MIB = 1024 * 1024

LEAST_FILES = 20
"""The minimum number of open files of a database: ten for itself, the others for the last used tables.

RocksDB accepts no lower limit."""

MOST_FILES = 100
"""The number of open files above which a database does not become faster."""

OTHER_FILES = 256
"""Files for the rest of the process (connections, logs, modules); at most half of the process's limit."""

_PREFIX = "store."
"""Distinguishes stores from RocksDB's own ``default``, which is a valid name for a store."""

_COLUMNS_KEY = b"\0columns"
"""The key of the mapping from stores to column families, in the default column family."""

_TABLE_MAGIC = 0x88E241B785F4CFF7.to_bytes(8, "little")
"""The end of a complete table file (RocksDB's block-based format)."""

_TABLE_TAIL_BYTES = 8192
"""The size of a table's end with its properties, which are before the footer and take up to 2 KiB."""

_TABLE_COLUMN = re.compile(rb"\x16\x04([\x01-\x7f])name")
"""The bytes before the name of a table's column family: the property ``rocksdb.column.family.name``, which
shares 22 (0x16) bytes with the previous one and differs in 4, followed by the length of its value.

Names of 128 bytes or more are not found, so that the table counts as unknown.
"""

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
        return _explained(f"cannot {doing} store {self._name} in {self._folder}", self._folder, error)


class RocksDatabase:
    """The column families of a task. Raises ``_Damaged`` if it could be opened in an empty folder."""

    def __init__(self, folder: Path, stores: Sequence[str], choices: _Choices) -> None:
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
            tables = _tables(folder)
            # A compaction could delete known tables before they are compared with the files.
            chosen = at_rest if tables else options
            self._database = Rdict(
                path, chosen, dict.fromkeys(columns, chosen) | {"default": choices.for_metadata}
            )
            self._columns = _columns(self._database)
            _check_whole(self._database, tables, listed, self._columns)
            for store in stores:
                self._use(store)
            stale = {column for column in listed if _left(column, self._columns)}
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
            if isinstance(error, _Damaged):
                raise
            if _is_damage(str(error)):
                raise _Damaged(str(error)) from error
            raise _explained(f"cannot open the state in {folder}", folder, error) from error

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
            raise _explained(f"cannot create store {name} in {self.folder}", self.folder, error) from error

    def metadata(self) -> dict[str, bytes]:
        database = self._opened()
        try:
            return _metadata(database)
        except Exception as error:
            raise _explained(f"cannot read the metadata in {self.folder}", self.folder, error) from error

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
                raise _explained(f"cannot write to {self.folder}", self.folder, error) from error
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
            raise _explained(f"cannot empty store {name} in {self.folder}", self.folder, error) from error

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


class _Choices(NamedTuple):
    """RocksDB's options for one database."""

    options: Options
    at_rest: Options
    """The same, without compactions."""

    for_metadata: Options
    """For the default column family, which has a few entries."""


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
        self._choices = _Choices(
            *(_options(memory_bytes, self._cache, buffers, tasks, files) for _ in range(3))
        )
        self._choices.at_rest.set_disable_auto_compactions(True)
        self._choices.for_metadata.set_memtable_prefix_bloom_ratio(0.0)
        self._databases: dict[Path, RocksDatabase] = {}

    def open(self, stores: Sequence[str], partition: int) -> RocksDatabase:
        places = [self._folder / store / str(partition) for store in stores]
        try:
            place = next((place for place in places if place.exists()), places[0])
        except OSError as error:
            raise _explained(f"cannot search for state in {self._folder}", self._folder, error) from error
        held = self._databases.get(place)
        if held is not None and not held.closed:
            raise StateError(
                f"the state in {place} is already open", hint="close the database before opening it again"
            )
        self._require_files(place)
        damage = None
        try:
            database = RocksDatabase(place, stores, self._choices)
        except _Damaged as error:
            damage = str(error)
        if damage is not None:
            try:
                aside = _set_aside(place)
                log.warning(
                    Event.STATE_DAMAGED,
                    stores=list(stores),
                    partition=partition,
                    folder=str(place),
                    moved_to=str(aside),
                    error=damage,
                )
                database = RocksDatabase(place, stores, self._choices)
            except (OSError, _Damaged) as error:
                raise _explained(f"cannot replace the damaged state in {place}", place, error) from error
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
                for aside in _asides(place):
                    shutil.rmtree(aside)
            except Exception as error:
                raise _explained(f"cannot delete the state in {place}", place, error) from error

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


class _Damaged(Exception):
    """The files exist and are not a valid database."""


def _options(memory_bytes: int, cache: Cache, buffers: WriteBufferManager, tasks: int, files: int) -> Options:
    """The options of all databases and column families, which share memory, threads and open files.

    Each of the ``tasks`` databases may have ``files`` open files.
    """
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)

    options.set_write_buffer_manager(buffers)
    write_buffer = min(max(memory_bytes // 8, MIB), 32 * MIB)
    options.set_write_buffer_size(write_buffer)
    options.set_max_write_buffer_number(4)
    # The default is an eighth of the write buffer, which each column family allocates with its first entry.
    options.set_arena_block_size(64 * 1024)
    # All column families are flushed together: otherwise the rarely written metadata would keep old logs.
    options.set_atomic_flush(True)
    # After a crash, the log is replayed while rocksdict holds the global interpreter lock.
    options.set_max_total_wal_size(64 * MIB)

    # A filter for the write buffer halves the cost of lookups without a result. It is allocated with each
    # write buffer, and the filters of hundreds of databases would take all of the memory, so it is limited.
    filters = memory_bytes / 8 / max(tasks, 1)
    options.set_memtable_prefix_bloom_ratio(min(0.02, filters / write_buffer))
    options.set_memtable_whole_key_filtering(True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.lz4())

    # One thread for flushes and one for compactions, for all databases of the process.
    options.set_max_background_jobs(2)
    # The limit includes tables, and ten files that are always open.
    options.set_max_open_files(min(max(files, LEAST_FILES), MOST_FILES))
    options.set_max_log_file_size(MIB)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _is_damage(message: str) -> bool:
    """Whether an error means damaged files, and not missing rights, a full disk or a limit."""
    return "Corruption" in message or "No such file or directory" in message


def _tables(folder: Path) -> dict[str, str]:
    """The complete table files, each with its column family, or "" if that is not found.

    Incomplete ones were being written when the process was killed.
    """
    whole = {}
    for path in folder.glob("*.sst"):
        with path.open("rb") as table:
            table.seek(0, os.SEEK_END)
            table.seek(max(0, table.tell() - _TABLE_TAIL_BYTES))
            tail = table.read()
        if tail.endswith(_TABLE_MAGIC):
            column = b""
            # The last match counts, as the properties come after the user's bytes.
            for found in _TABLE_COLUMN.finditer(tail):
                column = tail[found.end() :][: found[1][0]]
            whole[path.name] = column.decode(errors="replace")
    return whole


def _columns(database: Rdict) -> dict[str, str]:
    found: Any = database.get(_COLUMNS_KEY)
    return {} if found is None else msgspec.json.decode(found, type=dict[str, str])


def _check_whole(
    database: Rdict, tables: Mapping[str, str], listed: set[str], columns: Mapping[str, str]
) -> None:
    """Raise ``_Damaged`` if a part of the MANIFEST is lost.

    A process that was killed between completing a table and adding it to the MANIFEST looks the same; that is
    a matter of milliseconds, and only costs a restore. A table of a column family that its store no longer
    uses is ignored: a compaction that runs while a store is emptied leaves its output.
    """
    known = {Path(table["name"]).name for table in database.live_files()}
    unknown = {name for name, column in tables.items() if name not in known and not _left(column, columns)}
    if unknown:
        raise _Damaged(f"the MANIFEST does not name {', '.join(sorted(unknown))}")
    missing = {*columns.values()} - listed
    if missing:
        raise _Damaged(f"the MANIFEST does not name column family {', '.join(sorted(missing))}")


def _left(column: str, columns: Mapping[str, str]) -> bool:
    """Whether the store of a column family now uses another one, because it was emptied."""
    return columns.get(_store_of(column), column) != column


def _store_of(column: str) -> str:
    """The store that a column family belongs to, by its name."""
    return column.partition(".")[2]


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


def _explained(what: str, folder: Path, error: Exception) -> StateError:
    """The error for the caller, with a hint. rocksdict raises ``Exception``: only its text differs."""
    message = str(error)
    lower = message.lower()
    if _is_damage(message):
        hint = f"delete {folder} and start again: it will be restored from the changelog topics"
    elif "lock" in lower:
        hint = "stop the process that uses this folder, or set another state_dir for this one"
    elif "too many open files" in lower:
        hint = "raise the limit of open files (ulimit -n), or start more workers"
    elif "no space" in lower:
        hint = "free space on the disk; no committed state is lost"
    elif "permission" in lower or "read-only" in lower:
        hint = "make the folder writable for this user, or set state_dir to another folder"
    else:
        hint = f"see RocksDB's log {folder / 'LOG'}, and check the disk; state_dir sets the folder"
    return StateError(f"{what}: {message}", hint=hint)


def _asides(place: Path) -> list[Path]:
    return sorted(
        place.parent.glob(f"{place.name}.damaged-*"), key=lambda aside: int(aside.name.rpartition("-")[2])
    )


def _set_aside(place: Path) -> Path:
    """Move a damaged folder aside, for later analysis. Only the last one of a task is kept."""
    older = _asides(place)
    number = int(older[-1].name.rpartition("-")[2]) + 1 if older else 1
    aside = place.with_name(f"{place.name}.damaged-{number}")
    place.rename(aside)
    for path in older:
        shutil.rmtree(path)
    return aside
