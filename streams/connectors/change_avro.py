"""Change events and their keys as Avro, with a schema for each version of each table."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar, get_args, overload

import msgspec

from streams.connectors.avro_columns import from_avro, key_to_avro, to_avro
from streams.connectors.change import (
    AnyChange,
    Change,
    ChangeSource,
    Operation,
    Tombstone,
    TransactionBlock,
)
from streams.connectors.change_schema import COMPLETE_BEFORE, change_schema, key_schema
from streams.connectors.table_row import TableRow
from streams.errors import SchemaRefused, TopologyError
from streams.serde.avro import identifier_of
from streams.serde.dynamic_avro import COLUMN, FolderSchemas
from streams.serde.encoded_avro import encoded_reader, encoded_writer, parsed_schema
from streams.serde.schemas.avro_names import avro_names
from streams.serde.schemas.avro_types import RECORDS, NamedTypes, type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from streams.connectors.avro_columns import Convert
    from streams.connectors.table_row import Column, TableColumns
    from streams.serde.dynamic_avro import SchemaStore
    from streams.serde.registry import Part
    from streams.serde.subjects import Subjects

T = TypeVar("T")

_OPERATIONS: Final = frozenset(get_args(Operation))
_MAP: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
"""How a value of an internal topic or a store begins: with a map of MessagePack."""


class _TableAvro(ABC):
    """What the two serdes have in common: where the schemas are, and a function for each of them.

    Without a topic they write MessagePack: for stores and internal topics, which only the app reads.
    """

    name: str
    _part: Part

    def __init__(self, schemas: str | Path | None) -> None:
        self._folder = None if schemas is None else Path(schemas)
        self._subjects: Subjects | None = None
        self._topic: str | None = None
        self._writers: dict[TableColumns, Callable[[Any], bytes]] = {}
        self._readers: dict[bytes, Callable[[bytes], Any]] = {}
        self._in_folder: FolderSchemas | None = None

    @property
    def schema(self) -> dict[str, Any]:
        return {"change": self.name}

    def connected(self, subjects: Subjects, part: Part, *, stored: bool = False) -> Self:  # noqa: ARG002 - written without a topic all the same
        """The same serde for topics of a schema registry."""
        return self._with(_subjects=subjects, _part=part, _readers={}, _writers={})

    def for_topic(self, topic: str) -> Self:
        """The same serde, writing Avro to a topic."""
        return self._with(_topic=topic, _writers={})

    def _with(self, **attributes: object) -> Self:
        made = copy.copy(self)
        vars(made).update(attributes)
        return made

    def _store(self) -> SchemaStore:
        if self._subjects is not None:
            return self._subjects
        if self._folder is None:
            raise TopologyError(
                f"{self.name} has no place for the tables' schemas",
                hint="use a schema registry (schema_registry_url), or a folder: schemas='schemas'",
            )
        if self._in_folder is None:
            self._in_folder = FolderSchemas(self._folder)
        return self._in_folder

    def _written(self, identifier: int) -> Any:
        """The schema of a payload; the folder's, where the registry does not know the id."""
        try:
            return self._store().schema(identifier)
        except LookupError:
            if self._subjects is None or self._folder is None:
                raise
            return FolderSchemas(self._folder).schema(identifier)

    def _reader(self, head: bytes) -> Callable[[bytes], Any]:
        schema = parsed_schema(self._written(identifier_of(head)), f"the {self._part} of a record")
        read = self._readers[head] = self._read(schema)
        return read

    def _writer(self, table: TableColumns) -> Callable[[Any], bytes]:
        assert self._topic is not None, "without a topic nothing is written as Avro"
        write = self._writers[table] = self._write(table, self._topic)
        return write

    def _encoder(
        self, topic: str, make: Callable[[TableColumns], Any], table: TableColumns
    ) -> Callable[[Any], bytes]:
        what = f"topic {topic!r}: the {self._part} of table {'.'.join(filter(None, table.path))}"
        try:
            schema = make(table)
        except ValueError as error:
            raise SchemaRefused(f"{what}: {error}") from error
        parsed = parsed_schema(schema, what)
        return encoded_writer(parsed, self._store().identify(topic, self._part, schema))

    @abstractmethod
    def _read(self, schema: Any) -> Callable[[bytes], Any]:
        """Make the function that decodes payloads of this schema."""

    @abstractmethod
    def _write(self, table: TableColumns, topic: str) -> Callable[[Any], bytes]:
        """Make the function that encodes the table's values for a topic."""

    def _lost(self, row: Any) -> NoReturn:
        raise TopologyError(
            f"{self.name} writes what a source connector captured, whose rows know the columns of their "
            f"table, got {'no row' if row is None else type(row).__name__}",
            hint="write directly downstream of the source, before steps that make other rows; or use another "
            "serde, e.g. ChangeJson()",
        )


class ChangeAvro(_TableAvro, Generic[T]):
    """``Change[T]`` as Avro, where ``T`` is the type of the table's rows; dictionaries unless given.

    It writes what a source connector captured, with ``to_change_topics``: each version of a table gets its
    own schema, in the schema registry of the app's settings, or without one in the folder ``schemas``.
    Records are in Debezium's form. A ``Tombstone`` is written as a null value.

    Dictionaries have the values that ``ChangeJson`` reads, except for bytes, which are ``bytes``. With a
    type, ``before`` is ``None`` where the database did not send all columns that the type needs.
    """

    _part: Part = "value"

    @overload
    def __init__(
        self: ChangeAvro[dict[str, Any]], row: None = None, *, schemas: str | Path | None = None
    ) -> None: ...

    @overload
    def __init__(self, row: type[T], *, schemas: str | Path | None = None) -> None: ...

    def __init__(self, row: type[T] | None = None, *, schemas: str | Path | None = None) -> None:
        super().__init__(schemas)
        self._row = row
        kind: Any = dict[str, Any] if row is None else row
        self.value_type: Any = Change[kind]
        self.name = f"ChangeAvro({'' if row is None else row.__name__})"
        self._pack = msgspec.msgpack.Encoder().encode
        self._unpack = msgspec.msgpack.Decoder(self.value_type).decode
        self._latest: dict[tuple[str | None, str | None], TableColumns] = {}

    def serialize(self, values: Sequence[Change[T]]) -> Iterator[bytes]:
        write: Callable[[Any], bytes] = self._pack if self._topic is None else self._avro
        for value in values:
            # The protocol has no null for a serde to write: a sink takes None as a tombstone all the same.
            yield None if type(value) is Tombstone else write(value)  # type: ignore[misc]

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[Change[T]]:
        readers = self._readers
        for payload in payloads:
            head = payload[:5]
            read = readers.get(head)
            if read is None:
                read = self._unpack if head and head[0] in _MAP else self._reader(head)
            yield read(payload)

    def _avro(self, change: Change[Any]) -> bytes:
        row = change.before if change.after is None else change.after
        source = change.source
        if type(row) is TableRow:
            table = row.table
        elif row is None and (source.namespace, source.table) in self._latest:
            table = self._latest[source.namespace, source.table]
        else:
            self._lost(row)
        write = self._writers.get(table)
        if write is None:
            write = self._writer(table)
            self._latest[source.namespace, source.table] = table
        return write(change)

    def _write(self, table: TableColumns, topic: str) -> Callable[[Any], bytes]:
        encode = self._encoder(topic, change_schema, table)
        encoded = _row_encoder(table.columns, to_avro)
        width = len(table.columns)
        as_dict = msgspec.structs.asdict

        def write(change: Change[Any]) -> bytes:
            before, after, block = change.before, change.after, change.transaction
            source = as_dict(change.source)
            if type(source["snapshot"]) is bool:
                source["snapshot"] = "true" if source["snapshot"] else "false"
            return encode(
                {
                    "before": None if before is None else encoded(before, complete=False),
                    "after": None if after is None else encoded(after, complete=True),
                    "source": source,
                    "op": change.op,
                    "ts_ms": change.ts_ms,
                    "transaction": None if block is None else as_dict(block),
                    COMPLETE_BEFORE: before is not None and len(before) == width,
                }
            )

        return write

    def _read(self, schema: Any) -> Callable[[bytes], Any]:
        record = _row_record(schema)
        read = encoded_reader(schema)
        decoded = _row_decoder(record["fields"], finite=self._row is None)
        row: Callable[[Any], Any] = decoded if self._row is None else _typed(decoded, self._row)
        partial = _partial(row)
        if COMPLETE_BEFORE not in {field["name"] for field in schema["fields"]}:
            return _other_reader(read, row)

        def change(payload: bytes) -> Change[Any]:
            event = read(payload)
            before, after, block, op = event["before"], event["after"], event["transaction"], event["op"]
            if op not in _OPERATIONS:
                raise ValueError(f"a change has no operation {op!r:.20}")
            if before is not None:
                before = row(before) if event[COMPLETE_BEFORE] else partial(before)
            return Change(
                op=op,
                before=before,
                after=None if after is None else row(after),
                source=ChangeSource(**event["source"]),
                transaction=None if block is None else TransactionBlock(**block),
                ts_ms=event["ts_ms"],
            )

        return change


class ChangeKeyAvro(_TableAvro):
    """The keys of captured rows as Avro: dictionaries of the columns of the primary key.

    The bytes of a key begin with its schema's id. All whole numbers are ``long``, and types that Avro has
    only as logical ones are text, so that a column which gets a larger type leaves the key as it is.
    """

    _part: Part = "key"

    def __init__(self, *, schemas: str | Path | None = None) -> None:
        super().__init__(schemas)
        self.value_type: Any = dict[str, Any]
        self.name = "ChangeKeyAvro()"
        # Keys are equal when their bytes are.
        self._pack = msgspec.msgpack.Encoder(order="deterministic").encode
        self._unpack = msgspec.msgpack.Decoder(dict[str, Any]).decode

    def serialize(self, values: Sequence[Mapping[str, Any]]) -> Iterable[bytes]:
        return map(self._pack if self._topic is None else self._avro, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[dict[str, Any]]:
        for payload in payloads:
            head = payload[:5]
            read = self._readers.get(head)
            if read is None:
                read = self._unpack if head and head[0] in _MAP else self._reader(head)
            yield read(payload)

    def _avro(self, key: Any) -> bytes:
        if type(key) is not TableRow:
            self._lost(key)
        write = self._writers.get(key.table)
        return (self._writer(key.table) if write is None else write)(key)

    def _write(self, table: TableColumns, topic: str) -> Callable[[Any], bytes]:
        encode = self._encoder(topic, key_schema, table)
        encoded = _row_encoder(table.key_columns, key_to_avro)
        return lambda key: encode(encoded(key, complete=True))

    def _read(self, schema: Any) -> Callable[[bytes], Any]:
        if type_of(schema) not in RECORDS:
            raise ValueError("its schema is not that of a row's key: needs a record")
        read, decoded = encoded_reader(schema), _row_decoder(schema["fields"], finite=True)
        return lambda payload: decoded(read(payload))


class _Named(NamedTuple):
    field: str
    convert: Convert


def _row_encoder(
    columns: Sequence[Column], convert: Callable[[Column], Convert | None]
) -> Callable[..., Any]:
    """A function that makes a row what Avro encodes; it must have all columns, unless it is not complete."""
    names = avro_names((column.name for column in columns), "columns")
    renamed = any(name != field for name, field in names.items())
    known = names.keys()
    converts = [
        _Named(names[column.name], found) for column in columns if (found := convert(column)) is not None
    ]

    def encoded(row: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
        if not (row.keys() == known if complete else row.keys() <= known):
            raise ValueError(f"a row needs the columns {list(known)}, got {list(row)}")
        made = {names[name]: value for name, value in row.items()} if renamed else dict(row)
        for field, to in converts:
            value = made.get(field)
            if value is not None:
                made[field] = to(value)
        return made

    return encoded


def _row_decoder(fields: Sequence[Any], *, finite: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that makes what Avro encodes a row, in place unless columns have other names than fields."""
    renamed = {field["name"]: field[COLUMN] for field in fields if COLUMN in field}
    converts = [
        _Named(field["name"], found)
        for field in fields
        if (found := from_avro(field["type"], finite=finite)) is not None
    ]

    def decoded(row: dict[str, Any]) -> dict[str, Any]:
        for field, of in converts:
            value = row.get(field)
            if value is not None:
                row[field] = of(value)
        return {renamed.get(name, name): value for name, value in row.items()} if renamed else row

    return decoded


def _typed(
    decoded: Callable[[dict[str, Any]], dict[str, Any]], kind: type[T]
) -> Callable[[dict[str, Any]], T]:
    convert = msgspec.convert
    return lambda row: convert(decoded(row), kind, builtin_types=(bytes,))


def _partial(row: Callable[[Any], T]) -> Callable[[dict[str, Any]], T | None]:
    """A function for rows of which the database sent only some columns: the others are null."""

    def partial(before: dict[str, Any]) -> T | None:
        try:
            return row({name: value for name, value in before.items() if value is not None})
        except msgspec.ValidationError:
            return None

    return partial


def _row_record(schema: Any) -> Any:
    """The record of the rows in a schema of changes. Raises ``ValueError`` if it is none."""
    types = NamedTypes(schema)
    for field in schema.get("fields", ()) if isinstance(schema, dict) else ():
        if field["name"] == "after":
            for branch in field["type"] if isinstance(field["type"], list) else [field["type"]]:
                found = types.resolved(branch)
                if type_of(found) in RECORDS:
                    return found
    raise ValueError(
        "its schema is not that of a change: needs a record with a field 'after' that is a record"
    )


def _other_reader(read: Callable[[bytes], Any], row: Callable[[Any], Any]) -> Callable[[bytes], Change[Any]]:
    """A reader of another program's changes, e.g. Debezium's, whose fields may differ."""

    def change(payload: bytes) -> Change[Any]:
        event = read(payload)
        for name in ("before", "after"):
            if event.get(name) is not None:
                event[name] = row(event[name])
        return msgspec.convert(event, AnyChange)

    return change
