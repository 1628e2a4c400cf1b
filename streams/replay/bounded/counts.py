"""What a bounded run has done, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


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
