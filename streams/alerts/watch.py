"""Decides about the alerts of an app, and has its receivers notified: one worker does it for all of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

import msgspec

from streams.alerts.alert import Alert, AlertKey, AlertState, advance
from streams.alerts.conditions import Conditions, unknown
from streams.alerts.declared import effective_rules, sender_of, silenced
from streams.alerts.delivery import FIRST_BACKOFF, Delivery
from streams.alerts.figures import covers
from streams.alerts.rules import DEFAULTS, AlertName
from streams.alerts.topics import AlertTopics
from streams.errors import BrokerUnreachable, Retriable
from streams.events import Event, get_logger
from streams.monitoring.worker_report import FiringAlert

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.alerts.configured import Configured
    from streams.alerts.declared import Alerts
    from streams.alerts.figures import WorkerFigures
    from streams.broker import Broker

ROUND_SECONDS = 5.0
"""How often a worker reports what it knows, and alerts are decided."""

SILENT_ROUNDS = 3.5
"""A worker that was not heard of for so many rounds does not run."""

CLOSE_SECONDS = 3.0
"""How long the end of a worker waits for its farewell."""


UNKNOWN = AlertKey(AlertName.CONDITION_UNKNOWN, "")

LATE_ATTEMPTS = 3
"""How often the record of an alert that could not be written is written if others write it, too."""


class AlertWatch:
    """A worker's part in the alerts of its app, or that of a program that watches the app from outside.

    Each worker reports its figures to the others. Of those that have reported lately, the one with the lowest
    name decides for all: alerts are about the app. While no worker was heard of, a program that watches the
    app from outside does. All that is decided is in the topic, so whoever decides next continues.

    ``expected`` returns the partitions of the app's input, by topic. ``goal`` is the app's ``waiting_goal``.
    """

    def __init__(
        self,
        broker: Broker,
        application: str,
        name: str,
        configured: Configured,
        *,
        figures: Callable[[], WorkerFigures],
        expected: Callable[[], Mapping[str, int]],
        goal: float,
        seconds: float = ROUND_SECONDS,
        backoff: float = FIRST_BACKOFF,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._application = application
        self._name = name
        self._configured = configured
        self._figures = figures
        self._expected = expected
        self._goal = goal
        self._seconds = seconds
        self._backoff = backoff
        self._clock = clock
        self._wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._topics = AlertTopics(broker, application, clock=clock, wall_clock=self._wall_clock)
        self._leads_since: float | None = None
        self._deliveries: dict[str, Delivery] = {}
        self._alerts: Alerts | None = None
        self._stop = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._last: dict[AlertKey, Alert] | None = None
        """The topic's alerts after the last round, if this worker decided in it."""
        self._unwritten: Alert | None = None
        """The alert that the broker does not answer, which cannot be in the topic meanwhile."""
        self._log = get_logger()
        self.firing: Sequence[FiringAlert] = ()
        """What fires, by the topic; any thread may read it."""
        self.leads = False
        """Whether this one decides; any thread may read it."""

    # --- life

    def start(self) -> None:
        """Begin, in a thread. Raises ``BrokerError`` and ``ConfigurationError``."""
        self.prepare()
        self._thread = threading.Thread(target=self._run, name="streams-alerts", daemon=True)
        self._thread.start()

    def prepare(self) -> None:
        """Check the receivers and create the topics. Raises ``BrokerError`` and ``ConfigurationError``."""
        self._use(self._configured.current())
        self._topics.create()

    def close(self) -> None:
        """Stop. What receivers do not know yet, the next worker that decides sends them."""
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        for delivery in self._deliveries.values():
            delivery.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop:
            self._wake.clear()
            self.attempt()
            self._wake.wait(self._seconds)
        try:
            self._topics.write_figures(self._name, None)
            self._topics.close()
        except Exception as error:  # noqa: BLE001 - the others notice by its silence
            self._note_failure(error)

    def attempt(self) -> None:
        """Have a round; it is known what to do if that fails."""
        try:
            self.round()
            self._failure = ""
        except Exception as error:  # noqa: BLE001 - if this thread ended, no alert would be raised any more
            self.leads, self._leads_since = False, None
            self._note_failure(error)
            self._decide_without_broker()

    def _note_failure(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if reason != self._failure:
            self._failure = reason
            self._log.warning(Event.ALERTS_FAILED, error=reason)
        if not isinstance(error, Retriable | BrokerUnreachable):
            self._topics.forget()

    def _news(self) -> None:
        self._wake.set()

    # --- rounds

    def round(self) -> None:
        """Tell, read, decide, notify. Raises ``BrokerError``."""
        self._use(self._configured.current())
        own = self._figures()
        self._topics.write_figures(self._name, own)
        self._topics.read()
        self._write_late()
        heard = self._heard() | {self._name: own}
        workers = {name: item for name, item in heard.items() if not item.watching}
        self.leads = self._name == min(workers or heard)
        if not self.leads:
            self._leads_since = None
        elif self._leads_since is None:
            self._leads_since = self._clock()
        if self.leads:
            self._decide(list(workers.values()))
        # One that was on its way when another worker took over has arrived all the same.
        self._note_deliveries()
        self._notify(self._topics_alerts() if self.leads else {})
        self._last = self._topics_alerts() if self.leads and not own.watching else None
        self.firing = [
            _firing(item) for item in self._topics_alerts().values() if item.state is AlertState.FIRING
        ]

    def _heard(self) -> dict[str, WorkerFigures]:
        """The figures of the workers that run, by their names."""
        oldest = self._clock() - SILENT_ROUNDS * self._seconds
        workers = self._topics.workers
        for name in [name for name, item in workers.items() if item.time <= oldest]:
            # One that was only frozen is heard of again.
            del workers[name]
        return {name: item.figures for name, item in workers.items()}

    def _topics_alerts(self) -> dict[AlertKey, Alert]:
        return {key: item.alert for key, item in self._topics.alerts.items()}

    def _decide(self, figures: Sequence[WorkerFigures]) -> None:
        alerts = self._declared()
        rules = effective_rules(alerts, self._goal)
        now = self._wall_clock()
        symptoms = Conditions(self._application, rules, goal=self._goal).holding(figures, now)
        certain = bool(figures) and covers(figures, self._expected())
        for key in list({**self._topics.alerts, **symptoms}):
            known = self._topics.alerts.get(key)
            before = None if known is None else known.alert
            # An alert that was switched off while it fired is cleared.
            off = key.name not in rules
            rule = DEFAULTS[key.name]._replace(clearing=0) if off else rules[key.name]
            after = advance(
                before,
                symptoms.get(key),
                app=self._application,
                rule=rule,
                # That there are workers is certain if one decides.
                certain=certain or off or (bool(figures) and key.name is AlertName.NO_WORKERS),
                now=now,
            )
            if after is not None and after.state is not AlertState.CLEARED:
                quiet = silenced(alerts, key, now)
                if quiet != after.silenced:
                    after = msgspec.structs.replace(after, silenced=quiet)
            if after is not before:
                self._write(key, before, after)

    def _write(self, key: AlertKey, before: Alert | None, after: Alert | None) -> None:
        if after is not None:
            after = msgspec.structs.replace(after, worker=self._name)
        if not self._topics.write(key, after) or after is None:
            return
        self._log_change(key, before, after)

    def _log_change(self, key: AlertKey, before: Alert | None, after: Alert) -> None:
        if before is not None and after.state is before.state:
            return
        fields = {"alert": str(key), "severity": after.severity, "sentence": after.sentence}
        if after.state is AlertState.FIRING:
            self._log.warning(Event.ALERT_RAISED, **fields, silenced=after.silenced)
        elif after.state is AlertState.CLEARED:
            seconds = ((after.cleared or 0) - (after.raised or 0)) / 1000
            self._log.info(Event.ALERT_CLEARED, **fields, seconds=round(seconds))

    # --- without a broker

    def _decide_without_broker(self) -> None:
        """Raise that the broker does not answer, if this worker has decided until now.

        That is in the topic only once the broker answers again. The other workers cannot know what this one
        does, so they do nothing.
        """
        if self._last is None:
            self._notify({})
            return
        alerts, now = self._declared(), self._wall_clock()
        rule = effective_rules(alerts, self._goal).get(AlertName.CONDITION_UNKNOWN)
        if rule is not None:
            before = self._unwritten or self._last.get(UNKNOWN)
            symptom = unknown(self._application, 1)
            after = advance(before, symptom, app=self._application, rule=rule, certain=True, now=now)
            assert after is not None, "its condition holds"
            for name, delivery in self._deliveries.items():
                for item in delivery.delivered():
                    if item.occurrence == after.occurrence:
                        after = after.notified(name, item.state)
            after = msgspec.structs.replace(after, worker=self._name, silenced=silenced(alerts, UNKNOWN, now))
            self._log_change(UNKNOWN, before, after)
            self._unwritten = self._last[UNKNOWN] = after
        for name, delivery in self._deliveries.items():
            delivery.want(
                {
                    key: alert
                    for key, alert in self._last.items()
                    if alert.unnotified(name) and alert.worker == self._name
                }
            )

    def _write_late(self) -> None:
        """Write what was raised while the broker did not answer: it is cleared like any other alert."""
        alert, self._unwritten = self._unwritten, None
        if alert is None or alert.state is not AlertState.FIRING:
            return
        for _ in range(LATE_ATTEMPTS):
            if self._topics.write(UNKNOWN, alert):
                return

    # --- receivers

    def _declared(self) -> Alerts:
        assert self._alerts is not None, "a round begins with what is configured"
        return self._alerts

    def _use(self, alerts: Alerts) -> None:
        """Notify these receivers from now on. Raises ``ConfigurationError`` if one cannot be used."""
        if alerts is self._alerts:
            return
        senders = {receiver.name: sender_of(receiver) for receiver in alerts.receivers}
        for delivery in self._deliveries.values():
            delivery.close()
        self._alerts = alerts
        self._deliveries = {
            name: Delivery(name, sender, self._news, backoff=self._backoff, clock=time.monotonic)
            for name, sender in senders.items()
        }
        for delivery in self._deliveries.values():
            delivery.start()

    def _note_deliveries(self) -> None:
        """Note in the topic who knows what."""
        for name, delivery in self._deliveries.items():
            for item in delivery.delivered():
                known = self._topics.alerts.get(item.key)
                if known is not None and known.alert.occurrence == item.occurrence:
                    self._topics.write(item.key, known.alert.notified(name, item.state))

    def _notify(self, alerts: Mapping[AlertKey, Alert]) -> None:
        """Have receivers notified of what they do not know yet."""
        now = self._clock()
        for name, delivery in self._deliveries.items():
            delivery.want(
                {
                    key: alert
                    for key, alert in alerts.items()
                    if alert.unnotified(name) and self._may_notify(alert, self._topics.alerts[key].read, now)
                }
            )

    def _may_notify(self, alert: Alert, read: float, now: float) -> bool:
        """Whether no other worker may be about to: one that has decided, or still believes that it does."""
        since = max(read, now if self._leads_since is None else self._leads_since)
        return alert.worker == self._name or now - since > SILENT_ROUNDS * self._seconds

    # --- figures for others

    def counts(self) -> dict[str, int] | None:
        """How many alerts of each name fire; ``None`` if this one does not decide. From any thread."""
        if not self.leads:
            return None
        counts = Counter(item.alert for item in self.firing)
        off = self._declared().off
        return {name.value: counts[name] for name in AlertName if counts[name] or name not in off}


def _firing(alert: Alert) -> FiringAlert:
    return FiringAlert(
        alert=alert.alert.value,
        subject=alert.subject,
        severity=alert.severity,
        sentence=alert.sentence,
        since=alert.since,
        raised=alert.raised,
        silenced=alert.silenced,
    )
