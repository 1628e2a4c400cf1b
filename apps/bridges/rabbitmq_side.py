"""Those who send to RabbitMQ, and count what arrives there."""

# pyright: basic
# As amqp has no types.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import amqp

from streams.connectors.rabbitmq import Queue

if TYPE_CHECKING:
    from collections.abc import Callable

PASSING: Final = (amqp.AMQPError, OSError)
"""What passes when the server is back."""
CONFIRM_SECONDS: Final = 10.0
IN: Final = "queue-in"
OUT: Final = "queue-out"


def connected(port: int) -> Any:
    """A connection that waits for no answer longer than some seconds."""
    connection = amqp.Connection(
        f"127.0.0.1:{port}",
        "guest",
        "guest",
        login_method="PLAIN",
        connect_timeout=CONFIRM_SECONDS,
        read_timeout=CONFIRM_SECONDS,
        write_timeout=CONFIRM_SECONDS,
    )
    connection.connect()
    return connection


class RabbitMQTarget:
    """A queue. A batch whose confirms are missing is sent again, with the same message ids."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Any = None
        self._tag = 0
        """Of the last message of the connection's channel."""
        self._confirmed = 0

    def send(self, numbers: range) -> None:
        try:
            if self._connection is None:
                self._connection = connected(self._port)
                self._channel = self._connection.channel()
                self._channel.confirm_select()
                self._tag = 0
                Queue().declare(self._channel, IN)
            waiting = set(range(self._tag + 1, self._tag + 1 + len(numbers)))
            self._tag += len(numbers)

            def settle(tag: int, multiple: bool) -> None:
                waiting.difference_update([each for each in waiting if each <= tag] if multiple else [tag])

            self._channel.events["basic_ack"] = {settle}
            for number in numbers:
                message = amqp.Message(str(number), message_id=f"message-{number}", delivery_mode=2)
                self._channel.basic_publish(message, "", IN)
            while waiting:
                self._connection.drain_events(timeout=CONFIRM_SECONDS)
            self._confirmed = numbers.stop
        except PASSING:
            self.close()
            raise

    def sent(self) -> int | None:
        return self._confirmed

    def close(self) -> None:
        if self._connection is not None:
            self._connection.collect()
            self._connection = None


class RabbitMQNumbers:
    """The numbers in a queue, which are looked at and stay there.

    While there are fewer messages than ``wanted()``, only how many there are is looked at.
    """

    def __init__(self, port: int, wanted: Callable[[], int]) -> None:
        self._port = port
        self._wanted = wanted
        self._found: list[int] = []
        self._depth = 0

    def found(self) -> list[int]:
        """Those that are there now; while the server is away, those that were there before."""
        with contextlib.suppress(*PASSING):
            connection = connected(self._port)
            try:
                channel = connection.channel()
                depth = channel.queue_declare(OUT, durable=True, auto_delete=False).message_count
                if depth < self._wanted():
                    self._found = list(range(depth))
                elif depth != self._depth:
                    self._found = self._look(connection, channel, depth)
                    self._depth = depth
            finally:
                # What was delivered and is not acknowledged goes back into the queue.
                connection.collect()
        return self._found

    def _look(self, connection: Any, channel: Any, count: int) -> list[int]:
        numbers: list[int] = []
        channel.basic_consume(OUT, callback=lambda message: numbers.append(int(message.body)))
        while len(numbers) < count:
            connection.drain_events(timeout=CONFIRM_SECONDS)
        return numbers
