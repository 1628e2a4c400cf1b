"""The last reports of an app's workers: what they were busy with lately, and how their partitions moved."""

from __future__ import annotations

from collections import deque
from heapq import nlargest
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.monitoring.worker_report import RebalanceStatus, StepStatus, WorkerReport

WINDOW_MILLISECONDS: Final = 20_000
"""Over which time rates and shares are measured: the same as those that name a bottleneck."""

SHORTEST_MILLISECONDS: Final = 10_000
"""A shorter time says too little."""

FORGOTTEN_MILLISECONDS: Final = 60_000
"""How long the reports of a worker that does not answer are kept."""

KEPT_REBALANCES: Final = 1_000


class StepRate(NamedTuple):
    """A step in one worker, lately."""

    records: float
    """Records that reached it, for each second."""
    share: float
    """The share of the worker's time that it took, waiting included; for a sink, with that for its system."""
    dead_letters: int
    """New ones."""


class WorkerRates(NamedTuple):
    """What a worker has done lately."""

    seconds: float
    """The time over which it was measured."""
    steps: Mapping[str, StepRate]
    stages: Mapping[str, float]
    """The shares of its time, by stage: ``decode``, ``process``, ``produce`` and ``commit``."""
    restoring: Mapping[str, float]
    """Changelog records that are restored for each second, by task."""

    @property
    def busy(self) -> float:
        """The share of its time in which it did not wait for input."""
        return min(1.0, sum(self.stages.values()))


class MemberRebalance(NamedTuple):
    """A change of one worker's partitions."""

    worker: str
    change: RebalanceStatus


class RecentReports:
    """Remembers reports for as long as rates need them, and rebalances, also those of workers that are gone.

    Used by one thread; what it returns does not change.
    """

    def __init__(self) -> None:
        self._reports: dict[str, deque[WorkerReport]] = {}
        self._rebalances: dict[tuple[str, int, str, tuple[str, ...]], MemberRebalance] = {}

    def add(self, reports: Sequence[WorkerReport], now: int) -> None:
        """Remember what the workers have answered at ``now`` (milliseconds since the epoch)."""
        for report in reports:
            kept = self._reports.setdefault(report.worker, deque())
            if kept and (kept[-1].started != report.started or kept[-1].time > report.time):
                # Another process, which counts from 0, or a clock that was set back.
                kept.clear()
            if not kept or report.time > kept[-1].time:
                kept.append(report)
            while len(kept) > 2 and kept[1].time <= report.time - WINDOW_MILLISECONDS:
                kept.popleft()
            for item in report.rebalances:
                key = report.worker, item.time, item.kind, tuple(item.partitions)
                self._rebalances[key] = MemberRebalance(report.worker, item)
        for worker, kept in list(self._reports.items()):
            if kept[-1].time < now - FORGOTTEN_MILLISECONDS and all(
                report.worker != worker for report in reports
            ):
                del self._reports[worker]
        if len(self._rebalances) > KEPT_REBALANCES:
            self._rebalances = dict(
                nlargest(KEPT_REBALANCES, self._rebalances.items(), key=lambda entry: entry[1].change.time)
            )

    @property
    def rebalances(self) -> list[MemberRebalance]:
        """The last changes of partitions, the newest first."""
        return sorted(self._rebalances.values(), key=lambda item: (-item.change.time, item.worker))

    def rates(self) -> dict[str, WorkerRates]:
        """What the workers have done lately; those are left out of which that is not known yet."""
        found = {}
        for worker, kept in self._reports.items():
            before, after = kept[0], kept[-1]
            if after.time - before.time >= SHORTEST_MILLISECONDS:
                found[worker] = _between(before, after)
        return found


def _between(before: WorkerReport, after: WorkerReport) -> WorkerRates:
    seconds = (after.time - before.time) / 1000
    earlier = {item.step: item for item in before.steps}
    restored = {item.task: item.restored for item in before.tasks}
    return WorkerRates(
        seconds,
        {
            item.step: _step(
                earlier.get(item.step),
                item,
                seconds,
                after.sink_seconds.get(item.step, 0.0) - before.sink_seconds.get(item.step, 0.0),
            )
            for item in after.steps
        },
        {
            stage: max(0.0, spent - before.busy_seconds.get(stage, 0.0)) / seconds
            for stage, spent in after.busy_seconds.items()
            if stage != "poll"
        },
        {
            item.task: max(0, item.restored - earlier_restored) / seconds
            for item in after.tasks
            if item.restored is not None and (earlier_restored := restored.get(item.task)) is not None
        },
    )


def _step(before: StepStatus | None, after: StepStatus, seconds: float, waited: float) -> StepRate:
    # What a task that moved away had counted may be missing for a moment.
    records = max(0, after.records - (0 if before is None else before.records))
    spent = max(0.0, after.seconds - (0.0 if before is None else before.seconds)) + max(0.0, waited)
    letters = max(0, after.dead_letters - (0 if before is None else before.dead_letters))
    return StepRate(records / seconds, spent / seconds, letters)
