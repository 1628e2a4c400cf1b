"""Describe the types of msgspec as plain data: JSON Schema with additions."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

_STRINGS: dict[type[inspect.Type], dict[str, Any]] = {
    inspect.BytesType: {"contentEncoding": "base64"},
    inspect.ByteArrayType: {"contentEncoding": "base64"},
    inspect.MemoryViewType: {"contentEncoding": "base64"},
    inspect.DateTimeType: {"format": "date-time"},
    inspect.TimeType: {"format": "time"},
    inspect.DateType: {"format": "date"},
    inspect.TimeDeltaType: {"format": "duration"},
    inspect.UUIDType: {"format": "uuid"},
    inspect.DecimalType: {"format": "decimal"},
}

_CONSTRAINTS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
    "tz": "tz",
}

_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}


def shape(kind: Any) -> dict[str, Any]:
    """The type as JSON Schema, with everything that determines what can be decoded and how it is encoded.

    ``msgspec.json.schema`` is not sufficient: its schema of a ``datetime`` is that of any text, and it omits
    the keys of mappings and ``omit_defaults``. Titles and documentation are left out; classes are numbered,
    as their names are not encoded. Raises ``TypeError`` for types that need hooks.
    """
    shapes = _Shapes()
    root = shapes.of(inspect.type_info(kind))
    return {**root, "$defs": shapes.definitions} if shapes.definitions else root


class _Shapes:
    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._numbers: dict[Any, str] = {}

    def of(self, info: inspect.Type) -> dict[str, Any]:
        match info:
            case inspect.Metadata():
                return self.of(info.type)
            case inspect.AnyType() | inspect.RawType():
                return {}
            case inspect.NoneType():
                return {"type": "null"}
            case inspect.BoolType():
                return {"type": "boolean"}
            case inspect.IntType():
                return {"type": "integer", **_constraints(info, "integer")}
            case inspect.FloatType():
                return {"type": "number", **_constraints(info, "number")}
            case inspect.LiteralType():
                return {"enum": list(info.values)}
            case inspect.EnumType():
                return {"enum": sorted(member.value for member in info.cls)}
            case inspect.CollectionType():
                unique = isinstance(info, inspect.SetType | inspect.FrozenSetType)
                constraints = _constraints(info, "array") | ({"uniqueItems": True} if unique else {})
                return {"type": "array", "items": self.of(info.item_type), **constraints}
            case inspect.TupleType():
                count = len(info.item_types)
                items = [self.of(item) for item in info.item_types]
                return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
            case inspect.DictType() | inspect.FrozenDictType():
                names, values = self.of(info.key_type), self.of(info.value_type)
                described: dict[str, Any] = {"type": "object", "additionalProperties": values}
                # In JSON, keys are always text, whatever their type.
                if names not in ({}, {"type": "string"}):
                    described["propertyNames"] = names
                return described | _constraints(info, "object")
            case inspect.UnionType():
                return {"anyOf": [self.of(member) for member in info.types]}
            case (
                inspect.StructType()
                | inspect.TypedDictType()
                | inspect.DataclassType()
                | inspect.NamedTupleType()
            ):
                return self._reference(info)
            case _ if isinstance(info, inspect.StrType) or type(info) in _STRINGS:
                form = _STRINGS.get(type(info), {})
                return {"type": "string", **form, **_constraints(info, "string")}
            case _:
                raise TypeError(f"{info!r} cannot be described")

    def _reference(
        self,
        info: inspect.StructType | inspect.TypedDictType | inspect.DataclassType | inspect.NamedTupleType,
    ) -> dict[str, Any]:
        number = self._numbers.get(info.cls)
        if number is None:
            number = self._numbers[info.cls] = str(len(self._numbers) + 1)
            # The number is reserved before the fields are described, as they may contain the same class.
            self.definitions[number] = None
            self.definitions[number] = self._fields(info)
        return {"$ref": f"#/$defs/{number}"}

    def _fields(
        self,
        info: inspect.StructType | inspect.TypedDictType | inspect.DataclassType | inspect.NamedTupleType,
    ) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        required = []
        struct = isinstance(info, inspect.StructType)
        if isinstance(info, inspect.StructType) and info.tag_field is not None:
            properties[info.tag_field] = {"enum": [info.tag]}
            required.append(info.tag_field)
        for item in info.fields:
            properties[item.encode_name] = self.of(item.type) | _default(item)
            if item.required:
                required.append(item.encode_name)
        strict = isinstance(info, inspect.StructType) and info.forbid_unknown_fields
        if isinstance(info, inspect.NamedTupleType) or (
            isinstance(info, inspect.StructType) and info.array_like
        ):
            described: dict[str, Any] = {"type": "array", "prefixItems": list(properties.values())}
            # A required field may follow an optional one; all fields up to the last required one must exist.
            described["minItems"] = max(
                (place for place, name in enumerate(properties, 1) if name in required), default=0
            )
            if strict or not struct:
                described["maxItems"] = len(properties)
            return described
        described = {"type": "object", "properties": properties, "required": required}
        if strict:
            described["additionalProperties"] = False
        if isinstance(info, inspect.StructType) and _class(info).__struct_config__.omit_defaults:
            described["omitsDefaults"] = True
        return described


def _class(info: inspect.StructType) -> Any:
    """The class itself, also of a generic type with parameters."""
    return getattr(info.cls, "__origin__", info.cls)


def _constraints(info: inspect.Type, kind: str) -> dict[str, Any]:
    words = dict(_CONSTRAINTS)
    if kind in _LENGTHS:
        words |= {"min_length": f"min{_LENGTHS[kind]}", "max_length": f"max{_LENGTHS[kind]}"}
    found = {word: getattr(info, name, None) for name, word in words.items()}
    return {word: value for word, value in found.items() if value is not None}


def _default(item: inspect.Field) -> dict[str, Any]:
    default = item.default
    if item.default_factory in {list, dict, set, bytearray}:
        default = item.default_factory()
    try:
        # Sorted, as sets have no order.
        return {"default": msgspec.to_builtins(default, str_keys=True, order="deterministic")}
    except TypeError:
        # There is no default, or it is created each time by a function, or marks an absent field.
        return {}
