"""Entries of streams as columns of records."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")
Type: TypeAlias = builtins.type[T]

BEGINNING: Final = "0-0"
"""Before the first entry."""

_LAST_MILLISECOND: Final = 253_402_300_799_999
"""Of the year 9999: numbers beyond are no times."""


class EntryFields(Generic[T]):
    """All fields of an entry: dictionaries of text, or converted into ``type`` from their text.

    A payload is a JSON object of text.
    """

    def __init__(self, type: Any = None) -> None:  # noqa: A002 - as of Json
        self._type = type
        self._decoder = msgspec.json.Decoder(dict[str, str] if type is None else type, strict=False)

    @property
    def name(self) -> str:
        """The serde's name."""
        return (
            "EntryFields"
            if self._type is None
            else f"EntryFields({getattr(self._type, '__name__', self._type)})"
        )

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]:
        """Encode values as JSON objects."""
        return map(msgspec.json.encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[T]:
        return map(self._decoder.decode, payloads)


@dataclass(frozen=True, slots=True)
class EntryColumns:
    """How entries become records. Without ``field``, all fields are the value and entries are text."""

    field: bytes | None
    key_field: bytes | None

    @property
    def text(self) -> bool:
        """Whether ids, names and values of entries are needed as text, otherwise as bytes."""
        return self.field is None

    def keys(self, entries: Sequence[Any]) -> list[bytes | None]:
        if self.key_field is None:
            return [None] * len(entries)
        if self.text:
            found = column(entries, self.key_field.decode())
            return [None if key is None else key.encode("utf-8", "surrogateescape") for key in found]
        return column(entries, self.key_field)

    def values(self, entries: Sequence[Any]) -> list[bytes | None]:
        if self.field is not None:
            return column(entries, self.field)
        encode = msgspec.json.Encoder().encode
        objects = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
        try:
            return [encode(fields) for fields in objects]
        except UnicodeEncodeError:
            # Bytes that are no text stay as they are: the payload is no JSON, and a dead letter shows them.
            return [
                json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
                for fields in objects
            ]


def column(entries: Sequence[Any], name: Any) -> list[Any]:
    """A field of each entry, ``None`` where it has none."""
    try:
        # As a rule entries have the same fields, in the same order.
        at = entries[0][1][::2].index(name) * 2
        if all(fields[at] == name for _, fields in entries):
            return [fields[at + 1] for _, fields in entries]
    except (IndexError, ValueError):
        pass
    return [dict(zip(fields[::2], fields[1::2], strict=True)).get(name) for _, fields in entries]


def id_numbers(entry_id: str) -> tuple[int, int]:
    """An id in the order of ids."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def timestamps(ids: Sequence[str]) -> list[int]:
    """The times in ids, in milliseconds since the epoch."""
    return [min(int(entry_id.partition("-")[0]), _LAST_MILLISECOND) for entry_id in ids]


def as_text(word: str | bytes) -> str:
    """A name or an id as text."""
    return word if isinstance(word, str) else word.decode("utf-8", "surrogateescape")


def pairs(answer: Sequence[Any]) -> dict[str, Any]:
    """An answer of names and values in turns."""
    return {as_text(name): value for name, value in zip(answer[::2], answer[1::2], strict=True)}
