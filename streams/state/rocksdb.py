"""Stores on disk, in RocksDB: larger than memory, and still there for the next process.

A task's database is one folder, ``<folder>/<store>/<partition>``. Each store is a column family,
``store.<name>``; the metadata lies in the default one. All share a write-ahead log, which is what makes
``write`` one step: it is given to the operating system before ``write`` returns and to the disk some time
later. RocksDB syncs the log before it relies on anything that was flushed, so that a machine that dies takes
the end of the history with it and never the middle.

What RocksDB does not notice is a MANIFEST whose end is broken: it takes it for an earlier one, leaves out the
tables and column families that only the lost part names, and puts newer log files on top. So a database is
taken for damaged when there are tables of its stores that it does not know after opening, or when a column
family is missing that it once had, as the metadata tells.
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
"""Entries that a scan reads at a time."""

MIB = 1024 * 1024

LEAST_FILES = 20
"""Open files with which a database works: ten are its own, in the others it reads tables, the last used ones.

RocksDB takes no lower limit than this."""

MOST_FILES = 100
"""Open files that a database has use for."""

OTHER_FILES = 256
"""Files for the rest of the process: connections, logs, modules. Half of all where there are few."""

_PREFIX = "store."
"""Keeps stores apart from RocksDB's own ``default``, which is a legal name for a store."""

_COLUMNS_KEY = b"\0columns"
"""In the default column family, which column family each store has; no metadata of others begins so."""

_TABLE_MAGIC = 0x88E241B785F4CFF7.to_bytes(8, "little")
"""What a table ends with once it is whole (RocksDB's block-based format)."""

_TABLE_TAIL_BYTES = 8192
"""Holds a table's properties, its last part but for the footer; they take 2 KiB or less."""

_TABLE_COLUMN = re.compile(rb"\x16\x04([\x01-\x7f])name")
"""What stands before the name of a table's column family: the property ``rocksdb.column.family.name``, which
shares 22 (0x16) bytes with the one before it, differs in 4, and has a value of so many bytes.

Names of 128 bytes or more are not found, which errs on the side of damage.
"""

log = get_logger()


class RocksStore:
    """A column family.

    RocksDB lets threads read as they like; rocksdict raises when a column family is closed during a read. So
    reads of one store wait for each other, and ``close`` for them.
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
        # Any other kind of sequence would be taken for a key.
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
        # An iterator keeps the database from closing, however long its reader takes over it or forgets it:
        # so each chunk has its own.
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
        """What RocksDB estimates: an entry counts once for each write since the last compaction."""
        with self._lock:
            column = self._opened()
            try:
                return column.property_int_value("rocksdb.estimate-num-keys") or 0
            except Exception as error:
                raise self._failed("read", error) from error

    def replace(self, column: Rdict) -> None:
        """Go on with another column family."""
        with self._lock:
            self._column = column

    def close(self) -> None:
        """Write what is in memory to files. Waits for readers."""
        with self._lock:
            column, self._column = self._column, None
            if column is not None:
                # What could not be flushed is in the write-ahead log.
                with suppress(Exception):
                    column.close()

    def _chunk(self, start: bytes | None, stop: bytes | None, *, reverse: bool) -> list[Entry]:
        if start is not None and stop is not None and start >= stop:
            return []
        # rocksdict takes a lower bound for an upper one, so that side is looked at here. It keeps no
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
                # An iterator that meets a damaged block looks like one at its end.
                iterator.status()
            except Exception as error:
                raise self._failed("read", error) from error
            finally:
                # A traceback that somebody keeps would hold the database open with them.
                iterator = read_key = read_value = move = None  # type: ignore[assignment]
        return chunk

    def _opened(self) -> Rdict:
        if self._column is None:
            raise StateError(f"store {self._name} in {self._folder} is closed")
        return self._column

    def _failed(self, doing: str, error: Exception) -> StateError:
        return _explained(f"cannot {doing} store {self._name} in {self._folder}", self._folder, error)


class RocksDatabase:
    """One task's column families, opened together. Raises ``_Damaged`` where an empty folder would do."""

    def __init__(self, folder: Path, stores: Sequence[str], choices: _Choices) -> None:
        options, at_rest = choices.options, choices.at_rest
        self.folder = folder
        self._options = options
        self._stores: dict[str, RocksStore] = {}
        self._handles: dict[str, ColumnFamily] = {}
        self._database: Rdict | None = None
        self._columns: dict[str, str] = {}
        """The column family of each store, those included that this program does not have."""
        path = str(folder)
        listed: set[str] = set()
        # Listing takes no lock, so its errors prove nothing: opening will meet them again, under the lock.
        with suppress(Exception):
            listed = {*Rdict.list_cf(path)}
        columns = {*listed, *(_PREFIX + store for store in stores)}
        try:
            tables = _tables(folder)
            # A compaction would delete tables that were known before they can be looked for.
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
            raise _explained(f"cannot make store {name} in {self.folder}", self.folder, error) from error

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
                    # RocksDB takes a range the wrong way round for a broken log and stops all writing.
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
            # A traceback that somebody keeps would hold the database open with it.
            batch.set_default_column_family(None)
            del database

    def drop(self, name: str) -> None:
        database = self._opened()
        self.store(name)
        try:
            old = self._columns[name]
            new = _successor(name, old)
            # Of another name, so that one can never be taken for the other.
            database.create_column_family(new, self._options)
            self._use(name, new)
            # What is left of it while a reader is busy goes with the reader.
            database.drop_column_family(old)
        except Exception as error:
            raise _explained(f"cannot empty store {name} in {self.folder}", self.folder, error) from error

    def close(self) -> None:
        self._handles.clear()
        # Metadata comes last, so that it never says more than the stores have.
        for store in self._stores.values():
            store.close()
        database, self._database = self._database, None
        if database is not None:
            # What could not be flushed is in the write-ahead log.
            with suppress(Exception):
                database.close()
            # When it was used last, for ``delete_unused``.
            with suppress(OSError):
                os.utime(self.folder)

    def _use(self, name: str, column: str | None = None) -> RocksStore:
        """Let a store have a column family, that it has already or its first one if none is named."""
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
    """For the default column family, which holds a few entries."""


class RocksDatabases:
    """Databases under one folder, for one process at a time.

    ``memory_bytes`` bounds what all of them take together: blocks read from files with their indexes and
    filters, and what was written and not yet flushed, for which half of it is meant. When that half is full,
    whichever database writes next flushes its own. Beyond it goes only what is in use at that moment.

    ``tasks`` is how many databases there may be at once. They share the files that this process may open.
    Where its soft limit is too low for them to work, it is raised to what they need, at most to the hard one.
    Where that is not enough, ``open`` raises ``StateError``, so that RocksDB does not meet the limit in the
    middle of a write.
    """

    def __init__(self, folder: Path, memory_bytes: int, *, tasks: int = 1) -> None:
        self._folder = folder
        self._file_limit = raise_limit(OTHER_FILES + tasks * LEAST_FILES)
        self._tasks = tasks
        self._cache = Cache(memory_bytes)
        # Never stall for memory: rocksdict holds the interpreter's lock while it writes.
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
            raise _explained(f"cannot look for state in {self._folder}", self._folder, error) from error
        held = self._databases.get(place)
        if held is not None and not held.closed:
            raise StateError(
                f"the state in {place} is open already", hint="close the database before it is opened again"
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
        # All of them: a folder that is left would be found by the next ``open``.
        for store in stores:
            place = self._folder / store / str(partition)
            held = self._databases.pop(place, None)
            if held is not None:
                held.close()
            try:
                if place.exists():
                    # Refuses while another process has it.
                    Rdict.destroy(str(place))
                # What is no file of a database is left over.
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
        """How many of the files that this process may open are the databases' own."""
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
            f"which is enough for {opened} tasks with stores",
            hint=f"raise the hard limit to {needed} or more (ulimit -n {needed}, LimitNOFILE= of systemd, "
            "--ulimit nofile= of Docker), or start more workers",
        )

    def close(self) -> None:
        for database in self._databases.values():
            database.close()
        self._databases.clear()


class _Damaged(Exception):
    """The files are there and are no database."""


def _options(memory_bytes: int, cache: Cache, buffers: WriteBufferManager, tasks: int, files: int) -> Options:
    """For all databases and column families, so that they share memory, threads and open files.

    ``tasks`` databases have ``files`` open files each.
    """
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)

    options.set_write_buffer_manager(buffers)
    write_buffer = min(max(memory_bytes // 8, MIB), 32 * MIB)
    options.set_write_buffer_size(write_buffer)
    options.set_max_write_buffer_number(4)
    # The default is an eighth of the write buffer, taken by each column family with its first entry.
    options.set_arena_block_size(64 * 1024)
    # All column families go to disk together: the metadata, of which little is written, would keep old logs.
    options.set_atomic_flush(True)
    # After a crash, what is in the log is read again while the interpreter stands still.
    options.set_max_total_wal_size(64 * MIB)

    # A lookup that finds nothing costs half with a filter for what is in memory, too. It is allocated with
    # each write buffer: the filters of hundreds of databases would take all of the memory.
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
    # It counts tables, and ten more for what is always open.
    options.set_max_open_files(min(max(files, LEAST_FILES), MOST_FILES))
    options.set_max_log_file_size(MIB)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _is_damage(message: str) -> bool:
    """Whether the files are at fault, and not who may use them, the disk or this machine."""
    return "Corruption" in message or "No such file or directory" in message


def _tables(folder: Path) -> dict[str, str]:
    """The tables that are whole, each with its column family, or "" where that cannot be told.

    Others were being written when the process was killed.
    """
    whole = {}
    for path in folder.glob("*.sst"):
        with path.open("rb") as table:
            table.seek(0, os.SEEK_END)
            table.seek(max(0, table.tell() - _TABLE_TAIL_BYTES))
            tail = table.read()
        if tail.endswith(_TABLE_MAGIC):
            column = b""
            # The last one counts: the properties come after the user's bytes.
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
    """Raise ``_Damaged`` where a part of the MANIFEST is lost.

    A process that was killed between finishing a table and noting it looks the same. That is a matter of
    milliseconds, and costs a restore. A table of a column family that its store no longer has proves nothing:
    a compaction that runs while a store is emptied leaves what it wrote.
    """
    known = {Path(table["name"]).name for table in database.live_files()}
    unknown = {name for name, column in tables.items() if name not in known and not _left(column, columns)}
    if unknown:
        raise _Damaged(f"the MANIFEST does not name {', '.join(sorted(unknown))}")
    missing = {*columns.values()} - listed
    if missing:
        raise _Damaged(f"the MANIFEST does not name column family {', '.join(sorted(missing))}")


def _left(column: str, columns: Mapping[str, str]) -> bool:
    """Whether the store of a column family has another one since, as a store that was emptied has."""
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
        # A traceback that somebody keeps would hold the database open with it.
        del iterator
    return found


def _explained(what: str, folder: Path, error: Exception) -> StateError:
    """The error for the caller. rocksdict raises plain ``Exception``: only the text says what happened."""
    message = str(error)
    lower = message.lower()
    if _is_damage(message):
        hint = f"delete {folder} and start again: it will be restored from the changelog topics"
    elif "lock" in lower:
        hint = "stop the process that uses this folder, or give this one another state_dir"
    elif "too many open files" in lower:
        hint = "raise the limit of open files (ulimit -n), or start more workers"
    elif "no space" in lower:
        hint = "free space on the disk; nothing that was committed is lost"
    elif "permission" in lower or "read-only" in lower:
        hint = "let this user write there, or set state_dir to another folder"
    else:
        hint = f"see {folder / 'LOG'} and the disk; state_dir names the folder"
    return StateError(f"{what}: {message}", hint=hint)


def _asides(place: Path) -> list[Path]:
    return sorted(
        place.parent.glob(f"{place.name}.damaged-*"), key=lambda aside: int(aside.name.rpartition("-")[2])
    )


def _set_aside(place: Path) -> Path:
    """Move a folder out of the way, for who wants to look at it. Only the last one of a task is kept."""
    older = _asides(place)
    number = int(older[-1].name.rpartition("-")[2]) + 1 if older else 1
    aside = place.with_name(f"{place.name}.damaged-{number}")
    place.rename(aside)
    for path in older:
        shutil.rmtree(path)
    return aside
