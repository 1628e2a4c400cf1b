"""Messages as columns of records."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from streams.connectors.rabbitmq.declarations import Header
from streams.connectors.rabbitmq.message_properties import PREFIX, as_header_value, decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.rabbitmq.message_properties import PropertyName
    from streams.records import Headers

FieldName: TypeAlias = "PropertyName | Header"
"""A part of a message: a property, or a header."""

_LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999: numbers beyond are no times."""

_TAG_BYTES: Final = 8


class Columns(NamedTuple):
    """The columns of messages."""

    keys: Sequence[bytes | None]
    timestamps: Sequence[int]
    """The messages' own times, or that of reading."""
    headers: Sequence[Headers | None] | None


class Delivery(NamedTuple):
    """What the server says of a message that it delivers."""

    redelivered: bool
    exchange: bytes
    routing_key: bytes


def delivery(method: bytes) -> Delivery:
    """Reads ``basic.deliver``."""
    at = 5 + method[4] + _TAG_BYTES
    begin = at + 2
    end = begin + method[at + 1]
    return Delivery(method[at] & 1 == 1, method[begin:end], method[end + 1 : end + 1 + method[end]])


def redelivered(methods: Sequence[bytes]) -> int:
    """How many messages the server has delivered before, to whichever consumer."""
    return sum(method[5 + method[4] + _TAG_BYTES] & 1 for method in methods)


@dataclass(frozen=True, slots=True)
class MessageColumns:
    """How messages become records: where the key is, which properties are headers, what the identity is."""

    key_from: FieldName | None
    identity: FieldName | None
    properties: tuple[str, ...]

    def columns(self, methods: Sequence[bytes], contents: Sequence[bytes]) -> Columns:
        """The columns of messages, of whose frames these are."""
        now = time.time_ns() // 1_000_000
        keys: list[bytes | None] = []
        timestamps: list[int] = []
        headers: list[Headers | None] = []
        delivered = self._needs_delivery
        last = b""
        properties: dict[str, Any] = {}
        for method, content in zip(methods, contents, strict=True):
            if content[12:] != last or not properties:
                last, properties = content[12:], decoded(content)
            own = properties
            if delivered:
                at = delivery(method)
                own = {
                    **properties,
                    "exchange": at.exchange,
                    "routing_key": at.routing_key,
                    "redelivered": at.redelivered,
                }
            keys.append(None if self.key_from is None else _field(own, self.key_from))
            seconds = properties.get("timestamp")
            timestamps.append(now if seconds is None or seconds > _LAST_SECOND else seconds * 1_000)
            headers.append(self._headers(own))
        return Columns(keys, timestamps, headers if any(headers) else None)

    @property
    def _needs_delivery(self) -> bool:
        parts = {"exchange", "routing_key", "redelivered"}
        return not parts.isdisjoint((*self.properties, self.key_from, self.identity))

    def _headers(self, properties: dict[str, Any]) -> Headers | None:
        found: Headers = []
        own = None if self.identity is None else identity_header(self.identity)
        if self.identity is not None and own is not None:
            identity = _field(properties, self.identity)
            if identity:
                found.append((own, identity))
        table = properties.get("headers")
        if table:
            # A sender does not choose what is taken for the identity.
            found += [(str(name), as_header_value(value)) for name, value in table.items() if name != own]
        for name in self.properties:
            if own == PREFIX + name:
                continue
            value = properties.get(name)
            if value is not None:
                found.append((PREFIX + name, as_header_value(value)))
        return found or None


def _field(properties: dict[str, Any], field: FieldName) -> bytes | None:
    if isinstance(field, Header):
        table = properties.get("headers")
        return as_header_value(table.get(field.name)) if table else None
    return as_header_value(properties.get(field))


def identity_header(field: FieldName) -> str:
    """The header with what a message is recognised by; the first one of its record."""
    return f"{PREFIX}identity" if isinstance(field, Header) else PREFIX + field


def identities(headers: Sequence[Headers | None] | None, name: str, count: int) -> list[bytes | None]:
    """The identities of records, from headers of that name, ``None`` for those of messages without."""
    if headers is None:
        return [None] * count
    return [own[0][1] if own and own[0][0] == name else None for own in headers]
