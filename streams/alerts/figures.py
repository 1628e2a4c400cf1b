"""What each worker reports to the others, so that one of them can decide about the alerts of the app."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.jobs.queue import JobQueue
from streams.monitoring.condition import Condition
from streams.monitoring.partition_figures import known_total
from streams.monitoring.queue_metrics import longest_due
from streams.runtime.counts import Counts
from streams.runtime.rebalances import Reason
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.monitoring.observer import Observer
    from streams.monitoring.watchdog import Watchdog
    from streams.runtime.worker import Worker
    from streams.topology.graph import Topology

WINDOW_SECONDS = 600.0
"""Over how long dead letters and rebalances are counted."""

OWN_DOING = {Reason.JOINED, Reason.STOPPING}
"""Reasons of changes that every start and stop has."""


@decodable
class WorkerFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker knows of its part of the app. What is unknown is left out."""

    time: int
    """In milliseconds since the epoch."""
    watching: bool = False
    """Whether it is no worker, but a program that watches the app from outside."""
    partitions: dict[str, list[int]] = {}
    """The partitions of which it knows what waits, by topic."""
    waiting: dict[str, float] = {}
    """The longest waiting time in each topic, in seconds."""
    deleted_in: dict[str, float] = {}
    """Until the first record of a topic is deleted unprocessed, in seconds."""
    lag: int = 0
    arrival_rate: float | None = None
    """Offsets a second, of all partitions; ``None`` if that of one is unknown."""
    processing_rate: float | None = None
    stalled: int = 0
    """Partitions that make no progress."""
    records: int = 0
    """Records read within the last ten minutes."""
    dead_letters: int = 0
    """Those that became dead letters."""
    rebalances: int = 0
    """Changes of its partitions within ten minutes, its own start and stop apart."""
    to_restore: int = 0
    """Changelog records that its tasks still need."""
    oldest_due: float = 0.0
    """For how long a job has been due that does not run, in seconds."""
    next_instants: dict[str, int] = {}
    """The next instant of each schedule that it decides, in milliseconds since the epoch."""
    missed_instants: dict[str, int] = {}
    """When it found that instants of a schedule were missed, in milliseconds since the epoch."""
    retained_bytes: dict[str, float] = {}
    """What the slot of each source makes its database keep."""
    unavailable: list[str] = []
    """Connectors that cannot be used."""
    differences: dict[str, int] = {}
    """Records that are not accounted for, by topic."""
    difference_of: dict[str, str] = {}
    """The first difference of each of these topics, in words: where it arose."""
    unknown: bool = False
    """Whether it does not know what waits, as its broker does not answer."""


def outside_figures() -> WorkerFigures:
    """What a program says that watches an app from outside: that it is there."""
    return WorkerFigures(time=time.time_ns() // 1_000_000, watching=True)


class _Counted(NamedTuple):
    time: float
    records: int
    dead_letters: int


class FigureReader:
    """Reads the figures of a worker, from any one thread. ``clock`` returns seconds."""

    def __init__(
        self,
        worker: Worker,
        observer: Observer,
        watchdog: Watchdog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._observer = observer
        self._watchdog = watchdog
        self._clock = clock
        self._counted: deque[_Counted] = deque([_Counted(clock(), 0, 0)])
        """What the counters said in the last ten minutes, the oldest first."""

    def read(self) -> WorkerFigures:
        """What is known now."""
        worker = self._worker
        observation = self._observer.latest
        known = [item for item in observation.partitions.values() if item.waiting is not None]
        partitions: dict[str, list[int]] = {}
        waiting: dict[str, float] = {}
        deleted_in: dict[str, float] = {}
        for item in known:
            topic = item.partition.topic
            partitions.setdefault(topic, []).append(item.partition.partition)
            waiting[topic] = max(waiting.get(topic, 0.0), item.waiting or 0.0)
        for item in observation.partitions.values():
            if item.deleted_in is not None:
                topic = item.partition.topic
                deleted_in[topic] = min(deleted_in.get(topic, item.deleted_in), item.deleted_in)
        records, dead_letters = self._count()
        differences: dict[str, int] = {}
        difference_of: dict[str, str] = {}
        for found in self._observer.ledger.differences:
            differences[found.topic] = differences.get(found.topic, 0) + abs(found.records)
            difference_of.setdefault(found.topic, found.sentence)
        now = worker.wall_clock()
        queues = [
            work
            for task in worker.tasks.values()
            if task.has_background_work
            for work in task.background_work
            if isinstance(work, JobQueue)
        ]
        return WorkerFigures(
            time=now,
            partitions=partitions,
            waiting=waiting,
            deleted_in=deleted_in,
            lag=sum(item.lag or 0 for item in known),
            arrival_rate=known_total([item.arrival_rate for item in known], 0.0),
            processing_rate=known_total([item.processing_rate for item in known], 0.0),
            stalled=len(self._watchdog.stalls),
            records=records,
            dead_letters=dead_letters,
            rebalances=sum(
                item.reason not in OWN_DOING and item.time > now - WINDOW_SECONDS * 1000
                for item in worker.rebalances.history
            ),
            to_restore=sum(item.total - item.done for item in worker.restoring.values()),
            oldest_due=longest_due(worker) if queues else 0.0,
            next_instants={name: at for work in queues for name, at in work.next_instants.items()},
            missed_instants={name: at for work in queues for name, at in work.missed_instants.items()},
            retained_bytes={
                source: health.metrics["retained_bytes"]
                for source, health in worker.source_health.items()
                if "retained_bytes" in health.metrics
            },
            unavailable=sorted(worker.problems),
            differences=differences,
            difference_of=difference_of,
            unknown=observation.judgement.condition is Condition.UNKNOWN,
        )

    def _count(self) -> tuple[int, int]:
        """The records and dead letters of the last ten minutes."""
        now, total = self._clock(), Counts.total(self._worker.counts)
        latest = _Counted(now, total.records_in, total.dead_letters.total())
        self._counted.append(latest)
        while len(self._counted) > 2 and self._counted[1].time <= now - WINDOW_SECONDS:
            self._counted.popleft()
        before = self._counted[0]
        return max(0, latest.records - before.records), max(0, latest.dead_letters - before.dead_letters)


def measured_inputs(topology: Topology, worker: Worker) -> dict[str, int]:
    """The input topics that have records, with their partition counts: those of sources have positions."""
    return {topic: count for topic, count in worker.inputs.items() if topic not in topology.source_topics}


def covers(figures: Sequence[WorkerFigures], expected: Mapping[str, int]) -> bool:
    """Whether the workers together know what waits in all partitions, of these topics with their counts."""
    known = {
        (topic, number) for item in figures for topic in item.partitions for number in item.partitions[topic]
    }
    return all((topic, number) in known for topic, count in expected.items() for number in range(count))
