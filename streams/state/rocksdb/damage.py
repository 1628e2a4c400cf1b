"""Whether a RocksDB database on disk is complete, and what to do with one that is not.

RocksDB does not detect a MANIFEST with a broken end: it opens an earlier version of the database, without the
tables and column families that only the lost part names, and applies newer log files to it. So a database
counts as damaged if there are tables of its stores that it does not know after opening, or if a column family
is missing that it had before according to the metadata.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rocksdict import Rdict

_TABLE_MAGIC = 0x88E241B785F4CFF7.to_bytes(8, "little")
"""The end of a complete table file (RocksDB's block-based format)."""

_TABLE_TAIL_BYTES = 8192
"""The size of a table's end with its properties, which are before the footer and take up to 2 KiB."""

_TABLE_COLUMN = re.compile(rb"\x16\x04([\x01-\x7f])name")
"""The bytes before the name of a table's column family: the property ``rocksdb.column.family.name``, which
shares 22 (0x16) bytes with the previous one and differs in 4, followed by the length of its value.

Names of 128 bytes or more are not found, so that the table counts as unknown.
"""


class Damaged(Exception):
    """The files exist and are not a valid database."""


def is_damage(message: str) -> bool:
    """Whether an error means damaged files, and not missing rights, a full disk or a limit."""
    return "Corruption" in message or "No such file or directory" in message


def explained(what: str, folder: Path, error: Exception) -> StateError:
    """The error for the caller, with a hint. rocksdict raises ``Exception``: only its text differs."""
    message = str(error)
    lower = message.lower()
    if is_damage(message):
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


def complete_tables(folder: Path) -> dict[str, str]:
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


def check_whole(
    database: Rdict, tables: Mapping[str, str], listed: set[str], columns: Mapping[str, str]
) -> None:
    """Raise ``Damaged`` if a part of the MANIFEST is lost.

    A process that was killed between completing a table and adding it to the MANIFEST looks the same; that is
    a matter of milliseconds, and only costs a restore. A table of a column family that its store no longer
    uses is ignored: a compaction that runs while a store is emptied leaves its output.
    """
    known = {Path(table["name"]).name for table in database.live_files()}
    unknown = {
        name for name, column in tables.items() if name not in known and not left_behind(column, columns)
    }
    if unknown:
        raise Damaged(f"the MANIFEST does not name {', '.join(sorted(unknown))}")
    missing = {*columns.values()} - listed
    if missing:
        raise Damaged(f"the MANIFEST does not name column family {', '.join(sorted(missing))}")


def left_behind(column: str, columns: Mapping[str, str]) -> bool:
    """Whether the store of a column family now uses another one, because it was emptied."""
    return columns.get(_store_of(column), column) != column


def _store_of(column: str) -> str:
    """The store that a column family belongs to, by its name."""
    return column.partition(".")[2]


def set_aside_before(place: Path) -> list[Path]:
    """The damaged folders of a task that were moved aside, the oldest first."""
    return sorted(
        place.parent.glob(f"{place.name}.damaged-*"), key=lambda aside: int(aside.name.rpartition("-")[2])
    )


def set_aside(place: Path) -> Path:
    """Move a damaged folder aside, for later analysis. Only the last one of a task is kept."""
    older = set_aside_before(place)
    number = int(older[-1].name.rpartition("-")[2]) + 1 if older else 1
    aside = place.with_name(f"{place.name}.damaged-{number}")
    place.rename(aside)
    for path in older:
        shutil.rmtree(path)
    return aside
