"""Files between the stages of a bounded run: records of one topic as one task wrote them, in their order."""

from __future__ import annotations

import os
import shutil
import struct
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from streams.replay.bounded.merged import merged
from streams.replay.bounded.places import Places, apart
from streams.replay.bounded.rows import SpooledRows, joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streams.records import Output, TopicPartition
    from streams.runtime.task import TaskId

T = TypeVar("T")

Phase: TypeAlias = Literal["warmup", "range"]
"""Before the range, and in it."""

FRAME_ROWS: Final = 2_000
"""About how many rows are written at once; as many of each open file wait in memory."""

FRAME_BYTES: Final = 2_000_000
"""Fewer are written at once if they have more bytes."""

_LENGTH: Final = struct.Struct(">I")
_END: Final = _LENGTH.pack(0)
"""Follows the last frame. After it come the partitions that the rows are for, and the length of these."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SpooledRows).decode
_decode_places = msgspec.msgpack.Decoder(list[int] | None).decode


class SpoolFile:
    """Appends records to one file, which is made with the first of them.

    With the number of ``partitions`` of their topic, the file says which of these its records are for.
    """

    def __init__(self, path: Path, partitions: int | None = None) -> None:
        self._path = path
        self._file: Any = None
        self._waiting: list[SpooledRows] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._places = None if partitions is None else Places(partitions)
        self.rows = 0
        """How many records were appended."""

    def append(self, output: Output, keyless: int | None = None) -> None:
        """Append the output's rows; to those without key and chosen partition, write the one given here."""
        keys, count = output.keys, len(output)
        partitions: Sequence[int | None] | None = output.partitions
        if partitions is None and output.partition is not None:
            partitions = [output.partition] * count
        # Most outputs have keys that were seen before, and are looked through only once.
        if partitions is not None or self._places is None or not self._places.knows(keys):
            if keyless is not None and None in keys:
                partitions = [
                    keyless if key is None and chosen is None else chosen
                    for key, chosen in zip(keys, partitions or [None] * count, strict=True)
                ]
            if self._places is not None:
                self._places.note(keys, partitions)
        headers = output.headers
        rows = SpooledRows(
            _listed(keys),
            _listed(output.values),
            _listed(output.timestamps),
            # A column without content takes no space.
            None if headers is None or not any(headers) else _listed(headers),
            None if partitions is None else _listed(partitions),
        )
        self.rows += count
        self._waiting.append(rows)
        self._waiting_rows += count
        if self._waiting_rows < FRAME_ROWS:
            self._waiting_bytes += rows.payload_bytes
        if self._waiting_rows >= FRAME_ROWS or self._waiting_bytes >= FRAME_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        if self._waiting:
            rows = joined(self._waiting)
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
            for start in range(0, len(rows), FRAME_ROWS):
                self._write(rows.cut(start, start + FRAME_ROWS))

    def _write(self, rows: SpooledRows) -> None:
        frame = _encode(rows)
        if len(frame) > FRAME_BYTES and len(rows) > 1:
            middle = len(rows) // 2
            self._write(rows.cut(0, middle))
            self._write(rows.cut(middle, len(rows)))
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        self._file.write(_LENGTH.pack(len(frame)))
        self._file.write(frame)

    def close(self) -> None:
        """Write everything, to the disk itself, and close the file."""
        self.flush()
        if self._file is not None:
            places = _encode(None if self._places is None else self._places.found)
            self._file.write(_END + places + _LENGTH.pack(len(places)))
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
        while (head := file.read(_LENGTH.size)) != _END:
            yield _decode(file.read(_LENGTH.unpack(head)[0]))


def read_places(path: Path) -> list[int] | None:
    """The partitions that the records of a file are for; ``None``: any of their topic."""
    with path.open("rb") as file:
        file.seek(-_LENGTH.size, os.SEEK_END)
        size = _LENGTH.unpack(file.read())[0]
        file.seek(-_LENGTH.size - size, os.SEEK_END)
        places: list[int] | None = _decode_places(file.read(size))
    return places


def _listed(column: Sequence[T]) -> list[T]:
    return column if type(column) is list else list(column)


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

    def read_apart(self, topic: str) -> Iterator[tuple[int | None, Iterator[SpooledRows]]]:
        """A topic's results, those for different partitions one after the other where this is known.

        In each partition the records are in the same order as in ``read_results``. The number is that of the
        only partition that the records are for, if they all are for one.
        """
        places = {path: read_places(path) for path in spooled(self.results(topic))}
        for group in apart(places):
            found = places[group[0]]
            only = found[0] if found is not None and len(found) == len(group) == 1 else None
            yield only, merged([read_spool(path) for path in group])

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
