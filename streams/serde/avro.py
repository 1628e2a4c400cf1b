"""Avro records in the wire format of schema registries."""

from __future__ import annotations

import builtins
import copy
import datetime as dt
import decimal
import io
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, overload

import fastavro
import msgspec

from streams.errors import ConfigurationError
from streams.serde.schema_folder import (
    RegisteredSchemas,
    SchemaFolder,
    described_schema,
    load_schema,
    schema_id,
)
from streams.serde.schemas.avro_compiled import compile_reader, fits
from streams.serde.schemas.avro_schema import AvroSchema
from streams.serde.schemas.avro_types import NamedTypes, SchemaError
from streams.serde.schemas.avro_values import fresh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streams.serde.registry import Part
    from streams.serde.subjects import Subjects

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
        self.path = path = Path(schema)
        """The file of its schema."""
        file = load_schema(path)
        self.written = file.written
        """The schema as its file has it, with the types that it uses from other files."""
        if max_items < 0 or not 0 < max_depth <= DEEPEST:
            raise ConfigurationError(
                f"Avro(max_items={max_items}, max_depth={max_depth}): needs max_items of 0 or more and "
                f"max_depth from 1 to {DEEPEST}"
            )
        self.schema = {"avro": described_schema(file.parsed)}
        self._ready = partial(AvroSchema, max_items=max_items, max_depth=max_depth)
        try:
            self._own = self._ready(file.parsed)
        except SchemaError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        self._readers: dict[bytes, Callable[[bytes], Any]] = {}
        """Functions that read payloads, by the payloads' first five bytes."""
        self._schemas: WriterSchemas = SchemaFolder(path.parent)
        self._prefix = b"\0" + file.identifier.to_bytes(4, "big")
        self._subjects: Subjects | None = None
        self._part: Part = "value"
        self._topic: str | None = None
        self._type = type
        self.record_type = type
        self.value_type: Any = Any if type is None else type
        """The type of the values; ``Any`` for dictionaries."""
        self.name = f"Avro({path.stem})"

    def learn(self, schemas: Iterable[Any]) -> None:
        """Add schemas for which the folder may have no file, so that their payloads can be read."""
        for schema in schemas:
            self._schemas.add(schema)

    def connected(self, subjects: Subjects, part: Part, *, stored: bool = False) -> Avro[T]:
        """The same serde for a topic of a schema registry: it reads records by the registry's ids.

        With ``stored``, it is for a store that is filled from the topic: values that the store writes have
        the folder's ids, as nothing else reads them.
        """
        assert isinstance(self._schemas, SchemaFolder), "it is connected once"
        return self._with(
            _subjects=subjects,
            _part=part,
            _schemas=RegisteredSchemas(subjects.schema, self._schemas),
            _readers={self._prefix: self._reader(self._prefix)} if stored else {},
        )

    def for_topic(self, topic: str) -> Avro[T]:
        """The same serde, writing to a topic: with the registry's id of its subject, if it is connected.

        The id is requested when the first value is written, which may raise ``SchemaRefused`` and
        ``RegistryUnavailable``.
        """
        return self._with(_topic=topic)

    def _with(self, **attributes: object) -> Avro[T]:
        made = copy.copy(self)
        vars(made).update(attributes)
        return made

    def subject(self, topic: str) -> str:
        """The subject of its schema for a topic. It must be connected."""
        assert self._subjects is not None, "it is connected"
        return self._subjects.name(topic, self._part, self.written.source)

    def serialize(self, values: Sequence[T]) -> Iterator[bytes]:
        prefix = self._prefix
        if self._topic is not None and self._subjects is not None:
            prefix = registry_prefix(self._subjects.identifier(self.subject(self._topic), self.written))
        records = values if self._type is None else self._as_dicts(values, self._type)
        return write_records(self._own, prefix, records)

    def _as_dicts(self, values: Sequence[Any], expected: Type[T]) -> Iterator[Any]:
        for value in values:
            if not isinstance(value, expected):
                raise TypeError(f"{self.name} needs {expected.__name__}, got {type(value).__name__}")
            yield _as_dict(value)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[T]:
        readers = self._readers
        head: bytes | None = None
        read: Callable[[bytes], Any] = _itself
        for payload in payloads:
            if payload[:5] != head:
                head = payload[:5]
                read = readers.get(head) or self._reader(head)
            yield read(payload)

    def _reader(self, head: bytes) -> Callable[[bytes], Any]:
        """A function that reads payloads with these first bytes, resolved to the serde's own schema."""
        own, written = self._own, self._own
        if head != self._prefix or self._subjects is not None:
            parsed = self._schemas.schema(identifier_of(head))
            if {"avro": described_schema(parsed)} != self.schema:
                written = self._ready(parsed)
        read = self._readers[head] = record_reader(written, own, self._type)
        return read


class WriterSchemas(Protocol):
    """The schemas with which payloads may have been written, by their ids."""

    def schema(self, identifier: int) -> Any:
        """The parsed schema with that id. Raises ``LookupError`` if there is none."""

    def add(self, schema: Any) -> None:
        """Add a schema that may be unknown."""


def registry_prefix(identifier: int) -> bytes:
    """The bytes before a record in the wire format of schema registries."""
    return b"\0" + identifier.to_bytes(4, "big")


def write_records(schema: AvroSchema, prefix: bytes, values: Iterable[Any]) -> Iterator[bytes]:
    """Encode values, given as dictionaries for records, each after the prefix."""
    write, parsed = fastavro.schemaless_writer, schema.parsed
    prepare = schema.prepare if schema.prepares else _itself
    buffer = io.BytesIO()
    for value in values:
        buffer.seek(0)
        buffer.truncate()
        buffer.write(prefix)
        write(buffer, parsed, prepare(value))
        yield buffer.getvalue()


def record_reader(
    written: AvroSchema,
    own: AvroSchema,
    type: Type[Any] | None = None,  # noqa: A002 - as in Avro
) -> Callable[[bytes], Any]:
    """A function that decodes payloads written with one schema to values of another, or the same one."""
    if not (own.named or written.checks or own.checks):
        shape = None if type is None else msgspec.inspect.type_info(type)
        if shape is not None and fits(own.parsed, shape, NamedTypes(own.parsed)):
            made = compile_reader(written.parsed, own.parsed, shape)
            if made is not None:
                return made
        compiled = compile_reader(written.parsed, own.parsed)
        if compiled is not None:
            return compiled if type is None else _converted(compiled, type)
    tagged = type is not None
    read = _fastavro_reader(written, own, tagged=tagged)
    return read if type is None else _converted(read, type)


def _converted(read: Callable[[bytes], Any], type: Type[Any]) -> Callable[[bytes], Any]:  # noqa: A002 - as in Avro
    convert = msgspec.convert
    return lambda payload: convert(read(payload), type)


def _fastavro_reader(written: AvroSchema, own: AvroSchema, *, tagged: bool) -> Callable[[bytes], Any]:
    """The same with fastavro; ``tagged`` records of unions have a field ``type`` with their names."""
    read, named, restore, check = fastavro.schemaless_reader, own.named, own.restore, written.check
    source, wanted = written.parsed, None if written is own else own.parsed
    checks, copies = written.checks, written is not own and own.shares_defaults

    def reader(payload: bytes) -> Any:
        buffer = io.BytesIO(payload)
        buffer.seek(5)
        if checks:
            check(payload, 5)
        value = read(buffer, source, wanted, return_named_type=named)
        _require_end(buffer, payload)
        if copies:
            value = fresh(value)
        return restore(value, tagged=tagged) if named else value

    return reader


def identifier_of(head: bytes) -> int:
    """The schema id in the first bytes of a payload. Raises ``ValueError`` for another wire format."""
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
        identifier = identifier_of(buffer.read(5))
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
