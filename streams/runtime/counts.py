"""The counters of a task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(slots=True)
class Counts:
    """Counters of a task since it was created. ``seconds`` are by stage: ``decode`` and ``process``."""

    records_in: int = 0
    bytes_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    """Records written as dead letters, by step."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records skipped by policy ``skip``, by step."""
    late: Counter[str] = field(default_factory=Counter)
    """Records that were too late for a window or a join, by step."""
    retried: Counter[str] = field(default_factory=Counter)
    """Dead letters that were retried, by result (see ``retry_log.Result``)."""
    seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "process": 0.0})
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Each step's own time, waiting included, without the steps downstream of it."""
    step_records: dict[str, int] = field(default_factory=dict)
    """Records that reached each step, those of abandoned slices included."""

    def add(self, other: Counts) -> None:
        """Add the counts of another, which its worker may be changing meanwhile."""
        self.records_in += other.records_in
        self.bytes_in += other.bytes_in
        self.records_out += other.records_out
        self.bytes_out += other.bytes_out
        # A copy is made in one go; an iteration would fail where another thread adds a step.
        self.dead_letters.update(dict(other.dead_letters))
        self.skipped.update(dict(other.skipped))
        self.late.update(dict(other.late))
        self.retried.update(dict(other.retried))
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds
        for step, seconds in dict(other.step_seconds).items():
            self.step_seconds[step] = self.step_seconds.get(step, 0.0) + seconds
        for step, records in dict(other.step_records).items():
            self.step_records[step] = self.step_records.get(step, 0) + records

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """All of them together, as a new object; from any thread."""
        total = cls()
        for count in counts:
            total.add(count)
        return total
