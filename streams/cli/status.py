"""``streams status``: whether an app keeps up, since when, and what holds it back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streams.cli.apps import load_app
from streams.cli.options import AsJson, Servers, Target, WorkerUrls, into_environment
from streams.cli.output import out, print_line
from streams.cli.worker_ports import WorkerPorts, published_addresses
from streams.monitoring.app_report import put_together
from streams.monitoring.worker_report import WorkerReport
from streams.records import TopicPartition
from streams.runtime.topics import input_partitions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.monitoring.app_report import AppReport
    from streams.monitoring.ledger import Difference
    from streams.monitoring.worker_report import FiringAlert, PartitionStatus

WATCH_SECONDS = 2.0

SHOWN_PARTITIONS = 10
"""The table has so many partitions, those whose records wait longest."""

SHOWN_DIFFERENCES = 5
"""So many differences of the ledger are shown; all are in the JSON."""


def status(
    target: Target,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds until Ctrl-C.")] = False,
    url: WorkerUrls = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Say whether an app keeps up, since when, how long records wait, and what holds it back.

    From the reports of its workers, which need http_port. What cannot be known is shown as unknown.
    """
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    admin = app.broker().admin()
    try:
        counts = input_partitions(app.topology, admin.topics())
    finally:
        admin.close()
    partitions = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]

    def measured() -> AppReport:
        # Workers come and go while it is watched.
        ports = WorkerPorts(app.settings, url or published_addresses(app))
        return put_together(app.name, _reports(ports), partitions)

    if as_json:
        while True:
            print_line(_fields(measured()))
            if not watch:
                return
            time.sleep(WATCH_SECONDS)
    if not watch:
        out.print(_view(measured()))
        return
    with Live(_view(measured()), console=out) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(_view(measured()))


def _reports(ports: WorkerPorts) -> dict[str, WorkerReport | None]:
    found: dict[str, WorkerReport | None] = {}
    for address, body in ports.read("/status").items():
        try:
            found[address] = None if body is None else msgspec.json.decode(body, type=WorkerReport)
        except msgspec.MsgspecError:
            # Another program listens there now.
            found[address] = None
    return found


def _fields(report: AppReport) -> dict[str, Any]:
    return {
        "app": report.app,
        "condition": report.condition,
        "since": report.since,
        "caught_up_in_seconds": report.caught_up_in,
        "waiting_seconds": report.waiting,
        "lag": report.lag,
        "arrival_rate": report.arrival_rate,
        "processing_rate": report.processing_rate,
        "deleted_in_seconds": report.deleted_in,
        "workers_wanted": report.wanted,
        "workers_useful": report.useful,
        "bottlenecks": list(report.bottlenecks),
        "differences": [
            {"worker": worker.worker} | msgspec.to_builtins(item)
            for worker in report.workers
            for item in worker.differences
        ],
        "alerts": [msgspec.to_builtins(item) for item in _alerts(report)],
        "workers": [worker.worker for worker in report.workers],
        "silent": list(report.silent),
        "missing": [str(partition) for partition in report.missing],
    }


def _view(report: AppReport) -> Group:
    parts: list[Text | Table] = [Text(line) for line in _lines(report)]
    waiting = _longest_waiting(report)
    if waiting:
        table = Table("partition", "worker", "position", "end", "lag", "waits", "arrive/s", "processed/s")
        for worker, item in waiting:
            table.add_row(
                f"{item.topic}-{item.partition}",
                worker,
                _number(item.position),
                _number(item.end),
                _number(item.lag),
                _duration(item.waiting_seconds),
                _rate(item.arrival_rate),
                _rate(item.processing_rate),
            )
        parts.append(table)
    return Group(*parts)


def _lines(report: AppReport) -> list[str]:
    """What there is to say, the answer first."""
    since = "" if report.since is None else f" since {_clock(report.since)}"
    done = f", done in {_duration(report.caught_up_in)}" if report.caught_up_in is not None else ""
    waits, lag = _duration(report.waiting), _number(report.lag)
    arrive, processed = _rate(report.arrival_rate), _rate(report.processing_rate)
    lines = [
        f"{report.app}: {report.condition}{since}{done}",
        f"records wait for {waits}, lag {lag}; a second {arrive} arrive and {processed} are processed",
    ]
    if report.workers:
        lines.append(_workers(report))
    if report.deleted_in is not None:
        lines.append(f"in {_duration(report.deleted_in)}, records are deleted before they are processed")
    lines += [f"alert {item.alert}: {item.sentence}" for item in _alerts(report)]
    lines += [f"worker {worker}: {item.sentence}" for worker, item in _differences(report)]
    lines += report.bottlenecks
    lines += [
        f"worker {worker.worker}: {name} cannot be used: {problem}"
        for worker in report.workers
        for name, problem in worker.problems.items()
    ]
    if report.silent:
        lines.append(f"no worker answers at {', '.join(report.silent)}")
    if report.missing:
        names = ", ".join(map(str, report.missing[:SHOWN_PARTITIONS]))
        more = len(report.missing) - SHOWN_PARTITIONS
        lines.append(f"not reported by any worker: {names}{f' and {more} more' if more > 0 else ''}")
    return lines


def _workers(report: AppReport) -> str:
    """How many workers there are and how many are wanted, and why more would not help, if that is so."""
    running = f"{len(report.workers)} {'worker runs' if len(report.workers) == 1 else 'workers run'}"
    if report.wanted is None or report.useful is None:
        return f"{running}; how many are wanted is unknown"
    line = f"{running}, {report.wanted} wanted, {report.useful} useful"
    if report.useful >= report.wanted:
        return line
    task = report.largest_task
    named = "a task" if task is None else f"task {task}"
    return f"{line}: more would not help, as {named} needs more than one worker and cannot be divided"


def _alerts(report: AppReport) -> Sequence[FiringAlert]:
    """The alerts of the app that fire: each worker reports all that it knows of."""
    found = {(item.alert, item.subject): item for worker in report.workers for item in worker.alerts}
    return sorted(found.values(), key=lambda item: item.since)


def _differences(report: AppReport) -> Sequence[tuple[str, Difference]]:
    """Records that are not accounted for, with the worker that says so."""
    found = [(worker.worker, item) for worker in report.workers for item in worker.differences]
    return found[:SHOWN_DIFFERENCES]


def _longest_waiting(report: AppReport) -> Sequence[tuple[str, PartitionStatus]]:
    """The partitions with lag, the one whose records wait longest first, unknown ones before it."""
    behind = [
        (worker.worker, item)
        for worker in report.workers
        for item in worker.partitions
        if item.lag is None or item.lag > 0
    ]
    behind.sort(
        key=lambda pair: float("inf") if pair[1].waiting_seconds is None else pair[1].waiting_seconds,
        reverse=True,
    )
    return behind[:SHOWN_PARTITIONS]


def _clock(milliseconds: int) -> str:
    moment = time.localtime(milliseconds / 1000)
    today = time.localtime()[:3] == moment[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", moment)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
