"""The part of each value that is aggregated, as a column, validated where an aggregate needs it."""

from __future__ import annotations

import dataclasses
import typing
from contextlib import suppress
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from streams.coroutines.awaitables import settled
from streams.serde.value_type import field_type, known, member_types, returned_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates.contract import Of


def entries_of(of: Of, values: Sequence[Any]) -> Iterable[Any]:
    """The aggregated part of each value, lazily."""
    if of is None:
        return values
    if not isinstance(of, str):
        return map(settled, map(of, values))
    mappings = [issubclass(kind, dict) for kind in set(map(type, values))]
    if not any(mappings):
        return map(getattr, values, repeat(of))
    if all(mappings):
        return map(itemgetter(of), values)
    return (value[of] if isinstance(value, dict) else getattr(value, of) for value in values)


def checked_entries(
    of: Of, values: Sequence[Any], accept: Callable[[list[Any]], bool], check: Callable[[Any], Any]
) -> Iterable[Any]:
    """The values' entries as returned by ``check``, which is skipped for columns that ``accept`` approves."""
    # A user's function is called once for each value, so its results cannot be inspected in advance.
    if of is None or isinstance(of, str):
        with suppress(Exception):
            column = list(entries_of(of, values))
            if accept(column):
                return column
    return map(check, entries_of(of, values))


def _field(of: Of) -> str:
    return (
        "" if of is None else repr(of) if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)
    )


def described_parameters(of: Of, *others: str) -> str:
    """An aggregate's parameters as in its description."""
    return ", ".join(filter(None, (_field(of), *others)))


def entry_type(of: Of, kind: Any) -> Any:
    """The type of the aggregated part of values of a type."""
    if of is None:
        return known(kind)
    return field_type(kind, of) if isinstance(of, str) else returned_type(of)


def missing_field(of: Of, kind: Any) -> tuple[str, ...] | None:
    """The fields of a value type if ``of`` is certainly none of them; ``None`` if it may be one."""
    if not isinstance(of, str):
        return None
    members = [member for member in member_types(kind) if member is not type(None)]
    found = [_fields_without(of, member) for member in members]
    if not found or None in found:
        return None
    return tuple(dict.fromkeys(name for fields in found for name in fields or ()))


def _fields_without(name: str, kind: Any) -> tuple[str, ...] | None:
    owner = typing.get_origin(kind) or kind
    if typing.is_typeddict(owner):
        fields = tuple(owner.__annotations__)
        return None if name in fields else fields
    if not isinstance(owner, type) or hasattr(owner, name) or hasattr(owner, "__getattr__"):
        return None
    if issubclass(owner, msgspec.Struct):
        fields = owner.__struct_fields__
    elif dataclasses.is_dataclass(owner):
        fields = tuple(field.name for field in dataclasses.fields(owner))
    elif issubclass(owner, tuple) and hasattr(owner, "_fields"):
        fields = owner._fields
    else:
        return None
    return None if name in fields else fields
