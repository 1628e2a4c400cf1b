"""Work of a step that continues outside of the worker's thread, e.g. jobs in a pool of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from streams.operators.uncommitted import FollowsSlices

if TYPE_CHECKING:
    from streams.records import TopicPartition


class BackgroundWork(FollowsSlices, Protocol):
    """What a task needs to know of its step's work outside of the worker's thread.

    All methods are called in the task's thread. The input records of unfinished work are not committed: the
    next owner reads them again. What the step keeps in memory must follow the task: ``end_slice`` and
    ``committed`` confirm what was collected, ``drop_slice`` and ``drop`` undo it, so that it is collected
    again. Records that are read again may belong to work that still runs.
    """

    def has_finished(self) -> bool:
        """Whether ``collect`` has anything to do."""

    def collect(self) -> None:
        """Take what has finished, as a slice of its own: it may change stores and forward."""

    def is_running(self) -> bool:
        """Whether anything may finish soon: the worker looks for it more often."""

    def wait_milliseconds(self) -> int:
        """How long it can be until ``collect`` has something to do although nothing finishes."""

    def due_milliseconds(self) -> int | None:
        """How long it is until anything is due by its time, if nothing else happens; ``None``: never."""

    def is_full(self) -> bool:
        """Whether it can take no more input for now: the task's partitions are paused."""

    def first_unfinished(self, partition: TopicPartition) -> int | None:
        """The offset of the first unfinished input record that no store has; commits do not pass it."""

    def reached(self, partition: TopicPartition, end: int) -> None:
        """All records of an input partition before its end were read, as far as they exist."""

    def confirm(self, until: float) -> None:
        """The worker has its partitions now: what waits may begin until that time on the monotonic clock."""

    def stop(self) -> None:
        """Begin nothing new; what runs may finish."""
