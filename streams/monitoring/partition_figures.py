"""The figures of one partition of a group: what waits, for how long, and until when it can."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from streams.monitoring.offset_history import OffsetHistory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.records import TopicPartition

RATE_SECONDS = 60.0
"""The time over which rates are measured."""

EXACT_SECONDS = 2.0
"""How exactly a waiting time must be known by ends alone, else the record itself is read."""


class PartitionFigures(NamedTuple):
    """What is known of a partition; ``None`` is unknown, never 0."""

    partition: TopicPartition
    position: int | None
    """The next offset to process."""
    end: int | None
    lag: int | None
    """Offsets from the position to the end: 0 once everything is processed, markers included."""
    waiting: float | None
    """Seconds since the oldest unprocessed record was appended; 0 if there is none."""
    arrival_rate: float | None
    """Offsets a second by which the end has grown."""
    processing_rate: float | None
    """Offsets a second by which the position has moved."""
    deleted_in: float | None
    """Seconds until the topic deletes unprocessed records, at the present rates; ``None`` if it does not."""
    age: float | None
    """Seconds since its end was read from the broker."""

    @property
    def caught_up_in(self) -> float | None:
        """Seconds until the lag is 0, at the present rates; ``None`` if it does not fall, or is unknown."""
        if self.lag == 0:
            return 0.0
        if self.lag is None or self.processing_rate is None or self.arrival_rate is None:
            return None
        gain = self.processing_rate - self.arrival_rate
        return self.lag / gain if gain > 0 else None


N = TypeVar("N", int, float)


def known_total(values: Sequence[N | None], nothing: N) -> N | None:
    """The sum of figures, ``nothing`` of none; ``None`` if one of them is unknown: a part is no total."""
    known = [value for value in values if value is not None]
    return sum(known, nothing) if len(known) == len(values) else None


def known_longest(times: Sequence[float | None]) -> float | None:
    """The longest of these times, 0 of none; ``None`` if one of them is unknown: it may be the longest."""
    known = [time for time in times if time is not None]
    return max(known, default=0.0) if len(known) == len(times) else None


class PartitionObserver:
    """Collects what is observed of one partition. Times are seconds on one monotonic clock.

    The append time of a record is bracketed by the ends that were observed: it was appended after the last
    one at or before its offset, and before the first one after it. A record's own timestamp, which producers
    may set to anything, only decides within that. So a replay of last year's events has waited for as long
    as they have been in the topic, as far as anybody has looked.
    """

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self._ends = OffsetHistory()
        self._positions = OffsetHistory()
        self._beginnings = OffsetHistory()
        self._oldest: tuple[int, float] | None = None
        """An offset, and when the next visible record from there on was appended by its own timestamp."""
        self._retention: float | None = None

    def position(self, position: int, now: float) -> None:
        """The next offset to process is this one."""
        self._positions.observe(position, now)
        self._ends.forget(position, now)
        if self._oldest is not None and self._oldest[0] != position:
            self._oldest = None

    def end(self, end: int, now: float) -> None:
        """The partition ends there, records in open transactions and markers included."""
        self._ends.observe(end, now)

    def beginning(self, offset: int, retention: float | None, now: float) -> None:
        """The partition begins there; its topic deletes records after ``retention`` seconds, if at all."""
        self._beginnings.observe(offset, now)
        self._retention = retention

    def to_read(self, now: float) -> int | None:
        """The offset from which the next record should be read, as its append time is not known by ends."""
        position = self._positions.latest
        if position is None or self._drained or self._oldest is not None:
            return None
        return position if self._ends.age(position, now).width > EXACT_SECONDS else None

    def oldest(self, offset: int, appended: float) -> None:
        """The next record from ``offset`` on has a timestamp that is ``appended`` on the clock."""
        if offset == self._positions.latest:
            self._oldest = offset, appended

    def figures(self, now: float) -> PartitionFigures:
        """What is known now."""
        position, end = self._positions.latest, self._ends.latest
        seen = self._ends.seen
        lag = None if position is None or end is None else max(0, end - position)
        return PartitionFigures(
            self.partition,
            position,
            end,
            lag,
            self._waiting(now),
            self._ends.rate(RATE_SECONDS, now),
            self._positions.rate(RATE_SECONDS, now),
            self._deleted_in(lag, now),
            None if seen is None else now - seen,
        )

    @property
    def _drained(self) -> bool:
        position, end = self._positions.latest, self._ends.latest
        return position is not None and end is not None and position >= end

    def _waiting(self, now: float) -> float | None:
        position = self._positions.latest
        if position is None or self._ends.latest is None:
            return None
        if self._drained:
            return 0.0
        age = self._ends.age(position, now)
        if self._oldest is not None:
            return age.nearest(max(0.0, now - self._oldest[1]))
        return None if age.most is None else age.most

    def _deleted_in(self, lag: int | None, now: float) -> float | None:
        """See ``PartitionFigures.deleted_in``: by age, and by size as it deletes now; the earlier of both."""
        waiting, position = self._waiting(now), self._positions.latest
        if not lag or waiting is None or position is None:
            return None
        processing = self._positions.rate(RATE_SECONDS, now)
        arriving = self._ends.rate(RATE_SECONDS, now)
        moments = []
        if self._retention is not None and processing is not None and arriving is not None:
            # The topic deletes by the records' own timestamps.
            old = waiting if self._oldest is None else max(waiting, now - self._oldest[1])
            left = max(0.0, self._retention - old)
            if processing <= 0:
                moments.append(left)
            elif arriving > processing:
                # The oldest record gets older by this much each second.
                moments.append(left / (1 - processing / arriving))
        deleting, beginning = self._beginnings.rate(RATE_SECONDS, now), self._beginnings.latest
        if beginning is not None and deleting is not None and deleting > (processing or 0.0):
            moments.append(max(0, position - beginning) / (deleting - (processing or 0.0)))
        return min(moments, default=None)
