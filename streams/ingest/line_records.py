"""Make records of lines: their keys, headers and event times."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from streams.errors import ConfigurationError
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import Headers

LATEST: Final = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since the epoch."""


class Part(Protocol):
    """A part of a line, such as a field of JSON or a group of a regular expression."""

    def of(self, line: bytes) -> object:
        """The part of this line, a JSON value or bytes; ``None`` if the line does not have it."""


class FieldPart:
    """A field of a line of JSON: ``user.id``, ``items.0.sku``. A name that has dots takes precedence."""

    def __init__(self, path: str) -> None:
        if not path.strip("."):
            raise ConfigurationError(f"{path!r} does not name a field", hint="write e.g. user.id")
        self._path = path.removeprefix("$.")

    def of(self, line: bytes) -> object:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            return None
        return field_of(value, self._path)


def field_of(value: Any, path: str) -> object:
    """The field of a decoded value at a path such as ``items.0.sku``; ``None`` if it has none."""
    while True:
        if isinstance(value, dict):
            if path in value:
                return value[path]
            name, dot, path = path.partition(".")
            if name not in value:
                return None
            value = value[name]
        elif isinstance(value, list):
            number, dot, path = path.partition(".")
            if not number.isdecimal() or int(number) >= len(value):
                return None
            value = value[int(number)]
        else:
            return None
        if not dot:
            return value


class PatternPart:
    """The match of a regular expression in a line: its first group, or all of it if it has no group."""

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern.encode())
        except re.error as error:
            raise ConfigurationError(f"{pattern!r} is not a valid regular expression: {error}") from error
        self._group = min(self._pattern.groups, 1)

    def of(self, line: bytes) -> object:
        match = self._pattern.search(line)
        return None if match is None else match[self._group]


@dataclass(slots=True)
class LineRecords:
    """Makes records of lines. Lines without the requested key or time are written without, and counted."""

    topic: str
    key: Part | None = None
    timestamp: Part | None = None
    headers: Headers = field(default_factory=list)
    without_key: int = 0
    without_timestamp: int = 0

    def records(self, values: Sequence[bytes], milliseconds: int) -> Output:
        """Make records of lines. ``milliseconds`` since the epoch is the event time of those without one."""
        keys: list[bytes | None] = [None] * len(values)
        times = [milliseconds] * len(values)
        if self.key is not None:
            keys = [_key(self.key.of(value)) for value in values]
            self.without_key += keys.count(None)
        if self.timestamp is not None:
            found = [_milliseconds(self.timestamp.of(value)) for value in values]
            self.without_timestamp += found.count(None)
            times = [milliseconds if time is None else time for time in found]
        headers = [self.headers] * len(values) if self.headers else None
        return Output(self.topic, keys, values, times, headers)


def _key(part: object) -> bytes | None:
    if part is None or isinstance(part, bytes):
        return part
    return part.encode() if isinstance(part, str) else msgspec.json.encode(part)


def _milliseconds(part: object) -> int | None:
    """Parse milliseconds since the epoch, or ISO 8601 with an offset from UTC; ``None`` for others."""
    if isinstance(part, bytes):
        part = part.decode(errors="replace")
    try:
        if isinstance(part, str):
            if part.isascii() and part.isdigit() and len(part) < 18:
                time = int(part)
            else:
                read = datetime.fromisoformat(part)
                if read.tzinfo is None:
                    return None
                time = round(read.timestamp() * 1000)
        elif isinstance(part, int | float) and not isinstance(part, bool):
            time = int(part)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return time if 0 < time <= LATEST else None


def parse_headers(given: Sequence[str]) -> Headers:
    """Parse headers, ``NAME=VALUE`` each. Raises ``ConfigurationError``."""
    headers: Headers = []
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"{item!r} is not a header", hint="write NAME=VALUE")
        headers.append((name, value.encode(errors="surrogateescape")))
    return headers


def part(option: str, path: str | None, pattern: str | None) -> Part | None:
    """The part of a line that an option names, by field or by pattern. Raises ``ConfigurationError``."""
    if path is not None and pattern is not None:
        raise ConfigurationError(
            f"--{option} and --{option}-pattern are both given", hint="use only one of them"
        )
    if path is not None:
        return FieldPart(path)
    return None if pattern is None else PatternPart(pattern)
