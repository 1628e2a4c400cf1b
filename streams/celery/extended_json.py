"""JSON as kombu writes it: values of some more types are objects that name their type."""

from __future__ import annotations

import base64
import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

_FIELDS = {"__type__", "__value__"}

_TYPES = (bytes, datetime, date, time, Decimal, UUID)
"""What has a form of its own in kombu's JSON."""


def read_json(text: bytes) -> Any:
    """Read JSON, with values of the types that are named in it. Raises ``ValueError``."""
    try:
        # Few messages have such values, and the other reader is much faster.
        if b'"__type__"' in text:
            return json.loads(text, object_hook=_named)
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except (TypeError, ArithmeticError, AttributeError, LookupError) as error:
        # A value that does not have its named type.
        raise ValueError(f"a value in its JSON is not of the type that it names: {error}") from error


def write_json(value: Any) -> str:
    """Write a value as JSON that kombu reads back. Raises ``TypeError`` for what has no such form."""
    return json.dumps(_marked(msgspec.to_builtins(value, builtin_types=_TYPES, str_keys=True)))


def _named(fields: dict[str, Any]) -> Any:
    if fields.keys() != _FIELDS:
        return fields
    read = _READERS.get(fields["__type__"])
    if read is None:
        raise ValueError(f"its JSON has a value of the type {fields['__type__']!r:.80}, which is not known")
    return read(fields["__value__"])


_READERS: dict[Any, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda fields: UUID(hex=fields["hex"]),
    "bytes": str.encode,
    "base64": base64.b64decode,
}


def _marked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _marked(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(each) for each in value]
    for kind, name, write in _WRITERS:
        if isinstance(value, kind):
            return {"__type__": name, "__value__": write(value)}
    return value


_WRITERS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    # A datetime is a date too.
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (Decimal, "decimal", str),
    (UUID, "uuid", lambda value: {"hex": value.hex}),
    (bytes, "base64", lambda value: base64.b64encode(value).decode()),
)
