"""The life cycle of a sink's writer, as the contract draws it."""

from __future__ import annotations

from enum import Enum


class WriterState(Enum):
    """The states of an open sink.

    ::

        CLAIMED ──write──> WRITTEN ──commit──> CLAIMED
                              └────rollback────^

        CLAIMED, WRITTEN ──close, or an error after which it is opened again──> CLOSED
    """

    CLAIMED = "claimed"
    """No transaction is open."""
    WRITTEN = "written"
    """A transaction is open: its rows and positions are written, not committed."""
    CLOSED = "closed"

    def to(self, other: WriterState) -> WriterState:
        """The other state, into which this one may change."""
        assert other in _NEXT[self], f"a writer that is {self.value} cannot become {other.value}"
        return other


_NEXT = {
    WriterState.CLAIMED: {WriterState.WRITTEN, WriterState.CLOSED},
    WriterState.WRITTEN: {WriterState.CLAIMED, WriterState.CLOSED},
    WriterState.CLOSED: set[WriterState](),
}
