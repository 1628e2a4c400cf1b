"""What a worker's figures were in the last hours, for charts: a sample for each ten seconds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from streams.monitoring.partition_figures import known_longest, known_total

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.monitoring.partition_figures import PartitionFigures
    from streams.records import TopicPartition

SAMPLE_SECONDS: Final = 10
KEPT_SAMPLES: Final = 6 * 3600 // SAMPLE_SECONDS
"""Six hours of a worker: a quarter of a megabyte."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The figures of one worker over ten seconds. ``None`` is unknown."""

    time: int
    """When it ends: a multiple of ten seconds, in milliseconds since the epoch."""
    waiting: float | None
    """The longest waiting time, in seconds."""
    lag: int | None
    arrival_rate: float | None
    """Records for each second, as at the end of the sample."""
    processing_rate: float | None
    busy: float | None
    """The share of its time in which the worker did not wait for input."""
    dead_letters: int
    """Dead letters that it has written since it started."""


class Series:
    """The samples of one worker. One thread adds, any thread reads."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._end: int | None = None
        self._waiting: list[float | None] = []
        self._busy: tuple[float, float] | None = None

    def observe(
        self,
        time: int,
        figures: Mapping[TopicPartition, PartitionFigures],
        *,
        elapsed: float,
        busy: float,
        dead_letters: int,
    ) -> None:
        """Note what was measured at ``time`` (milliseconds since the epoch).

        ``busy`` are the seconds in which the worker did not wait for input, of the ``elapsed`` ones, both
        counted from any fixed moment.
        """
        items = figures.values()
        self._waiting.append(known_longest([item.waiting for item in items]))
        if self._busy is None:
            self._busy = elapsed, busy
        end = time // (SAMPLE_SECONDS * 1000) * SAMPLE_SECONDS * 1000
        if self._end is not None and end <= self._end:
            return
        if self._end is not None:
            before_elapsed, before_busy = self._busy
            span = elapsed - before_elapsed
            self._samples.append(
                Sample(
                    end,
                    known_longest(self._waiting),
                    known_total([item.lag for item in items], 0),
                    known_total([item.arrival_rate for item in items], 0.0),
                    known_total([item.processing_rate for item in items], 0.0),
                    min(1.0, max(0.0, (busy - before_busy) / span)) if span > 0 else None,
                    dead_letters,
                )
            )
        self._end = end
        self._waiting.clear()
        self._busy = elapsed, busy

    def since(self, time: int) -> Sequence[Sample]:
        """The samples that end after ``time`` (milliseconds since the epoch), the oldest first."""
        # A deque must not change while it is iterated, and copying it holds Python's lock.
        return [sample for sample in self._samples.copy() if sample.time > time]
