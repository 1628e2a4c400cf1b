"""The life of a server that is started here."""

from __future__ import annotations

import enum


class ServerState(enum.Enum):
    """The life of a server.

    ::

        STOPPED ──start──> RUNNING ──pause──> PAUSED
           ^                  │  ^──resume──────┤
           └──────stop, kill──┴─────────────────┘
        STOPPED ──close──> CLOSED

    A server that ended by itself is still RUNNING here; ``start`` starts it again.
    """

    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    CLOSED = "closed"

    def to(self, state: ServerState) -> ServerState:
        """The next state, which must be one that may follow."""
        assert state in _NEXT[self], f"a {self.value} server cannot be {state.value}"
        return state


_NEXT = {
    ServerState.STOPPED: {ServerState.STOPPED, ServerState.RUNNING, ServerState.CLOSED},
    ServerState.RUNNING: {ServerState.STOPPED, ServerState.RUNNING, ServerState.PAUSED},
    ServerState.PAUSED: {ServerState.STOPPED, ServerState.RUNNING},
    ServerState.CLOSED: set[ServerState](),
}
