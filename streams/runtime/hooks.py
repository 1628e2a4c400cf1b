"""What the steps of a task have asked to be called for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.eventtime.clock import StreamClock
    from streams.runtime.schedule import Schedule


class TurnKind(IntEnum):
    """What a step does when the records of a slice are through, in this order."""

    SLICE_END = 0
    STREAM_TIME = 1
    COMMIT = 2


class Turn(NamedTuple):
    """A call for a step (by its position in the subtopology) when the records of a slice are through."""

    position: int
    kind: TurnKind
    call: Callable[[], None]


@dataclass(slots=True)
class Hooks:
    """What the steps of a task asked to be called for. Numbers are positions of nodes in the subtopology."""

    turns: list[Turn] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    closers: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """What to call when the task ends, with the step's name; the last one first."""
    idle: list[tuple[int, int, StreamClock]] = field(default_factory=list)
    """After how many milliseconds without records, and how far, which clock follows the wall clock."""

    def add(self, position: int, kind: TurnKind, call: Callable[[], None]) -> None:
        """Steps come before later ones: what one forwards, the next takes in before its own turn."""
        self.turns = sorted([*self.turns, Turn(position, kind, call)], key=itemgetter(0, 1))

    def due(self, now: int) -> list[Schedule]:
        """The schedules that are due on the wall clock."""
        return [
            schedule
            for schedule in self.schedules
            if schedule.clock is None and not schedule.cancelled and now >= (schedule.due or 0)
        ]

    def overdue(self, milliseconds: int, since: int) -> dict[StreamClock, int]:
        """The clocks that follow the wall clock as no record came, and where to; see ``Task.idle``."""
        moved: dict[StreamClock, int] = {}
        for after, horizon, clock in self.idle:
            to = min(clock.time + since, clock.observed + horizon)
            if milliseconds >= after and 0 <= clock.time < to:
                moved[clock] = max(to, moved.get(clock, to))
        return moved

    def close(self) -> list[tuple[str, Exception]]:
        """Close each step once; those that failed."""
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
        for schedule in self.schedules:
            schedule.end_slice()

    def drop_slice(self) -> None:
        """The open slice is given up."""
        for schedule in self.schedules:
            schedule.drop_slice()

    def committed(self) -> None:
        """What complete slices did is permanent."""
        for schedule in self.schedules:
            schedule.committed()

    def drop(self) -> None:
        """What was done since the last commit is undone."""
        for schedule in self.schedules:
            schedule.drop()
