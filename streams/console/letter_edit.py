"""A dead letter's key or value in a form: as text, as fields or in hexadecimal, and read from it again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from streams.console.formats import MASK
from streams.errors import ConfigurationError, error_text

if TYPE_CHECKING:
    from streams.console.formats import ValueFormat
    from streams.console.record_parts import Part
    from streams.serde import Serde

LARGEST: Final = 500_000
"""Bytes of a value that is edited in a form."""


class Editable(NamedTuple):
    """What a form shows of a key or a value."""

    mode: str
    """``text``: the bytes are this text. ``masked``: JSON, whose masked fields stay as they are. ``fields``:
    JSON that the serde encodes. ``hex``: bytes. ``none``: it cannot be edited in a form.
    """
    text: str
    null: bool = False


def editable(part: Part, payload: bytes | None) -> Editable:
    """The form of a key or value. ``part`` is how it is shown."""
    if payload is None:
        return Editable("text", "", null=True)
    if len(payload) > LARGEST:
        return Editable("none", "")
    fields = json.dumps(part.plain, ensure_ascii=False, indent=2, default=str)
    if part.payload is None:
        if part.plain is None:
            return Editable("none", "")
        return Editable("masked" if _is_json(payload) else "fields", fields)
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        if part.plain is not None:
            return Editable("fields", fields)
        return Editable("hex", payload.hex(" "))
    return Editable("hex", payload.hex(" ")) if "\x00" in text else Editable("text", text)


def edited(
    values: ValueFormat, serde: Serde[Any] | None, part: Part, payload: bytes | None, made: Editable
) -> bytes | None:
    """The bytes of what was sent in a form; ``payload`` was edited. Raises ``ConfigurationError``."""
    if made.mode == "none":
        return payload
    if made.null:
        return None
    if made.mode == "hex":
        try:
            return bytes.fromhex(made.text)
        except ValueError as error:
            raise ConfigurationError(f"it is not in hexadecimal: {error}") from error
    # Browsers end lines in their own way.
    text = made.text.replace("\r\n", "\n")
    if made.mode == "text":
        if payload is not None and b"\r\n" in payload and payload.count(b"\n") == payload.count(b"\r\n"):
            text = text.replace("\n", "\r\n")
        return text.encode()
    try:
        fields = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"it is not JSON: {error}") from error
    if made.mode == "masked":
        assert payload is not None, "a null has no masked fields"
        return msgspec.json.encode(_unmasked(values, fields, msgspec.json.decode(payload), ()))
    if serde is None or part.masked:
        raise ConfigurationError("it has masked fields, and cannot be edited here")
    kind = getattr(serde, "value_type", Any)
    try:
        return next(iter(serde.serialize([msgspec.convert(fields, kind)])))
    except Exception as error:
        raise ConfigurationError(
            f"it cannot be written as {serde.name}: {type(error).__name__}: {error_text(error)}"
        ) from error


def _is_json(payload: bytes) -> bool:
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _unmasked(values: ValueFormat, new: Any, before: Any, path: tuple[str, ...]) -> Any:
    """The new value, in which masked fields that were left as shown have what they had before."""
    if isinstance(new, dict):
        known = before if isinstance(before, dict) else {}
        return {
            name: _kept(known, (*path, name))
            if item == MASK and values.hides((*path, name))
            else _unmasked(values, item, known.get(name), (*path, name))
            for name, item in new.items()
        }
    if isinstance(new, list):
        items = before if isinstance(before, list) else []
        return [
            _unmasked(values, item, items[number] if number < len(items) else None, path)
            for number, item in enumerate(new)
        ]
    return new


def _kept(before: dict[str, Any], path: tuple[str, ...]) -> Any:
    if path[-1] not in before:
        raise ConfigurationError(
            f"the field {'.'.join(path)} is masked, and the record has none there that could be kept",
            hint="write its value",
        )
    return before[path[-1]]
