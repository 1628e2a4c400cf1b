"""Aggregates that also know which input records they are made of, for the setting ``lineage``.

The lineage is part of the accumulator: whatever happens to that (windows that merge, panes, restores, kept
windows) happens to the lineage too. Stored accumulators without one are read as of unknown lineage, and
accumulators with one are read by programs without the setting, so that it may be switched at any start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.lineage import UNKNOWN, Lineage, as_lineage, combined, grown, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.aggregates.contract import Aggregate
    from streams.lineage import Ancestry, Contribution

CODE: Final = 76
"""The MessagePack extension that has an accumulator and its lineage."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Traced(msgspec.Struct, eq=False, gc=False):
    """An accumulator and its lineage, whose fields it has itself: one is made for each key of each batch.

    Equality is that of the accumulators: whether a result has changed does not depend on the lineage.
    """

    value: Any
    first: Contribution | None = None
    """As in ``Lineage``; and ``records`` is 0 as long as nothing was added."""
    last: Contribution | None = None
    records: int = 0
    complete: bool = True

    __hash__ = None  # type: ignore[assignment]  # as accumulators may not be hashable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and bool(self.value == other.value)

    @property
    def lineage(self) -> Lineage | None:
        """The lineage; ``None`` as long as nothing was added."""
        if self.records or not self.complete:
            return Lineage(self.first, self.last, self.records, self.complete)
        return None


def traced(value: Any, lineage: Lineage | None) -> Traced:
    """An accumulator with that lineage."""
    if lineage is None:
        return Traced(value)
    return Traced(value, lineage.first, lineage.last, lineage.records, lineage.complete)


class TracedAggregate:
    """An aggregate whose accumulators are ``Traced``.

    ``places`` are the rows' ancestry; for an aggregate that needs their order, pairs of place and ancestry.
    """

    ordered = True

    def __init__(self, inner: Aggregate[Any, Any]) -> None:
        self.inner = inner
        self.record_wise = inner.record_wise
        self.removable = inner.removable
        self.mergeable = inner.mergeable
        self.schema = inner.schema
        self.result_type = inner.result_type

    def describe(self) -> str:
        return self.inner.describe()

    def typed(self, kind: Any) -> TracedAggregate:
        return TracedAggregate(self.inner.typed(kind))

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return self.inner.column(values)

    def initial(self) -> Traced:
        return Traced(self.inner.initial())

    def add(self, accumulator: Traced, column: Sequence[Any], places: Any = None) -> Traced:
        if places is None:
            return traced(self.inner.add(accumulator.value, column), accumulator.lineage)
        own, ancestry = None, places
        if self.inner.ordered:
            own, ancestry = [place for place, _ in places], [item for _, item in places]
        return traced(self.inner.add(accumulator.value, column, own), grown(accumulator.lineage, ancestry))

    def touched(self, accumulator: Traced, ancestry: Sequence[Ancestry]) -> Traced:
        """The same accumulator, which these rows have changed."""
        if not ancestry:
            return accumulator
        return traced(accumulator.value, grown(accumulator.lineage, ancestry))

    def remove(self, accumulator: Traced, column: Sequence[Any]) -> Traced:
        return traced(self.inner.remove(accumulator.value, column), accumulator.lineage)

    def merge(self, first: Traced, second: Traced) -> Traced:
        known = [item.lineage for item in (first, second) if item.lineage is not None]
        return traced(self.inner.merge(first.value, second.value), combined(known) if known else None)

    def result(self, accumulator: Traced) -> Any:
        return self.inner.result(accumulator.value)

    def pack(self, accumulator: Traced) -> Any:
        return msgspec.msgpack.Ext(CODE, _encode((self.inner.pack(accumulator.value), accumulator.lineage)))

    def unpack(self, packed: Any) -> Traced:
        if not _is_traced(packed):
            return traced(self.inner.unpack(packed), UNKNOWN)
        value, lineage = _decode(packed.data)
        known = None if lineage is None else as_lineage(unpacked(lineage))
        return traced(self.inner.unpack(value), known)


def with_lineage(aggregate: Aggregate[Any, Any]) -> TracedAggregate:
    """The aggregate with lineage."""
    return aggregate if isinstance(aggregate, TracedAggregate) else TracedAggregate(aggregate)


def unpack(aggregate: Aggregate[Any, Any], packed: Any) -> Any:
    """The accumulator that was packed, by the aggregate with lineage or without."""
    if _is_traced(packed) and not isinstance(aggregate, TracedAggregate):
        return aggregate.unpack(_decode(packed.data)[0])
    return aggregate.unpack(packed)


def without_lineage(value: Any) -> Any:
    """A stored value as it is without the setting, whatever accumulators it contains."""
    if type(value) is Traced:
        return value.value
    if isinstance(value, tuple):
        parts = map(without_lineage, value)
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    return value


def lineage_of(accumulator: Any) -> Lineage | None:
    """The lineage of an accumulator; ``None`` without one."""
    return accumulator.lineage if type(accumulator) is Traced else None


def _is_traced(packed: Any) -> bool:
    return type(packed) is msgspec.msgpack.Ext and packed.code == CODE
