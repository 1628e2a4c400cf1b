"""Serialize and deserialize keys and values, a column at a time."""

from __future__ import annotations

from streams.serde.avro import DEEPEST, MAX_DEPTH, MAX_ITEMS, Avro, avro_decoder
from streams.serde.basic import Bytes, Serde, Text, held_key, nullable
from streams.serde.json_serde import Json
from streams.serde.schema_folder import SchemaFolder, load_schema

__all__ = [
    "DEEPEST",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "Avro",
    "Bytes",
    "Json",
    "SchemaFolder",
    "Serde",
    "Text",
    "avro_decoder",
    "held_key",
    "load_schema",
    "nullable",
]
