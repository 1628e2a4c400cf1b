"""The sink as a program names it, and what is checked before the worker joins the group."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from streams.connectors.sqlite.errors import to_error
from streams.connectors.sqlite.rebuild import SqliteRebuild
from streams.connectors.sqlite.table import column_types, create_table, quoted, read_table
from streams.connectors.sqlite.writer import SqliteWriter
from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from streams.connectors.sink import SinkContext
    from streams.connectors.sqlite.table import Table

OLDEST: Final = (3, 37)
"""The first SQLite with typed (``STRICT``) tables and the list of tables that the sink reads."""


@dataclass(frozen=True, slots=True)
class SqliteSink:
    """Rows of a table in an SQLite file, written exactly once.

    A value is a mapping, a ``msgspec.Struct``, a dataclass or a named tuple with the columns by name, or a
    ``Change`` of one of these. With ``mode="upsert"`` a row replaces the one with its ``key`` (unless given,
    the table's primary key), and ``None`` deletes it; columns that a value lacks stay as they are. With
    ``mode="append"`` each value becomes a new row, and deletions add nothing.

    ``columns`` chooses fields, or renames them (field to column). ``row_type`` describes the table, by a
    class with annotated fields or by SQLite's types of columns: with ``create`` a missing table is created,
    with ``alter`` missing columns are added, and otherwise they are an error.
    """

    path: str | os.PathLike[str]
    table: str
    key: str | Sequence[str] | None = field(default=None, kw_only=True)
    mode: Literal["upsert", "append"] = field(default="upsert", kw_only=True)
    columns: Mapping[str, str] | Sequence[str] | None = field(default=None, kw_only=True)
    row_type: type | Mapping[str, str] | None = field(default=None, kw_only=True)
    create: bool = field(default=True, kw_only=True)
    alter: bool = field(default=False, kw_only=True)
    on_truncate: Literal["fail", "delete", "ignore"] = field(default="fail", kw_only=True)
    """What a ``Change`` with ``op="t"`` does. The event does not say which partitions' rows it concerns."""
    positions_table: str = field(default="streams_positions", kw_only=True)
    """The table that holds the positions of the input, in the same file."""
    max_rows: int = field(default=10_000, kw_only=True)

    def __post_init__(self) -> None:
        if self.mode not in {"upsert", "append"}:
            raise ConfigurationError(f"mode is 'upsert' or 'append', got {self.mode!r:.80}")
        if str(self.path) in {"", ":memory:"}:
            raise ConfigurationError(
                f"a sink needs a database file, got {str(self.path)!r}: "
                "positions and rows must still be there when it is opened again"
            )
        if self.on_truncate not in {"fail", "delete", "ignore"}:
            raise ConfigurationError(
                f"on_truncate is 'fail', 'delete' or 'ignore', got {self.on_truncate!r:.80}"
            )
        if self.mode == "append" and self.key is not None:
            raise ConfigurationError("mode='append' takes no key=: each value becomes a new row")
        if self.row_type is not None:
            described = column_types(self.row_type)
            if self.create and self.mode == "upsert" and not self.key_columns:
                raise ConfigurationError("row_type= needs key=, the columns of the primary key")
            if missing := [name for name in self.key_columns if name not in described]:
                raise ConfigurationError(f"row_type= has no key column {', '.join(map(repr, missing))}")
        elif self.alter:
            raise ConfigurationError("alter=True needs row_type=, which describes the columns")

    @property
    def kind(self) -> str:
        """The system."""
        return "sqlite"

    @property
    def takes_retries(self) -> bool:
        """Whether a row may be written again: by key that changes nothing."""
        return self.mode == "upsert"

    @property
    def target(self) -> str:
        """What it writes to."""
        return self.table

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key as given; none if the table's primary key is used."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key or ())

    def check(self, context: SinkContext) -> None:
        """Create what was asked for, and check that rows can be written by key."""
        path = Path(self.path)
        if not path.parent.is_dir():
            raise ConnectorError(
                f"sink {context.name!r}: {path.parent} is not a folder", hint="create it, or correct the path"
            )
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConnectorError(f"the sink needs SQLite 3.37, this Python has {sqlite3.sqlite_version}")
        with closing(self.connect(context)) as connection:
            try:
                self._create(connection)
            except sqlite3.Error as error:
                raise to_error(error, str(self.path), f"checking table {self.table!r}") from error
            self.read(connection)

    def _create(self, connection: sqlite3.Connection) -> None:
        described = {} if self.row_type is None else column_types(self.row_type)
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            # In a new file: readers, which might wait for each transaction otherwise, need not.
            connection.execute("PRAGMA journal_mode = WAL")
        # Several workers check at the same time: the lock makes them do so one after the other.
        connection.execute("BEGIN IMMEDIATE")
        if described and self.create:
            connection.execute(create_table(self.table, described, self.key_columns))
        table = read_table(connection, self.table)
        if table is not None:
            self._add_columns(connection, table, described)
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {quoted(self.positions_table)} (application TEXT NOT NULL, "
            "sink TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, topic_id TEXT NOT NULL, "
            "next_offset INTEGER NOT NULL, PRIMARY KEY (application, sink, topic, partition))"
        )
        connection.execute("COMMIT")

    def _add_columns(
        self, connection: sqlite3.Connection, table: Table, described: Mapping[str, str]
    ) -> None:
        for name, kind in described.items():
            if name.lower() in table.columns or name.lower() in table.generated:
                continue
            addition = f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(name)} {kind}"
            if not self.alter:
                raise ConnectorError(
                    f"SQLite database {self.path}: table {table.name!r} has no column {name!r}",
                    hint=f"{addition}, or alter=True",
                )
            connection.execute(addition)

    def open(self, context: SinkContext) -> SqliteWriter:
        """Open the file. Raises ``SinkUnavailable``."""
        connection = self.connect(context)
        try:
            table, key = self.read(connection)
        except BaseException:
            connection.close()
            raise
        fields = self.columns
        return SqliteWriter(
            context,
            connection,
            path=str(self.path),
            table=table,
            key=key,
            fields=fields
            if fields is None or isinstance(fields, Mapping)
            else {name: name for name in fields},
            positions=self.positions_table,
            on_truncate=self.on_truncate,
        )

    def rebuild(self, context: SinkContext) -> SqliteRebuild:
        """See ``RebuildableSink``."""
        connection = self.connect(context)
        try:
            table, key = self.read(connection)
        except BaseException:
            connection.close()
            raise
        writer = SqliteWriter(
            context,
            connection,
            path=str(self.path),
            table=table,
            key=key,
            fields=None,
            positions=self.positions_table,
            on_truncate=self.on_truncate,
        )
        return SqliteRebuild(
            str(self.path),
            key,
            lambda path: replace(self, path=path, create=False, alter=False, row_type=None),
            writer,
            connection,
            table,
        )

    def connect(self, context: SinkContext) -> sqlite3.Connection:
        """A connection on which transactions begin and end only by statements."""
        try:
            return sqlite3.connect(
                self.path, timeout=context.lock_timeout, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise to_error(error, str(self.path), "opening it") from error

    def read(self, connection: sqlite3.Connection) -> tuple[Table, tuple[str, ...]]:
        """The table and its key, which is empty in the append mode. Raises ``ConnectorError``."""
        try:
            table = read_table(connection, self.table)
            if table is None:
                raise ConnectorError(
                    f"SQLite database {self.path} has no table {self.table!r}",
                    hint="create it, or describe it by row_type=",
                )
            key = self.key_columns or (table.primary_key if self.mode == "upsert" else ())
            if self.mode == "append":
                return table, ()
            if missing := [name for name in key if name.lower() not in table.columns]:
                raise ConnectorError(
                    f"table {self.table!r} has no key column {', '.join(map(repr, missing))}"
                )
            if not key:
                raise ConnectorError(
                    f"table {self.table!r} has no primary key, which rows are written by",
                    hint="give key=, the columns of a unique index, or mode='append'",
                )
            key = tuple(table.columns[name.lower()].name for name in key)
            self._check_unique(connection, table, key)
        except sqlite3.Error as error:
            raise to_error(error, str(self.path), f"reading table {self.table!r}") from error
        return table, key

    def _check_unique(self, connection: sqlite3.Connection, table: Table, key: tuple[str, ...]) -> None:
        try:
            connection.execute(f"EXPLAIN {table.upsert(key, key)}", (None,) * len(key))
        except sqlite3.OperationalError as error:
            if "ON CONFLICT" not in str(error):
                raise
            columns = ", ".join(map(quoted, key))
            index = quoted(f"{table.name}_{'_'.join(key)}")
            raise ConnectorError(
                f"table {self.table!r} has no unique index over exactly its key: {', '.join(key)}",
                hint=f"CREATE UNIQUE INDEX {index} ON {quoted(table.name)} ({columns})",
            ) from error
