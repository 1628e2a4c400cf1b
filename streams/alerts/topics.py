"""The topics of an app's alerts: what fires, and what each worker reports to the others.

Of two records that replace the same one, the first counts: so all who read the topic agree on what fires, and
a worker knows whether it was the one that raised an alert.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from streams.alerts.alert import Alert, AlertKey
from streams.alerts.figures import WorkerFigures
from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.broker.reading import read_to_end
from streams.errors import BrokerError, BrokerUnreachable
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.broker import Appender, Broker, Consumer
    from streams.records import Fetched

ALERT_SETTINGS = {"cleanup.policy": "compact", "segment.ms": str(24 * 3600 * 1000)}

FIGURE_SETTINGS = {
    "cleanup.policy": "compact,delete",
    "retention.ms": str(3600 * 1000),
    "segment.ms": str(600 * 1000),
}
"""What workers said is worth nothing after a minute."""

ANSWER_SECONDS = 10.0
"""How long the broker may take to write a record, or to deliver the topics' ends."""

LARGEST_RECORD = 1024 * 1024
"""The maximum size of a record, in bytes."""

S = TypeVar("S", Alert, WorkerFigures)


def alerts_topic(application: str) -> str:
    """The topic of an app's alerts."""
    return f"{application}-alerts"


def figures_topic(application: str) -> str:
    """The topic of what its workers tell each other for it."""
    return f"{application}-alert-figures"


class KnownAlert(NamedTuple):
    """An alert, and when its record was read, in seconds."""

    alert: Alert
    read: float


class Heard(NamedTuple):
    """A worker's figures, and when they were heard of, in seconds."""

    figures: WorkerFigures
    time: float


class AlertTopics:
    """Reads and writes both topics; used by one thread.

    ``clock`` returns seconds, ``wall_clock`` milliseconds since the epoch. Any client may write to them:
    records that cannot be decoded are left out.
    """

    def __init__(
        self,
        broker: Broker,
        application: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._broker = broker
        self._application = application
        self._alerts = TopicPartition(alerts_topic(application), 0)
        self._figures = TopicPartition(figures_topic(application), 0)
        self._clock = clock
        self._wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._appender: Appender | None = None
        self._consumer: Consumer | None = None
        self._position = 0
        """The offset up to which the topic of alerts was read."""
        self._behind: set[TopicPartition] = set()
        """Topics that were not read to their end since the reader began."""
        self.alerts: dict[AlertKey, KnownAlert] = {}
        self.workers: dict[str, Heard] = {}

    def create(self) -> None:
        """Create the topics that are missing, and check that they may be used. Raises ``BrokerError``."""
        admin = self._broker.admin()
        try:
            admin.create_topics(
                [
                    NewTopic(name=self._alerts.topic, partitions=1, settings=ALERT_SETTINGS),
                    NewTopic(name=self._figures.topic, partitions=1, settings=FIGURE_SETTINGS),
                ]
            )
            admin.require_rights(
                {self._alerts.topic: ["READ", "WRITE"], self._figures.topic: ["READ", "WRITE"]}
            )
        finally:
            admin.close()

    def read(self) -> None:
        """Read both topics to their ends. Raises ``BrokerError``."""
        consumer = self._reader()
        deadline = self._deadline()
        while True:
            polled = consumer.poll(1000, 0.1 if self._behind else 0.0)
            for fetched in polled.fetched:
                self._take(fetched)
            self._behind -= polled.ends.keys()
            if not self._behind and not polled.fetched:
                return
            self._require_time(deadline)

    def write(self, key: AlertKey, alert: Alert | None) -> bool:
        """Replace an alert's record, as it was last read, by this one, or delete it.

        Returns whether it counts: not if another worker has replaced it meanwhile. Raises ``BrokerError``.
        """
        known = self.alerts.get(key)
        if alert is None:
            self._append_alert(key, None)
            return True
        revision = 1 if known is None else known.alert.revision + 1
        alert = msgspec.structs.replace(alert, revision=revision)
        self._append_alert(key, alert)
        current = self.alerts.get(key)
        if current is not None and current.alert == alert:
            return True
        if current is not None:
            # Compaction keeps the last record of a key, which must be the one that counts.
            repeated = msgspec.structs.replace(current.alert, revision=current.alert.revision + 1)
            self._append_alert(key, repeated)
        return False

    def write_figures(self, worker: str, figures: WorkerFigures | None) -> None:
        """Tell the others what a worker knows; ``None`` once it ends. Raises ``BrokerError``."""
        self._append(self._figures, worker, None if figures is None else msgspec.json.encode(figures))

    def close(self) -> None:
        """Close the clients."""
        self.forget()
        appender, self._appender = self._appender, None
        if appender is not None:
            appender.close()

    def forget(self) -> None:
        """Read the topics from their beginnings the next time: the client's state is unknown."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(BrokerError):
                consumer.close()

    def _reader(self) -> Consumer:
        if self._consumer is None:
            self._consumer = self._broker.consumer(
                GroupSettings(group=self._alerts.topic, protocol="classic")
            )
            self.alerts.clear()
            self.workers.clear()
            self._position = 0
            self._behind = {self._alerts, self._figures}
            self._consumer.assign(dict.fromkeys(self._behind, BEGINNING))
        return self._consumer

    def _append_alert(self, key: AlertKey, alert: Alert | None) -> None:
        """Write a record, and read the topic up to it."""
        offset = self._append(self._alerts, str(key), None if alert is None else msgspec.json.encode(alert))
        consumer, deadline = self._reader(), self._deadline()
        while self._position <= offset:
            polled = consumer.poll(1000, 0.1)
            for fetched in polled.fetched:
                self._take(fetched)
            self._require_time(deadline)

    def _append(self, place: TopicPartition, key: str, value: bytes | None) -> int:
        if self._appender is None:
            self._appender = self._broker.appender(f"{self._application}-alerts")
        row = Output(place.topic, [key.encode()], [value], [self._wall_clock()], partition=place.partition)
        return self._appender.append(row, ANSWER_SECONDS)[0].offset

    def _deadline(self) -> float:
        return time.monotonic() + ANSWER_SECONDS

    def _require_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise BrokerUnreachable(
                f"{self._alerts.topic} and {self._figures.topic} could not be read "
                f"within {ANSWER_SECONDS:.0f} s"
            )

    def _take(self, fetched: Fetched) -> None:
        if fetched.topic == self._figures.topic:
            self._take_figures(fetched)
            return
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            _apply(self.alerts, key, value, self._clock())
        self._position = fetched.next_offset

    def _take_figures(self, fetched: Fetched) -> None:
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            name = (key or b"").decode(errors="replace")
            figures = _decoded(value, WorkerFigures)
            if figures is None:
                self.workers.pop(name, None)
                continue
            heard = self._clock()
            if self._figures in self._behind:
                # It was said before this reader began.
                heard -= max(0, self._wall_clock() - figures.time) / 1000
            self.workers[name] = Heard(figures, heard)


def read_alerts(broker: Broker, application: str) -> list[Alert]:
    """Read the alerts once, as another program. Raises ``TopicError`` without their topic."""
    known: dict[AlertKey, KnownAlert] = {}
    for fetched in read_to_end(broker, [alerts_topic(application)]):
        for key, value in zip(fetched.keys(), fetched.values(), strict=True):
            _apply(known, key, value, 0.0)
    return [item.alert for item in known.values()]


def _apply(known: dict[AlertKey, KnownAlert], key: bytes | None, value: bytes | None, now: float) -> None:
    """Apply a record of the topic of alerts to what is known."""
    alert = _decoded(value, Alert)
    if alert is None:
        name = (key or b"").decode(errors="replace")
        for gone in [item for item in known if str(item) == name]:
            del known[gone]
        return
    if str(alert.key).encode() != key:
        return
    before = known.get(alert.key)
    if before is None or alert.revision > before.alert.revision:
        known[alert.key] = KnownAlert(alert, now)


def _decoded(value: bytes | None, kind: type[S]) -> S | None:
    """A record's value; ``None`` for a tombstone and for what this app has not written."""
    if value is None or len(value) > LARGEST_RECORD:
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
