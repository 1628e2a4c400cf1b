"""Values that the server did not send, as an update left them as they were: Debezium's markers for them."""

from __future__ import annotations

import base64
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from streams.connectors.debezium.settings import UNAVAILABLE
from streams.connectors.debezium.values import hexadecimal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.debezium.values import Row

_encode = msgspec.json.Encoder().encode
_UNAVAILABLE_BYTES: Final = base64.b64encode(UNAVAILABLE.encode()).decode()
_UNAVAILABLE_UUID: Final = str(UUID(bytes=md5(UNAVAILABLE.encode()).digest(), version=3))  # noqa: S324 - what Java makes of it
_UNAVAILABLE_HEX: Final = hexadecimal(_UNAVAILABLE_BYTES)
_TEXTS: Final = frozenset({UNAVAILABLE, _UNAVAILABLE_HEX, _encode({UNAVAILABLE: UNAVAILABLE}).decode()})
_LISTS: Final = ([UNAVAILABLE], [_UNAVAILABLE_HEX], [_UNAVAILABLE_UUID], [*UNAVAILABLE.encode()])
# JSON in JSON has escaped quotes: the text itself is searched for.
_MARKERS: Final = (
    UNAVAILABLE.encode(),
    _UNAVAILABLE_BYTES.encode(),
    *(_encode(marker)[1:-1] for marker in _LISTS),
)


def may_leave_out(payloads: Sequence[bytes | None]) -> bool:
    """Whether there may be a row among these of which the server did not send all values."""
    together = b"".join(payload or b"" for payload in payloads)
    return any(marker in together for marker in _MARKERS)


def left_out(row: Row) -> list[str]:
    """The columns whose values the server did not send."""
    return [name for name, value in row.items() if is_left_out(value)]


def is_left_out(value: Any) -> bool:
    """Whether it stands for a value that the server did not send."""
    if isinstance(value, str):
        return value in _TEXTS
    if isinstance(value, list):
        return value in _LISTS
    return False


def filled(row: Row, known: Mapping[str, Any]) -> Row:
    """The row with the values that are missing in it, where they are known."""
    return {name: known.get(name, value) if is_left_out(value) else value for name, value in row.items()}


def completed(row: Row, read: Mapping[str, Any]) -> Row:
    """The row with the values that are missing in it as they were read; without columns that are gone."""
    return {
        name: read[name] if is_left_out(value) else value
        for name, value in row.items()
        if name in read or not is_left_out(value)
    }
