"""Avro schemas for fastavro, with corrections: defaults, branches of unions, decimals, limits.

The specification is Apache Avro 1.12. fastavro returns defaults as they are in the schema's JSON, chooses the
first branch of a union with which a value could be written, rounds decimals that are longer than their
precision, and does not limit the number of items that a payload declares.
"""

from __future__ import annotations

from typing import Any

from streams.serde.schemas.avro_branches import Branches
from streams.serde.schemas.avro_decimals import DECIMAL
from streams.serde.schemas.avro_defaults import Defaults
from streams.serde.schemas.avro_limits import Skim, require_shallow
from streams.serde.schemas.avro_types import NamedTypes, SchemaError, copied, is_open, parts, type_of
from streams.serde.schemas.avro_values import Traversals, tagged_value


class AvroSchema:
    """A schema for reading and writing.

    ``parsed`` is fastavro's schema. ``max_items`` limits the number of items without bytes of their own in a
    payload, ``max_depth`` the nesting depth of its values, if the schema is recursive.

    Raises ``SchemaError`` for a schema whose values would be infinite, and for invalid defaults.
    """

    def __init__(self, schema: Any, *, max_items: int, max_depth: int) -> None:
        # A copy, because it is changed.
        self.parsed: Any = copied(schema)
        self._types = NamedTypes(self.parsed)
        self.max_items = max_items
        self.max_depth = max_depth
        for name in self._types:
            if self._types.is_endless(name, name):
                raise SchemaError(f"{name} always contains another {name}, so its values would be infinite")
        for part in parts(self.parsed):
            if isinstance(part, dict) and part.get("logicalType") == "decimal" and "precision" in part:
                part["logicalType"] = DECIMAL
        branches = Branches(self._types)
        self.shares_defaults = Defaults(self._types, branches).convert(self.parsed)
        """Whether decoded records may share a mutable default."""
        self.is_recursive = any(self._types.contains(name, name) for name in self._types)
        self._has_empty_items = any(
            type_of(part) == "array" and self._types.is_empty(part["items"]) for part in parts(self.parsed)
        )
        unions = [part for part in parts(self.parsed) if isinstance(part, list)]
        self.named = any(branches.ambiguous(union) for union in unions)
        """Whether fastavro must return the named branches from which values were read, for ``restore``."""
        traversals = Traversals(self._types, branches, named=self.named)
        self._prepare = traversals.preparer(self.parsed) if any(map(is_open, unions)) else None
        self._restore = traversals.restorer(self.parsed) if self.named else None

    # --- reading

    def check(self, payload: bytes, start: int) -> None:
        """Raise ``ValueError`` for a payload whose value exceeds ``max_items`` or ``max_depth``.

        Payloads are only checked if the schema allows for such values.
        """
        if self._has_empty_items or (self.is_recursive and len(payload) - start > self.max_depth):
            skim = Skim(self._types, payload, max_items=self.max_items, max_depth=self.max_depth)
            skim.value(self.parsed, start, 0)

    @property
    def checks(self) -> bool:
        """Whether ``check`` is necessary."""
        return self._has_empty_items or self.is_recursive

    def restore(self, value: Any, *, tagged: bool) -> Any:
        """A value decoded by fastavro, with the branches of unions stored if values do not determine them.

        With ``tagged``, records of unions have a field ``type`` with their names, as structs need it.
        """
        if self._restore is None:
            return value
        value = self._restore(value, None)
        return tagged_value(value) if tagged else value

    # --- writing

    @property
    def prepares(self) -> bool:
        """Whether ``prepare`` is necessary."""
        return self._prepare is not None or self.is_recursive

    def prepare(self, value: Any) -> Any:
        """The value for fastavro, with the branch of each union chosen.

        Raises ``ValueError`` if no branch matches the value, or if values are nested too deeply.
        """
        if self.is_recursive:
            require_shallow(value, self.max_depth)
        return value if self._prepare is None else self._prepare(value, None)
