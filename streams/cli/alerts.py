"""``streams alerts``: what fires, a watch for an app without workers, and a test of the receivers."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from streams.alerts.alert import Alert, AlertState
from streams.alerts.declared import sender_of
from streams.alerts.figures import outside_figures
from streams.alerts.notification import Notification
from streams.alerts.rules import AlertName
from streams.alerts.topics import read_alerts
from streams.alerts.watch import AlertWatch
from streams.app import configured_alerts
from streams.cli.apps import load_app
from streams.cli.letter_lines import iso_time
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import out, print_line
from streams.errors import ConfigurationError, ConnectorUnavailable
from streams.events import configure_logging
from streams.process.stop_request import stop_request
from streams.redaction import scrub

if TYPE_CHECKING:
    from streams.alerts.configured import Configured
    from streams.app import App

alerts_cli = typer.Typer(
    help="List the alerts of an app, watch it from outside, and test who is notified.", no_args_is_help=True
)

LOOK_SECONDS = 0.2

ORDER = [AlertState.FIRING, AlertState.PENDING, AlertState.CLEARED]


@alerts_cli.command("list")
def list_alerts(target: Target, *, bootstrap_servers: Servers = None, as_json: AsJson = False) -> None:
    """List the alerts that fire, are pending, or were cleared within the last minutes.

    It reads the topic and needs no workers.
    """
    app = _app(target, bootstrap_servers)
    found = sorted(
        read_alerts(app.broker(), app.name),
        key=lambda item: (ORDER.index(item.state), item.since),
    )
    if as_json:
        for item in found:
            print_line({**msgspec.to_builtins(Notification.of(item)), "silenced": item.silenced})
        return
    for item in found:
        _say(_line(item))
    if not found:
        _say("nothing fires")


@alerts_cli.command("watch")
def watch(target: Target, *, bootstrap_servers: Servers = None) -> None:
    """Raise StreamsNoWorkers while the app has no workers, until Ctrl-C or SIGTERM.

    It notifies the app's receivers, also of what its last worker could not tell them any more. Several may
    run: one of them notifies. While there are workers, these raise and clear all alerts.
    """
    app, configured = _with_alerts(target, bootstrap_servers)
    configure_logging(app.settings.log_format, app.settings.log_level)
    name = f"watch-{socket.gethostname()}-{os.getpid()}"
    with (
        stop_request() as stop,
        AlertWatch(
            app.broker(),
            app.name,
            name,
            configured,
            figures=outside_figures,
            expected=dict,
            goal=app.settings.waiting_goal,
        ),
    ):
        while not stop:
            time.sleep(LOOK_SECONDS)


@alerts_cli.command("test")
def notify_all(
    target: Target,
    *,
    receiver: Annotated[str | None, typer.Option(help="This receiver only, by its name.")] = None,
) -> None:
    """Send an alert to each receiver, and say whether it was taken. Nothing is raised."""
    _, configured = _with_alerts(target, None)
    app = load_app(target)
    receivers = [item for item in configured.current().receivers if receiver in (None, item.name)]
    if not receivers:
        names = ", ".join(item.name for item in configured.current().receivers)
        raise ConfigurationError(
            f"no such receiver of alerts of {app.name!r}" if receiver else f"{app.name!r} has no receivers",
            hint=f"receivers are: {names or 'none'}",
        )
    now = time.time_ns() // 1_000_000
    alert = Alert(
        app=app.name,
        alert=AlertName.BEHIND,
        subject="test",
        state=AlertState.FIRING,
        severity="warning",
        sentence=f"This is a test of the alerts of app {app.name}. Nothing is wrong.",
        value=0,
        threshold=app.settings.waiting_goal,
        since=now,
        raised=now,
    )
    results = Counter[bool]()
    for item in receivers:
        try:
            sender_of(item).send(alert)
        except Exception as error:  # noqa: BLE001 - what a receiver may raise is what is asked for
            _say(f"{item.name}: {scrub(f'{type(error).__name__}: {error}')}")
            results[False] += 1
        else:
            _say(f"{item.name}: sent")
            results[True] += 1
    if results[False]:
        raise ConnectorUnavailable(f"{results[False]} of {results.total()} receivers were not notified")


def _line(alert: Alert) -> str:
    """An alert in one line."""
    since = alert.cleared if alert.state is AlertState.CLEARED else alert.raised or alert.since
    notified = alert.cleared_to if alert.state is AlertState.CLEARED else alert.raised_to
    notes = [f"notified: {', '.join(notified)}"] if notified else []
    notes += ["silenced"] if alert.silenced else []
    text = (
        f"{alert.state.value} since {iso_time(since or 0)}: {alert.key} ({alert.severity}): {alert.sentence}"
    )
    text += f" [{'; '.join(notes)}]" if notes else ""
    return text


def _say(text: str) -> None:
    """Print one line, without what a terminal would obey."""
    line = "".join(mark if mark.isprintable() else " " for mark in text)
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def _app(target: str, bootstrap_servers: str | None) -> App:
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    return load_app(target)


def _with_alerts(target: str, bootstrap_servers: str | None) -> tuple[App, Configured]:
    app = _app(target, bootstrap_servers)
    configured = configured_alerts(app)
    if configured is None:
        raise ConfigurationError(
            f"app {app.name!r} has no alerts", hint="App(…, alerts=Alerts(…)), or the setting alerts_file"
        )
    return app, configured
