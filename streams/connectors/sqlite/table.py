"""A table in SQLite as the sink sees it, and the statements that write it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing
import uuid
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union

import msgspec

from streams.connectors.mapped_rows import attributes
from streams.connectors.sqlite.values import affinity
from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from streams.connectors.sqlite.values import Affinity

COLUMN_TYPES: Final[dict[type, str]] = {
    bool: "INTEGER",
    int: "INTEGER",
    float: "REAL",
    str: "TEXT",
    bytes: "BLOB",
    Decimal: "TEXT",
    dt.datetime: "TEXT",
    dt.date: "TEXT",
    dt.time: "TEXT",
    dt.timedelta: "TEXT",
    uuid.UUID: "TEXT",
}
"""The types of created columns; others are ``ANY``, and ``TEXT`` for what is stored as JSON."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that can be written."""

    name: str
    affinity: Affinity
    required: bool
    """Whether a new row must have a value for it: it is ``NOT NULL`` and has no default."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its columns, by their names in lower case, as names are equal in any case."""

    name: str
    columns: Mapping[str, Column]
    generated: frozenset[str]
    """Columns that the table computes, in lower case: they are not written."""
    primary_key: tuple[str, ...]

    def insert(self, columns: Sequence[str]) -> str:
        """Insert a row of these columns."""
        if not columns:
            return f"INSERT INTO {quoted(self.name)} DEFAULT VALUES"
        marks = ", ".join("?" * len(columns))
        return f"INSERT INTO {quoted(self.name)} ({_listed(columns)}) VALUES ({marks})"

    def upsert(self, columns: Sequence[str], key: Sequence[str]) -> str:
        """Insert a row, or update the one that has its key."""
        others = [name for name in columns if name not in key]
        changes = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in others)
        action = f"UPDATE SET {changes}" if others else "NOTHING"
        return f"{self.insert(columns)} ON CONFLICT ({_listed(key)}) DO {action}"

    def update(self, columns: Sequence[str], key: Sequence[str]) -> str:
        """Update the row of a key; the parameters are the columns' and then the key's."""
        changes = ", ".join(f"{quoted(name)} = ?" for name in columns)
        return f"UPDATE {quoted(self.name)} SET {changes} WHERE {_matching(key)}"

    def delete(self, key: Sequence[str]) -> str:
        """Delete the row of a key."""
        return f"DELETE FROM {quoted(self.name)} WHERE {_matching(key)}"


def quoted(name: str) -> str:
    """A name as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def _matching(key: Sequence[str]) -> str:
    return " AND ".join(f"{quoted(name)} = ?" for name in key)


def read_table(connection: sqlite3.Connection, name: str) -> Table | None:
    """The table of that name; ``None`` if there is none."""
    found = connection.execute(
        "SELECT name, type, strict FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE",
        (name,),
    ).fetchone()
    if found is None:
        return None
    real, kind, strict = found
    if kind != "table":
        raise ConnectorError(f"{name!r} is a {kind}, and a sink writes tables")
    columns, generated, keys = {}, set(), {}
    for _, column, declared, not_null, default, key, hidden in connection.execute(
        f"PRAGMA main.table_xinfo({quoted(real)})"
    ):
        if hidden:
            generated.add(column.lower())
            continue
        required = bool(not_null) and default is None
        columns[column.lower()] = Column(column, affinity(declared, strict=bool(strict)), required)
        if key:
            keys[key] = column
    return Table(real, columns, frozenset(generated), tuple(keys[at] for at in sorted(keys)))


def create_table(name: str, columns: Mapping[str, str], key: Sequence[str]) -> str:
    """The statement that creates a table, whose types SQLite enforces (``STRICT``)."""
    parts = [f"{quoted(column)} {kind}{' NOT NULL' * (column in key)}" for column, kind in columns.items()]
    parts += [f"PRIMARY KEY ({_listed(key)})"] * bool(key)
    return f"CREATE TABLE IF NOT EXISTS {quoted(name)} ({', '.join(parts)}) STRICT"


def column_types(described: type | Mapping[str, str]) -> dict[str, str]:
    """The columns of a table to create, with SQLite's types, from a class or as they are given."""
    if not isinstance(described, type):
        return dict(described)
    try:
        fields = attributes(described)
    except TypeError as error:
        raise ConfigurationError(f"row_type= needs a class with fields: {error}") from None
    hints = typing.get_type_hints(described)
    return {name: _column_type(hints.get(attribute, Any)) for name, attribute in fields.items()}


def _column_type(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _column_type(typing.get_args(hint)[0])
    if origin in {Union, UnionType}:
        kinds = {
            _column_type(part) for part in typing.get_args(hint) if part not in {NoneType, msgspec.UnsetType}
        }
        return kinds.pop() if len(kinds) == 1 else "ANY"
    if origin is typing.Literal:
        kinds = {_column_type(type(part)) for part in typing.get_args(hint)}
        return kinds.pop() if len(kinds) == 1 else "ANY"
    kind = origin or hint
    if not isinstance(kind, type):
        return "ANY"
    if issubclass(kind, Enum):
        kinds = {_column_type(type(member.value)) for member in kind}
        return kinds.pop() if len(kinds) == 1 else "ANY"
    nested = issubclass(kind, dict | list | tuple | set | frozenset | msgspec.Struct)
    if nested or dataclasses.is_dataclass(kind):
        return "TEXT"
    return next((COLUMN_TYPES[base] for base in kind.__mro__ if base in COLUMN_TYPES), "ANY")
