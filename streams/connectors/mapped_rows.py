"""Values as rows: named fields of mappings, structs, dataclasses and named tuples, and changes of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from itertools import groupby
from operator import attrgetter, itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from streams.connectors.change import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Shape: TypeAlias = "type | tuple[str, ...]"
"""What rows with the same fields have in common: their class, or the names of a mapping."""

DELETION: Final = NoneType
"""The shape of a deleted row."""


class Run(NamedTuple):
    """Consecutive rows of one shape."""

    shape: Shape
    start: int
    stop: int


def rows_of(values: Sequence[Any]) -> Sequence[Any]:
    """The rows themselves: of a change what is there afterwards, ``None`` where the row was deleted.

    Structs with fields left unset become mappings without these.
    """
    rows = values
    if any(issubclass(kind, Change) for kind in set(map(type, values))):
        rows = [value.row if isinstance(value, Change) else value for value in values]
    kinds: set[type] = set(map(type, rows))
    if optional := set(filter(_has_optional, kinds)):
        rows = [present(row) if type(row) in optional else row for row in rows]
    return rows


def runs(rows: Sequence[Any]) -> Iterator[Run]:
    """Consecutive rows of one shape, so that each is written by one statement; their order is kept."""
    shapes: Sequence[Shape] = list(map(type, rows))
    kinds: set[type] = set(map(type, rows))
    if any(issubclass(kind, Mapping) for kind in kinds):
        shapes = [tuple(row) if isinstance(row, Mapping) else type(row) for row in rows]
    start = 0
    for shape, group in groupby(shapes):
        stop = start + sum(1 for _ in group)
        yield Run(shape, start, stop)
        start = stop


def present(row: Any) -> Mapping[str, Any]:
    """The fields that a row has, by name; raises ``TypeError`` for a value that has no fields."""
    if isinstance(row, Mapping):
        return row
    kind: type = type(row)
    found = {name: getattr(row, attribute) for name, attribute in attributes(kind).items()}
    return {name: value for name, value in found.items() if value is not msgspec.UNSET}


@cache
def attributes(kind: type) -> Mapping[str, str]:
    """The names of a class's fields (of a struct those in JSON), with the attributes that have them.

    Raises ``TypeError`` for a class that has no fields.
    """
    if issubclass(kind, msgspec.Struct):
        return dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    if dataclasses.is_dataclass(kind):
        return {field.name: field.name for field in dataclasses.fields(kind)}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return {name: name for name in kind._fields}
    raise TypeError(
        f"a row is a mapping, a msgspec.Struct, a dataclass or a named tuple, got {kind.__name__}: "
        "convert values upstream, e.g. with map"
    )


def names_of(shape: Shape) -> tuple[str, ...]:
    """The names of the fields of rows of this shape; raises ``TypeError`` as ``attributes``."""
    return shape if isinstance(shape, tuple) else tuple(attributes(shape))


def reader(shape: Shape, names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that takes these fields of a row of this shape, as a tuple."""
    if not names:
        return lambda _: ()
    take: Callable[[Any], Any]
    if isinstance(shape, tuple):
        take = itemgetter(*names)
    else:
        take = attrgetter(*(attributes(shape)[name] for name in names))
    # Of a single name they return the field, not a tuple.
    return take if len(names) > 1 else lambda row: (take(row),)


def key_fields(key: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """The key's values of these columns, from a row of key fields or, for one column, from the key itself.

    Raises ``ValueError`` if the key does not have them, or one of them is null.
    """
    fields: tuple[Any, ...] | None
    try:
        has = present(key)
        fields = tuple(has[name] for name in names) if all(name in has for name in names) else None
    except TypeError:
        fields = tuple(key) if isinstance(key, list | tuple) else (key,)
    if fields is None or len(fields) != len(names) or None in fields:
        raise ValueError(f"needs the key {', '.join(names)}, got the record key {key!r:.80}")
    return fields


@cache
def _has_optional(kind: type) -> bool:
    """Whether it is a struct that may have fields left unset (``msgspec.UNSET``)."""
    return issubclass(kind, msgspec.Struct) and any(
        field.default is msgspec.UNSET for field in msgspec.structs.fields(kind)
    )
