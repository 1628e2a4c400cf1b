"""The rows of a transaction as changes of the table: what each does to its key, encoded by column."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import uuid
from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.connectors.change import Change
from streams.connectors.postgres.encoding import encode, literal
from streams.connectors.postgres.fields import key_reader, quick_key_columns, split_by_fields
from streams.connectors.sink import RefusedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.connectors.postgres.fields import Fields
    from streams.connectors.postgres.table import Column, Table
    from streams.connectors.sink import SinkRows


class Action(enum.IntEnum):
    """What a row does."""

    NOTHING = 0
    UPSERT = 1
    DELETE = 2
    TRUNCATE = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows with the same columns: their numbers, the columns beside the key, and the values of these."""

    columns: tuple[str, ...]
    rows: list[int]
    values: list[list[Any]]


class UnknownFields(Exception):
    """Values have fields for which the table has no column.

    ``samples`` has a value of each, which is not null if there is one.
    """

    def __init__(self, samples: dict[str, Any]) -> None:
        super().__init__(f"no columns for {', '.join(samples)}")
        self.samples = samples


@dataclass(slots=True)
class Changes:
    """Changes in order; the columns below have one entry for each.

    Values become text when they are sent, so that the server works meanwhile.
    """

    table: Table
    key: tuple[str, ...]
    actions: list[Action]
    keys: list[Any]
    """Hashable; equal for equal keys if ``certain``."""
    certain: bool
    """Whether keys are equal here exactly when they are for the server."""
    key_values: list[list[Any]]
    shapes: list[Shape]
    shape_of: list[int]
    slots: list[int]
    """The row of a change in its shape."""
    refused: dict[int, Exception] = field(default_factory=dict)

    def live(self) -> list[int]:
        """The changes that are to be applied, in order."""
        if not self.refused and Action.NOTHING not in self.actions:
            return list(range(len(self.actions)))
        return [row for row, action in enumerate(self.actions) if action and row not in self.refused]

    def key_literals(self, rows: Sequence[int]) -> list[bytes]:
        """The key columns of some changes, as arrays. Raises ``UnwritableValues``."""
        chosen = _chooser(rows)
        columns = self.table.columns
        return [
            literal(columns[name], chosen(values))
            for name, values in zip(self.key, self.key_values, strict=True)
        ]

    def literals(self, rows: Sequence[int]) -> list[bytes]:
        """The key columns and then the others, of changes of one shape. Raises ``UnwritableValues``."""
        shape = self.shapes[self.shape_of[rows[0]]]
        chosen = _chooser(_chooser(rows)(self.slots))
        columns = self.table.columns
        return self.key_literals(rows) + [
            literal(columns[name], chosen(values))
            for name, values in zip(shape.columns, shape.values, strict=True)
        ]

    def refuse_unwritable(self) -> None:
        """Refuse the changes that have values which cannot be sent."""
        for name, values in zip(self.key, self.key_values, strict=True):
            encode(self.table.columns[name], values, self.refused)
        for shape in self.shapes:
            wrong: dict[int, Exception] = {}
            for name, values in zip(shape.columns, shape.values, strict=True):
                encode(self.table.columns[name], values, wrong)
            for slot, error in wrong.items():
                self.refused.setdefault(shape.rows[slot], error)


class _KeySources(NamedTuple):
    """Where a row's key may be: in the record's key, in the row, or in the row before its deletion."""

    actions: list[Action]
    record_keys: list[Any]
    values: list[Any]
    befores: dict[int, Any]


@dataclass(frozen=True, slots=True)
class ChangeReader:
    """Makes changes of records' keys and values for one table."""

    table: Table
    key: tuple[str, ...]
    """The key's columns; none where rows are only appended."""
    key_in_value: bool
    renamed: Mapping[str, str] | None
    """The columns of the fields that are written; ``None`` for all, under their own names."""
    adds_columns: bool

    def read(self, parts: Sequence[SinkRows]) -> Changes:
        """Read the rows of all partitions. Raises ``UnknownFields``."""
        values = list(itertools.chain.from_iterable(part.values for part in parts))
        record_keys = list(itertools.chain.from_iterable(part.keys for part in parts))
        refused: dict[int, Exception] = {}
        actions, befores, is_change = self._actions(values)
        if set(actions) == {Action.UPSERT}:
            written, rows = list(range(len(values))), values
        else:
            written = [row for row, action in enumerate(actions) if action is Action.UPSERT]
            rows = [values[row] for row in written]
        groups = split_by_fields(written, rows, refused, changes=is_change)
        unknown: dict[str, Any] = {}
        groups = [self._to_columns(group, unknown) for group in groups]
        if unknown:
            raise UnknownFields(unknown)
        for group in groups:
            if not group.names and not self.key:
                refused.update(dict.fromkeys(group.rows, ValueError("the row has no field that is a column")))
        sources = _KeySources(actions, record_keys, values, befores)
        changes = Changes(
            table=self.table,
            key=self.key,
            actions=actions,
            keys=[],
            certain=False,
            key_values=[],
            shapes=[],
            shape_of=[0] * len(values),
            slots=[0] * len(values),
            refused=refused,
        )
        if self.key:
            columns = self._quick_key_columns(sources, refused) or self._key_columns(sources, refused)
            changes.key_values = columns
            changes.keys, changes.certain = self._comparable(columns, refused)
        for number, group in enumerate(groups):
            changes.shapes.append(Shape(group.names, group.rows, group.columns))
            if len(group.rows) == len(values):
                # All rows have the same columns.
                changes.slots = group.rows
                break
            for slot, row in enumerate(group.rows):
                changes.shape_of[row] = number
                changes.slots[row] = slot
        return changes

    def _actions(self, values: list[Any]) -> tuple[list[Action], dict[int, Any], bool]:
        """What each value does; the values of change events are replaced by their rows."""
        befores: dict[int, Any] = {}
        kinds = set(map(type, values))
        if Change not in kinds and type(None) not in kinds:
            return [Action.UPSERT] * len(values), befores, False
        actions = []
        for row, value in enumerate(values):
            action = Action.UPSERT
            if value is None:
                action = Action.DELETE
            elif type(value) is Change:
                values[row] = value.after
                if value.op == "t":
                    action = Action.TRUNCATE
                elif value.op == "d" or value.after is None:
                    action = Action.DELETE
                    befores[row] = value.before
            if action is Action.DELETE and not self.key:
                # What is only appended to keeps the rows that were there.
                action = Action.NOTHING
            actions.append(action)
        return actions, befores, Change in kinds

    def _to_columns(self, group: Fields, unknown: dict[str, Any]) -> Fields:
        """The fields that are written, under their columns' names, without those of the key."""
        names, columns = [], []
        for name, column in zip(group.names, group.columns, strict=True):
            target = name if self.renamed is None else self.renamed.get(name)
            if target is None or target in self.key:
                continue
            known = self.table.columns.get(target)
            if known is None:
                sample = next((value for value in column if value is not None), None)
                # A column is added once its type can be seen.
                if sample is not None or not self.adds_columns:
                    unknown[target] = sample
            elif not known.generated:
                names.append(target)
                columns.append(column)
        return type(group)(tuple(names), group.rows, columns)

    @property
    def _key_fields(self) -> tuple[str, ...]:
        """The fields of the value that have the key."""
        if self.renamed is None:
            return self.key
        fields = {column: name for name, column in self.renamed.items()}
        return tuple(fields.get(column, column) for column in self.key)

    def _quick_key_columns(
        self, sources: _KeySources, refused: dict[int, Exception]
    ) -> list[list[Any]] | None:
        """The key's columns if all keys are of one type and complete, as they usually are."""
        keys, names = sources.record_keys, self.key
        if self.key_in_value:
            if set(sources.actions) != {Action.UPSERT}:
                return None
            keys, names = sources.values, self._key_fields
        kinds = set(map(type, keys))
        if refused or len(kinds) != 1 or Action.TRUNCATE in sources.actions:
            return None
        return quick_key_columns(keys, kinds.pop(), names)

    def _key_columns(self, sources: _KeySources, refused: dict[int, Exception]) -> list[list[Any]]:
        """The key's columns. A row whose key cannot be read is refused, and has nulls there."""
        nothing = (None,) * len(self.key)
        readers: dict[tuple[type, bool], Callable[[Any], tuple[Any, ...]]] = {}
        fields = self._key_fields
        found = []
        for row, action in enumerate(sources.actions):
            if action is Action.TRUNCATE or row in refused:
                found.append(nothing)
                continue
            source, of_value = sources.record_keys[row], False
            before = sources.befores.get(row)
            if self.key_in_value and action is Action.UPSERT:
                source, of_value = sources.values[row], True
            elif before is not None and (self.key_in_value or source is None):
                source, of_value = before, self.key_in_value
            reader = readers.get((type(source), of_value))
            if reader is None:
                reader = key_reader(type(source), fields if of_value else self.key)
                readers[type(source), of_value] = reader
            try:
                found.append(reader(source))
            except Exception as error:  # noqa: BLE001 - a key that cannot be read concerns its row
                refused[row] = error
                found.append(nothing)
        return [list(column) for column in zip(*found, strict=True)] or [[] for _ in self.key]

    def _comparable(self, columns: list[list[Any]], refused: dict[int, Exception]) -> tuple[list[Any], bool]:
        """Keys by which changes are compared, and whether the server compares them in the same way."""
        comparable, certain = [], True
        for name, column in zip(self.key, columns, strict=True):
            own = _comparable(self.table.columns[name], column)
            certain = certain and own is not None
            comparable.append(column if own is None else own)
        if not certain:
            # The text is hashable whatever the values are.
            texts = [
                encode(self.table.columns[name], column, refused)
                for name, column in zip(self.key, columns, strict=True)
            ]
            return list(zip(*texts, strict=True)), False
        return (comparable[0] if len(comparable) == 1 else list(zip(*comparable, strict=True))), True


def _chooser(rows: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The function that selects the values at ``rows`` of a column."""
    if len(rows) == 1:
        (row,) = rows
        return lambda values: (values[row],)
    return itemgetter(*rows)


_SAME: dict[str, tuple[type, ...]] = {
    "int2": (int,),
    "int4": (int,),
    "int8": (int,),
    "oid": (int,),
    "bool": (bool,),
    "date": (dt.date,),
    "bytea": (bytes,),
    "text": (str,),
    "varchar": (str,),
}


def _comparable(column: Column, values: list[Any]) -> list[Any] | None:
    """Values that are equal exactly when the column's are, ``None`` if that is not certain."""
    if not column.exact:
        return None
    kinds = set(map(type, values))
    # Rows that are refused have null here.
    kinds.discard(type(None))
    if column.base == "uuid":
        if kinds <= {uuid.UUID}:
            return values
        if kinds == {str} and {len(value) for value in values if value is not None} == {36}:
            return [value and value.lower().replace("-", "") for value in values]
        return None
    return values if kinds <= set(_SAME[column.base]) else None


def refused_rows(refused: Mapping[int, Exception], parts: Sequence[SinkRows]) -> list[RefusedRow]:
    """Refused changes, by their numbers, as rows of their partitions."""
    starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
    found = []
    for row, error in sorted(refused.items()):
        number = bisect_right(starts, row) - 1
        found.append(RefusedRow(parts[number].partition, row - starts[number], error))
    return found
