"""The properties of messages, as AMQP encodes them, and as headers of records."""

from __future__ import annotations

import base64
import datetime as dt
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec
from amqp.serialization import loads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PropertyName: TypeAlias = Literal[
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
    "exchange",
    "routing_key",
    "redelivered",
]
"""What a message has beside its body and its headers: AMQP's properties, and those of its delivery."""

PREFIX: Final = "rabbitmq."
"""Begins the names of headers that are properties, e.g. ``rabbitmq.content_type``."""

UNREADABLE: Final = f"{PREFIX}headers"
"""A header with the table of a message's headers as it was sent, where it cannot be read."""

PROPERTY_NAMES: Final[tuple[str, ...]] = get_args(PropertyName)

_SHORT, _OCTET, _TIME, _TABLE = range(4)

_FIELDS: Final = (
    ("content_type", _SHORT),
    ("content_encoding", _SHORT),
    ("headers", _TABLE),
    ("delivery_mode", _OCTET),
    ("priority", _OCTET),
    ("correlation_id", _SHORT),
    ("reply_to", _SHORT),
    ("expiration", _SHORT),
    ("message_id", _SHORT),
    ("timestamp", _TIME),
    ("type", _SHORT),
    ("user_id", _SHORT),
    ("app_id", _SHORT),
    ("cluster_id", _SHORT),
)
"""In the order of their bits, the highest first, which is that of their values."""

_BITS: Final = {name: 1 << (15 - place) for place, (name, _) in enumerate(_FIELDS)}
_LONG: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")
_FLAGS_AT: Final = 12
"""Before them a content header has the class, a weight, and the length of the body."""

LONGEST_SHORT: Final = 255
"""How many bytes a property, a routing key and the name of a header may have."""


_SENT: Final = frozenset(
    {
        "content_type",
        "content_encoding",
        "priority",
        "correlation_id",
        "reply_to",
        "expiration",
        "type",
        "app_id",
    }
)
"""Properties that a record's headers may set. A server refuses a ``user_id`` of another user."""


@cache
def _fields(flags: int) -> tuple[tuple[str, int], ...]:
    return tuple((name, kind) for name, kind in _FIELDS if flags & _BITS[name])


def decoded(payload: bytes) -> dict[str, Any]:
    """The properties in a content header: text as bytes, numbers as integers, the table ``headers``."""
    at = _FLAGS_AT + 2
    found: dict[str, Any] = {}
    for name, kind in _fields(payload[_FLAGS_AT] << 8 | payload[_FLAGS_AT + 1]):
        if kind == _SHORT:
            end = at + 1 + payload[at]
            found[name] = payload[at + 1 : end]
            at = end
        elif kind == _OCTET:
            found[name] = payload[at]
            at += 1
        elif kind == _TIME:
            (found[name],) = _LONG.unpack_from(payload, at)
            at += 8
        else:
            end = at + 4 + _LENGTH.unpack_from(payload, at)[0]
            try:
                (found[name],), _ = loads("F", payload, at)
            except Exception:  # noqa: BLE001 - of many classes, e.g. for a time beyond the year 9999
                found[name] = {UNREADABLE: payload[at:end]}
            at = end
    return found


def as_header_value(value: Any) -> bytes | None:
    """A value of a header table: text and bytes as they are, numbers in decimal, structures as JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes | None):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return b"%d" % value
    plain = _plain(value)
    return plain.encode() if isinstance(plain, str) else msgspec.json.encode(plain)


def _plain(value: Any) -> Any:
    """A value as JSON has it: bytes that are no text in base 64."""
    if isinstance(value, dict):
        return {str(_plain(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime):
        return f"{value.isoformat()}Z"
    return msgspec.to_builtins(value)


def encoded(properties: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The flags and the values of properties: text as bytes, numbers, and ``headers`` as encoded bytes.

    Raises ``ValueError`` for one that does not fit.
    """
    flags = 0
    found: list[bytes] = []
    for name, kind in _FIELDS:
        value = properties.get(name)
        if value is None:
            continue
        flags |= _BITS[name]
        if kind == _SHORT:
            found.append(short(value, name))
        elif kind == _OCTET:
            if not 0 <= value < 256:
                raise ValueError(f"the property {name} is a number from 0 to 255, got {value}")
            found.append(b"%c" % value)
        elif kind == _TIME:
            found.append(_LONG.pack(value))
        else:
            found.append(value)
    return flags.to_bytes(2), b"".join(found)


def short(value: bytes, name: str) -> bytes:
    """A text with its length before it. Raises ``ValueError`` if it is too long."""
    if len(value) > LONGEST_SHORT:
        raise ValueError(
            f"the {name} has {len(value)} bytes, and AMQP allows {LONGEST_SHORT}: {value[:80]!r}…"
        )
    return b"%c%b" % (len(value), value)


def table(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """An encoded table of headers: text where it is UTF-8, bytes otherwise; of a name the last value."""
    found = []
    for name, value in dict(headers).items():
        begin = short(name.encode(), f"name of the header {name:.40}")
        if value is None:
            found.append(b"%bV" % begin)
            continue
        kind = b"S"
        if not value.isascii():
            try:
                value.decode()
            except UnicodeDecodeError:
                kind = b"x"
        found.append(b"%b%b%b%b" % (begin, kind, _LENGTH.pack(len(value)), value))
    content = b"".join(found)
    return _LENGTH.pack(len(content)) + content


def own_properties(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, Any]:
    """The properties that a record's headers name (``rabbitmq.…``), without those that a sink sets itself.

    Raises ``ValueError`` for one that does not fit.
    """
    found: dict[str, Any] = {}
    for header, value in headers:
        name = header.removeprefix(PREFIX)
        if name == header or name not in _SENT or value is None:
            continue
        if name == "priority":
            try:
                found[name] = int(value)
            except ValueError:
                raise ValueError(f"the header {header} is a number, got {value!r:.40}") from None
        else:
            found[name] = value
    return found
