"""Copies of values that are independent of later changes to the originals."""

from __future__ import annotations

import dataclasses
import datetime as dt
from copy import copy, deepcopy
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

FIXED = frozenset(
    {
        *(str, bytes, int, float, bool, complex, type(None), Decimal, Fraction, UUID, range),
        *(dt.datetime, dt.date, dt.time, dt.timedelta),
    }
)
"""Types with immutable values."""

_copiers: dict[type, Callable[[Any], Any]] = {}


def snapshot(value: Any) -> Any:
    """Copy a value and its contents; immutable values are returned themselves.

    Dictionaries, lists, sets, tuples, structs and dataclasses are copied, anything else by ``copy.deepcopy``;
    an object that cannot be copied is shared.
    """
    kind = type(value)
    if kind in FIXED:
        return value
    copier = _copiers.get(kind)
    if copier is None:
        copier = _copiers[kind] = _copier(kind)
    return copier(value)


def _copier(kind: type) -> Callable[[Any], Any]:
    if kind is dict:
        return _of_dict
    if kind is list:
        return _of_list
    if kind is tuple:
        return _of_tuple
    if kind in {set, bytearray}:
        # Elements of a set are hashable, and so immutable.
        return copy
    if kind is frozenset or issubclass(kind, Enum):
        return _itself
    if issubclass(kind, msgspec.Struct):
        return _StructCopier(kind)
    if dataclasses.is_dataclass(kind):
        return _DataclassCopier(kind)
    return _deep


def _itself(value: Any) -> Any:
    return value


def _of_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    fixed = FIXED
    return {key: item if type(item) in fixed else snapshot(item) for key, item in value.items()}


def _of_list(value: list[Any]) -> list[Any]:
    fixed = FIXED
    return [item if type(item) in fixed else snapshot(item) for item in value]


def _of_tuple(value: tuple[Any, ...]) -> tuple[Any, ...]:
    items = tuple(map(snapshot, value))
    return value if all(item is old for item, old in zip(items, value, strict=True)) else items


class _StructCopier:
    def __init__(self, kind: type[msgspec.Struct]) -> None:
        self._names = kind.__struct_fields__
        self._frozen = kind.__struct_config__.frozen

    def __call__(self, value: Any) -> Any:
        names, set_field = self._names, msgspec.structs.force_setattr
        changed = [
            (name, copied)
            for name in names
            if type(item := getattr(value, name)) not in FIXED and (copied := snapshot(item)) is not item
        ]
        if self._frozen and not changed:
            return value
        made = copy(value)
        for name, copied in changed:
            set_field(made, name, copied)
        return made


class _DataclassCopier:
    def __init__(self, kind: Any) -> None:
        self._names = [field.name for field in dataclasses.fields(kind)]

    def __call__(self, value: Any) -> Any:
        made = copy(value)
        for name in self._names:
            item = getattr(value, name, None)
            if type(item) not in FIXED:
                # Also where the class is frozen.
                object.__setattr__(made, name, snapshot(item))
        return made


def _deep(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:  # noqa: BLE001 - a lock or a connection in it: the object is shared
        return value
