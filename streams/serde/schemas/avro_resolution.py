"""Check whether records written with one Avro schema can be read with another (schema resolution)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}

_NAMED = {"record", "error", "enum", "fixed"}

_LOGICAL = ("logicalType", "precision", "scale")

_Pair = tuple[str, str]


def avro_differences(stored: Any, wanted: Any, where: str, *, strict: bool = True) -> Iterator[str]:
    """Why values written with ``stored`` cannot be read with ``wanted``, both as in ``Avro.schema``.

    If it is ``strict``, it is stricter than the specification in two cases: bytes are not read as string, and
    a different logical type is a different type. Otherwise decimals may have another precision and scale, and
    times another unit, as each record is read with those of its own schema.
    """
    resolution = _Resolution(stored, wanted, where, strict=strict)
    yield from resolution.differences(stored, wanted, "", frozenset())


class _Resolution:
    def __init__(self, stored: Any, wanted: Any, where: str, *, strict: bool) -> None:
        self._strict = strict
        self._stored = _named_types(stored)
        self._wanted = _named_types(wanted)
        self._where = where

    def differences(self, stored: Any, wanted: Any, path: str, within: frozenset[_Pair]) -> Iterator[str]:
        """``within`` are the pairs of enclosing named types, which may contain themselves."""
        if isinstance(stored, list) or isinstance(wanted, list):
            options = wanted if isinstance(wanted, list) else [wanted]
            for branch in stored if isinstance(stored, list) else [stored]:
                # The first branch that matches is the one used for reading, even if its fields do not match.
                fitting = [option for option in options if self._fits(branch, option)]
                if not self._strict:
                    # Where records are read with their own schema, text does not become a decimal's bytes.
                    fitting.sort(key=lambda option: not self._has_type(option, branch))
                chosen = fitting[0] if fitting else None
                if chosen is None:
                    yield self._changed(stored, wanted, path)
                elif (
                    branch is stored
                    and isinstance(branch, str)
                    and isinstance(chosen, dict)
                    and branch in self._stored
                ):
                    # fastavro 1.13 fails in this case, as it takes the definition for a name.
                    yield f"{self._place(path)}: {branch} is now defined here, and was defined earlier before"
                else:
                    yield from self.differences(branch, chosen, path, within)
            return
        before, now = self._resolved(stored, wanted)
        if _type(before) in _NAMED and _type(now) in _NAMED:
            pair = before["name"], now["name"]
            if pair in within:
                return
            within |= {pair}
        yield from self._single(before, now, path, within)

    def _single(self, before: Any, now: Any, path: str, within: frozenset[_Pair]) -> Iterator[str]:
        kind = _type(before)
        if not self._fits(before, now) or (self._strict and (kind, _type(now)) == ("bytes", "string")):
            yield self._changed(before, now, path)
        elif _logical(before) != _logical(now) and (self._strict or _family(before) != _family(now)):
            yield f"{self._place(path)}: was {_described(before)}, is {_described(now)}"
        elif kind == "array":
            yield from self.differences(before["items"], now["items"], f"{path}[]", within)
        elif kind == "map":
            yield from self.differences(before["values"], now["values"], f"{path}{{}}", within)
        elif kind == "enum":
            gone = [symbol for symbol in before["symbols"] if symbol not in now["symbols"]]
            if gone and "default" not in now:
                names = ", ".join(map(repr, gone))
                yield f"{self._place(path)}: could be {names}, which was removed, and there is no default"
        elif kind in {"record", "error"}:
            yield from self._record(before, now, path, within)

    def _record(
        self, before: dict[str, Any], now: dict[str, Any], path: str, within: frozenset[_Pair]
    ) -> Iterator[str]:
        fields = {field["name"]: field for field in now["fields"]}
        aliases = {alias: field for field in now["fields"] for alias in field.get("aliases", [])}
        read: dict[str, str] = {}
        for field in before["fields"]:
            target = fields.get(field["name"]) or aliases.get(field["name"])
            if target is None:
                continue
            name = target["name"]
            if name in read:
                place = self._place(_below(path, name))
                yield f"{place}: matches two stored fields, {read[name]!r} and {field['name']!r}"
                continue
            read[name] = field["name"]
            yield from self.differences(field["type"], target["type"], _below(path, name), within)
        for name, field in fields.items():
            if name not in read and "default" not in field:
                yield f"{self._place(_below(path, name))}: is new and has no default"

    def _resolved(self, stored: Any, wanted: Any) -> tuple[Any, Any]:
        if isinstance(stored, str):
            stored = self._stored.get(stored, stored)
        if isinstance(wanted, str):
            wanted = self._wanted.get(wanted, wanted)
        return stored, wanted

    def _fits(self, stored: Any, wanted: Any) -> bool:
        """Whether two schemas match for the choice of a branch in a union."""
        before, now = self._resolved(stored, wanted)
        if isinstance(before, list) or isinstance(now, list):
            return True
        kind, other = _type(before), _type(now)
        if kind != other:
            return other in _PROMOTIONS.get(kind, ())
        if kind in {"array", "map"}:
            inner = "items" if kind == "array" else "values"
            return self._fits(before[inner], now[inner])
        if kind not in _NAMED:
            return True
        if kind == "fixed" and before["size"] != now["size"]:
            return False
        name = _unqualified(before["name"])
        aliases = now.get("aliases", [])
        return name == _unqualified(now["name"]) or before["name"] in aliases or name in aliases

    def _has_type(self, wanted: Any, stored: Any) -> bool:
        before, now = self._resolved(stored, wanted)
        return _type(before) == _type(now)

    def _changed(self, before: Any, now: Any, path: str) -> str:
        before, now = self._resolved(before, now)
        return f"{self._place(path)}: was {_described(before)}, is {_described(now)}"

    def _place(self, path: str) -> str:
        return f"{self._where} field {path!r}" if path else self._where


def _named_types(schema: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def collect(part: Any) -> None:
        if isinstance(part, list):
            for branch in part:
                collect(branch)
        elif isinstance(part, dict):
            if part["type"] in _NAMED:
                found[part["name"]] = part
            for field in part.get("fields", []):
                collect(field["type"])
            for inner in ("items", "values"):
                collect(part.get(inner))

    collect(schema)
    return found


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _type(schema: Any) -> str:
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _unqualified(name: str) -> str:
    return name.rpartition(".")[2]


def _logical(schema: Any) -> list[Any]:
    if not isinstance(schema, dict) or "logicalType" not in schema:
        return []
    # The scale of a decimal defaults to 0.
    return [schema.get(word) or 0 for word in _LOGICAL]


def _family(schema: Any) -> str:
    """What values of a logical type are, whatever their precision."""
    logical = schema.get("logicalType", "") if isinstance(schema, dict) else ""
    return str(logical).removesuffix("-millis").removesuffix("-micros").removesuffix("-nanos")


def _described(schema: Any) -> str:
    if isinstance(schema, list):
        return " or ".join(map(_described, schema))
    if isinstance(schema, str):
        return schema
    kind = _type(schema)
    if kind == "fixed":
        return f"fixed {schema['name']} of {schema['size']} bytes"
    if kind in _NAMED:
        return f"{kind} {schema['name']}"
    if kind in {"array", "map"}:
        return f"{kind} of {_described(schema['items' if kind == 'array' else 'values'])}"
    if "logicalType" in schema:
        words = [f"{word} {schema[word]}" for word in ("precision", "scale") if word in schema]
        return f"{kind} ({' '.join([schema['logicalType'], *words])})"
    return json.dumps(schema)
