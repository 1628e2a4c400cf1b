"""Which fields of two decoded values differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ABSENT: Final = "(absent)"


class FieldChange(NamedTuple):
    """A field that differs. Elements of lists have the path ``list[]``, whatever their position."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What counts as equal.

    Numbers are equal if they differ by at most ``absolute``, or by at most ``relative`` times the larger one,
    if one of them is a float. NaN equals NaN, and -0 equals 0. Fields in ``ignore`` are not compared, nor
    what is in them.
    """

    absolute: float = 0.0
    relative: float = 1e-9
    ignore: frozenset[str] = frozenset()


def changes(old: Any, new: Any, rules: Rules, path: str = "") -> Iterator[FieldChange]:
    """The fields in which two plain values differ. A value that has no fields is the field ``value``."""
    if path in rules.ignore and path:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _of_mappings(old, new, rules, path)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _of_lists(old, new, rules, path)
    elif not equal(old, new, rules):
        yield FieldChange(path or "value", old, new)


def equal(old: Any, new: Any, rules: Rules) -> bool:
    """Whether two values without fields are equal."""
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if numbers and (isinstance(old, float) or isinstance(new, float)) and bool not in {type(old), type(new)}:
        if math.isnan(old) or math.isnan(new):
            return math.isnan(old) and math.isnan(new)
        return bool(math.isclose(old, new, rel_tol=rules.relative, abs_tol=rules.absolute))
    return type(old) is type(new) and bool(old == new)


def _of_mappings(
    old: Mapping[str, Any], new: Mapping[str, Any], rules: Rules, path: str
) -> Iterator[FieldChange]:
    for name in dict.fromkeys([*old, *new]):
        place = f"{path}.{name}" if path else str(name)
        if place in rules.ignore:
            continue
        if name in old and name in new:
            yield from changes(old[name], new[name], rules, place)
        else:
            yield FieldChange(place, old.get(name, ABSENT), new.get(name, ABSENT))


def _of_lists(old: Sequence[Any], new: Sequence[Any], rules: Rules, path: str) -> Iterator[FieldChange]:
    place = f"{path}[]"
    if place in rules.ignore:
        return
    for left, right in zip_longest(old, new, fillvalue=ABSENT):
        yield from changes(left, right, rules, place)
