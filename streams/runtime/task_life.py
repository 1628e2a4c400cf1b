"""The life cycle of a worker's tasks, from the first partition's assignment to the last one's release."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.runtime.task import TaskId


class TaskState(Enum):
    """The states of a task.

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
    """It waits for all its input partitions, and for the group's positions in them."""
    RESTORING = "restoring"
    """Its stores are being restored."""
    RUNNING = "running"
    SUSPENDED = "suspended"
    """It has to be restored again: for another set of partitions, or after an unknown outcome."""
    CLOSED = "closed"

    def may_become(self, other: TaskState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    TaskState.CREATED: {TaskState.RESTORING, TaskState.RUNNING, TaskState.CLOSED},
    TaskState.RESTORING: {TaskState.RUNNING, TaskState.SUSPENDED, TaskState.CLOSED},
    TaskState.RUNNING: {TaskState.SUSPENDED, TaskState.CLOSED},
    TaskState.SUSPENDED: {TaskState.RESTORING, TaskState.CLOSED},
    TaskState.CLOSED: set(),
}


class TaskLives:
    """The state of each task of a worker; closed tasks are forgotten."""

    def __init__(self) -> None:
        self._states: dict[TaskId, TaskState] = {}

    def state(self, task: TaskId) -> TaskState:
        """The state of a task; a task that is not assigned is closed."""
        return self._states.get(task, TaskState.CLOSED)

    def tasks(self) -> set[TaskId]:
        """The tasks that are not closed; from any thread."""
        return set(self._states)

    def create(self, task: TaskId) -> None:
        """Add a task whose first partition was assigned."""
        state = self.state(task)
        assert state is TaskState.CLOSED, f"task {task} is {state.value}: it cannot be created again"
        self._states[task] = TaskState.CREATED

    def become(self, task: TaskId, state: TaskState) -> None:
        """Change the state of a task. The transition must be allowed."""
        now = self.state(task)
        assert now.may_become(state), f"task {task} is {now.value}: it cannot become {state.value}"
        if state is TaskState.CLOSED:
            del self._states[task]
        else:
            self._states[task] = state
