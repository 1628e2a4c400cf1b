"""Read the lines of files, pipes and devices as they arrive, with bounded memory."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES: Final = 1 << 20
"""The size of a read."""

LONGEST_LINE: Final = 16 << 20
"""The maximum length of a line in bytes, as a device may never end one. Longer lines are only reported."""

STANDARD_INPUT: Final = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}


class Lines(NamedTuple):
    """The lines of one read."""

    first: int
    """The number of the first line, counted from 1."""
    values: list[bytes]
    """The complete lines, without line ends."""
    size: int
    """The number of bytes read."""
    milliseconds: int
    """When they arrived, in milliseconds since the epoch."""
    too_long: int = 0
    """The length of the line before these, if it exceeded ``LONGEST_LINE``; else 0."""


class LineReader:
    r"""Reads lines that end with ``\n`` or ``\r\n``; the last line may have no end. Bytes are not decoded.

    Pipes, terminals and other devices are read as data arrives. It is a context manager, which closes what it
    opened. Raises ``ConfigurationError`` if it cannot be opened or read.
    """

    def __init__(self, descriptor: int, name: str, *, owned: bool = False) -> None:
        self.name = name
        self._descriptor = descriptor
        self._owned = owned
        try:
            status = os.fstat(descriptor)
        except OSError as error:
            raise _unreadable(name, error) from error
        self.is_file = stat.S_ISREG(status.st_mode)
        """Whether it is a regular file, which can be read again, unlike a pipe."""
        self.size = status.st_size if self.is_file else None
        """The size in bytes, ``None`` if it is not a regular file."""
        self.lines = 0
        """The number of lines read so far."""
        self._pieces: list[bytes] = []
        self._length = 0
        self._ended = False

    @classmethod
    def open(cls, name: str) -> Self:
        """Open a file, device or named pipe, or standard input (``-``)."""
        if name in STANDARD_INPUT:
            return cls(0, "standard input")
        try:
            # Without O_NONBLOCK, opening a named pipe blocks until another process opens it for writing.
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error
        reader = cls(descriptor, name, owned=True)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            reader.close()
            raise ConfigurationError(f"{name!r} is a folder", hint="give the files in it")
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what ``open`` opened."""
        if self._owned:
            self._owned = False
            os.close(self._descriptor)

    def read(self, timeout: float) -> Lines | None:
        """Return the next lines as soon as any arrive within ``timeout`` seconds; ``None`` at the end."""
        if self._ended:
            return None
        try:
            chunk = self._chunk(timeout)
        except OSError as error:
            raise _unreadable(self.name, error) from error
        if chunk is None:
            return Lines(self.lines + 1, [], 0, _now())
        if not chunk:
            self._ended = True
            return self.rest()
        return self._lines(chunk)

    def rest(self) -> Lines | None:
        """The incomplete last line; ``None`` if there is none."""
        if not self._length:
            return None
        line, length = self._taken()
        self.lines += 1
        if length > LONGEST_LINE:
            return Lines(self.lines + 1, [], 0, _now(), length)
        return Lines(self.lines, [line.removesuffix(b"\r")], 0, _now())

    def _chunk(self, timeout: float) -> bytes | None:
        """The next bytes; empty at the end, ``None`` if none arrived in time."""
        if not self.is_file:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return None
        try:
            return os.read(self._descriptor, CHUNK_BYTES)
        except BlockingIOError:
            # Another process reads from it too, and was faster.
            return None
        except OSError as error:
            # EIO is the end of a terminal that was closed.
            if error.errno == errno.EIO and not self.is_file:
                return b""
            raise

    def _lines(self, chunk: bytes) -> Lines:
        if b"\n" not in chunk:
            self._keep(chunk)
            return Lines(self.lines + 1, [], len(chunk), _now())
        values = chunk.split(b"\n")
        last = values.pop()
        self._keep(values[0])
        values[0], length = self._taken()
        too_long = length if length > LONGEST_LINE else 0
        if too_long:
            del values[0]
            self.lines += 1
        if last:
            self._keep(last)
        first = self.lines + 1
        self.lines += len(values)
        if b"\r" in chunk or (values and values[0].endswith(b"\r")):
            values = [value.removesuffix(b"\r") for value in values]
        return Lines(first, values, len(chunk), _now(), too_long)

    def _keep(self, piece: bytes) -> None:
        self._length += len(piece)
        if self._length > LONGEST_LINE:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _taken(self) -> tuple[bytes, int]:
        """The line kept so far and its length; the content of a line that is too long is discarded."""
        line, length = b"".join(self._pieces), self._length
        self._pieces.clear()
        self._length = 0
        return line, length


def read_lines(name: str) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number, counted from 1.

    Raises ``ConfigurationError``, also for a line that is too long.
    """
    with LineReader.open(name) as reader:
        while (lines := reader.read(1.0)) is not None:
            if lines.too_long:
                raise ConfigurationError(
                    f"line {lines.first - 1} of {reader.name} has {lines.too_long:,} bytes",
                    hint=f"the limit is {LONGEST_LINE:,} bytes per line",
                )
            yield from enumerate(lines.values, lines.first)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _unreadable(name: str, error: Exception) -> ConfigurationError:
    if isinstance(error, FileNotFoundError):
        return ConfigurationError(f"file {name!r} does not exist")
    why = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigurationError(f"{name!r} cannot be read: {why}")
