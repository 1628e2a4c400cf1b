"""Between bytes and values, a column at a time."""

from __future__ import annotations

import builtins
import datetime as dt
import decimal
import io
import json
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, cast, overload

import fastavro
import fastavro.schema
import msgspec

from streams.errors import ConfigurationError
from streams.shape import shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")
Type: TypeAlias = builtins.type[T]


class Serde(Protocol[T]):
    """Serializes and deserializes one type.

    Both methods give one result an element, lazily and in order, and raise at the element they cannot
    handle: the engine applies the step's error policy to that record and calls again with the rest. They
    never see ``None``: a null key stays null, a null value is a tombstone.

    A serde may say more about its bytes than its name does, with a property ``schema`` of plain data: stores
    keep it, to tell after a change of the program whether what they have can still be read. An attribute
    ``value_type`` says which type the values have, so that aggregates can keep them.
    """

    @property
    def name(self) -> str:
        """What ``describe`` shows."""

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]: ...

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[T]: ...


class Bytes:
    """The payload as it is."""

    name = "Bytes"
    schema = "Bytes"
    value_type = bytes

    def serialize(self, values: Sequence[bytes]) -> Iterable[bytes]:
        # Types are compared in C; only a column with something else in it is looked at one by one.
        return values if set(map(type, values)) <= {bytes} else map(_require_bytes, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[bytes]:
        return payloads


def _require_bytes(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError(f"the Bytes serde writes bytes, got {type(value).__name__}: {value!r:.80}")
    return value


class Text:
    """UTF-8 text."""

    name = "Text"
    schema = "Text"
    value_type = str

    def serialize(self, values: Sequence[str]) -> Iterable[bytes]:
        return map(str.encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[str]:
        return map(bytes.decode, payloads)


class Json(Generic[T]):
    """JSON by msgspec: checked against ``type`` while it is read, and read only as far as the type needs.

    With a ``msgspec.Struct`` that declares just the fields used, the rest of an object is skipped unparsed,
    which is faster than reading it into a dictionary. Without a type, values are plain Python objects.
    """

    @overload
    def __init__(self: Json[Any], type: None = None) -> None: ...

    @overload
    def __init__(self, type: Type[T]) -> None: ...

    def __init__(self, type: Type[T] | None = None) -> None:  # noqa: A002 - the natural keyword; the builtin is not needed here
        self._type = type
        self.value_type: Any = Any if type is None else type
        """The type of the values: what is aggregated of them is of its fields' types."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(cast("Type[T]", type or Any))
        self._encoder = msgspec.json.Encoder()

    @property
    def name(self) -> str:
        return f"Json({getattr(self._type, '__name__', self._type)})" if self._type else "Json"

    @property
    def schema(self) -> dict[str, Any]:
        """What can be read, as JSON Schema; ``any``, or the name where the type cannot be described."""
        try:
            described: Any = "any" if self._type is None else shape(self._type) or "any"
        except TypeError:
            described = self.name
        return {"json": described}

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]:
        return map(self._encoder.encode, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[T]:
        return map(self._decoder.decode, payloads)


class SchemaFolder:
    """A folder of ``.avsc`` files, one record each, as a schema registry without a server.

    A schema's id is the low 31 bits of its Rabin fingerprint (Avro specification, "Schema Fingerprints"), so
    every process that has the file agrees on it. To change a record, keep its old file in the folder under
    another name, e.g. ``shop.Order.1.avsc``: payloads written with it stay readable.

    Raises ``ConfigurationError`` for a folder or schema that cannot be read, or two schemas of one id.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"schema folder {folder} does not exist")
        self._folder = folder
        self._schemas: dict[int, Any] = {}
        for path in sorted(folder.glob("*.avsc")):
            schema, identifier = load_schema(path)
            known = self._schemas.setdefault(identifier, schema)
            # Files that differ only in what payloads do not show, as documentation, read them alike.
            if _canonical(known) != _canonical(schema):
                raise ConfigurationError(
                    f"{path}: its id {identifier} is taken by another schema in {folder}"
                )

    def schema(self, identifier: int) -> Any:
        """The parsed schema with that id. Raises ``LookupError`` with advice where there is none."""
        try:
            return self._schemas[identifier]
        except KeyError:
            raise LookupError(
                f"no schema with id {identifier} in {self._folder}: add the .avsc it was written with"
            ) from None

    def add(self, schema: Any) -> None:
        """Read payloads of this schema too, where no file has its id."""
        parsed = fastavro.parse_schema(schema)
        self._schemas.setdefault(_identifier(parsed), parsed)


def load_schema(path: Path) -> tuple[Any, int]:
    """A ``.avsc`` file as fastavro's parsed schema, and its id in a ``SchemaFolder``."""
    try:
        parsed = fastavro.parse_schema(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"schema {path} cannot be read: {error}") from error
    except (ValueError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType) as error:
        raise ConfigurationError(f"{path} is no Avro schema: {error}") from error
    return parsed, _identifier(parsed)


def _identifier(schema: Any) -> int:
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(_canonical(schema), "CRC-64-AVRO"))
    # The specification writes the fingerprint little-endian.
    return int.from_bytes(fingerprint, "little") & 0x7FFFFFFF


def _canonical(schema: Any) -> str:
    return str(fastavro.schema.to_parsing_canonical_form(schema))


# What the parsing canonical form has, and what it leaves out though a reader looks at it.
_READ = frozenset(
    {
        *("type", "name", "fields", "symbols", "items", "values", "size"),
        *("default", "aliases", "logicalType", "precision", "scale"),
    }
)


def _described(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_described(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    described: dict[str, Any] = {}
    for word in sorted(_READ & schema.keys()):
        inner = word in {"type", "items", "values", "fields"}
        described[word] = _described(schema[word]) if inner else schema[word]
    # A type with nothing to it but its name is that name.
    return described["type"] if described.keys() == {"type"} else described


class Avro(Generic[T]):
    """Avro by fastavro, in the schema registries' wire format: a zero byte, the schema's id, the record.

    ``schema`` is the path of a ``.avsc`` file; the other files beside it are the schemas that payloads may
    have been written with, and a payload is resolved from its own to this one. With ``type``, a
    ``msgspec.Struct`` whose fields are the schema's, values are of that type, else dictionaries.
    """

    @overload
    def __init__(self: Avro[Any], schema: str | Path, type: None = None) -> None: ...

    @overload
    def __init__(self, schema: str | Path, type: Type[T]) -> None: ...

    def __init__(self, schema: str | Path, type: Type[T] | None = None) -> None:  # noqa: A002 - as in Json
        path = Path(schema)
        self._parsed, identifier = load_schema(path)
        self.schema = {"avro": _described(self._parsed)}
        self._folder = SchemaFolder(path.parent)
        self._prefix = b"\0" + identifier.to_bytes(4, "big")
        self._type = type
        self.record_type = type
        self.value_type: Any = Any if type is None else type
        """What values are; ``None`` for dictionaries."""
        self.name = f"Avro({path.stem})"

    def learn(self, schemas: Iterable[Any]) -> None:
        """Read payloads of these schemas too, where the folder has no file for them."""
        for schema in schemas:
            self._folder.add(schema)

    def serialize(self, values: Sequence[T]) -> Iterator[bytes]:
        write, schema, prefix = fastavro.schemaless_writer, self._parsed, self._prefix
        as_dict: Callable[[Any], Any] = _as_dict if self._type else _itself
        expected = self._type
        buffer = io.BytesIO()
        for value in values:
            if expected is not None and not isinstance(value, expected):
                raise TypeError(f"{self.name} writes {expected.__name__}, got {type(value).__name__}")
            buffer.seek(0)
            buffer.truncate()
            buffer.write(prefix)
            write(buffer, schema, as_dict(value))
            yield buffer.getvalue()

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[T]:
        read, own, folder = fastavro.schemaless_reader, self._parsed, self._folder
        prefix, expected = self._prefix, self._type
        convert = msgspec.convert
        for payload in payloads:
            buffer = io.BytesIO(payload)
            head = buffer.read(5)
            if head == prefix:
                value = read(buffer, own, None)
            else:
                value = read(buffer, folder.schema(_written_with(head)), own)
            _require_end(buffer, payload)
            yield cast("T", value if expected is None else convert(value, expected))


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
        raise ValueError(f"{left} bytes left over after the record")


def avro_decoder(schemas: Iterable[Any]) -> Callable[[bytes], Any]:
    """A function from payloads, in the registries' wire format, to plain data as it was written.

    It reads what was written with these schemas, as ``Avro.schema`` describes them; it raises ``LookupError``
    for others and ``ValueError`` for what is no such payload.
    """
    parsed = [fastavro.parse_schema(schema) for schema in schemas]
    by_identifier = {_identifier(schema): schema for schema in parsed}

    def decode(payload: bytes) -> Any:
        buffer = io.BytesIO(payload)
        identifier = _written_with(buffer.read(5))
        if identifier not in by_identifier:
            raise LookupError(f"no schema with id {identifier} is known")
        value = fastavro.schemaless_reader(buffer, by_identifier[identifier], None)
        _require_end(buffer, payload)
        return value

    return decode


def _itself(value: Any) -> Any:
    return value


# What fastavro takes as it is; records within records become dictionaries too.
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


def nullable(
    transform: Callable[[Sequence[Any]], Iterable[Any]],
) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """``transform`` for columns with nulls: ``None`` stays ``None`` and is not shown to it."""

    def apply(column: Sequence[Any]) -> Iterable[Any]:
        # all() looks at truth values in C, 3 times faster than a search for None; empty values, and those
        # that have no truth value, merely take the slower way.
        with suppress(Exception):
            if all(column):
                return transform(column)
        present = [value for value in column if value is not None]
        if len(present) == len(column):
            return transform(column)
        return _with_nulls(column, iter(transform(present)))

    return apply


def _with_nulls(column: Sequence[Any], results: Iterator[Any]) -> Iterator[Any]:
    for value in column:
        yield None if value is None else next(results)
