"""Windows as values: which stretches of event time an aggregation has a result for.

All times are whole milliseconds since the epoch and never negative; all durations are whole milliseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from streams.errors import ConfigurationError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

K = TypeVar("K")
R = TypeVar("R")


def milliseconds(number: float) -> int:
    """A duration in milliseconds. Raises ``ConfigurationError`` when it is negative or not whole."""
    return _duration(number, "milliseconds", 1)


def seconds(number: float) -> int:
    """A duration of so many seconds, in milliseconds. Raises as ``milliseconds`` does."""
    return _duration(number, "seconds", 1_000)


def minutes(number: float) -> int:
    """A duration of so many minutes, in milliseconds. Raises as ``milliseconds`` does."""
    return _duration(number, "minutes", 60_000)


def hours(number: float) -> int:
    """A duration of so many hours, in milliseconds. Raises as ``milliseconds`` does."""
    return _duration(number, "hours", 3_600_000)


def days(number: float) -> int:
    """A duration of so many days of 24 hours, in milliseconds. Raises as ``milliseconds`` does."""
    return _duration(number, "days", 86_400_000)


def _duration(number: Any, unit: str, factor: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigurationError(f"a duration in {unit} needs a finite number, got {number!r}")
    # Through its shortest text, a float counts as what was written: 1.001 seconds are 1001 milliseconds.
    exact = Decimal(repr(number)) * factor if isinstance(number, float) else number * factor
    if exact < 0 or exact != int(exact):
        raise ConfigurationError(
            f"a duration needs a whole number of milliseconds, 0 or more, got {number!r} {unit}"
        )
    return int(exact)


@dataclass(frozen=True, slots=True, init=False)
class Tumbling:
    """Windows of one size that follow each other without gaps, the first one starting at 0.

    ``Tumbling(minutes=1, seconds=30)``: the durations add up to ``size`` (milliseconds). A window holds the
    events at or after its start and before its end.
    """

    size: int

    def __init__(
        self,
        *,
        size: float = 0,
        milliseconds: float = 0,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        total = _sum("tumbling windows", "size", size, milliseconds, seconds, minutes, hours, days)
        object.__setattr__(self, "size", total)

    def end(self, start: int) -> int:
        """Where the window that starts at ``start`` ends; itself no longer in the window."""
        return start + self.size

    def describe(self) -> str:
        """Stable text, for fingerprints of stored windows."""
        return f"tumbling {self.size} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopping:
    """Windows of one ``size`` that start every ``advance``, and so overlap; both in milliseconds.

    ``Hopping(size=minutes(5), advance=minutes(1))``. A window holds the events at or after its start and
    before its end. Starts are the multiples of ``advance`` from 0 on; the size need not be one of them.
    """

    size: int
    advance: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _sum("hopping windows", "size", self.size))
        object.__setattr__(self, "advance", _sum("hopping windows", "advance", self.advance))
        if self.advance > self.size:
            raise TopologyError(
                f"hopping windows need an advance of at most their size of {self.size} ms, "
                f"got {self.advance} ms",
                hint="events between two windows would be in none of them",
            )

    def end(self, start: int) -> int:
        """Where the window that starts at ``start`` ends; itself no longer in the window."""
        return start + self.size

    def describe(self) -> str:
        """Stable text, for fingerprints of stored windows."""
        return f"hopping {self.size} ms every {self.advance} ms"


@dataclass(frozen=True, slots=True, init=False)
class Sliding:
    """For each key, every different set of events that lie at most ``difference`` milliseconds apart.

    ``Sliding(seconds=10)``: the durations add up to ``difference``. As in Kafka Streams (KIP-450), a window
    begins to exist where an event enters it or where one has just left it; both its ends are in it. See
    ``sliding_windows``.
    """

    difference: int

    def __init__(
        self,
        *,
        difference: float = 0,
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
        return f"sliding {self.difference} ms"


@dataclass(frozen=True, slots=True, init=False)
class Session:
    """For each key, stretches of activity: an event joins a session at most ``gap`` milliseconds away.

    ``Session(minutes=30)``: the durations add up to ``gap``. A session reaches from its first event to its
    last; an event between two may make them one.
    """

    gap: int

    def __init__(
        self,
        *,
        gap: float = 0,
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
        return f"session {self.gap} ms"


def _sum(
    windows: str,
    attribute: str,
    exact: float,
    of_milliseconds: float = 0,
    of_seconds: float = 0,
    of_minutes: float = 0,
    of_hours: float = 0,
    of_days: float = 0,
) -> int:
    """The durations' sum in milliseconds, 1 or more. Raises ``TopologyError`` that names the attribute."""
    try:
        total = (
            milliseconds(exact)
            + milliseconds(of_milliseconds)
            + seconds(of_seconds)
            + minutes(of_minutes)
            + hours(of_hours)
            + days(of_days)
        )
    except ConfigurationError as error:
        raise TopologyError(f"{windows}, {attribute}: {error}") from error
    if total < 1:
        raise TopologyError(f"{windows} need at least 1 ms of {attribute}, got {total} ms")
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWindow:
    """Which records of two streams are joined: a right one from ``before`` the left one until ``after`` it.

    Both ends belong to it, in milliseconds: ``JoinWindow(before=0, after=minutes(5))`` joins orders with the
    payments of the next five minutes.
    """

    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            try:
                object.__setattr__(self, name, milliseconds(getattr(self, name)))
            except ConfigurationError as error:
                raise TopologyError(f"join windows, {name}: {error}") from error

    def describe(self) -> str:
        """Stable text, for fingerprints of stored records."""
        return f"join {self.before} ms before to {self.after} ms after"


class Windowed(msgspec.Struct, Generic[K, R], frozen=True):
    """The result of one key's window.

    For tumbling and hopping windows ``end`` is no longer in the window. For sliding windows it is; for
    sessions, ``start`` and ``end`` are the times of the first and the last event.
    """

    key: K
    start: int
    end: int
    value: R


class ClosedWindow(Windowed[K, R], Generic[K, R], frozen=True):
    """The result of a window that has closed, as a query returns it while it is kept: it does not change."""


def merge_sessions(sessions: Sequence[tuple[int, int, Any]], start: int, end: int, gap: int) -> slice:
    """Which of one key's sessions become one with activity from ``start`` to ``end``, as a slice.

    ``sessions`` are (start, end, anything), ascending and more than ``gap`` apart, as sessions that were not
    merged are. Those found begin at most ``gap`` after ``end`` and end at most ``gap`` before ``start``. They
    may be replaced by the union at once, which touches no other session. An empty slice tells where a new
    session is to be inserted.
    """
    return slice(
        bisect_left(sessions, start - gap, key=itemgetter(1)),
        bisect_right(sessions, end + gap, key=itemgetter(0)),
    )


def sliding_windows(
    timestamps: Sequence[int], difference: int, low: int, high: int
) -> Iterator[tuple[int, int, int, int]]:
    """One key's sliding windows whose end is at least ``low`` and below ``high``, ascending by end.

    ``timestamps`` are the times at which there are events, ascending and each once. For each time t there is
    the window from t - ``difference`` to t, which an event enters, and the one from t + 1 to
    t + 1 + ``difference``, which it has just left, if there is an event in it. Yields (start, end, first,
    stop): both times are in the window, and ``timestamps[first:stop]`` lie in it. Each window comes once.

    A start is never negative. Where Kafka Streams puts all events before ``difference`` into one window from
    0 to ``difference``, here windows end at each event from the beginning.
    """
    entered = timestamps[bisect_left(timestamps, low) : bisect_left(timestamps, high)]
    past = difference + 1
    left = timestamps[bisect_left(timestamps, low - past) : bisect_left(timestamps, high - past)]
    first = stop = 0
    # All windows are equally long, up to those cut off at 0, so the end tells them apart.
    for end in sorted({*entered, *(timestamp + past for timestamp in left)}):
        first = bisect_left(timestamps, end - difference, first)
        stop = bisect_right(timestamps, end, stop)
        if first < stop:
            yield max(end - difference, 0), end, first, stop
