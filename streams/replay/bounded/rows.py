"""Records as columns, between the stages of a replay."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from streams.records import total_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class SpooledRows(NamedTuple):
    """Records as columns. ``partitions`` has numbers for the records whose partition is not their key's."""

    keys: list[bytes | None]
    values: list[bytes | None]
    timestamps: list[int]
    headers: list[list[tuple[str, bytes | None]] | None] | None
    partitions: list[int | None] | None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def payload_bytes(self) -> int:
        """The bytes of keys and values."""
        return total_bytes(self.keys) + total_bytes(self.values)

    def cut(self, start: int, stop: int) -> SpooledRows:
        """The records from ``start`` up to, without, ``stop``."""
        return SpooledRows(*(None if column is None else column[start:stop] for column in self))  # type: ignore[arg-type]  # columns stay columns


def joined(pieces: Sequence[SpooledRows]) -> SpooledRows:
    """All records, in this order."""
    if len(pieces) == 1:
        return pieces[0]
    headers = [piece.headers or [None] * len(piece) for piece in pieces]
    partitions = [piece.partitions or [None] * len(piece) for piece in pieces]
    return SpooledRows(
        [*chain.from_iterable(piece.keys for piece in pieces)],
        [*chain.from_iterable(piece.values for piece in pieces)],
        [*chain.from_iterable(piece.timestamps for piece in pieces)],
        [*chain.from_iterable(headers)] if any(piece.headers for piece in pieces) else None,
        [*chain.from_iterable(partitions)] if any(piece.partitions for piece in pieces) else None,
    )


def resized(pieces: Iterable[SpooledRows], size: int, bytes_: int) -> Iterator[SpooledRows]:
    """The same records in pieces of ``size``, or of fewer with ``bytes_`` bytes; the last is smaller."""
    waiting: list[SpooledRows] = []
    count = total = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        total += piece.payload_bytes
        if count < size and total < bytes_:
            continue
        together = joined(waiting)
        stop = count if total >= bytes_ else count - count % size
        for start in range(0, stop, size):
            yield together.cut(start, min(start + size, stop))
        left = together.cut(stop, count)
        waiting, count, total = ([left], len(left), left.payload_bytes) if len(left) else ([], 0, 0)
    if waiting:
        yield joined(waiting)
