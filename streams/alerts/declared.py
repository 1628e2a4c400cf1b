"""The alerts of an app as its program or a file declares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from streams.alerts.mail import Email, email_sender
from streams.alerts.rules import DEFAULTS, AlertName, AlertRule, Rule, alert_name
from streams.alerts.webhook import Webhook, webhook_sender
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.alerts.alert import AlertKey
    from streams.alerts.notification import Sender

Receiver: TypeAlias = Webhook | Email

MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Notify no receiver of the alerts named ``alert``, about ``subject``, from ``start`` to ``stop``.

    What is not given selects all. Silenced alerts are still in the topic, the log and ``/status``. If one
    fires when its silence ends, receivers are notified then. Times have a zone. Raises
    ``ConfigurationError``.
    """

    alert: str | None = None
    subject: str | None = None
    start: datetime | None = None
    stop: datetime | None = None

    def __post_init__(self) -> None:
        if self.alert is not None:
            alert_name(self.alert, "Silence")
        for name, time in (("start", self.start), ("stop", self.stop)):
            given: object = time
            if given is not None and (not isinstance(given, datetime) or given.tzinfo is None):
                raise ConfigurationError(
                    f"Silence: {name} is a time with a zone, got {given!r:.80}",
                    hint="datetime(2026, 12, 24, 22, tzinfo=UTC), or in a file 2026-12-24T22:00:00Z",
                )
        if self.start is not None and self.stop is not None and self.start >= self.stop:
            raise ConfigurationError(f"Silence: stop {self.stop} is not after start {self.start}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Which alerts of an app are raised, and who is notified of them.

    All alerts go to the compacted topic ``<app>-alerts``, and those of ``receivers`` are notified when one is
    raised and when it is cleared. ``rules`` differ from the defaults, by the alert's name (see
    ``AlertName``), and alerts in ``off`` are never raised. Raises ``ConfigurationError``.
    """

    receivers: Sequence[Receiver] = ()
    rules: Mapping[str, AlertRule] = field(default_factory=dict)
    off: Sequence[str] = ()
    silences: Sequence[Silence] = ()

    def __post_init__(self) -> None:
        for name, rule in self.rules.items():
            alert_name(name, "Alerts: rules")
            _require(rule, AlertRule, f"Alerts: rules[{name!r}]")
        if isinstance(self.off, str):
            raise ConfigurationError(f"Alerts: off is a list of names, got the text {self.off!r:.80}")
        for name in self.off:
            alert_name(name, "Alerts: off")
        for receiver in self.receivers:
            _require(receiver, (Webhook, Email), "Alerts: receivers")
        for silence in self.silences:
            _require(silence, Silence, "Alerts: silences")
        names = [receiver.name for receiver in self.receivers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigurationError(
                f"Alerts: several receivers are named {', '.join(twice)}",
                hint="who was notified is known by the name: give each its own, name='…'",
            )


def effective_rules(alerts: Alerts, waiting_goal: float) -> dict[AlertName, Rule]:
    """The rules of the alerts that are not off."""
    found = {}
    for name, default in DEFAULTS.items():
        if name in alerts.off:
            continue
        rule = default._replace(threshold=waiting_goal) if name is AlertName.BEHIND else default
        own = alerts.rules.get(name)
        if own is not None:
            rule = rule._replace(
                threshold=rule.threshold if own.threshold is None else float(own.threshold),
                lasting=rule.lasting if own.lasting is None else own.lasting // MILLISECOND,
                clearing=rule.clearing if own.clearing is None else own.clearing // MILLISECOND,
            )
        found[name] = rule
    return found


def silenced(alerts: Alerts, key: AlertKey, now: int) -> bool:
    """Whether a silence holds for an alert at ``now``, in milliseconds since the epoch."""
    return any(_covers(silence, key, now) for silence in alerts.silences)


def sender_of(receiver: Receiver) -> Sender:
    """What notifies a receiver. Raises ``ConfigurationError`` if what it needs is not in the environment."""
    return webhook_sender(receiver) if isinstance(receiver, Webhook) else email_sender(receiver)


def _covers(silence: Silence, key: AlertKey, now: int) -> bool:
    return (
        silence.alert in (None, key.name.value)
        and silence.subject in (None, key.subject)
        and (silence.start is None or silence.start.timestamp() * 1000 <= now)
        and (silence.stop is None or now < silence.stop.timestamp() * 1000)
    )


def _require(value: object, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, kind):
        names = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigurationError(f"{what}: expected {names}, got {type(value).__name__}")
