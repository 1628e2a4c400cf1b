"""Queues, exchanges and bindings that a connector creates where they are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ExchangeType: TypeAlias = Literal["direct", "fanout", "headers", "topic"]
QueueType: TypeAlias = Literal["classic", "quorum"]

MOST_PREFETCH: Final = 65_535
"""The protocol's number has 16 bits."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Key:
    """The key of a record, as text."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a queue gets from an exchange: messages whose routing key matches.

    ``exchange_type`` declares the exchange, durable; without it, the exchange has to exist. ``arguments`` are
    those of the binding, e.g. of an exchange of headers.
    """

    exchange: str
    routing_key: str = ""
    exchange_type: ExchangeType | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_exchange_type(f"Binding({self.exchange!r})", self.exchange_type)
        if not self.exchange:
            raise ConfigurationError(
                "Binding needs the name of an exchange: the default one has a binding for each queue already"
            )

    def declare(self, channel: Any, queue: str) -> None:
        if self.exchange_type is not None:
            declare_exchange(channel, self.exchange, self.exchange_type)
        channel.queue_bind(queue, self.exchange, self.routing_key, arguments=dict(self.arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """How a durable queue is declared. One that exists must have the same type and arguments.

    ``dead_letter_exchange`` gets messages that are rejected or expire. ``arguments`` are the server's own,
    e.g. ``{"x-delivery-limit": 50}``.
    """

    type: QueueType = "quorum"
    dead_letter_exchange: str | None = None
    bindings: Sequence[Binding] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in get_args(QueueType):
            raise ConfigurationError(f"Queue: type={self.type!r} is none of {', '.join(get_args(QueueType))}")

    def declare(self, channel: Any, name: str) -> None:
        arguments: dict[str, Any] = {"x-queue-type": self.type}
        if self.dead_letter_exchange is not None:
            arguments["x-dead-letter-exchange"] = self.dead_letter_exchange
        arguments |= self.arguments
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        for binding in self.bindings:
            binding.declare(channel, name)


def declare_exchange(channel: Any, name: str, kind: ExchangeType) -> None:
    """Declare a durable exchange."""
    channel.exchange_declare(name, kind, durable=True, auto_delete=False)


def check_exchange_type(what: str, kind: str | None) -> None:
    """Check the name of a type. Raises ``ConfigurationError``."""
    if kind is not None and kind not in get_args(ExchangeType):
        raise ConfigurationError(f"{what}: {kind!r} is none of {', '.join(get_args(ExchangeType))}")
