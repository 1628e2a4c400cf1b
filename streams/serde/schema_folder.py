"""Avro schemas in files, their ids, and their description as plain data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import fastavro
import fastavro.schema

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


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
        self._schemas.setdefault(schema_id(parsed), parsed)


def load_schema(path: Path) -> tuple[Any, int]:
    """Load a ``.avsc`` file: fastavro's parsed schema, and its id in a ``SchemaFolder``."""
    try:
        parsed = fastavro.parse_schema(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"schema {path} cannot be read: {error}") from error
    except (ValueError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType) as error:
        raise ConfigurationError(f"{path} is not a valid Avro schema: {error}") from error
    return parsed, schema_id(parsed)


def schema_id(schema: Any) -> int:
    """The schema's id in a ``SchemaFolder``."""
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
