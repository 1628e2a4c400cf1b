"""How many workers the tasks of a worker need: its part of a sum over all workers, for autoscalers.

By Little's law, as in ``sizing``: what arrives, times the time that each record takes, is how much of a
worker's time a task needs. It follows from arrivals and not from how busy the worker is: a worker that
catches up is busy all the time, however many there are, and would ask for more of them for ever.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from streams.monitoring.job_load import JobLoads, JobSample
from streams.monitoring.sizing import LARGEST_SHARE, Work

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.monitoring.job_load import JobLoad
    from streams.monitoring.partition_figures import PartitionFigures
    from streams.records import TopicPartition
    from streams.runtime.task import TaskId
    from streams.runtime.worker import Worker

WINDOW_SECONDS = 60.0
"""The time over which arrivals and costs are measured."""

MEASURE_SECONDS = 5.0
"""How often they are measured."""

OLD_SECONDS = 15.0
"""An end that the broker was not asked for longer than this says nothing about arrivals."""

SHORTEST_SECONDS = 10.0
"""How long a partition must have been watched until its arrivals are known."""

DRAIN_SECONDS = 600.0
"""Within which time the lag is to be worked off, beside what arrives."""


class WorkersWanted(NamedTuple):
    """A worker's part of how many workers its app needs; the sum over all workers is to be rounded up."""

    wanted: float
    """Workers that the tasks need, if none is to be busy for more than ``LARGEST_SHARE`` of its time."""
    useful: float
    """The same where a task counts as one worker at most: it cannot be divided among workers."""


@dataclass(frozen=True, slots=True)
class TaskLoad:
    """What is known of a task at one moment."""

    seconds: float | None
    """Time spent decoding and processing since the worker has it; ``None`` while its stores are restored."""
    positions: Mapping[TopicPartition, int]
    """The next offsets to process."""
    ends: Mapping[TopicPartition, int]
    lag: int
    """Offsets that could be processed now."""

    def since(self, before: TaskLoad) -> Work | None:
        """Offsets processed since then, with the time for them; ``None`` if that cannot be compared."""
        if self.seconds is None or before.seconds is None or self.seconds < before.seconds:
            return None
        moved = _growth(before.positions, self.positions)
        return None if moved is None else Work(moved, self.seconds - before.seconds)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a worker's tasks at ``time``, in seconds."""

    time: float
    tasks: Mapping[TaskId, TaskLoad]
    shared: float
    """Time spent writing results and committing, for all tasks together."""

    @classmethod
    def of(
        cls,
        worker: Worker,
        figures: Mapping[TopicPartition, PartitionFigures],
        hidden: Collection[TopicPartition],
        time: float,
    ) -> Self | None:
        """What is known now, from any thread; ``None`` if the figures of a partition are unknown or old.

        Records of ``hidden`` partitions cannot be read now, so that more workers would not help them.
        """
        tasks, owners = worker.tasks, worker.owners
        parts: dict[TaskId, list[PartitionFigures]] = {identifier: [] for identifier in worker.held}
        for place, item in figures.items():
            if item.position is None or item.end is None or item.age is None or item.age > OLD_SECONDS:
                return None
            if (owner := owners.get(place)) is not None:
                parts.setdefault(owner, []).append(item)
        loads = {}
        for identifier, items in parts.items():
            task = tasks.get(identifier)
            loads[identifier] = TaskLoad(
                None if task is None else sum(task.counts.seconds.values()),
                {item.partition: item.position or 0 for item in items},
                {item.partition: item.end or 0 for item in items},
                sum(item.lag or 0 for item in items if item.partition not in hidden),
            )
        return cls(time, loads, worker.stages.produce + worker.stages.commit)


class Workload:
    """Measures a worker's part of the workers that are needed, from samples of the last minute."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._jobs = JobLoads(window=WINDOW_SECONDS, shortest=SHORTEST_SECONDS, drain=DRAIN_SECONDS)
        self._costs: dict[TaskId, float] = {}
        """What an offset of each task has taken last, in seconds, without ``_shared``."""
        self._mean: float | None = None
        """The same for all tasks together: for those that have not processed anything here."""
        self._shared = 0.0
        """What writing and committing has taken last, for each offset."""
        self._busy = 0.0
        """The share of its time that the worker was busy when that was measured."""
        self._measured: tuple[float, set[TaskId]] | None = None
        self._latest: WorkersWanted | None = None

    def measure(
        self,
        worker: Worker,
        figures: Mapping[TopicPartition, PartitionFigures],
        hidden: Collection[TopicPartition],
        now: float,
    ) -> WorkersWanted | None:
        """What the worker's tasks need, measured every ``MEASURE_SECONDS``; ``None`` where that is unknown.

        See ``Sample.of``.
        """
        held = worker.held
        if self._measured is not None:
            time, before = self._measured
            if held == before and now - time < MEASURE_SECONDS:
                return self._latest
        self._measured = now, held
        sample = Sample.of(worker, figures, hidden, now)
        jobs = JobSample.of(worker, now)
        self._latest = (
            None
            if sample is None
            else self.observe(sample, None if jobs is None else self._jobs.observe(jobs))
        )
        return self._latest

    def observe(self, sample: Sample, jobs: JobLoad | None = None) -> WorkersWanted | None:
        """Note what is known now, and return what the tasks need; ``None`` where that is unknown.

        ``jobs`` are those of the app's queue, if the worker has a part of it.
        """
        while len(self._samples) > 1 and self._samples[1].time <= sample.time - WINDOW_SECONDS:
            self._samples.popleft()
        self._measure_costs(sample)
        loads = [
            self._with_jobs(identifier, self._load(identifier, task, sample.time), jobs)
            for identifier, task in sample.tasks.items()
        ]
        self._samples.append(sample)
        known = [load for load in loads if load is not None]
        if len(known) < len(loads):
            return None
        return WorkersWanted(
            sum(known) / LARGEST_SHARE, sum(min(1.0, load / LARGEST_SHARE) for load in known)
        )

    def _measure_costs(self, sample: Sample) -> None:
        """What an offset takes: where nothing moved, what it took before holds."""
        self._costs = {task: cost for task, cost in self._costs.items() if task in sample.tasks}
        done = Work()
        for identifier, task in sample.tasks.items():
            work = self._work(identifier, task)
            if work.each is not None:
                self._costs[identifier] = work.each
                done += work
        if done.each is None:
            return
        elapsed = sample.time - self._samples[0].time
        shared = max(0.0, sample.shared - self._samples[0].shared)
        self._mean = done.each
        self._shared = shared / done.count
        self._busy = min(1.0, (done.seconds + shared) / elapsed) if elapsed > 0 else 0.0

    def _work(self, identifier: TaskId, task: TaskLoad) -> Work:
        """What was done of a task in the last minute, or since it came."""
        for sample in self._samples:
            earlier = sample.tasks.get(identifier)
            if earlier is not None and (work := task.since(earlier)) is not None:
                return work
        return Work()

    def _load(self, identifier: TaskId, task: TaskLoad, now: float) -> float | None:
        """How much of a worker's time a task needs; above 1 no worker can keep up."""
        if not task.ends:
            return 0.0
        begun = next(
            (
                sample
                for sample in self._samples
                if identifier in sample.tasks and sample.tasks[identifier].ends.keys() == task.ends.keys()
            ),
            None,
        )
        if begun is None or (elapsed := now - begun.time) < SHORTEST_SECONDS:
            return None
        before = begun.tasks[identifier]
        arrived = _growth(before.ends, task.ends)
        if arrived is None:
            # A topic that was created again.
            return None
        if not arrived and not task.lag:
            return 0.0
        cost = self._costs.get(identifier, self._mean)
        if cost is None:
            return None
        processed = _growth(before.positions, task.positions) or 0
        steady = min(arrived, processed) / elapsed
        more = arrived / elapsed - steady + task.lag / DRAIN_SECONDS
        # A worker that has little to do commits few records at a time. Of more records, it would commit more
        # at a time: the less busy it was, the less do these say about what more records take.
        return steady * (cost + self._shared) + more * (cost + self._shared * self._busy)

    def _with_jobs(self, identifier: TaskId, load: float | None, jobs: JobLoad | None) -> float | None:
        """The same with what the places for jobs need, if it is a task of the queue."""
        if jobs is None or identifier not in jobs.tasks:
            return load
        if load is None or jobs.each_task is None:
            return None
        # Jobs run beside the worker's thread.
        return max(load, jobs.each_task)


def _growth(before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]) -> int | None:
    """By how much offsets have grown together; ``None`` if they are not those of the same partitions."""
    if before.keys() != after.keys():
        return None
    grown = sum(offset - before[partition] for partition, offset in after.items())
    return grown if grown >= 0 else None
