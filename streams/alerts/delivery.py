"""Notifies one receiver, in a thread of its own: one that hangs delays nothing but its own notifications."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from streams.events import Event, get_logger
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.alerts.alert import Alert, AlertKey, AlertState
    from streams.alerts.notification import Sender

FIRST_BACKOFF = 1.0
"""Seconds after a failure until the next attempt; doubled with each further failure."""

LONGEST_BACKOFF = 120.0


class Delivered(NamedTuple):
    """What a receiver knows."""

    key: AlertKey
    occurrence: str
    state: AlertState


class Delivery:
    """Notifies a receiver of what it does not know yet.

    It never has more to send than there are alerts: a notification that was not sent is replaced by the next
    one about the same alert. ``news`` is called after each that was delivered.
    """

    def __init__(
        self,
        name: str,
        sender: Sender,
        news: Callable[[], None],
        *,
        backoff: float = FIRST_BACKOFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._sender = sender
        self._news = news
        self._backoff = backoff
        self._clock = clock
        self._changed = threading.Condition()
        self._wanted: dict[Delivered, Alert] = {}
        self._delivered: list[Delivered] = []
        self._closed = False
        self._failures = 0
        self._failure = ""
        self._next = -float("inf")
        self._log = get_logger()

    def start(self) -> None:
        """Begin, in a thread."""
        threading.Thread(target=self._run, name=f"streams-alerts-{self.name}", daemon=True).start()

    def close(self) -> None:
        """End, without waiting for a notification that is on its way."""
        with self._changed:
            self._closed = True
            self._wanted.clear()
            self._changed.notify()

    def want(self, alerts: Mapping[AlertKey, Alert]) -> None:
        """Notify of these alerts, and of no others any more."""
        with self._changed:
            wanted = {Delivered(key, item.occurrence, item.state): item for key, item in alerts.items()}
            # What it knows, and is not noted in the topic yet, must not be sent again.
            self._delivered = [item for item in self._delivered if item in wanted]
            self._wanted = {item: alert for item, alert in wanted.items() if item not in self._delivered}
            self._changed.notify()

    def delivered(self) -> list[Delivered]:
        """What was delivered and is still wanted by the last call of ``want``."""
        with self._changed:
            return list(self._delivered)

    def _run(self) -> None:
        while (item := self._await()) is not None:
            self._attempt(*item)

    def _await(self) -> tuple[Delivered, Alert] | None:
        """The next notification, once its time has come; ``None`` at the end."""
        with self._changed:
            while not self._closed:
                wait = self._next - self._clock()
                if self._wanted and wait <= 0:
                    return next(iter(self._wanted.items()))
                self._changed.wait(wait if self._wanted else None)
            return None

    def _attempt(self, item: Delivered, alert: Alert) -> None:
        try:
            self._sender.send(alert)
        except Exception as error:  # noqa: BLE001 - whatever it is, the receiver does not know of the alert
            self._fail(alert, error)
            return
        with self._changed:
            self._failures, self._failure, self._next = 0, "", -float("inf")
            self._wanted.pop(item, None)
            self._delivered.append(item)
        self._news()

    def _fail(self, alert: Alert, error: Exception) -> None:
        reason = scrub(f"{type(error).__name__}: {error}")[:300]
        with self._changed:
            delay = min(LONGEST_BACKOFF, self._backoff * 2 ** min(self._failures, 10))
            self._failures += 1
            self._next = self._clock() + delay
            known, self._failure = reason == self._failure, reason
        if not known:
            self._log.warning(
                Event.ALERT_NOT_DELIVERED, receiver=self.name, alert=str(alert.key), error=reason
            )
