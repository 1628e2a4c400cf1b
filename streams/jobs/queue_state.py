"""The life cycle of the queue of one partition's task."""

from __future__ import annotations

from enum import Enum


class QueueState(Enum):
    """The states of a task's queue.

    ::

        RECOVERING ──all unfinished records are read again──> RUNNING ──stop──> STOPPING
             └──────────────────────────stop─────────────────────────────────────┘
    """

    RECOVERING = "recovering"
    """Nothing begins: the order of jobs is not known yet."""
    RUNNING = "running"
    STOPPING = "stopping"
    """What runs may finish, nothing begins."""

    def may_become(self, other: QueueState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    QueueState.RECOVERING: {QueueState.RUNNING, QueueState.STOPPING},
    QueueState.RUNNING: {QueueState.STOPPING},
    QueueState.STOPPING: {QueueState.STOPPING},
}
