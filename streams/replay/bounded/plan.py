"""What a bounded run does, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streams.replay.bounded.journal import Journal
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
    identity: str | None = None
    """What an interrupted run must have in common with this one to be continued; ``None``: none is."""
    begun: int = 0
    """When the run began, in milliseconds since the epoch."""
    continues: int = 0
    """How many units an interrupted run has completed, which this one continues."""

    @property
    def spool(self) -> Spool:
        """The folder, as it is used."""
        return Spool(Path(self.folder))

    @property
    def journal(self) -> Journal:
        """What is completed."""
        return Journal(self.spool)
