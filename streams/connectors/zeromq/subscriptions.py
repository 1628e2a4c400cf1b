"""How many subscriptions a publisher has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import zmq

from streams.errors import SinkUnavailable

if TYPE_CHECKING:
    from typing import Final

_SUBSCRIBE: Final = 1
_UNSUBSCRIBE: Final = 0


class Subscriptions:
    """Those of one XPUB socket, which receives a message for each that begins or ends."""

    def __init__(self, socket: zmq.Socket[bytes], wanted: int) -> None:
        self._socket = socket
        self._wanted = wanted
        self._count = 0
        # Without this, only the first and the last of equal subscriptions are reported.
        socket.xpub_verboser = True

    def require(self, timeout: float) -> None:
        """Wait for the wanted number, in seconds. Raises ``SinkUnavailable`` if there are fewer."""
        until = time.monotonic() + timeout
        self._read()
        while self._count < self._wanted:
            left = until - time.monotonic()
            if left <= 0:
                raise SinkUnavailable(f"{self._count} of {self._wanted} wanted subscriptions")
            self._socket.poll(int(left * 1_000) + 1)
            self._read()

    def _read(self) -> None:
        try:
            while True:
                (first, *_) = self._socket.recv(zmq.DONTWAIT)[:1] or (-1,)
                if first == _SUBSCRIBE:
                    self._count += 1
                elif first == _UNSUBSCRIBE:
                    self._count -= 1
        except zmq.Again:
            pass
