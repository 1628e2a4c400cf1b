"""The callbacks that the steps of a task have registered."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.eventtime.clock import StreamClock
    from streams.operators.background import BackgroundWork
    from streams.operators.uncommitted import FollowsSlices
    from streams.runtime.schedule import Schedule


class TurnKind(IntEnum):
    """The kinds of callbacks at the end of a slice, in the order in which they run."""

    SLICE_END = 0
    STREAM_TIME = 1
    COMMIT = 2


class Turn(NamedTuple):
    """A callback of a step (by its position in the subtopology) at the end of a slice."""

    position: int
    kind: TurnKind
    call: Callable[[], None]


@dataclass(slots=True)
class Hooks:
    """The registered callbacks of a task's steps. Positions are those of nodes in the subtopology."""

    turns: list[Turn] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    closers: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """What to call when the task ends, with the step's name; called in reverse order."""
    idle: list[tuple[int, int, StreamClock]] = field(default_factory=list)
    """The clocks that follow the wall clock: after how many milliseconds without records, how far at most."""
    background: list[BackgroundWork] = field(default_factory=list)
    followers: list[FollowsSlices] = field(default_factory=list)
    """What steps keep in memory that is undone with their stores."""

    def add(self, position: int, kind: TurnKind, call: Callable[[], None]) -> None:
        """Register a callback. Upstream steps run first, so the next callback follows what they forward."""
        self.turns = sorted([*self.turns, Turn(position, kind, call)], key=itemgetter(0, 1))

    def due(self, now: int) -> list[Schedule]:
        """The schedules that are due on the wall clock."""
        return [
            schedule
            for schedule in self.schedules
            if schedule.clock is None and not schedule.cancelled and now >= (schedule.due or 0)
        ]

    def overdue(self, milliseconds: int, since: int) -> dict[StreamClock, int]:
        """The clocks that follow the wall clock now, and their new times; see ``Task.idle``."""
        moved: dict[StreamClock, int] = {}
        for after, horizon, clock in self.idle:
            to = min(clock.time + since, clock.observed + horizon)
            if milliseconds >= after and 0 <= clock.time < to:
                moved[clock] = max(to, moved.get(clock, to))
        return moved

    def close(self) -> list[tuple[str, Exception]]:
        """Close each step once; return the steps that failed, with their errors."""
        failed: list[tuple[str, Exception]] = []
        while self.closers:
            step, call = self.closers.pop()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the others must be closed too
                failed.append((step, error))
        return failed

    def end_slice(self) -> None:
        """The open slice is complete."""
        for follower in self._following:
            follower.end_slice()

    def drop_slice(self) -> None:
        """Undo the changes of the open slice."""
        for follower in self._following:
            follower.drop_slice()

    def committed(self) -> None:
        """The changes of complete slices are committed."""
        for follower in self._following:
            follower.committed()

    def drop(self) -> None:
        """Undo the changes since the last commit."""
        for follower in self._following:
            follower.drop()

    @property
    def _following(self) -> list[FollowsSlices]:
        return [*self.schedules, *self.followers]
