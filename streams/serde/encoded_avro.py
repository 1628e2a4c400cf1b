"""Avro records whose values are given as Avro encodes them: a date as a number of days, a decimal as bytes.

Where the caller converts the values of a schema itself, this is several times as fast as logical types.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import fastavro
import fastavro.schema

from streams.errors import SchemaRefused
from streams.serde.avro import MAX_DEPTH, MAX_ITEMS, record_reader, registry_prefix
from streams.serde.schemas.avro_schema import AvroSchema
from streams.serde.schemas.avro_types import SchemaError, copied
from streams.serde.schemas.avro_writer import compile_writer

if TYPE_CHECKING:
    from collections.abc import Callable

_LOGICAL = frozenset({"logicalType", "precision", "scale"})
_INVALID = (ValueError, SchemaError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType)


def parsed_schema(schema: Any, what: str) -> Any:
    """The schema with full names. Raises ``SchemaRefused`` if it is not valid; ``what`` it is for."""
    try:
        return copied(schema)
    except _INVALID as error:
        raise SchemaRefused(f"{what}: the schema is not valid: {error}") from error


def encoded_writer(schema: Any, identifier: int) -> Callable[[Any], bytes]:
    """A function that encodes a record of a parsed schema with its id, in the registries' wire format."""
    return compile_writer(copied(_without_logical_types(schema)), registry_prefix(identifier))


def encoded_reader(schema: Any) -> Callable[[bytes], Any]:
    """A function that decodes payloads of a parsed schema."""
    ready = partial(AvroSchema, max_items=MAX_ITEMS, max_depth=MAX_DEPTH)(_without_logical_types(schema))
    return record_reader(ready, ready)


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, list):
        return list(map(_without_logical_types, schema))
    if not isinstance(schema, dict):
        return schema
    plain = {name: value for name, value in schema.items() if name not in _LOGICAL}
    for word in ("type", "items", "values"):
        if word in plain:
            plain[word] = _without_logical_types(plain[word])
    if "fields" in plain:
        plain["fields"] = [
            {**field, "type": _without_logical_types(field["type"])} for field in plain["fields"]
        ]
    return plain
