"""Commit numbers in offset metadata: the commits of its stores to which a task's offsets belong.

The text has a version, then for each store a hash of its name and the number, both in
hexadecimal digits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LARGEST_TEXT = 4000
"""In bytes. Brokers accept 4096 by default; stores that do not fit are not checked."""

_VERSION = "v1"
_NUMBER = re.compile("([0-9a-f]{8})=([0-9a-f]{1,16})")


def encode(numbers: Mapping[str, int]) -> str:
    """The text for stores of these names; empty if none of them was ever changed."""
    found: dict[str, int] = {}
    for store, number in numbers.items():
        if number > 0:
            name = _hashed(store)
            # For two stores with the same hash, the lower number, so that neither fails the check.
            found[name] = min(number, found.get(name, number))
    if not found:
        return ""
    text = " ".join([_VERSION, *(f"{name}={number:x}" for name, number in found.items())])
    return text if len(text) <= LARGEST_TEXT else text[: text.rindex(" ", 0, LARGEST_TEXT + 1)]


def decode(texts: Iterable[str], stores: Iterable[str]) -> dict[str, int]:
    """The highest number of each of these stores in any of the texts, if there is one.

    Texts by other programs or later versions are ignored.
    """
    highest: dict[str, int] = {}
    for text in texts:
        version, *found = text.split(" ")
        if version != _VERSION:
            continue
        for name, number in filter(None, map(_parsed, found)):
            highest[name] = max(number, highest.get(name, 0))
    names = {store: _hashed(store) for store in stores}
    return {store: highest[name] for store, name in names.items() if name in highest}


def _hashed(store: str) -> str:
    return f"{crc32(store.encode()):08x}"


def _parsed(piece: str) -> tuple[str, int] | None:
    match = _NUMBER.fullmatch(piece)
    return None if match is None else (match[1], int(match[2], 16))
