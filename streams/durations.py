"""Durations: ``timedelta``s in programs, whole milliseconds in the engine, as event times are."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

from streams.errors import ConfigurationError, TopologyError

MILLISECOND = timedelta(milliseconds=1)


def milliseconds(number: float) -> timedelta:
    """A duration in milliseconds. Raises ``ConfigurationError`` for a negative or fractional number."""
    return _duration(number, "milliseconds", 1)


def seconds(number: float) -> timedelta:
    """A duration in seconds. Raises ``ConfigurationError`` unless it is whole milliseconds, 0 or more."""
    return _duration(number, "seconds", 1_000)


def minutes(number: float) -> timedelta:
    """A duration in minutes. Raises ``ConfigurationError`` unless it is whole milliseconds, 0 or more."""
    return _duration(number, "minutes", 60_000)


def hours(number: float) -> timedelta:
    """A duration in hours. Raises ``ConfigurationError`` unless it is whole milliseconds, 0 or more."""
    return _duration(number, "hours", 3_600_000)


def days(number: float) -> timedelta:
    """A duration in days of 24 hours. Raises ``ConfigurationError`` unless whole milliseconds, 0 or more."""
    return _duration(number, "days", 86_400_000)


def to_milliseconds(duration: object, what: str, *, least: int | None = 0) -> int:
    """Convert a duration from the user's program to milliseconds; ``what`` is its name in errors.

    Raises ``TopologyError`` for anything but a ``timedelta`` of whole milliseconds, ``least`` or more: a bare
    number would be ambiguous, seconds or milliseconds. With ``least=None``, the caller checks the bound.
    """
    if not isinstance(duration, timedelta):
        raise TopologyError(
            f"{what} must be a duration, got {duration!r:.80}",
            hint="write it with its unit: minutes(5), or timedelta(minutes=5)",
        )
    whole, rest = divmod(duration, MILLISECOND)
    if rest:
        raise TopologyError(
            f"{what} must be a whole number of milliseconds, got {duration / MILLISECOND:g} ms"
        )
    if least is not None and whole < least:
        raise TopologyError(f"{what} must be {least} ms or more, got {whole} ms")
    return whole


def whole_milliseconds(duration: timedelta) -> int:
    """The milliseconds of a duration that ``to_milliseconds`` has already checked."""
    return duration // MILLISECOND


def _duration(number: Any, unit: str, factor: int) -> timedelta:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigurationError(f"a duration in {unit} needs a finite number, got {number!r}")
    # Converting a float through its shortest text gives the number as written: 1.001 s are 1001 ms.
    exact = Decimal(repr(number)) * factor if isinstance(number, float) else number * factor
    if exact < 0 or exact != int(exact):
        raise ConfigurationError(
            f"a duration needs a whole number of milliseconds, 0 or more, got {number!r} {unit}"
        )
    try:
        return timedelta(milliseconds=int(exact))
    except OverflowError:
        raise ConfigurationError(
            f"a duration has at most {timedelta.max.days:,} days, got {number!r} {unit}"
        ) from None
