"""Records as lines of JSON: start offsets, filters, decoding."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streams.broker import BEGINNING, END
from streams.errors import ConfigurationError, error_text
from streams.ingest.line_records import FieldPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.broker import Admin, Isolation
    from streams.records import Fetched, Headers, TopicPartition
    from streams.topology.topic_format import TopicFormat

STARTS = {"earliest": BEGINNING, "latest": END}


def parse_offset(text: str) -> int | str:
    """Parse ``earliest``, ``latest``, an offset, or ``-N`` for N records before the end.

    Raises ``ConfigurationError``.
    """
    if text in STARTS or re.fullmatch(r"-?[0-9]{1,18}", text):
        return text if text in STARTS else int(text)
    raise ConfigurationError(
        f"{text!r} is not an offset to start at",
        hint="write earliest, latest, an offset such as 1200, or -10 for the last ten of each partition",
    )


def starts(
    admin: Admin, partitions: Sequence[TopicPartition], offset: int | str, isolation: Isolation
) -> dict[TopicPartition, int]:
    """The start offset of each partition: the nearest that exists, if the requested one does not."""
    if isinstance(offset, str) and offset == "earliest":
        return dict.fromkeys(partitions, BEGINNING)
    ends = admin.end_offsets(partitions, isolation)
    if isinstance(offset, str):
        return ends
    beginnings = admin.beginning_offsets(partitions)
    wanted = {place: end + offset if offset < 0 else offset for place, end in ends.items()}
    return {place: min(max(start, beginnings[place]), ends[place]) for place, start in wanted.items()}


class Condition(NamedTuple):
    """A filter on records: the value that a field of the line must have, as text or as JSON."""

    part: FieldPart
    text: str

    def holds(self, line: bytes) -> bool:
        found = self.part.of(line)
        if found is None:
            return self.text == "null"
        if isinstance(found, str):
            return found == self.text
        try:
            wanted = json.loads(self.text)
        except ValueError:
            return False
        # In Python True equals 1, in JSON true and 1 differ.
        return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def parse_condition(given: str) -> Condition:
    """Parse ``FIELD=VALUE``, e.g. ``value.status=500``. Raises ``ConfigurationError``."""
    field, equals, text = given.partition("=")
    if not (field and equals):
        raise ConfigurationError(
            f"{given!r} is not a condition", hint="write FIELD=VALUE, e.g. value.status=500"
        )
    return Condition(FieldPart(field), text)


def parse_pattern(given: str) -> re.Pattern[str]:
    """Compile a regular expression. Raises ``ConfigurationError`` if it is invalid."""
    try:
        return re.compile(given)
    except re.error as error:
        raise ConfigurationError(f"{given!r} is not a valid regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class RecordLines:
    """Formats records as lines of JSON, and filters them.

    A line has the record's ``topic``, ``partition``, ``offset``, ``timestamp``, ``key``, ``value`` and
    ``headers``. Bytes that are not text are in ``key_base64`` and ``value_base64``; if the app's serde cannot
    decode them, ``error`` has the reason. ``streams simulate --records`` reads such lines.
    """

    format: TopicFormat
    conditions: Sequence[Condition] = ()
    pattern: re.Pattern[str] | None = None

    def lines(self, fetched: Fetched) -> Iterator[str]:
        """The lines of the records that pass the filters, in order."""
        headers = fetched.headers() or [None] * len(fetched)
        columns = fetched.offsets(), fetched.timestamps(), fetched.keys(), fetched.values(), headers
        for offset, time, key, value, own in zip(*columns, strict=True):
            form, errors = self.format.of(key, own), list[str]()
            fields = {
                "topic": fetched.topic,
                "partition": fetched.partition,
                "offset": offset,
                "timestamp": None if time < 0 else time,
                **key_as_json(form, key, own, errors),
                **value_as_json(form, value, errors),
                **({"headers": headers_as_json(own)} if own else {}),
                **({"error": "; ".join(errors)} if errors else {}),
            }
            line = msgspec.json.encode(fields, enc_hook=str)
            if all(condition.holds(line) for condition in self.conditions):
                text = line.decode()
                if self.pattern is None or self.pattern.search(text):
                    yield text


def key_as_json(
    form: TopicFormat, key: bytes | None, headers: Headers | None, errors: list[str]
) -> Mapping[str, Any]:
    """The decoded key, or its bytes in base64 and the reason among ``errors``."""
    if key is None:
        return {"key": None}
    try:
        read = form.read_key(key, headers)
        return as_text("key", read) if isinstance(read, bytes) else {"key": _checked(read)}
    except Exception as error:  # noqa: BLE001 - any exception of a serde is printed with the record
        errors.append(f"key: {error_text(error)}")
        return as_base64("key", key)


def value_as_json(form: TopicFormat, value: bytes | None, errors: list[str]) -> Mapping[str, Any]:
    """The decoded value, or its bytes in base64 and the reason among ``errors``."""
    if value is None:
        return {"value": None}
    try:
        read = form.read_value(value)
        if not isinstance(read, bytes):
            return {"value": _checked(read)}
    except Exception as error:  # noqa: BLE001 - as above
        errors.append(f"value: {error_text(error)}")
        return as_base64("value", value)
    if form.value is None:
        with suppress(msgspec.DecodeError, RecursionError):
            return {"value": msgspec.Raw(msgspec.json.encode(msgspec.json.decode(read)))}
    return as_text("value", read)


def _checked(value: Any) -> msgspec.Raw:
    # Encoded here, so that a value that JSON cannot represent is an error of this record alone.
    return msgspec.Raw(msgspec.json.encode(value, enc_hook=str))


def as_text(name: str, payload: bytes) -> dict[str, str]:
    """Bytes as text, or in base64 if they are not UTF-8."""
    try:
        return {name: payload.decode()}
    except UnicodeDecodeError:
        return as_base64(name, payload)


def as_base64(name: str, payload: bytes) -> dict[str, str]:
    """Bytes in base64."""
    return {f"{name}_base64": base64.b64encode(payload).decode()}


def headers_as_json(headers: Headers) -> dict[str, str | None]:
    """Headers as text."""
    return {
        name: None if content is None else content.decode(errors="backslashreplace")
        for name, content in headers
    }
