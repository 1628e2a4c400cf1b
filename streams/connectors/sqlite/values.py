"""Python's values as SQLite's: null, 64-bit integers, floats, text and bytes, without a silent loss.

What a column does with a value is its *affinity*: one declared ``DECIMAL`` turns the text of a number into
a float, and one declared ``TEXT`` a float into text of 15 digits.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from operator import ne
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from streams.serde import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

Affinity: TypeAlias = Literal["INTEGER", "REAL", "NUMERIC", "TEXT", "NONE"]

UNCHANGED: Final[dict[Affinity, frozenset[type]]] = {
    "INTEGER": frozenset({int, bool, bytes, NoneType}),
    "NUMERIC": frozenset({int, bool, bytes, NoneType}),
    "REAL": frozenset({bool, bytes, NoneType}),
    "TEXT": frozenset({str, int, bool, bytes, NoneType}),
    "NONE": frozenset({str, int, bool, bytes, NoneType}),
}
"""The types whose values a column of this affinity keeps."""

_JSON: Final = Json()


def affinity(declared: str, *, strict: bool) -> Affinity:
    """The affinity of a column by its declared type, as SQLite determines it."""
    kind = declared.upper()
    if "INT" in kind:
        return "INTEGER"
    if any(word in kind for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if not kind or "BLOB" in kind or (strict and kind == "ANY"):
        return "NONE"
    if any(word in kind for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"


def keeps(affinity: Affinity, column: Sequence[Any]) -> bool:
    """Whether all values of a column can be stored as they are; decided by their types."""
    others = set(map(type, column)) - UNCHANGED[affinity]
    if others == {float} and affinity != "TEXT":
        # Only NaN differs from itself: it would be stored as null.
        return not any(map(ne, column, column))
    return not others


def stored(affinity: Affinity, value: Any) -> Any:
    """The value as SQLite stores it. Raises ``ValueError`` or ``TypeError`` for one that it cannot store."""
    kind: type = type(value)
    if kind in UNCHANGED[affinity]:
        return value
    if kind is float:
        if math.isnan(value):
            return "NaN"
        return repr(value) if affinity == "TEXT" else value
    if kind is int:
        return _exact(affinity, value)
    if kind is str:
        try:
            number = Decimal(value)
        except InvalidOperation:
            return value
        return _exact(affinity, number) if number.is_finite() else value
    if kind is Decimal:
        if affinity in {"TEXT", "NONE"} or not value.is_finite():
            return f"{value:f}"
        return _exact(affinity, value)
    plain = msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True)
    if isinstance(plain, dict | list | tuple):
        return next(iter(_JSON.serialize([value]))).decode()
    return stored(affinity, plain) if type(plain) is not kind else plain


def _exact(affinity: Affinity, number: int | Decimal) -> int | float:
    """The number as a column of numbers keeps it. Raises ``ValueError`` if that is another number."""
    whole = int(number)
    if affinity != "REAL" and whole == number and abs(whole) < 1 << 63:
        return whole
    near = float(number)
    if Decimal(repr(near)) != number:
        raise ValueError(f"{number} would be stored as {near!r}: declare the column TEXT, which keeps it")
    return near
