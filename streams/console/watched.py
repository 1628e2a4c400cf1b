"""One app that the console watches: asks its workers, and keeps what they answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from streams.console.app_snapshot import AppSnapshot
from streams.console.history import STEP, History, Mark
from streams.console.recent_reports import RecentReports
from streams.monitoring.app_report import put_together
from streams.monitoring.series import KEPT_SAMPLES
from streams.monitoring.worker_report import WorkerHistory, WorkerReport
from streams.queries.http import ask

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from streams.app import App
    from streams.queries.http import Response
    from streams.records import TopicPartition

ANSWER_SECONDS = 2.0
"""How long a worker may take to answer: one that takes longer is shown as silent."""


class Watched:
    """An app of which workers are asked at their addresses."""

    def __init__(
        self,
        name: str,
        program: App | None,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        given: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.program = program
        self.addresses: Sequence[str] = given
        """Where its workers are, as the directory says, or as the console was told."""
        self.given = bool(given)
        """Whether the console was told."""
        self.input: Sequence[TopicPartition] = ()
        """All partitions of its input, as far as known."""
        self.problem = ""
        """Why the directory of its workers could not be read; empty if it could."""
        self._headers = dict(headers)
        self._tls = tls
        self._history = History()
        self._recent = RecentReports()
        self._topology: Mapping[str, Any] | None = None
        self._topology_of: tuple[str, int] | None = None
        """The worker that has said it, and when that had started: another one may have another topology."""
        if program is not None:
            self._topology = msgspec.json.decode(program.topology.describe("json"))

    def collect(self, pool: Executor, now: int) -> AppSnapshot:
        """Ask all workers at once, at ``now`` (milliseconds since the epoch)."""
        addresses = list(dict.fromkeys(self.addresses))
        reports = dict(zip(addresses, pool.map(self._report, addresses), strict=True))
        answered = {
            report.worker: address
            for address, report in reports.items()
            if report is not None and report.app == self.name
        }
        histories = pool.map(self._samples, answered.values(), answered)
        for found in histories:
            if found is not None:
                self._history.add(found.worker, found.samples)
        workers = [report for report in reports.values() if report is not None]
        self._recent.add([report for report in workers if report.app == self.name], now)
        self._history.mark(list(_marks(workers)))
        self._history.forget_before(now - KEPT_SAMPLES * STEP)
        started = {(worker.worker, worker.started) for worker in workers if worker.worker in answered}
        if self.program is None and started and self._topology_of not in started:
            newest = max(started, key=lambda worker: worker[1])
            topology = self._read_topology(answered[newest[0]])
            if topology is not None:
                self._topology, self._topology_of = topology, newest
        return AppSnapshot(
            self.name,
            self.program,
            now,
            put_together(self.name, reports, self.input),
            self._history,
            self._topology,
            answered,
            [self.problem] if self.problem else [],
            self._recent.rates(),
            self._recent.rebalances,
        )

    def _report(self, address: str) -> WorkerReport | None:
        body = self.read(address, "/status")
        try:
            return None if body is None else msgspec.json.decode(body, type=WorkerReport)
        except msgspec.MsgspecError:
            # Another program, or another version, listens there now.
            return None

    def _samples(self, address: str, worker: str) -> WorkerHistory | None:
        body = self.read(address, f"/history?since={self._history.newest(worker)}")
        try:
            return None if body is None else msgspec.json.decode(body, type=WorkerHistory)
        except msgspec.MsgspecError:
            return None

    def _read_topology(self, address: str) -> Mapping[str, Any] | None:
        body = self.read(address, "/topology")
        try:
            return None if body is None else msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError:
            return None

    def read(self, address: str, path: str) -> bytes | None:
        """What a worker answers; ``None`` if it does not, or not with 200. May be called from any thread."""
        response = self.ask(address, path)
        return None if response is None or response.status != 200 else response.body

    def ask(self, address: str, path: str, *, timeout: float = ANSWER_SECONDS) -> Response | None:
        """A worker's response, whatever its status; ``None`` without one. May be called from any thread.

        ``timeout`` is in seconds, for connecting and for each read.
        """
        host = address.removeprefix("http://").removeprefix("https://")
        try:
            return ask(host, path, headers=self._headers, timeout=timeout, tls=self._tls)
        except OSError:
            # Its certificate is not trusted.
            return None


def _marks(workers: Iterable[WorkerReport]) -> Iterable[Mark]:
    for worker in workers:
        yield Mark(worker.started, "start", f"{worker.worker} was started, version {worker.version}")
        for item in worker.rebalances:
            count = len(item.partitions)
            yield Mark(
                item.time,
                "rebalance",
                f"{worker.worker}: {count} partition{'s' * (count != 1)} {item.kind}, {item.reason}",
            )
