"""A program beside the tested one that puts messages into a real RabbitMQ and takes them from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import amqp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streams.devstack.rabbitmq import LocalRabbitMQ


class Program:
    """A connection of its own to the server; a context manager."""

    def __init__(self, server: LocalRabbitMQ) -> None:
        parts = urlsplit(server.url())
        self.connection = amqp.Connection(
            f"127.0.0.1:{parts.port}", "guest", "guest", login_method="PLAIN", connect_timeout=30
        )
        self.connection.connect()
        self.channel = self.connection.channel()
        self.channel.confirm_select()
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for name in self._names:
                self.channel.queue_delete(name)
            self.connection.close()
        except (amqp.AMQPError, OSError):
            self.connection.collect()

    def queue(self, name: str, exchange: str = "", routing_key: str = "", **arguments: Any) -> str:
        """Declare a queue, durable; it is deleted at the end."""
        self.channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        if exchange:
            self.channel.queue_bind(name, exchange, routing_key)
        self._names.append(name)
        return name

    def exchange(self, name: str, kind: str = "topic") -> str:
        self.channel.exchange_declare(name, kind, durable=True, auto_delete=False)
        return name

    def put(
        self,
        queue: str,
        bodies: Iterable[bytes | str],
        *,
        ids: Iterable[str] | None = None,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        """Publish messages, and wait until the server has them."""
        sent = 0
        names = iter(ids) if ids is not None else None
        confirmed = 0

        def settle(tag: int, multiple: bool) -> None:
            nonlocal confirmed
            confirmed = max(confirmed, tag) if multiple else confirmed + 1

        begun = getattr(self, "_published", 0)
        confirmed = begun
        self.channel.events["basic_ack"] = {settle}
        for body in bodies:
            more = {} if names is None else {"message_id": next(names)}
            content = body.encode() if isinstance(body, str) else body
            message = amqp.Message(
                content, application_headers=dict(headers or {}), delivery_mode=2, **more, **properties
            )
            self.channel.basic_publish(message, exchange, queue)
            sent += 1
        self._published = begun + sent
        while confirmed < self._published:
            self.connection.drain_events(timeout=30)

    def take(self, queue: str, count: int = 1_000_000) -> list[Any]:
        """Remove the messages that are there now, at most so many."""
        found: list[Any] = []
        while len(found) < count and (message := self.channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message)
        return found

    def bodies(self, queue: str) -> list[bytes]:
        """Remove the messages that are there now, and return their bodies."""
        return [_bytes(message.body) for message in self.take(queue)]

    def count(self, queue: str) -> int:
        """How many messages are ready, without those that a consumer has."""
        return int(self.channel.queue_declare(queue, passive=True).message_count)


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body
