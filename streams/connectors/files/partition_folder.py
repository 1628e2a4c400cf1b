"""The files of one input partition in a sink's folder: who may add one, and how far they reach.

A file appears under its name in one step, by a hard link to a complete temporary file. Temporary files are in
a folder of their owner, ``_streams/<topic>-<partition>/owner-…``. A new owner creates its own folder and then
removes those of all others: from then on a replaced worker (a *zombie*) has nothing that it could link, and
cannot create anything, however long it was frozen. Only then does the new owner read the position. When two
claim at the same time, both may be removed and claim again, but never do both stay.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from streams.errors import ConnectorError, SinkFenced, SinkMismatch, StateError
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from streams.records import TopicPartition

CONTROL: Final = "_streams"
"""The folder of everything but data. Readers of data sets leave out names that begin with ``_``."""

_NAME: Final = re.compile(r"(?P<place>.+-\d+)-(?P<start>\d{20})-(?P<end>\d{20})(?P<suffix>\.\w+)", re.DOTALL)


class FileRange(NamedTuple):
    """The offsets of a file: from ``start`` up to, without, ``end``."""

    start: int
    end: int
    name: str


@decodable
class Position(msgspec.Struct, frozen=True):
    """What is recorded beside the names, for ranges without a row, and for files that were taken away."""

    topic_id: str
    next_offset: int


def file_name(partition: TopicPartition, start: int, end: int, suffix: str) -> str:
    """The name of a file; the offsets sort as numbers do."""
    return f"{partition}-{start:020d}-{end:020d}{suffix}"


def ranges_by_partition(folder: Path, suffix: str) -> dict[str, list[FileRange]]:
    """The ranges of a folder's files, by ``<topic>-<partition>``, in their order."""
    found: dict[str, list[FileRange]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is not None and name["suffix"] == suffix:
                one = FileRange(int(name["start"]), int(name["end"]), entry.name)
                found.setdefault(name["place"], []).append(one)
    for ranges in found.values():
        ranges.sort()
    return found


@dataclass(slots=True)
class PartitionFolder:
    """One owner's view of a partition. Every method may raise ``OSError``."""

    folder: Path
    partition: TopicPartition
    suffix: str
    position: int
    _topic_id: str
    _control: Path
    _own: Path

    @classmethod
    def claim(cls, folder: Path, partition: TopicPartition, topic_id: str, suffix: str) -> PartitionFolder:
        """Replace every other owner. Raises ``SinkMismatch``, and ``ConnectorError`` if files overlap."""
        control = folder / CONTROL / str(partition)
        own = control / f"owner-{uuid.uuid4().hex}"
        own.mkdir(parents=True)
        claimed = cls(folder, partition, suffix, 0, topic_id, control, own)
        try:
            claimed._replace_others()
            claimed._read_position()
        except BaseException:
            claimed.close()
            raise
        return claimed

    def prepare(self, end: int, content: Iterable[bytes]) -> Path:
        """Write a temporary file to the disk, for the offsets from the position to ``end``.

        Raises ``SinkFenced`` if another owner has claimed the partition.
        """
        path = self._own / file_name(self.partition, self.position, end, self.suffix)
        self._write(path, content)
        return path

    def publish(self, prepared: Path) -> None:
        """Give a prepared file its name: the commit. Raises ``SinkFenced``; then it is not committed."""
        try:
            os.link(prepared, self.folder / prepared.name)
        except FileNotFoundError:
            raise self._fenced() from None
        except FileExistsError:
            raise ConnectorError(
                f"{self.folder / prepared.name} exists, and is not a file of this sink",
                hint="move it to another folder",
            ) from None
        sync_folder(self.folder)
        prepared.unlink(missing_ok=True)

    def move(self, end: int) -> None:
        """Record a position. Raises ``SinkFenced``; then it is not recorded."""
        self.position = end
        temporary = self._own / "position"
        content = msgspec.json.encode(Position(self._topic_id, end))
        self._write(temporary, [content])
        try:
            temporary.rename(self._control / "position")
        except FileNotFoundError:
            raise self._fenced() from None
        sync_folder(self._control)

    def still_owned(self) -> bool:
        """Whether no other owner has claimed the partition since."""
        return self._own.is_dir()

    def close(self) -> None:
        """Remove what is temporary. Never raises."""
        with suppress(OSError):
            _remove(self._own)

    def _write(self, path: Path, content: Iterable[bytes]) -> None:
        try:
            write_durably(path, content)
        except FileNotFoundError:
            raise self._fenced() from None

    def _replace_others(self) -> None:
        for other in self._control.glob("owner-*"):
            if other != self._own:
                _remove(other)

    def _read_position(self) -> None:
        ranges = ranges_by_partition(self.folder, self.suffix).get(str(self.partition), [])
        for before, after in pairwise(ranges):
            if after.start < before.end:
                raise ConnectorError(
                    f"two files of {self.folder} have the same offsets: {before.name} and {after.name}",
                    hint="they are of different sinks or copies: move one of them to another folder",
                )
        recorded = self._recorded()
        if recorded is not None and recorded.topic_id != self._topic_id:
            raise SinkMismatch(
                f"the files of {self.partition} in {self.folder} reach offset {recorded.next_offset} of the "
                f"topic with the id {recorded.topic_id}, but the topic of that name now has the id "
                f"{self._topic_id}",
                hint="the topic was deleted and created again: write to another folder, or move these files "
                f"and {self._control} away to read the topic from its beginning",
            )
        named = ranges[-1].end if ranges else 0
        self.position = max(named, 0 if recorded is None else recorded.next_offset)
        if recorded is None or recorded.next_offset != self.position:
            self.move(self.position)

    def _recorded(self) -> Position | None:
        path = self._control / "position"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Position)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise StateError(
                f"{path} is damaged: {error}",
                hint="if no files were taken out of the folder, remove it: the names of the files have "
                "the position too",
            ) from error

    def _fenced(self) -> SinkFenced:
        return SinkFenced(f"another worker has claimed {self.partition} in {self.folder}")


def write_durably(path: Path, content: Iterable[bytes]) -> None:
    """Write a file, and its content to the disk."""
    with path.open("wb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write names that were added to a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(owner: Path) -> None:
    """Remove a folder in which its owner may still create files: it is tried until it succeeds."""
    while True:
        with suppress(FileNotFoundError):
            for path in list(owner.iterdir()):
                path.unlink(missing_ok=True)
        try:
            owner.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
