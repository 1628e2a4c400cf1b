"""Reads a queue, whose messages are acknowledged once they are committed."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from streams.connectors.rabbitmq.connection import Connection
from streams.connectors.rabbitmq.message_columns import MessageColumns, redelivered
from streams.connectors.rabbitmq.message_properties import decoded
from streams.connectors.rabbitmq.server_address import ServerAddress
from streams.connectors.source import SourceBatch, SourceHealth
from streams.errors import ConnectorError, SourceUnavailable
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.rabbitmq.client import Client
    from streams.connectors.rabbitmq.declarations import Queue
    from streams.connectors.source import SourceContext
    from streams.serde import Serde

BATCH_BYTES: Final = 4 * 1024 * 1024
"""A batch has no more messages once it has so many bytes."""


STREAM_OFFSET: Final = "x-stream-offset"
"""The header that messages of streams have, which are queues for the protocol."""


class QueueOptions(Protocol):
    """What a source says of its queue."""

    @property
    def url(self) -> str: ...

    @property
    def queue(self) -> str: ...

    @property
    def declare(self) -> Queue | None: ...

    @property
    def value(self) -> Serde[Any]: ...

    @property
    def rejecting(self) -> bool:
        """Whether messages whose value cannot be read are rejected."""

    @property
    def prefetch(self) -> int: ...

    @property
    def max_records(self) -> int: ...


@decodable
class QueuePosition(msgspec.Struct, frozen=True):
    """How many messages the source has read. What was read is only known to the server, by the connection."""

    read: int


class _Unacknowledged(NamedTuple):
    """Messages of a batch, by the number after them and the tag of the last one."""

    read: int
    tag: int
    messages: int


class QueueReader:
    """A ``SourceReader`` of a queue, each of which is a consumer of its own.

    What it has received and not acknowledged when it ends is delivered again, to whichever consumer.
    """

    def __init__(
        self,
        options: QueueOptions,
        columns: MessageColumns,
        context: SourceContext,
        dropped: Mapping[int, int],
    ) -> None:
        self._options = options
        self._columns = columns
        self._task = context.task
        self._dropped = dropped
        self._what = f"source {context.name!r}: queue {options.queue!r}"
        self._name = f"streams {context.application} {context.name}"
        position = msgspec.json.decode(context.position or b'{"read":0}', type=QueuePosition)
        self._read = position.read
        self._tag = 0
        self._unacknowledged: deque[_Unacknowledged] = deque()
        self._waiting = 0
        """How many messages are not acknowledged, of those that were read."""
        self._redelivered = 0
        self._rejected = 0
        self._confirmed = self._acknowledged = position.read
        self._closed = threading.Event()
        self._looking = threading.Lock()
        self._looker: Connection | None = None
        self._connection = self._connected()
        try:
            with self._connection.using("consuming"):
                prepare(self._connection.channel, options)
                channel = self._connection.channel
                # Shown in the server's lists.
                consumer = f"{context.application}/{context.name}/{context.task}"
                channel.basic_qos(0, options.prefetch, False)
                channel.basic_consume(options.queue, consumer_tag=consumer[-200:])
        except BaseException:
            self._connection.close(orderly=False)
            raise

    def _connected(self) -> Connection:
        address = ServerAddress.parse(self._options.url, self._what)
        return Connection(address, what=self._what, name=self._name)

    def read(self, timeout: float) -> SourceBatch | None:
        if self._closed.is_set():
            return None
        until = time.monotonic() + timeout
        try:
            with self._connection.using("reading") as client:
                while True:
                    self._acknowledge(client)
                    while len(client.deliveries) < self._options.max_records and client.receive(0.0):
                        pass
                    if client.deliveries:
                        batch = self._batch(client)
                        if batch is not None:
                            return batch
                    left = until - time.monotonic()
                    if left <= 0 or self._closed.is_set():
                        return None
                    client.receive(left)
        except SourceUnavailable:
            # Closing ends the connection.
            if self._closed.is_set():
                return None
            raise

    def _batch(self, client: Client) -> SourceBatch | None:
        """The next messages; ``None`` if all of them were rejected."""
        methods, contents, bodies = client.deliveries.take(self._options.max_records, BATCH_BYTES)
        if STREAM_OFFSET in (decoded(contents[0]).get("headers") or ()):
            raise ConnectorError(
                f"{self._what} is a stream, whose messages are not kept for a consumer",
                hint="read a queue that is bound to the same exchange",
            )
        tags: Sequence[int] = range(self._tag + 1, self._tag + 1 + len(bodies))
        self._tag += len(bodies)
        self._redelivered += redelivered(methods)
        unreadable = self._unreadable(bodies) if self._options.rejecting else ()
        if unreadable:
            for row in unreadable:
                self._connection.channel.basic_reject(tags[row], False)
            self._rejected += len(unreadable)
            kept = [row for row in range(len(bodies)) if row not in unreadable]
            methods, contents, bodies = (
                [column[row] for row in kept] for column in (methods, contents, bodies)
            )
            tags = [tags[row] for row in kept]
            if not kept:
                return None
        first = self._read
        self._read += len(bodies)
        self._waiting += len(bodies)
        # The server knows no tag of a message that was rejected.
        self._unacknowledged.append(_Unacknowledged(self._read, tags[-1], len(bodies)))
        columns = self._columns.columns(methods, contents)
        return SourceBatch.of(
            self._options.queue,
            first,
            msgspec.json.encode(QueuePosition(self._read)),
            keys=columns.keys,
            values=bodies,
            timestamps=columns.timestamps,
            headers=columns.headers,
        )

    def _unreadable(self, bodies: list[bytes]) -> set[int]:
        """The rows whose values the serde refuses."""
        deserialize = self._options.value.deserialize
        try:
            for _ in deserialize(bodies):
                pass
        except Exception:  # noqa: BLE001 - any error is the value's
            return {row for row, body in enumerate(bodies) if not _reads(deserialize, body)}
        return set()

    def _acknowledge(self, client: Client) -> None:
        """Acknowledge what is committed."""
        while self._acknowledged != (confirmed := self._confirmed):
            tag = 0
            while self._unacknowledged and self._unacknowledged[0].read <= confirmed:
                done = self._unacknowledged.popleft()
                tag = done.tag
                self._waiting -= done.messages
            self._acknowledged = confirmed
            if tag:
                self._connection.channel.basic_ack(tag, True)
                client.sent_at = time.monotonic()

    def confirm(self, position: bytes) -> None:
        # Acknowledged by the thread that reads.
        self._confirmed = msgspec.json.decode(position, type=QueuePosition).read
        self._connection.client.wake()

    def health(self) -> SourceHealth:
        with self._looking:
            if self._closed.is_set():
                raise SourceUnavailable(f"{self._what} is closed")
            if self._looker is None or self._looker.ended:
                self._looker = self._connected()
            with self._looker.using("looking at it"):
                found = self._looker.channel.queue_declare(self._options.queue, passive=True)
        return SourceHealth(
            "",
            {
                "ready": float(found.message_count),
                "unacknowledged": float(self._waiting + len(self._connection.client.deliveries)),
                "read": float(self._read),
                "redelivered": float(self._redelivered),
                "rejected": float(self._rejected),
                "duplicates": float(self._dropped.get(self._task, 0)),
            },
        )

    def close(self) -> None:
        self._closed.set()
        # What is committed is not delivered again to others.
        self._connection.close(last=self._acknowledge)
        with self._looking:
            if self._looker is not None:
                self._looker.close()


def prepare(channel: Any, options: QueueOptions) -> None:
    """Declare the queue, or check that it exists."""
    if options.declare is None:
        channel.queue_declare(options.queue, passive=True)
    else:
        options.declare.declare(channel, options.queue)


def _reads(deserialize: Any, body: bytes) -> bool:
    try:
        list(deserialize([body]))
    except Exception:  # noqa: BLE001 - any error is the value's
        return False
    return True
