"""Receives messages as columns."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import zmq

from streams.connectors.source import SourceBatch, SourceHealth
from streams.connectors.zeromq.frames import columns_of
from streams.errors import SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.zeromq.endpoints import Endpoints
    from streams.connectors.zeromq.open_socket import OpenSocket

_NOW: Final = int(zmq.DONTWAIT)

BATCH_BYTES: Final = 4 * 1024 * 1024
"""A batch has no more messages once it has so many bytes."""

ENDED_SECONDS: Final = 3.0
"""A connection that ended is connected again by libzmq at once, or not at all: then after this time."""

_MESSAGES: Final = 100
"""How many are received before their bytes are counted."""


class MessageReader:
    """A ``SourceReader`` of a PULL or SUB socket. Its position is the number of messages so far.

    ``read`` holds the socket; ``close`` of another thread wakes it and waits for its end.
    """

    def __init__(
        self,
        opened: OpenSocket,
        endpoints: Endpoints,
        *,
        frames: Sequence[str],
        max_rows: int,
        position: bytes,
    ) -> None:
        self._opened = opened
        self._endpoints = endpoints
        self._frames = frames
        self._max_rows = max_rows
        self._begun = self._received = self._committed = int(position or b"0")
        self._using = threading.Lock()
        self._closed = threading.Event()
        self._woken, self._wake = os.pipe()
        self._poller = zmq.Poller()
        self._poller.register(opened.socket, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)

    def read(self, timeout: float) -> SourceBatch | None:
        with self._using:
            if self._closed.is_set():
                return None
            try:
                batch = self._batch()
                if batch is None and self._poller.poll(int(timeout * 1_000)) and not self._closed.is_set():
                    batch = self._batch()
                if batch is None and not self._endpoints.bound:
                    self._connect_again()
            except zmq.ZMQError as error:
                raise SourceUnavailable(f"messages of {self._endpoints}: {error}") from error
            return batch

    def _connect_again(self) -> None:
        for address in self._opened.connections.ended_before(ENDED_SECONDS):
            if address in self._endpoints.addresses:
                self._opened.socket.disconnect(address)
                self._opened.socket.connect(address)

    def _batch(self) -> SourceBatch | None:
        frames: list[bytes] = []
        more: list[int] = []
        count = size = 0
        while count < self._max_rows and size < BATCH_BYTES:
            before = len(frames)
            wanted = min(_MESSAGES, self._max_rows - count)
            received = self._receive(frames, more, wanted)
            count += received
            if received < wanted:
                break
            size += sum(map(len, frames[before:]))
        if not count:
            return None
        columns = columns_of(frames, more, self._frames)
        first = self._received
        self._received += count
        return SourceBatch.of(
            self._endpoints.addresses[0],
            first,
            str(self._received).encode(),
            keys=columns.keys,
            values=columns.values,
            timestamps=[time.time_ns() // 1_000_000] * count,
            headers=columns.headers,
        )

    def _receive(self, frames: list[bytes], more: list[int], wanted: int) -> int:
        """Take up to so many messages that are here; returns how many there were."""
        # Their methods looked up once. A frame object knows whether another one follows: asking the socket
        # for that takes longer than making and copying the frame.
        receive, add, add_more = self._opened.socket.recv, frames.append, more.append
        count = 0
        try:
            for count in range(wanted):  # noqa: B007 - read where the loop ends early
                frame = receive(_NOW, False)
                add(frame.bytes)
                # A message is here completely or not at all.
                while frame.more:
                    add_more(1)
                    frame = receive(_NOW, False)
                    add(frame.bytes)
                add_more(0)
        except zmq.Again:
            return count
        return wanted

    def confirm(self, position: bytes) -> None:
        """Nothing is told to the senders, who have forgotten these messages already."""
        self._committed = int(position)

    def health(self) -> SourceHealth:
        connections = self._opened.connections
        missing = 0 if self._endpoints.bound else len(self._endpoints.addresses) - connections.count
        problem = ""
        if missing > 0:
            problem = f"{missing} of {len(self._endpoints.addresses)} senders are not connected"
            problem += f": {connections.problem}" if connections.problem else f" ({self._endpoints})"
        return SourceHealth(
            problem,
            {
                "connections": connections.count,
                "failed_handshakes": connections.failed_handshakes,
                "received": self._received - self._begun,
                "uncommitted": self._received - self._committed,
            },
        )

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            with suppress(OSError):
                os.write(self._wake, b"\0")
        with self._using:
            if self._opened.socket.closed:
                return
            self._opened.close(linger=0)
            os.close(self._woken)
            os.close(self._wake)
