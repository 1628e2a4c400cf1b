"""Single keys and values as bytes, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.serde import Serde


def encode(serde: Serde[Any], value: Any) -> bytes | None:
    """The value's bytes; nothing for ``None``."""
    return None if value is None else next(iter(serde.serialize([value])))


def decode(serde: Serde[Any], payload: bytes | None) -> Any:
    """The value of these bytes."""
    return None if payload is None else next(iter(serde.deserialize([payload])))
