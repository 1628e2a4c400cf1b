"""Limits on how many jobs run, at once or in a time, for all workers together."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from streams.durations import MILLISECOND, to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``rate`` jobs begin in any ``per``, and at most ``running`` run at once, in all workers.

    Jobs that share a limit are in one partition, whose owner decides alone: so the limit holds across
    workers, and a limited job needs neither a thread nor a connection while it waits. ``key`` is a function
    of the job's arguments whose results, texts, have a limit each, e.g. the domain of an address. ``name``
    lets several functions share a limit; without it each function has its own.
    """

    rate: int | None = None
    per: timedelta | None = None
    running: int | None = None
    key: Callable[..., str] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) != (self.per is None):
            raise ConfigurationError(
                "Limit: rate and per belong together", hint="Limit(rate=100, per=minutes(1))"
            )
        if self.rate is None and self.running is None:
            raise ConfigurationError(
                "Limit limits nothing", hint="Limit(rate=100, per=minutes(1)) or Limit(running=5)"
            )
        for name, number in (("rate", self.rate), ("running", self.running)):
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigurationError(f"Limit: {name} is a whole number from 1, got {number!r:.80}")
        if self.per is not None:
            to_milliseconds(self.per, "Limit: per", least=1)


class Starts(msgspec.Struct, array_like=True):
    """Some of the last starts of a limit, so close together that they count as one moment."""

    first: int
    """Times are milliseconds since the epoch."""
    last: int
    count: int


class Bucket:
    """One limit while jobs wait for it: what runs, and when the next one may begin.

    The starts of the last ``per`` are counted, so that there are never more than ``rate`` in any ``per``, and
    not only in each minute of the clock. Starts within a sixty-fourth of ``per`` are counted together, as of
    the last of them: so what has to be stored does not grow with the rate, and a limit is never exceeded.
    """

    __slots__ = ("_apart", "_per", "_rate", "_started", "closed_until", "most", "running", "starts")

    def __init__(self, limit: Limit, starts: Iterable[Starts] = (), closed_until: int = 0) -> None:
        self.most = limit.running
        self._rate = limit.rate or 0
        self._per = 0 if limit.per is None else limit.per // MILLISECOND
        self._apart = self._per // 64
        self.starts = deque(starts)
        self._started = sum(group.count for group in self.starts)
        self.closed_until = closed_until
        self.running = 0

    @property
    def has_rate(self) -> bool:
        """Whether ``starts`` mean anything."""
        return self._rate > 0

    def opens(self) -> int | None:
        """When another job may begin: now or earlier, or later; ``None``: when one that runs has ended."""
        if self.most is not None and self.running >= self.most:
            return None
        opens, over = self.closed_until, self._started - self._rate
        if self._rate:
            for group in self.starts:
                if over < 0:
                    break
                opens = max(opens, group.last + self._per)
                over -= group.count
        return opens

    def begin(self, now: int) -> None:
        """Count a job that begins."""
        self.running += 1
        if not self._rate:
            return
        starts = self.starts
        while starts and starts[0].last + self._per <= now:
            self._started -= starts.popleft().count
        if starts and now - starts[-1].first < self._apart:
            starts[-1].last = max(now, starts[-1].last)
            starts[-1].count += 1
        else:
            starts.append(Starts(now, now, 1))
        self._started += 1

    def end(self, begun: int) -> None:
        """Count a job that has ended. It may have begun later than it was counted, when a thread was free."""
        self.running -= 1
        if self.starts:
            self.starts[-1].last = max(self.starts[-1].last, begun)
