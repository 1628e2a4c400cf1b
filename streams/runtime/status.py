"""The state and progress of a worker. Written by its own thread, readable from any thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.records import TopicPartition
    from streams.runtime.restore import RestoreProgress
    from streams.runtime.task import TaskId


class State(Enum):
    """The states of a worker's life cycle.

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
        """Whether the transition is allowed."""
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
    """The next offset to process; ``None`` until it is known."""
    end: int | None = None
    """The partition's last known end offset."""
    at_end: bool = False
    since: float = 0.0
    """When the position last changed, or the end was reached, on the worker's clock (seconds)."""
    idle_until: float = 0.0
    """Up to when idle time has been added to stream time, on the worker's clock (seconds)."""

    @property
    def lag(self) -> int:
        """Records (and markers) between position and end; 0 where either is unknown."""
        if self.position is None or self.end is None or self.at_end:
            return 0
        return max(0, self.end - self.position)


@dataclass(slots=True)
class Stages:
    """Seconds spent in each stage, besides those that the tasks count."""

    poll: float = 0.0
    produce: float = 0.0
    commit: float = 0.0
    """Commits that moved offsets, with what follows."""
    prepare: float = 0.0
    """Of these: letting tasks forward and encode the changes of their stores."""
    steps_in_commit: float = 0.0
    """Of that: the steps' own time."""
    lost: float = 0.0
    """Writes and commits that failed, and what follows until their input can be read again."""

    commit_begun: float | None = None
    """When the commit that is going on began."""
    steps_before: float = 0.0
    """The steps' own time at that moment."""
    prepared: float | None = None
    """When its changes were prepared, if they are."""
    steps_prepared: float = 0.0
    """The steps' own time at that moment."""
    rewind_begun: float | None = None
    """Since when it is found out from where the input has to be read again, after a failure."""

    def begin_commit(self, now: float, steps: float) -> None:
        """Note the beginning of a commit; ``steps`` is the own time of all steps up to ``now``."""
        self.prepared = None
        self.steps_before, self.commit_begun = steps, now

    def prepare_commit(self, now: float, steps: float) -> None:
        """Note that the changes of stores are prepared."""
        self.steps_prepared, self.prepared = steps, now

    def end_commit(self, now: float, steps: float, *, moved: bool, failed: bool) -> None:
        """Note the end of a commit, which ``moved`` offsets, or ``failed``, or had nothing to do."""
        after = self.at(now, steps)
        self.commit_begun = None
        if moved:
            self.commit = after.commit
            self.prepare = after.prepare
            self.steps_in_commit = after.steps_in_commit
        elif failed:
            self.lost += after.commit - self.commit - (after.steps_in_commit - self.steps_in_commit)

    def end_rewind(self, now: float) -> None:
        """Note that the input can be read again, or that the worker gives up for now."""
        begun, self.rewind_begun = self.rewind_begun, None
        assert begun is not None, "no rewind has begun"
        self.lost += now - begun

    def at(self, now: float, steps: float) -> Stages:
        """The same with what is going on now; from any thread."""
        found = replace(self)
        if found.commit_begun is not None:
            prepared, stepped = found.prepared, found.steps_prepared
            if prepared is None:
                prepared, stepped = now, steps
            found.commit += now - found.commit_begun
            found.prepare += prepared - found.commit_begun
            found.steps_in_commit += max(0.0, stepped - found.steps_before)
        if found.rewind_begun is not None:
            found.lost += now - found.rewind_begun
        return found


class WorkerStatus(NamedTuple):
    """What a worker is doing, from its plain counters. Read by other threads."""

    thread: int | None
    """The identifier of the worker's thread."""
    served: float
    """When the group was last polled, also in the middle of a slice; on the worker's clock (seconds)."""
    busy: TopicPartition | None
    """The partition whose slice is open."""
    pieces: int
    """The number of completed pieces of slow slices."""
    retrying: tuple[str, str] | None
    """The step that waits to retry a record, and its error."""
    writing: tuple[str, float] | None
    """The topic that is being written to, and since when; an empty topic while a commit waits."""
    aborted_by: str
    """Why the last transaction was aborted, if no commit succeeded since."""
    dirty: bool
    """Whether there is uncommitted work."""
    commits: int
    rewinds: int
    waiting: dict[TopicPartition, TaskId]
    """Partitions whose tasks are still to be restored."""
    full: frozenset[TopicPartition]
    """Partitions that are not read now, as enough of their records are unfinished."""
    restoring: dict[TaskId, RestoreProgress]
