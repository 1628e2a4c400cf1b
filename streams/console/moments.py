"""Moments as people type them into forms."""

from __future__ import annotations

import time
from typing import Final

from streams.replay.positions import Ago, AtTime, Earliest, Latest, parse_duration, parse_time

HINT: Final = "2026-11-30T08:00 (UTC, or with an offset), milliseconds since the epoch, or an age: 2h"


def parse_moment(text: str, now: int | None = None) -> int:
    """Parse a time, in UTC unless it has an offset, or an age such as ``2h``.

    ``now``, the clock's time by default, and the result are milliseconds since the epoch. Raises
    ``ConfigurationError``.
    """
    given = text.strip().removeprefix("-")
    if given[-1:] in tuple("dhms") and not given.startswith("P"):
        return (time.time_ns() // 1_000_000 if now is None else now) - parse_duration(given)
    return parse_time(given)


def optional_moment(text: str) -> int | None:
    """A time as above; ``None`` for an empty text. Raises ``ConfigurationError``."""
    return parse_moment(text) if text.strip() else None


def parse_point(text: str) -> Earliest | Latest | AtTime | Ago:
    """A position in topics, as on the command line, but for files: these would be the server's.

    Raises ``ConfigurationError``.
    """
    given = text.strip()
    if given == "earliest":
        return Earliest()
    if given in ("", "latest"):
        return Latest()
    if given.startswith("-"):
        return Ago(parse_duration(given[1:]))
    return AtTime(parse_time(given))
