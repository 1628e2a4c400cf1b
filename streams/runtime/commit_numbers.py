"""Commit numbers and epochs in offset metadata: to which state a task's committed offsets belong.

The text has a version, then the epoch, then for each store a hash of its name and the number of its last
commit, all in hexadecimal digits. A reset of the offsets (``streams.replay``) begins an epoch: state of
another epoch is not that of these offsets. While a reset is not finished, the text says so in addition. So it
does where a partition has stopped for a switch (``streams.runtime.switching``).
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
_EPOCH, _RESET, _NOTES, _TOKEN = "e=", "reset=", "notes=", "switch="
_HEXADECIMAL = re.compile("[0-9a-f]{1,16}")
_NUMBER = re.compile("([0-9a-f]{8})=([0-9a-f]{1,16})")


def encode(numbers: Mapping[str, int], epoch: int = 0) -> str:
    """The text for stores of these names; empty without an epoch if none of them was ever changed."""
    found: dict[str, int] = {}
    for store, number in numbers.items():
        if number > 0:
            name = _hashed(store)
            # For two stores with the same hash, the lower number, so that neither fails the check.
            found[name] = min(number, found.get(name, number))
    pieces = [f"{_EPOCH}{epoch:x}"] if epoch else []
    pieces += [f"{name}={number:x}" for name, number in found.items()]
    return _joined(pieces) if pieces else ""


def decode(texts: Iterable[str], stores: Iterable[str]) -> dict[str, int]:
    """The highest number of each of these stores in any of the texts, if there is one.

    Texts by other programs or later versions are ignored.
    """
    highest: dict[str, int] = {}
    for text in texts:
        for name, number in filter(None, map(_parsed, _pieces(text))):
            highest[name] = max(number, highest.get(name, 0))
    names = {store: _hashed(store) for store in stores}
    return {store: highest[name] for store, name in names.items() if name in highest}


def epoch(texts: Iterable[str]) -> int:
    """The highest epoch in any of the texts; 0 if there was no reset, or its traces are gone."""
    return max((_after(_EPOCH, text) or 0 for text in texts), default=0)


def reset_begun(text: str) -> int | None:
    """The epoch that a reset which is not finished has begun to prepare; ``None`` if there is none."""
    return _after(_RESET, text)


def marked(text: str, epoch: int, notes: str = "") -> str:
    """The text of an offset that a reset is about to replace, of which earlier versions see the numbers.

    ``notes`` is text without spaces, for the command itself.
    """
    pieces = [f"{_RESET}{epoch:x}", *([f"{_NOTES}{notes}"] if notes else [])]
    return _joined(pieces + _pieces(unmarked(text)))


def unmarked(text: str) -> str:
    """The text without what ``marked`` has added."""
    pieces = [piece for piece in _pieces(text) if not piece.startswith((_RESET, _NOTES))]
    return _joined(pieces) if pieces else ""


def reset_notes(text: str) -> str:
    """The notes of a reset that is not finished."""
    return next((piece.removeprefix(_NOTES) for piece in _pieces(text) if piece.startswith(_NOTES)), "")


def with_token(text: str, token: str) -> str:
    """The text of an offset at which a partition has stopped for a switch (``runtime.switching``)."""
    return _joined([f"{_TOKEN}{token}", *_pieces(text)])


def token(text: str) -> str:
    """The token of the switch for which a partition has stopped at the offset; empty if there is none."""
    return next((piece.removeprefix(_TOKEN) for piece in _pieces(text) if piece.startswith(_TOKEN)), "")


def _pieces(text: str) -> list[str]:
    version, *pieces = text.split(" ")
    return pieces if version == _VERSION else []


def _joined(pieces: list[str]) -> str:
    text = " ".join([_VERSION, *pieces])
    return text if len(text) <= LARGEST_TEXT else text[: text.rindex(" ", 0, LARGEST_TEXT + 1)]


def _after(name: str, text: str) -> int | None:
    for piece in _pieces(text):
        if piece.startswith(name) and _HEXADECIMAL.fullmatch(piece, len(name)):
            return int(piece[len(name) :], 16)
    return None


def _hashed(store: str) -> str:
    return f"{crc32(store.encode()):08x}"


def _parsed(piece: str) -> tuple[str, int] | None:
    match = _NUMBER.fullmatch(piece)
    return None if match is None else (match[1], int(match[2], 16))
