"""The life of a worker's tasks, from the assignment of their first partition until the last one is gone."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.runtime.task import TaskId


class TaskState(Enum):
    """Where a task is in its life.

    ::

                            ┌────────────── it has no stores ─────────────┐
                            │                                             v
        (assigned) ──> CREATED ──begin──> RESTORING ───stores restored──> RUNNING
                            │               │ ^ │                         │  │
                            │   a partition │ │ │                         │  │
                            │          gone │ │begin                      │  │
                            │               v │ │                         │  │
                            │           SUSPENDED <───────suspend─────────┘  │
                            │               │   │                            │
                            v               v   v                            v
                          CLOSED <────────── no partition is left ───────────┘
    """

    CREATED = "created"
    """It waits for all its input partitions, and for where the group is in them."""
    RESTORING = "restoring"
    """Its stores are being brought up to date."""
    RUNNING = "running"
    SUSPENDED = "suspended"
    """It is to be restored again: for another set of partitions, or as nobody knows what was committed."""
    CLOSED = "closed"

    def may_become(self, other: TaskState) -> bool:
        """Whether there is a way from here to there in one step."""
        return other in _NEXT[self]


_NEXT = {
    TaskState.CREATED: {TaskState.RESTORING, TaskState.RUNNING, TaskState.CLOSED},
    TaskState.RESTORING: {TaskState.RUNNING, TaskState.SUSPENDED, TaskState.CLOSED},
    TaskState.RUNNING: {TaskState.SUSPENDED, TaskState.CLOSED},
    TaskState.SUSPENDED: {TaskState.RESTORING, TaskState.CLOSED},
    TaskState.CLOSED: set(),
}


class TaskLives:
    """Where each task of a worker is in its life; closed ones are forgotten."""

    def __init__(self) -> None:
        self._states: dict[TaskId, TaskState] = {}

    def state(self, task: TaskId) -> TaskState:
        """A task that is not assigned is closed."""
        return self._states.get(task, TaskState.CLOSED)

    def tasks(self) -> set[TaskId]:
        """Those that are not closed; from any thread."""
        return set(self._states)

    def create(self, task: TaskId) -> None:
        """The task's first partition was assigned."""
        state = self.state(task)
        assert state is TaskState.CLOSED, f"task {task} is {state.value}: it cannot be created again"
        self._states[task] = TaskState.CREATED

    def become(self, task: TaskId, state: TaskState) -> None:
        """The task takes a step in its life."""
        now = self.state(task)
        assert now.may_become(state), f"task {task} is {now.value}: it cannot become {state.value}"
        if state is TaskState.CLOSED:
            del self._states[task]
        else:
            self._states[task] = state
