"""Avro records of schemas that are only known at run time, e.g. those of the tables of a database."""

from __future__ import annotations

import copy
import json
import os
import threading
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import fastavro
import fastavro.schema
import msgspec

from streams.errors import SchemaRefused
from streams.serde.avro import (
    MAX_DEPTH,
    MAX_ITEMS,
    identifier_of,
    record_reader,
    registry_prefix,
    write_records,
)
from streams.serde.schema_folder import SchemaFolder, schema_id
from streams.serde.schemas.avro_names import avro_name, avro_names
from streams.serde.schemas.avro_schema import AvroSchema
from streams.serde.schemas.avro_types import SchemaError, without_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streams.serde.registry import Part
    from streams.serde.subjects import Subjects

COLUMN: Final = "column"
"""The attribute of a field with the name of its column, where that is no Avro name."""


class _NoDefault(msgspec.Struct, frozen=True):
    """No default: the field must be written."""


NO_DEFAULT: Final = _NoDefault()


class Column(NamedTuple):
    """A column of a table: ``type`` is its Avro type, which values have that are not null."""

    name: str
    type: Any
    nullable: bool = True
    default: Any = NO_DEFAULT
    """As in a schema's JSON. It is read where the *field* is missing; a null that was written stays null."""


def table_schema(path: Sequence[str], columns: Sequence[Column]) -> dict[str, Any]:
    """The schema of a table's rows: a record with a field for each column.

    ``path`` is the table's name after those of its database, schema and so on. Names that Avro does not allow
    are encoded reversibly (``avro_name``). Raises ``NameCollision`` with both names if two columns get the
    same.
    """
    *spaces, name = map(avro_name, path)
    names = avro_names((column.name for column in columns), "columns")
    fields = [_field(names[column.name], column) for column in columns]
    schema: dict[str, Any] = {"type": "record", "name": name}
    if spaces:
        schema["namespace"] = ".".join(spaces)
    return {**schema, "fields": fields}


def _field(name: str, column: Column) -> dict[str, Any]:
    kind, default = column.type, column.default
    if column.nullable:
        # A default must be a value of the first type.
        has_value = default is not NO_DEFAULT and default is not None
        kind = [kind, "null"] if has_value else ["null", kind]
        default = default if has_value else None
    field = {"name": name, "type": kind}
    if name != column.name:
        field[COLUMN] = column.name
    return field if default is NO_DEFAULT else {**field, "default": default}


class SchemaStore(Protocol):
    """Where schemas get their ids, and are found again by them: a registry's subjects, or a folder."""

    def identify(self, topic: str, part: Part, schema: Any) -> int:
        """The id with which records of a schema are written to a topic."""

    def schema(self, identifier: int) -> Any:
        """The schema with that id. Raises ``LookupError`` if there is none."""


class FolderSchemas:
    """A schema folder as a place for new schemas, where there is no registry.

    A schema that is written for the first time becomes a file, ``<record>.<id>.avsc``, by which other
    programs with the folder can read its records.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: SchemaFolder | None = None

    def identify(self, topic: str, part: Part, schema: Any) -> int:  # noqa: ARG002 - the same for all topics
        parsed = fastavro.parse_schema(schema)
        identifier = schema_id(parsed)
        try:
            self.schema(identifier)
        except LookupError:
            name = parsed.get("name", "schema") if isinstance(parsed, dict) else "schema"
            self._write(self._folder / f"{name}.{identifier}.avsc", schema)
            self._known = None
        return identifier

    def schema(self, identifier: int) -> Any:
        if self._known is not None:
            with suppress(LookupError):
                return without_marks(self._known.schema(identifier))
        # Another program may have written it since.
        self._folder.mkdir(parents=True, exist_ok=True)
        self._known = SchemaFolder(self._folder)
        return without_marks(self._known.schema(identifier))

    def _write(self, path: Path, schema: Any) -> None:
        # Complete or not at all, for programs that read the folder at this moment, also as other users.
        new = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(schema, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


class DynamicAvro:
    """Writes rows of any schema, and reads records with the schema with which each was written.

    A schema gets its id with its first rows: in a registry it is then registered under the topic's subject,
    as a new version if the table has changed. The ids are kept, so later rows cost no request. ::

        avro = DynamicAvro(FolderSchemas(Path("schemas")))
        schema = table_schema(["shop", "public", "orders"], [Column("id", "long", nullable=False)])
        payloads = list(avro.serialize("orders", "value", schema, [{"id": 1}]))

    Rows are dictionaries by the columns' own names; a column that is missing in a row gets its default.
    """

    def __init__(self, schemas: SchemaStore) -> None:
        self._schemas = schemas
        self._writers: dict[tuple[str, Part, bytes], _Writer] = {}
        self._readers: dict[bytes, _Reader] = {}

    def serialize(
        self, topic: str, part: Part, schema: dict[str, Any], rows: Iterable[Mapping[str, Any]]
    ) -> Iterator[bytes]:
        """Encode rows in the registries' wire format, lazily: it raises at a row that cannot be written.

        Raises ``SchemaRefused``, with the fields, for a schema that is invalid or that the registry refuses,
        and ``RegistryUnavailable`` if it does not answer: then nothing is written, and the call may be
        repeated.
        """
        key = topic, part, msgspec.json.encode(schema)
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = self._writer(topic, part, schema)
        return writer.write(rows)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[dict[str, Any]]:
        """Decode records with their own schemas, lazily, to dictionaries by the columns' own names."""
        return (row.values for row in self.rows(payloads))

    def rows(self, payloads: Sequence[bytes]) -> Iterator[Row]:
        """The same with the schemas."""
        for payload in payloads:
            head = payload[:5]
            reader = self._readers.get(head)
            if reader is None:
                reader = self._readers[head] = self._reader(head)
            yield Row(reader.schema, reader.read(payload))

    def _writer(self, topic: str, part: Part, schema: dict[str, Any]) -> _Writer:
        try:
            ready = _ready(fastavro.parse_schema(schema))
        except (
            ValueError,
            SchemaError,
            fastavro.schema.SchemaParseException,
            fastavro.schema.UnknownType,
        ) as error:
            raise SchemaRefused(f"topic {topic!r}: the {part}'s schema is not valid: {error}") from error
        return _Writer(ready, registry_prefix(self._schemas.identify(topic, part, schema)), _columns(schema))

    def _reader(self, head: bytes) -> _Reader:
        schema = self._schemas.schema(identifier_of(head))
        ready = _ready(fastavro.parse_schema(schema))
        read = record_reader(ready, ready)
        renamed = {field: column for column, field in _columns(schema).items()}
        if not renamed:
            return _Reader(schema, read)
        return _Reader(
            schema,
            lambda payload: {renamed.get(name, name): value for name, value in read(payload).items()},
        )


class Row(NamedTuple):
    """A row of a table, and the schema of the table when it was written."""

    schema: dict[str, Any]
    values: dict[str, Any]


class RowSerde:
    """A serde of ``Row``s: ``stream.to(lambda row: …, value=RowSerde("schemas"))``.

    Without a registry, schemas become files of the folder; with one, they are registered under the topic's
    subject with their first row. A schema that the registry refuses ends the worker, with the fields: rows
    are not left out.
    """

    reads_as_written = True
    name = "Avro(rows)"
    schema = "Avro rows"
    value_type = Row

    def __init__(self, folder: str | Path) -> None:
        self._store: SchemaStore = FolderSchemas(Path(folder))
        self._avro = DynamicAvro(self._store)
        self._part: Part = "value"
        self._topic = ""

    def connected(self, subjects: Subjects, part: Part, *, stored: bool = False) -> RowSerde:
        """The same serde for topics of a registry; with ``stored``, for a store that is filled from one."""
        store = _RegistryFirst(subjects, self._store, writes_there=not stored)
        return self._with(_store=store, _avro=DynamicAvro(store), _part=part)

    def for_topic(self, topic: str) -> RowSerde:
        """The same serde, writing to a topic."""
        return self._with(_topic=topic)

    def serialize(self, values: Sequence[Row]) -> Iterator[bytes]:
        # Rows of one change of a table share its schema: the same object, and if not, an equal one.
        for schema, rows in groupby(values, key=attrgetter("schema")):
            yield from self._avro.serialize(self._topic, self._part, schema, (row.values for row in rows))

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[Row]:
        return self._avro.rows(payloads)

    def _with(self, **attributes: object) -> RowSerde:
        made = copy.copy(self)
        vars(made).update(attributes)
        return made


class _RegistryFirst:
    """A registry's subjects, with a folder for ids that they do not know."""

    def __init__(self, subjects: Subjects, folder: SchemaStore, *, writes_there: bool) -> None:
        self._subjects = subjects
        self._folder = folder
        self._writes_there = writes_there

    def identify(self, topic: str, part: Part, schema: Any) -> int:
        store = self._subjects if self._writes_there else self._folder
        return store.identify(topic, part, schema)

    def schema(self, identifier: int) -> Any:
        try:
            return self._subjects.schema(identifier)
        except LookupError as error:
            try:
                return self._folder.schema(identifier)
            except LookupError:
                raise error from None


class _Reader(NamedTuple):
    """Reads records of one schema."""

    schema: dict[str, Any]
    read: Callable[[bytes], dict[str, Any]]


class _Writer:
    """Writes rows of one schema with its id. ``fields`` are those with another name than their column."""

    def __init__(self, schema: AvroSchema, prefix: bytes, fields: Mapping[str, str]) -> None:
        self._schema = schema
        self._prefix = prefix
        self._fields = fields

    def write(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
        fields = self._fields
        if not fields:
            return write_records(self._schema, self._prefix, rows)
        renamed = ({fields.get(name, name): value for name, value in row.items()} for row in rows)
        return write_records(self._schema, self._prefix, renamed)


def _columns(schema: Any) -> dict[str, str]:
    """The fields whose columns have other names, by the columns' names."""
    fields = schema.get("fields", ()) if isinstance(schema, dict) else ()
    return {str(field[COLUMN]): str(field["name"]) for field in fields if COLUMN in field}


_ready = partial(AvroSchema, max_items=MAX_ITEMS, max_depth=MAX_DEPTH)
