"""A queue as a source: messages enter the log, and are acknowledged once they are committed."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args, overload

from streams.connectors.rabbitmq.connection import Connection
from streams.connectors.rabbitmq.declarations import MOST_PREFETCH, Header, Queue
from streams.connectors.rabbitmq.deduplication import STORE, Deduplication
from streams.connectors.rabbitmq.message_columns import FieldName, MessageColumns, identity_header
from streams.connectors.rabbitmq.message_properties import PROPERTY_NAMES
from streams.connectors.rabbitmq.queue_reader import QueueReader, prepare
from streams.connectors.rabbitmq.server_address import ServerAddress
from streams.errors import ConfigurationError
from streams.serde import Bytes, Json, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from streams.connectors.rabbitmq.message_properties import PropertyName
    from streams.connectors.source import SourceContext
    from streams.serde import Serde

V = TypeVar("V")
Type: TypeAlias = builtins.type[V]
Unreadable: TypeAlias = Literal["dead_letter", "reject"]

PREFETCH: Final = 20_000
REMEMBERED: Final = 100_000


@dataclass(frozen=True, slots=True)
class _QueueSource(Generic[V]):
    """The options of a queue."""

    url: str = field(repr=False)
    queue: str
    value: Serde[V]
    declare: Queue | None
    key_from: FieldName | None
    properties: tuple[str, ...]
    identity: FieldName
    remembered: int
    unreadable: Unreadable
    tasks: int
    prefetch: int
    max_records: int
    dropped: dict[int, int] = field(default_factory=dict, repr=False, compare=False)
    """How many messages each task in this process has dropped."""

    def __post_init__(self) -> None:
        ServerAddress.parse(self.url, "RabbitMQQueue")
        what = f"RabbitMQQueue({self.queue!r})"
        if not self.queue:
            raise ConfigurationError("RabbitMQQueue needs the name of a queue")
        for option, names in (
            ("properties", self.properties),
            ("key_from", () if self.key_from is None else (self.key_from,)),
            ("identity", (self.identity,)),
        ):
            for name in names:
                if isinstance(name, Header) and option != "properties":
                    continue
                if name not in PROPERTY_NAMES:
                    raise ConfigurationError(
                        f"{what}: {option}= has {name!r}, which is no property of messages",
                        hint=f"these are: {', '.join(PROPERTY_NAMES)}"
                        + ('; a header is Header("name")' if option != "properties" else ""),
                    )
        if self.unreadable not in get_args(Unreadable):
            raise ConfigurationError(
                f"{what}: unreadable={self.unreadable!r} is none of {', '.join(get_args(Unreadable))}"
            )
        for option, number, least in (
            ("tasks", self.tasks, 1),
            ("prefetch", self.prefetch, 1),
            ("max_records", self.max_records, 1),
            ("remembered", self.remembered, 0),
        ):
            if number < least:
                raise ConfigurationError(f"{what}: {option}={number}, needed is at least {least}")
        if self.prefetch > MOST_PREFETCH:
            raise ConfigurationError(f"{what}: prefetch={self.prefetch}, AMQP allows {MOST_PREFETCH}")
        if 0 < self.remembered < self.prefetch:
            raise ConfigurationError(
                f"{what}: remembered={self.remembered} is less than prefetch={self.prefetch}: so many "
                "messages may be delivered again at once",
                hint="raise remembered=, or set it to 0, which repeats them",
            )


class RabbitMQQueue(_QueueSource[V]):
    """The messages of a queue, acknowledged once they are committed in Kafka.

    Values are text, JSON of ``type``, or what the serde ``value`` reads. The headers of messages are those of
    the records. ``properties`` adds AMQP's, as ``rabbitmq.content_type`` and so on. ``key_from`` is the
    property or ``Header`` that is the key. The event time is the property ``timestamp``, or that of reading.

    What was not acknowledged when a connection ends is delivered again: messages whose ``identity`` (by
    default the property ``message_id``) was committed are dropped then, those without one are repeated. The
    last ``remembered`` identities are kept; 0 keeps none.

    ``declare`` creates the queue; without it, it must exist. ``unreadable="reject"`` rejects messages whose
    value cannot be read, which leave for the dead-letter exchange of the queue, if it has one. ``prefetch``
    bounds how many messages are unacknowledged at a time, and with it what passes between two commits. With
    ``tasks``, so many consumers share the queue. A batch has up to ``max_records`` messages. ``url`` is
    ``amqp://user@host:5672/virtual_host``, with ``amqps`` for TLS.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: RabbitMQQueue[str],
        url: str,
        queue: str,
        type: None = None,
        *,
        declare: Queue | None = None,
        key_from: FieldName | None = None,
        properties: Collection[PropertyName] = (),
        identity: FieldName = "message_id",
        remembered: int = REMEMBERED,
        unreadable: Unreadable = "dead_letter",
        tasks: int = 1,
        prefetch: int = PREFETCH,
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        url: str,
        queue: str,
        type: Type[V],
        *,
        declare: Queue | None = None,
        key_from: FieldName | None = None,
        properties: Collection[PropertyName] = (),
        identity: FieldName = "message_id",
        remembered: int = REMEMBERED,
        unreadable: Unreadable = "dead_letter",
        tasks: int = 1,
        prefetch: int = PREFETCH,
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        url: str,
        queue: str,
        *,
        value: Serde[V],
        declare: Queue | None = None,
        key_from: FieldName | None = None,
        properties: Collection[PropertyName] = (),
        identity: FieldName = "message_id",
        remembered: int = REMEMBERED,
        unreadable: Unreadable = "dead_letter",
        tasks: int = 1,
        prefetch: int = PREFETCH,
        max_records: int = 2_000,
    ) -> None: ...

    def __init__(
        self,
        url: str,
        queue: str,
        type: Any = None,  # noqa: A002 - as of Json
        *,
        value: Any = None,
        declare: Queue | None = None,
        key_from: FieldName | None = None,
        properties: Collection[PropertyName] = (),
        identity: FieldName = "message_id",
        remembered: int = REMEMBERED,
        unreadable: Unreadable = "dead_letter",
        tasks: int = 1,
        prefetch: int = PREFETCH,
        max_records: int = 2_000,
    ) -> None:
        if value is not None and type is not None:
            raise ConfigurationError(f"RabbitMQQueue({queue!r}): give a type or value=, not both")
        if isinstance(properties, str):
            raise ConfigurationError(f"RabbitMQQueue({queue!r}): properties= is a list of names")
        if value is None:
            value = Text() if type is None else Json(type)
        super().__init__(
            url,
            queue,
            value,
            declare,
            key_from,
            tuple(dict.fromkeys(properties)),
            identity,
            remembered,
            unreadable,
            tasks,
            prefetch,
            max_records,
        )

    @property
    def kind(self) -> str:
        """The system."""
        return "rabbitmq"

    @property
    def key(self) -> Serde[str]:
        return Text()

    @property
    def rejecting(self) -> bool:
        return self.unreadable == "reject"

    @property
    def process(self) -> Callable[[], Deduplication] | None:
        """What drops messages that were committed before."""
        if not self.remembered:
            return None
        return partial(Deduplication, identity_header(self.identity), self.remembered, self.dropped)

    @property
    def stores(self) -> Mapping[str, tuple[Serde[Any], Serde[Any]]]:
        """The identities."""
        return {STORE: (Bytes(), Bytes())} if self.remembered else {}

    def check(self, application: str, name: str) -> None:
        """Check that the server can be used, and that the queue exists; declare it if that was asked for."""
        what = f"source {name!r}: queue {self.queue!r}"
        connection = Connection(
            ServerAddress.parse(self.url, what),
            what=what,
            name=f"streams {application} {name}",
            starting=True,
        )
        try:
            with connection.using("checking it", starting=True):
                prepare(connection.channel, self)
        finally:
            connection.close()

    def open(self, context: SourceContext) -> QueueReader:
        """Connect, and begin to consume."""
        identity = self.identity if self.remembered else None
        columns = MessageColumns(self.key_from, identity, self.properties)
        return QueueReader(self, columns, context, self.dropped)
