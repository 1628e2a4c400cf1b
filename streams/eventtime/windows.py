"""Definitions of windows: the intervals of event time for which an aggregation has results.

Windows are defined with ``timedelta``s. All times are whole milliseconds since the epoch, never negative.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from streams.durations import (
    MILLISECOND,
    days,
    hours,
    milliseconds,
    minutes,
    seconds,
    to_milliseconds,
    whole_milliseconds,
)
from streams.errors import ConfigurationError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

K = TypeVar("K")
R = TypeVar("R")


_NONE = timedelta()


@dataclass(frozen=True, slots=True, init=False)
class Tumbling:
    """Windows of one size that follow each other without gaps, the first one starting at 0.

    ``Tumbling(minutes(1))``, or in parts that add up: ``Tumbling(minutes=1, seconds=30)``. A window holds the
    events at or after its start and before its end.
    """

    size: timedelta

    def __init__(
        self,
        size: timedelta = _NONE,
        *,
        milliseconds: float = 0,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        total = _sum("tumbling windows", "size", size, milliseconds, seconds, minutes, hours, days)
        object.__setattr__(self, "size", total)

    def end(self, start: int) -> int:
        """The end of the window that starts at ``start``, exclusive."""
        return start + whole_milliseconds(self.size)

    def describe(self) -> str:
        """Stable text, for fingerprints of stored windows."""
        return f"tumbling {whole_milliseconds(self.size)} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopping:
    """Windows of one ``size`` that start every ``advance``, and so overlap.

    ``Hopping(size=minutes(5), advance=minutes(1))``. A window holds the events at or after its start and
    before its end. Starts are the multiples of ``advance`` from 0 on; the size need not be one of them.
    """

    size: timedelta
    advance: timedelta

    def __post_init__(self) -> None:
        _sum("hopping windows", "size", self.size)
        _sum("hopping windows", "advance", self.advance)
        if self.advance > self.size:
            raise TopologyError(
                "hopping windows need an advance of at most their size of "
                f"{whole_milliseconds(self.size)} ms, got {whole_milliseconds(self.advance)} ms",
                hint="reduce the advance: events between two windows would belong to no window",
            )

    def end(self, start: int) -> int:
        """The end of the window that starts at ``start``, exclusive."""
        return start + whole_milliseconds(self.size)

    def describe(self) -> str:
        """Stable text, for fingerprints of stored windows."""
        return f"hopping {whole_milliseconds(self.size)} ms every {whole_milliseconds(self.advance)} ms"


@dataclass(frozen=True, slots=True, init=False)
class Sliding:
    """For each key, every different set of events that are at most ``difference`` apart.

    ``Sliding(seconds(10))``, or in parts that add up: ``Sliding(minutes=1, seconds=30)``. As in Kafka Streams
    (KIP-450), there is a window for each event that enters it and for each that has just left it; both ends
    are inclusive. See ``sliding_windows``.
    """

    difference: timedelta

    def __init__(
        self,
        difference: timedelta = _NONE,
        *,
        milliseconds: float = 0,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        total = _sum("sliding windows", "difference", difference, milliseconds, seconds, minutes, hours, days)
        object.__setattr__(self, "difference", total)

    def describe(self) -> str:
        """Stable text, for fingerprints of stored windows."""
        return f"sliding {whole_milliseconds(self.difference)} ms"


@dataclass(frozen=True, slots=True, init=False)
class Session:
    """For each key, stretches of activity: an event joins a session at most ``gap`` away.

    ``Session(minutes(30))``, or in parts that add up: ``Session(hours=1, minutes=30)``. A session reaches
    from its first event to its last; an event between two sessions may merge them.
    """

    gap: timedelta

    def __init__(
        self,
        gap: timedelta = _NONE,
        *,
        milliseconds: float = 0,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        total = _sum("session windows", "gap", gap, milliseconds, seconds, minutes, hours, days)
        object.__setattr__(self, "gap", total)

    def describe(self) -> str:
        """Stable text, for fingerprints of stored windows."""
        return f"session {whole_milliseconds(self.gap)} ms"


def _sum(
    windows: str,
    attribute: str,
    exact: timedelta,
    of_milliseconds: float = 0,
    of_seconds: float = 0,
    of_minutes: float = 0,
    of_hours: float = 0,
    of_days: float = 0,
) -> timedelta:
    """The sum of the durations, 1 ms or more. Raises ``TopologyError`` with the name of the attribute."""
    to_milliseconds(exact, f"{windows}, {attribute}:")
    try:
        total = (
            exact
            + milliseconds(of_milliseconds)
            + seconds(of_seconds)
            + minutes(of_minutes)
            + hours(of_hours)
            + days(of_days)
        )
    except (ConfigurationError, OverflowError) as error:
        raise TopologyError(f"{windows}, {attribute}: {error}") from error
    if total < MILLISECOND:
        raise TopologyError(f"{windows} need at least 1 ms of {attribute}, got 0 ms")
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWindow:
    """The time window of a join: right records from ``before`` the left one's event time to ``after`` it.

    Both ends are inclusive: ``JoinWindow(after=minutes(5))`` joins orders with the payments of the next five
    minutes.
    """

    before: timedelta = _NONE
    after: timedelta = _NONE

    def __post_init__(self) -> None:
        to_milliseconds(self.before, "join windows, before:")
        to_milliseconds(self.after, "join windows, after:")

    def describe(self) -> str:
        """Stable text, for fingerprints of stored records."""
        before, after = whole_milliseconds(self.before), whole_milliseconds(self.after)
        return f"join {before} ms before to {after} ms after"


class Windowed(msgspec.Struct, Generic[K, R], frozen=True):
    """The result of one key's window.

    For tumbling and hopping windows ``end`` is exclusive, for sliding windows it is inclusive. For sessions,
    ``start`` and ``end`` are the times of the first and the last event.
    """

    key: K
    start: int
    end: int
    value: R


class ClosedWindow(Windowed[K, R], Generic[K, R], frozen=True):
    """The final result of a closed window, as a query returns it while it is kept."""


def merge_sessions(sessions: Sequence[tuple[int, int, Any]], start: int, end: int, gap: int) -> slice:
    """The slice of one key's sessions that merge with events from ``start`` to ``end``.

    ``sessions`` are (start, end, anything), in ascending order and more than ``gap`` apart. The slice has
    those that start at most ``gap`` after ``end`` and end at most ``gap`` before ``start``. Replacing them by
    their union merges with no other session. An empty slice is the position at which to insert a new session.
    """
    return slice(
        bisect_left(sessions, start - gap, key=itemgetter(1)),
        bisect_right(sessions, end + gap, key=itemgetter(0)),
    )


def sliding_windows(
    timestamps: Sequence[int], difference: int, low: int, high: int
) -> Iterator[tuple[int, int, int, int]]:
    """One key's sliding windows with ``low <= end < high``, in ascending order of end.

    ``timestamps`` are the distinct times of the events, in ascending order. For each time t there is the
    window from t - ``difference`` to t, which an event enters, and the one from t + 1 to
    t + 1 + ``difference``, which it has just left, if that contains an event. Yields (start, end, first,
    stop): both times are inclusive, and ``timestamps[first:stop]`` are in the window. Each window comes once.

    A start is never negative. Kafka Streams puts all events before ``difference`` into one window from 0 to
    ``difference``; here, windows end at each event from the beginning.
    """
    entered = timestamps[bisect_left(timestamps, low) : bisect_left(timestamps, high)]
    past = difference + 1
    left = timestamps[bisect_left(timestamps, low - past) : bisect_left(timestamps, high - past)]
    first = stop = 0
    # All windows have the same length, except those cut off at 0, so the end identifies a window.
    for end in sorted({*entered, *(timestamp + past for timestamp in left)}):
        first = bisect_left(timestamps, end - difference, first)
        stop = bisect_right(timestamps, end, stop)
        if first < stop:
            yield max(end - difference, 0), end, first, stop
