"""Several aggregates of the same events at once."""

from __future__ import annotations

from difflib import get_close_matches
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

import msgspec

from streams.aggregates.columns import missing_field
from streams.aggregates.contract import BaseAggregate, require
from streams.errors import TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streams.aggregates.contract import Aggregate, Place


class Combined(BaseAggregate):
    """Several aggregates of the same events at once; the result has a field for each.

    ``Combined({"orders": count(), "revenue": total("price")})``: results are frozen ``msgspec.Struct``
    objects with the fields ``orders`` and ``revenue``.
    """

    __slots__ = ("_aggregates", "_earlier", "_labels", "_names", "_result")

    def __init__(
        self,
        fields: Mapping[str, Aggregate[Any, Any]],
        labels: Mapping[str, str] | None = None,
        earlier: Sequence[str] = (),
    ) -> None:
        require(bool(fields), "Combined", "at least one field", dict(fields))
        for name in fields:
            require(
                name.isidentifier() and not iskeyword(name) and not name.startswith("_"),
                "Combined",
                "names that can be attributes and begin with a letter",
                name,
            )
        self._names = tuple(fields)
        self._aggregates = tuple(fields.values())
        # The stored name of each: another label each time that it was added, so that an aggregate that was
        # removed for a while does not read its old accumulators.
        self._labels = tuple((labels or {}).get(name, name) for name in fields)
        self._earlier = tuple(earlier)
        types = [(name, aggregate.result_type) for name, aggregate in fields.items()]
        self._result: Any = msgspec.defstruct("Combined", types, frozen=True)

    @property
    def fields(self) -> Mapping[str, Aggregate[Any, Any]]:
        """The aggregates by the names of their fields."""
        return dict(zip(self._names, self._aggregates, strict=True))

    @property
    def record_wise(self) -> bool:
        return any(aggregate.record_wise for aggregate in self._aggregates)

    @property
    def ordered(self) -> bool:
        return any(aggregate.ordered for aggregate in self._aggregates)

    @property
    def removable(self) -> bool:
        return all(aggregate.removable for aggregate in self._aggregates)

    @property
    def mergeable(self) -> bool:
        return all(aggregate.mergeable for aggregate in self._aggregates)

    @property
    def schema(self) -> Any:
        each = zip(self._names, self._aggregates, strict=True)
        return {"combined": {name: aggregate.schema for name, aggregate in each}}

    @property
    def result_type(self) -> Any:
        return self._result

    def typed(self, kind: Any) -> Combined:
        each = zip(self._names, self._aggregates, strict=True)
        return Combined({name: aggregate.typed(kind) for name, aggregate in each})

    def reading(
        self, began: Mapping[str, Sequence[Any]], earlier: Mapping[str, Any] | None, prefix: str = ""
    ) -> Combined:
        """The aggregate for a store that existed before some of its fields were there.

        ``began`` lists when each of these fields was added, by name (nested ones with dots), once for each
        time. ``earlier`` names the fields, in that order, of accumulators that were stored without names,
        each with its nested fields.
        """
        fields: dict[str, Aggregate[Any, Any]] = {}
        labels: dict[str, str] = {}
        for name, aggregate in zip(self._names, self._aggregates, strict=True):
            times = len(began.get(prefix + name, ()))
            labels[name] = f"{name}#{times}" if times else name
            fields[name] = aggregate
            if isinstance(aggregate, Combined):
                fields[name] = aggregate.reading(began, (earlier or {}).get(name), f"{prefix}{name}.")
        return Combined(fields, labels, tuple(earlier or ()))

    def describe(self) -> str:
        each = zip(self._names, self._aggregates, strict=True)
        return f"combined({', '.join(f'{name}={aggregate.describe()}' for name, aggregate in each)})"

    def column(self, values: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
        # Not strict: a column that ends early ends all, as the caller expects.
        return zip(*(aggregate.column(values) for aggregate in self._aggregates), strict=False)

    def initial(self) -> tuple[Any, ...]:
        return tuple(aggregate.initial() for aggregate in self._aggregates)

    def add(
        self,
        accumulator: tuple[Any, ...],
        column: Sequence[tuple[Any, ...]],
        places: Sequence[Place] | None = None,
    ) -> tuple[Any, ...]:
        columns = zip(*column, strict=True)
        return (
            tuple(
                aggregate.add(part, entries, places)
                for aggregate, part, entries in zip(self._aggregates, accumulator, columns, strict=True)
            )
            if column
            else accumulator
        )

    def remove(self, accumulator: tuple[Any, ...], column: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        columns = zip(*column, strict=True)
        return (
            tuple(
                aggregate.remove(part, entries)
                for aggregate, part, entries in zip(self._aggregates, accumulator, columns, strict=True)
            )
            if column
            else accumulator
        )

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            aggregate.merge(one, other)
            for aggregate, one, other in zip(self._aggregates, first, second, strict=True)
        )

    def result(self, accumulator: tuple[Any, ...]) -> Any:
        return self._result(
            *(aggregate.result(part) for aggregate, part in zip(self._aggregates, accumulator, strict=True))
        )

    def pack(self, accumulator: tuple[Any, ...]) -> Any:
        each = zip(self._labels, self._aggregates, accumulator, strict=True)
        return {label: aggregate.pack(part) for label, aggregate, part in each}

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        if not isinstance(packed, dict):
            # Earlier versions stored the fields in their order, without names.
            packed = dict(zip(self._earlier or self._names, packed, strict=True))
        return tuple(
            aggregate.unpack(packed[label]) if label in packed else aggregate.initial()
            for label, aggregate in zip(self._labels, self._aggregates, strict=True)
        )


def check_aggregate(step: str, name: str, part: object) -> None:
    """Raise ``TopologyError`` for what is no aggregate, where a step was given it as a field or alone."""
    if not isinstance(part, type) and hasattr(part, "result_type"):
        return
    function = getattr(part, "__name__", None)
    hint = "e.g. aggregate(store, hits=count(), bytes=total(lambda hit: hit.size))"
    if getattr(part, "__module__", "").startswith("streams.aggregates"):
        hint = f"call it: {function}(…)"
    elif callable(part):
        hint = f"make one of functions with custom(…), or use reduce(store, {function})"
    elif name in {"store", "name"}:
        hint = "the store is the first argument, keywords are fields: aggregate(store, hits=count())"
    raise TopologyError(
        f"{step!r} needs aggregates, got {f'{name}=' if name else ''}{function or repr(part):.80}", hint=hint
    )


def check_fields(step: str, aggregate: Aggregate[Any, Any], kind: Any) -> None:
    """Raise ``TopologyError`` if an aggregate needs a field that values of a type do not have."""
    if isinstance(aggregate, Combined):
        for part in aggregate.fields.values():
            check_fields(step, part, kind)
        return
    of: Any = getattr(aggregate, "of", None)
    fields = missing_field(of, kind)
    if fields is not None:
        close = get_close_matches(of, fields, 1)
        raise TopologyError(
            f"{step!r}: {aggregate.describe()} needs a field {of!r}, and {getattr(kind, '__name__', kind)} "
            f"has none: its fields are {', '.join(fields)}",
            hint=f"did you mean {close[0]!r}?" if close else "name one, or give a function",
        )
