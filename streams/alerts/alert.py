"""An alert, its life cycle, and what decides about it: a pure function of what is observed and of time.

::

    inactive ──► pending ──► firing ──► cleared
        ▲           │                    │   │
        └───────────┴────────────────────┘   └──► pending

An alert is its record in the topic of alerts; an inactive one has none. So a worker that takes over knows
since when conditions hold, which alerts fire, and who was notified.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from streams.alerts.rules import AlertName  # noqa: TC001 - msgspec reads the annotations
from streams.structs import decodable

if TYPE_CHECKING:
    from streams.alerts.rules import Rule

CLEARED_KEPT = 10 * 60_000
"""For how long an alert that was cleared stays in the topic, in milliseconds, for those who read it late."""

UNDELIVERED_KEPT = 60 * 60_000
"""The same for one of which a receiver does not know yet that it was cleared."""


class AlertState(Enum):
    """Where an alert is in its life."""

    INACTIVE = "inactive"
    """Its condition does not hold."""
    PENDING = "pending"
    """It holds, not for long enough yet."""
    FIRING = "firing"
    """It has held for long enough: the alert is raised, and is cleared once the condition is gone."""
    CLEARED = "cleared"
    """It fired and does not any more."""


NEXT = {
    AlertState.INACTIVE: {AlertState.PENDING},
    AlertState.PENDING: {AlertState.FIRING, AlertState.INACTIVE},
    AlertState.FIRING: {AlertState.CLEARED},
    AlertState.CLEARED: {AlertState.PENDING, AlertState.INACTIVE},
}
"""What may follow each state."""


class AlertKey(NamedTuple):
    """What identifies an alert of an app."""

    name: AlertName
    subject: str
    """The topic, schedule, source or connector that it is about; empty if it is about the app."""

    def __str__(self) -> str:
        return f"{self.name}/{self.subject}" if self.subject else self.name.value


class Symptom(NamedTuple):
    """A condition that holds now."""

    key: AlertKey
    value: float
    sentence: str


@decodable
class Alert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alert, as its record in the topic has it. Times are milliseconds since the epoch."""

    app: str
    alert: AlertName
    subject: str = ""
    state: AlertState
    severity: str
    sentence: str
    """What is wrong, with the value when the alert was raised."""
    value: float
    threshold: float
    since: int
    """Since when the condition has held."""
    raised: int | None = None
    cleared: int | None = None
    absent_since: int | None = None
    """While it fires: since when the condition has been gone."""
    silenced: bool = False
    """Whether receivers are not notified of it, by a silence."""
    raised_to: tuple[str, ...] = ()
    """The receivers that know that it was raised."""
    cleared_to: tuple[str, ...] = ()
    """Those that know that it was cleared."""
    revision: int = 1
    """One more than that of the record that it replaces: of two that replace the same, the first counts."""
    worker: str = ""
    """Who wrote the record."""

    @property
    def key(self) -> AlertKey:
        return AlertKey(self.alert, self.subject)

    @property
    def occurrence(self) -> str:
        """Identifies this raise of the alert, for receivers that are notified twice."""
        return f"{self.app}/{self.key}/{self.raised}"

    def unnotified(self, receiver: str) -> bool:
        """Whether a receiver does not know the alert's state yet and is to be notified of it."""
        if self.state is AlertState.FIRING:
            return not self.silenced and receiver not in self.raised_to
        if self.state is AlertState.CLEARED:
            return receiver in self.raised_to and receiver not in self.cleared_to
        return False

    def notified(self, receiver: str, state: AlertState) -> Alert:
        """The alert once a receiver knows that it was raised (``FIRING``), or cleared."""
        if state is AlertState.FIRING:
            return msgspec.structs.replace(self, raised_to=tuple(sorted({*self.raised_to, receiver})))
        return msgspec.structs.replace(self, cleared_to=tuple(sorted({*self.cleared_to, receiver})))


def advance(
    alert: Alert | None, symptom: Symptom | None, *, app: str, rule: Rule, certain: bool, now: int
) -> Alert | None:
    """What becomes of an alert (``None`` is an inactive one) at ``now``: the same object if nothing does.

    ``symptom`` is its condition, if that holds. That it does not hold counts only if it is ``certain``: while
    partitions move, no worker knows what they are like.
    """
    if symptom is not None:
        return _held(alert, symptom, app=app, rule=rule, now=now)
    if alert is None or not certain:
        # What is not known is not gone: the time for which it was must begin again.
        return alert if alert is None or alert.absent_since is None else _replace(alert, absent_since=None)
    match alert.state:
        case AlertState.PENDING:
            _check(alert, AlertState.INACTIVE)
            return None
        case AlertState.FIRING:
            # A clock may have been set back since.
            since = now if alert.absent_since is None else min(alert.absent_since, now)
            if now - since >= rule.clearing:
                return _enter(alert, AlertState.CLEARED, cleared=now, absent_since=None)
            return alert if since == alert.absent_since else _replace(alert, absent_since=since)
        case _:
            return _after_clearing(alert, now)


def _held(alert: Alert | None, symptom: Symptom, *, app: str, rule: Rule, now: int) -> Alert:
    if alert is not None and alert.state is AlertState.FIRING:
        return alert if alert.absent_since is None else _replace(alert, absent_since=None)
    if alert is None or alert.state is AlertState.CLEARED:
        _check(alert, AlertState.PENDING)
        alert = Alert(
            app=app,
            alert=symptom.key.name,
            subject=symptom.key.subject,
            state=AlertState.PENDING,
            severity=rule.severity,
            sentence=symptom.sentence,
            value=symptom.value,
            threshold=rule.threshold,
            since=now,
            revision=1 if alert is None else alert.revision,
        )
    elif alert.since > now:
        alert = _replace(alert, since=now)
    if now - alert.since < rule.lasting:
        return alert
    return _enter(
        alert,
        AlertState.FIRING,
        raised=now,
        sentence=symptom.sentence,
        value=symptom.value,
        threshold=rule.threshold,
        severity=rule.severity,
    )


def _after_clearing(alert: Alert, now: int) -> Alert | None:
    cleared = alert.cleared or 0
    kept = UNDELIVERED_KEPT if set(alert.raised_to) - set(alert.cleared_to) else CLEARED_KEPT
    if cleared > now:
        return _replace(alert, cleared=now)
    if now - cleared < kept:
        return alert
    _check(alert, AlertState.INACTIVE)
    return None


def _replace(alert: Alert, **changes: object) -> Alert:
    return msgspec.structs.replace(alert, **changes)


def _enter(alert: Alert, state: AlertState, **changes: object) -> Alert:
    _check(alert, state)
    return _replace(alert, state=state, **changes)


def _check(alert: Alert | None, state: AlertState) -> None:
    before = AlertState.INACTIVE if alert is None else alert.state
    assert state in NEXT[before], f"an alert that is {before.value} cannot become {state.value}"
