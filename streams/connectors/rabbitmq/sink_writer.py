"""Publishes the rows of a sink, and waits until the server has confirmed them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from streams.connectors.encoded_columns import encoded
from streams.connectors.rabbitmq.confirms import Confirms
from streams.connectors.rabbitmq.routing import routing_keys
from streams.connectors.rabbitmq.server_errors import CLIENT_ERRORS, PRECONDITION_FAILED
from streams.connectors.row_origins import origins_of
from streams.connectors.sink import RefusedRow
from streams.connectors.writer_state import WriterState
from streams.errors import SinkUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from streams.connectors.rabbitmq.client import Client
    from streams.connectors.rabbitmq.connection import Connection
    from streams.connectors.rabbitmq.publish_frames import PublishFrames
    from streams.connectors.rabbitmq.routing import RoutingKey
    from streams.connectors.sink import SinkRows
    from streams.records import TopicPartition
    from streams.serde import Serde

SEND_BYTES: Final = 256 * 1024
"""How many bytes of messages are sent before the answers to them are looked at."""

CONFIRM_SECONDS: Final = 10.0
"""How long the server may confirm nothing of what was published."""

_LARGEST: Final = re.compile(r"message size \d+ .*?(?:max size|limit of) (\d+)")


class SinkOptions(Protocol):
    """What a sink says of its messages."""

    @property
    def exchange(self) -> str: ...

    @property
    def routing_key(self) -> RoutingKey: ...

    @property
    def value(self) -> Serde[Any]: ...

    @property
    def waits_for_route(self) -> bool:
        """Whether rows that no queue gets are an outage."""

    @property
    def known(self) -> ServerFacts: ...


@dataclass
class ServerFacts:
    """What attempts have shown of the server, for the writers that follow."""

    largest: int | None = None
    """How many bytes a message may have, once one was refused for its size."""
    untaken: str | None = None
    """The first row that the last attempt could not deliver: a new attempt begins with it."""


class _Row(NamedTuple):
    """Which row a message is."""

    origin: str
    partition: TopicPartition
    row: int


class MessageWriter:
    """A ``SinkWriter`` of an exchange: what is written is published, and confirmed by the server."""

    def __init__(
        self,
        connection: Connection,
        frames: PublishFrames,
        options: SinkOptions,
        *,
        name: str,
    ) -> None:
        self._connection = connection
        self._frames = frames
        self._options = options
        self._name = name
        self._state = WriterState.CLAIMED
        self._confirms = Confirms()
        self._returned: dict[str, str] = {}
        """Why a message came back, by its id."""
        self._proven = False
        connection.client.confirmed = self._confirms.settle
        connection.channel.events["basic_return"].add(self._take_returned)

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept for a partition."""

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        following = self._state.to(WriterState.WRITTEN)
        refused: list[RefusedRow] = []
        messages: list[bytes] = []
        sent: list[_Row] = []
        for part in rows:
            self._encode(part, messages, sent, refused)
        order = self._order(sent)
        before = self._confirms.published
        try:
            with self._connection.using("publishing") as client:
                try:
                    self._publish(client, [messages[place] for place in order])
                except CLIENT_ERRORS as error:
                    self._note_limit(error)
                    raise
        except SinkUnavailable:
            # A server that takes no messages does not take leave either.
            self._close(orderly=False)
            raise
        if self._confirms.negative:
            places = sorted(order[tag - before - 1] for tag in self._confirms.negative)
            raise self._untaken(
                sent[places[0]],
                f"the server does not take {sent[places[0]].origin} (basic.nack), and maybe others: "
                "a queue is full (x-overflow=reject-publish), or cannot be written to",
            )
        refused += self._unroutable(sent)
        self._options.known.untaken = None
        self._state = following
        numbers = {part.partition: number for number, part in enumerate(rows)}
        return sorted(refused, key=lambda item: (numbers[item.partition], item.row))

    def commit(self) -> None:
        self._state = self._state.to(WriterState.CLAIMED)

    def rollback(self) -> None:
        # What was published cannot be taken back: it is published again.
        if self._state is WriterState.WRITTEN:
            self._state = self._state.to(WriterState.CLAIMED)

    def close(self) -> None:
        self._close(orderly=True)

    def _close(self, *, orderly: bool) -> None:
        if self._state is not WriterState.CLOSED:
            self._state = self._state.to(WriterState.CLOSED)
            self._connection.close(orderly=orderly)

    def _encode(
        self, part: SinkRows, messages: list[bytes], sent: list[_Row], refused: list[RefusedRow]
    ) -> None:
        """Add the messages of a part's rows; those that have no form are refused."""
        keys, errors = routing_keys(self._options.routing_key, part)
        bodies, more = encoded(self._options.value, part.values)
        errors |= more
        origins = origins_of(part.partition, part.offsets)
        largest = self._options.known.largest
        message = self._frames.message
        for row, (key, body, origin, timestamp, headers) in enumerate(
            zip(keys, bodies, origins, part.timestamps, part.headers, strict=True)
        ):
            if row in errors:
                continue
            content = body or b""
            if largest is not None and len(content) > largest:
                errors[row] = ValueError(
                    f"the value has {len(content)} bytes, the server's max_message_size is {largest}"
                )
                continue
            try:
                messages.append(message(key, content, origin, timestamp, headers))
            except ValueError as error:
                errors[row] = error
            else:
                sent.append(_Row(origin.decode(), part.partition, row))
        refused += [RefusedRow(part.partition, row, error) for row, error in errors.items()]

    def _order(self, sent: Sequence[_Row]) -> Sequence[int]:
        """In which order rows are published: their own, or first the one that was not taken before.

        Rows before that one have been delivered by that attempt, and come again.
        """
        untaken = self._options.known.untaken
        if untaken is not None and not self._proven:
            first = next((place for place, row in enumerate(sent) if row.origin == untaken), 0)
            return [first, *(place for place in range(len(sent)) if place != first)]
        return range(len(sent))

    def _publish(self, client: Client, messages: Sequence[bytes]) -> None:
        """Send messages and wait for all their confirms; the first alone, while it is not known to be taken.

        A server with an alarm says so after the first message. The others would be on their way, and arrive
        when the alarm ends, in addition to those that are sent then. And where one queue is full, each
        attempt would bring the same rows to all others.
        """
        start = 0
        if messages and not self._proven:
            self._send(client, messages[:1])
            self._settle(client)
            if self._confirms.negative or (self._returned and self._options.waits_for_route):
                return
            self._proven = True
            start = 1
        batch: list[bytes] = []
        size = 0
        for message in messages[start:]:
            batch.append(message)
            size += len(message)
            if size >= SEND_BYTES:
                self._send(client, batch)
                batch, size = [], 0
        self._send(client, batch)
        self._settle(client)

    def _send(self, client: Client, messages: Sequence[bytes]) -> None:
        self._require_open(client)
        self._confirms.published += len(messages)
        if messages:
            client.send(b"".join(messages))

    def _settle(self, client: Client) -> None:
        """Wait until everything is confirmed."""
        confirms = self._confirms
        count = confirms.count
        until = time.monotonic() + CONFIRM_SECONDS
        while not confirms.complete:
            self._require_open(client)
            if not client.receive(1.0):
                client.beat()
            if confirms.count != count:
                count = confirms.count
                until = time.monotonic() + CONFIRM_SECONDS
            elif time.monotonic() > until:
                raise TimeoutError(f"no confirm within {CONFIRM_SECONDS:g} s")

    def _require_open(self, client: Client) -> None:
        if client.blocked:
            raise SinkUnavailable(f"{self._name}: the server takes no messages: {client.blocked}")

    def _take_returned(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        text = (
            f"{error.reply_code} {error.reply_text}: exchange {exchange!r} has no queue for {routing_key!r}"
        )
        self._returned[message.properties.get("message_id", "")] = text

    def _unroutable(self, sent: Sequence[_Row]) -> list[RefusedRow]:
        """The rows that came back, as no queue gets them."""
        returned, self._returned = self._returned, {}
        rows = [row for row in sent if row.origin in returned] if returned else []
        if rows and self._options.waits_for_route:
            raise self._untaken(rows[0], returned[rows[0].origin])
        return [RefusedRow(row.partition, row.row, Unroutable(returned[row.origin])) for row in rows]

    def _untaken(self, row: _Row, text: str) -> SinkUnavailable:
        """Close, and have the next attempt begin with the row."""
        self._options.known.untaken = row.origin
        self.close()
        return SinkUnavailable(f"{self._name}: {text}")

    def _note_limit(self, error: Exception) -> None:
        """Remember the server's limit when it has refused a message for its size: it is refused then."""
        if getattr(error, "reply_code", 0) == PRECONDITION_FAILED:
            found = _LARGEST.search(str(getattr(error, "reply_text", "")))
            if found:
                self._options.known.largest = int(found[1])


class Unroutable(ValueError):
    """No queue is bound to the exchange for the row's routing key."""
