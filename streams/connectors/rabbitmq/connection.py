"""A connection that several threads share, and that answers the server while it is unused."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.rabbitmq.client import Client
from streams.connectors.rabbitmq.server_errors import CLIENT_ERRORS, to_error
from streams.errors import SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.connectors.rabbitmq.server_address import ServerAddress
    from streams.errors import ConnectorUnavailable

CLOSE_SECONDS: Final = 3.0
"""How long closing waits for another thread's call, and for the server."""

QUIET_SECONDS: Final = 0.5
"""How often an unused connection is looked after."""


class Connection:
    """One channel of one connection, opened at once. It never connects again by itself.

    A thread of its own sends heartbeats and takes what arrives while no other thread uses it: a server ends a
    connection whose other side is silent, or does not read. ``what`` names the connector in errors.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        what: str,
        name: str,
        unavailable: type[ConnectorUnavailable] = SourceUnavailable,
        starting: bool = False,
    ) -> None:
        self.address = address
        self._what = what
        self._unavailable = unavailable
        self._using = threading.Lock()
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self.client = Client(address, name=name)
        try:
            with self.errors("connecting", starting=starting):
                self.channel: Any = self.client.open_channel()
        except BaseException:
            self.client.discard()
            raise
        self._thread = threading.Thread(target=self._attend, name="streams-rabbitmq", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether ``close`` was called, or the connection has failed."""
        return self._ended.is_set()

    @contextmanager
    def errors(self, doing: str, *, starting: bool = False) -> Iterator[None]:
        """Raises the connector's errors for those of the client and the server."""
        try:
            yield
        except CLIENT_ERRORS as error:
            raise to_error(
                error,
                f"{self._what} at {self.address}: {doing}",
                starting=starting,
                unavailable=self._unavailable,
            ) from error

    @contextmanager
    def using(self, doing: str, *, starting: bool = False) -> Iterator[Client]:
        """Use the client alone. Raises what ``errors`` does; after an error the connection is closed."""
        with self._using, self.errors(doing, starting=starting):
            if self._failure is not None:
                raise self._failure
            if self._ended.is_set():
                raise self._unavailable(f"{self._what} at {self.address} is closed")
            try:
                yield self.client
                self.client.beat()
            except CLIENT_ERRORS:
                self._end()
                raise

    def close(self, *, orderly: bool = True, last: Callable[[Client], None] | None = None) -> None:
        """End the connection. Never raises. May be called twice.

        ``orderly`` announces it to the server, which takes back at once what is not acknowledged. ``last`` is
        called before, if the connection can still be used.
        """
        self.client.wake()
        if not self._using.acquire(timeout=CLOSE_SECONDS):
            # Its user is stuck in a call, and closes it after that.
            self._ended.set()
            self.client.interrupt()
            return
        try:
            if orderly and not self.ended:
                self.client.answer_seconds = CLOSE_SECONDS
                with suppress(*CLIENT_ERRORS):
                    if last is not None:
                        last(self.client)
                    self.client.close()
            self._end()
        finally:
            self._using.release()

    def _end(self) -> None:
        self._ended.set()
        self.client.discard()

    def _attend(self) -> None:
        while not self._ended.wait(QUIET_SECONDS):
            if not self._using.acquire(blocking=False):
                continue
            try:
                if not self._ended.is_set():
                    while self.client.receive(0.0):
                        pass
                    self.client.beat()
            except CLIENT_ERRORS as error:
                self._failure = error
                self._end()
            finally:
                self._using.release()
