"""Assigned tasks that wait until their stores are restored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.records import TopicPartition
from streams.runtime import commit_numbers
from streams.runtime.task_life import TaskLives, TaskState
from streams.runtime.topics import more_partitions
from streams.runtime.unfinished_reset import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streams.broker import Consumer
    from streams.runtime.restore import Restoration, RestoreProgress, Restorer
    from streams.runtime.standby import Standbys
    from streams.runtime.task import TaskId
    from streams.topology.graph import Topology

POLL_SECONDS = 0.2
"""Time for restoring in each round of the loop while no other task runs."""


class PendingTasks:
    """The pending tasks of one worker. Their partitions are paused until they begin.

    ``partitions`` are the input topics with their partition counts: a task begins when all its input
    partitions are held. ``standbys`` release their replicas of these tasks. ``lives`` has the state of each
    of the worker's tasks: those created, restoring and suspended are here. ``clock`` returns seconds.
    """

    def __init__(
        self,
        topology: Topology,
        restorer: Restorer,
        standbys: Standbys | None,
        *,
        partitions: Mapping[str, int],
        lives: TaskLives,
        clock: Callable[[], float],
    ) -> None:
        self._topology = topology
        self._restorer = restorer
        self._standbys = standbys
        self._partitions = partitions
        self._lives = lives
        self._clock = clock
        self._waiting: dict[TaskId, set[TopicPartition]] = {}
        self.resume_at: dict[TopicPartition, int] = {}
        """Where partitions continue when their task begins, if that is not the consumer's position."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def partitions(self) -> dict[TopicPartition, TaskId]:
        """The waiting partitions and their tasks; from any thread."""
        return {item: task for task, own in list(self._waiting.items()) for item in list(own)}

    @property
    def progress(self) -> dict[TaskId, RestoreProgress]:
        """The tasks whose stores are being brought up to date; from any thread."""
        return self._restorer.progress

    def add(self, task: TaskId, partitions: Iterable[TopicPartition], consumer: Consumer) -> None:
        """Let partitions wait for their task.

        Raises ``TopicError`` if a topic got more partitions since the worker began.
        """
        own = set(partitions)
        for partition in own:
            self._check_count(partition)
        if self._lives.state(task) is TaskState.CLOSED:
            self._lives.create(task)
        self._waiting.setdefault(task, set()).update(own)
        consumer.pause(sorted(own))

    def discard(self, partition: TopicPartition) -> None:
        """Forget a partition that is no longer held."""
        self.resume_at.pop(partition, None)
        for task, partitions in list(self._waiting.items()):
            if partition in partitions:
                partitions.discard(partition)
                if self._lives.state(task) is TaskState.RESTORING:
                    self._lives.become(task, TaskState.SUSPENDED)
                    self._restorer.discard(task)
                if not partitions:
                    self._lives.become(task, TaskState.CLOSED)
                    del self._waiting[task]

    def poll(self, consumer: Consumer, *, busy: bool, stopped: Callable[[], bool]) -> list[Restoration]:
        """Restore for a while and return the restored tasks, to be started with ``take``.

        It takes less time when the worker is ``busy`` with other tasks. Raises ``BrokerError``, and
        ``StateError`` where a reset is not finished.
        """
        complete = [
            task
            for task, partitions in self._waiting.items()
            if self._lives.state(task) is not TaskState.RESTORING and partitions >= self._expected(task)
        ]
        positions = consumer.positions([item for task in complete for item in self._waiting[task]])
        beginning: dict[TaskId, dict[TopicPartition, int]] = {}
        for task in complete:
            starts: dict[TopicPartition, int] = {}
            for partition in self._waiting[task]:
                start = self.resume_at.get(partition, positions.get(partition))
                if start is None:
                    # The last owner's transaction is still open: the committed offset is not known yet.
                    break
                starts[partition] = start
            else:
                beginning[task] = starts
        if beginning:
            texts = consumer.committed_metadata([item for own in beginning.values() for item in own])
            for task, starts in beginning.items():
                self._begin(task, starts, [texts[item] for item in starts if item in texts], consumer)
        done: list[Restoration] = []
        until = self._clock() + POLL_SECONDS
        while self._any_restoring() and not done and not stopped():
            done = self._restorer.poll(0.0 if busy else 0.05)
            if busy or self._clock() >= until or not self._restorer.reading:
                break
        return done

    def take(self, task: TaskId) -> dict[TopicPartition, int | None]:
        """The partitions of a task that begins, and their positions; ``None`` for the consumer's own."""
        assert self._lives.state(task) is TaskState.RESTORING, f"task {task} begins before it is restored"
        # A noted position is that of the task's earlier run, which had read further than it had processed.
        return {partition: self.resume_at.pop(partition, None) for partition in self._waiting.pop(task)}

    def close(self) -> None:
        """Release the clients."""
        self._restorer.close()

    def _begin(
        self,
        task: TaskId,
        starts: Mapping[TopicPartition, int],
        offset_metadata: Iterable[str],
        consumer: Consumer,
    ) -> None:
        texts = list(offset_metadata)
        check_texts(texts, f"task {task}")
        known = {partition: start for partition, start in starts.items() if start >= 0}
        stores = self._topology.subtopologies[task.subtopology].stores
        database = None if self._standbys is None else self._standbys.release(task)
        try:
            self._restorer.add(
                task,
                stores,
                {partition.topic: start for partition, start in known.items()},
                database,
                numbers=commit_numbers.decode(texts, [store.name for store in stores]),
                epoch=commit_numbers.epoch(texts),
                begun=lambda: any(consumer.committed(self._expected(task)).values()),
            )
        except BaseException:
            if database is not None:
                database.close()
            raise
        # The consumer seeks there when the task begins, whatever it has fetched by then.
        self.resume_at |= known
        self._lives.become(task, TaskState.RESTORING)

    def _any_restoring(self) -> bool:
        return any(self._lives.state(task) is TaskState.RESTORING for task in self._waiting)

    def _expected(self, task: TaskId) -> set[TopicPartition]:
        """The input partitions of a task, as far as the topics' partition counts are known."""
        subtopology = self._topology.subtopologies[task.subtopology]
        return {
            TopicPartition(topic, task.partition)
            for topic, count in self._partitions.items()
            if task.partition < count and subtopology.reads(topic)
        }

    def _check_count(self, partition: TopicPartition) -> None:
        """Refuse a partition beyond the known count: keys are now in other partitions than their state."""
        count = self._partitions.get(partition.topic)
        if count is not None and partition.partition >= count:
            raise more_partitions(partition.topic, count)
