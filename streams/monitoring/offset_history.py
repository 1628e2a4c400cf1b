"""Where a partition's end or a position in it was, and when: so when its records were appended."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

RESOLUTION = 1 / 50
"""How exactly old moments are kept, as a share of how long ago they are."""

MANY = 200
"""Points of a partition above which they are thinned out."""

RECENT_SECONDS = 120.0
"""How long points are kept that are needed for rates alone."""


class Age(NamedTuple):
    """Between how many seconds ago a record was appended; ``most`` is ``None`` where nothing says it."""

    least: float
    most: float | None

    @property
    def width(self) -> float:
        """How uncertain it is, in seconds."""
        return float("inf") if self.most is None else self.most - self.least

    def nearest(self, seconds: float) -> float:
        """The age that is nearest to this one."""
        return max(self.least, seconds if self.most is None else min(self.most, seconds))


@dataclass(slots=True)
class _Point:
    """An offset, and when it was seen first and last."""

    offset: int
    first: float
    last: float


class OffsetHistory:
    """An offset of one partition as it was observed, e.g. its end. Times are seconds that never go back.

    Of an offset that does not move, one point is kept. Points are thinned out by their age, so that an
    append time is known to a fiftieth of how long ago it was: some hundred points for a week.
    """

    def __init__(self) -> None:
        self._points: list[_Point] = []
        self._thin_at = MANY

    def __len__(self) -> int:
        """How many moments are kept."""
        return len(self._points)

    @property
    def latest(self) -> int | None:
        """The offset that was observed last."""
        return self._points[-1].offset if self._points else None

    @property
    def seen(self) -> float | None:
        """When it was observed last."""
        return self._points[-1].last if self._points else None

    def observe(self, offset: int, now: float) -> None:
        """Note the offset at this moment. If it went back, everything before is forgotten."""
        if self._points and offset < self._points[-1].offset:
            self._points.clear()
        if self._points and offset == self._points[-1].offset:
            self._points[-1].last = now
            return
        self._points.append(_Point(offset, now, now))
        if len(self._points) > self._thin_at:
            self._thin(now)

    def forget(self, offset: int, now: float) -> None:
        """Forget what is only needed for records before ``offset``."""
        until = bisect_right(self._points, offset, key=lambda point: point.offset) - 1
        recent = bisect_right(self._points, now - RECENT_SECONDS, key=lambda point: point.last)
        del self._points[: max(0, min(until, recent))]

    def age(self, offset: int, now: float) -> Age:
        """How long ago the record at ``offset`` was appended, if these are ends; 0 for one that is not."""
        after = bisect_right(self._points, offset, key=lambda point: point.offset)
        if after == len(self._points):
            # It is not there yet.
            return Age(0.0, 0.0)
        least = max(0.0, now - self._points[after].first)
        return Age(least, None if after == 0 else max(least, now - self._points[after - 1].last))

    def rate(self, seconds: float, now: float) -> float | None:
        """By how much it grew a second in the last ``seconds``, about; ``None`` in the first second."""
        if not self._points:
            return None
        since = now - seconds
        start = self._points[max(0, bisect_right(self._points, since, key=lambda point: point.first) - 1)]
        latest = self._points[-1]
        elapsed = latest.last - max(start.first, min(since, start.last))
        return (latest.offset - start.offset) / elapsed if elapsed >= 1.0 else None

    def _thin(self, now: float) -> None:
        """Keep a point if it is some share of its age after the one before, and the newest."""
        kept = [self._points[0]]
        for point, following in pairwise(self._points[1:]):
            if following.first - kept[-1].last > (now - point.first) * RESOLUTION:
                kept.append(point)
        kept.append(self._points[-1])
        self._points = kept
        self._thin_at = len(kept) + MANY
