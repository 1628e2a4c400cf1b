"""The limits of an Avro payload: fastavro does not limit the number of items that one declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.serde.schemas.avro_types import RECORDS, type_of

if TYPE_CHECKING:
    from streams.serde.schemas.avro_types import NamedTypes


class Skim:
    """Traverses a payload without creating values, to check its limits."""

    def __init__(self, types: NamedTypes, payload: bytes, *, max_items: int, max_depth: int) -> None:
        self._types = types
        self._max_items = max_items
        self._max_depth = max_depth
        self._payload = payload
        self._empty = 0

    def value(self, schema: Any, at: int, depth: int) -> int:
        """Skip a value; returns the position of the next one. Raises ``ValueError``."""
        if isinstance(schema, str):
            schema = self._types.get(schema, schema)
        if isinstance(schema, list):
            place, at = self._long(at)
            if not 0 <= place < len(schema):
                raise ValueError(f"a union of {len(schema)} branches has no branch {place}")
            return self.value(schema[place], at, depth)
        kind = type_of(schema)
        match kind:
            case "null":
                return at
            case "boolean":
                return at + 1
            case "int" | "long" | "enum":
                return self._long(at)[1]
            case "float":
                return at + 4
            case "double":
                return at + 8
            case "fixed":
                return at + int(schema["size"])
            case "bytes" | "string":
                return self._sized(at)
        depth += 1
        if depth > self._max_depth:
            raise ValueError(
                f"values are nested more than {self._max_depth} deep: raise Avro(…, max_depth=…)"
            )
        if kind in RECORDS:
            for field in schema["fields"]:
                at = self.value(field["type"], at, depth)
            return at
        return self._blocks(schema, kind, at, depth)

    def _blocks(self, schema: Any, kind: str, at: int, depth: int) -> int:
        items = schema["items" if kind == "array" else "values"]
        empty = kind == "array" and self._types.is_empty(items)
        while True:
            count, at = self._long(at)
            if count < 0:
                # The block's size in bytes follows.
                count, (_, at) = -count, self._long(at)
            if count == 0:
                return at
            if empty:
                self._empty += count
                if self._empty > self._max_items:
                    raise ValueError(
                        f"the payload declares {self._empty} items without bytes, the limit is "
                        f"{self._max_items}: raise Avro(…, max_items=…)"
                    )
                continue
            for _ in range(count):
                if at >= len(self._payload):
                    raise ValueError("the payload ends within an array or map")
                at = self.value(items, self._sized(at) if kind == "map" else at, depth)

    def _sized(self, at: int) -> int:
        size, at = self._long(at)
        if not 0 <= size <= len(self._payload) - at:
            raise ValueError(f"a length of {size} bytes exceeds the {len(self._payload) - at} that are left")
        return at + size

    def _long(self, at: int) -> tuple[int, int]:
        payload, number, shift = self._payload, 0, 0
        while True:
            if at >= len(payload) or shift > 63:
                raise ValueError("the payload ends within an integer, or has one of more than 64 bits")
            byte = payload[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1), at
            shift += 7


def require_shallow(value: Any, depth: int) -> None:
    """Raise ``ValueError`` for values nested too deeply: fastavro writes them recursively, on the C stack."""
    waiting = [value]
    for _ in range(depth):
        waiting = [inner for outer in waiting for inner in _inner(outer)]
        if not waiting:
            return
    raise ValueError(f"values are nested more than {depth} deep: raise Avro(…, max_depth=…)")


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [inner for inner in value.values() if isinstance(inner, dict | list | tuple)]
    if isinstance(value, list | tuple):
        return [inner for inner in value if isinstance(inner, dict | list | tuple)]
    return []
