"""Rows as the frames of published messages."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.rabbitmq.message_properties import PREFIX, encoded, own_properties, short, table

if TYPE_CHECKING:
    from streams.records import Headers

_LENGTH: Final = Struct(">I")
_LONG: Final = Struct(">Q")

_METHOD_FRAME: Final = b"\x01\x00\x01"
_HEADER_FRAME: Final = b"\x02\x00\x01"
_BODY_FRAME: Final = b"\x03\x00\x01"
"""How frames of the first channel begin."""

_PUBLISH: Final = b"\x00\x3c\x00\x28\x00\x00"
_CONTENT: Final = b"\x00\x3c\x00\x00"

_AROUND: Final = 8
"""Bytes of a frame around its payload."""

TRANSIENT: Final = 1
PERSISTENT: Final = 2


class PublishFrames:
    """Encodes messages for one exchange. ``frame_max`` is how many bytes a frame may have."""

    def __init__(
        self, exchange: str, *, mandatory: bool, persistent: bool, content_type: str | None, frame_max: int
    ) -> None:
        self._exchange = short(exchange.encode(), "name of the exchange")
        self._bits = b"\x01" if mandatory else b"\x00"
        self._largest = frame_max - _AROUND
        self._fixed: dict[str, Any] = {
            "content_type": None if content_type is None else content_type.encode(),
            "delivery_mode": PERSISTENT if persistent else TRANSIENT,
        }
        # Where the record has no headers, only what follows these properties differs.
        flags, self._before = encoded(self._fixed)
        more, _ = encoded({"message_id": b"", "timestamp": 0})
        self._flags = (int.from_bytes(flags) | int.from_bytes(more)).to_bytes(2)
        self._publish = lru_cache(10_000)(self._method_frame)

    def message(
        self, routing_key: bytes, body: bytes, message_id: bytes, timestamp: int, headers: Headers | None
    ) -> bytes:
        """The frames of a message; ``timestamp`` is in milliseconds. Raises ``ValueError``."""
        seconds = max(0, timestamp // 1_000)
        if headers:
            flags, values = self._properties(message_id, seconds, headers)
        else:
            flags = self._flags
            values = b"%b%b%b" % (self._before, short(message_id, "message_id"), _LONG.pack(seconds))
        size = len(body)
        header = b"%b%b%b%b" % (_CONTENT, _LONG.pack(size), flags, values)
        if len(header) > self._largest:
            raise ValueError(f"the headers have {len(header)} bytes, and the server allows {self._largest}")
        frames = b"%b%b%b%b\xce" % (
            self._publish(routing_key),
            _HEADER_FRAME,
            _LENGTH.pack(len(header)),
            header,
        )
        if size <= self._largest:
            return b"%b%b%b%b\xce" % (frames, _BODY_FRAME, _LENGTH.pack(size), body) if size else frames
        parts = [frames]
        for start in range(0, size, self._largest):
            part = body[start : start + self._largest]
            parts.append(b"%b%b%b\xce" % (_BODY_FRAME, _LENGTH.pack(len(part)), part))
        return b"".join(parts)

    def _properties(self, message_id: bytes, seconds: int, headers: Headers) -> tuple[bytes, bytes]:
        own = {**self._fixed, **own_properties(headers), "message_id": message_id, "timestamp": seconds}
        sent = [item for item in headers if not item[0].startswith(PREFIX)]
        if sent:
            own["headers"] = table(sent)
        return encoded(own)

    def _method_frame(self, routing_key: bytes) -> bytes:
        payload = b"%b%b%b%b" % (_PUBLISH, self._exchange, short(routing_key, "routing key"), self._bits)
        return b"%b%b%b\xce" % (_METHOD_FRAME, _LENGTH.pack(len(payload)), payload)
