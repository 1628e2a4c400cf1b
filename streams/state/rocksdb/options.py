"""RocksDB's options: memory, threads and open files, which all databases of a process share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rocksdict import BlockBasedOptions, DBCompressionType, Options

if TYPE_CHECKING:
    from rocksdict import Cache, WriteBufferManager

MIB = 1024 * 1024

LEAST_FILES = 20
"""The minimum number of open files of a database: ten for itself, the others for the last used tables.

RocksDB accepts no lower limit."""

MOST_FILES = 100
"""The number of open files above which a database does not become faster."""


class DatabaseOptions(NamedTuple):
    """RocksDB's options for one database."""

    options: Options
    at_rest: Options
    """The same, without compactions."""

    for_metadata: Options
    """For the default column family, which has a few entries."""


def database_options(
    memory_bytes: int, cache: Cache, buffers: WriteBufferManager, tasks: int, files: int
) -> Options:
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
