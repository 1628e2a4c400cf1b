"""Adds batches to accumulators, with work for each key of a batch and not for each record."""

from __future__ import annotations

from collections import Counter
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

from streams.aggregates import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.operators.guard import Guard
    from streams.records import Batch


class Folding:
    """Adds batches to the accumulators of an aggregate, for one step of one task.

    A key's part of a batch is its *share*: a count, or the rows that have the key.
    """

    traced: ClassVar[bool] = False
    """Whether accumulators have their lineage."""

    def __init__(self, aggregate: Aggregate[Any, Any], guard: Guard) -> None:
        self.aggregate = aggregate
        self.record_wise = aggregate.record_wise
        self._ordered = aggregate.ordered
        self._guard = guard
        self.counts = isinstance(aggregate, Count)
        """Whether the accumulators are counts, which need no entries."""

    def column(self, batch: Batch[Any, Any]) -> tuple[Batch[Any, Any], Sequence[Any]]:
        """The aggregate's input from each value; the policy applies to rows for which it fails."""
        return (batch, ()) if self.counts else self._guard.apply(self.aggregate.column, batch.values, batch)

    def places(self, batch: Batch[Any, Any]) -> Sequence[Place] | None:
        """The position of each row in the order of events, if the aggregate needs it."""
        if not self._ordered:
            return None
        return list(zip(batch.timestamps, repeat(batch.topic), batch.offsets, strict=False))

    def shares(self, keys: Sequence[Any], places: Sequence[Place] | None) -> dict[Any, Any]:  # noqa: ARG002 - lineage needs them
        """The share of each key, in the order of the keys' first rows."""
        if self.counts:
            return Counter(keys)
        return rows_by_key(keys)

    def records(self, shares: Iterable[Any]) -> int:
        """How many records the shares have together."""
        return sum(shares) if self.counts else sum(map(len, shares))

    def add(
        self,
        accumulators: Sequence[Any],
        shares: Iterable[Any],
        column: Sequence[Any],
        places: Sequence[Place] | None,
    ) -> list[Any]:
        """Add the shares to the accumulators (``None`` for a new key), and return these."""
        if self.counts:
            return [
                share if accumulator is None else accumulator + share
                for accumulator, share in zip(accumulators, shares, strict=True)
            ]
        add, initial = self.aggregate.add, self.aggregate.initial
        return [
            add(
                initial() if accumulator is None else accumulator,
                [column[row] for row in share],
                None if places is None else [places[row] for row in share],
            )
            for accumulator, share in zip(accumulators, shares, strict=True)
        ]

    def fold(
        self, accumulator: Any, rows: Sequence[int], column: Sequence[Any], places: Sequence[Place] | None
    ) -> Any:
        """Add the entries of these rows, in order, to an accumulator (``None`` for a new key); return it."""
        if self.counts:
            return len(rows) if accumulator is None else accumulator + len(rows)
        chosen = None if places is None else [places[row] for row in rows]
        return self.add_one(accumulator, [column[row] for row in rows], chosen)

    def add_each(
        self,
        batch: Batch[Any, Any],
        change: Callable[[int, Sequence[Any], Sequence[Place] | None], None],
    ) -> int:
        """Add record by record, for the user's code: ``change(row, entries, places)`` adds and stores one.

        Returns how many did not fail.
        """
        column, values, places = self.aggregate.column, batch.values, self.places(batch)

        def entries(rows: Iterable[int]) -> Iterator[None]:
            for row in rows:
                change(row, list(column([values[row]])), None if places is None else [places[row]])
                yield None

        done, _ = self._guard.each(entries, range(len(batch)), batch)
        return len(done)

    def add_one(self, accumulator: Any, entries: Sequence[Any], places: Sequence[Place] | None) -> Any:
        """Add one record's entry to the accumulator (``None`` for a new key), and return it."""
        known = self.aggregate.initial() if accumulator is None else accumulator
        return self.aggregate.add(known, entries, places)


def rows_by_key(keys: Sequence[Any]) -> dict[Any, list[int]]:
    """The rows that have each key, in order."""
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        if key in rows:
            rows[key].append(row)
        else:
            rows[key] = [row]
    return rows
