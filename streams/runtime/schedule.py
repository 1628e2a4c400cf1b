"""Calls that steps have made again and again, as event time or the wall clock passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import ProcessingError, StreamsError, error_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.eventtime.clock import StreamClock


@dataclass(slots=True)
class Schedule:
    """A call that a step wants whenever so much time has passed, and when it is due."""

    step: str
    every: int
    call: Callable[[int], None]
    due: int | None
    """When it is run next; ``None`` as long as stream time has not begun."""
    clock: StreamClock | None
    """The clock it follows; ``None`` for the wall clock."""
    cancelled: bool = False
    _at_slice: int | None = field(init=False)
    _at_commit: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._at_slice = self._at_commit = self.due

    def cancel(self) -> None:
        """Call it no more."""
        self.cancelled = True

    def follow(self) -> None:
        """Run it if its stream time has got there."""
        assert self.clock is not None
        now = self.clock.time
        if self.cancelled or now < 0:
            return
        if self.due is None:
            self.due = self._after(now)
        elif now >= self.due:
            self.run(now)

    def run(self, now: int) -> None:
        """Call it with the time. Raises ``ProcessingError`` where it fails."""
        # Calls that were missed are not made up for.
        self.due = now + self.every if self.clock is None else self._after(now)
        try:
            self.call(now)
        except StreamsError:
            raise
        except Exception as error:
            raise ProcessingError(
                f"step {self.step!r} failed in what it scheduled every {self.every} ms: "
                f"{type(error).__name__}: {error_text(error)}",
                hint="there is no record to become a dead letter: mend the code and start again",
            ) from error

    def end_slice(self) -> None:
        """The open slice is complete."""
        self._at_slice = self.due

    def drop_slice(self) -> None:
        """What it did in the open slice is undone."""
        self.due = self._at_slice

    def committed(self) -> None:
        """What it did in complete slices is permanent."""
        self._at_commit = self._at_slice

    def drop(self) -> None:
        """What it did since the last commit is undone: that is due again."""
        self.due = self._at_slice = self._at_commit

    def _after(self, now: int) -> int:
        return now - now % self.every + self.every
