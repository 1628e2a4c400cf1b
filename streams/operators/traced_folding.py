"""Adds batches to accumulators that have their lineage, for the setting ``lineage``."""

from __future__ import annotations

from collections import Counter
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from streams.aggregates.traced import Traced, TracedAggregate, traced
from streams.lineage import ancestry_of, grown
from streams.operators.folding import Folding, rows_by_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.aggregates import Aggregate, Place
    from streams.lineage import Contribution
    from streams.operators.guard import Guard
    from streams.records import Batch

    _Part: TypeAlias = "tuple[int, Contribution, Contribution]"
    """How many records of a key a batch has, and the first and the last of them by event time."""


def folding_of(aggregate: Aggregate[Any, Any], guard: Guard) -> Folding:
    """What adds batches to the accumulators of an aggregate."""
    if isinstance(aggregate, TracedAggregate):
        return TracedFolding(aggregate, guard)
    return Folding(aggregate, guard)


class TracedFolding(Folding):
    """Adds values as without lineage, and then makes one accumulator for each key of the batch.

    Rows of one input record each, which is almost always so, need no object but their contribution. The share
    of a count is then a ``_Part``; every other share is the rows that have the key.
    """

    traced: ClassVar[bool] = True

    def __init__(self, aggregate: TracedAggregate, guard: Guard) -> None:
        super().__init__(aggregate, guard)
        self._inner = Folding(aggregate.inner, guard)
        self._inner_ordered = aggregate.inner.ordered

    def column(self, batch: Batch[Any, Any]) -> tuple[Batch[Any, Any], Sequence[Any]]:
        return self._inner.column(batch)

    def places(self, batch: Batch[Any, Any]) -> Sequence[Any]:
        """What is known of each row, in a pair with its position if the aggregate needs that."""
        if not self._inner_ordered:
            return ancestry_of(batch)
        own = zip(batch.timestamps, repeat(batch.topic), batch.offsets)
        return list(zip(own, ancestry_of(batch), strict=True))

    def shares(self, keys: Sequence[Any], places: Sequence[Any] | None) -> dict[Any, Any]:
        if not self._inner.counts or places is None or not _of_one_each(places):
            return rows_by_key(keys)
        counts = Counter(keys)
        if len(counts) == len(keys):
            return dict(zip(keys, zip(repeat(1), places, places, strict=False), strict=True))
        in_order, ascending = keys, sorted(places)
        if ascending != places:
            in_order = [key for _, key in sorted(zip(places, keys, strict=True), key=itemgetter(0))]
        last = dict(zip(in_order, ascending, strict=True))
        first = dict(zip(reversed(in_order), reversed(ascending), strict=True))
        parts = zip(
            counts.values(), map(first.__getitem__, counts), map(last.__getitem__, counts), strict=True
        )
        return dict(zip(counts, parts, strict=True))

    def records(self, shares: Iterable[Any]) -> int:
        return sum(share[0] if type(share) is tuple else len(share) for share in shares)

    def add(
        self,
        accumulators: Sequence[Any],
        shares: Iterable[Any],
        column: Sequence[Any],
        places: Sequence[Any] | None,
    ) -> list[Any]:
        assert places is not None, "the lineage needs them"
        shares = list(shares)
        if shares and type(shares[0]) is tuple:
            return _counted(accumulators, shares)
        values = [None if accumulator is None else accumulator.value for accumulator in accumulators]
        own, ancestry = self._split(places)
        if self._inner.counts:
            added = self._inner.add(values, map(len, shares), (), None)
        else:
            added = self._inner.add(values, shares, column, own)
        if _of_one_each(ancestry):
            return _grown_by_parts(accumulators, added, _parts(shares, ancestry))
        return [
            traced(value, grown(None if before is None else before.lineage, [ancestry[row] for row in rows]))
            for before, value, rows in zip(accumulators, added, shares, strict=True)
        ]

    def fold(
        self, accumulator: Any, rows: Sequence[int], column: Sequence[Any], places: Sequence[Any] | None
    ) -> Any:
        assert places is not None, "the lineage needs them"
        entries = () if self._inner.counts else [column[row] for row in rows]
        (after,) = self.add([accumulator], [range(len(rows))], entries, [places[row] for row in rows])
        return after

    def _split(self, places: Sequence[Any]) -> tuple[Sequence[Place] | None, Sequence[Any]]:
        """The rows' positions, if the aggregate needs them, and what is known of each row."""
        if not self._inner_ordered:
            return None, places
        return [place for place, _ in places], [item for _, item in places]


def _of_one_each(ancestry: Sequence[Any]) -> bool:
    """Whether each row is made of one input record."""
    return set(map(type, ancestry)) == {tuple}


def _parts(shares: Sequence[Sequence[int]], ancestry: Sequence[Contribution]) -> list[_Part]:
    if sorted(ancestry) == ancestry:
        return [(len(rows), ancestry[rows[0]], ancestry[rows[-1]]) for rows in shares]
    return [
        (len(rows), min(ancestry[row] for row in rows), max(ancestry[row] for row in rows)) for rows in shares
    ]


def _grown_by_parts(
    accumulators: Sequence[Traced | None], values: Sequence[Any], parts: Sequence[_Part]
) -> list[Traced]:
    """The new accumulators, with the lineage of the old ones and these records."""
    return [
        Traced(value, first, last, count)
        if before is None
        else Traced(
            value,
            first if before.first is None or first < before.first else before.first,
            last if before.last is None or last > before.last else before.last,
            before.records + count,
            before.complete,
        )
        for before, value, (count, first, last) in zip(accumulators, values, parts, strict=True)
    ]


def _counted(counts: Sequence[Traced | None], parts: Sequence[_Part]) -> list[Traced]:
    """As ``_grown_by_parts``, of counts: one pass over the keys, as this is what most apps do."""
    return [
        Traced(count, first, last, count)
        if before is None
        else Traced(
            before.value + count,
            first if before.first is None or first < before.first else before.first,
            last if before.last is None or last > before.last else before.last,
            before.records + count,
            before.complete,
        )
        for before, (count, first, last) in zip(counts, parts, strict=True)
    ]
