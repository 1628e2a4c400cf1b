"""Rows' fields as columns: what a mapping, a Struct, a dataclass or a change event says of a row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Mapping
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

H = TypeVar("H", bound=Hashable)

_MARKER = "__debezium_unavailable_value"
"""What Debezium writes in place of a large value that an update did not change."""

_MARKERS: tuple[Any, ...] = (_MARKER, _MARKER.encode(), [_MARKER], [_MARKER.encode()])


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """Rows that have the same fields: their numbers, and a column for each field."""

    names: tuple[str, ...]
    rows: list[int]
    columns: list[list[Any]]


def field_names(kind: type) -> Mapping[str, str] | None:
    """The attribute of each field of a Struct or dataclass, by the field's name; ``None`` for other types."""
    if issubclass(kind, msgspec.Struct):
        return {item.encode_name: item.name for item in msgspec.structs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        return {item.name: item.name for item in dataclasses.fields(kind)}
    return None


def as_mapping(value: Any) -> Mapping[str, Any] | None:
    """The fields of one row, ``None`` if it has none."""
    if isinstance(value, Mapping):
        return value
    names = field_names(type(value))
    if names is None:
        return None
    found = {name: getattr(value, attribute) for name, attribute in names.items()}
    return {name: item for name, item in found.items() if item is not msgspec.UNSET}


def split_by_fields(
    rows: Sequence[int], values: Sequence[Any], refused: dict[int, Exception], *, changes: bool
) -> list[Fields]:
    """Group rows by the fields that they have. A field that is not there is left as it is in the table.

    Not there are: a mapping's missing key, ``msgspec.UNSET``, and in change events Debezium's placeholder.
    """
    groups = []
    for kind, positions in _positions(list(map(type, values))).items():
        numbers = [rows[position] for position in positions]
        chosen = [values[position] for position in positions]
        names = field_names(kind)
        if names is not None:
            columns = [list(map(attrgetter(attribute), chosen)) for attribute in names.values()]
            groups.append(Fields(tuple(names), numbers, columns))
        elif issubclass(kind, Mapping):
            groups += _of_mappings(numbers, chosen, refused)
        else:
            error = TypeError(
                f"a row is a mapping, a Struct or a dataclass: a {kind.__name__} has no columns"
            )
            refused.update(dict.fromkeys(numbers, error))
    found = []
    for group in groups:
        found += _without_absent(group, changes=changes)
    return found


def _positions(labels: list[H]) -> dict[H, list[int]]:
    """Where each of the labels is."""
    kinds = dict.fromkeys(labels)
    if len(kinds) == 1:
        return {next(iter(kinds)): list(range(len(labels)))}
    found: dict[H, list[int]] = {label: [] for label in kinds}
    for position, label in enumerate(labels):
        found[label].append(position)
    return found


def _of_mappings(
    rows: list[int], values: list[Mapping[str, Any]], refused: dict[int, Exception]
) -> list[Fields]:
    names = tuple(values[0])
    if set(map(type, names)) == {str} and set(map(len, values)) == {len(names)}:
        # As they usually do, all have as many fields as the first: these are its fields if there is no other.
        with contextlib.suppress(KeyError):
            return [Fields(names, rows, [list(map(itemgetter(name), values)) for name in names])]
    by_names = _positions(list(map(tuple, values)))
    for names in [names for names in by_names if not all(isinstance(name, str) for name in names)]:
        error = TypeError(f"the fields of a row are named by text, not {', '.join(map(repr, names))}")
        refused.update(dict.fromkeys((rows[position] for position in by_names.pop(names)), error))
    return [
        Fields(
            names,
            [rows[position] for position in positions],
            [[values[position][name] for position in positions] for name in names],
        )
        for names, positions in by_names.items()
    ]


def _without_absent(group: Fields, *, changes: bool) -> list[Fields]:
    """Split a group in which some rows' values say that they are not there."""
    absent: dict[int, set[str]] = {}
    for name, column in zip(group.names, group.columns, strict=True):
        for position in _absent(column, changes=changes):
            absent.setdefault(position, set()).add(name)
    if not absent:
        return [group]
    by_names: dict[tuple[str, ...], list[int]] = {}
    for position in range(len(group.rows)):
        missing = absent.get(position)
        names = tuple(name for name in group.names if name not in missing) if missing else group.names
        by_names.setdefault(names, []).append(position)
    columns = dict(zip(group.names, group.columns, strict=True))
    return [
        Fields(
            names,
            [group.rows[position] for position in positions],
            [[columns[name][position] for position in positions] for name in names],
        )
        for names, positions in by_names.items()
    ]


def _absent(column: list[Any], *, changes: bool) -> list[int]:
    kinds = set(map(type, column))
    if msgspec.UnsetType in kinds:
        is_absent = _is_absent_or_marker if changes else _is_absent
        return [row for row, value in enumerate(column) if is_absent(value)]
    if changes and not kinds.isdisjoint({str, bytes, list}) and any(map(column.__contains__, _MARKERS)):
        return [row for row, value in enumerate(column) if _is_marker(value)]
    return []


def _is_absent(value: Any) -> bool:
    return value is msgspec.UNSET


def _is_absent_or_marker(value: Any) -> bool:
    return value is msgspec.UNSET or _is_marker(value)


def _is_marker(value: Any) -> bool:
    return isinstance(value, str | bytes | list) and value in _MARKERS


def quick_key_columns(keys: list[Any], kind: type, columns: Sequence[str]) -> list[list[Any]] | None:
    """The key's columns of keys of one type; ``None`` if a key is not complete, or has nulls."""
    attributes = field_names(kind)
    try:
        if attributes is not None:
            found = [list(map(attrgetter(attributes[name]), keys)) for name in columns]
        elif issubclass(kind, Mapping):
            found = [list(map(itemgetter(name), keys)) for name in columns]
        elif len(columns) == 1:
            found = [keys]
        else:
            return None
    except KeyError:
        return None
    return None if any(None in column for column in found) else found


def _no_key(key: Any) -> tuple[Any, ...]:
    raise ValueError(f"the record's key is {key}: there is none by which the row is written")


def key_reader(kind: type, columns: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """The function that reads the key's columns from a record's key of that type, or from a row.

    A key that is one value and no mapping is that of the only key column.
    """
    names = field_names(kind)
    if kind is type(None):
        return _no_key
    if names is not None or issubclass(kind, Mapping):
        return lambda key: _read_key(as_mapping(key) or {}, columns)
    if len(columns) == 1:
        return lambda key: _not_null((key,), columns)

    def refuse(key: Any) -> tuple[Any, ...]:
        raise TypeError(
            f"the record's key must have the fields {', '.join(columns)}: it is a {type(key).__name__}"
        )

    return refuse


def _read_key(fields: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    missing = [name for name in columns if name not in fields]
    if missing:
        raise ValueError(
            f"the key needs the columns {', '.join(columns)}: {', '.join(missing)} is missing, there are "
            f"{', '.join(map(str, fields))}"
        )
    return _not_null(tuple(fields[name] for name in columns), columns)


def _not_null(key: tuple[Any, ...], columns: Sequence[str]) -> tuple[Any, ...]:
    if None in key:
        raise ValueError(f"the key column {columns[key.index(None)]} is null")
    return key
