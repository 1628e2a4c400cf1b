"""Where in a text of JSON something is, as line and column."""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # the stub leaves it out
from typing import Final, NamedTuple

_FIELD: Final = re.compile(r"`(\$[^`]*)`")
_BYTE: Final = re.compile(r"\bbyte (\d+)\b")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class Position(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int
    excerpt: str
    """That line, around the place."""
    mark: str
    """Spaces up to the place, and a caret."""


def position_in(text: str, error: str) -> Position | None:
    """The place that an error of a JSON decoder names: a field (``$.items[0].sku``) or a byte."""
    byte = _BYTE.search(error)
    if byte is not None:
        before = text.encode()[: int(byte[1])].decode(errors="ignore")
        return _at(text, len(before))
    field = _FIELD.search(error)
    if field is None:
        return None
    found = _offset(text, [name or int(number) for name, number in _STEP.findall(field[1])])
    return None if found is None else _at(text, found)


def _at(text: str, offset: int) -> Position:
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = text[start : end if end >= 0 else len(text)]
    column = offset - start
    cut = max(0, column - 40)
    return Position(
        text.count("\n", 0, offset) + 1,
        column + 1,
        line[cut : cut + 100].replace("\t", " "),
        " " * (column - cut) + "^",
    )


def _offset(text: str, path: list[str | int]) -> int | None:
    """Where the value at a path begins."""
    decoder = json.JSONDecoder()
    try:
        at = _skip(text, 0)
        for step in path:
            if text[at] == "{" and isinstance(step, str):
                at = _skip(text, at + 1)
                while True:
                    name, at = scanstring(text, at + 1)
                    at = _skip(text, _skip(text, at) + 1)
                    if name == step:
                        break
                    at = _next(text, decoder, at)
            elif text[at] == "[" and isinstance(step, int):
                at = _skip(text, at + 1)
                for _ in range(step):
                    at = _next(text, decoder, at)
            else:
                return None
    except (ValueError, IndexError):
        return None
    return at


def _next(text: str, decoder: json.JSONDecoder, at: int) -> int:
    """Behind the value at ``at`` and the comma after it. Raises ``ValueError`` at the last one."""
    _, at = decoder.raw_decode(text, at)
    at = _skip(text, at)
    if text[at] != ",":
        raise ValueError("the last one")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "it matches nothing, too"
    return found.end()
