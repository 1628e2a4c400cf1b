"""What an aggregation computes, from columns of many events at a time.

Arithmetic is exact until a result is asked for, so that neither the order of events, nor how they fell into
batches, nor events that were taken back, can be seen in it. Values that are kept come back as they were:
see ``streams.aggregates.value_codec``.
"""

from __future__ import annotations

import builtins
import datetime as dt
import math
import sys
import types
import typing
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from hashlib import blake2b
from heapq import nlargest
from itertools import accumulate, chain, count as counted, repeat
from keyword import iskeyword
from operator import itemgetter, neg
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from streams.aggregates.exact_sum import (
    EXACT_CONTEXT,
    Sum,
    added_exactly,
    expansion,
    negated,
    pack_number,
    pack_sum,
    quotient,
    rounded_sum,
    sum_plus,
    sums_merged,
    unpack_number,
    unpack_sum,
)
from streams.aggregates.value_codec import PLAIN, Encoded, ValueCodec
from streams.coroutines.awaitables import is_asynchronous, location, settled
from streams.errors import TopologyError
from streams.serde.schemas.shape import shape
from streams.serde.value_type import field_type, is_supported, known, returned_type, traits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

A = TypeVar("A")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
Type: TypeAlias = builtins.type[T]

Of: TypeAlias = "str | Callable[[Any], Any] | None"
"""What of a value is aggregated: the attribute (or a dictionary's key) of that name, what a function makes of
it, or the value itself."""


Place: TypeAlias = "tuple[int, str, int]"
"""Where an event stands in the order of events: its event time, then its topic and its offset."""

_NOWHERE: Place = (-1, "", -1)


class Aggregate(Protocol[A, R_co]):
    """Computes a result from the events of one group, be it a key's, a window's or a session's.

    ``A`` is the accumulator: all that is kept of the events so far. It is never changed in place: an
    accumulator may be kept and used again after others were made from it.
    """

    @property
    def record_wise(self) -> bool:
        """Whether ``add`` and ``remove`` run user code, so that they are to be given one entry at a time.

        Where this is false they never raise for entries that ``column`` has let through.
        """

    @property
    def ordered(self) -> bool:
        """Whether ``add`` needs the places of events, as the result depends on their order."""

    @property
    def removable(self) -> bool:
        """Whether ``remove`` may be called."""

    @property
    def mergeable(self) -> bool:
        """Whether ``merge`` may be called."""

    def describe(self) -> str:
        """Stable text of the kind and its parameters.

        Aggregates with the same text can read each other's packed accumulators. Of a function only the name
        is told.
        """

    @property
    def schema(self) -> Any:
        """What decides how packed accumulators are read, as plain data: see ``aggregate_resolution``."""

    @property
    def result_type(self) -> Any:
        """The type of results; ``Any`` where it is not known."""

    def typed(self, kind: Any) -> Aggregate[Any, Any]:
        """The aggregate for values of that type (``Any`` where it is not known)."""

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        """What ``add`` and ``remove`` need of each value: lazily, one entry a value, in order.

        Raises at the value that cannot be aggregated.
        """

    def initial(self) -> A:
        """The accumulator of no events."""

    def add(self, accumulator: A, column: Sequence[Any], places: Sequence[Place] | None = None) -> A:
        """The accumulator with further events, given by their entries in the order they came.

        ``places`` are those of the events, where ``ordered``; without them, events stand in the order they
        were added.
        """

    def remove(self, accumulator: A, column: Sequence[Any]) -> A:
        """The accumulator without events that were added before."""

    def merge(self, first: A, second: A) -> A:
        """The accumulator of both, where ``first`` has the earlier events."""

    def result(self, accumulator: A) -> R_co:
        """What the events so far amount to."""

    def pack(self, accumulator: A) -> Any:
        """The accumulator as plain values that msgpack can hold."""

    def unpack(self, packed: Any) -> A:
        """The accumulator that was packed."""


class _Aggregate:
    """What most aggregates have in common."""

    __slots__ = ()

    record_wise: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    removable: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    result_type: ClassVar[Any] = Any

    @property
    def schema(self) -> Any:
        return self.describe()

    def typed(self, kind: Any) -> Any:  # noqa: ARG002 - the protocol's
        return self

    def describe(self) -> str:
        raise NotImplementedError

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:  # noqa: ARG002 - the protocol's
        raise TypeError(f"{self.describe()} cannot take events back")

    def pack(self, accumulator: Any) -> Any:
        return accumulator

    def unpack(self, packed: Any) -> Any:
        return packed


# Columns


def _entries(of: Of, values: Sequence[Any]) -> Iterable[Any]:
    if of is None:
        return values
    if not isinstance(of, str):
        return map(settled, map(of, values))
    mappings = [issubclass(kind, dict) for kind in set(map(type, values))]
    if not any(mappings):
        return map(getattr, values, repeat(of))
    if all(mappings):
        return map(itemgetter(of), values)
    return (value[of] if isinstance(value, dict) else getattr(value, of) for value in values)


def _checked(
    of: Of, values: Sequence[Any], accept: Callable[[list[Any]], bool], check: Callable[[Any], Any]
) -> Iterable[Any]:
    """The values' entries as ``check`` returns them; at once where ``accept`` knows it to change nothing."""
    # A user's function is given each value once, so its results cannot be looked at before the first is used.
    if of is None or isinstance(of, str):
        with suppress(Exception):
            column = list(_entries(of, values))
            if accept(column):
                return column
    return map(check, _entries(of, values))


def _field(of: Of) -> str:
    return (
        "" if of is None else repr(of) if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)
    )


def _parameters(of: Of, *others: str) -> str:
    return ", ".join(filter(None, (_field(of), *others)))


def _entry_type(of: Of, kind: Any) -> Any:
    """The type of what is aggregated of values of a type."""
    if of is None:
        return known(kind)
    return field_type(kind, of) if isinstance(of, str) else returned_type(of)


_PLACES = 300
"""Decimals of more places would make exact sums as long as they like."""


class _Numbers(_Aggregate):
    """An aggregate of integers, floats and decimals whose magnitude is at most ``limit``."""

    __slots__ = ()

    limit: ClassVar[float] = math.inf
    places: ClassVar[int] = _PLACES
    """How many decimal places decimals may have."""
    of: Of

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return _checked(self.of, values, self._accept, self._check)

    def _accept(self, column: list[Any]) -> bool:
        # In C throughout; what this turns down is looked at one by one.
        kinds = set(map(type, column))
        if kinds == {Decimal}:
            return self._accept_decimals(column)
        if not kinds <= {int, float}:
            return False
        if not column or (kinds == {int} and self.limit == math.inf):
            return True
        # A NaN anywhere makes the sum one, and may hide from comparisons.
        return -self.limit <= min(column) and max(column) <= self.limit and not math.isnan(sum(column))

    def _accept_decimals(self, column: list[Decimal]) -> bool:
        if not all(map(Decimal.is_finite, column)):
            return False
        least, largest = _bounds(self.limit)
        if not (least <= min(column) and max(column) <= largest):
            return False
        return all(number.as_tuple().exponent >= -self.places for number in column)  # type: ignore[operator]  # a number, as it is finite

    def _check(self, value: Any) -> Any:
        if isinstance(value, Decimal):
            if not value.is_finite():
                raise ValueError(f"{self.describe()} needs numbers, got {value}")
            if not self._accept_decimals([value]):
                raise ValueError(
                    f"{self.describe()} needs numbers up to {self.limit:g} with at most {self.places} "
                    f"places, got {value!r:.80}"
                )
            return Decimal(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{self.describe()} needs numbers, got {type(value).__name__}: {value!r:.80}")
        if value != value:  # noqa: PLR0124 - true for NaN only
            raise ValueError(f"{self.describe()} needs numbers, got NaN")
        if not -self.limit <= value <= self.limit:
            raise ValueError(f"{self.describe()} needs numbers up to {self.limit:g}, got {value!r:.80}")
        return float(value) if isinstance(value, float) else int(value)


@lru_cache
def _bounds(limit: float) -> tuple[Decimal, Decimal]:
    largest = Decimal("Infinity") if limit == math.inf else Decimal(int(limit))
    return largest.copy_negate(), largest


_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class _Values(_Aggregate):
    """An aggregate that keeps values and gives them back as they are.

    ``type`` is the type they have; without one, they must be such that describe themselves.
    """

    __slots__ = ()

    of: Of
    type: Type[Any] | None
    _codec: ValueCodec

    @property
    def schema(self) -> Any:
        return _schema_of_values(self.describe(), self.type)

    def typed(self, kind: Any) -> Any:
        found = Any if self.type is not None else _entry_type(self.of, kind)
        return self if found is Any else replace(self, type=found)  # type: ignore[type-var]  # every subclass is a dataclass

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return _checked(self.of, values, self._accept, self._keep)

    def _accept(self, column: list[Any]) -> bool:
        if not self._codec.takes(set(map(type, column))):
            return False
        # Refuses integers beyond 64 bits and text that is not Unicode.
        _encode(column)
        return True

    def _keep(self, value: Any) -> Any:
        if type(value) in {str, int}:
            _encode(value)
        try:
            return self._codec.keep(value)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(self._refusal(error)) from None
        except (TypeError, ValueError) as error:
            raise TypeError(self._refusal(error)) from None

    def _refusal(self, error: Exception) -> str:
        name = self.describe().partition("(")[0]
        return (
            f"{self.describe()} cannot keep this value: {error}; say what it is, {name}(…, type=…), "
            "or annotate the function that makes it"
        )


def _tuple_of(kind: Any) -> Any:
    return types.GenericAlias(tuple, (Any if kind is None else kind, ...))


def _codec_for(what: str, kind: Any) -> ValueCodec:
    if kind is None or kind is Any:
        return ValueCodec()
    _require(is_supported(kind), what, "a type that msgspec can store", kind)
    return ValueCodec(kind)


def _schema_of_values(described: str, kind: Any) -> Any:
    """The schema of an aggregate that keeps values of a type."""
    if kind is None or kind is Any:
        return {"aggregate": described, "of": {"json": "any"}}
    try:
        return {"aggregate": described, "of": {"json": shape(kind) or "any"}}
    except TypeError:
        return {"aggregate": described, "of": {"json": str(kind)}}


# Counts and sums


@dataclass(frozen=True, slots=True)
class Count(_Aggregate):
    """See ``count``."""

    removable: ClassVar[bool] = True
    result_type: ClassVar[Any] = int

    def describe(self) -> str:
        return "count()"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return values

    def initial(self) -> int:
        return 0

    def add(self, accumulator: int, column: Sequence[Any], places: Sequence[Place] | None = None) -> int:  # noqa: ARG002 - the protocol's
        return accumulator + len(column)

    def remove(self, accumulator: int, column: Sequence[Any]) -> int:
        return accumulator - len(column)

    def merge(self, first: int, second: int) -> int:
        return first + second

    def result(self, accumulator: int) -> int:
        return accumulator


def count() -> Count:
    """The number of events."""
    return Count()


@dataclass(frozen=True, slots=True)
class Total(_Numbers):
    """See ``total``."""

    of: Of = None

    removable: ClassVar[bool] = True
    result_type: ClassVar[Any] = int | float | Decimal
    # So far below the largest float that 10^18 numbers cannot reach it.
    limit: ClassVar[float] = 1e290

    def describe(self) -> str:
        return f"total({_parameters(self.of)})"

    def initial(self) -> Sum:
        return 0

    def add(self, accumulator: Sum, column: Sequence[Any], places: Sequence[Place] | None = None) -> Sum:  # noqa: ARG002 - the protocol's
        return sum_plus(accumulator, column)

    def remove(self, accumulator: Sum, column: Sequence[Any]) -> Sum:
        return sum_plus(accumulator, negated(column))

    def merge(self, first: Sum, second: Sum) -> Sum:
        return sums_merged(first, second)

    def result(self, accumulator: Sum) -> Any:
        return rounded_sum(accumulator)

    def pack(self, accumulator: Sum) -> Any:
        return pack_sum(accumulator)

    def unpack(self, packed: Any) -> Sum:
        return unpack_sum(packed)


def total(of: Of = None) -> Total:
    """The sum of numbers; 0 of none.

    Integers give an exact integer. As soon as a ``Decimal`` was among them it is a ``Decimal``: the exact
    sum, whatever the precision of the current context, with as many places as any of them. As soon as a float
    was among them it is a float: the exact sum of all, rounded once. Numbers beyond 1e290, decimals of more
    than 300 places, NaN and infinity are refused.
    """
    return Total(of)


@dataclass(frozen=True, slots=True)
class Mean(_Numbers):
    """See ``mean``."""

    of: Of = None

    removable: ClassVar[bool] = True
    result_type: ClassVar[Any] = float | Decimal | None
    limit: ClassVar[float] = Total.limit

    def describe(self) -> str:
        return f"mean({_parameters(self.of)})"

    def initial(self) -> tuple[int, Sum]:
        return 0, 0

    def add(
        self,
        accumulator: tuple[int, Sum],
        column: Sequence[Any],
        places: Sequence[Place] | None = None,  # noqa: ARG002 - the protocol's
    ) -> tuple[int, Sum]:
        return accumulator[0] + len(column), sum_plus(accumulator[1], column)

    def remove(self, accumulator: tuple[int, Sum], column: Sequence[Any]) -> tuple[int, Sum]:
        return accumulator[0] - len(column), sum_plus(accumulator[1], negated(column))

    def merge(self, first: tuple[int, Sum], second: tuple[int, Sum]) -> tuple[int, Sum]:
        return first[0] + second[0], sums_merged(first[1], second[1])

    def result(self, accumulator: tuple[int, Sum]) -> Any:
        events, added = accumulator
        if not events:
            return None
        total = rounded_sum(added)
        return quotient(total, events) if isinstance(total, Decimal) else total / events

    def pack(self, accumulator: tuple[int, Sum]) -> Any:
        return [accumulator[0], pack_sum(accumulator[1])]

    def unpack(self, packed: Any) -> tuple[int, Sum]:
        return packed[0], unpack_sum(packed[1])


def mean(of: Of = None) -> Mean:
    """The mean of numbers, from their exact sum; ``None`` of none. Refused is what ``total`` refuses.

    Where their sum is a ``Decimal``, so is the mean: rounded once, to 28 digits or, for longer sums, to a few
    more than these have. It is a float otherwise.
    """
    return Mean(of)


_Moments: TypeAlias = "tuple[Any, ...]"
"""The number of values, and the expansions of the floats' sum and of the sum of their squares; then, if there
are decimals, their number, sum and sum of squares."""

_SPLITTER = 2.0**27 + 1


def _squares(column: Iterable[float]) -> list[float]:
    """Floats whose exact sum is that of the squares: each square rounded, and what the rounding took.

    Veltkamp's splitting and Dekker's product ("A floating-point technique for extending the available
    precision", 1971).
    """
    terms: list[float] = []
    for value in column:
        scaled = _SPLITTER * value
        high = scaled - (scaled - value)
        low = value - high
        square = value * value
        terms += square, ((high * high - square) + 2.0 * high * low) + low * low
    return terms


def _in_units(parts: tuple[float, ...]) -> int:
    """The exact sum of floats in units of 2^-1074, of which every float is a multiple."""
    total = 0
    for part in parts:
        numerator, denominator = part.as_integer_ratio()
        total += numerator << 1075 - denominator.bit_length()
    return total


@dataclass(frozen=True, slots=True)
class Variance(_Numbers):
    """See ``variance``."""

    of: Of = None
    sample: bool = False

    removable: ClassVar[bool] = True
    result_type: ClassVar[Any] = float | Decimal | None
    # The squares then are within what ``Total`` allows.
    limit: ClassVar[float] = 1e145

    def describe(self) -> str:
        return f"variance({_parameters(self.of, f'sample={self.sample}')})"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return map(_float_or_decimal, super(Variance, self).column(values))

    def initial(self) -> _Moments:
        return 0, (), ()

    def add(
        self,
        accumulator: _Moments,
        column: Sequence[Any],
        places: Sequence[Place] | None = None,  # noqa: ARG002 - the protocol's
    ) -> _Moments:
        if len(accumulator) == 3 and Decimal not in set(map(type, column)):
            events, added, squared = accumulator
            return (
                events + len(column),
                expansion(chain(added, column)),
                expansion(chain(squared, _squares(column))),
            )
        return self.merge(accumulator, _moments(column))

    def remove(self, accumulator: _Moments, column: Sequence[Any]) -> _Moments:
        events, added, squared, *decimals = _moments(column)
        taken = (-events, tuple(map(neg, added)), tuple(map(neg, squared)), *negated(decimals))
        return self.merge(accumulator, taken)

    def merge(self, first: _Moments, second: _Moments) -> _Moments:
        floats = (
            first[0] + second[0],
            expansion(chain(first[1], second[1])),
            expansion(chain(first[2], second[2])),
        )
        if len(first) == len(second) == 3:
            return floats
        number, added, squared = map(added_exactly, first[3:] or _NO_DECIMALS, second[3:] or _NO_DECIMALS)
        return (*floats, number, added, squared) if number else floats

    def result(self, accumulator: _Moments) -> Any:
        events, added, squared, *decimals = accumulator
        divisor = events - 1 if self.sample else events
        if divisor < 1:
            return None
        if not decimals:
            # Both terms are whole numbers of 2^-2148, so their difference loses nothing, however close.
            spread = events * (_in_units(squared) << 1074) - _in_units(added) ** 2
            return max(spread, 0) / (events * divisor << 2148)
        number, decimal_sum, decimal_squares = decimals
        total = sum(map(Fraction, added), Fraction(decimal_sum))
        squares = sum(map(Fraction, squared), Fraction(decimal_squares))
        exact = (events * squares - total**2) / (events * divisor)
        return quotient(exact.numerator, exact.denominator) if number == events else float(exact)

    def pack(self, accumulator: _Moments) -> Any:
        return [*accumulator[:4], *map(pack_number, accumulator[4:])]

    def unpack(self, packed: Any) -> _Moments:
        return packed[0], tuple(packed[1]), tuple(packed[2]), *packed[3:4], *map(unpack_number, packed[4:])


_NO_DECIMALS = (0, Decimal(0), Decimal(0))


def _float_or_decimal(number: Any) -> Any:
    return number if type(number) is Decimal else float(number)


def _moments(column: Sequence[Any]) -> _Moments:
    if Decimal not in set(map(type, column)):
        return len(column), expansion(column), expansion(_squares(column))
    decimals = [number for number in column if type(number) is Decimal]
    floats = [number for number in column if type(number) is float]
    return (
        len(column),
        expansion(floats),
        expansion(_squares(floats)),
        len(decimals),
        reduce(EXACT_CONTEXT.add, decimals, Decimal(0)),
        reduce(
            EXACT_CONTEXT.add, (EXACT_CONTEXT.multiply(number, number) for number in decimals), Decimal(0)
        ),
    )


def variance(of: Of = None, *, sample: bool = False) -> Variance:
    """The variance of numbers: of all there are, or estimated from a sample of them (divided by n - 1).

    It is computed exactly and rounded once, so it stays right for numbers that differ little from each other,
    and after others were taken back. Integers beyond 2^53 count as the nearest float; numbers beyond 1e145,
    and decimals as with ``total``, are refused. It is a ``Decimal`` of decimals alone, otherwise a float.
    ``None`` of no numbers, and of one number as sample.
    """
    return Variance(of, sample)


# Extremes


_NUMBER_TYPES = (int, float, Decimal)
_ORDERED = {str: None, bytes: None, dt.date: None, dt.timedelta: None, UUID: None}


def _instant(time: dt.datetime) -> dt.datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=dt.UTC)


def _has_order(kind: Any) -> bool:
    """Whether values of a type, which are no numbers, have an order."""
    if kind is dt.datetime or kind in _ORDERED:
        return True
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple or not arguments:
        return False
    return all(item in _ORDERED or item in {int, Decimal} for item in arguments if item is not Ellipsis)


def _written(value: Any) -> tuple[str, str]:
    """What equal values may differ in: 1, 1.0 and Decimal("1.00")."""
    return type(value).__name__, repr(value)


@dataclass(frozen=True, slots=True)
class _Ordered(_Numbers):
    """What the smallest and the largest values have in common: of numbers, or of one type with an order."""

    of: Of = None
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    places: ClassVar[int] = 10**9

    def __post_init__(self) -> None:
        name = builtins.type(self).__name__.lower()
        orderable = self.type is None or self.type in _NUMBER_TYPES or _has_order(self.type)
        needed = "a type with an order: a number, str, bytes, date, datetime, timedelta, UUID or a tuple"
        _require(orderable, name, needed, self.type)
        object.__setattr__(self, "_codec", _codec_for(name, self.type))

    @property
    def schema(self) -> Any:
        return self.describe() if self._of_numbers else _schema_of_values(self.describe(), self.type)

    @property
    def _of_numbers(self) -> bool:
        return self.type is None or self.type in _NUMBER_TYPES

    def typed(self, kind: Any) -> Any:
        found = Any if self.type is not None else _entry_type(self.of, kind)
        return replace(self, type=found) if found in _NUMBER_TYPES or _has_order(found) else self

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        if self._of_numbers:
            return super(_Ordered, self).column(values)
        return _checked(self.of, values, self._accept_ordered, self._check_ordered)

    def _accept_ordered(self, column: list[Any]) -> bool:
        return self._codec.takes(set(map(builtins.type, column)))

    def _check(self, value: Any) -> Any:
        try:
            return super(_Ordered, self)._check(value)
        except TypeError as error:
            if self.type is not None or not _has_order(builtins.type(value)):
                raise
            name, kind = builtins.type(self).__name__.lower(), builtins.type(value).__name__
            raise TypeError(f"{error}; for these, say {name}(…, type={kind})") from None

    def _check_ordered(self, value: Any) -> Any:
        try:
            kept = self._codec.keep(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.describe()} needs {self.type}: {error}") from None
        if isinstance(value, tuple):
            for item in value:
                if isinstance(item, Decimal) and item.is_nan():
                    raise ValueError(f"{self.describe()} needs values with an order, got {value!r:.80}")
            return value
        return kept

    def _order(self, value: Any) -> Any:
        return _instant(value) if self.type is dt.datetime else value

    def _plain_numbers(self, values: Sequence[Any]) -> bool:
        """Whether values that are equal are the same."""
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
        return f"{type(self).__name__.lower()}({_parameters(self.of)})"

    def initial(self) -> Any:
        return None

    def add(self, accumulator: Any, column: Iterable[Any], places: Sequence[Place] | None = None) -> Any:  # noqa: ARG002 - the protocol's
        values = list(column) if accumulator is None else [accumulator, *column]
        if not values or self._plain_numbers(values):
            return self.choose(values, default=None)
        best = self._order(self.choose(values, key=self._order))
        # Which of several that are equal must not depend on the order in which they came.
        return self.choose((value for value in values if self._order(value) == best), key=_written)

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


def minimum(of: Of = None, *, type: Type[Any] | None = None) -> Minimum:  # noqa: A002 - as in the serdes
    """The smallest number; ``None`` of none.

    Numbers may be integers, floats and decimals, and stay what they are. With values of another type that has
    an order (``str``, ``bytes``, ``date``, ``datetime``, ``timedelta``, ``UUID``, tuples of such), it is the
    smallest of these; that type is the stream's or ``type``. A ``datetime`` without a zone counts as UTC.
    """
    return Minimum(of, type)


def maximum(of: Of = None, *, type: Type[Any] | None = None) -> Maximum:  # noqa: A002 - as in the serdes
    """The largest number; ``None`` of none. For values of other types see ``minimum``."""
    return Maximum(of, type)


@dataclass(frozen=True, slots=True)
class Top(_Ordered):
    """See ``top``."""

    n: int = 1

    def __post_init__(self) -> None:
        _require(self.n >= 1, "top", "n of at least 1", self.n)
        super(Top, self).__post_init__()

    @property
    def result_type(self) -> Any:
        return _tuple_of(int | float | Decimal if self.type is None else self.type)

    def describe(self) -> str:
        return f"top({_parameters(self.of, f'n={self.n}')})"

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
        values.sort(key=lambda value: (self._order(value), *_written(value)), reverse=True)
        return tuple(values[: self.n])

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.add(first, second)

    def result(self, accumulator: tuple[Any, ...]) -> tuple[Any, ...]:
        return accumulator

    def pack(self, accumulator: tuple[Any, ...]) -> Any:
        return list(map(self._pack_one, accumulator))

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        return tuple(map(self._unpack_one, packed))


def top(n: int, of: Of = None, *, type: Type[Any] | None = None) -> Top:  # noqa: A002 - as in the serdes
    """The ``n`` largest numbers, descending; a number that comes several times is there several times.

    For values of other types see ``minimum``.
    """
    return Top(of, type, n)


# Values


_Placed: TypeAlias = "tuple[Place, Any] | tuple[()]"
"""A value as it is kept, with its place; empty without one."""


@dataclass(frozen=True, slots=True)
class _Single(_Values):
    of: Of = None
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    ordered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "_codec", _codec_for(self.describe(), self.type))

    @property
    def result_type(self) -> Any:
        return Any if self.type is None else self.type | None

    def describe(self) -> str:
        return f"{builtins.type(self).__name__.lower()}({_parameters(self.of)})"

    def initial(self) -> _Placed:
        return ()

    def result(self, accumulator: _Placed) -> Any:
        return self._codec.restore(accumulator[1]) if accumulator else None

    def pack(self, accumulator: _Placed) -> Any:
        return [*accumulator[0], self._codec.pack(accumulator[1])] if accumulator else []

    def unpack(self, packed: Any) -> _Placed:
        if not packed:
            return ()
        # Earlier versions stored the value without its place.
        place = tuple(packed[:3]) if len(packed) == 4 else _NOWHERE
        return place, self._codec.unpack(packed[-1])


class First(_Single):
    """See ``first``."""

    __slots__ = ()

    def add(
        self, accumulator: _Placed, column: Sequence[Any], places: Sequence[Place] | None = None
    ) -> _Placed:
        if not column:
            return accumulator
        place, at = (_NOWHERE, 0) if places is None else min(zip(places, counted(), strict=False))
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
        place, at = (_NOWHERE, -1) if places is None else max(zip(places, counted(), strict=False))
        return self.merge(accumulator, (place, column[at]))

    def merge(self, first: _Placed, second: _Placed) -> _Placed:
        if not first or not second:
            return first or second
        return second if first[0] <= second[0] else first


@dataclass(frozen=True, slots=True)
class Collect(_Values):
    """See ``collect``."""

    of: Of = None
    limit: int | None = None
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    ordered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require(self.limit is None or self.limit >= 1, "collect", "a limit of at least 1", self.limit)
        object.__setattr__(self, "_codec", _codec_for(self.describe(), self.type))

    @property
    def result_type(self) -> Any:
        return _tuple_of(self.type)

    def describe(self) -> str:
        return f"collect({_parameters(self.of, f'limit={self.limit}')})"

    def initial(self) -> tuple[Any, ...]:
        return ()

    def add(
        self, accumulator: tuple[Any, ...], column: Sequence[Any], places: Sequence[Place] | None = None
    ) -> tuple[Any, ...]:
        return self.merge(accumulator, tuple(zip(places or repeat(_NOWHERE), column, strict=False)))

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        full = self.limit is not None and len(first) >= self.limit
        if full and min(map(_place, second), default=first[-1][0]) >= first[-1][0]:
            return first
        both = [*first, *second]
        # Nearly always in order already, which takes no time.
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
            return tuple((_NOWHERE, unpack(value)) for value in packed)
        topics = packed["topics"]
        numbers = packed.get("of", [0] * len(packed["values"]))
        places = zip(packed["times"], (topics[number] for number in numbers), packed["offsets"], strict=True)
        return tuple(zip(places, map(unpack, packed["values"]), strict=True))


_place = itemgetter(0)


def first(of: Of = None, *, type: Type[Any] | None = None) -> First:  # noqa: A002 - as in the serdes
    """The value of the earliest event time; ``None`` of none.

    Of several with that time it is the one with the lowest offset, and before that with the topic that comes
    first by name, where a group has records of several topics: in which order they came does not matter.
    Values of one record, and results of aggregates, count in the order they came.

    Values come back as they are. Objects of classes need a type for that: it is found from the stream's type
    and the annotation of a function ``of``, or given by ``type``.
    """
    return First(of, type)


def latest(of: Of = None, *, type: Type[Any] | None = None) -> Latest:  # noqa: A002 - as in the serdes
    """The value of the latest event time; ``None`` of none. See ``first`` for equal times and for types."""
    return Latest(of, type)


def collect(
    of: Of = None,
    *,
    limit: int | None = None,
    type: Type[Any] | None = None,  # noqa: A002 - as in the serdes
) -> Collect:
    """All values in the order of event time, or the earliest ``limit`` of them.

    See ``first`` for equal times and for types. Without a limit, the accumulator grows with every event and
    is written with every commit.
    """
    return Collect(of, limit, type)


# Sketches


@dataclass(frozen=True, slots=True)
class Quantile(_Numbers):
    """See ``quantile``."""

    q: float
    of: Of = None
    error: float = 0.01

    _scale: float = field(init=False, repr=False, compare=False)
    _lowest: int = field(init=False, repr=False, compare=False)

    removable: ClassVar[bool] = True
    result_type: ClassVar[Any] = float | Decimal | None
    limit: ClassVar[float] = sys.float_info.max

    def __post_init__(self) -> None:
        _require(0.0 <= self.q <= 1.0, "quantile", "q from 0 to 1", self.q)
        _require(1e-6 <= self.error <= 0.5, "quantile", "an error from 1e-6 to 0.5", self.error)
        object.__setattr__(self, "_scale", 1.0 / math.log((1.0 + self.error) / (1.0 - self.error)))
        object.__setattr__(self, "_lowest", math.ceil(math.log(sys.float_info.min) * self._scale))

    def describe(self) -> str:
        return f"quantile({_parameters(self.of, f'q={self.q}', f'error={self.error}')})"

    places: ClassVar[int] = 10**9

    def column(self, values: Sequence[Any]) -> Iterable[int]:
        return map(self._bin, super(Quantile, self).column(values))

    def _bin(self, number: Any) -> int:
        """The number's bin: 0 for zero, ascending with the numbers; those of decimals lie apart."""
        if type(number) is Decimal:
            return self._bin(float(number)) + _OF_DECIMALS
        if number >= sys.float_info.min:
            return math.ceil(math.log(number) * self._scale) - self._lowest + 1
        if number <= -sys.float_info.min:
            return self._lowest - 1 - math.ceil(math.log(-number) * self._scale)
        return 0

    def _middle(self, number: int) -> float:
        """The number that is nearest, relatively, to all in a bin."""
        if number == 0:
            return 0.0
        exponent = (abs(number) - 1 + self._lowest) / self._scale + math.log1p(-self.error)
        return math.copysign(math.exp(min(exponent, _LARGEST_EXPONENT)), number)

    def initial(self) -> dict[int, int]:
        return {}

    def add(
        self,
        accumulator: dict[int, int],
        column: Sequence[int],
        places: Sequence[Place] | None = None,  # noqa: ARG002 - the protocol's
    ) -> dict[int, int]:
        bins = accumulator.copy()
        for number in column:
            bins[number] = bins.get(number, 0) + 1
        return bins

    def remove(self, accumulator: dict[int, int], column: Sequence[int]) -> dict[int, int]:
        return _added(accumulator, {number: -events for number, events in Counter(column).items()})

    def merge(self, first: dict[int, int], second: dict[int, int]) -> dict[int, int]:
        return _added(first, second)

    def result(self, accumulator: dict[int, int]) -> Any:
        bins = accumulator
        of_decimals = bool(bins) and min(bins) > _OF_DECIMALS // 2
        if bins and max(bins) > _OF_DECIMALS // 2:
            bins = {}
            for number, events in accumulator.items():
                own = number - _OF_DECIMALS if number > _OF_DECIMALS // 2 else number
                bins[own] = bins.get(own, 0) + events
        rank = math.floor(self.q * (sum(bins.values()) - 1))
        for number in sorted(bins):
            rank -= bins[number]
            if rank < 0:
                middle = self._middle(number)
                return Decimal(repr(middle)) if of_decimals else middle
        return None

    def pack(self, accumulator: dict[int, int]) -> Any:
        # Bins close to each other have small differences, and msgpack holds small integers in one byte.
        packed: list[int] = []
        last = 0
        for number in sorted(accumulator):
            packed += number - last, accumulator[number]
            last = number
        return packed

    def unpack(self, packed: Any) -> dict[int, int]:
        return dict(zip(accumulate(packed[::2]), packed[1::2], strict=True))


_LARGEST_EXPONENT = math.log(sys.float_info.max)

_OF_DECIMALS = 1 << 62
"""Added to the bins of decimals, so that it is known whether all numbers were such."""


def _added(counts: dict[Any, int], others: dict[Any, int]) -> dict[Any, int]:
    added = counts.copy()
    for key, events in others.items():
        added[key] = added.get(key, 0) + events
        if not added[key]:
            del added[key]
    return added


def quantile(q: float, of: Of = None, *, error: float = 0.01) -> Quantile:
    """The number that a share ``q`` of all numbers lies below, e.g. 0.5 for the median; ``None`` of none.

    For ``n`` numbers, the result differs by at most the relative ``error`` from the one at position
    floor(q (n - 1)) of their ascending order, counted from 0. Numbers below 2.3e-308 count as zero; infinite
    ones are refused. It is a ``Decimal`` of decimals alone, otherwise a float.

    This is DDSketch (Masson, Rim, Lee: "DDSketch: A fast and fully-mergeable quantile sketch with
    relative-error guarantees", 2019) with as many bins as there are numbers to tell apart: at an error of
    0.01, at most 116 for each power of ten that the numbers reach over.
    """
    return Quantile(q, of, error)


_Registers: TypeAlias = "frozenset[int] | bytes"
"""The hashes themselves while they are few, then HyperLogLog's registers, a byte each."""

_HASH_BYTES = 6
_HASH_BITS = 8 * _HASH_BYTES


@dataclass(frozen=True, slots=True)
class Distinct(_Aggregate):
    """See ``distinct``."""

    of: Of = None
    error: float = 0.01

    result_type: ClassVar[Any] = int

    _precision: int = field(init=False, repr=False, compare=False)
    """The binary logarithm of the number of registers."""

    def __post_init__(self) -> None:
        _require(0.0021 <= self.error <= 0.26, "distinct", "an error from 0.0021 to 0.26", self.error)
        object.__setattr__(self, "_precision", math.ceil(2 * math.log2(1.04 / self.error)))

    def describe(self) -> str:
        return f"distinct({_parameters(self.of, f'error={self.error}')})"

    def column(self, values: Sequence[Any]) -> Iterable[int]:
        return map(_hash, _entries(self.of, values))

    def initial(self) -> _Registers:
        return frozenset()

    def add(
        self,
        accumulator: _Registers,
        column: Iterable[int],
        places: Sequence[Place] | None = None,  # noqa: ARG002 - the protocol's
    ) -> _Registers:
        if isinstance(accumulator, frozenset):
            hashes = accumulator.union(column)
            # From here on the registers are copied faster than the hashes.
            if len(hashes) <= 1 << self._precision - 4:
                return hashes
            registers, column = bytearray(1 << self._precision), hashes
        else:
            registers = bytearray(accumulator)
        index_shift = _HASH_BITS - self._precision
        mask = (1 << index_shift) - 1
        for value in column:
            index = value >> index_shift
            # The position of the first 1 behind the bits of the index, counted from 1.
            position = index_shift + 1 - (value & mask).bit_length()
            if position > registers[index]:  # noqa: PLR1730 - max() takes twice as long
                registers[index] = position
        return bytes(registers)

    def merge(self, first: _Registers, second: _Registers) -> _Registers:
        if isinstance(second, frozenset):
            return self.add(first, second)
        if isinstance(first, frozenset):
            return self.add(second, first)
        return _larger(first, second)

    def result(self, accumulator: _Registers) -> int:
        if isinstance(accumulator, frozenset):
            return len(accumulator)
        return round(_cardinality(accumulator, _HASH_BITS - self._precision))

    def pack(self, accumulator: _Registers) -> Any:
        if isinstance(accumulator, frozenset):
            return b"".join(value.to_bytes(_HASH_BYTES, "big") for value in sorted(accumulator))
        return accumulator

    def unpack(self, packed: Any) -> _Registers:
        if len(packed) == 1 << self._precision:
            return bytes(packed)
        return frozenset(
            int.from_bytes(packed[at : at + _HASH_BYTES], "big") for at in range(0, len(packed), _HASH_BYTES)
        )


def _hash(value: Any) -> int:
    return int.from_bytes(blake2b(_encode(value), digest_size=_HASH_BYTES).digest(), "big")


def _larger(first: bytes, second: bytes) -> bytes:
    """The larger byte at each place, for bytes below 128."""
    # As one long integer each: a byte's highest bit survives the subtraction where the first is not smaller.
    one, other = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    highest = int.from_bytes(b"\x80" * len(first), "big")
    not_smaller = ((one | highest) - other) & highest
    from_first = not_smaller - (not_smaller >> 7)
    return (other ^ ((one ^ other) & from_first)).to_bytes(len(first), "big")


def _cardinality(registers: bytes, bits: int) -> float:
    """How many different hashes set the registers, each from so many ``bits`` behind the index.

    The improved raw estimator of Ertl ("New cardinality estimation algorithms for HyperLogLog sketches",
    2017), which has no bias to correct.
    """
    total = len(registers)
    counts = [registers.count(position) for position in range(bits + 2)]
    estimate = total * _tau(1.0 - counts[bits + 1] / total)
    for position in range(bits, 0, -1):
        estimate = 0.5 * (estimate + counts[position])
    estimate += total * _sigma(counts[0] / total)
    return total * total / (2.0 * math.log(2.0) * estimate)


def _sigma(share: float) -> float:
    if share == 1.0:
        return math.inf
    weight, estimate, last = 1.0, share, -1.0
    while estimate != last:
        share *= share
        last = estimate
        estimate += share * weight
        weight += weight
    return estimate


def _tau(share: float) -> float:
    if share in {0.0, 1.0}:
        return 0.0
    weight, estimate, last = 1.0, 1.0 - share, -1.0
    while estimate != last:
        share = math.sqrt(share)
        last = estimate
        weight *= 0.5
        estimate -= (1.0 - share) ** 2 * weight
    return estimate / 3.0


def distinct(of: Of = None, *, error: float = 0.01) -> Distinct:
    """About how many different values there are.

    ``error`` is the relative standard error at most: two of three results are closer to the truth, 997 of
    1000 are within three times as much. Few values (at an error of 0.01, up to 1024) are counted exactly.
    Values differ when their msgpack differs: 1, 1.0 and True do, a tuple and a list of the same do not.

    This is HyperLogLog (Flajolet, Fusy, Gandouet, Meunier, 2007), of 48 bits of BLAKE2b, enough for 10^12
    values, with a sparse form as in HyperLogLog++ (Heule, Nunkesser, Hall: "HyperLogLog in practice", 2013).
    """
    return Distinct(of, error)


_Frequencies: TypeAlias = "tuple[int, dict[Any, int]]"
"""By how much any count may be too small, and the counts, by value as it is kept."""


@dataclass(frozen=True, slots=True)
class MostFrequent(_Values):
    """See ``most_frequent``."""

    n: int
    of: Of = None
    capacity: int = 1000
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require(self.n >= 1, "most_frequent", "n of at least 1", self.n)
        _require(self.capacity >= self.n, "most_frequent", f"a capacity of at least {self.n}", self.capacity)
        object.__setattr__(self, "_codec", _codec_for(self.describe(), self.type))

    @property
    def result_type(self) -> Any:
        return _tuple_of(types.GenericAlias(tuple, (Any if self.type is None else self.type, int)))

    def describe(self) -> str:
        return f"most_frequent({_parameters(self.of, f'n={self.n}', f'capacity={self.capacity}')})"

    def _accept(self, column: list[Any]) -> bool:
        if not set(map(builtins.type, column)) <= _COUNTED_AS_IS:
            return False
        return super(MostFrequent, self)._accept(column)

    def _keep(self, value: Any) -> Any:
        if isinstance(value, float):
            raise TypeError(
                f"{self.describe()} needs text, bytes, integers, or other values that are equal or not, "
                f"got {builtins.type(value).__name__}: {value!r:.80}"
            )
        return self._counted(super(MostFrequent, self)._keep(value))

    def _counted(self, kept: Any) -> Any:
        """Values that are equal and not the same, as 1 and True, are counted apart: as they are stored."""
        if builtins.type(kept) in _COUNTED_AS_IS or builtins.type(kept) is Encoded:
            return kept
        return Encoded(PLAIN, _encode(self._codec.pack(kept)))

    def initial(self) -> _Frequencies:
        return 0, {}

    def add(
        self,
        accumulator: _Frequencies,
        column: Sequence[Any],
        places: Sequence[Place] | None = None,  # noqa: ARG002 - the protocol's
    ) -> _Frequencies:
        return self.merge(accumulator, (0, Counter(column)))

    def merge(self, first: _Frequencies, second: _Frequencies) -> _Frequencies:
        missed = first[0] + second[0]
        counts = _added(first[1], second[1])
        if len(counts) > self.capacity:
            excess = nlargest(self.capacity + 1, counts.values())[-1]
            counts = {value: events - excess for value, events in counts.items() if events > excess}
            missed += excess
        return missed, counts

    def result(self, accumulator: _Frequencies) -> tuple[tuple[Any, int], ...]:
        counts = accumulator[1]
        if not counts:
            return ()
        least = nlargest(self.n, counts.values())[-1]
        # Which of several with one count it is must not depend on the order in which they came.
        found = [(-events, *_written(value), value) for value, events in counts.items() if events >= least]
        found.sort(key=itemgetter(0, 1, 2))
        restore = self._codec.restore
        return tuple((restore(value), -events) for events, _, _, value in found[: self.n])

    def pack(self, accumulator: _Frequencies) -> Any:
        missed, counts = accumulator
        pack = self._codec.pack
        return [missed, *chain.from_iterable((pack(value), events) for value, events in counts.items())]

    def unpack(self, packed: Any) -> _Frequencies:
        values = map(self._counted, map(self._codec.unpack, packed[1::2]))
        return packed[0], dict(zip(values, packed[2::2], strict=True))


_COUNTED_AS_IS = {str, bytes, int}


def most_frequent(
    n: int,
    of: Of = None,
    *,
    capacity: int = 1000,
    type: Type[Any] | None = None,  # noqa: A002 - as in the serdes
) -> MostFrequent:
    """About the ``n`` values that come most often, each with its count: (value, count), most frequent first.

    Values come back as they are, with types as for ``first``; floats are refused. Values that are stored
    differently are counted apart, as 1 and True are, and ``Decimal("1.0")`` and ``Decimal("1.00")``.

    As long as there are not more than ``capacity`` different values, this is exact. Beyond that, of N events,
    a count is too small by at most N / (``capacity`` + 1) and never too large, so that every value that
    comes more often than that is counted.

    These are the mergeable summaries of Misra and Gries, which hold the same as Space-Saving's (Agarwal,
    Cormode, Huang, Phillips, Wei, Yi: "Mergeable summaries", 2012), and take a batch at a time.
    """
    return MostFrequent(n, of, capacity, type)


# Users' own, and several at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom(_Aggregate, Generic[A, R]):
    """See ``custom``."""

    start: Callable[[], A]
    step: Callable[[A, Any], A]
    unite: Callable[[A, A], A] | None
    take_back: Callable[[A, Any], A] | None
    finish: Callable[[A], R] | None
    name: str
    of: Of
    type: Type[A] | None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)
    _kept_as: Any = field(init=False, repr=False, compare=False)
    """The type of accumulators, where they do not describe themselves."""

    record_wise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if is_asynchronous(self.start):
            raise TopologyError(
                f"{self.describe()}: initial is {getattr(self.start, '__name__', self.start)} "
                f"({location(self.start)}), which is async: nothing would await what it returns",
                hint="await it in a step of its own before: map_async",
            )
        kind = self.type
        if kind is None:
            kind = next(filter(_needs_type, (returned_type(self.start), returned_type(self.step))), None)
        codec = _codec_for(self.describe(), kind)
        try:
            begins = settled(self.start())
            if kind is None and _needs_type(known(builtins.type(begins))):
                kind = builtins.type(begins)
                codec = _codec_for(self.describe(), kind)
            codec.keep(begins)
        except Exception as error:
            raise TopologyError(
                f"{self.describe()}: what initial makes cannot be stored: "
                f"{builtins.type(error).__name__}: {error}",
                hint=f"accumulators are {_STORABLE}; where initial does not tell, say custom(…, type=…)",
            ) from error
        object.__setattr__(self, "_codec", codec)
        object.__setattr__(self, "_kept_as", kind)

    @property
    def removable(self) -> bool:  # type: ignore[override]  # a constant elsewhere, here it depends
        return self.take_back is not None

    @property
    def mergeable(self) -> bool:  # type: ignore[override]  # as above
        return self.unite is not None

    @property
    def schema(self) -> Any:
        return _schema_of_values(self.describe(), self._kept_as)

    @property
    def result_type(self) -> Any:
        if self.finish is not None:
            return returned_type(self.finish)
        return Any if self._kept_as is None else self._kept_as

    def describe(self) -> str:
        return f"custom({_parameters(self.of, f'name={self.name!r}')})"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return _entries(self.of, values)

    def initial(self) -> Any:
        return self._keep(self.start())

    def add(self, accumulator: Any, column: Sequence[Any], places: Sequence[Place] | None = None) -> Any:  # noqa: ARG002 - the protocol's
        return self._keep(reduce(self.step, column, self._codec.restore(accumulator)))

    def remove(self, accumulator: Any, column: Sequence[Any]) -> Any:
        if self.take_back is None:
            raise TypeError(f"{self.describe()} has no function remove")
        return self._keep(reduce(self.take_back, column, self._codec.restore(accumulator)))

    def merge(self, first: Any, second: Any) -> Any:
        if self.unite is None:
            raise TypeError(f"{self.describe()} has no function merge")
        return self._keep(self.unite(self._codec.restore(first), self._codec.restore(second)))

    def result(self, accumulator: Any) -> Any:
        value = self._codec.restore(accumulator)
        return value if self.finish is None else settled(self.finish(value))

    def pack(self, accumulator: Any) -> Any:
        return self._codec.pack(accumulator)

    def unpack(self, packed: Any) -> Any:
        return self._codec.unpack(packed)

    def _keep(self, accumulator: Any) -> Any:
        # At once, and not when it is committed: here it is known which record it is about.
        try:
            return self._codec.keep(settled(accumulator))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self.describe()} cannot store its accumulator: {error}; accumulators are {_STORABLE}: "
                "say which type it is, custom(…, type=…)"
            ) from None


_STORABLE = (
    "numbers, text, bytes, times, Decimal, UUID and collections of such, or objects of a class that msgspec "
    "knows (msgspec.Struct, dataclass, NamedTuple, enum)"
)


def _needs_type(kind: Any) -> bool:
    """Whether values of a type come back as they are only where the type is known."""
    return kind is not Any and bool(traits(kind).classes)


def custom(
    initial: Callable[[], A],
    add: Callable[[A, Any], A],
    *,
    name: str,
    of: Of = None,
    merge: Callable[[A, A], A] | None = None,
    remove: Callable[[A, Any], A] | None = None,
    result: Callable[[A], Any] | None = None,
    type: Type[A] | None = None,  # noqa: A002 - as in the serdes
) -> Custom[A, Any]:
    """An aggregation by the program's own functions.

    ``initial`` makes the accumulator of no events; ``add`` returns one with one value more, values in the
    order in which they are processed. ``remove`` does the opposite; ``merge`` makes one of two, the earlier
    one first; the result is what ``result`` makes of the accumulator, or the accumulator itself. Sessions and
    sliding windows need ``merge``, aggregations of tables need ``remove``. Each call gets an accumulator of
    its own, which it may change and return.

    Accumulators come back as they were: numbers, text, bytes, times, ``Decimal``, ``UUID`` and collections of
    such by themselves, objects of a class (``msgspec.Struct``, dataclass, ``NamedTuple``, enum) as ``type``,
    which is found from what ``initial`` makes or is annotated to return, unless it is given. One that would
    not is refused with the record that led to it. ``name`` stands for what accumulators mean: give another
    one when older ones no longer fit.

    Raises ``TopologyError`` when something that is no function is given for one.
    """
    functions = {"initial": initial, "add": add, "merge": merge, "remove": remove, "result": result}
    for argument, function in functions.items():
        if function is None and argument not in {"initial", "add"}:
            continue
        if not callable(function):
            raise TopologyError(
                f"custom(name={name!r}) needs a function as {argument}, got {function!r:.80}",
                hint=f"write lambda: {function!r:.80}" if argument == "initial" else "give a function",
            )
    return Custom(
        start=initial,
        step=add,
        unite=merge,
        take_back=remove,
        finish=result,
        name=name,
        of=of,
        type=type,
    )


class Combined(_Aggregate):
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
        _require(bool(fields), "Combined", "at least one field", dict(fields))
        for name in fields:
            _require(
                name.isidentifier() and not iskeyword(name) and not name.startswith("_"),
                "Combined",
                "names that can be attributes and begin with a letter",
                name,
            )
        self._names = tuple(fields)
        self._aggregates = tuple(fields.values())
        # What each is stored as: another label for each time that it began, so that what was stored before
        # it was removed for a while is not taken for its own.
        self._labels = tuple((labels or {}).get(name, name) for name in fields)
        self._earlier = tuple(earlier)
        types = [(name, aggregate.result_type) for name, aggregate in fields.items()]
        self._result: Any = msgspec.defstruct("Combined", types, frozen=True)

    @property
    def record_wise(self) -> bool:  # type: ignore[override]  # a constant elsewhere, here it depends
        return any(aggregate.record_wise for aggregate in self._aggregates)

    @property
    def ordered(self) -> bool:  # type: ignore[override]  # as above
        return any(aggregate.ordered for aggregate in self._aggregates)

    @property
    def removable(self) -> bool:  # type: ignore[override]  # as above
        return all(aggregate.removable for aggregate in self._aggregates)

    @property
    def mergeable(self) -> bool:  # type: ignore[override]  # as above
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

        ``began`` tells when each of these fields began, by name (of fields in fields, with dots), once for
        each time that it was new. ``earlier`` names the fields, in that order, of accumulators that were
        stored without names, each with the fields in it.
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
        # Not strict: one that ends early ends all, as the caller expects.
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


def _require(condition: bool, what: str, needed: str, came: object) -> None:
    if not condition:
        raise TopologyError(f"{what} needs {needed}, got {came!r}")
