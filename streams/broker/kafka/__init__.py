"""Apache Kafka through confluent-kafka: the only package that uses this library and its error codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from streams.broker import BEGINNING, END, GroupSettings
from streams.broker.kafka.admin import KafkaAdmin
from streams.broker.kafka.appender import APPEND_SECONDS, KafkaAppender
from streams.broker.kafka.assignment_check import AssignmentCheck
from streams.broker.kafka.client_factory import ClientFactory, Settings
from streams.broker.kafka.client_settings import check_with_client, permitted
from streams.broker.kafka.consumer import KafkaConsumer
from streams.broker.kafka.producer import LARGEST_RECORD, KafkaProducer
from streams.broker.kafka.topic_rules import AllTopicRules
from streams.broker.kafka.writer import KafkaWriter
from streams.errors import BrokerError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker.throttling import Throttled

__all__ = ["KafkaAdmin", "KafkaAppender", "KafkaBroker", "KafkaConsumer", "KafkaProducer", "KafkaWriter"]

RECONNECT_MILLISECONDS: Final = 1_000
"""The longest time between attempts to connect to a broker, as in the Java clients; librdkafka has 10 s."""

TRANSACTION_RETRY_MILLISECONDS: Final = 10
"""The client's first backoff before it repeats a request of a transaction; later ones are longer."""


class KafkaBroker:
    """A Kafka cluster at ``servers``. ``settings`` are librdkafka's settings for all clients.

    Without ``servers``, the cluster is the setting ``bootstrap.servers``.

    ``consumer`` and ``producer`` are settings for those clients only. They override this library's tuning.
    Settings on which correctness depends raise ``ConfigurationError``, see ``client_settings``, and so do
    names that librdkafka does not know and values that it does not accept.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        servers: str | None = None,
        consumer: Mapping[str, Any] | None = None,
        producer: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(settings)
        addresses = servers or given.get("bootstrap.servers")
        if given.get("bootstrap.servers") == addresses:
            given.pop("bootstrap.servers", None)
        if not addresses:
            raise ConfigurationError(
                "no broker is configured", hint="set bootstrap_servers, e.g. localhost:9092"
            )
        given = permitted("client", given)
        self._consumer_settings = permitted("consumer", consumer or {})
        self._producer_settings = permitted("producer", producer or {})
        self._factory = ClientFactory(given, self._consumer_settings, self._producer_settings)
        self._settings: Settings = {
            "logger": self._factory,
            # A broker that hangs accepts connections and does not respond; the default is 30 s.
            "socket.connection.setup.timeout.ms": 5_000,
            **given,
            "bootstrap.servers": addresses,
        }
        self._rules = AllTopicRules(self._topic_settings)
        # Checked here, before topics are created, and not when the first client is created.
        if self._consumer_settings:
            check_with_client(
                "consumer",
                self._consumer_settings,
                self._for_consumer(GroupSettings(group="settings"), "classic"),
            )
        if self._producer_settings:
            check_with_client("producer", self._producer_settings, self._for_producer("settings", 10.0))

    def consumer(self, settings: GroupSettings) -> KafkaConsumer:
        protocol = settings.protocol
        if protocol == "auto":
            protocol = "consumer" if self._offers_consumer_protocol() else "classic"
        merged = self._for_consumer(settings, protocol)
        start = BEGINNING if settings.offset_reset == "earliest" else END
        check = None
        if protocol == "consumer":
            check = AssignmentCheck(settings.group, self._settings, self._factory)
        return KafkaConsumer(merged, self._factory, assignment_check=check, start=start, admin=self.admin)

    def _for_consumer(self, settings: GroupSettings, protocol: str) -> Settings:
        tuning: Settings = {
            # The default of 1000 stops fetching for a second whenever the queue was full.
            "fetch.queue.backoff.ms": 5,
            # A fetch that waits for records delays seeks, and reports of a partition's end, by this time.
            "fetch.wait.max.ms": 100,
            # Prefetched records use this process's memory.
            "queued.max.messages.kbytes": 32768,
            "topic.metadata.refresh.interval.ms": 30000,
            # After this time, a broker that hangs is disconnected, and new leaders are looked up.
            "socket.timeout.ms": 10_000,
        }
        fixed: Settings = {
            "group.id": settings.group,
            "group.protocol": protocol,
            "auto.offset.reset": "error" if settings.reports_out_of_range else settings.offset_reset,
            "isolation.level": settings.isolation,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "max.poll.interval.ms": int(settings.poll_deadline * 1000),
        }
        if settings.instance_id is not None:
            fixed["group.instance.id"] = settings.instance_id
        if protocol == "consumer":
            # Range keeps equal partition numbers of different topics together, as tasks need.
            fixed["group.remote.assignor"] = "range"
        else:
            fixed["partition.assignment.strategy"] = "range"
            session = int(min(settings.session_timeout, settings.poll_deadline) * 1000)
            fixed["session.timeout.ms"] = session
            fixed["heartbeat.interval.ms"] = min(3000, session // 3)
        return _reconnecting(tuning | self._settings | self._consumer_settings | fixed)

    def producer(
        self, *, transactional_id: str | None = None, transaction_timeout: float = 10.0
    ) -> KafkaProducer:
        merged = self._for_producer(transactional_id, transaction_timeout)
        return KafkaProducer(merged, self._factory, self._rules)

    def _for_producer(self, transactional_id: str | None, transaction_timeout: float) -> Settings:
        tuning: Settings = {
            "linger.ms": 5,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 65536,
            # The topic's limit decides whether a record is too large, and it applies after compression.
            "message.max.bytes": LARGEST_RECORD,
            # After this time, requests to a broker that hangs go to another one, in time for the commit.
            "socket.timeout.ms": 5_000,
        }
        fixed: Settings = {
            "enable.idempotence": True,
            # The default, CRC32, places keys in other partitions than Java clients do, which breaks joins.
            "partitioner": "murmur2_random",
            "delivery.report.only.error": True,
        }
        merged = _reconnecting(tuning | self._settings | self._producer_settings | fixed)
        if transactional_id is not None:
            milliseconds = int(transaction_timeout * 1000)
            # A transaction that begins while the broker still completes the previous one is rejected for some
            # milliseconds (CONCURRENT_TRANSACTIONS); with the default of 100, the retry comes too late.
            merged.setdefault("retry.backoff.ms", TRANSACTION_RETRY_MILLISECONDS)
            merged |= {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": milliseconds,
                # The client rejects a value above the transaction's time-out.
                "socket.timeout.ms": _at_most(merged["socket.timeout.ms"], milliseconds),
                # A record that cannot be written in time must fail before its transaction times out.
                "message.timeout.ms": milliseconds,
            }
        return merged

    def writer(self, topic: str) -> KafkaWriter:
        """Create a writer to a topic, without transactions, that reports the outcome of each record."""
        tuning: Settings = {
            "linger.ms": 5,
            # Records that are queued when a stop is requested must be written within seconds.
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 16384,
            **self._size_limit(topic),
        }
        fixed: Settings = {
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "delivery.report.only.error": True,
            "message.timeout.ms": 60_000,
        }
        merged = _reconnecting(tuning | self._settings | self._producer_settings | fixed)
        return KafkaWriter(merged, self._factory, topic)

    def appender(self, transactional_id: str) -> KafkaAppender:
        return KafkaAppender(
            {**self._for_appender(None), "linger.ms": 0},
            self._for_appender(transactional_id),
            self._factory,
        )

    def _for_appender(self, transactional_id: str | None) -> Settings:
        settings = self._for_producer(transactional_id, APPEND_SECONDS)
        return settings | {
            "delivery.report.only.error": False,
            "message.timeout.ms": int(APPEND_SECONDS * 1000),
        }

    def _size_limit(self, topic: str) -> Settings:
        """The topic's size limit, so that the client rejects a large record, and not the broker its batch."""
        admin = self.admin()
        try:
            limit = int(admin.settings([topic])[topic]["max.message.bytes"])
        except (BrokerError, KeyError, ValueError):
            # Without the right to read the topic's settings, the client's default applies.
            return {}
        finally:
            admin.close()
        return {"message.max.bytes": max(limit, 1_000), "batch.size": min(1_000_000, limit)}

    def admin(self) -> KafkaAdmin:
        # Shorter than the time-outs of this client's requests, so that a dead connection is replaced in time.
        quick = {"socket.connection.setup.timeout.ms": 2_000, "socket.timeout.ms": 2_500}
        return KafkaAdmin(_reconnecting(self._settings | quick), self._factory)

    def throttled(self) -> Sequence[Throttled]:
        return self._factory.throttle_times.read()

    def _topic_settings(self, topic: str) -> Mapping[str, str]:
        admin = self.admin()
        try:
            return admin.settings([topic])[topic]
        finally:
            admin.close()

    def _offers_consumer_protocol(self) -> bool:
        admin = self.admin()
        try:
            return "consumer" in admin.broker_setting("group.coordinator.rebalance.protocols").split(",")
        finally:
            admin.close()


def _reconnecting(settings: Settings) -> Settings:
    """The settings, with a bound on how long a broker that is back is not noticed, unless they have one.

    A cluster that has no broker for a while (the only one is fenced) reports that to its clients, which then
    know no address but the first ones; with the client's default they connect again only after requests have
    failed.
    """
    least = int(settings.get("reconnect.backoff.ms", 100))
    return {"reconnect.backoff.max.ms": max(RECONNECT_MILLISECONDS, least), **settings}


def _at_most(value: Any, most: int) -> Any:
    """The lower of both; a value that is not a number is left for the client to reject."""
    return min(int(value), most) if str(value).isdigit() else value
