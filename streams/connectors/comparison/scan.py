"""Find the keys whose rows look different: checksums of key ranges, split where they differ."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from streams.connectors.comparison.table import KeyRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from streams.connectors.comparison.table import Key, TableReader

T = TypeVar("T")

_FAN_OUT = 16
"""A range that differs is split into this many."""

_FEW_ROWS = 2_000
"""A range of so few rows is not split: the checksums of its keys are read."""

EVERYTHING = KeyRange(None, None)


class Pair:
    """Two open tables, which are read at the same time. As a context manager, it closes them."""

    def __init__(self, source: TableReader, target: TableReader) -> None:
        self.source = source
        self.target = target
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="streams-compare")

    def both(self, read: Callable[[TableReader], T]) -> tuple[T, T]:
        """Read the same of both tables."""
        of_target = self._threads.submit(read, self.target)
        try:
            of_source = read(self.source)
        except BaseException:
            of_target.cancel()
            raise
        return of_source, of_target.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A query that still runs in the thread ends by its time-out.
        self._threads.shutdown()
        self.source.close()
        self.target.close()


class Scan:
    """One pass over both tables. Iterating gives the keys whose rows were different when they were read.

    They were read at different moments, so a change on its way to the target shows up here too.
    """

    def __init__(self, pair: Pair, rows_per_query: int, progress: Callable[[int], None] | None) -> None:
        self.source_rows = 0
        self.target_rows = 0
        self._pair = pair
        self._rows = rows_per_query
        self._progress = progress

    def __iter__(self) -> Iterator[Key]:
        for part in self._parts():
            yield from self._different(part)
            if self._progress is not None:
                self._progress(self.source_rows)

    def _parts(self) -> Iterator[KeyRange]:
        """Ranges that cover all keys, none with many more rows than ``rows_per_query`` in either table."""
        source, target = self._pair.source, self._pair.target
        # More columns would let each query of a range read all rows with the same first ones.
        width = min(source.indexed, target.indexed)
        if not width:
            # To find a boundary such a table is sorted, which costs more than to read all of it once.
            yield EVERYTHING
            return
        after: Key | None = None
        while True:
            upto = source.boundary(KeyRange(after, None), self._rows, width)
            # Rows that only the target has may lie between two keys of the source, in any number.
            upto = target.boundary(KeyRange(after, upto), self._rows, width) or upto
            yield KeyRange(after, upto)
            if upto is None:
                return
            after = upto

    def _different(self, whole: KeyRange) -> Iterator[Key]:
        parts = [whole]
        while parts:
            part = parts.pop()
            ours, theirs = self._pair.both(lambda table, part=part: table.checksum(part))  # type: ignore[misc]  # bound
            if part is whole:
                self.source_rows += ours.rows
                self.target_rows += theirs.rows
            if ours == theirs:
                continue
            rows = max(ours.rows, theirs.rows)
            smaller = [part]
            if rows > _FEW_ROWS:
                larger = self._pair.source if ours.rows >= theirs.rows else self._pair.target
                smaller = _split(part, larger.cuts(part, -(-rows // _FAN_OUT)))
            if len(smaller) > 1:
                parts += reversed(smaller)
            else:
                # Few rows, or many under one key.
                yield from self._keys(part)

    def _keys(self, part: KeyRange) -> Iterator[Key]:
        ours, theirs = self._pair.both(lambda table: table.checksums(part))
        for key, checksum in ours.items():
            if theirs.pop(key, None) != checksum:
                yield key
        yield from theirs


def _split(part: KeyRange, cuts: list[Key]) -> list[KeyRange]:
    inner = [cut for cut in dict.fromkeys(cuts) if cut != part.upto]
    return [KeyRange(after, upto) for after, upto in pairwise([part.after, *inner, part.upto])]
