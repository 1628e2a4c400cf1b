"""Avro schemas in files, their ids, and their description as plain data."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import fastavro
import fastavro.schema

from streams.errors import ConfigurationError
from streams.serde.schemas.avro_references import complete, used_names
from streams.serde.schemas.avro_types import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_INVALID = (ValueError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType)


class WrittenSchema(NamedTuple):
    """A schema with which records are written.

    ``source`` is its JSON, which may use named types of ``uses``, by their full names; ``complete`` has them
    in it.
    """

    source: Any
    complete: Any
    uses: Mapping[str, WrittenSchema] = {}


class SchemaFile(NamedTuple):
    """A ``.avsc`` file: ``parsed`` by fastavro, and its id in a ``SchemaFolder``."""

    written: WrittenSchema
    parsed: Any
    identifier: int


class SchemaFolder:
    """A folder of ``.avsc`` files, one record each: a schema registry without a server.

    A schema's id is the low 31 bits of its Rabin fingerprint (Avro specification, "Schema Fingerprints"), of
    logical types too, so it is the same in every process with the file. To change a record, keep its old file
    in the folder under another name, e.g. ``shop.Order.1.avsc``: payloads written with it stay readable. A
    file may use a type that another one defines, ``shop.Address`` in ``shop.Address.avsc``.

    Raises ``ConfigurationError`` for a folder or schema that cannot be read, or two schemas with the same id.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"schema folder {folder} does not exist")
        self._folder = folder
        self._schemas: dict[int, Any] = {}
        for path in sorted(folder.glob("*.avsc")):
            file = load_schema(path)
            known = self._schemas.setdefault(file.identifier, file.parsed)
            # Files that only differ in documentation and the like decode payloads in the same way.
            if _canonical(known) != _canonical(file.parsed):
                raise ConfigurationError(
                    f"{path}: another schema in {folder} has the same id {file.identifier}",
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
        self._schemas.setdefault(schema_id(parsed), parsed)


class RegisteredSchemas:
    """The schemas of a registry; a folder's where the registry does not know the id.

    So records that were written before there was a registry stay readable.
    """

    def __init__(self, schema: Callable[[int], Any], folder: SchemaFolder) -> None:
        self._schema = schema
        self._folder = folder

    def schema(self, identifier: int) -> Any:
        """The parsed schema with that id. Raises ``LookupError`` if there is none."""
        try:
            return fastavro.parse_schema(self._schema(identifier))
        except LookupError as error:
            with suppress(LookupError):
                return self._folder.schema(identifier)
            raise LookupError(f"{error.args[0]}, and no file of the schema folder has it") from None
        except _INVALID as error:
            raise ValueError(f"the schema with id {identifier} is not valid: {error}") from error

    def add(self, schema: Any) -> None:
        """Add a schema for which neither may know the id."""
        self._folder.add(schema)


def load_schema(path: Path) -> SchemaFile:
    """Load a ``.avsc`` file, and those in its folder that it uses. Raises ``ConfigurationError``."""
    written = _load(path, ())
    try:
        parsed = fastavro.parse_schema(written.complete)
    except _INVALID as error:
        raise ConfigurationError(
            f"{path} is not a valid Avro schema: {error}",
            hint="a type that another file of the folder defines is found by its name: shop.Address in "
            "shop.Address.avsc"
            if isinstance(error, fastavro.schema.UnknownType)
            else None,
        ) from error
    return SchemaFile(written, parsed, schema_id(parsed))


def _load(path: Path, within: tuple[str, ...]) -> WrittenSchema:
    try:
        source = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"schema {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a valid Avro schema: {error}") from error
    uses: dict[str, WrittenSchema] = {}
    for name in used_names(source):
        other = path.parent / f"{name}.avsc"
        if not other.exists():
            continue
        if name in within:
            raise ConfigurationError(
                f"{path} uses {name}, and {other} uses it in turn",
                hint="define types that contain each other in one file",
            )
        uses[name] = _load(other, (*within, name))
    return written_schema(source, uses)


def written_schema(source: Any, uses: Mapping[str, WrittenSchema] | None = None) -> WrittenSchema:
    """A schema with the types that it uses."""
    uses = uses or {}

    def find(name: str, among: Mapping[str, WrittenSchema]) -> Any:
        if name in among:
            return among[name].source
        found = (find(name, used.uses) for used in among.values())
        return next((definition for definition in found if definition is not None), None)

    return WrittenSchema(source, complete(source, lambda name: find(name, uses)), uses)


def schema_id(schema: Any) -> int:
    """The schema's id in a ``SchemaFolder``."""
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(_identifying(schema), "CRC-64-AVRO"))
    # The specification writes the fingerprint little-endian.
    return int.from_bytes(fingerprint, "little") & 0x7FFFFFFF


def _identifying(schema: Any) -> str:
    """The parsing canonical form, and the logical types, which it omits: a value depends on them too."""
    logical = [
        [part.get(word) for word in ("logicalType", "precision", "scale")]
        for part in parts(schema)
        if isinstance(part, dict) and "logicalType" in part
    ]
    return _canonical(schema) + (json.dumps(logical) if logical else "")


def _canonical(schema: Any) -> str:
    return str(fastavro.schema.to_parsing_canonical_form(schema))


# The attributes of the parsing canonical form, and those that it omits although readers use them.
_READ = frozenset(
    {
        *("type", "name", "fields", "symbols", "items", "values", "size"),
        *("default", "aliases", "logicalType", "precision", "scale"),
    }
)


def described_schema(schema: Any) -> Any:
    """The parts of a schema that readers use, as plain data."""
    if isinstance(schema, list):
        return [described_schema(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    described: dict[str, Any] = {}
    for word in sorted(_READ & schema.keys()):
        inner = word in {"type", "items", "values", "fields"}
        described[word] = described_schema(schema[word]) if inner else schema[word]
    # A type with only a name is described by that name.
    return described["type"] if described.keys() == {"type"} else described
