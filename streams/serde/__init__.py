"""Serialize and deserialize keys and values, a column at a time.

What Avro needs is imported when it is first used: it takes a tenth of a program's start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from streams.serde.basic import Bytes, Serde, Text, held_key, nullable
from streams.serde.json_serde import Json

if TYPE_CHECKING:
    from streams.serde.avro import DEEPEST, MAX_DEPTH, MAX_ITEMS, Avro, avro_decoder
    from streams.serde.schema_folder import SchemaFolder, load_schema
else:
    _MODULES = {
        "DEEPEST": "avro",
        "MAX_DEPTH": "avro",
        "MAX_ITEMS": "avro",
        "Avro": "avro",
        "avro_decoder": "avro",
        "SchemaFolder": "schema_folder",
        "load_schema": "schema_folder",
    }

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module 'streams.serde' has no attribute {name!r}")
        return getattr(import_module(f"streams.serde.{module}"), name)


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
