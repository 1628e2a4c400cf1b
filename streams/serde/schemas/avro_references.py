"""Avro schemas that use named types which are defined elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.serde.schemas.avro_types import NAMED, RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable

_PRIMITIVE = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


def full_name(schema: Any, namespace: str = "") -> str | None:
    """The name of a named type, with its namespace; ``None`` for other types."""
    if not isinstance(schema, dict) or schema.get("type") not in NAMED or "name" not in schema:
        return None
    return _qualified(str(schema["name"]), str(schema.get("namespace", namespace) or ""))


def complete(schema: Any, find: Callable[[str], Any | None]) -> Any:
    """The schema with each type that it does not define itself defined where it is first used.

    ``find`` returns the definition of a full name, ``None`` if it is not known: the name is then left as it
    is, and refused when the schema is parsed.
    """
    return _Completion(find).of(schema, "")


def used_names(schema: Any) -> list[str]:
    """The full names that a schema uses without defining them, in the order of their first use."""
    found: list[str] = []
    complete(schema, lambda name: found.append(name) if name not in found else None)
    return found


class _Completion:
    def __init__(self, find: Callable[[str], Any | None]) -> None:
        self._find = find
        self._defined: set[str] = set()

    def of(self, schema: Any, namespace: str) -> Any:
        if isinstance(schema, str):
            return self._name(schema, namespace)
        if isinstance(schema, list):
            return [self.of(branch, namespace) for branch in schema]
        if not isinstance(schema, dict):
            return schema
        name = full_name(schema, namespace)
        if name is not None:
            self._defined.add(name)
            namespace = name.rpartition(".")[0]
            if schema["type"] not in RECORDS:
                return schema
            fields = schema.get("fields")
            if not isinstance(fields, list):
                return schema
            inner = [
                {**field, "type": self.of(field["type"], namespace)}
                if isinstance(field, dict) and "type" in field
                else field
                for field in fields
            ]
            return {**schema, "fields": inner}
        return {
            word: self.of(part, namespace) if word in {"type", "items", "values"} else part
            for word, part in schema.items()
        }

    def _name(self, name: str, namespace: str) -> Any:
        if name in _PRIMITIVE or name in NAMED or name in {"array", "map"}:
            return name
        wanted = _qualified(name, namespace)
        if wanted in self._defined:
            return name
        definition = self._find(wanted)
        if definition is None:
            return name
        own = full_name(definition)
        if own is None:
            return name
        # Both stated, as a definition without a namespace would otherwise get that of the record around it.
        here, _, simple = own.rpartition(".")
        return self.of({**definition, "name": simple, "namespace": here}, here)


def _qualified(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"
