"""What the console knows of an app at one moment. Pages read it; only the collector makes one."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.app import App
    from streams.console.history import History
    from streams.console.recent_reports import MemberRebalance, WorkerRates
    from streams.monitoring.app_report import AppReport
    from streams.monitoring.worker_report import FiringAlert, PartitionStatus, WorkerReport


SOON_SECONDS = 2 * 86_400.0


class AppSnapshot(NamedTuple):
    """An app, as its workers reported it. Times are milliseconds since the epoch."""

    name: str
    program: App | None
    """The program, if the console was given it: it knows serdes, and can retry dead letters."""
    time: int
    """When its workers were asked."""
    report: AppReport
    history: History
    topology: Mapping[str, Any] | None
    """The graph as ``streams describe --format json`` prints it; ``None`` while it is unknown."""
    addresses: Mapping[str, str]
    """The address of each worker that answers, by its name."""
    problems: Sequence[str]
    """What could not be read, in sentences."""
    rates: Mapping[str, WorkerRates] = MappingProxyType({})
    """What workers have done in the last seconds, by name; without those of which it is not known yet."""
    rebalances: Sequence[MemberRebalance] = ()
    """The last changes of partitions, the newest first, also of workers that are gone."""

    @property
    def deleted_soon(self) -> float | None:
        """Seconds until records are deleted unprocessed, if that is soon: rates of a moment say no more."""
        found = self.report.deleted_in
        return found if found is not None and found < SOON_SECONDS else None

    @property
    def alerts(self) -> Sequence[FiringAlert]:
        """The alerts that fire, the oldest first: each worker reports all that it knows of."""
        found = {(item.alert, item.subject): item for worker in self.report.workers for item in worker.alerts}
        return sorted(found.values(), key=lambda item: item.since)

    @property
    def partitions(self) -> Sequence[tuple[WorkerReport, PartitionStatus]]:
        """All partitions with their workers; of one that several report, the newest figures."""
        found = {
            (item.topic, item.partition): (worker, item)
            for worker in sorted(self.report.workers, key=lambda worker: worker.measured)
            for item in worker.partitions
        }
        return list(found.values())
