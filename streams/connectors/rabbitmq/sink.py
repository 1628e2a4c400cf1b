"""The RabbitMQ sink as a program names it."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from streams.connectors.rabbitmq.connection import Connection
from streams.connectors.rabbitmq.declarations import (
    ExchangeType,
    Header,
    Key,
    check_exchange_type,
    declare_exchange,
)
from streams.connectors.rabbitmq.message_properties import LONGEST_SHORT
from streams.connectors.rabbitmq.publish_frames import PublishFrames
from streams.connectors.rabbitmq.server_address import ServerAddress
from streams.connectors.rabbitmq.sink_writer import MessageWriter, ServerFacts
from streams.errors import ConfigurationError, SinkUnavailable
from streams.serde import Bytes, Json, Text

if TYPE_CHECKING:
    from streams.connectors.rabbitmq.routing import RoutingKey
    from streams.connectors.sink import SinkContext
    from streams.serde import Serde

Unroutable: TypeAlias = Literal["dead_letter", "wait", "ignore"]

_CONTENT_TYPES: dict[type, str] = {
    Json: "application/json",
    Text: "text/plain; charset=utf-8",
    Bytes: "application/octet-stream",
}


@dataclass(frozen=True, slots=True)
class RabbitMQSink:
    """Publishes each record to an exchange, at least once, and waits for the server's confirms.

    ``routing_key`` is a text, ``Key()`` for the record's key, ``Header("name")`` for one of its headers, or a
    function of its value. ``exchange=""`` is the default one, where the routing key is a queue's name. The
    exchange must exist, unless ``declare`` names the type with which it is declared, durable.

    Messages have the value as the serde ``value`` writes it (a null value is empty), the record's headers,
    its time in seconds, and its coordinates ``topic/partition/offset`` as ``message_id``: a message that is
    sent again has the same. Headers ``rabbitmq.priority``, ``rabbitmq.correlation_id`` and so on set these
    properties. ``content_type`` is by default that of the serde.

    Rows that no queue gets become dead letters; with ``unroutable="wait"`` the input waits until there is
    one, with ``"ignore"`` the server drops them. ``url`` is ``amqp://user@host:5672/virtual_host``, with
    ``amqps`` for TLS. About ``max_rows`` records are sent before their confirms are waited for.
    """

    keeps_positions: ClassVar[bool] = False
    """RabbitMQ has no place for them: the group's committed offsets are the positions."""
    takes_retries: ClassVar[bool] = True
    """A message that is sent again is within what the sink guarantees."""

    url: str = field(repr=False)
    _: KW_ONLY
    exchange: str
    routing_key: RoutingKey
    value: Serde[Any] = field(default_factory=Json)
    declare: ExchangeType | None = None
    unroutable: Unroutable = "dead_letter"
    persistent: bool = True
    content_type: str | None = None
    max_rows: int = 5_000
    known: ServerFacts = field(default_factory=ServerFacts, init=False, repr=False, compare=False)

    kind = "rabbitmq"

    def __post_init__(self) -> None:
        ServerAddress.parse(self.url, "RabbitMQSink")
        what = f"RabbitMQSink({self.exchange!r})"
        check_exchange_type(f"{what}: declare=", self.declare)
        if self.declare is not None and not self.exchange:
            raise ConfigurationError(f"{what}: the default exchange cannot be declared")
        if self.unroutable not in get_args(Unroutable):
            raise ConfigurationError(
                f"{what}: unroutable={self.unroutable!r} is none of {', '.join(get_args(Unroutable))}"
            )
        rule = self.routing_key
        if not (isinstance(rule, str | Key | Header) or callable(rule)):
            raise ConfigurationError(
                f"{what}: routing_key={rule!r:.80} is neither text nor Key(), Header(…) or a function"
            )
        texts = [("exchange", self.exchange), ("content_type", self.content_type or "")]
        if isinstance(rule, str):
            texts.append(("routing_key", rule))
        for option, text in texts:
            if len(text.encode()) > LONGEST_SHORT:
                raise ConfigurationError(f"{what}: {option}= has more than {LONGEST_SHORT} bytes")
        if self.max_rows < 1:
            raise ConfigurationError(f"{what}: max_rows={self.max_rows}, needed is at least 1")

    @property
    def target(self) -> str:
        """What it writes to, an exchange or a queue, as a name that topics may have too."""
        name = self.exchange or (self.routing_key if isinstance(self.routing_key, str) else "default")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "default"

    @property
    def waits_for_route(self) -> bool:
        return self.unroutable == "wait"

    def check(self, context: SinkContext) -> None:
        connection = self._connected(context, starting=True)
        try:
            with connection.using("checking the exchange", starting=True):
                self._prepare(connection)
        finally:
            connection.close()

    def open(self, context: SinkContext) -> MessageWriter:
        connection = self._connected(context, starting=False)
        try:
            with connection.using("opening the exchange") as client:
                self._prepare(connection)
                connection.channel.confirm_select()
                content_type = self.content_type or _CONTENT_TYPES.get(type(self.value))
                frames = PublishFrames(
                    self.exchange,
                    mandatory=self.unroutable != "ignore",
                    persistent=self.persistent,
                    content_type=content_type,
                    frame_max=client.frame_max,
                )
                return MessageWriter(
                    connection,
                    frames,
                    self,
                    name=f"sink {context.name!r} at {connection.address}",
                )
        except BaseException:
            connection.close(orderly=False)
            raise

    def _prepare(self, connection: Connection) -> None:
        """Declare the exchange, or check that it exists."""
        if self.declare is not None:
            declare_exchange(connection.channel, self.exchange, self.declare)
        elif self.exchange:
            connection.channel.exchange_declare(self.exchange, "", passive=True)

    def _connected(self, context: SinkContext, *, starting: bool) -> Connection:
        return Connection(
            ServerAddress.parse(self.url, "RabbitMQSink"),
            what=f"sink {context.name!r}",
            name=f"streams {context.application} {context.name} {context.worker}",
            unavailable=SinkUnavailable,
            starting=starting,
        )
