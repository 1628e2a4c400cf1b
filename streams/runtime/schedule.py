"""Punctuators: calls that steps schedule at an interval of stream time or of the wall clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import ProcessingError, StreamsError, error_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.eventtime.clock import StreamClock


@dataclass(slots=True)
class Schedule:
    """A call that a step scheduled every ``every`` milliseconds, and when it is next due."""

    step: str
    every: int
    call: Callable[[int], None]
    due: int | None
    """When it runs next; ``None`` before the first stream time."""
    clock: StreamClock | None
    """The clock it follows; ``None`` for the wall clock."""
    cancelled: bool = False
    _at_slice: int | None = field(init=False)
    _at_commit: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._at_slice = self._at_commit = self.due

    def cancel(self) -> None:
        """Stop further calls."""
        self.cancelled = True

    def follow(self) -> None:
        """Run it if its stream time has reached ``due``."""
        assert self.clock is not None
        now = self.clock.time
        if self.cancelled or now < 0:
            return
        if self.due is None:
            self.due = self._after(now)
        elif now >= self.due:
            self.run(now)

    def run(self, now: int) -> None:
        """Call it with the time. Raises ``ProcessingError`` if it fails."""
        # Missed calls are skipped.
        self.due = now + self.every if self.clock is None else self._after(now)
        try:
            self.call(now)
        except StreamsError:
            raise
        except Exception as error:
            raise ProcessingError(
                f"step {self.step!r} failed in the call it scheduled every {self.every} ms: "
                f"{type(error).__name__}: {error_text(error)}",
                hint="a scheduled call has no record to write as a dead letter: fix the code and start again",
            ) from error

    def end_slice(self) -> None:
        """The open slice is complete."""
        self._at_slice = self.due

    def drop_slice(self) -> None:
        """Undo its calls in the open slice, so that they are due again."""
        self.due = self._at_slice

    def committed(self) -> None:
        """Its calls in complete slices are committed."""
        self._at_commit = self._at_slice

    def drop(self) -> None:
        """Undo its calls since the last commit, so that they are due again."""
        self.due = self._at_slice = self._at_commit

    def _after(self, now: int) -> int:
        return now - now % self.every + self.every
