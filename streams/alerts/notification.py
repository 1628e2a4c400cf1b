"""What a receiver is sent about an alert."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from streams.alerts.alert import Alert, AlertState
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = "docs/alerts.md"
"""Where it says what to do about each alert."""


class Sender(Protocol):
    """Notifies a receiver. Used by one thread, which nothing waits for."""

    def send(self, alert: Alert) -> None:
        """Notify it of the alert's state. Raises any exception if that is not certain to have arrived."""


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON document about an alert that was raised or cleared. Times are milliseconds since the epoch."""

    id: str
    """The same for the notifications of one raise and its clearing, however often they are sent."""
    app: str
    alert: str
    subject: str
    state: str
    """``firing`` or ``cleared``."""
    severity: str
    sentence: str
    value: float
    threshold: float
    since: int
    raised: int | None
    cleared: int | None
    page: str

    @classmethod
    def of(cls, alert: Alert) -> Notification:
        """What is sent about this alert."""
        return cls(
            id=alert.occurrence,
            app=alert.app,
            alert=alert.alert.value,
            subject=alert.subject,
            state=alert.state.value,
            severity=alert.severity,
            sentence=alert.sentence,
            value=alert.value,
            threshold=alert.threshold,
            since=alert.since,
            raised=alert.raised,
            cleared=alert.cleared,
            page=f"{PAGE}#{alert.alert.value.lower()}",
        )


def title(alert: Alert) -> str:
    """One line: which app, what, and whether it is over."""
    over = "cleared" if alert.state is AlertState.CLEARED else alert.severity
    return f"[{alert.app}] {over}: {alert.key}"


def text(alert: Alert) -> str:
    """The same as plain text for people."""
    lines = [
        alert.sentence,
        "",
        f"alert:     {alert.key}",
        f"app:       {alert.app}",
        f"severity:  {alert.severity}",
        f"value:     {alert.value:g} (threshold {alert.threshold:g})",
        f"since:     {_time(alert.since)}",
        f"raised:    {_time(alert.raised)}",
    ]
    if alert.cleared is not None:
        lines.append(f"cleared:   {_time(alert.cleared)}")
    lines += [f"id:        {alert.occurrence}", f"what to do: {PAGE}#{alert.alert.value.lower()}"]
    return "\n".join(lines) + "\n"


def from_environment(variable: str, receiver: str, environment: Mapping[str, str] | None = None) -> str:
    """The value of a variable that a receiver needs. Raises ``ConfigurationError`` without it."""
    value = (os.environ if environment is None else environment).get(variable, "")
    if not value:
        raise ConfigurationError(
            f"receiver {receiver!r} of alerts: the environment variable {variable} is not set",
            hint="set it wherever workers run and for streams alerts, or take the receiver out",
        )
    return value


def _time(milliseconds: int | None) -> str:
    seconds = (milliseconds or 0) / 1000
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
