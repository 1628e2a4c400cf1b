"""Aggregates that store values and return them unchanged."""

from __future__ import annotations

import builtins
import types
from dataclasses import dataclass, field, replace
from itertools import count as counted, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import msgspec

from streams.aggregates.columns import checked_entries, described_parameters, entry_type
from streams.aggregates.contract import NOWHERE, BaseAggregate, require
from streams.aggregates.value_codec import ValueCodec
from streams.serde.schemas.shape import shape
from streams.serde.value_type import is_supported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates.contract import Aggregate, Of, Place, T, Type, V


encode_value = msgspec.msgpack.Encoder(order="deterministic").encode


class ValueAggregate(BaseAggregate):
    """An aggregate that stores values and returns them unchanged.

    ``type`` is the values' type; without one, they must be self-describing.
    """

    __slots__ = ()

    of: Of
    type: Type[Any] | None
    _codec: ValueCodec

    @property
    def schema(self) -> Any:
        return schema_of_values(self.describe(), self.type)

    def typed(self, kind: Any) -> Any:
        found = Any if self.type is not None else entry_type(self.of, kind)
        return self if found is Any else replace(self, type=found)  # type: ignore[type-var]  # every subclass is a dataclass

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return checked_entries(self.of, values, self._accept, self._keep)

    def _accept(self, column: list[Any]) -> bool:
        if not self._codec.takes(set(map(type, column))):
            return False
        # Refuses integers beyond 64 bits and text that is not Unicode.
        encode_value(column)
        return True

    def _keep(self, value: Any) -> Any:
        if type(value) in {str, int}:
            encode_value(value)
        try:
            return self._codec.keep(value)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(self._refusal(error)) from None
        except (TypeError, ValueError) as error:
            raise TypeError(self._refusal(error)) from None

    def _refusal(self, error: Exception) -> str:
        name = self.describe().partition("(")[0]
        return (
            f"{self.describe()} cannot store this value: {error}; give its type, {name}(…, type=…), "
            "or annotate the function that returns it"
        )


def tuple_of(kind: Any) -> Any:
    """The type of tuples of any length with items of a type."""
    return types.GenericAlias(tuple, (Any if kind is None else kind, ...))


def codec_for(what: str, kind: Any) -> ValueCodec:
    """The codec for values of a type. Raises ``TopologyError`` for a type that msgspec cannot store."""
    if kind is None or kind is Any:
        return ValueCodec()
    require(is_supported(kind), what, "a type that msgspec can store", kind)
    return ValueCodec(kind)


def schema_of_values(described: str, kind: Any) -> Any:
    """The schema of an aggregate that stores values of a type."""
    if kind is None or kind is Any:
        return {"aggregate": described, "of": {"json": "any"}}
    try:
        return {"aggregate": described, "of": {"json": shape(kind) or "any"}}
    except TypeError:
        return {"aggregate": described, "of": {"json": str(kind)}}


def written_form(value: Any) -> tuple[str, str]:
    """Distinguishes equal values such as 1, 1.0 and Decimal("1.00"): type and text."""
    return type(value).__name__, repr(value)


_Placed: TypeAlias = "tuple[Place, Any] | tuple[()]"
"""A stored value with its position; empty without a value."""


@dataclass(frozen=True, slots=True)
class _Single(ValueAggregate):
    of: Of = None
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_codec", codec_for(self.describe(), self.type))

    @property
    def ordered(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return Any if self.type is None else self.type | None

    def describe(self) -> str:
        return f"{builtins.type(self).__name__.lower()}({described_parameters(self.of)})"

    def initial(self) -> _Placed:
        return ()

    def result(self, accumulator: _Placed) -> Any:
        return self._codec.restore(accumulator[1]) if accumulator else None

    def pack(self, accumulator: _Placed) -> Any:
        return [*accumulator[0], self._codec.pack(accumulator[1])] if accumulator else []

    def unpack(self, packed: Any) -> _Placed:
        if not packed:
            return ()
        # Earlier versions stored the value without its position.
        place = tuple(packed[:3]) if len(packed) == 4 else NOWHERE
        return place, self._codec.unpack(packed[-1])


class First(_Single):
    """See ``first``."""

    __slots__ = ()

    def add(
        self, accumulator: _Placed, column: Sequence[Any], places: Sequence[Place] | None = None
    ) -> _Placed:
        if not column:
            return accumulator
        place, at = (NOWHERE, 0) if places is None else min(zip(places, counted(), strict=False))
        return self.merge(accumulator, (place, column[at]))

    def merge(self, first: _Placed, second: _Placed) -> _Placed:
        if not first or not second:
            return first or second
        return first if first[0] <= second[0] else second


class Latest(_Single):
    """See ``latest``."""

    __slots__ = ()

    def add(
        self, accumulator: _Placed, column: Sequence[Any], places: Sequence[Place] | None = None
    ) -> _Placed:
        if not column:
            return accumulator
        place, at = (NOWHERE, -1) if places is None else max(zip(places, counted(), strict=False))
        return self.merge(accumulator, (place, column[at]))

    def merge(self, first: _Placed, second: _Placed) -> _Placed:
        if not first or not second:
            return first or second
        return second if first[0] <= second[0] else first


@dataclass(frozen=True, slots=True)
class Collect(ValueAggregate):
    """See ``collect``."""

    of: Of = None
    limit: int | None = None
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "collect", "a limit of at least 1", self.limit)
        object.__setattr__(self, "_codec", codec_for(self.describe(), self.type))

    @property
    def ordered(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return tuple_of(self.type)

    def describe(self) -> str:
        return f"collect({described_parameters(self.of, f'limit={self.limit}')})"

    def initial(self) -> tuple[Any, ...]:
        return ()

    def add(
        self, accumulator: tuple[Any, ...], column: Sequence[Any], places: Sequence[Place] | None = None
    ) -> tuple[Any, ...]:
        return self.merge(accumulator, tuple(zip(places or repeat(NOWHERE), column, strict=False)))

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        full = self.limit is not None and len(first) >= self.limit
        if full and min(map(_place, second), default=first[-1][0]) >= first[-1][0]:
            return first
        both = [*first, *second]
        # Nearly always sorted already, which takes little time.
        both.sort(key=_place)
        return tuple(both[: self.limit])

    def result(self, accumulator: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(self._codec.restore, map(itemgetter(1), accumulator)))

    def pack(self, accumulator: tuple[Any, ...]) -> Any:
        topics = list(dict.fromkeys(topic for (_, topic, _), _ in accumulator))
        columns: dict[str, Any] = {
            "values": [self._codec.pack(kept) for _, kept in accumulator],
            "times": [time for (time, _, _), _ in accumulator],
            "offsets": [offset for (_, _, offset), _ in accumulator],
            "topics": topics,
        }
        if len(topics) > 1:
            columns["of"] = [topics.index(topic) for (_, topic, _), _ in accumulator]
        return columns

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        unpack = self._codec.unpack
        if isinstance(packed, list):
            # Earlier versions stored the values alone.
            return tuple((NOWHERE, unpack(value)) for value in packed)
        topics = packed["topics"]
        numbers = packed.get("of", [0] * len(packed["values"]))
        places = zip(packed["times"], (topics[number] for number in numbers), packed["offsets"], strict=True)
        return tuple(zip(places, map(unpack, packed["values"]), strict=True))


_place = itemgetter(0)


@overload
def first(of: str | None = None, *, type: None = None) -> Aggregate[Any, Any]: ...
@overload
def first(of: str | None = None, *, type: Type[T]) -> Aggregate[Any, T | None]: ...
@overload
def first(of: Callable[[V], T], *, type: Type[T] | None = None) -> Aggregate[V, T | None]: ...
def first(of: Of = None, *, type: Type[Any] | None = None) -> Aggregate[Any, Any]:  # noqa: A002 - as in the serdes
    """The value with the earliest event time; ``None`` without values.

    Ties are decided by the topic's name, where a group has records of several topics, then by the lowest
    offset, independently of arrival. Values of one record, and results of aggregates, count in order of
    arrival.

    Values are returned unchanged. Objects of classes need a type for that: it is taken from the stream's type
    and the annotation of a function ``of``, or given by ``type``.
    """
    return First(of, type)


@overload
def latest(of: str | None = None, *, type: None = None) -> Aggregate[Any, Any]: ...
@overload
def latest(of: str | None = None, *, type: Type[T]) -> Aggregate[Any, T | None]: ...
@overload
def latest(of: Callable[[V], T], *, type: Type[T] | None = None) -> Aggregate[V, T | None]: ...
def latest(of: Of = None, *, type: Type[Any] | None = None) -> Aggregate[Any, Any]:  # noqa: A002 - as in the serdes
    """The value with the latest event time; ``None`` without values. See ``first`` for ties and types."""
    return Latest(of, type)


@overload
def collect(
    of: str | None = None, *, limit: int | None = None, type: None = None
) -> Aggregate[Any, tuple[Any, ...]]: ...
@overload
def collect(
    of: str | None = None, *, limit: int | None = None, type: Type[T]
) -> Aggregate[Any, tuple[T, ...]]: ...
@overload
def collect(
    of: Callable[[V], T], *, limit: int | None = None, type: Type[T] | None = None
) -> Aggregate[V, tuple[T, ...]]: ...
def collect(of: Of = None, *, limit: int | None = None, type: Type[Any] | None = None) -> Aggregate[Any, Any]:  # noqa: A002 - as in the serdes
    """All values in the order of event time, or the earliest ``limit`` of them.

    See ``first`` for ties and types. Without a limit, the accumulator grows with every event and is written
    completely at every commit.
    """
    return Collect(of, limit, type)
