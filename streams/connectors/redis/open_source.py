"""What the readers of all sources have in common: their connection, its errors, and their end."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from streams.connectors.redis.connection import Connection
from streams.connectors.redis.server_errors import CommandRefused, to_error
from streams.errors import ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_VERSION = (7, 0)


class OpenSource:
    """The connection of a reader, and one for other threads. ``name`` is theirs in the server's list."""

    def __init__(self, url: str, *, what: str, name: str, key: str = "", text: bool = False) -> None:
        self._options: dict[str, Any] = {"what": what, "name": name, "key": key.encode()}
        self._url = url
        self._text = text
        self.what = what
        self.closed = threading.Event()
        self.reading = threading.Lock()
        """Held by the thread that uses the connection."""
        self._looking = threading.Lock()
        self._looker: Connection | None = None
        with self.errors("connecting"):
            self.connection = Connection(url, text=text, **self._options)

    @contextmanager
    def errors(self, doing: str, *, starting: bool = False) -> Iterator[None]:
        """Raises the connector's errors for those of the client and the server."""
        try:
            yield
        except (RedisError, CommandRefused) as error:
            raise to_error(error, f"{self.what}: {doing}", starting=starting) from error

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """The connection of other threads than the reader's. Raises what ``errors`` does."""
        with self._looking, self.errors("looking at it"):
            if self.closed.is_set():
                raise SourceUnavailable(f"{self.what} is closed")
            try:
                if self._looker is None:
                    self._looker = Connection(self._url, **self._options)
                yield self._looker
            except BaseException:
                self._end_looking()
                raise

    def close(self) -> None:
        """End a read that waits, then the connections. Never raises. May be called twice."""
        self.closed.set()
        self.connection.interrupt()
        with self.reading:
            self.connection.close()
        with self._looking:
            self._end_looking()

    def _end_looking(self) -> None:
        if self._looker is not None:
            self._looker.close()
            self._looker = None


def check_source(url: str, *, what: str, name: str, key: str = "", key_type: str = "") -> None:
    """Check that the server can be read, and what the key is.

    Raises ``ConnectorError``, and ``SourceUnavailable`` for a server that does not answer.
    """
    try:
        connection = Connection(url, what=what, name=name, key=key.encode())
        try:
            found = connection.information("server").get("redis_version", "0.0")
            version = tuple(int(part) for part in found.split(".")[:2])
            if version < LEAST_VERSION:
                raise ConnectorError(
                    f"{what}: {connection.address} is Redis {found}, needed is at least 7.0, or Valkey"
                )
            type_name = connection.call(b"TYPE", key.encode()).decode() if key else "none"
            if type_name not in {"none", key_type}:
                raise ConnectorError(
                    f"{what}: {connection.address}: the key {key!r} is a {type_name}, no {key_type}",
                    hint="name another key",
                )
        finally:
            connection.close()
    except (RedisError, CommandRefused) as error:
        raise to_error(error, f"{what}: checking it", starting=True) from error
