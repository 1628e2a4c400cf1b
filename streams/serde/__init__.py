"""Serialize and deserialize keys and values, a column at a time."""

from __future__ import annotations

import builtins
import datetime as dt
import decimal
import io
import json
import math
import operator
import re
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, cast, overload

import fastavro
import fastavro.schema
import msgspec
import msgspec.inspect

from streams.errors import ConfigurationError
from streams.serde.schemas.avro_schema import AvroSchema, SchemaError, fresh
from streams.serde.schemas.shape import shape

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


class Serde(Protocol[T]):
    """Serializes and deserializes one type.

    Both methods return one result per element, lazily and in order, and raise at an element that they cannot
    handle: the engine applies the step's error policy to that record and calls again with the rest. They
    never get ``None``: a null key stays null, and a null value is a tombstone.

    A serde may describe its encoding by a property ``schema`` of plain data. Stores keep it, to check after a
    change of the program whether their entries can still be read. An attribute ``value_type`` is the type of
    the values, so that aggregates can store them.

    Keys are equal when their bytes are. A serde may have ``key_type``, a class whose own instances are equal
    exactly when this serde writes equal bytes for them: such keys are compared as they are, which is faster.

    A serde that has ``whole_columns`` true works on complete columns and may return a column of its own class
    (a ``streams.records.Column``). Where it raises, it is called again for each element alone.
    """

    @property
    def name(self) -> str:
        """The name in the output of ``describe``."""

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]: ...

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[T]: ...


class Bytes:
    """Bytes, unchanged."""

    name = "Bytes"
    schema = "Bytes"
    value_type = bytes
    key_type = bytes

    def serialize(self, values: Sequence[bytes]) -> Iterable[bytes]:
        # Types are compared in C; only a column with another type in it is checked value by value.
        return values if set(map(type, values)) <= {bytes} else map(_require_bytes, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[bytes]:
        return payloads


def _require_bytes(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError(f"the Bytes serde needs bytes, got {type(value).__name__}: {value!r:.80}")
    return value


class Text:
    """UTF-8 text."""

    name = "Text"
    schema = "Text"
    value_type = str
    key_type = str

    def serialize(self, values: Sequence[str]) -> Iterable[bytes]:
        with suppress(Exception):
            return list(map(str.encode, values))
        # Lazily, so that the values before the one that fails are encoded.
        return map(_encoded_text, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[str]:
        return map(bytes.decode, payloads)


def _encoded_text(value: Any) -> bytes:
    if not isinstance(value, str):
        wanted = type(value).__name__ if type(value) in {int, float, bool} else "type"
        raise TypeError(
            f"the Text serde needs str, got {type(value).__name__}: {value!r:.80}; "
            f"use another serde, e.g. Json({wanted})"
        )
    return value.encode()


class Json(Generic[T]):
    """JSON with msgspec, validated against ``type`` while it is decoded.

    With a ``msgspec.Struct`` that only declares the fields used, the rest of an object is skipped without
    parsing it, which is faster than decoding it into a dictionary. Without a type, values are plain Python
    objects.
    """

    reads_as_written = True
    """Whether a decoded value must equal the one that was encoded."""

    @overload
    def __init__(self: Json[Any], type: None = None) -> None: ...

    @overload
    def __init__(self, type: Type[T]) -> None: ...

    def __init__(self, type: Type[T] | None = None) -> None:  # noqa: A002 - the natural keyword; the builtin is not needed here
        self._type = type
        self.value_type: Any = Any if type is None else type
        """The type of the values, whose fields' types are those of aggregates."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(cast("Type[T]", type or Any))
        # Equal sets must be encoded as equal bytes, as they may be keys; other types already have an order.
        # msgspec can do so if the keys of all mappings are text.
        kinds = _kinds(type)
        alike = "set" in kinds and "names" not in kinds
        self._encoder = msgspec.json.Encoder(order="deterministic" if alike else None)
        self._holds_floats = bool(kinds & {"float", "any"})
        self._floats = [operator.attrgetter(name) for name in _float_fields(type) or ()]
        self._had_nulls = False

    @property
    def name(self) -> str:
        kind: Any = self._type
        if kind is None:
            return "Json"
        return f"Json({kind.__name__ if isinstance(kind, builtins.type) else kind})"

    @property
    def key_type(self) -> builtins.type | None:
        """Text and integers are equal if their JSON is; 1, 1.0 and true are equal but differ in JSON."""
        return self._type if self._type in (str, int) else None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the values; ``any``, or the serde's name if the type cannot be described."""
        try:
            described: Any = "any" if self._type is None else shape(self._type) or "any"
        except TypeError:
            described = self.name
        return {"json": described}

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]:
        """Encode values. Raises ``ValueError`` at NaN and infinity, which JSON cannot represent."""
        encode = self._encoder.encode
        if not self._holds_floats:
            return map(encode, values)
        with suppress(Exception):
            payloads = list(map(encode, values))
            if self._all_finite(values, payloads):
                return payloads
        return self._each(values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[T]:
        return map(self._decoder.decode, payloads)

    def _all_finite(self, values: Sequence[T], payloads: list[bytes]) -> bool:
        """Whether the column certainly has neither NaN nor infinity; checked at once, in C."""
        if self._floats:
            if set(map(type, values)) != {self._type}:
                return False
            # A sum is finite if all of its terms are; the filter drops missing values, and 0.
            return all(math.isfinite(sum(filter(None, map(of, values)))) for of in self._floats)
        # They are encoded as null: data without nulls has none.
        if not self._had_nulls:
            if b"null" not in b"".join(payloads):
                return True
            self._had_nulls = True
        return _are_finite(values)

    def _each(self, values: Sequence[T]) -> Iterator[bytes]:
        encode = self._encoder.encode
        for value in values:
            payload = encode(value)
            if b"null" in payload and not _are_finite([value]):
                _require_finite(msgspec.to_builtins(value, str_keys=True), "")
            yield payload


def _kinds(kind: Any) -> frozenset[str]:
    """What the values of a type may contain.

    ``float``, ``set``, ``names`` (mappings whose keys are not text) and ``any`` (values of any type).
    """
    if kind is None:
        return frozenset({"any"})
    try:
        return _kinds_of(shape(kind))
    except TypeError:
        return frozenset({"any"})


def _kinds_of(described: Any) -> frozenset[str]:
    found = set()
    waiting: list[Any] = [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if not part:
                found.add("any")
            elif part.get("type") == "number":
                found.add("float")
            elif part.get("uniqueItems"):
                found.add("set")
            elif "propertyNames" in part:
                found.add("names")
            for word in ("items", "prefixItems", "additionalProperties", "anyOf"):
                waiting.append(part.get(word))
            for word in ("properties", "$defs"):
                waiting += part.get(word, {}).values()
    return frozenset(found)


def _float_fields(kind: Any) -> list[str] | None:
    """The fields of a struct that may be floats; ``None`` if floats may also be elsewhere in its values."""
    try:
        described, info = shape(kind), msgspec.inspect.type_info(kind)
    except (TypeError, RecursionError):
        return None
    if not isinstance(info, msgspec.inspect.StructType) or not isinstance(kind, type):
        return None
    definitions = dict(described["$defs"])
    own = definitions.pop(described["$ref"].rpartition("/")[2])
    others: list[Any] = list(definitions.values())
    found = []
    for field in info.fields:
        part = own.get("properties", {}).get(field.encode_name, {})
        options = part.get("anyOf", [{word: value for word, value in part.items() if word != "default"}])
        scalar = [option for option in options if option.get("type") == "number"]
        if scalar:
            found.append(field.name)
        others += [option for option in options if option not in scalar]
    return None if _kinds_of(others) & {"float", "any"} else found


# In msgpack, floats with all bits of the exponent set, which are not finite.
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_packed = msgspec.msgpack.Encoder().encode


def _are_finite(values: Sequence[Any]) -> bool:
    """Whether the values certainly contain neither NaN nor infinity."""
    try:
        return _NOT_FINITE.search(_packed(values)) is None
    except (TypeError, ValueError, OverflowError):
        # Integers beyond 64 bits.
        return False


def _require_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        place = f" at {path}" if path else ""
        raise ValueError(f"JSON cannot represent {value}{place}: it would be read back as null")
    if isinstance(value, dict):
        for name, inner in value.items():
            _require_finite(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            _require_finite(inner, f"{path}[{at}]")


class SchemaFolder:
    """A folder of ``.avsc`` files, one record each: a schema registry without a server.

    A schema's id is the low 31 bits of its Rabin fingerprint (Avro specification, "Schema Fingerprints"), so
    it is the same in every process with the file. To change a record, keep its old file in the folder under
    another name, e.g. ``shop.Order.1.avsc``: payloads written with it stay readable.

    Raises ``ConfigurationError`` for a folder or schema that cannot be read, or two schemas with the same id.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"schema folder {folder} does not exist")
        self._folder = folder
        self._schemas: dict[int, Any] = {}
        for path in sorted(folder.glob("*.avsc")):
            schema, identifier = load_schema(path)
            known = self._schemas.setdefault(identifier, schema)
            # Files that only differ in documentation and the like decode payloads in the same way.
            if _canonical(known) != _canonical(schema):
                raise ConfigurationError(
                    f"{path}: another schema in {folder} has the same id {identifier}",
                    hint="rename one of the records or its fields: the id is a hash of the schema",
                )

    def schema(self, identifier: int) -> Any:
        """The parsed schema with that id. Raises ``LookupError`` with advice if there is none."""
        try:
            return self._schemas[identifier]
        except KeyError:
            raise LookupError(
                f"no schema with id {identifier} in {self._folder}: "
                "add the .avsc file with which the payload was written"
            ) from None

    def add(self, schema: Any) -> None:
        """Add a schema, unless a file has its id."""
        parsed = fastavro.parse_schema(schema)
        self._schemas.setdefault(_identifier(parsed), parsed)


def load_schema(path: Path) -> tuple[Any, int]:
    """Load a ``.avsc`` file: fastavro's parsed schema, and its id in a ``SchemaFolder``."""
    try:
        parsed = fastavro.parse_schema(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"schema {path} cannot be read: {error}") from error
    except (ValueError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType) as error:
        raise ConfigurationError(f"{path} is not a valid Avro schema: {error}") from error
    return parsed, _identifier(parsed)


def _identifier(schema: Any) -> int:
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(_canonical(schema), "CRC-64-AVRO"))
    # The specification writes the fingerprint little-endian.
    return int.from_bytes(fingerprint, "little") & 0x7FFFFFFF


def _canonical(schema: Any) -> str:
    return str(fastavro.schema.to_parsing_canonical_form(schema))


# The attributes of the parsing canonical form, and those that it omits although readers use them.
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
    # A type with only a name is described by that name.
    return described["type"] if described.keys() == {"type"} else described


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
        self.schema = {"avro": _described(parsed)}
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
    by_identifier = {_identifier(schema): ready(schema) for schema in parsed}

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


def held_key(serde: Serde[Any]) -> Serde[Any]:
    """The serde of keys in the memory of steps and stores, where equal objects are the same key.

    It is ``serde`` itself if its keys are equal exactly when their bytes are; otherwise ``Bytes``, so that
    encoded keys are used.
    """
    return Bytes() if getattr(serde, "key_type", None) is None else serde


def nullable(
    transform: Callable[[Sequence[Any]], Iterable[Any]],
) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """``transform`` for columns with nulls: ``None`` stays ``None`` and is not passed to it."""

    def apply(column: Sequence[Any]) -> Iterable[Any]:
        # all() checks truth values in C, 3 times faster than a search for None; empty values, and values
        # without a truth value, only take the slower path.
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
