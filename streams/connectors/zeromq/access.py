"""Which clients may connect to a bound socket: the handler of ZeroMQ's authentication protocol, ZAP."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import zmq

from streams.connectors.zeromq.curve import public_keys

if TYPE_CHECKING:
    from pathlib import Path

_ADDRESS: Final = "inproc://zeromq.zap.01"
"""Where libzmq asks, in the context of the socket (RFC 27)."""


class Access:
    """Answers for the sockets of one context, in a thread of its own: clients with a key in ``folder``.

    The folder is read each time, so that keys may be added and removed without a restart. Connections that
    exist stay.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self._folder = folder
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ADDRESS)
        self._thread = threading.Thread(target=self._run, name="streams-zeromq-access", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the thread, which is that of the context."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            self._socket.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, _, _, _, mechanism, *credentials = request
        allowed = False
        if mechanism == b"CURVE" and len(credentials) == 1:
            try:
                allowed = credentials[0] in public_keys(self._folder)
            except OSError:
                # Without the folder, connections are refused.
                allowed = False
        status = (b"200", b"OK") if allowed else (b"400", b"unknown key")
        return [version, number, *status, b"", b""]
