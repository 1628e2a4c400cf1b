"""Compare the types of values with the table's columns before anything is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streams.connectors.postgres.table import quoted
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.postgres.table import Column, Table

_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")
_PRECISION = re.compile(r"(timestamp|time)\((\d)\)")

_TEXT = {"text", "varchar", "bpchar", "name", "citext", "xml"}
_INTEGERS = {"smallint": 2, "integer": 4, "bigint": 8}
_BYTES = {"int2": 2, "int4": 4, "int8": 8}
_JSON = {"json", "jsonb"}

_FIT: dict[str, set[str]] = {
    "boolean": {"bool"},
    "smallint": {*_BYTES, "numeric", "float4", "float8", "oid", "money"},
    "integer": {*_BYTES, "numeric", "float8", "oid", "money"},
    "bigint": {*_BYTES, "numeric", "oid", "money"},
    "real": {"float4", "float8", "numeric"},
    "double precision": {"float8", "numeric"},
    "numeric": {"numeric", "money"},
    "bytea": {"bytea"},
    "timestamp with time zone": {"timestamptz", "timestamp"},
    "timestamp without time zone": {"timestamp", "timestamptz"},
    "date": {"date", "timestamp", "timestamptz"},
    "time without time zone": {"time", "timetz", "interval"},
    "interval": {"interval"},
    "uuid": {"uuid"},
    "inet": {"inet"},
    "cidr": {"cidr", "inet"},
    "jsonb": {"json", "jsonb"},
}
"""The types of columns that hold every value of a type. Text is read by the server as any type."""


def require_columns(
    table: Table, key: Sequence[str], types: Mapping[str, str], *, bounded_integers: bool
) -> None:
    """Raise ``ConnectorError`` where values of these types, by column, do not fit the table.

    ``bounded_integers``: the integers of ``types`` have that many bits, as in Avro; those of Python have any
    number, so that a narrower column is no mistake.
    """
    for name, kind in types.items():
        column = table.columns.get(name)
        if column is None:
            raise ConnectorError(
                f"{table.identifier} has no column {name!r}, which the rows have",
                hint=f"ALTER TABLE {table.identifier} ADD COLUMN {quoted(name)} {kind}, or alter=True, or "
                "choose the fields with columns=",
            )
        if not column.generated and not fits(kind, column, bounded_integers=bounded_integers):
            raise ConnectorError(
                f"column {name!r} of {table.identifier} is of type {column.declared}, which cannot hold "
                f"every value of type {kind}, which the rows have",
                hint=f"ALTER TABLE {table.identifier} ALTER COLUMN {quoted(name)} TYPE {kind}, or convert "
                "the values before the sink",
            )
    for name, column in table.columns.items():
        if column.required and not column.generated and name not in types and name not in key:
            raise ConnectorError(
                f"column {name!r} of {table.identifier} is NOT NULL without a default, and the rows have no "
                "such field",
                hint=f"ALTER TABLE {table.identifier} ALTER COLUMN {quoted(name)} SET DEFAULT …",
            )


def fits(kind: str, column: Column, *, bounded_integers: bool) -> bool:
    """Whether a column holds every value of a type."""
    base = column.base
    if kind.endswith("[]"):
        return base in _JSON or (column.is_array and fits_scalar(kind[:-2], column, bounded_integers))
    if base in _JSON and not column.is_array:
        return kind != "bytea"
    return kind == "text" or (not column.is_array and fits_scalar(kind, column, bounded_integers))


def fits_scalar(kind: str, column: Column, bounded_integers: bool) -> bool:
    """Whether a column, or an element of its arrays, holds every value of a type."""
    base = column.base
    plain = re.sub(r"\(.*?\)", "", kind)
    if plain == "text":
        return True
    if base in _TEXT:
        return plain not in {"bytea", "jsonb"}
    known = _FIT.get(plain)
    if known is None:
        return True
    if base not in {item for items in _FIT.values() for item in items}:
        # A type of an extension or of the user reads text.
        return plain != "bytea"
    if base not in known:
        return False
    if plain in _INTEGERS and base in _BYTES and bounded_integers:
        return _BYTES[base] >= _INTEGERS[plain]
    return _is_precise_enough(kind, column.declared)


def _is_precise_enough(kind: str, declared: str) -> bool:
    value, column = _NUMERIC.search(kind), _NUMERIC.search(declared)
    if value and column:
        precision, scale = int(value[1]), int(value[2])
        own_precision, own_scale = int(column[1]), int(column[2])
        return own_scale >= scale and own_precision - own_scale >= precision - scale
    limited = _PRECISION.search(declared)
    if limited and kind.startswith(("timestamp", "time")):
        given = _PRECISION.search(kind)
        return int(limited[2]) >= (int(given[2]) if given else 6)
    return True
