"""Files between the stages of a bounded run: records of one topic as one task wrote them, in their order."""

from __future__ import annotations

import os
import shutil
import struct
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from streams.replay.bounded.merged import merged
from streams.replay.bounded.rows import SpooledRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streams.records import Headers, Output, TopicPartition
    from streams.runtime.task import TaskId

Phase: TypeAlias = Literal["warmup", "range"]
"""Before the range, and in it."""

FRAME_ROWS: Final = 2_000
"""How many rows are written at once; so many of each open file wait in memory."""

_LENGTH: Final = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode


_decode = msgspec.msgpack.Decoder(SpooledRows).decode


class SpoolFile:
    """Appends records to one file, which is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._timestamps: list[int] = []
        self._headers: list[Headers | None] = []
        self._partitions: list[int | None] = []
        self._has_headers = self._has_partitions = False
        self.rows = 0
        """How many records were appended."""

    def append(self, output: Output, keyless: int | None = None) -> None:
        """Append the output's rows; to those without key and chosen partition, write the one given here."""
        keys = output.keys
        partitions: Sequence[int | None] = output.partitions or [output.partition] * len(output)
        if output.headers is not None:
            self._has_headers = True
        if output.partitions is not None or output.partition is not None:
            self._has_partitions = True
        if keyless is not None and None in keys:
            self._has_partitions = True
            partitions = [
                keyless if key is None and chosen is None else chosen
                for key, chosen in zip(keys, partitions, strict=True)
            ]
        self._keys += keys
        self._values += output.values
        self._timestamps += output.timestamps
        self._headers += output.headers or [None] * len(output)
        self._partitions += partitions
        self.rows += len(output)
        if len(self._values) >= FRAME_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        if not self._values:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        # A column without content takes no space.
        frame = _encode(
            (
                self._keys,
                self._values,
                self._timestamps,
                self._headers if self._has_headers and any(self._headers) else None,
                self._partitions if self._has_partitions else None,
            )
        )
        self._file.write(_LENGTH.pack(len(frame)))
        self._file.write(frame)
        self._keys, self._values, self._timestamps = [], [], []
        self._headers, self._partitions = [], []
        self._has_headers = self._has_partitions = False

    def close(self) -> None:
        """Write everything, to the disk itself, and close the file."""
        self.flush()
        if self._file is not None:
            # A unit that is noted as complete must be so after a power failure too.
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def read_spool(path: Path) -> Iterator[SpooledRows]:
    """The records of a file in pieces; none if there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while head := file.read(_LENGTH.size):
            yield _decode(file.read(_LENGTH.unpack(head)[0]))


class Spool:
    """The folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def internal(self, phase: Phase, place: TopicPartition) -> Path:
        """Where records of a partition of a repartition topic are, a file for each task that wrote some."""
        return self.folder / "internal" / phase / place.topic / str(place.partition)

    def forget_internal(self, topic: str) -> None:
        """Delete the records of a repartition topic."""
        for phase in ("warmup", "range"):
            shutil.rmtree(self.folder / "internal" / phase / topic, ignore_errors=True)

    def results(self, topic: str) -> Path:
        """Where the results for a topic are, a file for each task that wrote some."""
        return self.folder / "results" / topic

    @property
    def topics(self) -> list[str]:
        """The topics that it has results for."""
        return [path.name for path in spooled(self.folder / "results")]

    def read_results(self, topic: str) -> Iterator[SpooledRows]:
        """A topic's results, of all tasks by event time."""
        yield from merged([read_spool(path) for path in spooled(self.results(topic))])

    def state(self, unit: str) -> Path:
        """Where the stores of a unit are while it runs."""
        return self.folder / "state" / unit

    def clear(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def task_file(task: TaskId) -> str:
    """The name of a task's files, by which they sort as tasks do."""
    return f"{task.subtopology:04d}_{task.partition:06d}"


def spooled(folder: Path) -> list[Path]:
    """The files of a folder, in the order of the tasks that wrote them."""
    return sorted(folder.iterdir()) if folder.exists() else []
