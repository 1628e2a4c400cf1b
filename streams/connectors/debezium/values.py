"""Values in the form in which Postgres writes and reads them, from the form that Debezium gives them."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from streams.connectors.table_row import Column as TableColumn, TableColumns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.connectors.change import ChangeSource
    from streams.connectors.table_row import ColumnKind

Row: TypeAlias = dict[str, Any]
"""The columns of a row by their names."""


class Column(msgspec.Struct, frozen=True):
    """A column's type as an event's schema names it, e.g. ``DATE``, or ``_DATE`` for an array."""

    type: str
    length: int = 0
    scale: int | None = None
    stored: str = ""
    """The type of its values in Kafka Connect, e.g. ``INT32``; of an array, that of its elements."""


class Shape(msgspec.Struct, frozen=True):
    """The columns of a table, as of its latest events."""

    columns: dict[str, Column]
    full_identity: bool
    """Whether changes carry the complete row as it was before."""

    def table(self, source: ChangeSource, key: tuple[str, ...]) -> TableColumns:
        """The columns as rows with this key have them with them."""
        columns = tuple(_described(name, column) for name, column in self.columns.items())
        return TableColumns((source.db, source.schema or "", source.table or ""), columns, key)


def _described(name: str, column: Column) -> TableColumn:
    kind = column.type.removeprefix("_")
    array, length, scale = column.type.startswith("_"), column.length, column.scale
    if kind == "NUMERIC" and scale is not None and 0 <= scale <= length <= LARGEST_PRECISION:
        return TableColumn(name, "decimal", array, length, scale)
    known = _KINDS_BY_NAME.get(kind) or _KINDS_BY_STORED.get(column.stored, "text")
    return TableColumn(name, known, array)


LARGEST_PRECISION: Final = 1000
"""Of a declared precision; without one the server gives another number."""
_KINDS_BY_NAME: Final[dict[str, ColumnKind]] = {
    "DATE": "date",
    "TIME": "time",
    "TIMESTAMP": "timestamp",
    "TIMESTAMPTZ": "timestamptz",
    "UUID": "uuid",
    "BIT": "text",
}
_KINDS_BY_STORED: Final[dict[str, ColumnKind]] = {
    "BOOLEAN": "boolean",
    "INT16": "int",
    "INT32": "int",
    "INT64": "long",
    "FLOAT32": "double",
    "FLOAT64": "double",
    "BYTES": "bytes",
}


def fixes(shape: Shape) -> dict[str, Callable[[Any], Any]]:
    """The columns whose values have another form, with what changes it."""
    found = {}
    for name, column in shape.columns.items():
        array, kind = column.type.startswith("_"), column.type.removeprefix("_").lower()
        fix = _bits(column.length) if kind == "bit" else _FIXES.get(kind)
        if fix is not None:
            found[name] = _each(fix) if array else fix
    return found


def fixed(row: Row, changes: Mapping[str, Callable[[Any], Any]]) -> Row:
    """The row with these columns' values changed."""
    return row | {name: fix(row[name]) for name, fix in changes.items() if row.get(name) is not None}


def _each(fix: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [None if value is None else fix(value) for value in values]


# What Debezium makes of infinity: the snapshot and the log differ. No Postgres has dates like these.
_INFINITE_DATES: Final = {
    "+292278994-08-16Z": "infinity",
    "-5877611-06-21Z": "infinity",
    "+292269055-12-02Z": "-infinity",
    "-5877611-06-22Z": "-infinity",
}
_INFINITE_TIMES: Final = {"+294247-01-10T04:00:25.2Z": "infinity", "-290308-12-21T19:59:27.6Z": "-infinity"}
_NUMBERS: Final = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}
_YEAR: Final = re.compile(r"([+-]?)(\d+)(.*)", re.DOTALL)


def _date(value: str) -> str:
    if value[0] in "+-":
        return _INFINITE_DATES.get(value) or _era(value.removesuffix("Z"))
    return value.removesuffix("Z")


def _timestamp(value: str) -> str:
    if value[0] in "+-":
        return _INFINITE_TIMES.get(value) or _era(value.removesuffix("Z"))
    return value.removesuffix("Z")


def _timestamptz(value: str) -> str:
    return _era(value) if value[0] in "+-" and value != "-infinity" else value


def _time(value: str) -> str:
    return value.removesuffix("Z")


def _point(value: Any) -> str:
    return f"({value['x']},{value['y']})"


def _number(value: Any) -> Any:
    return _NUMBERS.get(value, value)


def _era(value: str) -> str:
    """Years beyond 9999 without a sign, and before 1 as BC: the year before 1 is 0 in ISO 8601."""
    found = _YEAR.fullmatch(value)
    if found is None:
        return value
    sign, year, rest = found.groups()
    return f"{1 + int(year):04}{rest} BC" if sign == "-" else f"{year}{rest}"


def _bits(length: int) -> Callable[[Any], Any]:
    """Bits as text: Debezium gives one as a boolean, several as bytes, of which the last is the highest."""

    def fix(value: Any) -> Any:
        if isinstance(value, bool):
            return "1" if value else "0"
        number = int.from_bytes(base64.b64decode(value), "little")
        return f"{number:0{length}b}"

    return fix


def hexadecimal(value: str) -> str:
    """Bytes as Postgres writes them; Debezium gives them in base64."""
    return "\\x" + base64.b64decode(value).hex()


_FIXES: Final[dict[str, Callable[[Any], Any]]] = {
    "bytea": hexadecimal,
    "date": _date,
    "time": _time,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "numeric": _number,
    "point": _point,
}
