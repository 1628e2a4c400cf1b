"""The defaults of an Avro schema as values: fastavro returns them as they are in the schema's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastavro.read

from streams.serde.schemas.avro_branches import PYTHON
from streams.serde.schemas.avro_types import RECORDS, SchemaError, parts, type_of

if TYPE_CHECKING:
    from streams.serde.schemas.avro_branches import Branches
    from streams.serde.schemas.avro_types import NamedTypes


class Defaults:
    """Converts the defaults of one schema from JSON to values. Raises ``SchemaError`` for invalid ones."""

    def __init__(self, types: NamedTypes, branches: Branches) -> None:
        self._types = types
        self._branches = branches

    def convert(self, schema: Any) -> bool:
        """Replace the defaults in a parsed schema; returns whether one of them is mutable."""
        mutable = False
        for part in parts(schema):
            if type_of(part) in RECORDS:
                for field in part["fields"]:
                    if "default" in field:
                        place = f"{part['name']}.{field['name']}"
                        field["default"] = self._default(field["type"], field["default"], place)
                        mutable |= isinstance(field["default"], list | dict)
        return mutable

    def _default(self, schema: Any, default: Any, place: str) -> Any:
        """Convert a default from its JSON to a value."""
        schema = self._types.resolved(schema)
        try:
            if isinstance(schema, list):
                return self._default_of_union(schema, default, place)
            kind = type_of(schema)
            value: Any = default
            if kind in {"bytes", "fixed"} and isinstance(default, str):
                value = default.encode("latin-1")
            elif kind in {"float", "double"}:
                value = float(default)
            elif kind == "array":
                value = [self._default(schema["items"], item, place) for item in default]
            elif kind == "map":
                value = {name: self._default(schema["values"], item, place) for name, item in default.items()}
            elif kind in RECORDS:
                value = {
                    field["name"]: self._default(
                        field["type"], default.get(field["name"], field.get("default")), place
                    )
                    for field in schema["fields"]
                }
            if isinstance(schema, dict) and type(value) is PYTHON[kind]:
                read = fastavro.read.LOGICAL_READERS.get(f"{kind}-{schema.get('logicalType')}")
                value = value if read is None else read(value, schema, None)
        except SchemaError:
            raise
        except Exception as error:
            raise SchemaError(
                f"the default of {place}, {default!r:.80}, is not a value of its type: {error}"
            ) from error
        return value

    def _default_of_union(self, union: list[Any], default: Any, place: str) -> Any:
        # A default is of the first branch, and since Avro 1.12 of any branch.
        for branch in union:
            value = None
            try:
                value = self._default(branch, default, place)
            except SchemaError:
                continue
            if self._branches.holds(branch, value) or (
                self._branches.kind(branch) is float and type(value) is float
            ):
                return value
        raise ValueError("it matches no branch of the union")
