"""The table as the sink of a worker knows it, which follows columns that are added while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from streams.connectors.postgres.changes import Action, ChangeReader, Changes, UnknownFields
from streams.connectors.postgres.column_types import type_of_value
from streams.connectors.postgres.positions import DDL_LOCK
from streams.connectors.postgres.statements import Statements
from streams.connectors.postgres.table import parse_name, quoted, read_table, require_fit
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.postgres.connection import Connection
    from streams.connectors.postgres.table import Table
    from streams.connectors.sink import SinkRows

OnTruncate: TypeAlias = Literal["fail", "delete", "ignore"]


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What the program says of the table and of its rows."""

    table: str
    append: bool
    key: tuple[str, ...] | None
    renamed: Mapping[str, str] | None
    alter: bool
    on_truncate: OnTruncate


@dataclass(slots=True)
class Target:
    """The table, and how rows are read and written for it."""

    options: TargetOptions
    table: Table
    reader: ChangeReader = field(init=False)
    statements: Statements = field(init=False)

    def __post_init__(self) -> None:
        self._know(self.table)

    @classmethod
    def find(cls, connection: Connection, options: TargetOptions) -> Target:
        """Read the table's description. Raises ``ConnectorError`` if rows cannot be written to it."""
        return cls(options, _existing(connection, options.table))

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the key; none where rows are only appended."""
        if self.options.append:
            return ()
        return self.table.primary_key if self.options.key is None else self.options.key

    def read(self, parts: Sequence[SinkRows]) -> Changes:
        """Make changes of rows. Raises ``UnknownFields``, after which ``learn`` may help."""
        changes = self.reader.read(parts)
        if Action.TRUNCATE in changes.actions:
            self._decide_truncate(changes, parts)
        return changes

    def learn(self, connection: Connection, error: UnknownFields) -> None:
        """Read the columns that the table has got since, and add those that are missing if it is allowed to.

        Raises ``ConnectorError`` if there is none for a field.
        """
        table = _existing(connection, self.options.table)
        missing = {name: value for name, value in error.samples.items() if name not in table.columns}
        if missing and self.options.alter:
            add_columns(connection, table, {name: type_of_value(value) for name, value in missing.items()})
            table = _existing(connection, self.options.table)
        elif missing:
            raise ConnectorError(
                f"{table.identifier} has no column for the values' field {', '.join(map(repr, missing))}",
                hint="add the column, let the sink add it (alter=True), or choose the fields with columns=",
            ) from error
        self._know(table)

    def _know(self, table: Table) -> None:
        self.table = table
        require_fit(table, self.key, append=self.options.append)
        self.reader = ChangeReader(
            table, self.key, self.options.key is not None, self.options.renamed, self.options.alter
        )
        self.statements = Statements(table, self.key)

    def _decide_truncate(self, changes: Changes, parts: Sequence[SinkRows]) -> None:
        if self.options.on_truncate == "delete" and not self.options.append:
            return
        rows = [row for row, action in enumerate(changes.actions) if action is Action.TRUNCATE]
        if self.options.on_truncate == "fail":
            partitions = [part.partition for part in parts for _ in part.offsets]
            offsets = [offset for part in parts for offset in part.offsets]
            raise ConnectorError(
                f"the source's table was truncated ({partitions[rows[0]]}, offset {offsets[rows[0]]}); "
                f"{self.table.identifier} still has its rows",
                hint='empty it and set on_truncate="ignore" once the sink is past this offset, or set '
                'on_truncate="delete", which is exact for a topic of one partition',
            )
        for row in rows:
            changes.actions[row] = Action.NOTHING


def add_columns(connection: Connection, table: Table, types: Mapping[str, str]) -> None:
    """Add columns, unless another worker has done so. Raises ``psycopg.Error``."""
    columns = ", ".join(f"add column if not exists {quoted(name)} {kind}" for name, kind in types.items())
    # Who waits for this lock makes all others wait.
    begin = f"begin; set local lock_timeout = '5s'; {DDL_LOCK}"
    connection.run(f"{begin}; alter table {table.identifier} {columns}; commit".encode())


def _existing(connection: Connection, name: str) -> Table:
    table = read_table(connection, name)
    if table is None:
        parse_name(name)
        raise ConnectorError(
            f"there is no table {name}, or the sink's role may not use its schema",
            hint="create it, or let the sink create it (create=True with row_type=)",
        )
    return table
