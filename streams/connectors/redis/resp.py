"""Commands in the protocol's form (RESP), packed a column at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def packed(*words: bytes) -> bytes:
    """A command."""
    return b"*%d\r\n%b" % (len(words), strings(words))


def strings(words: Iterable[bytes]) -> bytes:
    """The words of a command."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def packed_column(before: Sequence[bytes], column: Iterable[bytes]) -> list[bytes]:
    """A command for each of the column's values, which is the command's last word."""
    head = b"*%d\r\n%b" % (len(before) + 1, strings(before))
    return [b"%b$%d\r\n%b\r\n" % (head, len(value), value) for value in column]
