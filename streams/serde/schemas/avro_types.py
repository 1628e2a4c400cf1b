"""Avro schemas as data: their parts, and their named types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastavro

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED = frozenset({"record", "error", "enum", "fixed"})
RECORDS = frozenset({"record", "error"})


class NamedTypes(dict[str, Any]):
    """The named types of a schema."""

    def __init__(self, schema: Any) -> None:
        super().__init__(
            {
                part["name"]: part
                for part in parts(schema)
                if isinstance(part, dict) and type_of(part) in NAMED
            }
        )

    def resolved(self, schema: Any) -> Any:
        """The schema itself, if it is given by the name of a type."""
        return self.get(schema, schema) if isinstance(schema, str) else schema

    def is_empty(self, schema: Any) -> bool:
        """Whether values of the schema are encoded as no bytes."""
        schema = self.resolved(schema)
        kind = type_of(schema)
        if kind in RECORDS:
            return all(self.is_empty(field["type"]) for field in schema["fields"])
        return kind == "null" or (kind == "fixed" and schema["size"] == 0)

    def is_endless(self, wanted: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether every value of a record contains another record of the wanted name."""
        for field in self[name].get("fields", ()):
            inner = name_of(field["type"])
            if inner == wanted:
                return True
            unseen = inner in self and inner not in seen
            if unseen and self.is_endless(wanted, inner, seen | {inner}):
                return True
        return False

    def contains(self, wanted: str, name: str) -> bool:
        """Whether values of a named type may contain others of the wanted one."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for part in parts(self[waiting.pop()], below=True):
                inner = (
                    part if isinstance(part, str) else part.get("name") if isinstance(part, dict) else None
                )
                if inner == wanted:
                    return True
                if inner is not None and inner in self and inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
        return False


class SchemaError(ValueError):
    """The schema cannot be used."""


def copied(schema: Any) -> Any:
    """Parse a copy of the schema, so that each named type is the same object wherever it is used."""
    plain = without_marks(schema)
    return fastavro.parse_schema(plain)


def without_marks(schema: Any) -> Any:
    """A parsed schema as plain JSON, without what fastavro notes in it."""
    if isinstance(schema, dict):
        return {name: without_marks(inner) for name, inner in schema.items() if not name.startswith("__")}
    return list(map(without_marks, schema)) if isinstance(schema, list) else schema


def parts(schema: Any, *, below: bool = False) -> Iterator[Any]:
    """A schema and all its parts, without resolving names; with ``below``, without the schema itself."""
    if not below:
        yield schema
    if isinstance(schema, list):
        for branch in schema:
            yield from parts(branch)
    elif isinstance(schema, dict):
        for field in schema.get("fields", ()):
            yield from parts(field["type"])
        for word in ("items", "values"):
            if word in schema:
                yield from parts(schema[word])
        if isinstance(schema["type"], dict | list):
            yield from parts(schema["type"])


def type_of(schema: Any) -> str:
    """The type as the specification names it."""
    if isinstance(schema, list):
        return "union"
    return str(schema["type"] if isinstance(schema, dict) else schema)


def name_of(branch: Any) -> str:
    """The name of a branch of a union: that of a named type, or the type."""
    return str(branch["name"]) if isinstance(branch, dict) and type_of(branch) in NAMED else type_of(branch)


def is_open(union: list[Any]) -> bool:
    """Whether a value may belong to more than one branch that is not null."""
    return len([branch for branch in union if branch != "null"]) > 1
