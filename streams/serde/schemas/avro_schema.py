"""Avro schemas for fastavro, with corrections: defaults, branches of unions, decimals, limits.

The specification is Apache Avro 1.12. fastavro returns defaults as they are in the schema's JSON, chooses the
first branch of a union with which a value could be written, rounds decimals that are longer than their
precision, and does not limit the number of items that a payload declares.
"""

from __future__ import annotations

import datetime as dt
import decimal
import struct
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import fastavro
import fastavro.read
import fastavro.schema
import fastavro.write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMED = frozenset({"record", "error", "enum", "fixed"})
_RECORDS = frozenset({"record", "error"})

_DECIMAL = "streams-decimal"
"""The logical type of decimals in the schemas for fastavro, with readers and writers of this module."""

_PYTHON: dict[str, type] = {
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
    _DECIMAL: decimal.Decimal,
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

_Hint: TypeAlias = "tuple[str, Any] | None"
"""The branch of a union that a value was read from, and the value."""

_Prepare: TypeAlias = "Callable[[Any, _Hint], Any]"
_Restore: TypeAlias = "Callable[[Any, str | None], Any]"


class SchemaError(ValueError):
    """The schema cannot be used."""


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


class AvroSchema:
    """A schema for reading and writing.

    ``parsed`` is fastavro's schema. ``max_items`` limits the number of items without bytes of their own in a
    payload, ``max_depth`` the nesting depth of its values, if the schema is recursive.

    Raises ``SchemaError`` for a schema whose values would be infinite, and for invalid defaults.
    """

    def __init__(self, schema: Any, *, max_items: int, max_depth: int) -> None:
        # A copy, because it is changed.
        self.parsed: Any = _copied(schema)
        self._types = _named_types(self.parsed)
        self.max_items = max_items
        self.max_depth = max_depth
        for name in self._types:
            if self._is_endless(name, name):
                raise SchemaError(f"{name} always contains another {name}, so its values would be infinite")
        self._own_decimals()
        self.shares_defaults = False
        """Whether decoded records may share a mutable default."""
        self._own_defaults()
        self.is_recursive = any(self._contains(name, name) for name in self._types)
        self._has_empty_items = any(
            _type(part) == "array" and self._is_empty(part["items"]) for part in _parts(self.parsed)
        )
        unions = [part for part in _parts(self.parsed) if isinstance(part, list)]
        self.named = any(self._ambiguous(union) for union in unions)
        """Whether fastavro must return the named branches from which values were read, for ``restore``."""
        self._preparing: dict[str, _Prepare | None] = {}
        self._restoring: dict[str, _Restore | None] = {}
        self._prepare = self._preparer(self.parsed) if any(map(_is_open, unions)) else None
        self._restore = self._restorer(self.parsed) if self.named else None

    # --- reading

    def check(self, payload: bytes, start: int) -> None:
        """Raise ``ValueError`` for a payload whose value exceeds ``max_items`` or ``max_depth``.

        Payloads are only checked if the schema allows for such values.
        """
        if self._has_empty_items or (self.is_recursive and len(payload) - start > self.max_depth):
            _Skim(self, payload).value(self.parsed, start, 0)

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
        return _tagged(value) if tagged else value

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
            _require_shallow(value, self.max_depth)
        return value if self._prepare is None else self._prepare(value, None)

    # --- properties of the schema

    def _resolved(self, schema: Any) -> Any:
        return self._types.get(schema, schema) if isinstance(schema, str) else schema

    def _is_empty(self, schema: Any) -> bool:
        """Whether values of the schema are encoded as no bytes."""
        schema = self._resolved(schema)
        kind = _type(schema)
        if kind in _RECORDS:
            return all(self._is_empty(field["type"]) for field in schema["fields"])
        return kind == "null" or (kind == "fixed" and schema["size"] == 0)

    def _is_endless(self, wanted: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether every value of a record contains another record of the wanted name."""
        for field in self._types[name].get("fields", ()):
            inner = _name(field["type"])
            if inner == wanted:
                return True
            unseen = inner in self._types and inner not in seen
            if unseen and self._is_endless(wanted, inner, seen | {inner}):
                return True
        return False

    def _contains(self, wanted: str, name: str) -> bool:
        """Whether values of a named type may contain others of the wanted one."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for part in _parts(self._types[waiting.pop()], below=True):
                inner = (
                    part if isinstance(part, str) else part.get("name") if isinstance(part, dict) else None
                )
                if inner == wanted:
                    return True
                if inner in self._types and inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
        return False

    # --- decimals and defaults

    def _own_decimals(self) -> None:
        for part in _parts(self.parsed):
            if isinstance(part, dict) and part.get("logicalType") == "decimal" and "precision" in part:
                part["logicalType"] = _DECIMAL

    def _own_defaults(self) -> None:
        for part in _parts(self.parsed):
            if _type(part) in _RECORDS:
                for field in part["fields"]:
                    if "default" in field:
                        place = f"{part['name']}.{field['name']}"
                        field["default"] = self._default(field["type"], field["default"], place)
                        self.shares_defaults |= isinstance(field["default"], list | dict)

    def _default(self, schema: Any, default: Any, place: str) -> Any:
        """Convert a default from its JSON to a value."""
        schema = self._resolved(schema)
        try:
            if isinstance(schema, list):
                return self._default_of_union(schema, default, place)
            kind = _type(schema)
            value: Any = default
            if kind in {"bytes", "fixed"} and isinstance(default, str):
                value = default.encode("latin-1")
            elif kind in {"float", "double"}:
                value = float(default)
            elif kind == "array":
                value = [self._default(schema["items"], item, place) for item in default]
            elif kind == "map":
                value = {name: self._default(schema["values"], item, place) for name, item in default.items()}
            elif kind in _RECORDS:
                value = {
                    field["name"]: self._default(
                        field["type"], default.get(field["name"], field.get("default")), place
                    )
                    for field in schema["fields"]
                }
            if isinstance(schema, dict) and type(value) is _PYTHON[kind]:
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
            if self._holds(branch, value) or (self._kind(branch) is float and type(value) is float):
                return value
        raise ValueError("it matches no branch of the union")

    # --- branches

    def _ambiguous(self, union: list[Any]) -> set[str]:
        """The branches that cannot be determined from a value, if a named one is among them."""
        found: set[str] = set()
        for branch in union:
            others = [
                other for other in union if other is not branch and self._kind(other) is self._kind(branch)
            ]
            if any(_type(self._resolved(one)) in NAMED for one in (branch, *others)) and others:
                found.add(_name(branch))
        return found

    def _kind(self, schema: Any) -> type:
        schema = self._resolved(schema)
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        if logical in _LOGICAL and f"{_type(schema)}-{logical}" in fastavro.read.LOGICAL_READERS:
            return _LOGICAL[logical]
        return _PYTHON[_type(schema)]

    def _holds(self, schema: Any, value: Any) -> bool:
        """Whether a branch represents the value exactly."""
        schema = self._resolved(schema)
        kind, wanted = _type(schema), self._kind(schema)
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
            return _fits(value, schema)
        if wanted is dt.datetime:
            return (value.tzinfo is None) == logical.startswith("local")
        if logical == "time-millis":
            return bool(value.microsecond % 1000 == 0)
        if kind in _RECORDS:
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
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return any(self._holds(branch, value) for branch in schema) or isinstance(value, tuple)
        # An integer is accepted as a float.
        return (
            self._holds(schema, value)
            or self._kind(schema) is type(value)
            or (self._kind(schema) is float and type(value) is int)
        )

    def _chosen(self, union: list[Any], value: Any) -> int | None:
        """The branch for writing a value: the first that represents it exactly, else one that is close."""
        for place, branch in enumerate(union):
            if self._holds(branch, value):
                return place
        kind = type(value)
        for place, branch in enumerate(union):
            wanted = self._kind(branch)
            resolved = self._resolved(branch)
            if wanted is float and kind in {int, float}:
                return place
            if wanted is kind and _type(resolved) not in {"int", "long", "fixed", "enum"}:
                return place
            if _type(resolved) in _RECORDS and isinstance(value, dict):
                required = {field["name"] for field in resolved["fields"] if "default" not in field}
                if required <= value.keys():
                    return place
        return None

    # --- functions that traverse values

    def _preparer(self, schema: Any) -> _Prepare | None:
        """A function that prepares a value for fastavro; ``None`` if nothing is to be done."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return self._union_preparer(schema)
        kind = _type(schema)
        if kind in _RECORDS:
            named: _Prepare | None = self._of_named(schema, self._preparing, self._record_preparer)
            return named
        if kind not in {"array", "map"}:
            return None
        inner = self._preparer(schema["items" if kind == "array" else "values"])
        if inner is None:
            return None
        item: _Prepare = inner

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
            for part in _parts(self._types[waiting.pop()]):
                if isinstance(part, list) and (_is_open(part) or self.named):
                    return True
                inner = part if isinstance(part, str) else None
                if inner in self._types and inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
        return False

    def _record_preparer(self, schema: Any) -> _Prepare:
        fields: list[tuple[str, _Prepare, Any]] = []
        for field in schema["fields"]:
            inner = self._preparer(field["type"])
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

    def _union_preparer(self, union: list[Any]) -> _Prepare | None:
        names = list(map(_name, union))
        inner = list(map(self._preparer, union))
        if not _is_open(union) and not any(inner):
            return None

        def prepare(value: Any, hint: _Hint) -> Any:
            branch = hint[0] if hint is not None and hint[1] is value else getattr(value, "branch", None)
            if type(value) is tuple and len(value) == 2 and value[0] in names:
                # As in fastavro: a branch that was chosen explicitly.
                branch, value = value
            place = names.index(branch) if branch in names else self._chosen(union, value)
            if place is None:
                raise ValueError(f"{value!r:.80} matches no branch of the union {', '.join(names)}")
            prepare_item = inner[place]
            return names[place], value if prepare_item is None else prepare_item(value, None)

        return prepare

    def _restorer(self, schema: Any) -> _Restore | None:
        """A function that removes branch names from a decoded value, and stores those that are needed."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return self._union_restorer(schema)
        kind = _type(schema)
        if kind in _RECORDS:
            named: _Restore | None = self._of_named(schema, self._restoring, self._record_restorer)
            return named
        if kind not in {"array", "map"}:
            return None
        items = schema["items" if kind == "array" else "values"]
        item = self._restorer(items)
        if item is None:
            return None
        marks = self._marks(items)
        inner: _Restore = item

        def restore(value: Any, _: str | None) -> Any:
            branches: dict[Any, tuple[str, Any]] = {}
            for at, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
                value[at] = _restored(one, at, inner, marks, branches)
            return _with_branches(value, branches)

        return restore

    def _marks(self, schema: Any) -> set[str]:
        schema = self._resolved(schema)
        return self._ambiguous(schema) if isinstance(schema, list) else set()

    def _record_restorer(self, schema: Any) -> _Restore:
        fields = [
            (field["name"], inner, self._marks(field["type"]))
            for field in schema["fields"]
            if (inner := self._restorer(field["type"])) is not None
        ]

        def restore(value: Any, _: str | None) -> Any:
            branches: dict[Any, tuple[str, Any]] = {}
            for name, inner, marks in fields:
                value[name] = _restored(value[name], name, inner, marks, branches)
            return _with_branches(value, branches)

        return restore

    def _union_restorer(self, union: list[Any]) -> _Restore | None:
        inner = {_name(branch): self._restorer(branch) for branch in union}
        named = any(_type(self._resolved(branch)) in NAMED for branch in union)
        if not named and not any(inner.values()):
            return None

        def restore(value: Any, branch: str | None) -> Any:
            if branch is None:
                branch = "array" if type(value) is list else "map" if type(value) is dict else None
            restore_item = None if branch is None else inner.get(branch)
            return value if restore_item is None else restore_item(value, None)

        return restore


_MISSING: Any = object()

_UNNAMED: dict[type, str] = {str: "string", bytes: "bytes", dict: "map"}


def _restored(
    value: Any, place: Any, inner: _Restore, marks: set[str], branches: dict[Any, tuple[str, Any]]
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


def _tagged(value: Any) -> Any:
    """The value with the stored branch of each record as a field."""
    if isinstance(value, dict):
        branch = getattr(value, "branch", None)
        for name, inner in value.items():
            value[name] = _tagged(inner)
        if branch is not None and branch != "map":
            value.setdefault("type", branch.rpartition(".")[2])
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            value[at] = _tagged(inner)
    return value


def _with_branches(value: Any, branches: dict[Any, tuple[str, Any]] | None) -> Any:
    if branches is not None and not branches:
        return value
    made: Any = AvroRecord(value) if isinstance(value, dict) else AvroArray(value)
    made.branch, made.branches = None, branches
    return made


class _Skim:
    """Traverses a payload without creating values, to check its limits."""

    def __init__(self, schema: AvroSchema, payload: bytes) -> None:
        self._schema = schema
        self._payload = payload
        self._empty = 0

    def value(self, schema: Any, at: int, depth: int) -> int:
        """Skip a value; returns the position of the next one. Raises ``ValueError``."""
        if isinstance(schema, str):
            schema = self._schema._types.get(schema, schema)  # noqa: SLF001 - of this module
        if isinstance(schema, list):
            place, at = self._long(at)
            if not 0 <= place < len(schema):
                raise ValueError(f"a union of {len(schema)} branches has no branch {place}")
            return self.value(schema[place], at, depth)
        kind = _type(schema)
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
        if depth > self._schema.max_depth:
            raise ValueError(
                f"values are nested more than {self._schema.max_depth} deep: raise Avro(…, max_depth=…)"
            )
        if kind in _RECORDS:
            for field in schema["fields"]:
                at = self.value(field["type"], at, depth)
            return at
        return self._blocks(schema, kind, at, depth)

    def _blocks(self, schema: Any, kind: str, at: int, depth: int) -> int:
        items = schema["items" if kind == "array" else "values"]
        empty = kind == "array" and self._schema._is_empty(items)  # noqa: SLF001 - of this module
        while True:
            count, at = self._long(at)
            if count < 0:
                # The block's size in bytes follows.
                count, (_, at) = -count, self._long(at)
            if count == 0:
                return at
            if empty:
                self._empty += count
                if self._empty > self._schema.max_items:
                    raise ValueError(
                        f"the payload declares {self._empty} items without bytes, the limit is "
                        f"{self._schema.max_items}: raise Avro(…, max_items=…)"
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


def _require_shallow(value: Any, depth: int) -> None:
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


def fresh(value: Any) -> Any:
    """A copy of the value's lists and dictionaries."""
    if isinstance(value, dict):
        return {name: fresh(inner) for name, inner in value.items()}
    return list(map(fresh, value)) if isinstance(value, list) else value


# Decimals


def _read_decimal(data: bytes, schema: Any, _: Any) -> decimal.Decimal:
    context, limit = _precision(schema["precision"])
    unscaled = int.from_bytes(data, "big", signed=True)
    # Checked before the conversion to a decimal, which takes quadratic time.
    if not -limit < unscaled < limit:
        raise ValueError(f"a decimal has more digits than its precision, {schema['precision']}")
    return context.scaleb(decimal.Decimal(unscaled), -int(schema.get("scale") or 0))


def _write_decimal(value: Any, schema: Any) -> Any:
    if not isinstance(value, decimal.Decimal):
        return value
    unscaled = _unscaled(value, schema)
    magnitude = unscaled if unscaled >= 0 else ~unscaled
    size = int(schema.get("size", magnitude.bit_length() // 8 + 1))
    return unscaled.to_bytes(size, "big", signed=True)


def _unscaled(value: decimal.Decimal, schema: Any) -> int:
    precision, scale = int(schema["precision"]), int(schema.get("scale") or 0)
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"an Avro decimal must be a finite number, got {value}")  # noqa: TRY004 - the type is right
    shift = exponent + scale
    kept = digits if shift >= 0 else digits[:shift]
    if any(digits[len(kept) :]):
        raise ValueError(f"{value} does not fit a decimal of scale {scale}")
    if not any(kept):
        return 0
    if len(kept) + max(shift, 0) > precision:
        raise ValueError(f"{value} does not fit a decimal of precision {precision} and scale {scale}")
    unscaled: int = int("".join(map(str, kept))) * 10 ** max(shift, 0)
    return -unscaled if sign else unscaled


def _fits(value: decimal.Decimal, schema: Any) -> bool:
    try:
        _write_decimal(value, schema)
    except (ValueError, OverflowError):
        return False
    return True


@lru_cache
def _precision(precision: int) -> tuple[decimal.Context, int]:
    return decimal.Context(prec=precision), 10**precision


for _kind in ("bytes", "fixed"):
    # Registered with a separate logical type, as the registry is shared with all users of fastavro.
    fastavro.read.LOGICAL_READERS[f"{_kind}-{_DECIMAL}"] = _read_decimal
    fastavro.write.LOGICAL_WRITERS[f"{_kind}-{_DECIMAL}"] = _write_decimal


# Schemas as data


def _copied(schema: Any) -> Any:
    """Parse a copy of the schema, so that each named type is the same object wherever it is used."""
    plain = _without_marks(schema)
    return fastavro.parse_schema(plain)


def _without_marks(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_marks(inner) for name, inner in schema.items() if not name.startswith("__")}
    return list(map(_without_marks, schema)) if isinstance(schema, list) else schema


def _parts(schema: Any, *, below: bool = False) -> Iterator[Any]:
    """A schema and all its parts, without resolving names; with ``below``, without the schema itself."""
    if not below:
        yield schema
    if isinstance(schema, list):
        for branch in schema:
            yield from _parts(branch)
    elif isinstance(schema, dict):
        for field in schema.get("fields", ()):
            yield from _parts(field["type"])
        for word in ("items", "values"):
            if word in schema:
                yield from _parts(schema[word])
        if isinstance(schema["type"], dict | list):
            yield from _parts(schema["type"])


def _named_types(schema: Any) -> dict[str, Any]:
    return {part["name"]: part for part in _parts(schema) if isinstance(part, dict) and _type(part) in NAMED}


def _type(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _name(branch: Any) -> str:
    """The name of a branch of a union: that of a named type, or the type."""
    return str(branch["name"]) if isinstance(branch, dict) and _type(branch) in NAMED else _type(branch)


def _is_open(union: list[Any]) -> bool:
    """Whether a value may belong to more than one branch that is not null."""
    return len([branch for branch in union if branch != "null"]) > 1


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
