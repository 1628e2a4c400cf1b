"""A worker's view of what the steps of its tasks do outside of its thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from streams.records import TopicPartition
    from streams.runtime.task import Task

LONGEST_SECONDS = 0.1
"""How long a poll may wait without background work."""

HANDOVER_SECONDS = 3.0
"""How long what runs may take to end before its task is given away. The worker's input waits meanwhile."""

LOOK_SECONDS = 0.005
"""How often it is looked for what has ended then."""


class Background:
    """Which tasks have finished work, and whose input is paused because too much is unfinished.

    Also how long work may begin: a process that was frozen may have lost its partitions, and its other
    threads continue before it can know. So nothing begins once the worker's thread has done nothing for
    ``longest_pause`` seconds, until a commit has confirmed that it is still a member of its group. ``clock``
    is the worker's, which may be simulated; other threads compare with the system's.
    """

    def __init__(self, longest_pause: float, clock: Callable[[], float]) -> None:
        self._paused: dict[TopicPartition, Task] = {}
        self._turn = 0
        self._longest_pause = longest_pause
        self._clock = clock
        self._alive: float | None = None
        """When the worker's thread has last been here."""
        self._seen = 0.0
        """The same, on the system's clock."""
        self._doubtful = False

    def doubtful(self) -> bool:
        """Whether the worker's thread has paused for so long that it may have lost its partitions.

        To be called all the time: the pause is that since the last call.
        """
        now, self._seen = self._clock(), time.monotonic()
        if self._alive is not None and now - self._alive > self._longest_pause:
            self._doubtful = True
        self._alive = now
        return self._doubtful

    def confirm(self, tasks: Iterable[Task]) -> None:
        """The worker had its partitions at the last call of ``doubtful``: work may begin for a while."""
        self._doubtful = False
        for task in tasks:
            for work in task.background_work:
                work.confirm(self._seen + self._longest_pause)

    @property
    def paused(self) -> frozenset[TopicPartition]:
        """The partitions whose input is paused; from any thread."""
        return frozenset(self._paused)

    def poll_seconds(self, tasks: Iterable[Task]) -> float:
        """How long a poll may wait for records."""
        return min((task.background_wait for task in _working(tasks)), default=LONGEST_SECONDS)

    def finished(self, tasks: Collection[Task]) -> list[Task]:
        """The tasks with background work, each of them first in turn: they share what executes it."""
        working = _working(tasks)
        if not working:
            return []
        self._turn = (self._turn + 1) % len(working)
        return working[self._turn :] + working[: self._turn]

    def hand_over(
        self, leaving: Iterable[Task], collect: Callable[[], bool], clock: Callable[[], float], until: float
    ) -> None:
        """Begin nothing more of tasks that are given away, and wait until what runs has ended.

        Otherwise the next owner would begin it again, and at once. ``collect`` takes what has finished, and
        returns whether it may be called again. What has not ended at ``until`` is left to the next owner.
        """
        working = [task for task in leaving if task.has_background_work]
        for task in working:
            task.stop_background_work()
        while working and collect():
            if clock() >= until or not any(task.running_in_background for task in working):
                return
            time.sleep(LOOK_SECONDS)

    def backpressure(
        self, held: Mapping[TopicPartition, Task]
    ) -> tuple[list[TopicPartition], list[TopicPartition]]:
        """The partitions to pause and those to resume now."""
        # A partition that was assigned again is not paused.
        self._paused = {
            partition: task for partition, task in self._paused.items() if held.get(partition) is task
        }
        pause, resume = [], []
        for partition, task in held.items():
            if not task.has_background_work:
                continue
            if task.full:
                if partition not in self._paused:
                    self._paused[partition] = task
                    pause.append(partition)
            elif self._paused.pop(partition, None) is not None:
                resume.append(partition)
        return pause, resume


def _working(tasks: Iterable[Task]) -> list[Task]:
    """Those with background work that may begin and end.

    Only offsets fence: what a task without a position writes would be committed without its stores, and also
    by a worker that has lost its partitions. (I5)
    """
    return [task for task in tasks if task.has_background_work and task.positions]
