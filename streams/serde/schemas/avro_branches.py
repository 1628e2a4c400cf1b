"""Which branch of an Avro union a value belongs to.

fastavro chooses the first branch with which the value could be written.
"""

from __future__ import annotations

import datetime as dt
import decimal
import struct
import uuid
from typing import TYPE_CHECKING, Any

import fastavro.read

from streams.serde.schemas.avro_decimals import DECIMAL, fits
from streams.serde.schemas.avro_types import NAMED, RECORDS, name_of, type_of

if TYPE_CHECKING:
    from streams.serde.schemas.avro_types import NamedTypes

PYTHON: dict[str, type] = {
    "null": type(None),
    "boolean": bool,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "bytes": bytes,
    "fixed": bytes,
    "string": str,
    "enum": str,
    "array": list,
    "map": dict,
    "record": dict,
    "error": dict,
}
_LOGICAL: dict[str, type] = {
    "decimal": decimal.Decimal,
    DECIMAL: decimal.Decimal,
    "uuid": uuid.UUID,
    "date": dt.date,
    "time-millis": dt.time,
    "time-micros": dt.time,
    "timestamp-millis": dt.datetime,
    "timestamp-micros": dt.datetime,
    "local-timestamp-millis": dt.datetime,
    "local-timestamp-micros": dt.datetime,
}
_INTEGERS = {"int": 31, "long": 63}
_SINGLE = struct.Struct("<f")


class Branches:
    """The branches of the unions of one schema."""

    def __init__(self, types: NamedTypes) -> None:
        self._types = types

    def ambiguous(self, union: list[Any]) -> set[str]:
        """The branches that cannot be determined from a value, if a named one is among them."""
        found: set[str] = set()
        for branch in union:
            others = [
                other for other in union if other is not branch and self.kind(other) is self.kind(branch)
            ]
            if any(type_of(self._types.resolved(one)) in NAMED for one in (branch, *others)) and others:
                found.add(name_of(branch))
        return found

    def kind(self, schema: Any) -> type:
        """The Python type of the schema's values."""
        schema = self._types.resolved(schema)
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        if logical in _LOGICAL and f"{type_of(schema)}-{logical}" in fastavro.read.LOGICAL_READERS:
            return _LOGICAL[logical]
        return PYTHON[type_of(schema)]

    def holds(self, schema: Any, value: Any) -> bool:
        """Whether a branch represents the value exactly."""
        schema = self._types.resolved(schema)
        kind, wanted = type_of(schema), self.kind(schema)
        if not _is_a(value, wanted):
            return False
        logical = schema.get("logicalType", "") if isinstance(schema, dict) else ""
        if wanted is int:
            return bool(-(1 << _INTEGERS[kind]) <= value < 1 << _INTEGERS[kind])
        if wanted is float:
            return kind == "double" or _is_single(value)
        if kind == "enum":
            return value in set(schema["symbols"])
        if wanted is bytes:
            return kind == "bytes" or len(value) == schema["size"]
        if wanted is decimal.Decimal:
            return fits(value, schema)
        if wanted is dt.datetime:
            return (value.tzinfo is None) == logical.startswith("local")
        if logical == "time-millis":
            return bool(value.microsecond % 1000 == 0)
        if kind in RECORDS:
            names = {field["name"] for field in schema["fields"]}
            tag = value.get("type") if "type" not in names else None
            if tag is not None:
                return bool(tag == schema["name"].rpartition(".")[2])
            return value.keys() == names and all(
                self._fits_any(field["type"], value[field["name"]]) for field in schema["fields"]
            )
        if kind == "array":
            return all(self._fits_any(schema["items"], item) for item in value)
        if kind == "map":
            return all(isinstance(name, str) for name in value) and all(
                self._fits_any(schema["values"], item) for item in value.values()
            )
        return True

    def _fits_any(self, schema: Any, value: Any) -> bool:
        schema = self._types.resolved(schema)
        if isinstance(schema, list):
            return any(self.holds(branch, value) for branch in schema) or isinstance(value, tuple)
        # An integer is accepted as a float.
        return (
            self.holds(schema, value)
            or self.kind(schema) is type(value)
            or (self.kind(schema) is float and type(value) is int)
        )

    def chosen(self, union: list[Any], value: Any) -> int | None:
        """The branch for writing a value: the first that represents it exactly, else one that is close."""
        for place, branch in enumerate(union):
            if self.holds(branch, value):
                return place
        kind = type(value)
        for place, branch in enumerate(union):
            wanted = self.kind(branch)
            resolved = self._types.resolved(branch)
            if wanted is float and kind in {int, float}:
                return place
            if wanted is kind and type_of(resolved) not in {"int", "long", "fixed", "enum"}:
                return place
            if type_of(resolved) in RECORDS and isinstance(value, dict):
                required = {field["name"] for field in resolved["fields"] if "default" not in field}
                if required <= value.keys():
                    return place
        return None


def _is_a(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list | tuple)
    if kind in {int, dt.date}:
        return type(value) is kind
    return isinstance(value, kind)


def _is_single(value: float) -> bool:
    try:
        return bool(_SINGLE.unpack(_SINGLE.pack(value))[0] == value)
    except OverflowError:
        return False
