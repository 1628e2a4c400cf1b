"""The smallest and the largest values: numbers, or values of one ordered type."""

from __future__ import annotations

import builtins
import datetime as dt
import typing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, overload
from uuid import UUID

from streams.aggregates.columns import checked_entries, described_parameters, entry_type
from streams.aggregates.contract import require
from streams.aggregates.exact_sum import pack_number, unpack_number
from streams.aggregates.numbers import NumberAggregate
from streams.aggregates.values import codec_for, schema_of_values, tuple_of, written_form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates.contract import Aggregate, Of, Place, T, Type, V
    from streams.aggregates.value_codec import ValueCodec


_NUMBER_TYPES = (int, float, Decimal)
_ORDERED = {str: None, bytes: None, dt.date: None, dt.timedelta: None, UUID: None}


def _instant(time: dt.datetime) -> dt.datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=dt.UTC)


def _has_order(kind: Any) -> bool:
    """Whether values of a type other than numbers are ordered."""
    if kind is dt.datetime or kind in _ORDERED:
        return True
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple or not arguments:
        return False
    return all(item in _ORDERED or item in {int, Decimal} for item in arguments if item is not Ellipsis)


@dataclass(frozen=True, slots=True)
class _Ordered(NumberAggregate):
    """Base of the smallest and largest values: of numbers, or of one ordered type."""

    of: Of = None
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    places: ClassVar[int] = 10**9

    def __post_init__(self) -> None:
        name = builtins.type(self).__name__.lower()
        orderable = self.type is None or self.type in _NUMBER_TYPES or _has_order(self.type)
        needed = "an ordered type: a number, str, bytes, date, datetime, timedelta, UUID or a tuple"
        require(orderable, name, needed, self.type)
        object.__setattr__(self, "_codec", codec_for(name, self.type))

    @property
    def schema(self) -> Any:
        return self.describe() if self._of_numbers else schema_of_values(self.describe(), self.type)

    @property
    def _of_numbers(self) -> bool:
        return self.type is None or self.type in _NUMBER_TYPES

    def typed(self, kind: Any) -> Any:
        found = Any if self.type is not None else entry_type(self.of, kind)
        return replace(self, type=found) if found in _NUMBER_TYPES or _has_order(found) else self

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        if self._of_numbers:
            return super(_Ordered, self).column(values)
        return checked_entries(self.of, values, self._accept_ordered, self._check_ordered)

    def _accept_ordered(self, column: list[Any]) -> bool:
        return self._codec.takes(set(map(builtins.type, column)))

    def _check(self, value: Any) -> Any:
        try:
            return super(_Ordered, self)._check(value)
        except TypeError as error:
            if self.type is not None or not _has_order(builtins.type(value)):
                raise
            name, kind = builtins.type(self).__name__.lower(), builtins.type(value).__name__
            raise TypeError(f"{error}; for these, use {name}(…, type={kind})") from None

    def _check_ordered(self, value: Any) -> Any:
        try:
            kept = self._codec.keep(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.describe()} needs {self.type}: {error}") from None
        if isinstance(value, tuple):
            for item in value:
                if isinstance(item, Decimal) and item.is_nan():
                    raise ValueError(f"{self.describe()} needs ordered values, got {value!r:.80}")
            return value
        return kept

    def _order(self, value: Any) -> Any:
        return _instant(value) if self.type is dt.datetime else value

    def _plain_numbers(self, values: Sequence[Any]) -> bool:
        """Whether equal values are always identical in type and text."""
        kinds = set(map(builtins.type, values))
        return kinds == {int} or (kinds == {float} and 0.0 not in values)

    def _pack_one(self, value: Any) -> Any:
        return pack_number(value) if self._of_numbers else self._codec.pack(self._codec.keep(value))

    def _unpack_one(self, packed: Any) -> Any:
        if self._of_numbers:
            return unpack_number(packed)
        return self._codec.restore(self._codec.unpack(packed))


class _Extreme(_Ordered):
    __slots__ = ()

    choose: ClassVar[Any]

    @property
    def result_type(self) -> Any:
        return (int | float | Decimal if self.type is None else self.type) | None

    def describe(self) -> str:
        return f"{type(self).__name__.lower()}({described_parameters(self.of)})"

    def initial(self) -> Any:
        return None

    def add(self, accumulator: Any, column: Iterable[Any], places: Sequence[Place] | None = None) -> Any:  # noqa: ARG002 - the protocol's
        values = list(column) if accumulator is None else [accumulator, *column]
        if not values or self._plain_numbers(values):
            return self.choose(values, default=None)
        best = self._order(self.choose(values, key=self._order))
        # The choice among equal values must not depend on their order of arrival.
        return self.choose((value for value in values if self._order(value) == best), key=written_form)

    def merge(self, first: Any, second: Any) -> Any:
        if first is None or second is None:
            return second if first is None else first
        return self.add(first, [second])

    def result(self, accumulator: Any) -> Any:
        return accumulator

    def pack(self, accumulator: Any) -> Any:
        return None if accumulator is None else self._pack_one(accumulator)

    def unpack(self, packed: Any) -> Any:
        return None if packed is None else self._unpack_one(packed)


class Minimum(_Extreme):
    """See ``minimum``."""

    __slots__ = ()
    choose = min


class Maximum(_Extreme):
    """See ``maximum``."""

    __slots__ = ()
    choose = max


@overload
def minimum(of: str | None = None, *, type: None = None) -> Aggregate[Any, Any]: ...
@overload
def minimum(of: str | None = None, *, type: Type[T]) -> Aggregate[Any, T | None]: ...
@overload
def minimum(of: Callable[[V], T], *, type: Type[T] | None = None) -> Aggregate[V, T | None]: ...
def minimum(of: Of = None, *, type: Type[Any] | None = None) -> Aggregate[Any, Any]:  # noqa: A002 - as in the serdes
    """The smallest number; ``None`` without numbers.

    Numbers may be integers, floats and decimals, and keep their types. It also works for values of another
    ordered type (``str``, ``bytes``, ``date``, ``datetime``, ``timedelta``, ``UUID``, tuples of these); that
    type is the stream's or ``type``. A ``datetime`` without a zone counts as UTC.
    """
    return Minimum(of, type)


@overload
def maximum(of: str | None = None, *, type: None = None) -> Aggregate[Any, Any]: ...
@overload
def maximum(of: str | None = None, *, type: Type[T]) -> Aggregate[Any, T | None]: ...
@overload
def maximum(of: Callable[[V], T], *, type: Type[T] | None = None) -> Aggregate[V, T | None]: ...
def maximum(of: Of = None, *, type: Type[Any] | None = None) -> Aggregate[Any, Any]:  # noqa: A002 - as in the serdes
    """The largest number; ``None`` without numbers. For values of other types see ``minimum``."""
    return Maximum(of, type)


@dataclass(frozen=True, slots=True)
class Top(_Ordered):
    """See ``top``."""

    n: int = 1

    def __post_init__(self) -> None:
        require(self.n >= 1, "top", "n of at least 1", self.n)
        super(Top, self).__post_init__()

    @property
    def result_type(self) -> Any:
        return tuple_of(int | float | Decimal if self.type is None else self.type)

    def describe(self) -> str:
        return f"top({described_parameters(self.of, f'n={self.n}')})"

    def initial(self) -> tuple[Any, ...]:
        return ()

    def add(
        self,
        accumulator: tuple[Any, ...],
        column: Sequence[Any],
        places: Sequence[Place] | None = None,  # noqa: ARG002 - the protocol's
    ) -> tuple[Any, ...]:
        values = [*accumulator, *column]
        if self._plain_numbers(values):
            return tuple(sorted(values, reverse=True)[: self.n])
        values.sort(key=lambda value: (self._order(value), *written_form(value)), reverse=True)
        return tuple(values[: self.n])

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.add(first, second)

    def result(self, accumulator: tuple[Any, ...]) -> tuple[Any, ...]:
        return accumulator

    def pack(self, accumulator: tuple[Any, ...]) -> Any:
        return list(map(self._pack_one, accumulator))

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        return tuple(map(self._unpack_one, packed))


@overload
def top(n: int, of: str | None = None, *, type: None = None) -> Aggregate[Any, tuple[Any, ...]]: ...
@overload
def top(n: int, of: str | None = None, *, type: Type[T]) -> Aggregate[Any, tuple[T, ...]]: ...
@overload
def top(n: int, of: Callable[[V], T], *, type: Type[T] | None = None) -> Aggregate[V, tuple[T, ...]]: ...
def top(n: int, of: Of = None, *, type: Type[Any] | None = None) -> Aggregate[Any, Any]:  # noqa: A002 - as in the serdes
    """The ``n`` largest numbers, descending; duplicates are kept.

    For values of other types see ``minimum``.
    """
    return Top(of, type, n)
