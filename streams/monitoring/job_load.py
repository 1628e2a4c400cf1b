"""How much of its places for jobs the queue of a worker needs."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from streams.jobs.queue import JobQueue
from streams.jobs.record import Ending
from streams.monitoring.queue_metrics import waiting_jobs
from streams.monitoring.sizing import JobDemand, concurrency_needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.runtime.task import TaskId
    from streams.runtime.worker import Worker


class JobLoad(NamedTuple):
    """What the jobs of a worker need."""

    tasks: frozenset[TaskId]
    """Its tasks of the queue."""
    each_task: float | None
    """The share of the worker's places that each of these needs; ``None`` if that is not known yet."""


@dataclass(frozen=True, slots=True)
class JobSample:
    """The jobs of a worker at ``time``, in seconds."""

    time: float
    tasks: frozenset[TaskId]
    places: int
    running: Mapping[str, int]
    waiting: Mapping[str, int]
    """Those that are due and do not run; paused ones are none."""
    ended: Mapping[str, int]
    """Those that have ended after they ran, since the worker's start."""
    seconds: Mapping[str, float]
    """For how long they ran."""

    @classmethod
    def of(cls, worker: Worker, time: float) -> Self | None:
        """What is known now, from any thread; ``None`` if the worker has no part of a queue."""
        queues = {
            identifier: work
            for identifier, task in worker.tasks.items()
            if task.has_background_work
            for work in task.background_work
            if isinstance(work, JobQueue)
        }
        if not queues:
            return None
        numbers = [work.numbers() for work in queues.values()]
        waiting = sum(map(waiting_jobs, numbers), Counter[str]())
        paused = sum(item.paused for item in numbers)
        # Which functions are paused is not counted: each has its part.
        share = 1 - paused / waiting.total() if paused and waiting.total() else 1.0
        first = next(iter(queues.values()))
        ended = Counter[str]()
        for (job, ending), count in dict(first.ended_counts).items():
            if ending in {Ending.SUCCEEDED, Ending.FAILED}:
                ended[job] += count
        return cls(
            time,
            frozenset(queues),
            first.places,
            sum((item.running for item in numbers), Counter[str]()),
            {job: round(count * share) for job, count in waiting.items()},
            ended,
            first.seconds,
        )


class JobLoads:
    """Measures what the jobs need, from samples of the last minute."""

    def __init__(self, *, window: float, shortest: float, drain: float) -> None:
        self._window = window
        self._shortest = shortest
        self._drain = drain
        self._samples: deque[JobSample] = deque()

    def observe(self, sample: JobSample) -> JobLoad:
        """Note what is known now, and return what the jobs need."""
        if self._samples and self._samples[-1].tasks != sample.tasks:
            # Jobs that came with a partition have not arrived.
            self._samples.clear()
        while len(self._samples) > 1 and self._samples[1].time <= sample.time - self._window:
            self._samples.popleft()
        self._samples.append(sample)
        before = self._samples[0]
        elapsed = sample.time - before.time
        if elapsed < self._shortest or not sample.places:
            return JobLoad(sample.tasks, None)
        jobs = {*sample.running, *sample.waiting, *sample.ended}
        demands = [_demand(job, before, sample, elapsed) for job in sorted(jobs)]
        at_once = concurrency_needed(demands, sample.places, drain=self._drain).at_once
        return JobLoad(sample.tasks, at_once / sample.places / len(sample.tasks))


def _demand(job: str, before: JobSample, after: JobSample, elapsed: float) -> JobDemand:
    """What arrives of a function's jobs, and what they take."""
    ended, there = after.ended.get(job, 0), _there(job, after)
    # What has arrived has ended or is there. Delayed jobs arrive when they are due.
    arrived = ended - before.ended.get(job, 0) + there - _there(job, before)
    return JobDemand(
        job,
        max(0, arrived) / elapsed,
        after.seconds.get(job, 0.0) / ended if ended else None,
        (before.running.get(job, 0) + after.running.get(job, 0)) / 2,
        after.waiting.get(job, 0),
    )


def _there(job: str, sample: JobSample) -> int:
    return sample.running.get(job, 0) + sample.waiting.get(job, 0)
