"""Values as what Redis keeps: text, of rows the fields with their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from streams.connectors.mapped_rows import present

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def to_text(value: Any) -> bytes:
    """A value as bytes: text and bytes as they are, numbers in decimal, what has a structure as JSON.

    Raises ``TypeError`` or ``ValueError`` for what has no form as JSON.
    """
    write = _WRITERS.get(type(value))
    return _other(value) if write is None else write(value)


def to_texts(values: Sequence[Any]) -> list[bytes]:
    """As ``to_text``, for a column."""
    if set(map(type, values)) == {bytes}:
        return list(values)
    return [to_text(value) for value in values]


def row_words(row: Any) -> tuple[list[bytes], list[bytes]]:
    """The fields of a row, as names and texts in turns, and the names of those that are null."""
    words: list[bytes] = []
    nulls: list[bytes] = []
    for name, value in present(row).items():
        if value is None:
            nulls.append(to_text(name))
        else:
            words += (to_text(name), to_text(value))
    return words, nulls


def has_fields(kind: type) -> bool:
    """Whether values of a class are rows."""
    return issubclass(kind, Mapping | msgspec.Struct) or hasattr(kind, "__dataclass_fields__")


def _other(value: Any) -> bytes:
    """Of other classes: as JSON writes them, without quotes around text."""
    if isinstance(value, str | bytes | bytearray):
        return value.encode() if isinstance(value, str) else bytes(value)
    plain = msgspec.to_builtins(value, str_keys=True)
    if isinstance(plain, str):
        return plain.encode()
    return msgspec.json.encode(plain)


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    str: str.encode,
    bytes: lambda value: value,
    int: lambda value: b"%d" % value,
    float: lambda value: repr(value).encode(),
    bool: lambda value: b"true" if value else b"false",
}
