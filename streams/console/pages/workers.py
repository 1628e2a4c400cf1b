"""Workers and group: what each worker is and does, how many are wanted, and all rebalances with reasons."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.console.page import Page
from streams.console.rebalance_history import rebalance_rows
from streams.monitoring.partition_figures import known_total
from streams.runtime.rebalances import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.broker import GroupMember
    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.recent_reports import WorkerRates
    from streams.monitoring.worker_report import WorkerReport

STAGES: Final = ("decode", "process", "produce", "commit")
"""What a busy worker does; the rest of its time it polls, waiting for input."""

SHOWN_REBALANCES: Final = 25
MOST_REBALANCES: Final = 200
"""Those that are shown if all are asked for."""

SHOWN_CHANGES: Final = 200
SHOWN_PARTITIONS: Final = 20
SHOWN_WORKERS: Final = 200
SHOWN_MEMBERS: Final = 200
MEMBERS_SECONDS: Final = 10.0
HOUR: Final = 3_600_000

SORTS: Final = ("worker", "busy", "memory", "started", "waiting")

REASONS: Final = {
    Reason.JOINED.value: "the worker joined the group",
    Reason.MEMBERS.value: "another worker joined or left, or topics have more partitions",
    Reason.STOPPING.value: "the worker was stopping",
    Reason.POLL_DEADLINE.value: "the worker's code did not return for poll_deadline",
    Reason.SESSION.value: "the worker was not heard of for as long as a session lasts",
    Reason.REMOVED.value: "the group removed the worker, for another reason",
}


class StageBar(NamedTuple):
    """A part of a bar of 100 units."""

    stage: str
    share: float
    begin: float
    length: float


class WorkerRow(NamedTuple):
    """A worker that answers."""

    report: WorkerReport
    address: str
    rates: WorkerRates | None
    bar: Sequence[StageBar]
    waiting: float | None


class Wanted(NamedTuple):
    """How many workers the app needs, and what is to be said about it."""

    wanted: float | None
    useful: float | None
    sentence: str

    @property
    def workers(self) -> int | None:
        return _rounded(self.wanted)

    @property
    def most(self) -> int | None:
        return _rounded(self.useful)


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def members_of(name: str) -> list[GroupMember]:
        admin = console.collector.broker.admin()
        try:
            return admin.group_members(name)
        finally:
            admin.close()

    def workers(request: Request) -> Response:
        app = console.app(request)
        query = request.query_params
        sort = query.get("sort", "worker")
        sort = sort if sort in SORTS else "worker"
        reason = query.get("reason") or None
        only = query.get("worker") or None
        opened = query.get("rebalance", "")
        rows = _rows(app)
        rows.sort(key=lambda row: row.report.worker)
        if sort != "worker":
            rows.sort(key=lambda row: _order(row, sort))
        rebalances = rebalance_rows(
            [
                item
                for item in app.rebalances
                if reason in (None, item.change.reason) and only in (None, item.worker)
            ]
        )
        lookup = console.lookups.get(
            ("members", app.name), lambda: members_of(app.name), keep=MEMBERS_SECONDS
        )
        recent = [item for item in app.rebalances if item.change.time > app.time - HOUR]
        shown = MOST_REBALANCES if query.get("all") else SHOWN_REBALANCES
        return console.render(
            request,
            "workers.html",
            page="workers",
            title="Workers and group",
            app=app,
            rows=rows[:SHOWN_WORKERS],
            more=max(0, len(rows) - SHOWN_WORKERS),
            sort=sort,
            stages=STAGES,
            wanted=wanted_of(app),
            aborted=sum(row.report.transactions_aborted for row in rows) if rows else None,
            tasks=sum(len(row.report.tasks) for row in rows) if rows else None,
            problems=_problems(app),
            reason=reason,
            only=only,
            reasons=REASONS,
            names=sorted({item.worker for item in app.rebalances}),
            rebalances=rebalances[:shown],
            more_rebalances=max(0, len(rebalances) - shown),
            all_of_them=query.get("all") and "1",
            opened=int(opened) if opened.isascii() and opened.isdecimal() and len(opened) < 16 else None,
            shown_changes=SHOWN_CHANGES,
            shown_partitions=SHOWN_PARTITIONS,
            hour=Counter(item.change.reason for item in recent),
            members=lookup,
            shown_members=SHOWN_MEMBERS,
        )

    return [console.get("/apps/{app}/workers", workers)]


def _rows(app: AppSnapshot) -> list[WorkerRow]:
    rows = []
    for report in app.report.workers:
        rates = app.rates.get(report.worker)
        rows.append(
            WorkerRow(
                report,
                app.addresses.get(report.worker, ""),
                rates,
                [] if rates is None else _bar(rates),
                report.waiting_seconds,
            )
        )
    return rows


def _bar(rates: WorkerRates) -> list[StageBar]:
    begin, found = 0.0, []
    for stage in STAGES:
        share = rates.stages.get(stage, 0.0)
        length = min(100.0 - begin, share * 100)
        found.append(StageBar(stage, share, round(begin, 1), round(length, 1)))
        begin += length
    return found


def _order(row: WorkerRow, sort: str) -> tuple[bool, float]:
    """The largest first; what is unknown is last."""
    value: float | None
    match sort:
        case "busy":
            value = None if row.rates is None else row.rates.busy
        case "memory":
            value = row.report.memory_bytes
        case "started":
            value = row.report.started
        case _:
            value = row.waiting
    return value is None, -(value or 0)


def wanted_of(app: AppSnapshot) -> Wanted:
    """How many workers the app needs; unknown if one worker does not know its part, or does not answer."""
    workers = app.report.workers
    if not workers:
        return Wanted(None, None, "No worker answers, so what is needed is not known.")
    wanted = known_total([worker.workers_wanted for worker in workers], 0.0)
    useful = known_total([worker.workers_useful for worker in workers], 0.0)
    if wanted is None or useful is None:
        unknown = sorted(
            worker.worker
            for worker in workers
            if worker.workers_wanted is None or worker.workers_useful is None
        )
        names = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        return Wanted(
            None,
            None,
            f"Not known yet: {names} cannot say what {'its' if len(unknown) == 1 else 'their'} partitions "
            "need. That takes ten seconds after partitions have moved, and a record that was processed.",
        )
    if app.report.silent or app.report.missing:
        return Wanted(
            None,
            None,
            "Not known: the part of workers that do not answer, or of partitions without one, is missing.",
        )
    return Wanted(wanted, useful, _advice(wanted, useful, len(workers)))


def _advice(wanted: float, useful: float, running: int) -> str:
    need, most = max(1, _rounded(wanted) or 0), max(1, _rounded(useful) or 0)
    why = (
        "by what arrived in the last minute, what a record takes, and working off the lag within ten "
        "minutes, with workers busy for 70 % of their time"
    )
    if need > most:
        return (
            f"{need} would be needed {why}; but more than {most} do not help, as a task cannot be divided: "
            "more partitions, keys that spread the records over them, or faster steps would."
        )
    if need > running:
        return f"{need - running} more {'is' if need - running == 1 else 'are'} needed, {why}."
    if need < running:
        return f"{need} would do, {why}. The others are a reserve."
    return f"As many as are needed run, {why}."


def _rounded(value: float | None) -> int | None:
    """The next whole number, without that of a rounding error."""
    return None if value is None else math.ceil(round(value, 6))


def _problems(app: AppSnapshot) -> list[tuple[str, str, list[str]]]:
    """Connectors that cannot be used, why, and the workers that say so."""
    found: dict[tuple[str, str], list[str]] = {}
    for worker in app.report.workers:
        for name, problem in worker.problems.items():
            found.setdefault((name, problem), []).append(worker.worker)
    return [(name, problem, sorted(names)) for (name, problem), names in sorted(found.items())]


WORKERS: Final = Page("workers", "Workers and group", of_app=True, routes=routes)
