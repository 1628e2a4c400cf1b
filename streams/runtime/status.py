"""What a worker tells others about itself. Its own thread writes it, and anybody may read it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.records import TopicPartition
    from streams.runtime.restore import RestoreProgress
    from streams.runtime.task import TaskId


class State(Enum):
    """Where a worker is in its life.

    ::

        CREATED ──> RUNNING ──> STOPPING ──> STOPPED
                       └───────────┴───────> FAILED
    """

    CREATED = "created"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    def may_become(self, other: State) -> bool:
        """Whether there is a way from here to there in one step."""
        return other in _NEXT[self]


_NEXT = {
    State.CREATED: {State.RUNNING, State.FAILED},
    State.RUNNING: {State.STOPPING, State.FAILED},
    State.STOPPING: {State.STOPPED, State.FAILED},
    State.STOPPED: set(),
    State.FAILED: set(),
}


@dataclass(slots=True)
class Progress:
    """How far one partition is. Written by the worker's thread, read by others."""

    position: int | None = None
    """The next offset to process; ``None`` until something is known."""
    end: int | None = None
    """The partition's end as last heard of."""
    at_end: bool = False
    since: float = 0.0
    """When the position last changed, or the end was reached, on the worker's clock."""
    told: float = 0.0
    """Up to when stream time has been told that nothing comes, on the worker's clock."""

    @property
    def lag(self) -> int:
        """Records (and markers) between position and end; 0 where either is unknown."""
        if self.position is None or self.end is None or self.at_end:
            return 0
        return max(0, self.end - self.position)


@dataclass(slots=True)
class Stages:
    """Where the worker's time went, in seconds, besides what its tasks count."""

    poll: float = 0.0
    produce: float = 0.0
    commit: float = 0.0


class Activity(NamedTuple):
    """What a worker is about, as its plain counters tell. Taken by other threads."""

    thread: int | None
    """The identifier of the worker's thread."""
    served: float
    """When the group was last served: by a poll, or in the middle of work. On the worker's clock."""
    busy: TopicPartition | None
    """The partition whose slice is open."""
    pieces: int
    """How many pieces of slow slices are through."""
    retrying: tuple[str, str] | None
    """The step that failed on a record and is waited with, and its error."""
    writing: tuple[str, float] | None
    """The topic that is being written to, and since when; no topic while a commit waits for the broker."""
    aborted_by: str
    """Why the last transaction was aborted, if no commit succeeded since."""
    dirty: bool
    """Whether something is processed and not committed."""
    commits: int
    rewinds: int
    waiting: dict[TopicPartition, TaskId]
    """Partitions whose tasks have to be restored first."""
    restoring: dict[TaskId, RestoreProgress]
