"""Whether an app keeps up, and since when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.monitoring.partition_figures import PartitionFigures

TREND_SECONDS = 30.0
"""Over which time a waiting time that is too long must have fallen to be catching up."""

SETTLE_SECONDS = 5.0
"""How long another condition must hold before it is reported: a rebalance or one slow commit is no news."""


class Condition(Enum):
    """What an app's input is like, from the best to the worst."""

    UNKNOWN = "unknown"
    """Nothing was measured yet, or the broker does not answer."""
    KEEPING_UP = "keeping up"
    """No record has waited for longer than the goal."""
    CATCHING_UP = "catching up"
    """Records have, and the time falls."""
    RESTORING = "restoring"
    """Stores are being restored, and their input waits for it."""
    FALLING_BEHIND = "falling behind"
    """Records have waited for longer than the goal, and the time does not fall."""
    STALLED = "stalled"
    """A partition with lag makes no progress."""

    @property
    def severity(self) -> int:
        """Higher is worse."""
        return list(Condition).index(self)


class Judgement(NamedTuple):
    """The condition, since when (on the clock of ``ConditionJudge``), and how long catching up will take."""

    condition: Condition
    since: float
    caught_up_in: float | None = None
    """Seconds until no record waits, at the present rates; ``None`` where that is unknown or never."""


@dataclass(slots=True)
class _Candidate:
    condition: Condition
    since: float


class ConditionJudge:
    """Judges the figures of an app, or of one worker's part of it, each time they were measured.

    ``goal`` is how long a record may wait, in seconds. A condition begins when it was first seen, but is
    reported only once it has held for ``SETTLE_SECONDS``.
    """

    def __init__(self, goal: float, now: float) -> None:
        self._goal = goal
        self._waits: deque[tuple[float, float]] = deque()
        """The longest waiting times of the last seconds, with their times."""
        self._current = Judgement(Condition.UNKNOWN, now)
        self._candidate: _Candidate | None = None

    def judge(
        self, figures: Sequence[PartitionFigures], *, stalled: bool, restoring: bool, now: float
    ) -> Judgement:
        """The judgement at this moment."""
        known = [item.waiting for item in figures if item.waiting is not None]
        worst = max(known, default=None)
        if worst is not None:
            self._waits.append((now, worst))
        while self._waits and self._waits[0][0] < now - TREND_SECONDS:
            self._waits.popleft()
        condition = self._condition(
            worst, now, unknown=len(known) < len(figures), stalled=stalled, restoring=restoring
        )
        self._settle(condition, now)
        arriving = self._current.condition is Condition.CATCHING_UP
        return self._current._replace(caught_up_in=_caught_up_in(figures) if arriving else None)

    def _condition(
        self, worst: float | None, now: float, *, unknown: bool, stalled: bool, restoring: bool
    ) -> Condition:
        if stalled:
            return Condition.STALLED
        if restoring:
            return Condition.RESTORING
        if worst is None:
            return Condition.UNKNOWN if unknown else Condition.KEEPING_UP
        if worst > self._goal:
            since, before = self._waits[0]
            if now - since < SETTLE_SECONDS:
                return Condition.UNKNOWN
            return Condition.CATCHING_UP if worst < before else Condition.FALLING_BEHIND
        return Condition.UNKNOWN if unknown else Condition.KEEPING_UP

    def _settle(self, condition: Condition, now: float) -> None:
        if condition is self._current.condition:
            self._candidate = None
            return
        if self._candidate is None or self._candidate.condition is not condition:
            self._candidate = _Candidate(condition, now)
        first = self._current.condition is Condition.UNKNOWN
        if first or now - self._candidate.since >= SETTLE_SECONDS:
            self._current = Judgement(condition, self._candidate.since)
            self._candidate = None


def _caught_up_in(figures: Sequence[PartitionFigures]) -> float | None:
    """How long the slowest partition takes."""
    times = [item.caught_up_in for item in figures]
    return (
        None if any(time is None for time in times) else max((t for t in times if t is not None), default=0.0)
    )
