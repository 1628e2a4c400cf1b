"""Column types of Postgres for the types of values: of Python, and of Avro."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import ipaddress
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

import msgspec

from streams.connectors.change import Change
from streams.errors import ConfigurationError

_SCALARS: dict[type, str] = {
    bool: "boolean",
    int: "bigint",
    float: "double precision",
    str: "text",
    bytes: "bytea",
    bytearray: "bytea",
    memoryview: "bytea",
    decimal.Decimal: "numeric",
    dt.datetime: "timestamp with time zone",
    dt.date: "date",
    dt.time: "time without time zone",
    dt.timedelta: "interval",
    uuid.UUID: "uuid",
    ipaddress.IPv4Address: "inet",
    ipaddress.IPv6Address: "inet",
    ipaddress.IPv4Network: "cidr",
    ipaddress.IPv6Network: "cidr",
}

_AVRO = {
    "boolean": "boolean",
    "int": "integer",
    "long": "bigint",
    "float": "real",
    "double": "double precision",
    "string": "text",
    "bytes": "bytea",
    "fixed": "bytea",
    "enum": "text",
    "map": "jsonb",
    "record": "jsonb",
}

_AVRO_LOGICAL = {
    "date": "date",
    "time-millis": "time(3) without time zone",
    "time-micros": "time without time zone",
    "timestamp-millis": "timestamp(3) with time zone",
    "timestamp-micros": "timestamp with time zone",
    "local-timestamp-millis": "timestamp(3) without time zone",
    "local-timestamp-micros": "timestamp without time zone",
    "uuid": "uuid",
}


def postgres_types(row_type: Any) -> dict[str, str]:
    """The type of a column for each field of a row.

    ``row_type`` is a ``msgspec.Struct``, a dataclass, a ``TypedDict``, a ``Change`` of one of them, or the
    schema of an Avro record as a dictionary. Lists of single values are arrays; mappings, nested structs and
    unions are ``jsonb``. Raises ``ConfigurationError`` for other types.
    """
    if isinstance(row_type, Mapping):
        return _avro_fields(row_type)
    if typing.get_origin(row_type) is Change:
        return postgres_types(typing.get_args(row_type)[0])
    if not isinstance(row_type, type):
        raise _unknown(row_type)
    hints = typing.get_type_hints(row_type)
    if issubclass(row_type, msgspec.Struct):
        return {item.encode_name: column_type(hints[item.name]) for item in msgspec.structs.fields(row_type)}
    if dataclasses.is_dataclass(row_type):
        return {item.name: column_type(hints[item.name]) for item in dataclasses.fields(row_type)}
    if typing.is_typeddict(row_type):
        return {name: column_type(hint) for name, hint in hints.items()}
    raise _unknown(row_type)


def column_type(kind: Any) -> str:
    """The column type for a Python type; ``jsonb`` for what only JSON can hold."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in {typing.Annotated, typing.Required, typing.NotRequired}:
        return column_type(arguments[0])
    if origin in {Union, types.UnionType}:
        rest = [item for item in arguments if item not in {type(None), msgspec.UnsetType}]
        found = {column_type(item) for item in rest}
        return found.pop() if len(found) == 1 else "jsonb"
    if origin is Literal:
        found = {type_of_value(item) for item in arguments}
        return found.pop() if len(found) == 1 else "jsonb"
    if origin in {list, tuple, Sequence} and arguments and (origin is not tuple or arguments[1:] == (...,)):
        element = column_type(arguments[0])
        return "jsonb" if element == "jsonb" or element.endswith("[]") else f"{element}[]"
    if isinstance(kind, type):
        if issubclass(kind, enum.Enum):
            found = {type_of_value(item.value) for item in kind}
            return found.pop() if len(found) == 1 else "jsonb"
        for base in kind.__mro__:
            if base in _SCALARS:
                return _SCALARS[base]
    return "jsonb"


def type_of_value(value: Any) -> str:
    """The column type for a value; text for ``None``, whose type is not known."""
    if value is None:
        return "text"
    if isinstance(value, list | tuple):
        found = {type_of_value(item) for item in value if item is not None}
        element = found.pop() if len(found) == 1 else "jsonb"
        return "jsonb" if element == "jsonb" or element.endswith("[]") else f"{element}[]"
    return column_type(type(value))


def _avro_fields(schema: Mapping[str, Any]) -> dict[str, str]:
    # The description of an Avro serde has the schema under this name.
    record = schema.get("avro", schema)
    if not isinstance(record, Mapping) or record.get("type") != "record":
        raise _unknown(schema)
    return {item["name"]: _avro_type(item["type"]) for item in record["fields"]}


def _avro_type(schema: Any) -> str:
    if isinstance(schema, list):
        found = {_avro_type(branch) for branch in schema if branch != "null"}
        return found.pop() if len(found) == 1 else "jsonb"
    if isinstance(schema, str):
        # A named type that was defined before is a record, an enum or a fixed: text holds them as JSON.
        return _AVRO.get(schema, "jsonb")
    logical = schema.get("logicalType")
    if logical == "decimal":
        return f"numeric({schema['precision']},{schema.get('scale', 0)})"
    if logical in _AVRO_LOGICAL:
        return _AVRO_LOGICAL[logical]
    if schema["type"] == "array":
        element = _avro_type(schema["items"])
        return "jsonb" if element == "jsonb" or element.endswith("[]") else f"{element}[]"
    return _avro_type(schema["type"])


def _unknown(row_type: Any) -> ConfigurationError:
    return ConfigurationError(
        f"row_type={row_type!r} has no fields that could be columns",
        hint="give a Struct, a dataclass, a TypedDict, a Change of one, or the dictionary of an Avro record",
    )
