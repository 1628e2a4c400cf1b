"""Avro records in the wire format of schema registries."""

from __future__ import annotations

import builtins
import datetime as dt
import decimal
import io
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

import fastavro
import msgspec

from streams.errors import ConfigurationError
from streams.serde.schema_folder import SchemaFolder, described_schema, load_schema, schema_id
from streams.serde.schemas.avro_schema import AvroSchema
from streams.serde.schemas.avro_types import SchemaError
from streams.serde.schemas.avro_values import fresh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")
Type: TypeAlias = builtins.type[T]


MAX_ITEMS = 1_000_000
"""The default limit of items without bytes of their own (nulls, empty records) in an Avro payload."""

MAX_DEPTH = 200
"""The default limit of the nesting depth of values in an Avro payload."""

DEEPEST = 1_000
"""The maximum of that limit: deeper values could overflow the C stack when they are read and written."""


class Avro(Generic[T]):
    """Avro with fastavro, in the wire format of schema registries: a zero byte, the schema's id, the record.

    ``schema`` is the path of a ``.avsc`` file; the other files in its folder are schemas with which payloads
    may have been written, and a payload is resolved from its own schema to this one. With ``type``, a
    ``msgspec.Struct`` with the schema's fields, values have that type, else they are dictionaries. Records of
    a union are then structs with ``tag=True``, named as in the schema.

    A few bytes of Avro can expand to very large values: ``max_items`` limits the number of items without
    bytes of their own (nulls, empty records) in a payload, ``max_depth`` the nesting depth of its values. A
    payload, or a value to be written, that exceeds them is an error.
    """

    reads_as_written = True

    @overload
    def __init__(
        self: Avro[Any],
        schema: str | Path,
        type: None = None,
        *,
        max_items: int = MAX_ITEMS,
        max_depth: int = MAX_DEPTH,
    ) -> None: ...

    @overload
    def __init__(
        self, schema: str | Path, type: Type[T], *, max_items: int = MAX_ITEMS, max_depth: int = MAX_DEPTH
    ) -> None: ...

    def __init__(
        self,
        schema: str | Path,
        type: Type[T] | None = None,  # noqa: A002 - as in Json
        *,
        max_items: int = MAX_ITEMS,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        path = Path(schema)
        parsed, identifier = load_schema(path)
        if max_items < 0 or not 0 < max_depth <= DEEPEST:
            raise ConfigurationError(
                f"Avro(max_items={max_items}, max_depth={max_depth}): needs max_items of 0 or more and "
                f"max_depth from 1 to {DEEPEST}"
            )
        self.schema = {"avro": described_schema(parsed)}
        self._ready = partial(AvroSchema, max_items=max_items, max_depth=max_depth)
        try:
            self._own = self._ready(parsed)
        except SchemaError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        self._written_with: dict[bytes, AvroSchema] = {}
        """Schemas of payloads, by the payloads' first five bytes."""
        self._folder = SchemaFolder(path.parent)
        self._prefix = b"\0" + identifier.to_bytes(4, "big")
        self._type = type
        self.record_type = type
        self.value_type: Any = Any if type is None else type
        """The type of the values; ``Any`` for dictionaries."""
        self.name = f"Avro({path.stem})"

    def learn(self, schemas: Iterable[Any]) -> None:
        """Add schemas for which the folder may have no file, so that their payloads can be read."""
        for schema in schemas:
            self._folder.add(schema)

    def serialize(self, values: Sequence[T]) -> Iterator[bytes]:
        write, own, prefix = fastavro.schemaless_writer, self._own, self._prefix
        schema = own.parsed
        as_dict: Callable[[Any], Any] = _as_dict if self._type else _itself
        expected = self._type
        prepare = own.prepare if own.prepares else _itself
        buffer = io.BytesIO()
        for value in values:
            if expected is not None and not isinstance(value, expected):
                raise TypeError(f"{self.name} needs {expected.__name__}, got {type(value).__name__}")
            buffer.seek(0)
            buffer.truncate()
            buffer.write(prefix)
            write(buffer, schema, prepare(as_dict(value)))
            yield buffer.getvalue()

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[T]:
        read, own, prefix, expected = fastavro.schemaless_reader, self._own, self._prefix, self._type
        schema, check, named, restore = own.parsed, own.check, own.named, own.restore
        checks, tagged = own.checks, expected is not None
        convert = msgspec.convert
        for payload in payloads:
            buffer = io.BytesIO(payload)
            head = buffer.read(5)
            if head == prefix:
                if checks:
                    check(payload, 5)
                value = (
                    read(buffer, schema, None, return_named_type=True)
                    if named
                    else read(buffer, schema, None)
                )
            else:
                value = self._resolved(head, payload, buffer)
            _require_end(buffer, payload)
            if named:
                value = restore(value, tagged=tagged)
            yield cast("T", value if expected is None else convert(value, expected))

    def _resolved(self, head: bytes, payload: bytes, buffer: io.BytesIO) -> Any:
        """Decode a value that was written with another schema, resolved to this one."""
        own, written = self._own, self._written_with.get(head)
        if written is None:
            written = self._ready(self._folder.schema(_written_with(head)))
            self._written_with[head] = written
        if written.checks:
            written.check(payload, len(head))
        value = fastavro.schemaless_reader(buffer, written.parsed, own.parsed, return_named_type=own.named)
        return fresh(value) if own.shares_defaults else value


def _written_with(head: bytes) -> int:
    if len(head) < 5 or head[0] != 0:
        raise ValueError(
            "not in the schema registry's wire format: needs a zero byte and a 4-byte schema id, "
            f"starts with {head!r}"
        )
    return int.from_bytes(head[1:], "big")


def _require_end(buffer: io.BytesIO, payload: bytes) -> None:
    left = len(payload) - buffer.tell()
    if left:
        raise ValueError(f"{left} bytes are left after the record")


def avro_decoder(schemas: Iterable[Any]) -> Callable[[bytes], Any]:
    """A function that decodes payloads, in the registries' wire format, to plain data.

    It reads payloads written with these schemas, given as in ``Avro.schema``; it raises ``LookupError`` for
    other schemas and ``ValueError`` for invalid payloads.
    """
    parsed = [fastavro.parse_schema(schema) for schema in schemas]
    ready = partial(AvroSchema, max_items=MAX_ITEMS, max_depth=MAX_DEPTH)
    by_identifier = {schema_id(schema): ready(schema) for schema in parsed}

    def decode(payload: bytes) -> Any:
        buffer = io.BytesIO(payload)
        identifier = _written_with(buffer.read(5))
        if identifier not in by_identifier:
            raise LookupError(f"no schema with id {identifier} is known")
        schema = by_identifier[identifier]
        schema.check(payload, buffer.tell())
        value = fastavro.schemaless_reader(buffer, schema.parsed, None)
        _require_end(buffer, payload)
        return value

    return decode


def _itself(value: Any) -> Any:
    return value


# Converts structs, also nested ones, to dictionaries, and keeps the types that fastavro accepts.
_as_dict = partial(
    msgspec.to_builtins,
    builtin_types=(
        bytes,
        bytearray,
        dt.datetime,
        dt.date,
        dt.time,
        decimal.Decimal,
        uuid.UUID,
    ),
)
