"""Records of CSV files, each with the header of its file."""

from __future__ import annotations

import builtins
import csv
import io
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")
Type: TypeAlias = builtins.type[T]


class Csv(Generic[T]):
    """Rows of CSV: dictionaries of text by column name, or converted into ``type``.

    A payload is a header line and a record, so that each can be read alone, also as a dead letter; with
    ``columns`` it is the record alone. Text is converted as the type's fields need it; a field that is empty
    and cannot be converted has its default.
    """

    @overload
    def __init__(
        self: Csv[dict[str, str]],
        type: None = None,
        *,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> None: ...

    @overload
    def __init__(
        self, type: Type[T], *, columns: Sequence[str] | None = None, delimiter: str = ","
    ) -> None: ...

    def __init__(
        self,
        type: Any = None,  # noqa: A002 - as of Json
        *,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> None:
        self._type = type
        self._columns = None if columns is None else list(columns)
        self._delimiter = delimiter

    @property
    def name(self) -> str:
        return "Csv" if self._type is None else f"Csv({getattr(self._type, '__name__', self._type)})"

    def serialize(self, values: Sequence[T]) -> Iterable[bytes]:
        """Encode rows, each with its header."""
        return map(self._encoded, values)

    def deserialize(self, payloads: Sequence[bytes]) -> Iterator[T]:
        for payload in payloads:
            rows = list(
                csv.reader(io.StringIO(payload.decode(), newline=""), delimiter=self._delimiter, strict=True)
            )
            columns = self._columns
            if columns is None and rows:
                columns = rows.pop(0)
            if columns is None or len(rows) != 1:
                raise ValueError(f"needs a header and one record, got {payload!r:.200}")
            [fields] = rows
            if len(fields) != len(columns):
                raise ValueError(f"the record has {len(fields)} fields, needed are {len(columns)}: {columns}")
            yield self._converted(dict(zip(columns, fields, strict=True)))

    def _converted(self, row: dict[str, str]) -> Any:
        if self._type is None:
            return row
        try:
            return msgspec.convert(row, self._type, strict=False)
        except msgspec.ValidationError:
            present = {name: field for name, field in row.items() if field}
            if len(present) == len(row):
                raise
            return msgspec.convert(present, self._type, strict=False)

    def _encoded(self, value: Any) -> bytes:
        row = value if isinstance(value, dict) else msgspec.to_builtins(value)
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        if self._columns is None:
            writer.writerow(row)
        writer.writerow(row.values() if self._columns is None else [row[name] for name in self._columns])
        return text.getvalue().removesuffix("\n").encode()
