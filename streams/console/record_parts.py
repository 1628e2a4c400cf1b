"""Keys, values and headers of records as pages show and search them: decoded, and without masked fields.

Bytes in which a masked field may be are not shown: neither a search nor the view of bytes tells more than the
decoded value does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from streams.console.formats import MASK, cut
from streams.errors import error_text
from streams.ingest.line_records import field_of
from streams.replay.plain_values import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.console.formats import ValueFormat
    from streams.records import Headers
    from streams.topology.topic_format import TopicFormat

SHOWN_BYTES: Final = 2_048
"""Bytes that the view of bytes has."""

HEX_CHARACTERS: Final = 200
"""Characters of bytes that are not text, where a value is one of many."""


class Part(NamedTuple):
    """A record's key or value."""

    text: str
    """What is shown, complete."""
    form: str
    """How it was read: the serde's name, ``JSON``, ``text``, ``bytes``, ``null`` or ``masked``."""
    plain: Any
    """The decoded value without masked fields; ``None`` where there are no fields."""
    problem: str
    """Why the serde could not read it; empty if it could, or there is none."""
    payload: bytes | None
    """The bytes; ``None`` for a null, and where they would show a masked field."""
    masked: bool
    """Whether anything is masked in it."""

    def pretty(self, longest: int) -> str:
        """The text on several lines, cut."""
        if isinstance(self.plain, dict | list):
            return cut(json.dumps(self.plain, ensure_ascii=False, indent=2, default=str), longest)
        return cut(self.text, longest)


NULL: Final = Part("null", "null", None, "", None, masked=False)


def key_part(values: ValueFormat, form: TopicFormat, key: bytes | None, headers: Headers | None) -> Part:
    """A record's key."""
    form = form.of(key, headers)
    known = form.key is not None
    return _part(values, key, form.key.name if form.key else "", known, lambda it: form.read_key(it, headers))


def value_part(
    values: ValueFormat, form: TopicFormat, key: bytes | None, value: bytes | None, headers: Headers | None
) -> Part:
    """A record's value."""
    form = form.of(key, headers)
    known = form.value is not None
    return _part(values, value, form.value.name if form.value else "", known, form.read_value)


def header_texts(values: ValueFormat, headers: Headers | None) -> list[tuple[str, str]]:
    """Names and values of headers."""
    return [
        (
            name,
            MASK
            if name in values.names
            else "null"
            if content is None
            else content.decode(errors="backslashreplace"),
        )
        for name, content in headers or []
    ]


def _part(
    values: ValueFormat, payload: bytes | None, name: str, known: bool, read: Callable[[bytes], Any]
) -> Part:
    if payload is None:
        return NULL
    problem = ""
    if known:
        try:
            found = read(payload)
        except Exception as error:  # noqa: BLE001 - whatever a serde raises is shown with the record
            problem = f"cannot be read as {name}: {type(error).__name__}: {error_text(error)}"
        else:
            if found is None:
                return NULL
            if not isinstance(found, bytes):
                return _decoded(values, payload, name, plain(found))
    try:
        return _decoded(values, payload, "JSON", msgspec.json.decode(payload))._replace(problem=problem)
    except (msgspec.DecodeError, RecursionError):
        pass
    text = _text(payload)
    if text is None:
        if values.names:
            return Part(_withheld("bytes"), "masked", None, problem, None, masked=True)
        return Part(payload.hex(" "), "bytes", None, problem, payload, masked=False)
    if any(each in text for each in values.names):
        return Part(_withheld("text"), "masked", None, problem, None, masked=True)
    return Part(text, "text", None, problem, payload, masked=False)


def _decoded(values: ValueFormat, payload: bytes, name: str, value: Any) -> Part:
    shown = values.masked(value)
    masked = bool(shown != value)
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False, default=str)
    hidden = masked or (bool(values.names) and _may_hide(values, payload, value))
    return Part(
        text,
        name,
        shown if isinstance(shown, dict | list) else None,
        "",
        None if hidden else payload,
        masked,
    )


def _may_hide(values: ValueFormat, payload: bytes, value: Any) -> bool:
    """Whether bytes may have a masked field that the decoded value does not have: a type may leave it out."""
    if not isinstance(value, dict | list):
        return False
    text = _text(payload)
    return text is None or any(name in text for name in values.names)


def _withheld(what: str) -> str:
    return f"{MASK} (it cannot be read as fields, and fields are masked: the {what} is not shown)"


def _text(payload: bytes) -> str | None:
    """Bytes as text, if they are text that people can read."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    return text if "\x00" not in text else None


def hex_lines(payload: bytes, shown: int = SHOWN_BYTES) -> str:
    """Bytes as lines of their position, 16 bytes, and what of them is text."""

    def lines() -> Iterator[str]:
        for at in range(0, min(len(payload), shown), 16):
            part = payload[at : min(at + 16, shown)]
            text = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in part)
            yield f"{at:06x}  {part.hex(' '):<47}  {text}"
        if len(payload) > shown:
            yield f"… {len(payload) - shown:,} more bytes"

    return "\n".join(lines())


class Search(NamedTuple):
    """What records must have; what is empty does not restrict. Matching takes linear time."""

    key: str = ""
    key_whole: bool = True
    """Whether the key equals the text, or contains it."""
    value: str = ""
    """A text that the value contains."""
    header: str = ""
    header_value: str = ""
    """A header of that name, with that value if one is given."""
    path: str = ""
    equals: str = ""
    """The field of the value at ``path`` equals this, as text or as JSON."""

    def __bool__(self) -> bool:
        return bool(self.key or self.value or self.header or self.path)

    def matches(
        self,
        values: ValueFormat,
        form: TopicFormat,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
    ) -> bool:
        """Whether a record has all of it, as far as it is shown: masked fields match nothing."""
        if self.header and not any(
            name == self.header and (not self.header_value or content == self.header_value)
            for name, content in header_texts(values, headers)
        ):
            return False
        if self.key and not self._key_matches(values, form, key, headers):
            return False
        if self.value and not self._value_matches(values, form, key, value, headers):
            return False
        return not self.path or self._field_matches(value_part(values, form, key, value, headers))

    def _key_matches(
        self, values: ValueFormat, form: TopicFormat, key: bytes | None, headers: Headers | None
    ) -> bool:
        if key is None:
            return False
        if not values.names:
            wanted = self.key.encode()
            if key == wanted or (not self.key_whole and wanted in key):
                return True
            if form.key is None and form.store is None:
                return False
        part = key_part(values, form, key, headers)
        return part.text == self.key if self.key_whole else self.key in _searched(part)

    def _value_matches(
        self,
        values: ValueFormat,
        form: TopicFormat,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
    ) -> bool:
        if value is None:
            return False
        if not values.names:
            # Most records are text, and need not be decoded.
            if self.value.encode() in value:
                return True
            if b"\\u" not in value and _text(value) is not None:
                return False
        return self.value in _searched(value_part(values, form, key, value, headers))

    def _field_matches(self, part: Part) -> bool:
        found = field_of(part.plain, self.path)
        if found is None:
            return self.equals == "null"
        if isinstance(found, str):
            return found == self.equals and found != MASK
        try:
            wanted = json.loads(self.equals)
        except ValueError:
            return False
        # In Python True equals 1, in JSON true and 1 differ.
        return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _searched(part: Part) -> str:
    """What of a part is searched: what is shown, and its own text if nothing in it is masked."""
    if part.form == "masked":
        return ""
    raw = _text(part.payload) if part.payload is not None else None
    return part.text if raw is None else f"{part.text}\n{raw}"
