"""Limits on how many jobs run, at once or in a time, for all workers together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.durations import to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``rate`` jobs begin in each ``per``, and at most ``running`` run at once, in all workers.

    Jobs that share a limit are in one partition, whose owner decides alone: so the limit holds across
    workers, and a limited job needs neither a thread nor a connection while it waits. ``key`` is a function
    of the job's arguments whose results, texts, have a limit each, e.g. the domain of an address. ``name``
    lets several functions share a limit; without it each function has its own. ``burst`` is how many of
    ``rate`` may begin at the same moment; without it all of them.
    """

    rate: int | None = None
    per: timedelta | None = None
    running: int | None = None
    key: Callable[..., str] | None = None
    name: str | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) != (self.per is None):
            raise ConfigurationError(
                "Limit: rate and per belong together", hint="Limit(rate=100, per=minutes(1))"
            )
        if self.rate is None and self.running is None:
            raise ConfigurationError(
                "Limit limits nothing", hint="Limit(rate=100, per=minutes(1)) or Limit(running=5)"
            )
        for name, number in (("rate", self.rate), ("running", self.running), ("burst", self.burst)):
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigurationError(f"Limit: {name} is a whole number from 1, got {number!r:.80}")
        if self.per is not None:
            to_milliseconds(self.per, "Limit: per", least=1)
        if self.burst is not None and self.rate is None:
            raise ConfigurationError("Limit: burst needs rate and per")


class Bucket:
    """One limit while jobs wait for it: what runs, and when the next one may begin.

    The rate is kept by the generic cell rate algorithm: ``full_at`` is the time at which the bucket has
    refilled, in milliseconds since the epoch, and all that has to be stored. Each start moves it by
    the interval ``per / rate``, and it may be at most ``burst - 1`` intervals ahead.
    """

    __slots__ = ("_ahead", "_interval", "closed_until", "full_at", "most", "running")

    def __init__(self, limit: Limit, full_at: float = 0.0, closed_until: int = 0) -> None:
        self.most = limit.running
        self._interval = 0.0
        self._ahead = 0.0
        if limit.rate is not None and limit.per is not None:
            self._interval = limit.per.total_seconds() * 1000 / limit.rate
            self._ahead = self._interval * ((limit.burst or limit.rate) - 1)
        self.full_at = full_at
        self.closed_until = closed_until
        self.running = 0

    @property
    def has_rate(self) -> bool:
        """Whether ``full_at`` means anything."""
        return self._interval > 0

    def opens(self) -> float | None:
        """When another job may begin: now or earlier, or later; ``None``: when one that runs has ended."""
        if self.most is not None and self.running >= self.most:
            return None
        return max(self.closed_until, self.full_at - self._ahead if self._interval else 0.0)

    def begin(self, now: int) -> None:
        """Count a job that begins."""
        self.running += 1
        if self._interval:
            self.full_at = max(self.full_at, now) + self._interval
