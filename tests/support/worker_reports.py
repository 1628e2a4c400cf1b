"""Reports of workers as a test gives them, served as workers serve theirs: for what real ones cannot show."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.testclient import TestClient

from streams.broker.memory import MemoryBroker
from streams.console.mounted import served
from streams.monitoring.worker_report import (
    BottleneckStatus,
    PartitionStatus,
    RebalanceStatus,
    StepStatus,
    TaskStatus,
    WorkerHistory,
    WorkerReport,
)
from streams.queries.http import JSON, Request, Response
from streams.queries.http_server import HttpServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streams import App


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


def partition(number: int, topic: str = "orders", **figures: Any) -> PartitionStatus:
    """One that keeps up."""
    known: dict[str, Any] = {
        "task": f"0_{number}",
        "position": 5,
        "end": 5,
        "lag": 0,
        "waiting_seconds": 0.0,
        "arrival_rate": 1.0,
        "processing_rate": 1.0,
        "caught_up_in_seconds": 0.0,
        "deleted_in_seconds": None,
        "age_seconds": 0.5,
        "problem": "",
    }
    return PartitionStatus(topic=topic, partition=number, **(known | figures))


def step(name: str, records: int, seconds: float, **failures: int) -> StepStatus:
    counts = {"dead_letters": 0, "skipped": 0, "late": 0} | failures
    return StepStatus(step=name, records=records, seconds=seconds, **counts)


def task(name: str, **figures: Any) -> TaskStatus:
    known: dict[str, Any] = {
        "records": 0,
        "seconds": 0.0,
        "stream_time": None,
        "restored": None,
        "to_restore": None,
    }
    return TaskStatus(task=name, **(known | figures))


def cause(subject: str, share: float | None = 0.8, kind: str = "step") -> BottleneckStatus:
    return BottleneckStatus(
        cause=kind, subject=subject, share=share, sentence=f"step {subject!r} takes {share:.0%}"
    )


def rebalance(moment: int, kind: str, reason: str, *partitions: str) -> RebalanceStatus:
    return RebalanceStatus(time=moment, kind=kind, reason=reason, partitions=list(partitions), seconds=0.25)


def report(name: str, *partitions: PartitionStatus, at: int | None = None, **figures: Any) -> WorkerReport:
    """A worker of ``shop`` that keeps up."""
    now = milliseconds() if at is None else at
    known: dict[str, Any] = {
        "app": "shop",
        "version": "1.2.3",
        "started": 1_000,
        "memory_bytes": 50_000_000,
        "state": "running",
        "time": now,
        "measured": now,
        "condition": "keeping up",
        "since": now - 60_000,
        "caught_up_in_seconds": None,
        "waiting_seconds": 0.0,
        "bottlenecks": [],
        "busy_seconds": {"poll": 0.0, "decode": 0.0, "process": 0.0, "produce": 0.0, "commit": 0.0},
        "commits": 1,
        "transactions_aborted": 0,
        "problems": {},
        "tasks": [],
        "steps": [],
        "rebalances": [],
    }
    return WorkerReport(worker=name, partitions=list(partitions), **(known | figures))


class ServedWorkers:
    """Ports on which these reports are; each may be replaced."""

    def __init__(self, stack: ExitStack, reports: Mapping[str, WorkerReport], topology: str) -> None:
        self.reports = dict(reports)
        self.addresses = []
        for name in reports:
            routes = {
                "/status": partial(self._status, name),
                "/topology": partial(Response, 200, topology.encode(), JSON),
            }
            history = {"/history": partial(self._history, name)}
            server = stack.enter_context(HttpServer("127.0.0.1", 0, routes, history))
            self.addresses.append(f"127.0.0.1:{server.port}")

    def _status(self, name: str) -> Response:
        return Response(200, msgspec.json.encode(self.reports[name]), JSON)

    def _history(self, name: str, _: Request) -> Response:
        return Response(200, msgspec.json.encode(WorkerHistory(worker=name, started=1_000, samples=[])), JSON)


@contextmanager
def console_of(
    app: App, *reports: WorkerReport, silent: int = 0, broker: MemoryBroker | None = None, **options: Any
) -> Iterator[tuple[TestClient, ServedWorkers]]:
    """A console of an app with workers that say this; at ``silent`` addresses none answers."""
    with ExitStack() as stack:
        workers = ServedWorkers(stack, {item.worker: item for item in reports}, app.topology.describe("json"))
        # Nothing listens at port 1.
        nobody = [f"127.0.0.{number + 1}:1" for number in range(silent)]
        chosen = {"token": None, "read_only": False, "urls": [*workers.addresses, *nobody]} | options
        client = TestClient(
            stack.enter_context(served(broker or MemoryBroker(), app.settings, [app], **chosen)),
            base_url="http://localhost",
            follow_redirects=False,
        )
        wait_until(lambda: client.get("/apps/shop/overview").status_code == 200, what="the workers' answers")
        yield client, workers
