"""Rows of a database's table that know the columns of their table, as of the moment of each row."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

ColumnKind: TypeAlias = Literal[
    "boolean",
    "int",
    "long",
    "double",
    "decimal",
    "bytes",
    "uuid",
    "text",
    "date",
    "time",
    "timestamp",
    "timestamptz",
]
"""What values of a column are. ``text`` is any other type, as the database writes it."""


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: ColumnKind
    array: bool = False
    precision: int = 0
    """Of ``decimal``: how many digits, of which ``scale`` are after the point."""
    scale: int = 0


class TableColumns:
    """The columns of a table. Each version of a table has its own object, which is equal to itself only."""

    __slots__ = ("columns", "key", "path")

    def __init__(self, path: tuple[str, ...], columns: tuple[Column, ...], key: tuple[str, ...]) -> None:
        self.path = path
        """The table's name after those of its database and schema."""
        self.columns = columns
        self.key = key
        """The columns of the key, which have no nulls."""

    @property
    def key_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.name in self.key)


class TableRow(dict[str, Any]):
    """A row, or its key, with its table's columns. They are no part of it: not compared, and not written.

    Whatever makes another row of it makes a plain dictionary.
    """

    __slots__ = ("table",)

    table: TableColumns


def table_row(row: dict[str, Any], table: TableColumns) -> TableRow:
    """The row with its table's columns."""
    made = TableRow(row)
    made.table = table
    return made
