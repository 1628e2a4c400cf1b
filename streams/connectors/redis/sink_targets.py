"""What records become: entries of a stream, elements of a list, or hashes and strings by key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from streams.connectors.mapped_rows import present, rows_of
from streams.connectors.redis.field_text import has_fields, row_words, to_text, to_texts
from streams.connectors.redis.resp import packed, packed_column, strings
from streams.connectors.sink import RefusedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.connectors.redis.connection import Connection
    from streams.connectors.sink import SinkRows

ELEMENTS = 1_000
"""How many elements one command appends."""


@dataclass
class Changes:
    """The commands for the rows of a transaction."""

    commands: list[bytes] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)


class SinkTarget(Protocol):
    """Where a sink writes to."""

    @property
    def name(self) -> str:
        """The key, or what all keys begin with."""

    @property
    def type_name(self) -> bytes:
        """The type that its keys have, as the command ``TYPE`` names it."""

    def changes(self, connection: Connection, parts: Sequence[SinkRows]) -> Changes:
        """The commands for rows, in their order; it may look at the keys that they write to."""


@dataclass(frozen=True)
class StreamTarget:
    """A stream, to which an entry is added for each value."""

    name: str
    value_field: str
    key_field: str | None
    max_length: int | None
    type_name: bytes = b"stream"

    def changes(self, connection: Connection, parts: Sequence[SinkRows]) -> Changes:
        found = Changes()
        require_type(connection, self.name.encode(), self.type_name)
        before = [b"XADD", self.name.encode()]
        if self.max_length is not None:
            before += [b"MAXLEN", b"~", b"%d" % self.max_length]
        before.append(b"*")
        for part in parts:
            rows = rows_of(part.values)
            kinds = set(map(type, rows))
            if self.key_field is None and kinds <= {bytes, str}:
                found.commands += packed_column([*before, self.value_field.encode()], to_texts(rows))
            else:
                self._by_row(part, rows, before, found)
        return found

    def _by_row(self, part: SinkRows, rows: Sequence[Any], before: Sequence[bytes], found: Changes) -> None:
        head, words_before, own = strings(before), len(before), self.value_field.encode()
        for number, row in enumerate(rows):
            if row is None:
                continue
            try:
                words = row_words(row)[0] if has_fields(type(row)) else [own, to_text(row)]
                if self.key_field is not None and (key := part.keys[number]) is not None:
                    words += (self.key_field.encode(), to_text(key))
            except (TypeError, ValueError) as error:
                found.refused.append(RefusedRow(part.partition, number, error))
                continue
            if words:
                found.commands.append(b"*%d\r\n%b%b" % (words_before + len(words), head, strings(words)))
            else:
                nothing = ValueError("an entry of a stream needs at least one field that is not null")
                found.refused.append(RefusedRow(part.partition, number, nothing))


@dataclass(frozen=True)
class ListTarget:
    """A list, to whose end each value is appended."""

    name: str
    type_name: bytes = b"list"

    def changes(self, connection: Connection, parts: Sequence[SinkRows]) -> Changes:
        found = Changes()
        require_type(connection, self.name.encode(), self.type_name)
        elements: list[bytes] = []
        for part in parts:
            rows = rows_of(part.values)
            if set(map(type, rows)) <= {bytes, str}:
                elements += to_texts(rows)
                continue
            for number, row in enumerate(rows):
                try:
                    if row is not None:
                        elements.append(to_text(row))
                except (TypeError, ValueError) as error:
                    found.refused.append(RefusedRow(part.partition, number, error))
        for start in range(0, len(elements), ELEMENTS):
            found.commands.append(packed(b"RPUSH", self.name.encode(), *elements[start : start + ELEMENTS]))
        return found


@dataclass(frozen=True)
class HashTarget:
    """Hashes, one for each key: a value sets its fields, a null value deletes it."""

    name: str
    type_name: bytes = b"hash"

    def changes(self, connection: Connection, parts: Sequence[SinkRows]) -> Changes:
        found = Changes()
        by_key(connection, parts, self, self._commands, found)
        return found

    def _commands(self, key: bytes, row: Any) -> list[bytes]:
        if row is None:
            return [packed(b"UNLINK", key)]
        if not has_fields(type(row)):
            raise TypeError(f"a hash is written from values with fields, got {type(row).__name__}")
        words, nulls = row_words(row)
        commands = [packed(b"HSET", key, *words)] if words else []
        if nulls:
            commands.append(packed(b"HDEL", key, *nulls))
        if not commands:
            raise ValueError("a hash needs at least one field")
        return commands


@dataclass(frozen=True)
class StringTarget:
    """A string for each key, which a value sets and a null value deletes."""

    name: str
    expires: int | None
    """After so many milliseconds without another value it is deleted."""
    publish: bool
    """Whether a value is also published, in a channel that is named as its key."""
    type_name: bytes = b"string"

    def changes(self, connection: Connection, parts: Sequence[SinkRows]) -> Changes:
        found = Changes()
        by_key(connection, parts, self, self._commands, found)
        return found

    def _commands(self, key: bytes, row: Any) -> list[bytes]:
        if row is None:
            return [packed(b"UNLINK", key)]
        value = to_text(row)
        expires = () if self.expires is None else (b"PX", b"%d" % self.expires)
        commands = [packed(b"SET", key, value, *expires)]
        if self.publish:
            commands.append(packed(b"PUBLISH", key, value))
        return commands


def by_key(
    connection: Connection,
    parts: Sequence[SinkRows],
    target: SinkTarget,
    write: Callable[[bytes, Any], list[bytes]],
    found: Changes,
) -> None:
    """The commands of ``write`` for each key and row, and the rows whose key has another type."""
    # Which keys cannot be written is known after all are looked at, in one round trip.
    rows: list[tuple[SinkRows, int, bytes, list[bytes]]] = []
    for part in parts:
        for number, row in enumerate(rows_of(part.values)):
            try:
                key = _key(target, part.keys[number])
                rows.append((part, number, key, write(key, row)))
            except (TypeError, ValueError) as error:
                found.refused.append(RefusedRow(part.partition, number, error))
    wrong = other_types(connection, {key for _, _, key, _ in rows}, target.type_name)
    for part, number, key, commands in rows:
        if key in wrong:
            found.refused.append(RefusedRow(part.partition, number, wrong[key]))
        else:
            found.commands += commands


def _key(target: SinkTarget, key: Any) -> bytes:
    what = target.type_name.decode()
    if key is None:
        raise ValueError(f"a {what} needs the record's key, which is null")
    if has_fields(type(key)):
        fields = present(key)
        if len(fields) != 1:
            raise ValueError(f"a {what} needs a key of one field, got {key!r:.80}: use key_by upstream")
        (key,) = fields.values()
    return target.name.encode() + to_text(key)


class WrongType(ValueError):
    """A key has another type than it would be written with."""


def other_types(connection: Connection, keys: set[bytes], type_name: bytes) -> dict[bytes, WrongType]:
    """The keys that exist and have another type, with the error."""
    ordered = sorted(keys)
    found = connection.calls(*(packed(b"TYPE", key) for key in ordered)) if ordered else []
    return {
        key: WrongType(
            f"WRONGTYPE the key {key.decode(errors='backslashreplace')!r} is a {found_type.decode()}, "
            f"no {type_name.decode()}"
        )
        for key, found_type in zip(ordered, found, strict=True)
        if found_type not in {b"none", type_name}
    }


def require_type(connection: Connection, key: bytes, type_name: bytes) -> None:
    """Raises ``WrongType`` for a key that all rows are written to, and that has another type."""
    for error in other_types(connection, {key}, type_name).values():
        raise error
