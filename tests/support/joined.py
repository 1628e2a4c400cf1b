"""For tests of stream joins: the results by definition, whatever the order of arrival.

The rules are those that users of Kafka Streams' ``JoinWindows`` and Flink's interval joins go by: which pairs
lie in the window, and which disorder a join has to bear. They look at the input alone, not at any store.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Side = str
"""``left`` or ``right``."""

Result = tuple[Any, tuple[Any, Any], int]
"""Key, values of both sides, event time."""


class Window(NamedTuple):
    """A right record is joined from ``before`` the left one until ``after`` it; milliseconds."""

    before: int
    after: int
    grace: int = 0

    def end(self, side: Side, time: int) -> int:
        """Where the window of a record ends: no record of the other side that it meets lies behind it."""
        return time + (self.after if side == "left" else self.before)


class Arrival(NamedTuple):
    """A record, with the stream time after its arrival."""

    number: int
    side: Side
    key: Any
    value: Any
    time: int
    now: int


def arrivals(records: Iterable[tuple[Side, Any, Any, int]]) -> list[Arrival]:
    """The records in the order of arrival, without tombstones, which are not joined."""
    now = -1
    found = []
    for number, (side, key, value, time) in enumerate(records):
        now = max(now, time)
        if value is not None:
            found.append(Arrival(number, side, key, value, time, now))
    return found


class Pair(NamedTuple):
    """Two records of the same key within the window."""

    left: Arrival
    right: Arrival

    @property
    def later(self) -> Arrival:
        """The record that arrived later."""
        return max(self)

    @property
    def result(self) -> Result:
        left, right = self
        return left.key, (left.value, right.value), max(left.time, right.time)

    def in_time(self, window: Window) -> bool:
        """Whether stream time had not passed both records' windows and the grace when the later one came."""
        left, right = self
        ends = window.end("left", left.time), window.end("right", right.time)
        return self.later.now <= max(ends) + window.grace


def pairs_of(came: Sequence[Arrival], window: Window) -> list[Pair]:
    """Each pair in the window, in whatever order its records came."""
    return [
        Pair(left, right)
        for left in came
        if left.side == "left" and left.key is not None
        for right in came
        if right.side == "right"
        and right.key == left.key
        and left.time - window.before <= right.time <= left.time + window.after
    ]


class Expected(NamedTuple):
    """The results and the numbers of late records that the page on joins promises for an input."""

    results: Counter[Result]
    late: set[int]


def promised(came: Sequence[Arrival], how: str, window: Window) -> Expected:
    """By that page's rule: the earlier record's time, plus both parts of the window, plus the grace."""
    lasts = window.before + window.after + window.grace
    taken = [each for each in came if each.key is None or each.now <= each.time + lasts]
    late = {each.number for each in came} - {each.number for each in taken}
    results: Counter[Result] = Counter()
    met: set[int] = set()
    for pair in pairs_of(taken, window):
        if pair.later.now <= min(pair.left.time, pair.right.time) + lasts:
            results[pair.result] += 1
            met |= {pair.left.number, pair.right.number}
        else:
            late.add(pair.later.number)
    for each in taken:
        if each.number not in met and (how == "outer" or (how == "left" and each.side == "left")):
            both = (each.value, None) if each.side == "left" else (None, each.value)
            results[each.key, both, each.time] += 1
    return Expected(results, late)


def check_definition(
    came: Sequence[Arrival], how: str, window: Window, results: Counter[Result], late: Counter[int]
) -> None:
    """Hold what came out against what any join by event time has to do; values must be the records' numbers.

    Each result is of records that belong together, and comes once. A pair for which the later record came
    before stream time had passed both windows and the grace is joined. Of any other pair, either it is joined
    or its later record is late, and no record is late without a reason. What has no partner leaves alone,
    once, and is in no pair.
    """
    pairs = pairs_of(came, window)
    together = {pair.result: pair for pair in pairs}
    assert set(results.values()) <= {1}
    assert set(late.values()) <= {1}
    joined = {result for result in results if None not in result[1]}
    alone = {result[1][0] if result[1][1] is None else result[1][1] for result in results.keys() - joined}
    assert joined <= together.keys()
    for result, pair in together.items():
        if pair.in_time(window):
            assert result in joined
        elif result not in joined:
            assert {pair.left.number, pair.right.number} & late.keys()
    for each in came:
        if each.number in late:
            assert each.now > window.end(each.side, each.time) + window.grace
    met = {number for _, both, _ in joined for number in both}
    assert not met & alone
    for each in came:
        emits = how == "outer" or (how == "left" and each.side == "left")
        if emits and each.number not in met | late.keys():
            assert each.number in alone
        if not emits:
            assert each.number not in alone
