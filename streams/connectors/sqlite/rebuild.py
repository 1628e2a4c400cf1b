"""Fills a table again beside itself: a copy in a file of its own, and a merge in one transaction."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from streams.connectors.sink import MergeCounts
from streams.connectors.sqlite.errors import to_error
from streams.connectors.sqlite.table import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.connectors.sink import SinkConnector
    from streams.connectors.sqlite.table import Table
    from streams.connectors.sqlite.writer import SqliteWriter
    from streams.records import TopicPartition

SUFFIX = "-rebuild"


class SqliteRebuild:
    """The copy of a sink's table, in a file beside its own. ``key`` is empty where rows are appended.

    ``sink_for`` returns the sink for another file.
    """

    def __init__(
        self,
        path: str,
        key: tuple[str, ...],
        sink_for: Callable[[Path], SinkConnector],
        writer: SqliteWriter,
        connection: sqlite3.Connection,
        table: Table,
    ) -> None:
        self._path = path
        self._key = key
        self._sink_for = sink_for
        self._writer = writer
        self._connection = connection
        self._table = table
        self._copy = Path(f"{path}{SUFFIX}")
        self._attached = False

    def copy(self) -> SinkConnector:
        self._remove()
        statements = self._connection.execute(
            "SELECT sql FROM sqlite_master WHERE tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL "
            "AND type IN ('table', 'index') ORDER BY type = 'index'",
            (self._table.name,),
        ).fetchall()
        with closing(sqlite3.connect(self._copy)) as connection:
            for (statement,) in statements:
                connection.execute(statement)
            connection.commit()
        return self._sink_for(self._copy)

    def positions(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        return self._writer.claim(partitions)

    def lock(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        # A database cannot be attached in a transaction, and only one connection can have the lock.
        self._connection.execute("ATTACH DATABASE ? AS rebuilt", (str(self._copy),))
        self._attached = True
        return self._writer.lock(partitions)

    def merge(self) -> MergeCounts:
        try:
            counts = self._merge_by_key(self._key) if self._key else self._replace_all()
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise to_error(error, self._path, f"merging table {self._table.name!r}") from error
        return counts

    def close(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if self._attached:
                self._attached = False
                self._connection.execute("DETACH DATABASE rebuilt")
        self._writer.close()
        self._remove()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._copy}{suffix}").unlink(missing_ok=True)

    def _merge_by_key(self, key: tuple[str, ...]) -> MergeCounts:
        name = quoted(self._table.name)
        target, copy = f"main.{name}", f"rebuilt.{name}"
        same = " AND ".join(f"t.{quoted(column)} = c.{quoted(column)}" for column in key)
        written = [column.name for column in self._table.columns.values()]
        others = [column for column in written if column not in key]
        run = self._connection.execute
        deleted = run(
            f"DELETE FROM {target} AS t WHERE NOT EXISTS (SELECT 1 FROM {copy} AS c WHERE {same})"
        ).rowcount
        changed = 0
        if others:
            assignments = ", ".join(f"{quoted(column)} = c.{quoted(column)}" for column in others)
            differs = " OR ".join(
                f"t.{quoted(column)} IS NOT c.{quoted(column)} "
                f"OR typeof(t.{quoted(column)}) <> typeof(c.{quoted(column)})"
                for column in others
            )
            changed = run(
                f"UPDATE {target} AS t SET {assignments} FROM {copy} AS c WHERE {same} AND ({differs})"
            ).rowcount
        columns = ", ".join(map(quoted, written))
        added = run(
            f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {copy} AS c "
            f"WHERE NOT EXISTS (SELECT 1 FROM {target} AS t WHERE {same})"
        ).rowcount
        return MergeCounts(added, changed, deleted)

    def _replace_all(self) -> MergeCounts:
        name = quoted(self._table.name)
        columns = ", ".join(quoted(column.name) for column in self._table.columns.values())
        deleted = self._connection.execute(f"DELETE FROM main.{name}").rowcount
        added = self._connection.execute(
            f"INSERT INTO main.{name} ({columns}) SELECT {columns} FROM rebuilt.{name} ORDER BY rowid"
        ).rowcount
        return MergeCounts(added, 0, deleted)
