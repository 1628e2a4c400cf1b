"""Values in the form in which Postgres writes and reads them, from the form that Debezium gives them.

What Postgres has is recognised by its types' own names; of other databases, by what Debezium made of them.
"""

from __future__ import annotations

import base64
import re
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from streams.connectors.table_row import Column as TableColumn, TableColumns
from streams.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.connectors.change import ChangeSource
    from streams.connectors.table_row import ColumnKind

POSTGRES: Final = "postgresql"
Row: TypeAlias = dict[str, Any]
"""The columns of a row by their names."""


class Column(msgspec.Struct, frozen=True):
    """A column's type as an event's schema names it, e.g. ``DATE``, or ``_DATE`` for an array."""

    type: str
    length: int = 0
    scale: int | None = None
    stored: str = ""
    """The type of its values in Kafka Connect, e.g. ``INT32``; of an array, that of its elements."""
    semantic_type: str = ""
    """The name of that type where it has one, e.g. ``io.debezium.time.IsoDate``."""


class Shape(msgspec.Struct, frozen=True):
    """The columns of a table, as of its latest events."""

    columns: dict[str, Column]
    full_identity: bool
    """Whether changes carry the complete row as it was before."""
    connector: str = POSTGRES
    """Debezium's name of the database system."""

    def table(self, source: ChangeSource, key: tuple[str, ...]) -> TableColumns:
        """The columns as rows with this key have them with them."""
        path = tuple(filter(None, (source.db, source.schema, source.table)))
        columns = tuple(
            _described(name, column, postgres=self.connector == POSTGRES)
            for name, column in self.columns.items()
        )
        return TableColumns(path, columns, key)


def _described(name: str, column: Column, *, postgres: bool) -> TableColumn:
    by_value = None if postgres else _KINDS_BY_SEMANTIC_TYPE.get(column.semantic_type)
    kind = by_value or column.type.removeprefix("_")
    array, length, scale = column.type.startswith("_"), column.length, column.scale
    if (
        kind in _DECIMALS
        and column.stored == "STRING"
        and scale is not None
        and 0 <= scale <= length <= LARGEST_PRECISION
    ):
        return TableColumn(name, "decimal", array, length, scale)
    if column.semantic_type == _WHOLE:
        return TableColumn(name, "long")
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
    "PERIOD": "text",
}
_WHOLE: Final = "org.apache.kafka.connect.data.Decimal"
"""Of numbers that may be above 2^63; those with digits after the point are asked for as text."""
_DECIMALS: Final = frozenset({"NUMERIC", "DECIMAL", "NUMBER"})
_KINDS_BY_SEMANTIC_TYPE: Final = {
    "io.debezium.time.Date": "DATE",
    "io.debezium.time.Timestamp": "TIMESTAMP",
    "io.debezium.time.MicroTimestamp": "TIMESTAMP",
    # A period of up to 838 hours.
    "io.debezium.time.MicroTime": "PERIOD",
    "io.debezium.time.IsoDate": "DATE",
    "io.debezium.time.IsoTime": "TIME",
    "io.debezium.time.IsoTimestamp": "TIMESTAMP",
    "io.debezium.time.ZonedTimestamp": "TIMESTAMPTZ",
    "io.debezium.data.Bits": "BIT",
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
    if shape.connector != POSTGRES:
        return {
            name: change
            for name, column in shape.columns.items()
            if (change := _fix_by_semantic_type(column)) is not None
        }
    found = {}
    fix: Callable[[Any], Any] | None
    for name, column in shape.columns.items():
        array, kind = column.type.startswith("_"), column.type.removeprefix("_").lower()
        if kind == "bit":
            fix = _bits(column.length)
        elif column.stored in _NUMBERS_OF_TIME:
            fix = _TIMES.get(kind)
        else:
            fix = _FIXES.get(kind)
        if fix is not None:
            found[name] = _each(fix) if array else fix
    return found


def _fix_by_semantic_type(column: Column) -> Callable[[Any], Any] | None:
    if column.semantic_type == "io.debezium.data.Bits":
        return _bits(column.length)
    if column.stored == "BYTES" and not column.semantic_type:
        return hexadecimal
    if column.semantic_type == _WHOLE:
        return _whole
    return _LOCAL.get(column.semantic_type)


def fixed(row: Row, changes: Mapping[str, Callable[[Any], Any]]) -> Row:
    """The row with these columns' values changed."""
    return row | {name: fix(row[name]) for name, fix in changes.items() if row.get(name) is not None}


def _each(fix: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [None if value is None else fix(value) for value in values]


# What Debezium makes of infinity: the snapshot and the log differ. No Postgres has days and times like these.
_INFINITE_DAYS: Final = {
    -622191234: "infinity",
    -2147472692: "infinity",
    -625821272: "-infinity",
    -2147472691: "-infinity",
}
_INFINITE_TIMES: Final = {9223372036825200000: "infinity", -9223372036832400000: "-infinity"}
LAST_MICROSECOND: Final = 2**63 - 1
"""What Debezium makes of any later one."""
_INFINITE_INSTANTS: Final = {"+292269055-12-02T23:00:00.000000Z": "-infinity"}
_NUMBERS: Final = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}
_YEAR: Final = re.compile(r"([+-]?)(\d+)(.*)", re.DOTALL)
_NUMBERS_OF_TIME: Final = frozenset({"INT32", "INT64"})
"""How days and microseconds are stored."""
_DAY: Final = 86_400_000_000
_FIRST_DAY, _LAST_DAY = date.min.toordinal(), date.max.toordinal()
_CYCLE: Final = 146_097
"""After so many days, which are 400 years, the calendar repeats itself."""


def _date(days: int) -> str:
    """Days since 1970 as Postgres writes them, in the calendar that has no gap in 1582."""
    if days in _INFINITE_DAYS:
        return _INFINITE_DAYS[days]
    day, era = _day(days)
    return f"{day}{era}"


def _timestamp(microseconds: int) -> str:
    if microseconds in _INFINITE_TIMES:
        return _INFINITE_TIMES[microseconds]
    if microseconds == LAST_MICROSECOND:
        raise StateError(
            "a timestamp in or after the year 294247 cannot be captured", hint="store the column as text"
        )
    days, rest = divmod(microseconds, _DAY)
    day, era = _day(days)
    return f"{day}T{_time_of_day(rest)}{era}"


def _day(days: int) -> tuple[str, str]:
    """The day, and `` BC`` before the year 1."""
    ordinal = days + _EPOCH_DAY
    if _FIRST_DAY <= ordinal <= _LAST_DAY:
        return date.fromordinal(ordinal).isoformat(), ""
    cycles, rest = divmod(ordinal - 1, _CYCLE)
    within = date.fromordinal(rest + 1)
    year = within.year + 400 * cycles
    of_year = f"{within.month:02}-{within.day:02}"
    return (f"{year}-{of_year}", "") if year > 0 else (f"{1 - year:04}-{of_year}", " BC")


def _time_of_day(microseconds: int) -> str:
    """With as many digits as are needed. The end of a day is ``24:00:00``."""
    seconds, fraction = divmod(microseconds, 1_000_000)
    minutes, second = divmod(seconds, 60)
    text = f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"
    return f"{text}.{fraction:06}".rstrip("0") if fraction else text


def _timestamptz(value: str) -> str:
    if value[0] not in "+-" and value[:5] != "0000-":
        return value
    return value if value == "-infinity" else _INFINITE_INSTANTS.get(value) or _era(value)


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
    return f"{1 + int(year):04}{rest} BC" if sign == "-" or not int(year) else f"{year}{rest}"


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
    "timestamptz": _timestamptz,
    "numeric": _number,
    "point": _point,
}
_TIMES: Final[dict[str, Callable[[Any], Any]]] = {
    "date": _date,
    "time": _time_of_day,
    "timestamp": _timestamp,
}
"""Of columns that are stored as numbers; text is as Postgres writes it."""


def _whole(value: str) -> int:
    return int.from_bytes(base64.b64decode(value), "big", signed=True)


def _days(value: int) -> str:
    return (_EPOCH + timedelta(days=value)).date().isoformat()


def _milliseconds(value: int) -> str:
    return (_EPOCH + timedelta(milliseconds=value)).isoformat()


def _microseconds(value: int) -> str:
    return (_EPOCH + timedelta(microseconds=value)).isoformat()


def _period(value: int) -> str:
    """Microseconds as hours, which may be more than 24, minutes and seconds."""
    seconds, fraction = divmod(abs(value), 1_000_000)
    hours, seconds = divmod(seconds, 3600)
    text = f"{'-' if value < 0 else ''}{hours:02}:{seconds // 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}" if fraction else text


def _without_zone(value: str) -> str:
    return value.removesuffix("Z")


_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - a local time, as the columns are
_LOCAL: Final[dict[str, Callable[[Any], Any]]] = {
    "io.debezium.time.Date": _days,
    "io.debezium.time.Timestamp": _milliseconds,
    "io.debezium.time.MicroTimestamp": _microseconds,
    "io.debezium.time.MicroTime": _period,
    # Without a time zone: the Z is not the database's.
    "io.debezium.time.IsoDate": _without_zone,
    "io.debezium.time.IsoTime": _without_zone,
    "io.debezium.time.IsoTimestamp": _without_zone,
}
"""By what Debezium made of a column."""
