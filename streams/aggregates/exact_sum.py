"""Sums of integers, floats and decimals without rounding, independent of order and batches."""

from __future__ import annotations

import math
from contextlib import suppress
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Exact: TypeAlias = "int | Decimal"

Sum: TypeAlias = "Exact | tuple[Any, ...]"
"""An exact sum: an integer of integers alone, a decimal if there were decimals too; with floats a tuple of
that and the floats' sum as returned by ``expansion``.
"""

EXACT_CONTEXT = Context(prec=4000, Emin=-99_999, Emax=99_999, traps=[Inexact, InvalidOperation])
"""Large enough for sums and squares of all accepted numbers."""


def added_exactly(one: Exact, other: Exact) -> Exact:
    """The sum of both, independent of the current decimal context."""
    return one + other if type(one) is int and type(other) is int else EXACT_CONTEXT.add(one, other)


def negated(column: Iterable[Any]) -> list[Any]:
    """The numbers with the opposite sign."""
    # The operator would round decimals to the precision of the current context.
    return [number.copy_negate() if type(number) is Decimal else -number for number in column]


def expansion(terms: Iterable[float]) -> tuple[float, ...]:
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


def sum_plus(total: Sum, column: Iterable[Any]) -> Sum:
    """The sum with more numbers: integers, floats and decimals, finite and of at most 300 places."""
    column = list(column)
    added: Any = None
    # Raises for decimals among floats; decimals' own sum would be rounded.
    with suppress(TypeError, ArithmeticError):
        added = sum(column)
    if type(added) is int:
        if isinstance(total, tuple):
            return (added_exactly(total[0], added), *total[1:])
        return added_exactly(total, added)
    exact, *parts = total if isinstance(total, tuple) else (total,)
    kinds = set(map(type, column))
    if kinds == {float}:
        return (exact, *expansion([*parts, *column]))
    for number in column:
        if type(number) is not float:
            exact = added_exactly(exact, number)
    if float not in kinds and not isinstance(total, tuple):
        return exact  # type: ignore[no-any-return]  # an integer or a decimal
    return (exact, *expansion([*parts, *(number for number in column if type(number) is float)]))


def sums_merged(first: Sum, second: Sum) -> Sum:
    """The sum of both."""
    if not isinstance(first, tuple):
        if isinstance(second, tuple):
            return (added_exactly(first, second[0]), *second[1:])
        return added_exactly(first, second)
    if not isinstance(second, tuple):
        return (added_exactly(first[0], second), *first[1:])
    return (added_exactly(first[0], second[0]), *expansion([*first[1:], *second[1:]]))


def rounded_sum(total: Sum) -> Any:
    """The sum as a number: itself, or with floats in it the nearest float."""
    if not isinstance(total, tuple):
        return total
    exact, *parts = total
    if isinstance(exact, Decimal):
        return float(sum(map(Fraction, parts), Fraction(exact)))
    while exact:
        # An integer beyond 53 bits needs several floats.
        parts.append(float(exact))
        exact -= int(parts[-1])
    return math.fsum(parts)


def quotient(dividend: Decimal | int, divisor: int) -> Decimal:
    """The quotient rounded once, to 28 digits, or a few more than the dividend has."""
    digits = len(Decimal(dividend).as_tuple().digits)
    context = Context(prec=max(28, digits + 6), rounding=ROUND_HALF_EVEN, Emin=-99_999, Emax=99_999, traps=[])
    return context.divide(Decimal(dividend), Decimal(divisor))


_STR_DIGITS = 4000
"""Longer integers cannot be written as decimal digits (``sys.set_int_max_str_digits``)."""


def pack_number(number: Any) -> Any:
    """The number as plain values that msgpack can hold."""
    if type(number) is Decimal:
        return {"d": str(number)}
    if type(number) is float or -(2**63) <= number < 2**64:
        return number
    return hex(number) if number.bit_length() > 3 * _STR_DIGITS else str(number)


def unpack_number(packed: Any) -> Any:
    """The number that was packed."""
    if isinstance(packed, dict):
        return Decimal(packed["d"])
    return int(packed, 0) if isinstance(packed, str) else packed


def pack_sum(total: Sum) -> Any:
    """The sum as plain values that msgpack can hold."""
    return [pack_number(total[0]), *total[1:]] if isinstance(total, tuple) else pack_number(total)


def unpack_sum(packed: Any) -> Sum:
    """The sum that was packed."""
    return (unpack_number(packed[0]), *packed[1:]) if isinstance(packed, list) else unpack_number(packed)
