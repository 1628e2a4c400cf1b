"""What a bounded run does, and what it has done, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from streams.replay.bounded.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.replay.bounded.bounds import Bounds
    from streams.replaying import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a bounded run does, as plain data that its processes share."""

    replay: Replay
    bounds: Bounds
    partitions: Mapping[str, int]
    """The partition counts of all input topics, internal ones included."""
    outputs: Mapping[str, int]
    """Those of the topics that are written to; of topics that a function names, the largest input's."""
    folder: str
    max_records: float | None = None
    """How many records a second each process may read, and how many bytes."""
    max_bytes: float | None = None

    @property
    def spool(self) -> Spool:
        """The folder, as it is used."""
        return Spool(Path(self.folder))


@dataclass
class RunCounts:
    """What a run, or a part of it, has done."""

    records: int = 0
    late: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0
    muted: Counter[str] = field(default_factory=Counter)
    """Rows for sink connectors that were left out, by the connector's store."""
    results: Counter[str] = field(default_factory=Counter)
    """Records written, by topic."""

    def add(self, other: RunCounts) -> None:
        self.records += other.records
        self.dead_letters += other.dead_letters
        for mine, more in (
            (self.late, other.late),
            (self.skipped, other.skipped),
            (self.muted, other.muted),
            (self.results, other.results),
        ):
            mine.update(more)
