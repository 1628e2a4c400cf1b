"""Values to the text of array elements: a column becomes one parameter, which the server casts by its type.

The server reads the text of every type, so also values that Python has no type for (``infinity``, years BC)
are written as they are. Only numbers are sent in their binary form, which is several times as fast.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import enum
import ipaddress
import json
import struct
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.connectors.postgres.table import Column

_NULL = "NULL"
_MARK = "\x1a"
"""Stands for a null while texts are quoted together, where no text contains it."""

_NUMBERS: dict[type, Callable[[Any], str]] = {int: str, float: repr, bool: lambda value: "tf"[not value]}
"""Types whose text needs no quotes in an array."""


class BinaryArray(bytes):
    """An array in the server's binary form, and not as text."""


class _Number(NamedTuple):
    """How the binary form has a number: its Python type, its format for ``struct``, and its type's id."""

    kind: type
    code: str
    size: int
    oid: int


_BINARY = {
    "smallint": _Number(int, "h", 2, 21),
    "integer": _Number(int, "i", 4, 23),
    "bigint": _Number(int, "q", 8, 20),
    "double precision": _Number(float, "d", 8, 701),
}
"""Of columns with exactly these types: the array of a domain has elements of the domain's own."""


class UnwritableValues(Exception):
    """Some values of a column have no text that Postgres takes; ``encode`` says which."""


def number_array(numbers: Sequence[int]) -> bytes:
    """Numbers as the text of an array, in which spaces do not matter."""
    return f"{{{repr(list(numbers))[1:-1]}}}".encode()


def text_array(texts: Sequence[str]) -> bytes:
    """Texts without NUL characters as the text of an array."""
    return f"{{{','.join(_quoted(texts, {}))}}}".encode()


def literal(column: Column, values: Sequence[Any]) -> bytes:
    """The values of a column as an array: text, or a ``BinaryArray``. Raises ``UnwritableValues``."""
    kinds = set(map(type, values))
    nulls = type(None) in kinds
    kinds.discard(type(None))
    text = None
    if len(kinds) == 1 and not column.is_array:
        (kind,) = kinds
        number = _BINARY.get(column.type)
        if number is not None and number.kind is kind and not nulls:
            # What is too large for the type is left to the server, which says so.
            with contextlib.suppress(struct.error):
                return _binary(number, values)
        if kind is str:
            text = _text_literal(values, nulls=nulls)
        elif kind in {int, float} and column.base not in {"bytea", "json", "jsonb"}:
            # Numbers are written as Python's lists are.
            text = f"{{{repr(list(values))[1:-1]}}}"
            text = text.replace("None", _NULL) if nulls else text
    try:
        if text is not None:
            return text.encode()
    except UnicodeEncodeError:
        # A lone surrogate.
        pass
    refused: dict[int, Exception] = {}
    elements = encode(column, values, refused)
    if refused:
        raise UnwritableValues
    return f"{{{','.join(elements)}}}".encode()


def _binary(number: _Number, values: Sequence[Any]) -> BinaryArray:
    pieces = [number.size] * (2 * len(values))
    pieces[1::2] = values
    # One dimension without nulls, from index 1 on; then each element with its length before it.
    return BinaryArray(
        struct.pack("!5i", 1, 0, number.oid, len(values), 1)
        + _elements(number.code, len(values)).pack(*pieces)
    )


@lru_cache(maxsize=64)
def _elements(code: str, count: int) -> struct.Struct:
    return struct.Struct("!" + f"i{code}" * count)


def _text_literal(texts: Sequence[str | None], *, nulls: bool) -> str | None:
    """Texts as an array, all at once; ``None`` if one has a character that stands for something else here."""
    count = texts.count(None) if nulls else 0
    together = "\0".join([_MARK if text is None else text for text in texts] if nulls else texts)  # type: ignore[arg-type]  # without nulls, all are texts
    if together.count("\0") >= len(texts) or (nulls and together.count(_MARK) != count):
        return None
    escaped = together.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    quoted = f'{{"{escaped}"}}'
    return quoted.replace(f'"{_MARK}"', _NULL) if nulls else quoted


def encode(column: Column, values: Sequence[Any], refused: dict[int, Exception]) -> list[str]:
    """The array elements of a column's values. What cannot be written is added to ``refused``, by row."""
    kinds = set(map(type, values))
    nullable = type(None) in kinds
    kinds.discard(type(None))
    if len(kinds) == 1 and not column.is_array and column.base != "bytea":
        (kind,) = kinds
        if kind in _NUMBERS:
            text = _NUMBERS[kind]
            if kind is not float or column.base not in {"json", "jsonb"}:
                if nullable:
                    return [_NULL if value is None else text(value) for value in values]
                return list(map(text, values))
    texts: Sequence[Any] = values
    if kinds != {str}:
        texts = _texts(column, values, kinds, refused)
        nullable = nullable or bool(refused)
    if not nullable:
        return _quoted(texts, refused)
    elements = _quoted(["" if text is None else text for text in texts], refused)
    return [_NULL if text is None else element for text, element in zip(texts, elements, strict=True)]


def _texts(
    column: Column, values: Sequence[Any], kinds: Iterable[type], refused: dict[int, Exception]
) -> list[str | None]:
    writers = {kind: _writer(column, kind) for kind in kinds}
    texts: list[str | None] = []
    for row, value in enumerate(values):
        if value is None:
            texts.append(None)
            continue
        try:
            texts.append(writers[type(value)](value))
        except Exception as error:  # noqa: BLE001 - whatever a value's own code raises concerns its row
            texts.append(None)
            refused.setdefault(row, error)
    return texts


def _quoted(texts: Sequence[str], refused: dict[int, Exception]) -> list[str]:
    """Quote texts, all at once: a NUL cannot be part of the server's text, so it separates them here."""
    if not texts:
        return []
    together = "\0".join(texts)
    if together.count("\0") >= len(texts) or not (together.isascii() or _is_valid(together)):
        texts = list(texts)
        for row, text in enumerate(texts):
            if "\0" in text:
                refused.setdefault(row, ValueError("text of Postgres cannot contain a NUL character (0x00)"))
            elif not _is_valid(text):
                refused.setdefault(row, ValueError("the text has a lone surrogate, which UTF-8 cannot hold"))
            else:
                continue
            texts[row] = ""
        together = "\0".join(texts)
    escaped = together.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '"\0"')
    return f'"{escaped}"'.split("\0")


def _is_valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _writer(column: Column, kind: type) -> Callable[[Any], str]:
    """The function that makes the text of values of one type."""
    if column.is_array:
        return _array_writer(column) if issubclass(kind, list | tuple) else _scalar_writer(column, kind)
    return _scalar_writer(column, kind)


def _scalar_writer(column: Column, kind: type) -> Callable[[Any], str]:
    if issubclass(kind, str) and not issubclass(kind, enum.Enum):
        return str
    if column.base in {"json", "jsonb"} and not column.is_array:
        return _json
    if issubclass(kind, bytes | bytearray | memoryview):
        if column.base == "bytea":
            return lambda value: "\\x" + bytes(value).hex()
        if column.base == "uuid":
            return lambda value: str(uuid.UUID(bytes=bytes(value)))
    elif issubclass(kind, enum.Enum):
        return lambda value: _scalar_writer(column, type(value.value))(value.value)
    elif column.base != "bytea" and (text := _text_of(kind)) is not None:
        return text
    return _unfit(column)


def _text_of(kind: type) -> Callable[[Any], str] | None:
    if issubclass(kind, bool):
        return _NUMBERS[bool]
    if issubclass(kind, int):
        return lambda value: str(int(value))
    if issubclass(kind, float):
        return lambda value: repr(float(value))
    if issubclass(kind, dt.date | dt.time):
        return lambda value: str(value.isoformat())
    if issubclass(kind, dt.timedelta):
        return _interval
    if issubclass(kind, decimal.Decimal | uuid.UUID | _ADDRESSES):
        return str
    return None


_ADDRESSES = (
    ipaddress.IPv4Address
    | ipaddress.IPv6Address
    | ipaddress.IPv4Network
    | ipaddress.IPv6Network
    | ipaddress.IPv4Interface
    | ipaddress.IPv6Interface
)


def _interval(value: dt.timedelta) -> str:
    return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"


def _json(value: Any) -> str:
    text = msgspec.json.encode(value)
    if b"null" in text:
        # msgspec writes null for NaN and infinity, which JSON has not: they must not become another value.
        json.dumps(msgspec.to_builtins(value), allow_nan=False)
    return text.decode()


def _unfit(column: Column) -> Callable[[Any], str]:
    def refuse(value: Any) -> str:
        raise TypeError(
            f"column {column.name!r} is of type {column.declared}: it takes no {type(value).__name__}"
        )

    return refuse


def _array_writer(column: Column) -> Callable[[Any], str]:
    as_json = column.base in {"json", "jsonb"}

    def element(value: Any) -> str:
        if value is None:
            return _NULL
        if as_json and not isinstance(value, str):
            text = _json(value)
        elif isinstance(value, list | tuple):
            return write(value)
        else:
            text = _scalar_writer(column, type(value))(value)
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def write(value: Sequence[Any]) -> str:
        return "{" + ",".join(map(element, value)) + "}"

    return write
