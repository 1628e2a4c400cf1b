"""How many workers an app needs, and how many jobs at once, by Little's law.

The work in progress is the arrival rate times the time that each item takes (Little, 1961): of records it is
how many workers' threads are busy, of jobs how many run at once. Neither may come near its capacity, as
waiting grows without bounds there: at 70 % of it, the default, an item waits a little more than twice as long
as it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_SHARE = 0.7
"""The share of its time that a worker, or a place for jobs, is to be busy at most."""


@dataclass(frozen=True, slots=True)
class Work:
    """What was done of something: ``count`` items in ``seconds`` of work."""

    count: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.count + other.count, self.seconds + other.seconds)

    @property
    def each(self) -> float | None:
        """Seconds of work for each item; ``None`` if nothing was done."""
        return self.seconds / self.count if self.count else None


@dataclass(frozen=True, slots=True)
class TaskDemand:
    """What arrives for a task, and what its records cost."""

    task: str
    rate: float
    """Records a second that arrive in the busiest part of the time that was looked at."""
    each: float
    """Seconds of a worker's time for each record."""
    lag: int = 0
    """Records that wait now."""

    @property
    def busy(self) -> float:
        """The share of one worker that it takes; above 1 no worker can keep up."""
        return self.rate * self.each


class Verdict(Enum):
    """What the figures say about the number of workers."""

    UNKNOWN = "unknown"
    """Nothing was processed, so that nothing was measured."""
    ENOUGH = "enough"
    """The workers that run are enough."""
    MORE = "more workers"
    """More workers are needed, and would help."""
    SKEW = "one task"
    """One task needs more than a worker is to give it: no number of workers helps."""
    PARTITIONS = "partitions"
    """More workers are needed than there are tasks."""


@dataclass(frozen=True, slots=True)
class WorkersNeeded:
    """How many workers the tasks need."""

    demands: Sequence[TaskDemand]
    """The tasks, those that take most first."""
    busy: float
    """The workers' time that all tasks together take, in workers."""
    wanted: int
    """The workers that are needed, at most as many as there are tasks; at least one."""
    unlimited: int
    """The same without that limit."""
    running: int
    verdict: Verdict

    @property
    def hottest(self) -> TaskDemand | None:
        """The task that takes most, ``None`` without any."""
        return self.demands[0] if self.demands else None


def workers_needed(
    demands: Sequence[TaskDemand], running: int, *, share: float = LARGEST_SHARE, drain: float | None = None
) -> WorkersNeeded:
    """How many workers the tasks need, none of which is to be busy for more than ``share`` of its time.

    With ``drain``, they also process what waits now within so many seconds. ``running`` is how many there
    are. A task is processed by one worker, and the group deals out tasks by their number, not by what they
    take: so it is also checked that the worker with the largest part of the work keeps up.
    """
    loads = {
        item.task: item.busy + (item.lag * item.each / drain if drain is not None else 0.0)
        for item in demands
    }
    ordered = sorted(demands, key=lambda item: (-loads[item.task], item.task))
    busy = sum(loads.values())
    unlimited = max(1, ceil(busy / share - 1e-9))
    wanted = min(unlimited, max(1, len(demands)))
    if not any(item.each for item in demands):
        verdict = Verdict.UNKNOWN
    elif loads[ordered[0].task] > share:
        verdict = Verdict.SKEW
    elif unlimited > len(demands):
        verdict = Verdict.PARTITIONS
    else:
        verdict = Verdict.ENOUGH if running >= wanted else Verdict.MORE
    return WorkersNeeded(ordered, busy, wanted, unlimited, running, verdict)


@dataclass(frozen=True, slots=True)
class JobDemand:
    """What arrives of a function's jobs, and what they take."""

    job: str
    rate: float
    """Jobs a second."""
    each: float | None
    """Seconds that each of them runs, all of its attempts together; ``None`` if none has ended."""
    running: float = 0.0
    """How many of them were seen to run."""
    backlog: int = 0
    """How many wait that are due."""

    @property
    def at_once(self) -> float:
        """How many of them run at once on average."""
        return self.running if self.each is None else self.rate * self.each


@dataclass(frozen=True, slots=True)
class ConcurrencyNeeded:
    """How many jobs must run at once."""

    demands: Sequence[JobDemand]
    """The functions, those that take most first."""
    at_once: float
    """How many jobs run at once on average."""
    wanted: int
    """How many places for jobs all workers together need; at least one."""
    places: int
    """How many they have."""

    @property
    def enough(self) -> bool:
        """Whether there are enough places."""
        return self.places >= self.wanted


def concurrency_needed(
    demands: Sequence[JobDemand], places: int, *, share: float = LARGEST_SHARE, drain: float | None = None
) -> ConcurrencyNeeded:
    """How many places for jobs are needed, so that no more than ``share`` of them are taken on average.

    With ``drain``, the jobs that wait now are executed within so many seconds too.
    """
    loads = {
        item.job: item.at_once + (item.backlog * (item.each or 0.0) / drain if drain is not None else 0.0)
        for item in demands
    }
    ordered = sorted(demands, key=lambda item: (-loads[item.job], item.job))
    at_once = sum(loads.values())
    return ConcurrencyNeeded(ordered, at_once, max(1, ceil(at_once / share - 1e-9)), places)
