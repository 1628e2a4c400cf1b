"""The slice that is being processed: completely or not at all."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.records import TopicPartition
    from streams.runtime.status import Progress
    from streams.runtime.task import Task


class SliceState(Enum):
    """The states of a slice.

    ::

                   ┌────────────close─────────────┐
                   v                              │
        ──────> CLOSED ────────────open────────> OPEN ──abandon──> ABANDONED
                   ^                            ^ │                    │
                   │                         open abandon              │
                   │                            │ v for a commit       │
                   │                        COMMIT_FIRST               │
                   └────────────────────────────close──────────────────┘
    """

    CLOSED = "closed"
    OPEN = "open"
    """A task is processing it."""
    COMMIT_FIRST = "abandoned for a commit"
    """Abandoned so that completed slices are committed first; it stays so until it begins again.
    """
    ABANDONED = "abandoned"
    """A rebalance dropped its changes to commit the completed slices: it unwinds when its code returns."""

    def may_become(self, other: SliceState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    SliceState.CLOSED: {SliceState.OPEN},
    SliceState.OPEN: {SliceState.CLOSED, SliceState.COMMIT_FIRST, SliceState.ABANDONED},
    SliceState.COMMIT_FIRST: {SliceState.OPEN},
    SliceState.ABANDONED: {SliceState.CLOSED},
}


class Slice:
    """The slices of one worker, one after another. Written by its thread, readable from any thread."""

    def __init__(self) -> None:
        self._state = SliceState.CLOSED
        self.task: Task | None = None
        """The task that processes it, while it is open."""
        self.input: tuple[TopicPartition, Progress] | None = None
        """Its input partition and the progress object of the assignment, if it has input."""
        self.retrying: tuple[str, str] | None = None
        """The step that waits to retry a record, and its error."""
        self.pieces = 0
        """The number of completed pieces of slow slices."""

    @property
    def state(self) -> SliceState:
        return self._state

    @property
    def commit_first(self) -> bool:
        """Whether it was abandoned so that the completed slices are committed before it begins again."""
        return self._state is SliceState.COMMIT_FIRST

    @property
    def abandoned(self) -> bool:
        """Whether a rebalance has dropped it."""
        return self._state is SliceState.ABANDONED

    @property
    def holds_back_commits(self) -> bool:
        """Whether no commit is possible in the middle of the slice.

        The task's steps would forward, or rows that its sink refuses become dead letters.
        """
        task = self.task
        return self._state is SliceState.OPEN and task is not None and (task.stateful or task.delivers)

    def open(self, task: Task, source: tuple[TopicPartition, Progress] | None = None) -> None:
        """Begin a slice of a task, on input or on work without input (timers, idle windows)."""
        self._become(SliceState.OPEN)
        self.task, self.input = task, source

    def close(self) -> None:
        """End the slice, completed or unwound. May be called twice."""
        self.task = self.input = self.retrying = None
        if self._state is SliceState.OPEN or self._state is SliceState.ABANDONED:
            self._become(SliceState.CLOSED)

    def restart_after_commit(self) -> None:
        """Abandon the slice for a commit that is due; it begins again after that."""
        self._become(SliceState.COMMIT_FIRST)

    def abandon(self) -> None:
        """Drop its changes if they prevent a commit."""
        if self.holds_back_commits:
            assert self.task is not None
            self.task.drop_slice()
            self._become(SliceState.ABANDONED)

    def _become(self, state: SliceState) -> None:
        assert self._state.may_become(state), (
            f"a slice that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
