"""Aggregates of bounded size whose results are approximate within a stated error.

Implemented here, as ``ddsketch`` (3.0) cannot remove a value, and the bytes of ``datasketches``' sketches
(5.2, HyperLogLog and frequent items) depend on the order of the values.
"""

from __future__ import annotations

import builtins
import math
import sys
import types
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from heapq import nlargest
from itertools import accumulate, chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

from streams.aggregates.columns import described_parameters, entries_of
from streams.aggregates.contract import BaseAggregate, require
from streams.aggregates.numbers import NumberAggregate
from streams.aggregates.value_codec import PLAIN, Encoded
from streams.aggregates.values import ValueAggregate, codec_for, encode_value, tuple_of, written_form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.aggregates.contract import Aggregate, Number, Of, Place, T, Type, V
    from streams.aggregates.value_codec import ValueCodec


@dataclass(frozen=True, slots=True)
class Quantile(NumberAggregate):
    """See ``quantile``."""

    q: float
    of: Of = None
    error: float = 0.01

    _scale: float = field(init=False, repr=False, compare=False)
    _lowest: int = field(init=False, repr=False, compare=False)

    limit: ClassVar[float] = sys.float_info.max

    def __post_init__(self) -> None:
        require(0.0 <= self.q <= 1.0, "quantile", "q from 0 to 1", self.q)
        require(1e-6 <= self.error <= 0.5, "quantile", "an error from 1e-6 to 0.5", self.error)
        object.__setattr__(self, "_scale", 1.0 / math.log((1.0 + self.error) / (1.0 - self.error)))
        object.__setattr__(self, "_lowest", math.ceil(math.log(sys.float_info.min) * self._scale))

    @property
    def removable(self) -> bool:
        return True

    @property
    def result_type(self) -> Any:
        return float | Decimal | None

    def describe(self) -> str:
        return f"quantile({described_parameters(self.of, f'q={self.q}', f'error={self.error}')})"

    places: ClassVar[int] = 10**9

    def column(self, values: Sequence[Any]) -> Iterable[int]:
        return map(self._bin, super(Quantile, self).column(values))

    def _bin(self, number: Any) -> int:
        """The number's bin: 0 for zero, ascending with the numbers; decimals have separate bins."""
        if type(number) is Decimal:
            return self._bin(float(number)) + _OF_DECIMALS
        if number >= sys.float_info.min:
            return math.ceil(math.log(number) * self._scale) - self._lowest + 1
        if number <= -sys.float_info.min:
            return self._lowest - 1 - math.ceil(math.log(-number) * self._scale)
        return 0

    def _middle(self, number: int) -> float:
        """The number with the smallest relative error for all numbers of a bin."""
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
"""Added to the bins of decimals, to know whether all numbers were decimals."""


def _added(counts: dict[Any, int], others: dict[Any, int]) -> dict[Any, int]:
    added = counts.copy()
    for key, events in others.items():
        added[key] = added.get(key, 0) + events
        if not added[key]:
            del added[key]
    return added


@overload
def quantile(q: float, of: str | None = None, *, error: float = 0.01) -> Aggregate[Any, Any]: ...
@overload
def quantile(q: float, of: Callable[[V], Number], *, error: float = 0.01) -> Aggregate[V, Any]: ...
def quantile(q: float, of: Of = None, *, error: float = 0.01) -> Aggregate[Any, Any]:
    """The quantile ``q`` of numbers, e.g. 0.5 for the median; ``None`` without numbers.

    For ``n`` numbers, the result differs by at most the relative ``error`` from the one at position
    floor(q (n - 1)) of their ascending order, counted from 0. Numbers below 2.3e-308 count as zero; infinite
    ones are refused. The result is a ``Decimal`` of decimals alone, otherwise a float.

    This is DDSketch (Masson, Rim, Lee: "DDSketch: A fast and fully-mergeable quantile sketch with
    relative-error guarantees", 2019) with an unlimited number of bins: at an error of 0.01, at most 116 for
    each power of ten of the numbers' range.
    """
    return Quantile(q, of, error)


_Registers: TypeAlias = "frozenset[int] | bytes"
"""The hashes themselves while there are few, then HyperLogLog's registers, a byte each."""

_HASH_BYTES = 6
_HASH_BITS = 8 * _HASH_BYTES


@dataclass(frozen=True, slots=True)
class Distinct(BaseAggregate):
    """See ``distinct``."""

    of: Of = None
    error: float = 0.01

    _precision: int = field(init=False, repr=False, compare=False)
    """The binary logarithm of the number of registers."""

    def __post_init__(self) -> None:
        require(0.0021 <= self.error <= 0.26, "distinct", "an error from 0.0021 to 0.26", self.error)
        object.__setattr__(self, "_precision", math.ceil(2 * math.log2(1.04 / self.error)))

    @property
    def result_type(self) -> Any:
        return int

    def describe(self) -> str:
        return f"distinct({described_parameters(self.of, f'error={self.error}')})"

    def column(self, values: Sequence[Any]) -> Iterable[int]:
        return map(_hash, entries_of(self.of, values))

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
            # Beyond this, registers are copied faster than hashes.
            if len(hashes) <= 1 << self._precision - 4:
                return hashes
            registers, column = bytearray(1 << self._precision), hashes
        else:
            registers = bytearray(accumulator)
        index_shift = _HASH_BITS - self._precision
        mask = (1 << index_shift) - 1
        for value in column:
            index = value >> index_shift
            # The position of the first 1 after the bits of the index, counted from 1.
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
    return int.from_bytes(blake2b(encode_value(value), digest_size=_HASH_BYTES).digest(), "big")


def _larger(first: bytes, second: bytes) -> bytes:
    """The larger byte at each place, for bytes below 128."""
    # As one long integer each: a byte's highest bit survives the subtraction where the first is not smaller.
    one, other = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    highest = int.from_bytes(b"\x80" * len(first), "big")
    not_smaller = ((one | highest) - other) & highest
    from_first = not_smaller - (not_smaller >> 7)
    return (other ^ ((one ^ other) & from_first)).to_bytes(len(first), "big")


def _cardinality(registers: bytes, bits: int) -> float:
    """The estimated number of hashes behind the registers, each set from ``bits`` bits after the index.

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


@overload
def distinct(of: str | None = None, *, error: float = 0.01) -> Aggregate[Any, int]: ...
@overload
def distinct(of: Callable[[V], object], *, error: float = 0.01) -> Aggregate[V, int]: ...
def distinct(of: Of = None, *, error: float = 0.01) -> Aggregate[Any, int]:
    """The approximate number of different values.

    ``error`` is the largest relative standard error: two of three results are closer to the exact count, 997
    of 1000 are within three times as much. Few values (at an error of 0.01, up to 1024) are counted exactly.
    Values differ when their msgpack differs: 1, 1.0 and True do, a tuple and a list with equal items do not.
    This is HyperLogLog (Flajolet, Fusy, Gandouet, Meunier, 2007), of 48 bits of BLAKE2b, enough for 10^12
    values, with a sparse form as in HyperLogLog++ (Heule, Nunkesser, Hall: "HyperLogLog in practice", 2013).
    """
    return Distinct(of, error)


_Frequencies: TypeAlias = "tuple[int, dict[Any, int]]"
"""How much any count may be too small, and the counts by stored value."""


@dataclass(frozen=True, slots=True)
class MostFrequent(ValueAggregate):
    """See ``most_frequent``."""

    n: int
    of: Of = None
    capacity: int = 1000
    type: Type[Any] | None = None

    _codec: ValueCodec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self.n >= 1, "most_frequent", "n of at least 1", self.n)
        require(self.capacity >= self.n, "most_frequent", f"a capacity of at least {self.n}", self.capacity)
        object.__setattr__(self, "_codec", codec_for(self.describe(), self.type))

    @property
    def result_type(self) -> Any:
        return tuple_of(types.GenericAlias(tuple, (Any if self.type is None else self.type, int)))

    def describe(self) -> str:
        return f"most_frequent({described_parameters(self.of, f'n={self.n}', f'capacity={self.capacity}')})"

    def _accept(self, column: list[Any]) -> bool:
        if not set(map(builtins.type, column)) <= _COUNTED_AS_IS:
            return False
        return super(MostFrequent, self)._accept(column)

    def _keep(self, value: Any) -> Any:
        if isinstance(value, float):
            raise TypeError(
                f"{self.describe()} needs text, bytes, integers, or other values with exact equality, "
                f"got {builtins.type(value).__name__}: {value!r:.80}"
            )
        return self._counted(super(MostFrequent, self)._keep(value))

    def _counted(self, kept: Any) -> Any:
        """The form that is counted: values of different types (1, True) are counted separately."""
        if builtins.type(kept) in _COUNTED_AS_IS or builtins.type(kept) is Encoded:
            return kept
        return Encoded(PLAIN, encode_value(self._codec.pack(kept)))

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
        # The choice among values with equal counts must not depend on their order of arrival.
        found = [
            (-events, *written_form(value), value) for value, events in counts.items() if events >= least
        ]
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


@overload
def most_frequent(
    n: int, of: str | None = None, *, capacity: int = 1000, type: None = None
) -> Aggregate[Any, tuple[tuple[Any, int], ...]]: ...
@overload
def most_frequent(
    n: int, of: str | None = None, *, capacity: int = 1000, type: Type[T]
) -> Aggregate[Any, tuple[tuple[T, int], ...]]: ...
@overload
def most_frequent(
    n: int, of: Callable[[V], T], *, capacity: int = 1000, type: Type[T] | None = None
) -> Aggregate[V, tuple[tuple[T, int], ...]]: ...
def most_frequent(
    n: int,
    of: Of = None,
    *,
    capacity: int = 1000,
    type: Type[Any] | None = None,  # noqa: A002 - as in the serdes
) -> Aggregate[Any, Any]:
    """The approximate ``n`` most frequent values with their counts: (value, count), most frequent first.

    Values are returned unchanged, with types as for ``first``; floats are refused. Values that are stored
    differently are counted separately, as 1 and True are, and ``Decimal("1.0")`` and ``Decimal("1.00")``.

    With at most ``capacity`` different values, the counts are exact. Beyond that, of N events, a count is too
    small by at most N / (``capacity`` + 1) and never too large, so every value that is more frequent than
    that is included.

    These are the mergeable summaries of Misra and Gries, which are equivalent to Space-Saving's (Agarwal,
    Cormode, Huang, Phillips, Wei, Yi: "Mergeable summaries", 2012), applied a batch at a time.
    """
    return MostFrequent(n, of, capacity, type)
