"""What a line becomes as a record: its key, headers and event time."""

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
    """A part of a line."""

    def of(self, line: bytes) -> object:
        """A value of JSON, or bytes; ``None`` where the line has no such part."""


class FieldPart:
    """A field of a line of JSON: ``user.id``, ``items.0.sku``; a name that has dots itself is tried first."""

    def __init__(self, path: str) -> None:
        if not path.strip("."):
            raise ConfigurationError(f"{path!r} names no field", hint="write e.g. user.id")
        self._path = path.removeprefix("$.")

    def of(self, line: bytes) -> object:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            return None
        return _found(value, self._path)


def _found(value: Any, path: str) -> object:
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
    """What a regular expression finds in a line: its first group, or all of it where it has none."""

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern.encode())
        except re.error as error:
            raise ConfigurationError(f"{pattern!r} is no regular expression: {error}") from error
        self._group = min(self._pattern.groups, 1)

    def of(self, line: bytes) -> object:
        match = self._pattern.search(line)
        return None if match is None else match[self._group]


@dataclass(slots=True)
class LineRecords:
    """Makes records of lines. Lines without the key or time asked for get none, and are counted."""

    topic: str
    key: Part | None = None
    timestamp: Part | None = None
    headers: Headers = field(default_factory=list)
    without_key: int = 0
    without_timestamp: int = 0

    def records(self, values: Sequence[bytes], milliseconds: int) -> Output:
        """Lines that arrived at this time, since the epoch: the event time unless it is in the line."""
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
    """Milliseconds since the epoch, as a number or in ISO 8601 with an offset from UTC."""
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
    """``NAME=VALUE`` each. Raises ``ConfigurationError``."""
    headers: Headers = []
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"{item!r} is no header", hint="write NAME=VALUE")
        headers.append((name, value.encode(errors="surrogateescape")))
    return headers


def part(option: str, path: str | None, pattern: str | None) -> Part | None:
    """The part of a line that an option asks for, by field or by pattern. Raises ``ConfigurationError``."""
    if path is not None and pattern is not None:
        raise ConfigurationError(
            f"--{option} and --{option}-pattern are both given", hint="one of them says which part it is"
        )
    if path is not None:
        return FieldPart(path)
    return None if pattern is None else PatternPart(pattern)
