"""Values with the branches of their unions, before fastavro writes them and after it has read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from streams.serde.schemas.avro_types import NAMED, RECORDS, is_open, name_of, parts, type_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.serde.schemas.avro_branches import Branches
    from streams.serde.schemas.avro_types import NamedTypes

_Hint: TypeAlias = "tuple[str, Any] | None"
"""The branch of a union that a value was read from, and the value."""

Prepare: TypeAlias = "Callable[[Any, _Hint], Any]"
Restore: TypeAlias = "Callable[[Any, str | None], Any]"

_MISSING: Any = object()

_UNNAMED: dict[type, str] = {str: "string", bytes: "bytes", dict: "map"}


class AvroRecord(dict[str, Any]):
    """A record or map that stores from which branches of ambiguous unions it, or its values, were read."""

    __slots__ = ("branch", "branches")

    branch: str | None
    """The branch from which it was read itself."""
    branches: dict[Any, tuple[str, Any]] | None
    """For each field, the branch from which the value was read, and the value."""


class AvroArray(list[Any]):
    """The same as ``AvroRecord``, for arrays."""

    __slots__ = ("branch", "branches")

    branch: str | None
    branches: dict[Any, tuple[str, Any]] | None


class Traversals:
    """Functions that traverse the values of one schema.

    With ``named``, values come with the named branches from which fastavro has read them.
    """

    def __init__(self, types: NamedTypes, branches: Branches, *, named: bool) -> None:
        self._types = types
        self._branches = branches
        self._named = named
        self._preparing: dict[str, Prepare | None] = {}
        self._restoring: dict[str, Restore | None] = {}

    def preparer(self, schema: Any) -> Prepare | None:
        """A function that prepares a value for fastavro; ``None`` if nothing is to be done."""
        schema = self._types.resolved(schema)
        if isinstance(schema, list):
            return self._union_preparer(schema)
        kind = type_of(schema)
        if kind in RECORDS:
            named: Prepare | None = self._of_named(schema, self._preparing, self._record_preparer)
            return named
        if kind not in {"array", "map"}:
            return None
        inner = self.preparer(schema["items" if kind == "array" else "values"])
        if inner is None:
            return None
        item: Prepare = inner

        def prepare(value: Any, _: _Hint) -> Any:
            hints = getattr(value, "branches", None) or {}
            if isinstance(value, dict):
                return {name: item(one, hints.get(name)) for name, one in value.items()}
            return [item(one, hints.get(at)) for at, one in enumerate(value)]

        return prepare

    def _of_named(self, schema: Any, known: dict[str, Any], make: Callable[[Any], Any]) -> Any:
        """The result of ``make`` for a record, computed once, also if the record contains itself."""
        name = schema["name"]
        if name not in known:
            known[name] = None
            if self._leads_to_union(name):
                made: list[Callable[[Any, Any], Any]] = []
                # For nested records of the same type.
                known[name] = lambda value, branch: made[0](value, branch)  # noqa: PLW0108 - not made yet
                made.append(make(schema))
        return known[name]

    def _leads_to_union(self, name: str) -> bool:
        seen = {name}
        waiting = [name]
        while waiting:
            for part in parts(self._types[waiting.pop()]):
                if isinstance(part, list) and (is_open(part) or self._named):
                    return True
                inner = part if isinstance(part, str) else None
                if inner is not None and inner in self._types and inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
        return False

    def _record_preparer(self, schema: Any) -> Prepare:
        fields: list[tuple[str, Prepare, Any]] = []
        for field in schema["fields"]:
            inner = self.preparer(field["type"])
            if inner is not None:
                fields.append((field["name"], inner, field.get("default", _MISSING)))

        def prepare(value: Any, _: _Hint) -> Any:
            if not isinstance(value, dict):
                return value
            hints = getattr(value, "branches", None) or {}
            prepared = dict(value)
            for name, inner, default in fields:
                item = value.get(name, default)
                if item is not _MISSING:
                    prepared[name] = inner(item, hints.get(name))
            return prepared

        return prepare

    def _union_preparer(self, union: list[Any]) -> Prepare | None:
        names = list(map(name_of, union))
        inner = list(map(self.preparer, union))
        if not is_open(union) and not any(inner):
            return None

        def prepare(value: Any, hint: _Hint) -> Any:
            branch = hint[0] if hint is not None and hint[1] is value else getattr(value, "branch", None)
            if type(value) is tuple and len(value) == 2 and value[0] in names:
                # As in fastavro: a branch that was chosen explicitly.
                branch, value = value
            place = names.index(branch) if branch in names else self._branches.chosen(union, value)
            if place is None:
                raise ValueError(f"{value!r:.80} matches no branch of the union {', '.join(names)}")
            prepare_item = inner[place]
            return names[place], value if prepare_item is None else prepare_item(value, None)

        return prepare

    def restorer(self, schema: Any) -> Restore | None:
        """A function that removes branch names from a decoded value, and stores those that are needed."""
        schema = self._types.resolved(schema)
        if isinstance(schema, list):
            return self._union_restorer(schema)
        kind = type_of(schema)
        if kind in RECORDS:
            named: Restore | None = self._of_named(schema, self._restoring, self._record_restorer)
            return named
        if kind not in {"array", "map"}:
            return None
        items = schema["items" if kind == "array" else "values"]
        item = self.restorer(items)
        if item is None:
            return None
        marks = self._marks(items)
        inner: Restore = item

        def restore(value: Any, _: str | None) -> Any:
            branches: dict[Any, tuple[str, Any]] = {}
            for at, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
                value[at] = _restored(one, at, inner, marks, branches)
            return _with_branches(value, branches)

        return restore

    def _marks(self, schema: Any) -> set[str]:
        schema = self._types.resolved(schema)
        return self._branches.ambiguous(schema) if isinstance(schema, list) else set()

    def _record_restorer(self, schema: Any) -> Restore:
        fields = [
            (field["name"], inner, self._marks(field["type"]))
            for field in schema["fields"]
            if (inner := self.restorer(field["type"])) is not None
        ]

        def restore(value: Any, _: str | None) -> Any:
            branches: dict[Any, tuple[str, Any]] = {}
            for name, inner, marks in fields:
                value[name] = _restored(value[name], name, inner, marks, branches)
            return _with_branches(value, branches)

        return restore

    def _union_restorer(self, union: list[Any]) -> Restore | None:
        inner = {name_of(branch): self.restorer(branch) for branch in union}
        named = any(type_of(self._types.resolved(branch)) in NAMED for branch in union)
        if not named and not any(inner.values()):
            return None

        def restore(value: Any, branch: str | None) -> Any:
            if branch is None:
                branch = "array" if type(value) is list else "map" if type(value) is dict else None
            restore_item = None if branch is None else inner.get(branch)
            return value if restore_item is None else restore_item(value, None)

        return restore


def _restored(
    value: Any, place: Any, inner: Restore, marks: set[str], branches: dict[Any, tuple[str, Any]]
) -> Any:
    branch = None
    if type(value) is tuple:
        branch, value = value
    elif marks:
        branch = _UNNAMED.get(type(value))
    value = inner(value, branch)
    if branch in marks and branch is not None:
        if isinstance(value, dict):
            value = value if type(value) is AvroRecord else _with_branches(value, None)
            value.branch = branch
        else:
            branches[place] = branch, value
    return value


def tagged_value(value: Any) -> Any:
    """The value with the stored branch of each record as a field."""
    if isinstance(value, dict):
        branch = getattr(value, "branch", None)
        for name, inner in value.items():
            value[name] = tagged_value(inner)
        if branch is not None and branch != "map":
            value.setdefault("type", branch.rpartition(".")[2])
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            value[at] = tagged_value(inner)
    return value


def _with_branches(value: Any, branches: dict[Any, tuple[str, Any]] | None) -> Any:
    if branches is not None and not branches:
        return value
    made: Any = AvroRecord(value) if isinstance(value, dict) else AvroArray(value)
    made.branch, made.branches = None, branches
    return made


def fresh(value: Any) -> Any:
    """A copy of the value's lists and dictionaries."""
    if isinstance(value, dict):
        return {name: fresh(inner) for name, inner in value.items()}
    return list(map(fresh, value)) if isinstance(value, list) else value
