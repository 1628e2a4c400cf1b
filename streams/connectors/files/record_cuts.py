"""Where a record ends in the bytes of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_QUOTED: Final = 1 << 20
"""The longest record of several lines, in bytes: a quote that is never closed must not swallow the rest."""


class Cut(NamedTuple):
    """The complete records at the beginning of a chunk, and how many bytes they and their line ends have."""

    records: Sequence[bytes]
    lines: Sequence[int]
    """The number of lines of the records before each record."""
    line_count: int
    size: int


class Cutter(Protocol):
    """Finds the complete records in a chunk that begins with a record."""

    @property
    def has_header(self) -> bool:
        """Whether the first record of a file is its header, which the others need to be read."""

    def cut(self, chunk: bytes) -> Cut: ...


@dataclass(frozen=True, slots=True)
class LineCutter:
    """A record is a line."""

    has_header: bool = False

    def cut(self, chunk: bytes) -> Cut:
        size = chunk.rfind(b"\n") + 1
        if not size:
            return Cut((), (), 0, 0)
        lines = chunk[: size - 1].split(b"\n")
        return Cut(lines, range(len(lines)), len(lines), size)


@dataclass(frozen=True, slots=True)
class CsvCutter:
    """A record is a line, and further ones while a quoted field is open."""

    has_header: bool

    def cut(self, chunk: bytes) -> Cut:
        simple = LineCutter().cut(chunk)
        if b'"' not in chunk:
            return simple
        records: list[bytes] = []
        starts: list[int] = []
        at = size = 0
        lines = simple.records
        while at < len(lines):
            end, quotes, length = at, 0, 0
            while end < len(lines):
                quotes += lines[end].count(b'"')
                length += len(lines[end]) + 1
                end += 1
                if not quotes % 2 or length > LONGEST_QUOTED:
                    break
            if quotes % 2:
                if length <= LONGEST_QUOTED:
                    # Its end is not in the chunk.
                    break
                end, length = at + 1, len(lines[at]) + 1
            records.append(b"\n".join(lines[at:end]))
            starts.append(at)
            size += length
            at = end
        return Cut(records, starts, at, size)
