"""Find the types of values from serdes and annotations. ``Any`` stands for an unknown type."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, Union

import msgspec
from msgspec import inspect

from streams.records import Record


def serde_type(serde: object) -> Any:
    """The type of a serde's values, from its attribute ``value_type``."""
    return known(getattr(serde, "value_type", Any))


def returned_type(function: Callable[..., Any]) -> Any:
    """The annotated return type of a function; for a class, the class."""
    return known(_returned(function))


def given_type(function: Callable[..., Any]) -> Any:
    """The element type of the iterable that a function is annotated to return."""
    return _element(_returned(function))


def record_value_type(function: Callable[..., Any], *, many: bool = False) -> Any:
    """The type of the values in the records that a function is annotated to return, one or ``many``."""
    kind = _returned(function)
    if many:
        kind = _item(kind)
    arguments = typing.get_args(kind) if typing.get_origin(kind) is Record else ()
    return known(arguments[1]) if len(arguments) == 2 else Any


def _returned(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        return function
    if not hasattr(function, "__code__") and not isinstance(function, types.MethodType):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - the method itself is needed
    try:
        return typing.get_type_hints(function).get("return", Any)
    except Exception:  # noqa: BLE001 - annotations may fail in any way; the type is then unknown
        return Any


def field_type(kind: Any, name: str) -> Any:
    """The type of an attribute, or of a mapping's entry, of that name."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return field_type(arguments[0], name)
    if origin in {Union, types.UnionType}:
        found = [field_type(member, name) for member in arguments if member is not type(None)]
        return Any if any(member is Any for member in found) else functools.reduce(_either, found)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return known(arguments[1])
    owner = origin or kind
    if not isinstance(owner, type):
        return Any
    try:
        hint = typing.get_type_hints(owner).get(name, Any)
    except Exception:  # noqa: BLE001 - as above
        return Any
    if hint is Any:
        attribute = getattr(owner, name, None)
        if isinstance(attribute, property) and attribute.fget is not None:
            return returned_type(attribute.fget)
        if isinstance(attribute, functools.cached_property):
            return returned_type(attribute.func)
    if arguments:
        parameters = getattr(owner, "__parameters__", ())
        hint = _filled_in(hint, dict(zip(parameters, arguments, strict=False)))
    return known(hint)


def known(kind: Any) -> Any:
    """The type, or ``Any`` if it does not describe values, or msgspec cannot store them."""
    if kind is None or kind in {type(None), object, Any} or isinstance(kind, TypeVar | str):
        return Any
    if getattr(kind, "__parameters__", ()) and typing.get_origin(kind) is not None:
        return Any
    try:
        return Any if _Traits(kind).unsupported else kind
    except Exception:  # noqa: BLE001 - msgspec does not support the type
        return Any


def traits(kind: Any) -> _Traits:
    """The traits of a type's values. Raises the errors of msgspec for an unsupported type."""
    return _Traits(kind)


class _Traits:
    """What the values of a type contain.

    ``vague``: parts of any type. ``classes``: instances of classes, which cannot be recognized in stored
    data. ``sets``: sets, which have no order. ``unsupported``: types that msgspec cannot store.
    """

    __slots__ = ("_seen", "classes", "sets", "unsupported", "vague")

    def __init__(self, kind: Any) -> None:
        self.vague = self.classes = self.sets = self.unsupported = False
        self._seen: set[int] = set()
        self._look(inspect.type_info(kind))

    def _look(self, info: Any) -> None:
        match info:
            case inspect.Metadata():
                self._look(info.type)
            case inspect.AnyType() | inspect.RawType() | inspect.ExtType():
                self.vague = True
            case inspect.CustomType():
                self.unsupported = True
            case inspect.EnumType():
                self.classes = True
            case inspect.SetType() | inspect.FrozenSetType():
                self.sets = True
                self._look(info.item_type)
            case inspect.CollectionType():
                self._look(info.item_type)
            case inspect.TupleType():
                for item in info.item_types:
                    self._look(item)
            case inspect.DictType() | inspect.FrozenDictType():
                self._look(info.key_type)
                self._look(info.value_type)
            case inspect.UnionType():
                for member in info.types:
                    self._look(member)
            case (
                inspect.StructType()
                | inspect.TypedDictType()
                | inspect.DataclassType()
                | inspect.NamedTupleType()
            ):
                if not isinstance(info, inspect.TypedDictType):
                    self.classes = True
                # A class may contain itself.
                if id(info.cls) not in self._seen:
                    self._seen.add(id(info.cls))
                    for field in info.fields:
                        self._look(field.type)


def _element(kind: Any) -> Any:
    return known(_item(kind))


def _item(kind: Any) -> Any:
    """What an iterable of this type gives, as annotated."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if not (isinstance(origin, type) and issubclass(origin, Iterable)) or issubclass(origin, Mapping):
        return Any
    if issubclass(origin, tuple):
        return arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else Any
    return arguments[0] if arguments else Any


def _either(one: Any, other: Any) -> Any:
    return one | other if one != other else one


def _filled_in(hint: Any, values: dict[Any, Any]) -> Any:
    """The annotation with its type variables replaced; ``Any`` for those without a value."""
    if isinstance(hint, TypeVar):
        return values.get(hint, Any)
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(values.get(parameter, Any) for parameter in parameters)] if parameters else hint


def member_types(kind: Any) -> tuple[Any, ...]:
    """The members of a union; for another type, the type itself."""
    if typing.get_origin(kind) is typing.Annotated:
        return member_types(typing.get_args(kind)[0])
    if typing.get_origin(kind) in {Union, types.UnionType}:
        return tuple(item for member in typing.get_args(kind) for item in member_types(member))
    return (kind,)


def is_supported(kind: Any) -> bool:
    """Whether msgspec can store values of the type."""
    try:
        return not _Traits(kind).unsupported
    except (TypeError, NameError, msgspec.MsgspecError):
        return False
