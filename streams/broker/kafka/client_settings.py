"""The rules for librdkafka's settings: which ones a program must not set, and why."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from streams.errors import ConfigurationError
from streams.redaction import scrub, secrets_in

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["client", "consumer", "producer"]
"""The app's setting that contains them: for all clients, for consumers, or for producers."""

TRUE: Final = frozenset({"true", "t", "1"})
FALSE: Final = frozenset({"false", "f", "0"})
"""The words that librdkafka accepts as truth values."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Why a program must not choose a setting.

    ``needed`` are the values with which the runtime works, in lower case: giving one of them is allowed and
    changes nothing. ``instead`` is the app's own setting for the same purpose.
    """

    reason: str
    instead: str | None = None
    needed: frozenset[str] = frozenset()


_OFFSETS = "offsets are committed together with the results, never by the client itself"
_POSITIONS = "the worker decides from which offset each partition is read"
_MEMBERS = "tasks that read several topics need equal partition numbers of them in one worker"
_IDEMPOTENCE = "records could be lost, duplicated or reordered when a broker does not answer"
_GROUP = "the app's name is the group's id"
_CALLBACK = "the runtime uses this callback itself"

CONSUMER_RULES: Final[dict[str, Rule]] = {
    "isolation.level": Rule(
        "results of aborted transactions would be processed", needed=frozenset({"read_committed"})
    ),
    "enable.auto.commit": Rule(_OFFSETS, "commit_interval", FALSE),
    "auto.commit.enable": Rule(_OFFSETS, "commit_interval", FALSE),
    "auto.commit.interval.ms": Rule(_OFFSETS, "commit_interval"),
    "enable.auto.offset.store": Rule(_OFFSETS, needed=FALSE),
    "offset.store.method": Rule(_OFFSETS, needed=frozenset({"broker"})),
    "offset.store.path": Rule(_OFFSETS),
    "offset.store.sync.interval.ms": Rule(_OFFSETS),
    "enable.partition.eof": Rule("without it the worker cannot detect that it has caught up", needed=TRUE),
    "auto.offset.reset": Rule(_POSITIONS, "offset_reset or out_of_range_reset"),
    "group.id": Rule(_GROUP),
    "group.instance.id": Rule("each worker needs a different one", "group_instance_id"),
    "group.protocol": Rule("the runtime has to know which protocol is used", "group_protocol"),
    "group.protocol.type": Rule("a worker is a consumer", needed=frozenset({"consumer"})),
    "group.remote.assignor": Rule(_MEMBERS, needed=frozenset({"range"})),
    "partition.assignment.strategy": Rule(_MEMBERS, needed=frozenset({"range"})),
    "session.timeout.ms": Rule(
        "with the classic protocol the app sets it, and with KIP-848 the broker does "
        "(group.consumer.session.timeout.ms)",
        "session_timeout",
    ),
    "heartbeat.interval.ms": Rule(
        "it is derived from the session time-out, and with KIP-848 the broker sets it", "session_timeout"
    ),
    "max.poll.interval.ms": Rule("the size of batches depends on it", "poll_deadline"),
    "allow.auto.create.topics": Rule(
        "a missing input topic would silently be created, with the broker's default number of partitions",
        needed=FALSE,
    ),
    "on_commit": Rule(_CALLBACK),
}

PRODUCER_RULES: Final[dict[str, Rule]] = {
    "transactional.id": Rule("each worker needs a different one", "worker_id"),
    "transaction.timeout.ms": Rule("the timing of commits and retries depends on it", "transaction_timeout"),
    "message.timeout.ms": Rule(
        "a record that cannot be written in time must fail before its transaction times out",
        "transaction_timeout",
    ),
    "enable.idempotence": Rule(_IDEMPOTENCE, needed=TRUE),
    "enable.gapless.guarantee": Rule("a record that the broker rejects would end the client", needed=FALSE),
    "request.required.acks": Rule(_IDEMPOTENCE, needed=frozenset({"all", "-1"})),
    "max.in.flight.requests.per.connection": Rule(
        f"with more than 5, {_IDEMPOTENCE}", needed=frozenset(map(str, range(1, 6)))
    ),
    "message.send.max.retries": Rule(
        "a record may be retried as long as its transaction is open, which is already limited",
        "transaction_timeout",
        frozenset({str((1 << 31) - 1)}),
    ),
    "partitioner": Rule(
        "keys must be in the same partitions as with Java clients: joins, stores and queries rely on it",
        needed=frozenset({"murmur2_random"}),
    ),
    "delivery.report.only.error": Rule("the runtime only handles reports of failures", needed=TRUE),
    "on_delivery": Rule(_CALLBACK),
}

CLIENT_RULES: Final[dict[str, Rule]] = {
    "metadata.broker.list": Rule("all clients use the app's cluster", "bootstrap_servers"),
    "topic.blacklist": Rule("excluded topics would look missing: choose the inputs in the program"),
    "api.version.request": Rule("transactions need it", needed=TRUE),
    "default.topic.config": Rule("it is not checked: give its settings directly instead"),
    "error_cb": Rule(_CALLBACK),
    "logger": Rule("log lines are written to the app's log, without secrets", "log_level"),
}
"""Rules for all kinds of clients, in addition to their own."""

ALIASES: Final = {
    "bootstrap.servers": "metadata.broker.list",
    "acks": "request.required.acks",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "retries": "message.send.max.retries",
    "delivery.timeout.ms": "message.timeout.ms",
    "dr_cb": "on_delivery",
    "dr_msg_cb": "on_delivery",
    "delivery_cb": "on_delivery",
    "offset_commit_cb": "on_commit",
    "log_cb": "logger",
}
"""Other names of librdkafka's settings and callbacks."""

_ELSEWHERE = {
    "max.poll.records": "the app's own setting for it is max_poll_records",
    "buffer.memory": "librdkafka's name for it is queue.buffering.max.kbytes (kilobytes)",
    "key.deserializer": "serdes are given in the program: stream(…, key=…, value=…)",
    "value.deserializer": "serdes are given in the program: stream(…, key=…, value=…)",
    "key.serializer": "serdes are given in the program: to(…, key=…, value=…)",
    "value.serializer": "serdes are given in the program: to(…, key=…, value=…)",
    "processing.guarantee": "the app's own setting for it is guarantee",
    "application.id": "the app's name is its id",
    "num.stream.threads": "streams run --workers N starts N processes",
    "num.standby.replicas": "the app's own setting for it is standby_replicas",
    "state.dir": "the app's own setting for it is state_dir",
}
"""Settings of the Java clients and of Kafka Streams, with what to use instead."""

COMMON: Final = (
    "client.id",
    "client.rack",
    "fetch.min.bytes",
    "fetch.wait.max.ms",
    "fetch.max.bytes",
    "max.partition.fetch.bytes",
    "queued.min.messages",
    "queued.max.messages.kbytes",
    "check.crcs",
    "linger.ms",
    "batch.size",
    "batch.num.messages",
    "compression.type",
    "compression.codec",
    "compression.level",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "message.max.bytes",
    "receive.message.max.bytes",
    "socket.timeout.ms",
    "debug",
    "statistics.interval.ms",
    "security.protocol",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "topic.metadata.refresh.interval.ms",
    "socket.keepalive.enable",
    "connections.max.idle.ms",
    "reconnect.backoff.ms",
    "reconnect.backoff.max.ms",
)
"""Frequently used settings, for suggestions."""

_UNCONNECTED = {"security.protocol", "sasl.mechanism", "sasl.mechanisms", "oauth_cb"}
"""Settings left out of a client that only checks settings: with these, it would request tokens."""


def permitted(kind: Kind, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that the runtime sets to the same value anyway.

    Raises ``ConfigurationError`` with all settings that a program must not choose, and the reasons. It does
    not include values, which may be secret.
    """
    rules = CLIENT_RULES | (CONSUMER_RULES if kind != "producer" else {})
    rules |= PRODUCER_RULES if kind != "consumer" else {}
    refused: list[str] = []
    instead: list[str] = []
    kept = {}
    for name, value in settings.items():
        rule = rules.get(ALIASES.get(name, name))
        if name in _ELSEWHERE:
            # librdkafka accepts some of these, and ignores them.
            refused.append(f"{kind} setting {name!r} is not a setting of librdkafka")
            instead.append(_ELSEWHERE[name])
        elif rule is None:
            kept[name] = value
        elif str(value).strip().lower() not in rule.needed:
            refused.append(f"{kind} setting {name!r} cannot be set: {rule.reason}")
            if rule.instead is not None:
                instead.append(f"the app's own setting for {name} is {rule.instead}")
    if refused:
        raise ConfigurationError(
            "\n  ".join(refused),
            hint="; ".join(dict.fromkeys(instead)) or "remove it: the runtime sets the value that it needs",
        )
    return kept


def check_with_client(
    kind: Literal["consumer", "producer"], given: Mapping[str, Any], merged: Mapping[str, Any]
) -> None:
    """Check settings by creating a client without a connection.

    ``given`` are the program's settings, ``merged`` all settings of such a client. Raises
    ``ConfigurationError`` for names that librdkafka does not know, values that it does not accept, and
    settings of the other kind of client, which it would ignore.
    """
    lines: list[str] = []
    secrets = secrets_in(given)
    settings = {
        name: value
        for name, value in merged.items()
        if name not in _UNCONNECTED and ALIASES.get(name, name) != "metadata.broker.list"
    }
    make: Any = Consumer if kind == "consumer" else Producer
    try:
        client = make(settings | {"logger": _Lines(lines)})
        client.poll(0)
    except KafkaException as error:
        cause: KafkaError = error.args[0]
        raise unusable(kind, scrub(cause.str(), secrets)) from None
    except (TypeError, ValueError) as error:
        raise unusable(kind, scrub(str(error), secrets)) from None
    if kind == "consumer":
        client.close()
    ignored = [line.partition("Configuration property ")[2] for line in lines if "be ignored by" in line]
    other = "producer" if kind == "consumer" else "consumer"
    if ignored:
        raise unusable(
            kind,
            f"{ignored[0].split()[0]} is a setting of {other}s and has no effect on {kind}s",
            hint=f"put it into the setting {other}",
        )


class _Lines:
    """A logger that collects a client's log lines."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def log(self, level: int, message: str, *arguments: object) -> None:  # noqa: ARG002 - as a logger's
        self._lines.append(message % arguments)


def unusable(kind: Kind, why: str, hint: str | None = None) -> ConfigurationError:
    """The error for settings that a client rejects, with its reason."""
    unknown = why.partition('No such configuration property: "')[2].rstrip('"')
    if unknown:
        known = [*CONSUMER_RULES, *PRODUCER_RULES, *ALIASES, *COMMON]
        close = difflib.get_close_matches(unknown, known, 1)
        hint = f"did you mean {close[0]}?" if close else None
    return ConfigurationError(
        f"the {kind} settings are not usable: {why}",
        hint=hint or f"{kind} contains librdkafka's own settings: see its CONFIGURATION.md",
    )
