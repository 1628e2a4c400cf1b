"""Columns of captured tables as Avro types, and their values between Avro's form and that of changes.

Values of changes are text where JSON has no type for them, as the database writes it. A value that the Avro
type of its column cannot hold (``infinity``, years before 1 and after 9999, ``NaN``) stays that text: such a
column is a union with ``string``.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.connectors.table_row import Column, ColumnKind

Convert: TypeAlias = "Callable[[Any], Any]"

TYPES: Final[dict[ColumnKind, Any]] = {
    "boolean": "boolean",
    "int": "int",
    "long": "long",
    "double": "double",
    "bytes": "bytes",
    "uuid": {"type": "string", "logicalType": "uuid"},
    "text": "string",
    "date": {"type": "int", "logicalType": "date"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "timestamp": {"type": "long", "logicalType": "local-timestamp-micros"},
    "timestamptz": {"type": "long", "logicalType": "timestamp-micros"},
}
_KEY_TYPES: Final[dict[ColumnKind, Any]] = {
    "boolean": "boolean",
    "int": "long",
    "long": "long",
    "double": "double",
    "bytes": "bytes",
}
"""In keys, where all else is text: a key keeps its bytes when its column gets a larger type."""


def avro_branches(column: Column) -> list[Any]:
    """The types of a column's values, without null; with ``string`` where it may have others."""
    kind: Any = (
        {"type": "bytes", "logicalType": "decimal", "precision": column.precision, "scale": column.scale}
        if column.kind == "decimal"
        else TYPES[column.kind]
    )
    branches = [kind, "string"] if column.kind in _PARTIAL else [kind]
    return [{"type": "array", "items": ["null", *branches]}] if column.array else branches


def key_type(column: Column) -> Any:
    """The type of a column's values in keys, which have no nulls."""
    kind = _KEY_TYPES.get(column.kind, "string")
    return {"type": "array", "items": ["null", kind]} if column.array else kind


def to_avro(column: Column) -> Convert | None:
    """What makes a column's values those that Avro encodes; ``None`` where they are the same."""
    found = _unscaled(column.scale) if column.kind == "decimal" else _TO_AVRO.get(column.kind)
    return _each(found) if found is not None and column.array else found


def key_to_avro(column: Column) -> Convert | None:
    """The same for a column of a key."""
    return to_avro(column) if column.kind in _KEY_TYPES else None


def from_avro(types: Any, *, finite: bool) -> Convert | None:
    """The opposite, by the type, or the union, of a field in the schema with which it was written.

    With ``finite``, floats that JSON lacks are text.
    """
    for branch in types if isinstance(types, list) else [types]:
        kind = branch if isinstance(branch, str) else branch["type"]
        if kind == "array":
            inner = from_avro(branch["items"], finite=finite)
            return None if inner is None else _each(inner)
        logical = "" if isinstance(branch, str) else str(branch.get("logicalType", ""))
        if kind == "bytes" and logical == "decimal":
            return _scaled(int(branch.get("scale", 0)))
        if logical in _FROM_AVRO:
            return _FROM_AVRO[logical]
        if kind in {"double", "float"} and finite:
            return _float_value
    return None


def _each(convert: Convert) -> Convert:
    return lambda values: [None if value is None else convert(value) for value in values]


# --- numbers

_NOT_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})


def _float(value: Any) -> Any:
    return float(value) if value in _NOT_FINITE else value


def _float_value(value: float) -> float | str:
    # Changes have those that JSON lacks as text.
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 - only NaN differs from itself


def _unscaled(scale: int) -> Convert:
    """Text with exactly ``scale`` digits after the point as a decimal's bytes; other text as it is."""
    digits = re.compile(rf"-?(?:0|[1-9]\d*)\.\d{{{scale}}}" if scale else r"-?(?:0|[1-9]\d*)", re.ASCII)
    matches = digits.fullmatch

    def convert(value: str) -> bytes | str:
        if matches(value) is None:
            return value
        number = int(value.replace(".", ""))
        if number == 0 and value[0] == "-":
            return value
        return number.to_bytes(
            ((number if number >= 0 else ~number).bit_length() >> 3) + 1, "big", signed=True
        )

    return convert


def _scaled(scale: int) -> Convert:
    least = scale + 1

    def convert(value: Any) -> Any:
        if type(value) is str:
            return value
        number = int.from_bytes(value, "big", signed=True)
        if not scale:
            return str(number)
        text = str(abs(number)).zfill(least)
        return f"{'-' if number < 0 else ''}{text[:-scale]}.{text[-scale:]}"

    return convert


# --- times

_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - without a zone, or in UTC by what it is used for
_EPOCH_DAY: Final = _EPOCH.toordinal()
_DAY: Final = 86_400_000_000
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII).fullmatch
_TIME: Final = re.compile(r"\d\d:\d\d:\d\d(?:\.\d{0,5}[1-9])?", re.ASCII).fullmatch
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{0,5}[1-9])?", re.ASCII).fullmatch
_TIMESTAMPTZ: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z", re.ASCII).fullmatch


def _days(value: str) -> int | str:
    if _DATE(value) is None:
        return value
    try:
        return dt.date.fromisoformat(value).toordinal() - _EPOCH_DAY
    except ValueError:
        return value


def _date(value: Any) -> Any:
    return value if type(value) is str else dt.date.fromordinal(value + _EPOCH_DAY).isoformat()


def _micros(moment: dt.datetime) -> int:
    since = moment - _EPOCH
    return since.days * _DAY + since.seconds * 1_000_000 + since.microseconds


def _timestamp_micros(value: str) -> int | str:
    if _TIMESTAMP(value) is None:
        return value
    try:
        return _micros(dt.datetime.fromisoformat(value))
    except ValueError:
        return value


def _timestamp(value: Any) -> Any:
    if type(value) is str:
        return value
    text = (_EPOCH + dt.timedelta(microseconds=value)).isoformat()
    return text.rstrip("0") if len(text) > _SECONDS else text


def _timestamptz_micros(value: str) -> int | str:
    if _TIMESTAMPTZ(value) is None:
        return value
    try:
        return _micros(dt.datetime.fromisoformat(value[:-1]))
    except ValueError:
        return value


def _timestamptz(value: Any) -> Any:
    if type(value) is str:
        return value
    return (_EPOCH + dt.timedelta(microseconds=value)).isoformat(timespec="microseconds") + "Z"


def _time_micros(value: str) -> int | str:
    if _TIME(value) is None:
        return value
    try:
        time = dt.time.fromisoformat(value)
    except ValueError:
        return value
    return ((time.hour * 60 + time.minute) * 60 + time.second) * 1_000_000 + time.microsecond


def _time(value: Any) -> Any:
    if type(value) is str:
        return value
    text = (_EPOCH + dt.timedelta(microseconds=value)).time().isoformat()
    return text.rstrip("0") if "." in text else text


_SECONDS: Final = len("1970-01-01T00:00:00")


def _bytes(value: str | bytes) -> bytes:
    if not isinstance(value, str):
        return value
    if not value.startswith("\\x"):
        raise ValueError(f"bytes are written as \\x and hexadecimal digits, got {value!r:.40}")
    return bytes.fromhex(value[2:])


_TO_AVRO: Final[dict[ColumnKind, Convert]] = {
    "double": _float,
    "bytes": _bytes,
    "date": _days,
    "time": _time_micros,
    "timestamp": _timestamp_micros,
    "timestamptz": _timestamptz_micros,
}
_PARTIAL: Final[frozenset[ColumnKind]] = frozenset({"decimal", "date", "time", "timestamp", "timestamptz"})
_FROM_AVRO: Final[dict[str, Convert]] = {
    "date": _date,
    "time-micros": _time,
    "local-timestamp-micros": _timestamp,
    "timestamp-micros": _timestamptz,
}
