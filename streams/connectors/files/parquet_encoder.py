"""Rows as columns of Parquet. The only importer of pyarrow."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing
import uuid
from decimal import Decimal
from enum import Enum
from operator import ne
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from streams.connectors.mapped_rows import DELETION, attributes, names_of, reader, rows_of, runs
from streams.connectors.sink import RefusedRow
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streams.connectors.sink import SinkRows

COMPRESSIONS: Final = ("zstd", "snappy", "gzip", "lz4", "brotli", "none")

ARROW_TYPES: Final[dict[type, Any]] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    dt.datetime: pa.timestamp("us", tz="UTC"),
    dt.date: pa.date32(),
    dt.time: pa.time64("us"),
    dt.timedelta: pa.duration("us"),
    uuid.UUID: pa.string(),
}

_KEPT: Final = (bytes, bytearray, memoryview, Decimal, dt.datetime, dt.date, dt.time, dt.timedelta)
"""What nested values keep; pyarrow knows these types."""

_EXACT: Final[dict[Any, frozenset[type]]] = {
    pa.int64(): frozenset({int, NoneType}),
    pa.float64(): frozenset({float, int, NoneType}),
    pa.string(): frozenset({str, NoneType}),
    pa.bool_(): frozenset({bool, NoneType}),
    pa.binary(): frozenset({bytes, NoneType}),
    pa.date32(): frozenset({dt.date, NoneType}),
}
"""Types for which pyarrow keeps every value of these Python types, or raises."""


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetEncoder:
    """Turns rows into a Parquet file.

    pyarrow raises for most values that do not fit, but makes 1.5 an integer and drops fields of nested
    rows: columns that might be affected are read back and compared.
    """

    schema: Any
    compression: str

    @classmethod
    def of(cls, described: Any, compression: str) -> ParquetEncoder:
        """An encoder for a ``pyarrow.Schema`` or a class. Raises ``ConfigurationError``."""
        if compression not in COMPRESSIONS:
            raise ConfigurationError(
                f"compression is one of {', '.join(COMPRESSIONS)}, got {compression!r:.80}"
            )
        if isinstance(described, pa.Schema):
            return cls(described, compression)
        try:
            return cls(pa.schema(_fields(described)), compression)
        except TypeError as error:
            raise ConfigurationError(
                f"schema= is a pyarrow.Schema or a class with annotated fields: {error}"
            ) from error

    @property
    def suffix(self) -> str:
        return ".parquet"

    def encode(self, rows: SinkRows) -> tuple[Sequence[bytes], list[RefusedRow]]:
        taken, errors = self._taken(rows)
        numbers = sorted(taken)
        columns = list(zip(*(taken[number] for number in numbers), strict=True))
        arrays = [self._array(field, column) for field, column in zip(self.schema, columns, strict=False)]
        if None in arrays:
            # At least one value does not fit: find out whose, and write the others.
            for number in numbers:
                if (error := self._error(taken[number])) is not None:
                    errors[number] = error
                    del taken[number]
            columns = list(zip(*(taken[number] for number in sorted(taken)), strict=True))
            arrays = [self._array(field, column) for field, column in zip(self.schema, columns, strict=False)]
        refused = [RefusedRow(rows.partition, number, errors[number]) for number in sorted(errors)]
        if not taken:
            return [], refused
        sink = pa.BufferOutputStream()
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        pq.write_table(table, sink, compression=self.compression)
        return [sink.getvalue()], refused

    def _taken(self, rows: SinkRows) -> tuple[dict[int, tuple[Any, ...]], dict[int, Exception]]:
        """The fields of each row, by its number, and the errors of rows that have none."""
        taken: dict[int, tuple[Any, ...]] = {}
        errors: dict[int, Exception] = {}
        wanted = self.schema.names
        plain = rows_of(rows.values)
        for run in runs(plain):
            numbers = range(run.start, run.stop)
            if run.shape is DELETION:
                errors |= dict.fromkeys(numbers, _DELETION)
                continue
            try:
                names = names_of(run.shape)
            except TypeError as error:
                errors |= dict.fromkeys(numbers, error)
                continue
            present = [name for name in wanted if name in names]
            fields: Iterable[tuple[Any, ...]] = map(reader(run.shape, present), plain[run.start : run.stop])
            if len(present) < len(wanted):
                at = [present.index(name) if name in present else None for name in wanted]
                fields = _with_nulls(fields, at)
            taken.update(zip(numbers, fields, strict=True))
        return taken, errors

    def _array(self, field: Any, column: Sequence[Any]) -> Any:
        """The column as pyarrow's; ``None`` if a value does not fit."""
        try:
            return array(field, column)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            return None

    def _error(self, row: tuple[Any, ...]) -> Exception | None:
        """Why a row cannot be written."""
        for field, value in zip(self.schema, row, strict=True):
            try:
                array(field, [value])
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                return ValueError(f"field {field.name!r} of type {field.type}: {error}")
        return None


def _with_nulls(rows: Iterable[tuple[Any, ...]], places: Sequence[int | None]) -> Iterator[tuple[Any, ...]]:
    """Rows with a null where there is no place to take a field from."""
    for row in rows:
        yield tuple(None if place is None else row[place] for place in places)


_DELETION: Final = ValueError("a Parquet file cannot delete a row: leave deletions out upstream")


def array(field: Any, column: Sequence[Any]) -> Any:
    """A column as pyarrow's. Raises an error if a value would be stored as something else."""
    kinds: set[type] = set(map(type, column))
    if not field.nullable and NoneType in kinds:
        raise ValueError("the value is null, and the field is not nullable")
    if kinds <= _EXACT.get(field.type, frozenset()):
        return pa.array(column, type=field.type)
    if pa.types.is_timestamp(field.type):
        _check_times(field.type, column)
    elif pa.types.is_decimal(field.type):
        column = [Decimal(value) if type(value) is str else value for value in column]
    elif kinds - {NoneType, *_KEPT} or pa.types.is_string(field.type):
        kept = () if pa.types.is_string(field.type) else _KEPT
        column = [msgspec.to_builtins(value, builtin_types=kept) for value in column]
    made = pa.array(column, type=field.type)
    if not pa.types.is_floating(field.type) and any(map(ne, made.to_pylist(), column)):
        raise ValueError("the value would be stored as another one")
    return made


def _check_times(kind: Any, column: Sequence[Any]) -> None:
    """Times with a zone belong into columns with one, and others into those without."""
    for value in column:
        if value is None:
            continue
        if not isinstance(value, dt.datetime):
            raise TypeError(f"the value must be a datetime, got {type(value).__name__}")
        if (value.tzinfo is None) != (kind.tz is None):
            raise ValueError("times need a zone exactly if the field has one")


def _fields(kind: Any) -> list[Any]:
    if not isinstance(kind, type):
        raise TypeError(f"got {kind!r:.80}")
    hints = typing.get_type_hints(kind, include_extras=False)
    return [_field(name, hints.get(attribute, Any)) for name, attribute in attributes(kind).items()]


def _field(name: str, hint: Any) -> Any:
    parts = typing.get_args(hint) if typing.get_origin(hint) in {Union, UnionType} else (hint,)
    present = [part for part in parts if part not in {NoneType, msgspec.UnsetType}]
    if len(present) != 1:
        raise TypeError(f"field {name!r} has the type {hint}: a column has values of one type")
    return pa.field(name, _arrow_type(name, present[0]), nullable=len(present) < len(parts))


def _arrow_type(name: str, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {list, set, frozenset} and arguments:
        return pa.list_(_field("element", arguments[0]))
    if origin is dict and arguments:
        return pa.map_(_arrow_type(name, arguments[0]), _field("value", arguments[1]))
    if origin is typing.Literal:
        return _arrow_type(name, _only({type(part) for part in arguments}, name))
    kind = origin or hint
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return _arrow_type(name, _only({type(member.value) for member in kind}, name))
        if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
            return pa.struct(_fields(kind))
        if found := next((ARROW_TYPES[base] for base in kind.__mro__ if base in ARROW_TYPES), None):
            return found
    advice = ", e.g. pa.decimal128(12, 2)" if kind is Decimal else ""
    raise TypeError(f"field {name!r} has the type {hint}: give its type by a pyarrow.Schema{advice}")


def _only(kinds: set[type], name: str) -> type:
    if len(kinds) != 1:
        raise TypeError(f"field {name!r} has values of several types")
    return kinds.pop()
