"""An app's figures of the last hours: the samples that its workers keep, put together."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from streams.monitoring.partition_figures import known_longest, known_total
from streams.monitoring.series import KEPT_SAMPLES, SAMPLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.monitoring.series import Sample

STEP: int = SAMPLE_SECONDS * 1000


class Point(NamedTuple):
    """The figures of all workers over ten seconds. ``None`` is unknown."""

    time: int
    waiting: float | None
    lag: int | None
    arrival_rate: float | None
    processing_rate: float | None
    busy: float | None
    """Of the busiest worker."""
    dead_letters: int
    """New ones, in these ten seconds."""
    workers: int


class Mark(NamedTuple):
    """Something that happened, to be marked on the charts."""

    time: int
    kind: str
    """``start`` of a worker, or ``rebalance``."""
    sentence: str


class History:
    """The samples of an app's workers. Only the collector adds; what pages get does not change."""

    def __init__(self) -> None:
        self._workers: dict[str, dict[int, Sample]] = {}
        self._marks: dict[tuple[int, str, str], Mark] = {}

    def newest(self, worker: str) -> int:
        """When the newest sample of a worker ends, 0 without any."""
        return max(self._workers.get(worker, {}), default=0)

    def add(self, worker: str, samples: Sequence[Sample]) -> None:
        """Add the samples of a worker."""
        known = self._workers.setdefault(worker, {})
        known.update((sample.time, sample) for sample in samples)
        for time in sorted(known)[:-KEPT_SAMPLES]:
            del known[time]

    def mark(self, marks: Sequence[Mark]) -> None:
        """Add marks; one that is known already is not added again."""
        self._marks.update(((mark.time, mark.kind, mark.sentence), mark) for mark in marks)
        oldest = max((mark.time for mark in marks), default=0) - KEPT_SAMPLES * STEP
        for key in [key for key in self._marks if key[0] < oldest]:
            del self._marks[key]

    def forget_before(self, time: int) -> None:
        """Drop workers without a sample since then: those that ended long ago."""
        for worker in [name for name in self._workers if self.newest(name) < time]:
            del self._workers[worker]

    def marks(self, since: int) -> list[Mark]:
        """What has happened since a moment, the oldest first."""
        return sorted(mark for mark in self._marks.copy().values() if mark.time >= since)

    def points(self, since: int, until: int) -> list[Point]:
        """The points of each ten seconds from ``since`` to ``until``, where a worker has reported any."""
        samples: defaultdict[int, list[tuple[Sample, int]]] = defaultdict(list)
        for known in list(self._workers.values()):
            before: Sample | None = None
            for time, sample in sorted(known.copy().items()):
                new = sample.dead_letters - (before.dead_letters if before is not None else 0)
                # A worker that was started again counts from 0. Its first sample says nothing of when.
                new = 0 if before is None else sample.dead_letters if new < 0 else new
                before = sample
                if since <= time <= until:
                    samples[time].append((sample, new))
        return [
            Point(
                time,
                known_longest([sample.waiting for sample, _ in found]),
                known_total([sample.lag for sample, _ in found], 0),
                known_total([sample.arrival_rate for sample, _ in found], 0.0),
                known_total([sample.processing_rate for sample, _ in found], 0.0),
                known_longest([sample.busy for sample, _ in found]),
                sum(new for _, new in found),
                len(found),
            )
            for time, found in sorted(samples.items())
        ]
