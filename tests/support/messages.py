"""The other side of ZeroMQ sockets, in this process."""

from __future__ import annotations

import socket as sockets
import threading
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from typing import Self


def free_port() -> int:
    """A port of the loopback interface that nothing listens to now."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


class Receiver:
    """Receives in a thread of its own, and keeps all messages in their order. It is a context manager."""

    def __init__(
        self,
        kind: int,
        *,
        bind: str = "",
        connect: str = "",
        high_water_mark: int = 0,
        subscribe: bytes = b"",
    ) -> None:
        self.messages: list[list[bytes]] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.linger = 0
        self._socket.rcvhwm = high_water_mark
        self._socket.reconnect_ivl = 20
        if kind == zmq.SUB:
            self._socket.subscribe(subscribe)
        if bind:
            self._socket.bind(bind)
        else:
            self._socket.connect(connect)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self.messages.append(self._socket.recv_multipart())
        except zmq.ContextTerminated:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.term()
        self._thread.join()


class Sender:
    """Sends messages; it is a context manager. What is not on its way when it ends is lost."""

    def __init__(
        self,
        kind: int,
        *,
        bind: str = "",
        connect: str = "",
        high_water_mark: int = 0,
        curve_secret: bytes = b"",
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.linger = 0
        self._socket.sndhwm = high_water_mark
        if curve_secret:
            self._socket.curve_secretkey = curve_secret
            self._socket.curve_server = True
        self._socket.reconnect_ivl = 20
        if bind:
            self._socket.bind(bind)
        else:
            self._socket.connect(connect)

    def send(self, *messages: list[bytes]) -> None:
        for message in messages:
            self._socket.send_multipart(message)

    def send_until_it_waits(self, payload: bytes, *, seconds: float) -> int:
        """Send until no more is taken for so many seconds; returns how many messages were."""
        sent = 0
        self._socket.sndtimeo = int(seconds * 1_000)
        try:
            while True:
                self._socket.send(payload)
                sent += 1
        except zmq.Again:
            return sent
        finally:
            self._socket.sndtimeo = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()
