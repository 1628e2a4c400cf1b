"""One file that is read while others write, rename, truncate and delete it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from streams.connectors.files.record_cuts import Cut
from streams.errors import ConnectorError
from streams.ingest.lines import LONGEST_LINE

if TYPE_CHECKING:
    from streams.connectors.files.record_cuts import Cutter

CHUNK_BYTES: Final = 1 << 18
"""The size of a read, so that a batch has some thousand lines."""

SAMPLE_BYTES: Final = 1024
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class FilePosition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a file was read, and how it is recognised: by its number on the device, and by its content.

    A number is used again after a file was deleted, and a file that was truncated keeps its own; so the
    fingerprint of what was read decides.
    """

    path: str
    device: int
    inode: int
    offset: int
    """Where the next record begins."""
    line: int
    """The number of lines before."""
    fingerprint: str
    ended: bool = False
    """Whether nothing followed at that time."""


class FileRecords(NamedTuple):
    """Complete records of a file."""

    values: list[bytes]
    line_numbers: list[int]


class Truncated(Exception):
    """What was read of the file is no longer in it."""


class Replaced(Exception):
    """The file of that name is another one now."""


class Sample(NamedTuple):
    """The beginning and the end of what was read of a file, by which its content is recognised."""

    head: bytes = b""
    tail: bytes = b""

    @classmethod
    def of(cls, descriptor: int, offset: int) -> Sample:
        """The sample of a file's content before an offset."""
        size = min(offset, SAMPLE_BYTES)
        return cls(os.pread(descriptor, size, 0), os.pread(descriptor, size, offset - size))

    def followed_by(self, content: bytes) -> Sample:
        """The sample when ``content`` was read too."""
        head = self.head
        if len(head) < SAMPLE_BYTES:
            head += content[: SAMPLE_BYTES - len(head)]
        return Sample(head, (self.tail + content[-SAMPLE_BYTES:])[-SAMPLE_BYTES:])

    def fingerprint(self) -> str:
        return hashlib.blake2b(self.head + self.tail, digest_size=12).hexdigest()


_NOTHING: Final = Sample()


@dataclass(slots=True)
class FollowedFile:
    """A file that is read from a position on, record by record. Every method may raise ``OSError``."""

    path: str
    device: int
    inode: int
    offset: int = 0
    line: int = 0
    ended: bool = False
    exhausted: bool = False
    """Whether the last read returned nothing."""
    _sample: Sample = _NOTHING
    _header: bytes | None = None
    _descriptor: int | None = None

    @classmethod
    def at(cls, position: FilePosition, path: str, device: int, inode: int) -> FollowedFile:
        """Continue where a position says, in a file that has its content but maybe another name.

        Raises ``Truncated`` if the file does not have the content that was read.
        """
        file = cls(path, device, inode, position.offset, position.line)
        file._sample = Sample.of(file.descriptor(), position.offset)
        if file._sample.fingerprint() != position.fingerprint:
            file.close()
            raise Truncated(path)
        return file

    @property
    def is_open(self) -> bool:
        return self._descriptor is not None

    @property
    def position(self) -> FilePosition:
        return FilePosition(
            path=self.path,
            device=self.device,
            inode=self.inode,
            offset=self.offset,
            line=self.line,
            fingerprint=self._sample.fingerprint(),
            ended=self.ended,
        )

    def descriptor(self) -> int:
        """Open the file, if it is not yet. Raises ``Replaced``."""
        if self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (self.device, self.inode):
                os.close(descriptor)
                raise Replaced(self.path)
            self._descriptor = descriptor
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, cutter: Cutter, *, rest: bool) -> FileRecords | None:
        """The next complete records; ``None`` if there are none yet. With ``rest`` the last one needs no end.

        Raises ``Truncated`` if what was read before is no longer there.
        """
        descriptor = self.descriptor()
        length = CHUNK_BYTES
        while True:
            chunk = os.pread(descriptor, length, self.offset)
            # Afterwards, so that the chunk is certainly of the same content.
            if Sample.of(descriptor, self.offset) != self._sample:
                raise Truncated(self.path)
            at_end = len(chunk) < length
            cut = cutter.cut(chunk)
            if not cut.records and len(chunk) > LONGEST_LINE:
                raise ConnectorError(
                    f"line {self.line + 1} of {self.path} has more than {LONGEST_LINE:,} bytes",
                    hint="remove the line, or divide it",
                )
            if not cut.records and at_end and rest and chunk:
                cut = Cut([chunk], [0], chunk.count(b"\n") + 1, len(chunk))
            if cut.records:
                return self._advance(cutter, chunk, cut, at_end=at_end)
            if at_end:
                self.ended = not chunk
                self.exhausted = True
                return None
            length *= 2

    def _advance(self, cutter: Cutter, chunk: bytes, cut: Cut, *, at_end: bool) -> FileRecords:
        first = self.line + 1
        values = [record.removesuffix(b"\r") for record in cut.records]
        numbers = [first + start for start in cut.lines]
        if self.offset == 0:
            values[0] = values[0].removeprefix(BYTE_ORDER_MARK)
        if cutter.has_header:
            if self.offset == 0:
                self._header = values.pop(0)
                del numbers[0]
            elif self._header is None:
                self._header = self._read_header(cutter)
        if not all(values):
            # Empty lines are no records.
            numbers = [number for number, value in zip(numbers, values, strict=True) if value]
            values = [value for value in values if value]
        if self._header is not None:
            values = [b"%b\n%b" % (self._header, value) for value in values]
        self._sample = self._sample.followed_by(chunk[: cut.size])
        self.offset += cut.size
        self.line += cut.line_count
        self.exhausted = False
        self.ended = at_end and cut.size == len(chunk)
        return FileRecords(values, numbers)

    def _read_header(self, cutter: Cutter) -> bytes:
        """The first record of a file that is continued."""
        [header, *_] = cutter.cut(os.pread(self.descriptor(), min(self.offset, LONGEST_LINE), 0)).records
        return header.removesuffix(b"\r").removeprefix(BYTE_ORDER_MARK)
