"""Alerts: what fires, since when, who was notified, where to look; the rules and silences of the app."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.alerts.alert import AlertState
from streams.alerts.declared import effective_rules
from streams.alerts.rules import DEFAULTS, AlertName
from streams.alerts.topics import alerts_topic, read_alerts
from streams.app import configured_alerts
from streams.console.page import Page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.alerts.alert import Alert
    from streams.alerts.declared import Silence
    from streams.app import App
    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console

READ_SECONDS: Final = 5.0
"""How often the topic of alerts is read while somebody looks at the page."""

ORDER: Final = (AlertState.FIRING, AlertState.PENDING, AlertState.CLEARED)


class Advice(NamedTuple):
    """Where an alert is explained: a page with a query, and what to do."""

    page: str
    query: Mapping[str, str]
    sentence: str


ADVICE: Final = {
    AlertName.BEHIND: Advice("overview", {}, "What holds the app back, and whether it catches up."),
    AlertName.NOT_CATCHING_UP: Advice(
        "workers", {}, "More workers, if they would help; else the step or partition that holds it back."
    ),
    AlertName.STALLED: Advice("partitions", {"show": "problem"}, "The partitions without progress, and why."),
    AlertName.RETENTION_SOON: Advice(
        "partitions",
        {"sort": "deleted"},
        "Raise the topic's retention first; then find out why it is behind.",
    ),
    AlertName.DEAD_LETTER_SHARE: Advice(
        "dead-letters", {}, "The dead letters by step and error; fix and retry."
    ),
    AlertName.REBALANCE_STORM: Advice("workers", {}, "The rebalances, with who caused them and why."),
    AlertName.RESTORE_LONG: Advice(
        "partitions", {"show": "restoring"}, "What is restored, and how long it will take."
    ),
    AlertName.JOBS_OVERDUE: Advice("jobs", {}, "Why jobs that are due do not run."),
    AlertName.CRON_MISSED: Advice(
        "jobs", {}, "Schedules with their last and next instants. Was the app down?"
    ),
    AlertName.SLOT_UNHEALTHY: Advice("sync", {}, "Does the source keep up? Is a transaction open for long?"),
    AlertName.CONNECTOR_UNAVAILABLE: Advice(
        "workers", {}, "Which workers cannot use it, and why. Its input waits; nothing is lost."
    ),
    AlertName.LEDGER_DIFFERENCE: Advice(
        "ledger", {}, "Where the difference arose, by task and offsets. Keep the log of that worker."
    ),
    AlertName.CONDITION_UNKNOWN: Advice("workers", {}, "The broker does not answer these workers."),
    AlertName.NO_WORKERS: Advice("workers", {}, "Start a worker."),
}

SECONDS: Final = {
    AlertName.BEHIND,
    AlertName.NOT_CATCHING_UP,
    AlertName.RETENTION_SOON,
    AlertName.JOBS_OVERDUE,
    AlertName.CRON_MISSED,
}
"""Alerts whose values are seconds."""


class AlertRow(NamedTuple):
    """An alert that fires, is pending or was cleared. Times are milliseconds since the epoch."""

    name: str
    subject: str
    state: str
    severity: str
    sentence: str
    since: int
    raised: int | None
    cleared: int | None
    silenced: bool
    notified: Sequence[str] | None
    """The receivers that know; ``None`` if that is unknown."""
    advice: Advice


class RuleRow(NamedTuple):
    """A condition of the app. Durations are seconds."""

    name: str
    off: bool
    threshold: float
    unit: str
    lasting: float
    clearing: float
    severity: str
    changed: bool
    """Whether it differs from the default."""


class SilenceRow(NamedTuple):
    """A silence. Times are milliseconds since the epoch, ``None`` is open."""

    alert: str | None
    subject: str | None
    start: int | None
    stop: int | None
    state: str
    """``holds``, ``later`` or ``over``."""


class Declared(NamedTuple):
    """What a program, or its file of alerts, declares."""

    rules: Sequence[RuleRow]
    receivers: Sequence[tuple[str, str]]
    """Names and kinds."""
    silences: Sequence[SilenceRow]
    file: str | None


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def alerts(request: Request) -> Response:
        app = console.app(request)
        exists = alerts_topic(app.name) in console.cluster.topics
        broker = console.collector.broker
        topic = (
            console.lookups.get(
                ("alerts", app.name), lambda: read_alerts(broker, app.name), keep=READ_SECONDS
            )
            if exists
            else None
        )
        program = app.program
        declared = (
            None
            if program is None
            else console.lookups.get(("declared", app.name), lambda: declared_by(program), keep=READ_SECONDS)
        )
        rows = _rows(app, None if topic is None else topic.value)
        pages = {page.name for page in console.pages}
        return console.render(
            request,
            "alerts.html",
            page="alerts",
            title="Alerts",
            app=app,
            firing=[row for row in rows if row.state == AlertState.FIRING.value],
            pending=[row for row in rows if row.state == AlertState.PENDING.value],
            cleared=[row for row in rows if row.state == AlertState.CLEARED.value],
            exists=exists,
            cluster=console.cluster,
            topic=topic,
            declared=declared,
            pages=pages,
            titles={page.name: page.title for page in console.pages},
        )

    return [console.get("/apps/{app}/alerts", alerts)]


def _rows(app: AppSnapshot, read: Sequence[Alert] | None) -> list[AlertRow]:
    """What the topic says; of an app whose topic could not be read, what its workers say."""
    if read is None:
        return [
            AlertRow(
                item.alert,
                item.subject,
                AlertState.FIRING.value,
                item.severity,
                item.sentence,
                item.since,
                item.raised,
                None,
                item.silenced,
                None,
                _advice(item.alert),
            )
            for item in app.alerts
        ]
    ordered = sorted(
        read,
        key=lambda item: (
            ORDER.index(item.state) if item.state in ORDER else len(ORDER),
            item.severity != "critical",
            item.since,
        ),
    )
    return [
        AlertRow(
            item.alert.value,
            item.subject,
            item.state.value,
            item.severity,
            item.sentence,
            item.since,
            item.raised,
            item.cleared,
            item.silenced,
            item.cleared_to if item.state is AlertState.CLEARED else item.raised_to,
            ADVICE[item.alert],
        )
        for item in ordered
    ]


def _advice(name: str) -> Advice:
    try:
        return ADVICE[AlertName(name)]
    except ValueError:
        # A worker of a later version has alerts that this one does not know.
        return Advice("overview", {}, "What is known of the app.")


def declared_by(program: App) -> Declared | None:
    """The rules, receivers and silences of a program; ``None`` if it has no alerts.

    Raises ``ConfigurationError`` for a file that cannot be used.
    """
    configured = configured_alerts(program)
    if configured is None:
        return None
    alerts, goal = configured.current(), program.settings.waiting_goal
    rules = effective_rules(alerts, goal)
    now = time.time_ns() // 1_000_000
    path = program.settings.alerts_file
    rows = []
    for name, default in DEFAULTS.items():
        standard = default._replace(threshold=goal) if name is AlertName.BEHIND else default
        rule = rules.get(name, standard)
        rows.append(
            RuleRow(
                name.value,
                name not in rules,
                rule.threshold,
                _unit(name),
                rule.lasting / 1000,
                rule.clearing / 1000,
                rule.severity,
                rule != standard,
            )
        )
    return Declared(
        rows,
        [(receiver.name, type(receiver).__name__) for receiver in alerts.receivers],
        [_silence(silence, now) for silence in alerts.silences],
        None if path is None else str(path),
    )


def _unit(name: AlertName) -> str:
    if name in SECONDS:
        return "s"
    return {
        AlertName.DEAD_LETTER_SHARE: "of the records",
        AlertName.SLOT_UNHEALTHY: "bytes",
        AlertName.RESTORE_LONG: "records",
        AlertName.LEDGER_DIFFERENCE: "records",
        AlertName.STALLED: "partitions",
        AlertName.REBALANCE_STORM: "changes",
        AlertName.CONNECTOR_UNAVAILABLE: "workers",
        AlertName.CONDITION_UNKNOWN: "workers",
    }.get(name, "")


def _silence(silence: Silence, now: int) -> SilenceRow:
    start = None if silence.start is None else round(silence.start.timestamp() * 1000)
    stop = None if silence.stop is None else round(silence.stop.timestamp() * 1000)
    state = (
        "later"
        if start is not None and now < start
        else "over"
        if stop is not None and now >= stop
        else "holds"
    )
    return SilenceRow(silence.alert, silence.subject, start, stop, state)


ALERTS: Final = Page("alerts", "Alerts", of_app=True, routes=routes)
