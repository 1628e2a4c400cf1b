"""A TCP proxy on loopback that can close a connection at a message, on either side of it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from types import TracebackType


class CuttingProxy:
    """Passes bytes on until a client sends ``trigger``, if ``cut`` is set.

    ``before``: the message does not reach the server. ``after``: it does, and its answer does not come back.
    """

    def __init__(self, server: tuple[str, int], trigger: bytes) -> None:
        self.cut: Literal["before", "after"] | None = None
        self._server = server
        self._trigger = trigger
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._pass_on, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            other = {client: server, server: client}
            with contextlib.suppress(OSError):
                while True:
                    for source in select.select([client, server], [], [])[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        cutting = self.cut if source is client and self._trigger in data else None
                        if cutting == "before":
                            return
                        other[source].sendall(data)
                        if cutting == "after":
                            # Its answer: the server has done it.
                            server.recv(65536)
                            return
