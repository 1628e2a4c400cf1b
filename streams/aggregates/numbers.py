"""Aggregates of numbers: exact until a result is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import chain
from operator import neg
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

from streams.aggregates.columns import checked_entries, described_parameters
from streams.aggregates.contract import BaseAggregate
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates.contract import Aggregate, N, Number, Of, Place, V


_EXACT_FLOATS = 2**53
"""Every integer up to it is exactly representable as a float."""

_PLACES = 300
"""The most decimal places: decimals with more would make exact sums arbitrarily long."""


class NumberAggregate(BaseAggregate):
    """An aggregate of integers, floats and decimals whose magnitude is at most ``limit``."""

    __slots__ = ()

    limit: ClassVar[float] = math.inf
    places: ClassVar[int] = _PLACES
    """The most decimal places of decimals."""
    of: Of

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return checked_entries(self.of, values, self._accept, self._check)

    def _accept(self, column: list[Any]) -> bool:
        # Runs in C throughout; columns that it rejects are checked one by one.
        kinds = set(map(type, column))
        if kinds == {Decimal}:
            return self._accept_decimals(column)
        if not kinds <= {int, float}:
            return False
        if not column or (kinds == {int} and self.limit == math.inf):
            return True
        # A NaN anywhere makes the sum NaN, whereas comparisons may miss it.
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


@dataclass(frozen=True, slots=True)
class Count(BaseAggregate):
    """See ``count``."""

    @property
    def removable(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return int

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


def count() -> Aggregate[Any, int]:
    """The number of events."""
    return Count()


@dataclass(frozen=True, slots=True)
class Total(NumberAggregate):
    """See ``total``."""

    of: Of = None

    # Far enough below the largest float that the sum of 10^18 numbers cannot reach it.
    limit: ClassVar[float] = 1e290

    @property
    def removable(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return int | float | Decimal

    def describe(self) -> str:
        return f"total({described_parameters(self.of)})"

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


@overload
def total(of: str | None = None) -> Aggregate[Any, Any]: ...
@overload
def total(of: Callable[[V], N]) -> Aggregate[V, N]: ...
def total(of: Of = None) -> Aggregate[Any, Any]:
    """The sum of numbers; 0 without numbers.

    Integers give an exact integer. If any of the numbers was a ``Decimal``, the sum is a ``Decimal``: exact,
    independent of the current decimal context, with as many places as any of them. If any was a float, it is
    a float: the exact sum of all, rounded once. Numbers beyond 1e290, decimals of more than 300 places, NaN
    and infinity are refused.
    """
    return Total(of)


@dataclass(frozen=True, slots=True)
class Mean(NumberAggregate):
    """See ``mean``."""

    of: Of = None

    limit: ClassVar[float] = Total.limit

    @property
    def removable(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return float | Decimal | None

    def describe(self) -> str:
        return f"mean({described_parameters(self.of)})"

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
        if isinstance(added, tuple) and isinstance(added[0], int) and abs(added[0]) > _EXACT_FLOATS:
            # Rounded once, like the mean of integers: the exact sum is not a float.
            return float(sum(map(Fraction, added)) / events)
        total = rounded_sum(added)
        return quotient(total, events) if isinstance(total, Decimal) else total / events

    def pack(self, accumulator: tuple[int, Sum]) -> Any:
        return [accumulator[0], pack_sum(accumulator[1])]

    def unpack(self, packed: Any) -> tuple[int, Sum]:
        return packed[0], unpack_sum(packed[1])


@overload
def mean(of: str | None = None) -> Aggregate[Any, Any]: ...
@overload
def mean(of: Callable[[V], Number]) -> Aggregate[V, Any]: ...
def mean(of: Of = None) -> Aggregate[Any, Any]:
    """The mean of numbers, from their exact sum; ``None`` without numbers.

    It refuses the same numbers as ``total``. If their sum is a ``Decimal``, so is the mean: rounded once, to
    28 digits or, for longer sums, to a few more than these have. Otherwise it is a float.
    """
    return Mean(of)


_Moments: TypeAlias = "tuple[Any, ...]"
"""The number of values, and the expansions of the floats' sum and of the sum of their squares; then, if there
are decimals, their number, sum and sum of squares."""

_SPLITTER = 2.0**27 + 1


def _squares(column: Iterable[float]) -> list[float]:
    """Floats whose exact sum is that of the squares: each rounded square, and its rounding error.

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
class Variance(NumberAggregate):
    """See ``variance``."""

    of: Of = None
    sample: bool = False

    # So that squares are within the limit of ``Total``.
    limit: ClassVar[float] = 1e145

    @property
    def removable(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return float | Decimal | None

    def describe(self) -> str:
        return f"variance({described_parameters(self.of, f'sample={self.sample}')})"

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
            # Both terms are integers in units of 2^-2148, so their difference is exact, however close they
            # are.
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


@overload
def variance(of: str | None = None, *, sample: bool = False) -> Aggregate[Any, Any]: ...
@overload
def variance(of: Callable[[V], Number], *, sample: bool = False) -> Aggregate[V, Any]: ...
def variance(of: Of = None, *, sample: bool = False) -> Aggregate[Any, Any]:
    """The variance of numbers: of the population, or estimated from a sample (divided by n - 1).

    It is computed exactly and rounded once, so it stays accurate for numbers that differ little from each
    other, and after others were removed. Integers beyond 2^53 count as the nearest float; numbers beyond
    1e145, and decimals as with ``total``, are refused. The result is a ``Decimal`` of decimals alone,
    otherwise a float; ``None`` without numbers, and of one number as a sample.
    """
    return Variance(of, sample)
