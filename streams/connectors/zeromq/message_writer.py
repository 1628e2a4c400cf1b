"""Sends the rows of a sink as messages."""

from __future__ import annotations

import time
from collections import deque
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final

import zmq

from streams.connectors.encoded_columns import encoded
from streams.connectors.row_origins import origins_of
from streams.connectors.sink import RefusedRow
from streams.connectors.writer_state import WriterState
from streams.connectors.zeromq.frames import messages_of
from streams.errors import SinkUnavailable
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from streams.connectors.sink import SinkRows
    from streams.connectors.zeromq.frames import Messages
    from streams.connectors.zeromq.open_socket import OpenSocket
    from streams.connectors.zeromq.subscriptions import Subscriptions
    from streams.records import TopicPartition
    from streams.serde import Serde

_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_LAST: Final = int(zmq.DONTWAIT)
# Never blocking: a blocking send drops the rest of a message, without an error, when its connection ends in
# the middle.

_POLL_MILLISECONDS: Final = 100


class MessageWriter:
    """A ``SinkWriter`` of a PUSH, PUB or XPUB socket: what is written is sent.

    ``patience`` is how many seconds it waits while receivers take no message, ``linger`` how many
    milliseconds ``close`` waits for those that are not on their way yet.
    """

    def __init__(
        self,
        opened: OpenSocket,
        *,
        key: Serde[Any],
        value: Serde[Any],
        frames: tuple[str, ...],
        patience: float,
        linger: int,
        name: str,
        subscriptions: Subscriptions | None,
    ) -> None:
        self._opened = opened
        self._key = key
        self._value = value
        self._names = frames
        self._patience = patience
        self._linger = linger
        self._name = name
        self._subscriptions = subscriptions
        self._state = WriterState.CLAIMED

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept for a partition."""

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        self._state = self._state.to(WriterState.WRITTEN)
        refused: list[RefusedRow] = []
        if self._subscriptions is not None:
            self._subscriptions.require(0.0)
        for part in rows:
            messages, errors = self._encoded(part)
            refused += [RefusedRow(part.partition, row, error) for row, error in sorted(errors.items())]
            self._send(messages)
        return refused

    def commit(self) -> None:
        self._state = self._state.to(WriterState.CLAIMED)

    def rollback(self) -> None:
        # What was sent cannot be taken back: it is sent again.
        if self._state is WriterState.WRITTEN:
            self._state = self._state.to(WriterState.CLAIMED)

    def close(self) -> None:
        if self._state is WriterState.CLOSED:
            return
        self._state = self._state.to(WriterState.CLOSED)
        begun = time.monotonic()
        self._opened.close(linger=self._linger)
        if (time.monotonic() - begun) * 1_000 >= self._linger > 0:
            get_logger().warning(Event.MESSAGES_DISCARDED, sink=self._name, linger=self._linger / 1_000)

    def _encoded(self, part: SinkRows) -> tuple[Messages, dict[int, Exception]]:
        keys, errors = encoded(self._key, part.keys)
        values, more = encoded(self._value, part.values)
        errors |= more
        origins = origins_of(part.partition, part.offsets)
        headers = part.headers
        if errors:
            kept = [row for row in range(len(values)) if row not in errors]
            keys, values = [keys[row] for row in kept], [values[row] for row in kept]
            origins, headers = [origins[row] for row in kept], [headers[row] for row in kept]
        return messages_of(self._names, keys, values, origins, headers), errors

    def _send(self, messages: Messages) -> None:
        frames, more = messages
        flags = [_MORE if follows else _LAST for follows in more]
        # The method of the library's own class: its subclass in Python takes three times as long.
        send = super(zmq.Socket, self._opened.socket).send
        at = 0
        waiting_since: float | None = None
        while at < len(frames):
            left = iter(frames[at:] if at else frames)
            try:
                deque(map(send, left, iter(flags[at:] if at else flags)), 0)
            except zmq.Again:
                reached = len(frames) - length_hint(left) - 1
            except zmq.ZMQError as error:
                raise SinkUnavailable(f"{self._name}: {error}") from error
            else:
                return
            begun = self._begin_of_message(more, reached)
            if begun < reached:
                self._finish_dropped(frames, flags, reached)
            now = time.monotonic()
            if waiting_since is None or begun > at:
                waiting_since = now
            at = begun
            if now - waiting_since > self._patience:
                raise SinkUnavailable(f"{self._name}: receivers took no message for {self._patience:g} s")
            self._opened.socket.poll(_POLL_MILLISECONDS, zmq.POLLOUT)

    def _begin_of_message(self, more: Sequence[bool], place: int) -> int:
        while place and more[place - 1]:
            place -= 1
        return place

    def _finish_dropped(self, frames: Sequence[bytes], flags: Sequence[int], place: int) -> None:
        """Hand over the rest of a message whose connection has ended in the middle.

        ZeroMQ drops all frames up to the last one, and would take them of the next message otherwise.
        """
        while flags[place] == _MORE:
            place += 1
            self._opened.socket.send(frames[place], flags[place])
