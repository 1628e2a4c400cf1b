"""Values as lines of JSON, as DuckDB, Spark, jq and most other programs read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.files.sink_folder import FolderWriter, check_folder
from streams.connectors.sink import RefusedRow
from streams.serde import Json

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from streams.connectors.sink import SinkContext, SinkRows

SUFFIX: Final = ".jsonl"

_JSON: Final = Json()
_DELETION: Final = ValueError(
    "a line without its key cannot delete a row: use metadata=True, or leave deletions out upstream"
)


@dataclass(frozen=True, slots=True)
class JsonLinesSink:
    """A folder of JSON-lines files, each with the values of one partition and transaction, exactly once.

    With ``metadata`` a line is an object with ``key``, ``value``, ``timestamp`` and ``offset``; without it a
    line is the value, and deletions (``None``) are refused, as a line without a key cannot say what
    is deleted.
    """

    folder: str | os.PathLike[str]
    metadata: bool = field(default=False, kw_only=True)
    max_rows: int = field(default=100_000, kw_only=True)

    @property
    def kind(self) -> str:
        """The system."""
        return "jsonl"

    @property
    def target(self) -> str:
        """What it writes to."""
        return Path(self.folder).name

    def check(self, context: SinkContext) -> None:
        """Create the folder, and check that it is this sink's."""
        check_folder(Path(self.folder), context, SUFFIX)

    def open(self, context: SinkContext) -> FolderWriter:  # noqa: ARG002 - the protocol's
        """Open the folder."""
        return FolderWriter(Path(self.folder), JsonLinesEncoder(metadata=self.metadata))


@dataclass(frozen=True, slots=True)
class JsonLinesEncoder:
    """Turns rows into lines."""

    metadata: bool

    @property
    def suffix(self) -> str:
        return SUFFIX

    def encode(self, rows: SinkRows) -> tuple[Sequence[bytes], list[RefusedRow]]:
        refused: list[RefusedRow] = []
        values: Sequence[Any] = self._objects(rows) if self.metadata else rows.values
        numbers: Sequence[int] = range(len(values))
        if NoneType in set(map(type, values)):
            refused += [RefusedRow(rows.partition, row, _DELETION) for row in numbers if values[row] is None]
            numbers = [row for row in numbers if values[row] is not None]
            values = [values[row] for row in numbers]
        lines: list[bytes] = []
        start = 0
        while start < len(values):
            before = len(lines)
            try:
                # What was encoded before a value that fails is kept.
                lines.extend(_JSON.serialize(values[start:]))
                break
            except Exception as error:  # noqa: BLE001 - the error is the value's, which is refused
                start += len(lines) - before
                refused.append(RefusedRow(rows.partition, numbers[start], error))
                start += 1
        refused.sort(key=lambda row: row.row)
        return [b"%b\n" % line for line in lines], refused

    def _objects(self, rows: SinkRows) -> list[dict[str, Any]]:
        return [
            {"key": key, "value": value, "timestamp": timestamp, "offset": offset}
            for key, value, timestamp, offset in zip(
                rows.keys, rows.values, rows.timestamps, rows.offsets, strict=True
            )
        ]
