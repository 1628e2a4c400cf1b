"""Merges what several tasks wrote to one partition, in an order that depends on the records alone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, chain
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from streams.replay.bounded.rows import SpooledRows, joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WAITING_ROWS: Final = 40_000
"""How many records of all tasks wait in memory, about."""

WAITING_BYTES: Final = 40_000_000
"""How many bytes these have at most, but for a frame of each task."""


class _Lane:
    """The records of one task that wait, with the highest event time so far of each.

    The lowest of the first records comes first, and records of one task keep their order: so a late record
    follows its predecessor, just as if it had its time.
    """

    def __init__(self, rank: int, pieces: Iterator[SpooledRows]) -> None:
        self.rank = rank
        self._pieces = pieces
        self._highest = -1
        self._bytes = 0
        self.exhausted = False
        self.rows: list[SpooledRows] = []
        self.times: list[int] = []

    def fill(self, rows: float, bytes_: float) -> None:
        """Read until so many records wait, or ones of so many bytes."""
        while not self.exhausted and len(self.times) < rows and (not self.times or self._bytes < bytes_):
            piece = next(self._pieces, None)
            if piece is None:
                self.exhausted = True
            else:
                self.rows.append(piece)
                self._bytes += piece.payload_bytes
                self.times += list(accumulate(piece.timestamps, max, initial=self._highest))[1:]
                self._highest = self.times[-1]

    def take(self, count: int) -> SpooledRows:
        """Remove the first records."""
        together = joined(self.rows)
        taken, left = together.cut(0, count), together.cut(count, len(together))
        self.rows = [left] if len(left) else []
        self._bytes -= taken.payload_bytes
        self.times = self.times[count:]
        return taken


def merged(streams: Sequence[Iterator[SpooledRows]]) -> Iterator[SpooledRows]:
    """The records of all streams by event time; at equal times in the order of the streams."""
    if len(streams) == 1:
        yield from streams[0]
        return
    lanes = [_Lane(rank, pieces) for rank, pieces in enumerate(streams)]
    while True:
        for lane in lanes:
            lane.fill(WAITING_ROWS / len(lanes), WAITING_BYTES / len(lanes))
        lanes = [lane for lane in lanes if lane.times]
        if not lanes:
            return
        bound = min(((lane.times[-1], lane.rank) for lane in lanes if not lane.exhausted), default=None)
        pieces, times = [], []
        for lane in lanes:
            count = len(lane.times) if bound is None else _until(lane, *bound)
            times.append(lane.times[:count])
            pieces.append(lane.take(count))
        together = joined(pieces)
        if sum(map(bool, times)) > 1:
            order = list(chain.from_iterable(times))
            together = _at(together, sorted(range(len(order)), key=order.__getitem__))
        yield together


def _until(lane: _Lane, time: int, rank: int) -> int:
    """How many of its records are not after that time in the stream of that rank."""
    return (bisect_right if lane.rank <= rank else bisect_left)(lane.times, time)


def _at(rows: SpooledRows, order: Sequence[int]) -> SpooledRows:
    # There are at least two; for a whole column this takes a third of the time of a comprehension.
    choose = itemgetter(*order)
    return SpooledRows(*(None if column is None else list(choose(column)) for column in rows))  # type: ignore[arg-type]  # columns stay columns
