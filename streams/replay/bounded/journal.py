"""What a run has completed, in its folder: a command that is repeated after a kill continues from there.

A unit of work is complete or it is done again: its tasks remember things that are in no store, such as stream
times and the times of open windows' last records, and with others the results would differ.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.records import TopicPartition
from streams.replay.bounded.bounds import Bounds, PartitionBounds
from streams.replay.bounded.counts import RunCounts
from streams.replay.bounded.spool import spooled, task_file
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streams.replay.bounded.spool import Spool
    from streams.runtime.task import TaskId

_PLAN: Final = "plan"
_NEW: Final = ".new"


@decodable
class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has begun."""

    identity: str
    """See ``run_identity``."""
    begun: int
    """Milliseconds since the epoch."""
    warmup: str
    partitions: list[tuple[str, int, int, int, int]]
    """Topic, partition, and the offsets of ``PartitionBounds``."""
    lookups: list[tuple[str, int, int]]

    @property
    def bounds(self) -> Bounds:
        """The range."""
        return Bounds(
            {
                TopicPartition(topic, number): PartitionBounds(*offsets)
                for topic, number, *offsets in self.partitions
            },
            {TopicPartition(topic, number): end for topic, number, end in self.lookups},
            self.warmup,
        )


@decodable
class _Done(msgspec.Struct, frozen=True):
    """What a unit has done: the fields of ``RunCounts``."""

    records: int
    late: dict[str, int]
    skipped: dict[str, int]
    dead_letters: int
    muted: dict[str, int]
    results: dict[str, int]
    tasks: list[str]
    """The names of its tasks' files."""


class Journal:
    """Reads and writes what the run of a spool's folder has completed."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._units = spool.folder / "done"

    def read(self) -> Begun | None:
        """The run that has begun here and is not complete; ``None`` if there is none."""
        try:
            return msgspec.json.decode((self._spool.folder / _PLAN).read_bytes(), type=Begun)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def begin(self, identity: str, begun: int, bounds: Bounds) -> None:
        """Note that a run begins, in an empty folder."""
        self._units.mkdir(parents=True, exist_ok=True)
        entry = Begun(
            identity=identity,
            begun=begun,
            warmup=bounds.warmup,
            partitions=[(*place, *offsets) for place, offsets in bounds.partitions.items()],
            lookups=[(*place, end) for place, end in bounds.lookups.items()],
        )
        _write(self._spool.folder / _PLAN, entry)

    def note(self, unit: Sequence[TaskId], counts: RunCounts) -> None:
        """Note that a unit is complete. Its files are on the disk already."""
        _write(
            self._units / task_file(unit[0]),
            _Done(
                counts.records,
                counts.late,
                counts.skipped,
                counts.dead_letters,
                counts.muted,
                counts.results,
                list(map(task_file, unit)),
            ),
        )

    def counts(self, unit: Sequence[TaskId]) -> RunCounts | None:
        """What a unit has done; ``None`` if it is not complete."""
        path = self._units / task_file(unit[0])
        if not path.exists():
            return None
        done = _read(path)
        return RunCounts(
            records=done.records,
            late=Counter(done.late),
            skipped=Counter(done.skipped),
            dead_letters=done.dead_letters,
            muted=Counter(done.muted),
            results=Counter(done.results),
        )

    @property
    def units(self) -> int:
        """How many units are complete."""
        return len(self._complete())

    def discard_incomplete(self) -> None:
        """Delete what units that are not complete have left, and everybody's state."""
        complete = {task for path in self._complete() for task in _read(path).tasks}
        shutil.rmtree(self._spool.folder / "state", ignore_errors=True)
        for kind in ("results", "internal"):
            for path in list((self._spool.folder / kind).rglob("*")):
                if path.is_file() and path.name not in complete:
                    path.unlink()

    def _complete(self) -> list[Path]:
        return [path for path in spooled(self._units) if path.suffix != _NEW]


def _read(path: Path) -> _Done:
    return msgspec.json.decode(path.read_bytes(), type=_Done)


def _write(path: Path, entry: Any) -> None:
    """Write a file that is there completely, or not at all."""
    new = path.with_suffix(_NEW)
    with new.open("wb") as file:
        file.write(msgspec.json.encode(entry))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
