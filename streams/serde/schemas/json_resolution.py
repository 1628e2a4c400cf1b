"""Check whether values that msgspec encoded as one type can be decoded as another."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOWER = ("minimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")
_EQUAL = ("multipleOf", "pattern", "tz")
_STRICT = ("exclusiveMinimum", "exclusiveMaximum")
_SCALARS = {"null", "boolean", "integer", "number", "string"}

_Pair = tuple[str, str]


def json_differences(stored: Any, wanted: Any, where: str) -> Iterator[str]:
    """Why values written as ``stored`` cannot be read as ``wanted``, both described as in ``Json.schema``.

    It may report differences that do not occur in actual values; without any, all values can be read.
    """
    if wanted == "any":
        return
    if isinstance(stored, str) or isinstance(wanted, str):
        if stored != wanted:
            yield f"{where}: was {_root_named(stored)}, is {_root_named(wanted)}"
        return
    yield from _Reading(stored, wanted, where).differences(stored, wanted, "", frozenset())


class _Reading:
    def __init__(self, stored: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
        self._stored: dict[str, Any] = stored.get("$defs", {})
        self._wanted: dict[str, Any] = wanted.get("$defs", {})
        self._where = where

    def differences(
        self, stored: dict[str, Any], wanted: dict[str, Any], path: str, within: frozenset[_Pair]
    ) -> Iterator[str]:
        """``within`` are the pairs of enclosing classes, which may contain themselves."""
        options = _branches(wanted, self._wanted)
        if any(_is_any(option) for option in options):
            return
        place = self._place(path)
        changed = f"{place}: was {self._named(stored)}, is {_named(wanted, self._wanted)}"
        for branch in _branches(stored, self._stored, each_value=True):
            if _is_any(branch):
                yield changed
                return
            candidates = self._candidates(branch, options)
            if not candidates:
                yield changed
                return
            found = [list(self._single(branch, option, path, within)) for option in candidates]
            if len(found) > 1 and self._resolved(branch).get("type") == "object":
                # The tag of an object determines which one decodes it.
                if all(found):
                    yield changed
            else:
                yield from (difference for differences in found for difference in differences)

    def _candidates(self, branch: dict[str, Any], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The options that msgspec may choose for such a value, by the first character of its JSON."""
        begins = _beginnings(self._resolved(branch))
        found = [option for option in options if begins <= _beginnings(self._read(option))]
        if not found and begins == {"integer"}:
            found = [option for option in options if "number" in _beginnings(self._read(option))]
        return found

    def _single(
        self, stored: dict[str, Any], wanted: dict[str, Any], path: str, within: frozenset[_Pair]
    ) -> Iterator[str]:
        if "$ref" in stored and "$ref" in wanted:
            pair = stored["$ref"], wanted["$ref"]
            if pair in within:
                return
            within |= {pair}
        before, now = self._resolved(stored), _resolved(wanted, self._wanted)
        if "enum" in before:
            yield from self._value(before["enum"][0], now, path)
        elif "enum" in now:
            yield f"{self._place(path)}: was {_named(before)}, is {_named(now)}"
        elif now["type"] == "array":
            yield from self._array(before, now, path, within)
        elif now["type"] == "object":
            yield from self._object(before, now, path, within)
        else:
            yield from self._scalar(before, now, path)

    def _value(self, value: Any, now: dict[str, Any], path: str) -> Iterator[str]:
        if "enum" in now:
            if value not in now["enum"]:
                yield f"{self._place(path)}: could be {value!r}, which is no longer a value of it"
        elif now.keys() - {"type", "default"}:
            yield f"{self._place(path)}: could be {value!r}, is {_named(now)}"

    def _scalar(self, before: dict[str, Any], now: dict[str, Any], path: str) -> Iterator[str]:
        same_form = all(before.get(word) == now.get(word) for word in ("format", "contentEncoding"))
        if not same_form and ("format" in now or "contentEncoding" in now):
            yield f"{self._place(path)}: was {_named(before)}, is {_named(now)}"
        else:
            # The length of bytes differs from that of their text in base64.
            yield from self._constraints(before if same_form else {}, now, path)

    def _constraints(self, before: dict[str, Any], now: dict[str, Any], path: str) -> Iterator[str]:
        for word in (*_LOWER, *_UPPER, *_EQUAL, *_STRICT):
            if word in now and not _implied(before, word, now[word]):
                was = f"was {before[word]!r}" if word in before else "is new"
                yield f"{self._place(path)}: {word} {was}, is {now[word]!r}"

    def _array(
        self, before: dict[str, Any], now: dict[str, Any], path: str, within: frozenset[_Pair]
    ) -> Iterator[str]:
        leading = before.get("prefixItems", [])
        least = before.get("minItems", 0)
        most = before.get("maxItems", len(leading) if "prefixItems" in before else inf)
        if "prefixItems" not in now:
            yield from self._constraints({"maxItems": most} | before, now, path)
            yield from self._unique(before, now, path)
            if "prefixItems" not in before:
                yield from self.differences(before["items"], now["items"], f"{path}[]", within)
            for place, item in enumerate(leading):
                yield from self.differences(item, now["items"], f"{path}[{place}]", within)
            return
        if least < now["minItems"]:
            yield f"{self._place(f'{path}[{least}]')}: could be absent, is required"
        if most > now.get("maxItems", inf):
            many = "any number of" if most == inf else most
            yield f"{self._place(path)}: could have {many} elements, has at most {now['maxItems']}"
        for place, item in enumerate(now["prefixItems"]):
            if place >= most:
                break
            stored = leading[place] if "prefixItems" in before else before["items"]
            yield from self.differences(stored, item, f"{path}[{place}]", within)

    def _unique(self, before: dict[str, Any], now: dict[str, Any], path: str) -> Iterator[str]:
        if not now.get("uniqueItems"):
            return
        if not before.get("uniqueItems"):
            yield f"{self._place(path)}: was an array, is a set"
        elif any(_is_any(option) for option in _branches(now["items"], self._wanted)):
            # Elements are decoded as lists and dictionaries, which cannot be in a set.
            kinds = [self._resolved(branch) for branch in _branches(before["items"], self._stored)]
            if not all("enum" in kind or kind.get("type") in _SCALARS for kind in kinds):
                was = self._named(before["items"])
                yield f"{self._place(path)}: its elements were {was}, are of any type"

    def _object(
        self, before: dict[str, Any], now: dict[str, Any], path: str, within: frozenset[_Pair]
    ) -> Iterator[str]:
        if "properties" in now:
            yield from self._struct(before, now, path, within)
            return
        values = now["additionalProperties"]
        names = now.get("propertyNames")
        if "properties" in before:
            count = {"minProperties": len(before["required"]), "maxProperties": len(before["properties"])}
            yield from self._constraints(count, now, path)
            if names is not None:
                yield f"{self._place(path)}: was an object, is a mapping with keys of {_named(names)}"
            for name, stored in before["properties"].items():
                yield from self.differences(stored, values, _below(path, name), within)
            return
        yield from self._constraints(before, now, path)
        if names is not None and names != before.get("propertyNames"):
            was = _named(before.get("propertyNames", {"type": "string"}))
            yield f"{self._place(path)}: keys were {was}, are {_named(names)}"
        yield from self.differences(before["additionalProperties"], values, f"{path}{{}}", within)

    def _struct(
        self, before: dict[str, Any], now: dict[str, Any], path: str, within: frozenset[_Pair]
    ) -> Iterator[str]:
        present, required = before.get("properties", {}), before.get("required", [])
        mapped = "properties" not in before
        for name, item in now["properties"].items():
            place = self._place(_below(path, name))
            if name not in present and not mapped:
                if name in now["required"]:
                    yield f"{place}: is new and has no default"
                continue
            if name in now["required"] and name not in required:
                yield f"{place}: could be absent, is required"
                continue
            stored = before["additionalProperties"] if mapped else present[name]
            yield from self.differences(stored, item, _below(path, name), within)
            if before.get("omitsDefaults") and name not in required and "default" in stored:
                default = item.get("default", _NO_DEFAULT)
                if default != stored["default"] or type(default) is not type(stored["default"]):
                    was = stored["default"]
                    yield f"{place}: default was {was!r}, has changed, and values equal to it were omitted"
        if now.get("additionalProperties") is False:
            if mapped:
                yield f"{self._place(path)}: was a mapping, is an object that forbids unknown fields"
            for name in present.keys() - now["properties"].keys():
                place = self._place(_below(path, name))
                yield f"{place}: was removed, and unknown fields are forbidden"

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        return _resolved(schema, self._stored)

    def _read(self, schema: dict[str, Any]) -> dict[str, Any]:
        return _resolved(schema, self._wanted)

    def _named(self, schema: dict[str, Any]) -> str:
        return _named(schema, self._stored)

    def _place(self, path: str) -> str:
        return f"{self._where} field {path!r}" if path else self._where


_NO_DEFAULT: Any = object()


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    resolved: dict[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
    return resolved


def _is_any(schema: dict[str, Any]) -> bool:
    return not schema.keys() & {"type", "enum", "anyOf", "$ref"}


def _branches(
    schema: dict[str, Any], definitions: dict[str, Any], *, each_value: bool = False
) -> list[dict[str, Any]]:
    """The members of a union, including nested ones; with ``each_value``, each value of an enumeration."""
    if "anyOf" in schema:
        return [
            branch
            for member in schema["anyOf"]
            for branch in _branches(member, definitions, each_value=each_value)
        ]
    if each_value and "enum" in schema:
        return [{"enum": [value]} for value in schema["enum"]]
    return [schema]


def _beginnings(schema: dict[str, Any]) -> set[str]:
    """The JSON types of such values, by which msgspec chooses a member of a union."""
    if "enum" not in schema:
        return {schema["type"]}
    return {{str: "string", int: "integer", type(None): "null"}[type(value)] for value in schema["enum"]}


def _implied(before: dict[str, Any], word: str, bound: Any) -> bool:
    if word in _EQUAL:
        return word in before and bool(before[word] == bound)
    if word in {"minimum", "exclusiveMinimum"}:
        inclusive, strict = before.get("minimum", -inf), before.get("exclusiveMinimum", -inf)
        return bool(strict >= bound or (inclusive >= bound if word == "minimum" else inclusive > bound))
    if word in {"maximum", "exclusiveMaximum"}:
        inclusive, strict = before.get("maximum", inf), before.get("exclusiveMaximum", inf)
        return bool(strict <= bound or (inclusive <= bound if word == "maximum" else inclusive < bound))
    if word in _LOWER:
        return bool(before.get(word, 0) >= bound)
    return bool(before.get(word, inf) <= bound)


def _root_named(schema: Any) -> str:
    if isinstance(schema, str):
        return "anything" if schema == "any" else schema
    return _named(schema, schema.get("$defs"))


def _named(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> str:
    schema = _resolved(schema, definitions or {})
    if _is_any(schema):
        return "anything"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_named(member, definitions) for member in schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    kind = str(schema["type"])
    if kind == "object" and "properties" not in schema:
        kind = "mapping"
    if kind == "array" and schema.get("uniqueItems"):
        kind = "set"
    if "prefixItems" in schema:
        kind = f"array of {len(schema['prefixItems'])}"
    form = schema.get("format") or schema.get("contentEncoding")
    if form:
        kind = f"{kind} ({form})"
    words = [f"{word} {schema[word]!r}" for word in (*_LOWER, *_UPPER, *_EQUAL, *_STRICT) if word in schema]
    return f"{kind} with {', '.join(words)}" if words and "prefixItems" not in schema else kind
