"""Apache Kafka through confluent-kafka: the only module that knows that library and its error codes."""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar, cast

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition as ClientPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic as ClientTopic,
    OffsetSpec,
    ResourceType,
)

from streams.broker import (
    BEGINNING,
    END,
    GroupSettings,
    Isolation,
    NewTopic,
    OutOfRange,
    Polled,
    RebalanceListener,
    TopicDescription,
)
from streams.errors import (
    AccessDenied,
    BrokerError,
    BrokerUnreachable,
    ConfigurationError,
    FatalBrokerError,
    NotAuthenticated,
    NotAuthorized,
    OutcomeUnknown,
    RecordRefused,
    Retriable,
    Right,
    TopicError,
    TopicMissing,
    TransactionAborted,
)
from streams.records import Fetched, Headers, Output, Rows, TopicPartition
from streams.redaction import scrub, secrets_in

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set as AbstractSet
    from concurrent.futures import Future

Settings = dict[str, Any]
C = TypeVar("C")

REQUEST_SECONDS: Final = 10.0
"""How long one question to the cluster may take before the broker counts as unreachable."""

REFUSED_SECONDS: Final = 3.0
"""How long a broker may refuse a connection, for TLS or credentials, before that is taken for its answer."""

OVERDRAFT_SECONDS: Final = 1.0
"""How much longer than its own time-out a call may take before it counts as hanging."""

REJOIN_SECONDS: Final = 1.0
"""How often a static member asks whether its predecessor's session is over."""

OCCUPIED_SECONDS: Final = 120.0
"""For longer no killed member's session lasts: there is another one alive with the same instance id."""

ROLL_CALL_SECONDS: Final = 8.0
"""How often a member asks what the group's coordinator believes it to have: at least so long lies between."""

ROLL_CALL_MEMBERS: Final = 80
"""For each so many members that a group has, it is that time once more, as all of them ask."""

ROLL_CALLS: Final = 3
"""So many answers in a row must differ from what a member has. Over that time even the slowest heartbeat that
a broker allows (``group.consumer.max.heartbeat.interval.ms``, 15 s) has told of any change."""

SEEK_SECONDS: Final = 5.0
"""How long a partition that was just assigned may take until it can be positioned."""

COMMITTED_SECONDS: Final = 0.5
"""How long an assignment may wait for the group's committed offsets; after that, other partitions go on."""

UNPLACED: Final = END
"""Where the client reads meanwhile, for nobody. Left to ask for itself, librdkafka 2.16 forgets to ask again
when the group's coordinator moves, and then never gives up a partition in any later rebalance."""

ASK_SECONDS: Final = 0.1, 2.0
"""How long a poll may wait for them at first, and at last when that was always too short."""

ASK_GROWTH: Final = 1.25
"""Slow: what is waited for is mostly the end of a killed member's transaction, and not a slow broker."""

ASK_PAUSE: Final = 2
"""The time until a poll asks again, as a multiple: the other partitions are to go on meanwhile."""

MISSING_TOPIC_SECONDS: Final = 5.0
"""How long a topic that was found missing is not asked for again."""

OUTDATED_SECONDS: Final = 2.0
"""How long partitions' leaders may be unknown before a question for offsets is given up."""

_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # untyped in the library
_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # untyped in the library
_log = logging.getLogger("streams.librdkafka")

_UNREACHABLE = {
    KafkaError._TRANSPORT,  # noqa: SLF001 - the library's public names for its local errors begin with _
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001 - as above
    KafkaError._TIMED_OUT,  # noqa: SLF001 - as above
    KafkaError._RESOLVE,  # noqa: SLF001 - as above
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - as above
    KafkaError._SSL,  # noqa: SLF001 - as above
}
_TRANSIENT = {
    KafkaError._WAIT_COORD,  # noqa: SLF001 - as above
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}
_OUTDATED = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._NOENT,  # noqa: SLF001 - as above
}
_REJECTED = {
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - as above
    KafkaError._SSL,  # noqa: SLF001 - as above
    KafkaError.SASL_AUTHENTICATION_FAILED,
}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: Right("READ or WRITE", "topic", "?"),
    KafkaError.GROUP_AUTHORIZATION_FAILED: Right("READ", "group", "?"),
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: Right("CLUSTER_ACTION", "cluster"),
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Right("WRITE", "transactional id", "?"),
}
"""What each refusal is about, and the right that it takes where the caller does not know better."""

_STALE_MEMBER = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.REBALANCE_IN_PROGRESS,
}
_FENCED = {
    KafkaError._FENCED,  # noqa: SLF001 - as above
    KafkaError._STATE,  # noqa: SLF001 - as above
    KafkaError._CONFLICT,  # noqa: SLF001 - as above
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.INVALID_TXN_STATE,
}
_PRODUCER: Final = "producer: "
"""How a producer's doings begin: only it can be fenced."""

_REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError._BAD_MSG,  # noqa: SLF001 - as above
    KafkaError._INVALID_ARG,  # noqa: SLF001 - as above
}


def classify(error: KafkaError, doing: str, *rights: Right, principal: str | None = None) -> BrokerError:
    """What a client error means to the engine: the one table of it.

    ``rights`` are those that the call takes, of which the error's kind says what is missing; ``principal`` is
    who calls.

    The order matters: a missing right also aborts the transaction, but rewinding would never end; a stale
    member's commit is aborted and its partitions are read anew; what fences or confuses the producer is
    only mended by a new one.
    """
    code = error.code()
    message = f"{doing}: {error.str()} ({error.name()})"
    if code in _FORBIDDEN:
        usual = _FORBIDDEN[code]
        missing = [right for right in rights if right.resource == usual.resource]
        return NotAuthorized(message, missing or [usual], principal=principal)
    if code in _STALE_MEMBER:
        return TransactionAborted(message)
    # Once fenced, a producer refuses each further row with _FATAL, which does not say that it is fatal.
    if doing.startswith(_PRODUCER) and (code in _FENCED or code == KafkaError._FATAL or error.fatal()):  # noqa: SLF001 - as above
        return OutcomeUnknown(message)
    if error.fatal():
        return FatalBrokerError(message)
    if error.txn_requires_abort():
        return TransactionAborted(message)
    if error.retriable() or code in _UNREACHABLE or code in _TRANSIENT:
        return Retriable(message)
    return FatalBrokerError(message)


class KafkaBroker:
    """A Kafka cluster. ``settings`` are librdkafka's own names and go to every client.

    ``consumer`` and ``producer`` settings go to those clients only and win over what this library chooses,
    except where correctness hangs on it: those raise ``ConfigurationError``.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        consumer: Mapping[str, Any] | None = None,
        producer: Mapping[str, Any] | None = None,
    ) -> None:
        if not settings.get("bootstrap.servers"):
            raise ConfigurationError("no broker is named", hint="set bootstrap_servers, e.g. localhost:9092")
        self._consumer_settings = dict(consumer or {})
        self._producer_settings = dict(producer or {})
        self._access = _Access(settings, self._consumer_settings, self._producer_settings)
        self._settings: Settings = {"logger": self._access, **settings}
        _reject(
            self._consumer_settings,
            "consumer",
            ("group.id", "enable.auto.commit", "group.protocol", "auto.offset.reset"),
        )
        _reject(self._producer_settings, "producer", ("transactional.id", "enable.idempotence"))

    def consumer(self, settings: GroupSettings) -> KafkaConsumer:
        protocol = settings.protocol
        if protocol == "auto":
            protocol = "consumer" if self._offers_consumer_protocol() else "classic"
        chosen: Settings = {
            "group.id": settings.group,
            "group.protocol": protocol,
            "auto.offset.reset": "error" if settings.tells_out_of_range else settings.offset_reset,
            "isolation.level": settings.isolation,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "max.poll.interval.ms": int(settings.poll_deadline * 1000),
            # The default of 1000 stops fetching for a second whenever the queue was full.
            "fetch.queue.backoff.ms": 5,
            # A fetch that waits for records holds up seeks, and news of a reached end, for as long.
            "fetch.wait.max.ms": 100,
            # What is prefetched lives in this process: bound it.
            "queued.max.messages.kbytes": 32768,
            "topic.metadata.refresh.interval.ms": 30000,
            # A broker that hangs is given up after this, and its partitions are looked for elsewhere.
            "socket.timeout.ms": 10_000,
        }
        if settings.instance_id is not None:
            chosen["group.instance.id"] = settings.instance_id
        if protocol == "consumer":
            # Range keeps equal partition numbers of different topics together, as tasks need.
            chosen["group.remote.assignor"] = "range"
        else:
            chosen["partition.assignment.strategy"] = "range"
            session = int(min(settings.session_timeout, settings.poll_deadline) * 1000)
            chosen["session.timeout.ms"] = session
            chosen["heartbeat.interval.ms"] = min(3000, session // 3)
        merged = self._settings | chosen | self._consumer_settings
        start = BEGINNING if settings.offset_reset == "earliest" else END
        calls = _RollCalls(settings.group, self._settings, self._access) if protocol == "consumer" else None
        return KafkaConsumer(merged, self._access, roll_calls=calls, start=start)

    def producer(
        self, *, transactional_id: str | None = None, transaction_timeout: float = 10.0
    ) -> KafkaProducer:
        chosen: Settings = {
            "enable.idempotence": True,
            # The default, CRC32, would put keys elsewhere than Java clients do, and joins would miss them.
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 65536,
            "delivery.report.only.error": True,
            # What a broker that hangs was sent goes to another one after this, in time for the commit.
            "socket.timeout.ms": 5_000,
        }
        if transactional_id is not None:
            milliseconds = int(transaction_timeout * 1000)
            chosen |= {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": milliseconds,
                # The client refuses more than the transaction has.
                "socket.timeout.ms": min(5_000, milliseconds),
                # A record that cannot be written in time fails the transaction, not the other way round.
                "message.timeout.ms": milliseconds,
            }
        return KafkaProducer(self._settings | chosen | self._producer_settings, self._access)

    def admin(self) -> KafkaAdmin:
        return KafkaAdmin(self._settings, self._access)

    def _offers_consumer_protocol(self) -> bool:
        admin = self.admin()
        try:
            return "consumer" in admin.broker_setting("group.coordinator.rebalance.protocols").split(",")
        finally:
            admin.close()


def _reject(settings: Mapping[str, Any], client: str, names: Iterable[str]) -> None:
    for name in names:
        if name in settings:
            raise ConfigurationError(
                f"{client} setting {name!r} is not yours to choose: commits depend on it",
                hint="see the app's own settings (streams run --help) for what it stands for",
            )


class _Access:
    """Who a broker's clients are to the cluster, and what of that must never be shown.

    It is the clients' logger too: what they say goes on without secrets.
    """

    def __init__(self, *settings: Mapping[str, Any]) -> None:
        self.principal = _principal(settings[0])
        self.complete = str(settings[0].get("security.protocol", "")).lower() == "sasl_ssl"
        """Whether there is TLS and authentication: a broker cannot ask for more."""
        self.let_in = False
        """Whether the cluster has answered any of the clients: a refusal from then on may pass."""
        self._secrets = set[str]().union(*map(secrets_in, settings))

    def log(self, level: int, message: str, *arguments: object) -> None:
        if _log.isEnabledFor(level):
            _log.log(level, "%s", self.scrub(message % arguments))

    def scrub(self, text: str) -> str:
        """The text as it may be shown."""
        return scrub(text, self._secrets)

    def make(self, kind: Callable[[Settings], C], settings: Settings) -> C:
        """A client. Raises ``ConfigurationError`` for settings that it cannot take."""
        ask = settings.get("oauth_cb")
        failures: list[str] = []
        if callable(ask):
            settings = settings | {"oauth_cb": partial(_token, ask, failures)}
        try:
            return kind(settings)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() in _REJECTED:
                why = f"there is no token: {self.scrub(' '.join(failures) or cause.str())}"
                raise (BrokerUnreachable(why) if self.let_in else NotAuthenticated(why)) from None
            raise self._unusable(cause.str()) from None
        except (TypeError, ValueError) as error:
            raise self._unusable(str(error)) from None

    def _unusable(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"the client settings are not usable: {self.scrub(why)}",
            hint="client, consumer and producer are librdkafka's own settings: see its CONFIGURATION.md",
        )

    def means(self, error: KafkaError, doing: str, *rights: Right) -> BrokerError:
        """What a client error means to the engine; see ``classify``."""
        return classify(error, doing, *rights, principal=self.principal)


def _principal(settings: Mapping[str, Any]) -> str | None:
    """Who the cluster takes these settings' client for, where they tell."""
    protocol = str(settings.get("security.protocol", "plaintext")).lower()
    if protocol == "plaintext":
        return "User:ANONYMOUS"
    name = settings.get("sasl.username")
    return f"User:{name}" if name and protocol.startswith("sasl") else None


def _token(ask: Callable[[str], Any], failures: list[str], told: str) -> Any:
    """What the user's ``oauth_cb`` gives. The client itself does not say why it failed."""
    try:
        return ask(told)
    except Exception as error:
        failures[:] = [f"oauth_cb raised {type(error).__name__}: {error}"]
        raise


class Membership(NamedTuple):
    """A group's member, as the commit of offsets in a transaction needs to know it."""

    group: str
    metadata: object


class KafkaFetched:
    """``Fetched`` on the client's own messages: a column is copied out when it is asked for."""

    __slots__ = ("_messages", "partition", "topic")

    def __init__(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        self.topic = topic
        self.partition = partition
        self._messages = messages

    @property
    def next_offset(self) -> int:
        return cast("int", self._messages[-1].offset()) + 1

    def __len__(self) -> int:
        return len(self._messages)

    def _at(self, rows: Rows | None) -> Sequence[Message]:
        messages = self._messages
        return messages if rows is None else [messages[row] for row in rows]

    def keys(self, rows: Rows | None = None) -> list[bytes | None]:
        return list(map(Message.key, self._at(rows)))

    def values(self, rows: Rows | None = None) -> list[bytes | None]:
        return list(map(Message.value, self._at(rows)))

    def timestamps(self, rows: Rows | None = None) -> list[int]:
        # A record without a time comes as type 0 with time -1 or 0.
        return [stamp if kind else -1 for kind, stamp in map(Message.timestamp, self._at(rows))]

    def offsets(self, rows: Rows | None = None) -> list[int]:
        return cast("list[int]", list(map(Message.offset, self._at(rows))))

    def headers(self, rows: Rows | None = None) -> list[Headers | None] | None:
        headers = cast("list[Headers | None]", list(map(Message.headers, self._at(rows))))
        return headers if any(headers) else None

    def slice(self, start: int, stop: int) -> KafkaFetched:
        return KafkaFetched(self.topic, self.partition, self._messages[start:stop])


class KafkaConsumer:
    """See ``streams.broker.Consumer``."""

    def __init__(
        self, settings: Settings, access: _Access, *, roll_calls: _RollCalls | None, start: int
    ) -> None:
        self._access = access
        self._roll_calls = roll_calls
        """For members by KIP-848's protocol, whose assignments change one partition at a time."""
        self._group: str = settings["group.id"]
        self._start = start
        """Where partitions without a committed offset begin."""
        self._displaced: dict[TopicPartition, int] = {}
        """Partitions that the client has stopped reading: their next offset is unknown (-1) or not there."""
        self._told: set[TopicPartition] = set()
        """Those of them that the caller knows of, and has to seek in."""
        self._reached: dict[TopicPartition, int] = {}
        """Where assignments, polls and seeks have come to: the next offset, or ``BEGINNING`` or ``END``."""
        self._unplaced: set[TopicPartition] = set()
        """Partitions assigned while nobody could tell where the group is in them."""
        self._shaken: set[TopicPartition] = set()
        """Partitions held through a rebalance: the client may have dropped what it had fetched of them."""
        self._ask_at = 0.0
        """When the broker is to be asked again where the group is."""
        self._ask_seconds = ASK_SECONDS[0]
        self._rebalanced = False
        self._subscribed: list[str] = []
        self._instance = settings.get("group.instance.id")
        self._settings: Settings = settings | {"error_cb": _LastError()}
        self._client = access.make(Consumer, self._settings)
        self._names: list[str] = []
        self._occupied_since: float | None = None
        """Since when the group has refused this member, as its predecessor's session is not over."""
        self._rejoin_at = 0.0
        self._cooperative = roll_calls is not None
        self._listener: RebalanceListener | None = None
        self._raised: BaseException | None = None
        self._held: set[TopicPartition] = set()
        self._idled: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._stash: list[Message] = []

    def subscribe(self, topics: Collection[str | re.Pattern[str]], listener: RebalanceListener) -> None:
        self._listener = listener
        # librdkafka takes a name that begins with ^ for a pattern.
        self._names = [topic if isinstance(topic, str) else f"^({topic.pattern})$" for topic in topics]
        self._subscribed = [topic for topic in topics if isinstance(topic, str)]
        self._subscribe()

    def _subscribe(self) -> None:
        self._call(
            "subscribing",
            lambda: self._client.subscribe(
                self._names, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            ),
        )

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._held = set(positions)
        self._reached = dict(positions)
        self._call("assigning", lambda: self._client.assign(_with_offsets(positions)))

    def poll(self, max_records: int, timeout: float) -> Polled:
        if self._idled:
            self.resume_idled()
        if self._unplaced:
            self._place_unplaced()
        if self._roll_calls is not None and self._listener is not None:
            self._answer_roll_call(self._roll_calls)
        out_of_range = self._settle() if self._displaced.keys() - self._told else {}
        messages, self._stash = self._stash, []
        if not messages:
            # consume() waits for all it was asked for: wait for one only, then take what is there.
            messages = self._consume(1, timeout)
            if messages and max_records > 1 and not self._rebalanced:
                messages += self._consume(max_records - 1, 0)
            if self._rebalanced:
                messages = self._after_rebalance(messages)
        polled = self._polled(messages)
        return polled._replace(out_of_range=out_of_range) if out_of_range else polled

    def keep_alive(self) -> None:
        running = self._held - self._paused - self._idled
        if running:
            self._call("pausing", lambda: self._client.pause(_plain(running)))
            self._idled |= running
        # What comes all the same is kept for the next poll.
        came = self._consume(1, 0)
        if self._rebalanced:
            came = self._after_rebalance(came)
        # A rebalance meanwhile took messages out of the stash: they must not come back.
        self._stash += came

    def resume_idled(self) -> None:
        """Let go on what ``keep_alive`` paused."""
        idled, self._idled = self._idled & self._held - self._paused, set()
        self._resume(idled)

    def _resume(self, stopped: set[TopicPartition]) -> None:
        """Let paused partitions go on, exactly where polls have come to.

        By itself the client goes on from what it believes to have handed out, and it notes that in another
        thread: with a rebalance at the same time it can be wrong by a whole poll.
        """
        if not stopped:
            return
        self._call("resuming", lambda: self._client.resume(_plain(stopped)))
        self._seek_again(stopped)

    def _seek_again(self, places: set[TopicPartition]) -> None:
        self._shaken -= places
        # What the client has stopped reading is placed anew, once it is settled where.
        for place in sorted(places & self._reached.keys() - self._displaced.keys()):
            self._seek(place, self._reached[place])

    def _after_rebalance(self, messages: list[Message]) -> list[Message]:
        """What may be kept of messages among which a rebalance came: errors, no records.

        A rebalance pauses all partitions, and of what the client has fetched before, it drops some and hands
        out some, in no order that can be relied on. All of it is read again.
        """
        self._rebalanced = False
        kept, dropped = [], set()
        for message in messages:
            error = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - a public name of the library
                dropped.add(_place(message))
            else:
                kept.append(message)
                if _is_displaced(message):
                    self._note_displaced(message)
        self._seek_again((self._shaken | dropped) & self._held)
        return kept

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        # Resuming continues from where the client was, which would undo a seek made before it.
        self.resume_idled()
        self._unplaced -= positions.keys()
        self._shaken -= positions.keys()
        for message in self._stash:
            if _is_displaced(message):
                self._note_displaced(message)
        self._stash = [message for message in self._stash if _place(message) not in positions]
        self._place_anew({place: positions[place] for place in positions.keys() & self._displaced.keys()})
        self._reached |= positions
        for place, offset in positions.items():
            self._seek(place, offset)

    def _seek(self, place: TopicPartition, offset: int) -> None:
        deadline = time.monotonic() + SEEK_SECONDS
        while True:
            try:
                self._client.seek(ClientPartition(*place, offset))
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001 - a public name of the library
                    raise self._means(error.args[0], f"seeking {place}", place.topic) from error
                # Just assigned, a partition is not ready for it for some milliseconds.
                if time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
                # The client has stopped reading it, which it has not told yet.
                self._place_anew({place: offset})
                return
            else:
                return

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused |= set(partitions)
        self._call("pausing", lambda: self._client.pause(_plain(partitions)))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        # Those that it has not paused itself, the client reads again from where it once began.
        stopped = set(partitions) & (self._paused | self._idled)
        self._paused -= stopped
        self._idled -= stopped
        self._resume(stopped)

    def assignment(self) -> set[TopicPartition]:
        return set(self._held)

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        known = self._reached.keys() - self._unplaced
        return {place: self._reached[place] for place in partitions if place in known}

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        found = self._call(
            "asking for committed offsets",
            lambda: self._client.committed(_plain(partitions), timeout=REQUEST_SECONDS),
        )
        for partition in found:
            if partition.error is not None:
                doing = f"committed offset of {partition.topic}-{partition.partition}"
                raise self._means(partition.error, doing, partition.topic)
        return {TopicPartition(item.topic, item.partition): item.offset for item in found if item.offset >= 0}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        done = self._call(
            "committing offsets",
            lambda: self._client.commit(offsets=_with_offsets(offsets), asynchronous=False),
        )
        for partition in done or ():
            if partition.error is not None:
                doing = f"committing {partition.topic}-{partition.partition}"
                raise self._means(partition.error, doing, partition.topic)

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        ends = {}
        for partition in partitions:
            _, high = self._client.get_watermark_offsets(ClientPartition(*partition), cached=True)
            if high >= 0:
                ends[partition] = high
        return ends

    @property
    def member(self) -> str | None:
        # Static members come first, by their instance ids.
        if self._instance is not None:
            return f"0{self._instance}"
        identifier = self._client.memberid()
        return f"1{identifier}" if identifier else None

    def group_metadata(self) -> object:
        return Membership(self._group, self._client.consumer_group_metadata())

    def close(self) -> None:
        self._call("leaving the group", self._client.close)
        self._reraise()

    def _consume(self, count: int, timeout: float) -> list[Message]:
        if self._occupied_since is not None:
            self._rejoin(timeout)
        try:
            return self._client.consume(count, timeout)
        except KafkaException as error:
            raise self._means(error.args[0], "reading") from error
        finally:
            self._reraise()

    def _rejoin(self, timeout: float) -> None:
        """Try again to join as a static member whose predecessor was killed; a client is refused for good."""
        assert self._occupied_since is not None
        if time.monotonic() < self._rejoin_at:
            time.sleep(min(timeout, max(0.0, self._rejoin_at - time.monotonic())))
            return
        if time.monotonic() - self._occupied_since > OCCUPIED_SECONDS:
            raise FatalBrokerError(
                f"group {self._group} has had another member with the instance id {self._instance!r} "
                f"for {OCCUPIED_SECONDS:.0f} s",
                hint="give each worker a group_instance_id of its own",
            )
        self._rejoin_at = time.monotonic() + REJOIN_SECONDS
        self._renew()

    def _answer_roll_call(self, roll_calls: _RollCalls) -> None:
        """Leave the group and join again when its coordinator goes on believing something else."""
        member = self._client.memberid()
        differs = roll_calls.ask(member, self._held) if member else None
        if differs is not None:
            _log.warning("group %s: this member joins again: %s", self._group, differs)
            self._renew()

    def _renew(self) -> None:
        """Be another member, which has nothing yet."""
        self._client.close()
        self._client = self._access.make(Consumer, self._settings)
        self._reraise()
        self._subscribe()

    def _polled(self, messages: list[Message]) -> Polled:
        ends: dict[TopicPartition, int] = {}
        if any(map(Message.error, messages)):
            messages = self._without_errors(messages, ends)
        parts: dict[tuple[Any, Any], list[Message]] = {}
        # Records come in runs of one partition; groupby keeps the work per record inside C.
        for partition, run in groupby(messages, Message.partition):
            for topic, part in groupby(run, Message.topic):
                parts.setdefault((topic, partition), []).extend(part)
        fetched: list[Fetched] = []
        for (topic, number), came in parts.items():
            place = TopicPartition(topic, number)
            records, reached = came, self._reached.get(place, self._start)
            if cast("int", came[0].offset()) < reached:
                # A pause that overtakes a poll makes the client read again what that poll has handed out.
                records = [message for message in came if cast("int", message.offset()) >= reached]
            if place in self._unplaced or not records:
                continue
            last = cast("int", records[-1].offset())
            self._reached[place] = last + 1
            # Records behind a reported end mean that it is not the end any more.
            if last >= ends.get(place, last + 1):
                del ends[place]
            fetched.append(KafkaFetched(*place, records))
        for place in self._unplaced & ends.keys():
            del ends[place]
        for place, end in ends.items():
            # Begun at a logical offset and told the end of it, it goes on from there.
            if self._reached.get(place, self._start) < 0:
                self._reached[place] = end
        return Polled(fetched, ends)

    def _without_errors(self, messages: list[Message], ends: dict[TopicPartition, int]) -> list[Message]:
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - a public name of the library
                ends[_place(message)] = cast("int", message.offset())
            elif _is_displaced(message):
                self._note_displaced(message)
            elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicError(
                    f"topic {message.topic()!r} does not exist",
                    hint=f"create it, e.g. with: streams topics create {message.topic()} --partitions 4",
                )
            else:
                if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED and self._listener is None:
                    # The client looks for the coordinator of the group it is named, which nobody joins.
                    continue
                topic = message.topic()
                doing = f"reading {topic}-{message.partition()}" if topic else f"as a member of {self._group}"
                means = self._means(error, doing, topic)
                if error.code() == KafkaError._FATAL and "Group authorization failed" in error.str():  # noqa: SLF001 - a public name of the library
                    # Its own code is lost when the client says that it can do nothing any more.
                    right = Right("READ", "group", self._group)
                    raise NotAuthorized(error.str(), [right], principal=self._access.principal)
                if isinstance(means, AccessDenied) or (isinstance(means, FatalBrokerError) and error.fatal()):
                    raise means
                if error.code() == KafkaError._FATAL:  # noqa: SLF001 - a public name of the library
                    self._stand_in_line(means)
                    continue
                # The client goes on by itself after the others, e.g. it rejoins after a missed deadline.
                _log.warning("%s", means)
        return records

    def _stand_in_line(self, means: BrokerError) -> None:
        """After an error that ends the client: join again once a killed predecessor's session is over.

        Raises ``FatalBrokerError`` for all other errors.
        """
        # The code is lost on the way here, its text is not.
        if KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str() not in str(means) or self._held:
            raise FatalBrokerError(str(means))
        if self._occupied_since is None:
            self._occupied_since = time.monotonic()
            _log.warning(
                "group %s: the session of the member before with instance id %r is not over yet",
                self._group,
                self._instance,
            )
        self._rejoin_at = time.monotonic() + REJOIN_SECONDS

    def _begin(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        """Have partitions begin where the group is in them, or where new ones should, before they are read.

        The client would ask by itself, but not say where it begins, and only who knows that can have it read
        again what it drops in a rebalance.
        """
        places = _placed(partitions)
        starts = self._starts(client, places, COMMITTED_SECONDS)
        if starts is None:
            self._unplaced |= set(places)
            self._ask_at = time.monotonic() + ASK_PAUSE * self._ask_seconds
            for partition in partitions:
                partition.offset = UNPLACED
            return
        self._reached |= starts
        for partition, place in zip(partitions, places, strict=True):
            partition.offset = starts[place]

    def _starts(
        self, client: Consumer, places: Collection[TopicPartition], timeout: float
    ) -> dict[TopicPartition, int] | None:
        """Where the group is in these; ``None`` while the broker cannot tell."""
        try:
            committed = client.committed(_plain(places), timeout=timeout)
        except KafkaException:
            # E.g. while it is not known whether a killed member's last transaction was committed.
            return None
        if any(item.error is not None for item in committed):
            return None
        return {
            TopicPartition(item.topic, item.partition): self._start if _has_none(item) else item.offset
            for item in committed
        }

    def _place_unplaced(self) -> None:
        """Ask again where the group is in partitions of which the broker could not tell."""
        self._unplaced &= self._held
        if not self._unplaced or time.monotonic() < self._ask_at:
            return
        starts = self._starts(self._client, self._unplaced, self._ask_seconds)
        if starts is None:
            self._ask_at = time.monotonic() + ASK_PAUSE * self._ask_seconds
            self._ask_seconds = min(ASK_SECONDS[1], ASK_GROWTH * self._ask_seconds)
            return
        self._ask_seconds = ASK_SECONDS[0]
        self.seek(starts)

    def _note_displaced(self, message: Message) -> None:
        place = _place(message)
        if place in self._held:
            offset = message.offset()
            self._displaced[place] = -1 if offset is None else max(offset, -1)

    def _settle(self) -> dict[TopicPartition, OutOfRange]:
        """Begin what turned out to have no committed offset, and find out what the other logs hold.

        The client has one policy for both, so it is asked to stop instead.
        """
        out_of_range: dict[TopicPartition, OutOfRange] = {}
        positions: dict[TopicPartition, int] = {}
        for place in sorted(self._displaced.keys() - self._told):
            offset = self._displaced[place]
            if offset < 0:
                positions[place] = self._start
                continue
            try:
                beginning, end = self._client.get_watermark_offsets(
                    ClientPartition(*place), timeout=REQUEST_SECONDS
                )
            except KafkaException as error:
                means = self._means(error.args[0], f"asking for the log of {place}", place.topic)
                if isinstance(means, AccessDenied):
                    raise means from error
                # With the next poll it is asked again.
                _log.warning("%s", means)
                continue
            if beginning <= offset <= end:
                # A broker that has just become the leader did not know better.
                positions[place] = offset
            else:
                out_of_range[place] = OutOfRange(offset, beginning, end)
        self._place_anew(positions)
        self._told |= out_of_range.keys()
        return out_of_range

    def _place_anew(self, positions: Mapping[TopicPartition, int]) -> None:
        """Assign partitions again, from these offsets: the client does not seek in what it has stopped."""
        if not positions:
            return
        anew = dict(positions)
        if not self._cooperative:
            # The older protocol's assignment is only made as a whole.
            anew = {place: self._reached.get(place, UNPLACED) for place in self._held} | anew
        stopped = anew.keys() & (self._paused | self._idled)
        self._stash = [message for message in self._stash if _place(message) not in anew]

        def assign() -> None:
            # Paused, they would go on from where they were paused.
            self._client.resume(_plain(stopped))
            if self._cooperative:
                self._client.incremental_unassign(_plain(anew))
                self._client.incremental_assign(_with_offsets(anew))
            else:
                self._client.assign(_with_offsets(anew))
            self._client.pause(_plain(stopped))

        self._call("positioning", assign)
        self._reached |= positions
        self._displaced = {place: at for place, at in self._displaced.items() if place not in positions}
        self._told -= positions.keys()

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Where these were in their logs says nothing about the next assignment."""
        for place in list(partitions):
            self._reached.pop(place, None)
            self._displaced.pop(place, None)
            self._told.discard(place)
            self._unplaced.discard(place)
            self._shaken.discard(place)

    def _on_assign(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        self._occupied_since = None
        added = _placed(partitions)
        self._forget(added if self._cooperative else [*self._reached, *self._displaced, *self._unplaced])
        self._rebalanced = True
        self._begin(client, partitions)
        if self._cooperative:
            client.incremental_assign(partitions)
            self._shaken |= self._held
            self._held |= set(added)
        else:
            client.assign(partitions)
            self._held = set(added)
        self._tell("assigned", added)

    def _on_revoke(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        self._release("revoked", client, partitions)

    def _on_lost(self, client: Consumer, partitions: list[ClientPartition]) -> None:
        self._release("lost", client, partitions)

    def _release(self, how: str, client: Consumer, partitions: list[ClientPartition]) -> None:
        gone = set(_placed(partitions))
        self._rebalanced = True
        self._tell(how, sorted(gone))
        self._held -= gone
        self._shaken |= self._held
        # The client keeps a partition paused over the next assignment. Resumed then, it would continue where
        # it was paused and not where the group has committed; so that is done now.
        stopped = gone & (self._paused | self._idled)
        if stopped:
            client.resume(_plain(stopped))
        self._paused -= gone
        self._idled -= gone
        self._stash = [message for message in self._stash if _place(message) not in gone]
        self._forget(gone)
        if self._cooperative:
            client.incremental_unassign(partitions)
        else:
            client.unassign()

    def _tell(self, what: str, partitions: Sequence[TopicPartition]) -> None:
        # An exception must not unwind through the client's C code: it is raised when the call is back.
        if self._listener is None or not partitions:
            return
        try:
            getattr(self._listener, what)(partitions)
        except BaseException as error:  # noqa: BLE001 - kept, and raised by _reraise
            self._raised = self._raised or error

    def _reraise(self) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _means(self, error: KafkaError, doing: str, topic: str | None = None) -> BrokerError:
        topics = [topic] if topic else self._subscribed
        rights = [Right("READ", "topic", name) for name in topics]
        return self._access.means(error, doing, *rights, Right("READ", "group", self._group))

    def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as error:
            raise self._means(error.args[0], doing) from error
        except RuntimeError as error:
            raise FatalBrokerError(f"{doing}: {error}") from error


class _RollCalls:
    """Finds out that a member has missed what its group's coordinator told it.

    After a heartbeat that was not answered in time, librdkafka 2.16 goes on with ordinary ones. But the
    coordinator has told of the change in the answer that was lost, and does not tell again until a heartbeat
    asks for all. The member keeps partitions that others wait for, until the coordinator loses patience
    with it, after ``poll_deadline``.
    """

    def __init__(self, group: str, settings: Settings, access: _Access) -> None:
        self._group = group
        self._make = partial(access.make, AdminClient, settings | {"error_cb": _LastError()})
        self._client: AdminClient | None = None
        self._answer: Future[Any] | None = None
        self._held = frozenset[TopicPartition]()
        """What the member had when the question was asked."""
        self._ask_at = time.monotonic() + ROLL_CALL_SECONDS
        self._differed = 0

    def ask(self, member: str, held: AbstractSet[TopicPartition]) -> str | None:
        """What the coordinator has told of a member for so long that it must have missed it. Never waits."""
        now = time.monotonic()
        if self._answer is None:
            if now >= self._ask_at:
                self._client = self._client or self._make()
                asked = self._client.describe_consumer_groups([self._group], request_timeout=REQUEST_SECONDS)
                self._answer, self._held = asked[self._group], frozenset(held)
            return None
        if not self._answer.done():
            return None
        answer, self._answer = self._answer, None
        self._ask_at = now + ROLL_CALL_SECONDS
        try:
            members = answer.result().members
        except KafkaException:
            # A coordinator that cannot be asked does not assign anything either.
            return None
        self._ask_at += ROLL_CALL_SECONDS * (len(members) // ROLL_CALL_MEMBERS)
        has, wanted = set[TopicPartition](), set[TopicPartition]()
        for told in members:
            if told.member_id == member:
                has, wanted = (
                    set(_placed(assignment.topic_partitions)) if assignment else set()
                    for assignment in (told.assignment, told.target_assignment)
                )
        differs = has - held or held - wanted
        self._differed = self._differed + 1 if differs and held == self._held else 0
        if self._differed < ROLL_CALLS:
            return None
        self._differed = 0
        return (
            f"{len(differs)} partitions, {min(differs)} among them, are not where the coordinator wants them"
        )


class KafkaProducer:
    """See ``streams.broker.Producer``."""

    def __init__(self, settings: Settings, access: _Access) -> None:
        self._access = access
        self._transactional_id: str | None = settings.get("transactional.id")
        self._written: set[str] = set()
        """Topics of the open transaction, or since the last flush."""
        self._failed: tuple[KafkaError, str] | None = None
        own = {"on_delivery": self._on_failure, "error_cb": _LastError()}
        self._client = access.make(Producer, settings | own)
        self._patience = _Patience()
        self._known: set[str] = set()
        self._missing: dict[str, float] = {}

    def produce(self, output: Output) -> None:
        topic = output.topic
        if topic not in self._known:
            self._require(topic)
        self._written.add(topic)
        produce = self._client.produce
        partition = -1 if output.partition is None else output.partition
        headers = output.headers
        at = 0
        total = len(output)
        while at < total:
            try:
                # Positional arguments save a fifth of a call that is made for every record. For the client, a
                # time of 0 means now: right for a record without one, and 1970's first millisecond becomes 1.
                if headers is None:
                    for key, value, stamp in _rest(at, output.keys, output.values, output.timestamps):
                        produce(topic, value, key, partition, None, None, max(stamp or 1, 0))
                        at += 1
                else:
                    for key, value, stamp, header in _rest(
                        at, output.keys, output.values, output.timestamps, headers
                    ):
                        produce(topic, value, key, partition, None, None, max(stamp or 1, 0), header)
                        at += 1
            except BufferError:
                # The queue is full: let the broker take some of it.
                self._client.poll(0.1)
            except KafkaException as error:
                self._refuse(error.args[0], topic, at)
        self._client.poll(0)

    def flush(self, timeout: float) -> None:
        left = self._client.flush(timeout)
        failed, self._failed = self._failed, None
        if failed is not None:
            error, topic = failed
            raise self._means(error, f"producer: writing to {topic}", [topic])
        if left:
            raise Retriable(f"producer: {left} records not acknowledged within {timeout:.0f} s")

    def init_transactions(self, timeout: float) -> None:
        self._until(timeout, "producer: starting transactions", self._client.init_transactions)

    def begin(self) -> None:
        self._failed = None
        self._written.clear()
        try:
            self._client.begin_transaction()
        except KafkaException as error:
            raise self._means(error.args[0], "producer: beginning a transaction") from error

    def send_offsets(self, offsets: Mapping[TopicPartition, int], group_metadata: object) -> None:
        targets = _with_offsets(offsets)
        group, metadata = cast("Membership", group_metadata)
        inputs = sorted({partition.topic for partition in offsets})
        self._until(
            REQUEST_SECONDS,
            "producer: adding offsets to the transaction",
            lambda seconds: self._patience.call(
                lambda: self._client.send_offsets_to_transaction(targets, metadata, seconds), seconds
            ),
            Right("READ", "group", group),
            *(Right("READ", "topic", topic) for topic in inputs),
        )

    def commit(self, timeout: float) -> None:
        self._until(timeout, "producer: committing the transaction", self._client.commit_transaction)

    def abort(self, timeout: float) -> None:
        self._until(timeout, "producer: aborting the transaction", self._client.abort_transaction)

    def close(self) -> None:
        if self._patience.given_up:
            return
        # A producer that was fenced has nothing more to say.
        with suppress(KafkaException):
            self._client.purge()
            self._client.flush(0)

    def _until(self, timeout: float, doing: str, call: Callable[[float], object], *rights: Right) -> None:
        """Repeat a transactional call that may be repeated. Without an answer in time, nobody knows."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                call(max(left, 0.1))
            except KafkaException as error:
                means = self._means(error.args[0], doing, sorted(self._written), *rights)
                if not isinstance(means, Retriable):
                    raise means from error
                if time.monotonic() >= deadline:
                    raise OutcomeUnknown(f"{means}; gave up after {timeout:.0f} s") from error
                self._client.poll(0.05)
            else:
                return

    def _require(self, topic: str) -> None:
        """Look a topic up once: written to blindly, a missing one is only noticed after half a minute."""
        now = time.monotonic()
        if now - self._missing.get(topic, -MISSING_TOPIC_SECONDS) >= MISSING_TOPIC_SECONDS:
            try:
                found = self._client.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
            except KafkaException as error:
                raise self._means(error.args[0], f"producer: looking for topic {topic}", [topic]) from error
            if found.error is None or found.error.code() == KafkaError.LEADER_NOT_AVAILABLE:
                self._known.add(topic)
                return
            if found.error.code() in _FORBIDDEN:
                raise self._means(found.error, f"producer: looking for topic {topic}", [topic])
            self._missing[topic] = now
        raise TopicMissing(topic)

    def _refuse(self, error: KafkaError, topic: str, position: int) -> NoReturn:
        if error.code() in _REFUSED:
            raise RecordRefused(f"writing to {topic}: {error.str()}", position=position)
        raise self._means(error, f"producer: writing to {topic}", [topic])

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        # What was purged belongs to an aborted transaction.
        if error is not None and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):  # noqa: SLF001 - public names of the library
            self._failed = self._failed or (error, cast("str", message.topic()))

    def _means(
        self, error: KafkaError, doing: str, topics: Iterable[str] = (), *rights: Right
    ) -> BrokerError:
        # The client names the topics whose offsets it may not commit, and no others.
        needed = [right for right in rights if right.resource == "topic" and f" {right.name}(" in error.str()]
        needed = needed or [Right("WRITE", "topic", topic) for topic in topics]
        needed += [right for right in rights if right.resource != "topic"]
        if self._transactional_id is not None:
            needed.append(Right("WRITE", "transactional id", self._transactional_id))
        return self._access.means(error, doing, *needed)


class _Patience:
    """Makes client calls on a thread of its own, which is left behind when a call does not come back.

    librdkafka 2.16 may wait for ever, whatever the time-out, when a group's coordinator was restarted
    (its issues 5456 and 5511). The client is then unusable, and is freed should the call return after all.
    """

    def __init__(self) -> None:
        self.given_up = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], object], seconds: float) -> None:
        """Call and wait; raises what the call raises, ``OutcomeUnknown`` when it overdraws its time."""
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True)
            self._thread.start()
        done = threading.Event()
        raised: list[BaseException] = []

        def attempt() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                raised.append(error)
            done.set()

        self._calls.put(attempt)
        if not done.wait(seconds + OVERDRAFT_SECONDS):
            self.given_up = True
            self._calls.put(None)
            raise OutcomeUnknown(f"producer: a call has not come back for {seconds:.0f} s")
        if raised:
            raise raised[0]

    def __del__(self) -> None:
        self._calls.put(None)


def _serve(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()


class KafkaAdmin:
    """See ``streams.broker.Admin``."""

    def __init__(self, settings: Settings, access: _Access) -> None:
        self._access = access
        self._errors = _LastError()
        self._servers = settings["bootstrap.servers"]
        self._settings = settings
        self._client = access.make(AdminClient, settings | {"error_cb": self._errors})
        self._groups: dict[str, Consumer] = {}

    def topics(self) -> dict[str, TopicDescription]:
        return {
            name: TopicDescription(
                name,
                len(topic.partitions),
                min((len(part.replicas) for part in topic.partitions.values()), default=0),
            )
            for name, topic in self._metadata().topics.items()
            if topic.error is None
        }

    def create_topics(self, topics: Collection[NewTopic]) -> set[str]:
        wanted = [
            ClientTopic(
                topic.name,
                topic.partitions,
                -1 if topic.replication_factor is None else topic.replication_factor,
                config=dict(topic.settings),
            )
            for topic in topics
        ]
        created = set()
        refused = []
        asked = self._client.create_topics(
            wanted, operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS
        )
        for name, future in asked.items():
            try:
                future.result()
                created.add(name)
            except KafkaException as error:
                if error.args[0].code() in _FORBIDDEN:
                    refused.append(Right("CREATE", "topic", name))
                elif error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._failure(error, f"creating topic {name}") from error
        if refused:
            raise NotAuthorized("creating topics", refused, principal=self._access.principal)
        deadline = time.monotonic() + REQUEST_SECONDS
        while not self._all_led(created):
            if time.monotonic() > deadline:
                raise TopicError(f"topics {sorted(created)} were created but have no leaders yet")
            time.sleep(0.02)
        return created

    def delete_topics(self, names: Collection[str]) -> None:
        if not names:
            return
        for name, future in self._client.delete_topics(
            list(names), operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS
        ).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    right = Right("DELETE", "topic", name)
                    raise self._failure(error, f"deleting topic {name}", right) from error

    def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        asked = self._client.delete_records(
            _with_offsets(offsets), operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS
        )
        for place, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                doing = f"deleting records of {place.topic}-{place.partition}"
                raise self._failure(error, doing, Right("DELETE", "topic", place.topic)) from error

    def require_rights(self, rights: Mapping[str, Collection[str]]) -> None:
        if not rights:
            return
        missing = []
        asked = self._client.describe_topics(
            TopicCollection(list(rights)), include_authorized_operations=True, request_timeout=REQUEST_SECONDS
        )
        for topic, future in asked.items():
            try:
                granted = future.result().authorized_operations
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    granted = ()
                elif cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                else:
                    raise self._failure(error, f"asking for rights on topic {topic}") from error
            # A broker from before Kafka 2.3 does not tell.
            if granted is not None:
                names = {operation.name for operation in granted}
                missing += [Right(wanted, "topic", topic) for wanted in rights[topic] if wanted not in names]
        if missing:
            raise NotAuthorized("before the group is joined", missing, principal=self._access.principal)

    def settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        if not topics:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        found = {}
        asked = self._client.describe_configs(resources, request_timeout=REQUEST_SECONDS)
        for resource, future in asked.items():
            try:
                entries = future.result()
            except KafkaException as error:
                right = Right("DESCRIBE_CONFIGS", "topic", resource.name)
                raise self._failure(error, f"settings of topic {resource.name}", right) from error
            found[resource.name] = {name: entry.value or "" for name, entry in entries.items()}
        return found

    def end_offsets(
        self, partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        return self._offsets(partitions, _LATEST, isolation)

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return self._offsets(partitions, _EARLIEST, "read_uncommitted")

    def committed_offsets(self, group: str) -> dict[TopicPartition, int]:
        partitions = [
            ClientPartition(name, number)
            for name, topic in self._metadata().topics.items()
            if not name.startswith("__")
            for number in topic.partitions
        ]
        if not partitions:
            return {}
        if group not in self._groups:
            # The admin client's own request for this crashes the process while the group's coordinator is
            # loading (librdkafka 2.16). A consumer that never joins may ask as well.
            self._groups[group] = self._access.make(
                Consumer,
                self._settings
                | {"group.id": group, "isolation.level": "read_uncommitted", "enable.auto.commit": False},
            )
        deadline = time.monotonic() + REQUEST_SECONDS
        while True:
            try:
                found = self._groups[group].committed(partitions, timeout=REQUEST_SECONDS)
            except KafkaException as error:
                if error.args[0].code() not in _TRANSIENT or time.monotonic() > deadline:
                    right = Right("DESCRIBE", "group", group)
                    raise self._failure(error, f"offsets of group {group}", right) from error
                time.sleep(0.05)
            else:
                break
        return {
            TopicPartition(item.topic, item.partition): item.offset
            for item in found
            if item.error is None and item.offset >= 0
        }

    def broker_setting(self, name: str) -> str:
        """One setting of some broker; empty where it is unknown or may not be seen."""
        broker = next(iter(self._metadata().brokers))
        resource = ConfigResource(ResourceType.BROKER, str(broker))
        asked = self._client.describe_configs([resource], request_timeout=REQUEST_SECONDS)
        try:
            entry = asked[resource].result().get(name)
        except KafkaException as error:
            _log.warning(
                "broker setting %s cannot be seen (%s): the classic group protocol is used; "
                "set group_protocol to choose",
                name,
                error.args[0].name(),
            )
            return ""
        return entry.value or "" if entry is not None else ""

    def close(self) -> None:
        groups, self._groups = self._groups, {}
        for client in groups.values():
            client.close()

    def _metadata(self) -> Any:
        found = None
        left = REQUEST_SECONDS
        if not self._access.let_in:
            # A client that is refused goes on trying: ask it for its reasons before all of the time is over.
            with suppress(KafkaException):
                found = self._client.list_topics(timeout=REFUSED_SECONDS)
            if found is None:
                self._raise_refusal()
                left -= REFUSED_SECONDS
        try:
            found = found or self._client.list_topics(timeout=left)
        except KafkaException as error:
            raise self._failure(error, "asking for topics") from error
        self._access.let_in = True
        return found

    def _all_led(self, names: set[str]) -> bool:
        topics = self._metadata().topics
        return all(
            name in topics
            and topics[name].partitions
            and all(part.leader >= 0 for part in topics[name].partitions.values())
            for name in names
        )

    def _offsets(
        self, partitions: Collection[TopicPartition], spec: OffsetSpec, isolation: Isolation
    ) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        level = (
            IsolationLevel.READ_COMMITTED
            if isolation == "read_committed"
            else IsolationLevel.READ_UNCOMMITTED
        )
        wanted = {ClientPartition(*partition): spec for partition in partitions}
        deadline = time.monotonic() + OUTDATED_SECONDS
        while True:
            asked = self._client.list_offsets(wanted, isolation_level=level, request_timeout=REQUEST_SECONDS)
            offsets: dict[TopicPartition, int] = {}
            unknown = ""
            for place, future in asked.items():
                doing = f"offsets of {place.topic}-{place.partition}"
                try:
                    offset = future.result().offset
                except KafkaException as error:
                    if error.args[0].code() not in _OUTDATED:
                        right = Right("DESCRIBE", "topic", place.topic)
                        raise self._failure(error, doing, right) from error
                    unknown = f"{doing}: {error.args[0].str()}"
                else:
                    offsets[TopicPartition(place.topic, place.partition)] = offset
                    if offset < 0:
                        # Where a broker does not answer in time, the client says so by this number alone.
                        unknown = f"{doing}: no answer"
            if not unknown:
                return offsets
            if time.monotonic() > deadline:
                raise Retriable(unknown)
            # The client goes by what it learnt before a broker restarted, for ever, unless it looks again.
            self._metadata()
            time.sleep(0.05)

    def _raise_refusal(self) -> None:
        """Raise ``NotAuthenticated`` if that is why nothing was heard so far."""
        # Only here the client hands out what it has met with meanwhile.
        self._client.poll(0)
        if not self._errors.refusal:
            return
        text = self._access.scrub(self._errors.refusal)
        hint = "are sasl.mechanism and the name and password, or the token, right? See the setting client"
        if "SSL handshake" in text:
            hint = (
                "does the port speak TLS (security.protocol), and is its certificate for this name and "
                "signed by the authority in ssl.ca.location? See the setting client"
            )
        raise NotAuthenticated(f"no connection to {self._servers}: {text}", hint=hint)

    def _failure(self, error: KafkaException, doing: str, *rights: Right) -> BrokerError:
        cause: KafkaError = error.args[0]
        if cause.code() in _UNREACHABLE:
            self._client.poll(0)
            detail = f": {self._access.scrub(self._errors.text)}" if self._errors.text else ""
            hint = "is the address right, does a broker run there? `streams broker start` starts one here"
            if not self._access.complete:
                hint += "; one that asks for TLS or SASL does not answer without (setting client)"
            return BrokerUnreachable(f"no broker answers at {self._servers} ({doing}){detail}", hint=hint)
        if cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return TopicError(f"{doing}: the topic or partition does not exist")
        if cause.code() in (
            KafkaError.INVALID_PARTITIONS,
            KafkaError.INVALID_REPLICATION_FACTOR,
            KafkaError.INVALID_CONFIG,
            KafkaError.TOPIC_EXCEPTION,
            KafkaError.POLICY_VIOLATION,
        ):
            return TopicError(f"{doing}: {cause.str()}")
        return self._access.means(cause, doing, *rights)


class _LastError:
    """Remembers why a client cannot connect, which the error of the failing call itself does not tell."""

    def __init__(self) -> None:
        self.text = ""
        self.refusal = ""
        """Why it was refused, by TLS or for its credentials, if it ever was."""

    def __call__(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - a public name of the library
            self.text = error.str()
            # A port without TLS just closes the connection, which has no code of its own.
            if error.code() in _REJECTED or "SSL handshake failed" in self.text:
                self.refusal = self.text


def _place(message: Message) -> TopicPartition:
    return TopicPartition(cast("str", message.topic()), cast("int", message.partition()))


def _has_none(partition: ClientPartition) -> bool:
    """Whether the group is known to have committed no offset of it."""
    return partition.error is None and partition.offset == OFFSET_INVALID


def _is_displaced(message: Message) -> bool:
    """Whether it says that the client knows no place in the log to go on from."""
    error = message.error()
    return error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - a public name of the library


def _plain(partitions: Iterable[TopicPartition]) -> list[ClientPartition]:
    return [ClientPartition(topic, partition) for topic, partition in partitions]


def _with_offsets(positions: Mapping[TopicPartition, int]) -> list[ClientPartition]:
    return [ClientPartition(topic, partition, offset) for (topic, partition), offset in positions.items()]


def _placed(partitions: Iterable[ClientPartition]) -> list[TopicPartition]:
    return [TopicPartition(item.topic, item.partition) for item in partitions]


def _rest(at: int, *columns: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
    return zip(*(column[at:] if at else column for column in columns), strict=True)
