"""Agree, for each pair of columns of two tables, on the text of values and the order of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.connectors.comparison.table import ColumnType, ComparedColumn, Layout
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.comparison.table import Kind, Order, TableReader

_NUMBERS: tuple[Kind, ...] = ("integer", "decimal", "double", "single")
"""From the widest to the narrowest: values are compared as the narrower of two types can hold them."""

_TIMES: tuple[Kind, ...] = ("timestamptz", "date", "timestamp")
"""Two different ones are compared as timestamps, in UTC."""

_BITS: dict[Kind, Kind] = {"double": "double_bits", "single": "single_bits"}


def agree(
    source: TableReader,
    target: TableReader,
    *,
    key: Sequence[str],
    columns: Sequence[str] | None,
    exact: bool,
) -> Layout:
    """The layout of a comparison: the target's columns, or some of them.

    Raises ``ConfigurationError`` for a column that a table does not have.
    """
    ours, theirs = source.columns(), target.columns()
    if not key:
        raise ConfigurationError("a comparison needs a key", hint="name the columns that identify a row")
    names = list(dict.fromkeys([*key, *(theirs if columns is None else columns)]))
    for reader, types in ((target, theirs), (source, ours)):
        if missing := [name for name in names if name not in types]:
            raise ConfigurationError(
                f"{reader.name} has no column {', '.join(map(repr, missing))}, only {', '.join(types)}",
                hint="choose the columns to compare, or give an expression for each that the source lacks",
            )
    made = {name: _compared(name, ours[name], theirs[name]) for name in names}
    wanted = set(key)
    return Layout(
        tuple(made[name] for name in dict.fromkeys(key)),
        tuple(column for name, column in made.items() if name not in wanted),
        exact,
    )


def left_out(source: Mapping[str, ColumnType], layout: Layout) -> tuple[str, ...]:
    """The source's columns that are not compared."""
    names = {column.name for column in layout.columns}
    return tuple(name for name in source if name not in names)


def _compared(name: str, ours: ColumnType, theirs: ColumnType) -> ComparedColumn:
    order: Order = ours.order if ours.order == theirs.order else "text"
    return ComparedColumn(name, _shared(ours.kind, theirs.kind), order)


def _shared(ours: Kind, theirs: Kind) -> Kind:
    if ours == theirs:
        return ours
    kinds = {ours, theirs}
    if "any" in kinds:
        kind = theirs if ours == "any" else ours
        return _BITS.get(kind, kind)
    for family in (_NUMBERS, _TIMES):
        if kinds <= set(family):
            return family[-1] if family is _TIMES else family[max(map(family.index, kinds))]
    if kinds == {"json", "jsonb"}:
        return "jsonb"
    if kinds == {"padded", "text"}:
        return "padded"
    return "text"
