"""What an aggregation computes, from columns of many events at a time.

Arithmetic is exact until a result is asked for, so that neither the order of events, nor how they fell into
batches, nor events that were taken back, can be seen in it.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from hashlib import blake2b
from heapq import nlargest
from itertools import accumulate, chain, repeat
from keyword import iskeyword
from operator import itemgetter, neg
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from streams.errors import TopologyError

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

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        """What ``add`` and ``remove`` need of each value: lazily, one entry a value, in order.

        Raises at the value that cannot be aggregated.
        """

    def initial(self) -> A:
        """The accumulator of no events."""

    def add(self, accumulator: A, column: Sequence[Any]) -> A:
        """The accumulator with further events, given by their entries in order."""

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
    removable: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True

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
        return map(of, values)
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


class _Numbers(_Aggregate):
    """An aggregate of integers and floats whose magnitude is at most ``limit``."""

    __slots__ = ()

    limit: ClassVar[float] = math.inf
    of: Of

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return _checked(self.of, values, self._accept, self._check)

    def _accept(self, column: list[Any]) -> bool:
        # In C throughout; what this turns down is looked at one by one.
        kinds = set(map(type, column))
        if not kinds <= {int, float}:
            return False
        if not column or (kinds == {int} and self.limit == math.inf):
            return True
        # A NaN anywhere makes the sum one, and may hide from comparisons.
        return -self.limit <= min(column) and max(column) <= self.limit and not math.isnan(sum(column))

    def _check(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{self.describe()} needs numbers, got {type(value).__name__}: {value!r:.80}")
        if value != value:  # noqa: PLR0124 - true for NaN only
            raise ValueError(f"{self.describe()} needs numbers, got NaN")
        if not -self.limit <= value <= self.limit:
            raise ValueError(f"{self.describe()} needs numbers up to {self.limit:g}, got {value!r:.80}")
        return float(value) if isinstance(value, float) else int(value)


# What the fast check may let through without looking at each value; msgpack holds them as they are.
_PLAIN = {str, bytes, int, float, bool, type(None)}
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def _is_plain(column: list[Any]) -> bool:
    if not set(map(type, column)) <= _PLAIN:
        return False
    # Refuses integers beyond 64 bits and text that is not Unicode.
    _encode(column)
    return True


def _as_plain(value: Any) -> Any:
    plain = msgspec.to_builtins(value, builtin_types=(bytes,), order="deterministic")
    _encode(plain)
    return plain


class _Values(_Aggregate):
    """An aggregate that keeps values of any kind msgspec knows, as plain values.

    Its results are plain values too, or of the given type.
    """

    __slots__ = ()

    of: Of
    type: Type[Any] | None

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        if self.type is None:
            return _checked(self.of, values, _is_plain, _as_plain)
        return map(self._as_convertible, _entries(self.of, values))

    def _as_convertible(self, value: Any) -> Any:
        plain = _as_plain(value)
        # Raises here, where the record is known, and not where the result is made.
        msgspec.convert(plain, self.type)
        return plain

    def _restored(self, plain: Any) -> Any:
        return plain if self.type is None else msgspec.convert(plain, self.type)


# Counts and sums


@dataclass(frozen=True, slots=True)
class Count(_Aggregate):
    """See ``count``."""

    removable: ClassVar[bool] = True

    def describe(self) -> str:
        return "count()"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return values

    def initial(self) -> int:
        return 0

    def add(self, accumulator: int, column: Sequence[Any]) -> int:
        return accumulator + len(column)

    def add_counts(self, accumulator: int, events: int) -> int:
        """As ``add``, for so many events: a whole batch may be counted by one ``collections.Counter``."""
        return accumulator + events

    def remove(self, accumulator: int, column: Sequence[Any]) -> int:
        return accumulator - len(column)

    def merge(self, first: int, second: int) -> int:
        return first + second

    def result(self, accumulator: int) -> int:
        return accumulator


def count() -> Count:
    """The number of events."""
    return Count()


_Sum: TypeAlias = "int | tuple[Any, ...]"
"""An exact sum: an integer as long as there were only integers, then the integers' sum and behind it the
floats' as ``_expansion`` gives it."""


def _expansion(terms: Iterable[float]) -> tuple[float, ...]:
    """The exact sum of floats, as few floats that do not overlap, the largest first; none for zero.

    This is Shewchuk's nonoverlapping expansion ("Adaptive Precision Floating-Point Arithmetic", 1997). As
    each part is the rest rounded once, it depends on the sum only, not on the terms.
    """
    rest = list(terms)
    parts = []
    while part := math.fsum(rest):
        parts.append(part)
        rest.append(-part)
    return tuple(parts)


def _plus(total: _Sum, column: Iterable[float]) -> _Sum:
    column = list(column)
    added: Any = sum(column)
    if type(added) is int:
        return total + added if isinstance(total, int) else (total[0] + added, *total[1:])
    integer, *parts = (total,) if isinstance(total, int) else total
    parts += column
    if int in set(map(type, column)):
        integer += sum(value for value in column if type(value) is int)
        parts = [value for value in parts if type(value) is float]
    return (integer, *_expansion(parts))


def _merged(first: _Sum, second: _Sum) -> _Sum:
    if isinstance(first, int):
        return first + second if isinstance(second, int) else (first + second[0], *second[1:])
    if isinstance(second, int):
        return (first[0] + second, *first[1:])
    return (first[0] + second[0], *_expansion([*first[1:], *second[1:]]))


def _rounded(total: _Sum) -> float:
    if isinstance(total, int):
        return total
    integer, *parts = total
    while integer:
        # An integer beyond 53 bits is not one float but a few.
        parts.append(float(integer))
        integer -= int(parts[-1])
    return math.fsum(parts)


def _pack_number(number: Any) -> Any:
    return number if type(number) is float or -(2**63) <= number < 2**64 else str(number)


def _unpack_number(packed: Any) -> Any:
    return int(packed) if isinstance(packed, str) else packed


def _pack_sum(total: _Sum) -> Any:
    return _pack_number(total) if isinstance(total, int) else [_pack_number(total[0]), *total[1:]]


def _unpack_sum(packed: Any) -> _Sum:
    return (_unpack_number(packed[0]), *packed[1:]) if isinstance(packed, list) else _unpack_number(packed)


@dataclass(frozen=True, slots=True)
class Total(_Numbers):
    """See ``total``."""

    of: Of = None

    removable: ClassVar[bool] = True
    # So far below the largest float that 10^18 numbers cannot reach it.
    limit: ClassVar[float] = 1e290

    def describe(self) -> str:
        return f"total({_parameters(self.of)})"

    def initial(self) -> _Sum:
        return 0

    def add(self, accumulator: _Sum, column: Sequence[Any]) -> _Sum:
        return _plus(accumulator, column)

    def remove(self, accumulator: _Sum, column: Sequence[Any]) -> _Sum:
        return _plus(accumulator, map(neg, column))

    def merge(self, first: _Sum, second: _Sum) -> _Sum:
        return _merged(first, second)

    def result(self, accumulator: _Sum) -> float:
        return _rounded(accumulator)

    def pack(self, accumulator: _Sum) -> Any:
        return _pack_sum(accumulator)

    def unpack(self, packed: Any) -> _Sum:
        return _unpack_sum(packed)


def total(of: Of = None) -> Total:
    """The sum of numbers; 0 of none.

    Integers give an exact integer. As soon as a float was among them it is a float: the exact sum, rounded
    once. Numbers beyond 1e290 are refused.
    """
    return Total(of)


@dataclass(frozen=True, slots=True)
class Mean(_Numbers):
    """See ``mean``."""

    of: Of = None

    removable: ClassVar[bool] = True
    limit: ClassVar[float] = Total.limit

    def describe(self) -> str:
        return f"mean({_parameters(self.of)})"

    def initial(self) -> tuple[int, _Sum]:
        return 0, 0

    def add(self, accumulator: tuple[int, _Sum], column: Sequence[Any]) -> tuple[int, _Sum]:
        return accumulator[0] + len(column), _plus(accumulator[1], column)

    def remove(self, accumulator: tuple[int, _Sum], column: Sequence[Any]) -> tuple[int, _Sum]:
        return accumulator[0] - len(column), _plus(accumulator[1], map(neg, column))

    def merge(self, first: tuple[int, _Sum], second: tuple[int, _Sum]) -> tuple[int, _Sum]:
        return first[0] + second[0], _merged(first[1], second[1])

    def result(self, accumulator: tuple[int, _Sum]) -> float | None:
        events, added = accumulator
        return _rounded(added) / events if events else None

    def pack(self, accumulator: tuple[int, _Sum]) -> Any:
        return [accumulator[0], _pack_sum(accumulator[1])]

    def unpack(self, packed: Any) -> tuple[int, _Sum]:
        return packed[0], _unpack_sum(packed[1])


def mean(of: Of = None) -> Mean:
    """The mean of numbers, from their exact sum; ``None`` of none. Numbers beyond 1e290 are refused."""
    return Mean(of)


_Moments: TypeAlias = "tuple[int, tuple[float, ...], tuple[float, ...]]"
"""The number of values, and the expansions of their sum and of the sum of their squares."""

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
    # The squares then are within what ``Total`` allows.
    limit: ClassVar[float] = 1e145

    def describe(self) -> str:
        return f"variance({_parameters(self.of, f'sample={self.sample}')})"

    def column(self, values: Sequence[Any]) -> Iterable[float]:
        return map(float, super(Variance, self).column(values))

    def initial(self) -> _Moments:
        return 0, (), ()

    def add(self, accumulator: _Moments, column: Sequence[float]) -> _Moments:
        events, added, squared = accumulator
        return (
            events + len(column),
            _expansion(chain(added, column)),
            _expansion(chain(squared, _squares(column))),
        )

    def remove(self, accumulator: _Moments, column: Sequence[float]) -> _Moments:
        events, added, squared = accumulator
        return (
            events - len(column),
            _expansion(chain(added, map(neg, column))),
            _expansion(chain(squared, map(neg, _squares(column)))),
        )

    def merge(self, first: _Moments, second: _Moments) -> _Moments:
        return (
            first[0] + second[0],
            _expansion(chain(first[1], second[1])),
            _expansion(chain(first[2], second[2])),
        )

    def result(self, accumulator: _Moments) -> float | None:
        events, added, squared = accumulator
        divisor = events - 1 if self.sample else events
        if divisor < 1:
            return None
        # Both terms are whole numbers of 2^-2148, so their difference loses nothing, however close they are.
        spread = events * (_in_units(squared) << 1074) - _in_units(added) ** 2
        return max(spread, 0) / (events * divisor << 2148)

    def pack(self, accumulator: _Moments) -> Any:
        return list(accumulator)

    def unpack(self, packed: Any) -> _Moments:
        return packed[0], tuple(packed[1]), tuple(packed[2])


def variance(of: Of = None, *, sample: bool = False) -> Variance:
    """The variance of numbers: of all there are, or estimated from a sample of them (divided by n - 1).

    It is computed exactly and rounded once, so it stays right for numbers that differ little from each other,
    and after others were taken back. Integers beyond 2^53 count as the nearest float; numbers beyond 1e145
    are refused. ``None`` of no numbers, and of one number as sample.
    """
    return Variance(of, sample)


# Extremes


@dataclass(frozen=True, slots=True)
class _Extreme(_Numbers):
    of: Of = None

    choose: ClassVar[Any]

    def describe(self) -> str:
        return f"{type(self).__name__.lower()}({_parameters(self.of)})"

    def initial(self) -> float | None:
        return None

    def add(self, accumulator: float | None, column: Iterable[float]) -> float | None:
        chosen: float | None = self.choose(column, default=None)
        return accumulator if chosen is None else self.merge(accumulator, chosen)

    def merge(self, first: float | None, second: float | None) -> float | None:
        if first is None or second is None:
            return second if first is None else first
        chosen: float = self.choose(first, second)
        return chosen

    def result(self, accumulator: float | None) -> float | None:
        return accumulator

    def pack(self, accumulator: float | None) -> Any:
        return None if accumulator is None else _pack_number(accumulator)

    def unpack(self, packed: Any) -> float | None:
        return None if packed is None else _unpack_number(packed)


class Minimum(_Extreme):
    """See ``minimum``."""

    __slots__ = ()
    choose = min


class Maximum(_Extreme):
    """See ``maximum``."""

    __slots__ = ()
    choose = max


def minimum(of: Of = None) -> Minimum:
    """The smallest number; ``None`` of none."""
    return Minimum(of)


def maximum(of: Of = None) -> Maximum:
    """The largest number; ``None`` of none."""
    return Maximum(of)


@dataclass(frozen=True, slots=True)
class Top(_Numbers):
    """See ``top``."""

    n: int
    of: Of = None

    def __post_init__(self) -> None:
        _require(self.n >= 1, "top", "n of at least 1", self.n)

    def describe(self) -> str:
        return f"top({_parameters(self.of, f'n={self.n}')})"

    def initial(self) -> tuple[float, ...]:
        return ()

    def add(self, accumulator: tuple[float, ...], column: Sequence[float]) -> tuple[float, ...]:
        return tuple(sorted(chain(accumulator, column), reverse=True)[: self.n])

    def merge(self, first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
        return self.add(first, second)

    def result(self, accumulator: tuple[float, ...]) -> tuple[float, ...]:
        return accumulator

    def pack(self, accumulator: tuple[float, ...]) -> Any:
        return list(map(_pack_number, accumulator))

    def unpack(self, packed: Any) -> tuple[float, ...]:
        return tuple(map(_unpack_number, packed))


def top(n: int, of: Of = None) -> Top:
    """The ``n`` largest numbers, descending; a number that comes several times is there several times."""
    return Top(n, of)


# Values


@dataclass(frozen=True, slots=True)
class First(_Values):
    """See ``first``."""

    of: Of = None
    type: Type[Any] | None = None

    def describe(self) -> str:
        return f"first({_parameters(self.of)})"

    def initial(self) -> tuple[Any, ...]:
        return ()

    def add(self, accumulator: tuple[Any, ...], column: Sequence[Any]) -> tuple[Any, ...]:
        return accumulator or tuple(column[:1])

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return first or second

    def result(self, accumulator: tuple[Any, ...]) -> Any:
        return self._restored(accumulator[0]) if accumulator else None

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        return tuple(packed)


@dataclass(frozen=True, slots=True)
class Latest(_Values):
    """See ``latest``."""

    of: Of = None
    type: Type[Any] | None = None

    def describe(self) -> str:
        return f"latest({_parameters(self.of)})"

    def initial(self) -> tuple[Any, ...]:
        return ()

    def add(self, accumulator: tuple[Any, ...], column: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(column[-1:]) or accumulator

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return second or first

    def result(self, accumulator: tuple[Any, ...]) -> Any:
        return self._restored(accumulator[0]) if accumulator else None

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        return tuple(packed)


@dataclass(frozen=True, slots=True)
class Collect(_Values):
    """See ``collect``."""

    of: Of = None
    limit: int | None = None
    type: Type[Any] | None = None

    def __post_init__(self) -> None:
        _require(self.limit is None or self.limit >= 1, "collect", "a limit of at least 1", self.limit)

    def describe(self) -> str:
        return f"collect({_parameters(self.of, f'limit={self.limit}')})"

    def initial(self) -> tuple[Any, ...]:
        return ()

    def add(self, accumulator: tuple[Any, ...], column: Sequence[Any]) -> tuple[Any, ...]:
        if self.limit is None:
            return (*accumulator, *column)
        missing = self.limit - len(accumulator)
        return (*accumulator, *column[:missing]) if missing else accumulator

    def merge(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.add(first, second)

    def result(self, accumulator: tuple[Any, ...]) -> tuple[Any, ...]:
        return accumulator if self.type is None else tuple(map(self._restored, accumulator))

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        return tuple(packed)


def first(of: Of = None, *, type: Type[Any] | None = None) -> First:  # noqa: A002 - as in the serdes
    """The value that was processed first, as plain values or as ``type``; ``None`` of none."""
    return First(of, type)


def latest(of: Of = None, *, type: Type[Any] | None = None) -> Latest:  # noqa: A002 - as in the serdes
    """The value that was processed last, as plain values or as ``type``; ``None`` of none."""
    return Latest(of, type)


def collect(
    of: Of = None,
    *,
    limit: int | None = None,
    type: Type[Any] | None = None,  # noqa: A002 - as in the serdes
) -> Collect:
    """All values in the order of processing, as plain values or as ``type``: the first ``limit`` of them.

    Without a limit, the accumulator grows with every event and is written with every commit.
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
    limit: ClassVar[float] = sys.float_info.max

    def __post_init__(self) -> None:
        _require(0.0 <= self.q <= 1.0, "quantile", "q from 0 to 1", self.q)
        _require(1e-6 <= self.error <= 0.5, "quantile", "an error from 1e-6 to 0.5", self.error)
        object.__setattr__(self, "_scale", 1.0 / math.log((1.0 + self.error) / (1.0 - self.error)))
        object.__setattr__(self, "_lowest", math.ceil(math.log(sys.float_info.min) * self._scale))

    def describe(self) -> str:
        return f"quantile({_parameters(self.of, f'q={self.q}', f'error={self.error}')})"

    def column(self, values: Sequence[Any]) -> Iterable[int]:
        return map(self._bin, super(Quantile, self).column(values))

    def _bin(self, number: float) -> int:
        """The number's bin: 0 for zero, ascending with the numbers."""
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

    def add(self, accumulator: dict[int, int], column: Sequence[int]) -> dict[int, int]:
        bins = accumulator.copy()
        for number in column:
            bins[number] = bins.get(number, 0) + 1
        return bins

    def remove(self, accumulator: dict[int, int], column: Sequence[int]) -> dict[int, int]:
        return _added(accumulator, {number: -events for number, events in Counter(column).items()})

    def merge(self, first: dict[int, int], second: dict[int, int]) -> dict[int, int]:
        return _added(first, second)

    def result(self, accumulator: dict[int, int]) -> float | None:
        rank = math.floor(self.q * (sum(accumulator.values()) - 1))
        for number in sorted(accumulator):
            rank -= accumulator[number]
            if rank < 0:
                return self._middle(number)
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
    ones are refused.

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

    def add(self, accumulator: _Registers, column: Iterable[int]) -> _Registers:
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
"""By how much any count may be too small, and the counts."""


@dataclass(frozen=True, slots=True)
class MostFrequent(_Aggregate):
    """See ``most_frequent``."""

    n: int
    of: Of = None
    capacity: int = 1000

    def __post_init__(self) -> None:
        _require(self.n >= 1, "most_frequent", "n of at least 1", self.n)
        _require(self.capacity >= self.n, "most_frequent", f"a capacity of at least {self.n}", self.capacity)

    def describe(self) -> str:
        return f"most_frequent({_parameters(self.of, f'n={self.n}', f'capacity={self.capacity}')})"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return _checked(self.of, values, self._accept, self._check)

    def _accept(self, column: list[Any]) -> bool:
        return set(map(type, column)) <= {str, bytes, int} and _is_plain(column)

    def _check(self, value: Any) -> Any:
        if type(value) not in {str, bytes, int, bool, type(None)}:
            raise TypeError(
                f"{self.describe()} needs text, bytes, integers, booleans or None, "
                f"got {type(value).__name__}: {value!r:.80}"
            )
        _encode(value)
        return value

    def initial(self) -> _Frequencies:
        return 0, {}

    def add(self, accumulator: _Frequencies, column: Sequence[Any]) -> _Frequencies:
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
        return tuple(nlargest(self.n, accumulator[1].items(), key=itemgetter(1)))

    def pack(self, accumulator: _Frequencies) -> Any:
        missed, counts = accumulator
        return [missed, *chain.from_iterable(counts.items())]

    def unpack(self, packed: Any) -> _Frequencies:
        return packed[0], dict(zip(packed[1::2], packed[2::2], strict=True))


def most_frequent(n: int, of: Of = None, *, capacity: int = 1000) -> MostFrequent:
    """About the ``n`` values that come most often, each with its count: (value, count), most frequent first.

    As long as there are not more than ``capacity`` different values, this is exact. Beyond that, of N events,
    a count is too small by at most N / (``capacity`` + 1) and never too large, so that every value that
    comes more often than that is counted.

    These are the mergeable summaries of Misra and Gries, which hold the same as Space-Saving's (Agarwal,
    Cormode, Huang, Phillips, Wei, Yi: "Mergeable summaries", 2012), and take a batch at a time.
    """
    return MostFrequent(n, of, capacity)


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

    record_wise: ClassVar[bool] = True

    @property
    def removable(self) -> bool:  # type: ignore[override]  # a constant elsewhere, here it depends
        return self.take_back is not None

    @property
    def mergeable(self) -> bool:  # type: ignore[override]  # as above
        return self.unite is not None

    def describe(self) -> str:
        return f"custom({_parameters(self.of, f'name={self.name!r}')})"

    def column(self, values: Sequence[Any]) -> Iterable[Any]:
        return _entries(self.of, values)

    def initial(self) -> A:
        return self.start()

    def add(self, accumulator: A, column: Sequence[Any]) -> A:
        return reduce(self.step, column, accumulator)

    def remove(self, accumulator: A, column: Sequence[Any]) -> A:
        if self.take_back is None:
            raise TypeError(f"{self.describe()} has no function remove")
        return reduce(self.take_back, column, accumulator)

    def merge(self, first: A, second: A) -> A:
        if self.unite is None:
            raise TypeError(f"{self.describe()} has no function merge")
        return self.unite(first, second)

    def result(self, accumulator: A) -> Any:
        return accumulator if self.finish is None else self.finish(accumulator)

    def pack(self, accumulator: A) -> Any:
        return msgspec.to_builtins(accumulator, builtin_types=(bytes,), order="deterministic")

    def unpack(self, packed: Any) -> Any:
        return packed if self.type is None else msgspec.convert(packed, self.type)


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

    ``initial`` makes the accumulator of no events; ``add`` returns a new one with one value more and must not
    change the one it is given. ``remove`` does the opposite; ``merge`` makes one of two, the earlier one
    first; the result is what ``result`` makes of the accumulator, or the accumulator itself. Sessions and
    sliding windows need ``merge``, aggregations of tables need ``remove``.

    Accumulators are stored by msgspec, as ``type`` if there is one, else as plain values, where a tuple comes
    back as a list. ``name`` stands for what they mean: give another one when older ones no longer fit.
    """
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

    __slots__ = ("_aggregates", "_names", "_result")

    def __init__(self, fields: Mapping[str, Aggregate[Any, Any]]) -> None:
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
        self._result: Callable[..., Any] = msgspec.defstruct("Combined", self._names, frozen=True)

    @property
    def record_wise(self) -> bool:  # type: ignore[override]  # a constant elsewhere, here it depends
        return any(aggregate.record_wise for aggregate in self._aggregates)

    @property
    def removable(self) -> bool:  # type: ignore[override]  # as above
        return all(aggregate.removable for aggregate in self._aggregates)

    @property
    def mergeable(self) -> bool:  # type: ignore[override]  # as above
        return all(aggregate.mergeable for aggregate in self._aggregates)

    def describe(self) -> str:
        each = zip(self._names, self._aggregates, strict=True)
        return f"combined({', '.join(f'{name}={aggregate.describe()}' for name, aggregate in each)})"

    def column(self, values: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
        # Not strict: one that ends early ends all, as the caller expects.
        return zip(*(aggregate.column(values) for aggregate in self._aggregates), strict=False)

    def initial(self) -> tuple[Any, ...]:
        return tuple(aggregate.initial() for aggregate in self._aggregates)

    def add(self, accumulator: tuple[Any, ...], column: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        columns = zip(*column, strict=True)
        return (
            tuple(
                aggregate.add(part, entries)
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
        return [aggregate.pack(part) for aggregate, part in zip(self._aggregates, accumulator, strict=True)]

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        return tuple(aggregate.unpack(part) for aggregate, part in zip(self._aggregates, packed, strict=True))


def _require(condition: bool, what: str, needed: str, came: object) -> None:
    if not condition:
        raise TopologyError(f"{what} needs {needed}, got {came!r}")
