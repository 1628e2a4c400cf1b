"""The slice that is being processed: as a whole or not at all."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.records import TopicPartition
    from streams.runtime.status import Progress
    from streams.runtime.task import Task


class SliceState(Enum):
    """Where the slice is.

    ::

                   ┌────────────close─────────────┐
                   v                              │
        ──────> CLOSED ────────────open────────> OPEN ──abandon──> ABANDONED
                   ^                            ^ │                    │
                   │                         open give up              │
                   │                            │ v for a commit       │
                   │                        COMMIT_FIRST               │
                   └────────────────────────────close──────────────────┘
    """

    CLOSED = "closed"
    OPEN = "open"
    """A task works on it, its steps' user code included."""
    COMMIT_FIRST = "given up for a commit"
    """What is whole has to be committed before it begins again. It stays so, also closed, until then."""
    ABANDONED = "abandoned"
    """A rebalance dropped what it did, to commit what is whole: it unwinds as soon as its code returns."""

    def may_become(self, other: SliceState) -> bool:
        """Whether there is a way from here to there in one step."""
        return other in _NEXT[self]


_NEXT = {
    SliceState.CLOSED: {SliceState.OPEN},
    SliceState.OPEN: {SliceState.CLOSED, SliceState.COMMIT_FIRST, SliceState.ABANDONED},
    SliceState.COMMIT_FIRST: {SliceState.OPEN},
    SliceState.ABANDONED: {SliceState.CLOSED},
}


class Slice:
    """One worker's, one after another. Its own thread writes it, and anybody may read it."""

    def __init__(self) -> None:
        self._state = SliceState.CLOSED
        self.task: Task | None = None
        """The task at work on it, as long as it is not closed."""
        self.input: tuple[TopicPartition, Progress] | None = None
        """The partition that it is read from, as of which assignment, if it has input."""
        self.retrying: tuple[str, str] | None = None
        """The step that failed on a record, which is tried again, and its error."""
        self.pieces = 0
        """How many pieces of slow slices are through."""

    @property
    def state(self) -> SliceState:
        return self._state

    @property
    def commit_first(self) -> bool:
        """Whether it was given up so that what is whole is committed before it begins again."""
        return self._state is SliceState.COMMIT_FIRST

    @property
    def abandoned(self) -> bool:
        """Whether a rebalance has dropped it."""
        return self._state is SliceState.ABANDONED

    @property
    def holds_back_commits(self) -> bool:
        """Whether a commit would have its task's steps forward what they hold in the middle of their work."""
        return self._state is SliceState.OPEN and self.task is not None and self.task.stateful

    def open(self, task: Task, source: tuple[TopicPartition, Progress] | None = None) -> None:
        """A task begins to work, on input or on what no record asks for."""
        self._become(SliceState.OPEN)
        self.task, self.input = task, source

    def close(self) -> None:
        """It is through, or has unwound; twice is fine."""
        self.task = self.input = self.retrying = None
        if self._state is SliceState.OPEN or self._state is SliceState.ABANDONED:
            self._become(SliceState.CLOSED)

    def give_up_for_commit(self) -> None:
        """A commit is due that cannot be made in the middle of it: it unwinds, and begins again then."""
        self._become(SliceState.COMMIT_FIRST)

    def abandon(self) -> None:
        """Drop what it did, if that stands in the way of a commit."""
        if self.holds_back_commits:
            assert self.task is not None
            self.task.drop_slice()
            self._become(SliceState.ABANDONED)

    def _become(self, state: SliceState) -> None:
        assert self._state.may_become(state), (
            f"a slice that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
