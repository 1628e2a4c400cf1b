"""Between bytes and values, a column at a time."""

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
"""So many items without bytes of their own an Avro payload may claim, unless a serde allows for more."""

MAX_DEPTH = 200
"""So deep the values of an Avro payload may nest, unless a serde allows for more."""

DEEPEST = 1_000
"""Deeper values might not fit the stack that they are read and written with."""


class Serde(Protocol[T]):
    """Serializes and deserializes one type.

    Both methods give one result an element, lazily and in order, and raise at the element they cannot
    handle: the engine applies the step's error policy to that record and calls again with the rest. They
    never see ``None``: a null key stays null, a null value is a tombstone.

    A serde may say more about its bytes than its name does, with a property ``schema`` of plain data: stores
    keep it, to tell after a change of the program whether what they have can still be read. An attribute
    ``value_type`` says which type the values have, so that aggregates can keep them.

    Keys are equal when their bytes are. A serde may have ``key_type``, a class whose own instances are equal
    exactly when this serde writes equal bytes for them: such keys are compared as they are, which is faster.

    A serde that has ``whole_columns`` true works on complete columns and may return a column of its own class
    (a ``streams.records.Column``). Where it raises, it is called again for each element alone.
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
    key_type = bytes

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
    key_type = str

    def serialize(self, values: Sequence[str]) -> Iterable[bytes]:
        with suppress(Exception):
            return list(map(str.encode, values))
        # Lazily, so that what comes before the value that cannot be written is.
        return map(_encoded_text, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[str]:
        return map(bytes.decode, payloads)


def _encoded_text(value: Any) -> bytes:
    if not isinstance(value, str):
        wanted = type(value).__name__ if type(value) in {int, float, bool} else "type"
        raise TypeError(
            f"the Text serde writes str, got {type(value).__name__}: {value!r:.80}; "
            f"another serde writes it, e.g. Json({wanted})"
        )
    return value.encode()


class Json(Generic[T]):
    """JSON by msgspec: checked against ``type`` while it is read, and read only as far as the type needs.

    With a ``msgspec.Struct`` that declares just the fields used, the rest of an object is skipped unparsed,
    which is faster than reading it into a dictionary. Without a type, values are plain Python objects.
    """

    reads_as_written = True
    """Whether each value that it reads back without an error must equal the one that was written."""

    @overload
    def __init__(self: Json[Any], type: None = None) -> None: ...

    @overload
    def __init__(self, type: Type[T]) -> None: ...

    def __init__(self, type: Type[T] | None = None) -> None:  # noqa: A002 - the natural keyword; the builtin is not needed here
        self._type = type
        self.value_type: Any = Any if type is None else type
        """The type of the values: what is aggregated of them is of its fields' types."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(cast("Type[T]", type or Any))
        # Equal sets are written alike, as they may be keys; other types have an order of their own. msgspec
        # can do so where the keys of all mappings are text.
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
        """Text and integers are equal when their JSON is; 1, 1.0 and true are not."""
        return self._type if self._type in (str, int) else None

    @property
    def schema(self) -> dict[str, Any]:
        """What can be read, as JSON Schema; ``any``, or the name where the type cannot be described."""
        try:
            described: Any = "any" if self._type is None else shape(self._type) or "any"
        except TypeError:
            described = self.name
        return {"json": described}

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]:
        """Raises ``ValueError`` at NaN and infinity, for which JSON has no words."""
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
        """Whether there is surely neither NaN nor infinity in the values: the whole column at once, in C."""
        if self._floats:
            if set(map(type, values)) != {self._type}:
                return False
            # A sum is finite if all of it is; what is missing is left out, and so is 0.
            return all(math.isfinite(sum(filter(None, map(of, values)))) for of in self._floats)
        # They are written as null: in data without nulls there is none.
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
    """What the values of a type may hold.

    That is ``float``, ``set``, ``names`` (mappings by other keys than text) and ``any`` (whatever is given).
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
    """The fields of a struct that may be floats; ``None`` where floats may be anywhere else too."""
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


# In msgpack, floats with all bits of the exponent set: none of them is a finite number.
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_packed = msgspec.msgpack.Encoder().encode


def _are_finite(values: Sequence[Any]) -> bool:
    """Whether there is surely neither NaN nor infinity in them."""
    try:
        return _NOT_FINITE.search(_packed(values)) is None
    except (TypeError, ValueError, OverflowError):
        # Integers beyond 64 bits.
        return False


def _require_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        place = f" at {path}" if path else ""
        raise ValueError(f"JSON has no {value}{place}: it would be read back as null")
    if isinstance(value, dict):
        for name, inner in value.items():
            _require_finite(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            _require_finite(inner, f"{path}[{at}]")


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
    ``msgspec.Struct`` whose fields are the schema's, values are of that type, else dictionaries. Records of a
    union are then structs with ``tag=True``, named as in the schema.

    A few bytes of Avro can stand for very much: ``max_items`` bounds how many items without a byte of their
    own (nulls, empty records) a payload may claim, ``max_depth`` how deep its values may nest. Beyond it, a
    payload is an error, and so is a value that is to be written.
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
        """Schemas of payloads, by the bytes in front of these."""
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
        write, own, prefix = fastavro.schemaless_writer, self._own, self._prefix
        schema = own.parsed
        as_dict: Callable[[Any], Any] = _as_dict if self._type else _itself
        expected = self._type
        prepare = own.prepare if own.prepares else _itself
        buffer = io.BytesIO()
        for value in values:
            if expected is not None and not isinstance(value, expected):
                raise TypeError(f"{self.name} writes {expected.__name__}, got {type(value).__name__}")
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
        """A value that was written with another schema, as this one has it."""
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
        raise ValueError(f"{left} bytes left over after the record")


def avro_decoder(schemas: Iterable[Any]) -> Callable[[bytes], Any]:
    """A function from payloads, in the registries' wire format, to plain data as it was written.

    It reads what was written with these schemas, as ``Avro.schema`` describes them; it raises ``LookupError``
    for others and ``ValueError`` for what is no such payload.
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


def held_key(serde: Serde[Any]) -> Serde[Any]:
    """The serde of keys as steps and stores hold them in memory, where equal ones are one.

    It is ``serde`` itself where keys are equal exactly when their bytes are, else that of bytes: the keys are
    held as they are written.
    """
    return Bytes() if getattr(serde, "key_type", None) is None else serde


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
