"""The result of a comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

DifferenceKind: TypeAlias = Literal["missing", "extra", "different", "duplicate"]
"""The target lacks the row, has one that the source lacks, another one, or several."""


@dataclass(frozen=True, slots=True)
class ColumnDifference:
    """A column's values, as text, ``None`` for NULL. A long text ends in ``…``, a masked one is ``***``."""

    column: str
    source: str | None
    target: str | None

    def __str__(self) -> str:
        return f"{self.column} is {_shown(self.source)} in the source, {_shown(self.target)} in the target"


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose rows differ. ``columns`` are those that differ, if both tables have one row."""

    kind: DifferenceKind
    key: Mapping[str, str]
    columns: tuple[ColumnDifference, ...]
    source_rows: int
    target_rows: int

    def __str__(self) -> str:
        key = ", ".join(f"{name}={_shown(text)}" for name, text in self.key.items())
        if self.kind == "duplicate":
            return f"duplicate {key}: {self.source_rows} in the source, {self.target_rows} in the target"
        return f"{self.kind} {key}" + ": " * bool(self.columns) + "; ".join(map(str, self.columns))

    def fields(self) -> dict[str, Any]:
        """The difference as JSON can hold it."""
        return {
            "kind": self.kind,
            "key": dict(self.key),
            "columns": {item.column: {"source": item.source, "target": item.target} for item in self.columns},
            "source_rows": self.source_rows,
            "target_rows": self.target_rows,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    ``unsettled`` are keys whose rows changed all the time, or which the target could not reach in time:
    neither equal nor different. ``complete`` is false if it stopped at the limit of differences.
    """

    source: str
    target: str
    source_rows: int
    target_rows: int
    differences: tuple[Difference, ...]
    unsettled: tuple[Mapping[str, str], ...]
    complete: bool
    not_compared: tuple[str, ...]
    """Columns of the source that the target does not have, or that were not chosen."""
    reread_keys: int
    """Keys that were read again, as they were different at first: changes on their way."""
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether all rows are known to be equal."""
        return self.complete and not self.differences and not self.unsettled

    def __str__(self) -> str:
        rows = f"{self.source_rows:,} rows of {self.source}, {self.target_rows:,} of {self.target}"
        found = "equal" if self.equal else f"{len(self.differences):,} differences"
        if not self.complete:
            found = f"stopped after {found}"
        if self.unsettled:
            found += f", {len(self.unsettled):,} keys undecided"
        return f"{found}: {rows}, {self.seconds:.1f} s"

    def fields(self) -> dict[str, Any]:
        """The summary as JSON can hold it, without the differences."""
        return {
            "equal": self.equal,
            "complete": self.complete,
            "source": self.source,
            "target": self.target,
            "source_rows": self.source_rows,
            "target_rows": self.target_rows,
            "differences": len(self.differences),
            "unsettled": [dict(key) for key in self.unsettled],
            "not_compared": list(self.not_compared),
            "reread_keys": self.reread_keys,
            "seconds": round(self.seconds, 3),
        }


def _shown(text: str | None) -> str:
    return "null" if text is None else json.dumps(text, ensure_ascii=False)
