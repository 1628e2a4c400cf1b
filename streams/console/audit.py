"""What was done in the console: a record in a topic for each action, and in the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotation
from typing import TYPE_CHECKING, Final

import msgspec

from streams.broker import NewTopic
from streams.errors import BrokerError
from streams.events import Event, get_logger
from streams.records import Output
from streams.structs import decodable

if TYPE_CHECKING:
    from streams.broker import Broker

TOPIC: Final = "streams-console-audit"
WRITE_SECONDS: Final = 5.0


@decodable
class Action(msgspec.Struct, frozen=True, kw_only=True):
    """An action, as it is written before it is done, and again when it has ended."""

    time: int
    """In milliseconds since the epoch."""
    who: str
    """The user's name, if a proxy sends one, and the browser's address."""
    app: str
    action: str
    target: str
    details: dict[str, str]
    outcome: str
    """``begun``, ``done: …`` or ``failed: …``."""


class Audit:
    """Writes actions into the topic ``streams-console-audit``, which it creates with the first one.

    What cannot be recorded is not done: ``write`` raises ``BrokerError``.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._exists = False

    def write(
        self, *, who: str, app: str, action: str, target: str, details: Mapping[str, str], outcome: str
    ) -> None:
        """Write an action. Raises ``BrokerError`` if it could not be written."""
        entry = Action(
            time=time.time_ns() // 1_000_000,
            who=who,
            app=app,
            action=action,
            target=target,
            details=dict(details),
            outcome=outcome,
        )
        with self._lock:
            if not self._exists:
                admin = self._broker.admin()
                try:
                    admin.create_topics([NewTopic(name=TOPIC, partitions=1)])
                finally:
                    admin.close()
                self._exists = True
            producer = self._broker.producer()
            try:
                producer.produce(
                    Output(TOPIC, [app.encode()], [msgspec.json.encode(entry)], [entry.time], partition=0)
                )
                producer.flush(WRITE_SECONDS)
            except BrokerError:
                self._exists = False
                raise
            finally:
                producer.close()
        get_logger().info(
            Event.CONSOLE_ACTION, app=app, action=action, target=target, who=who, outcome=outcome
        )
