"""A connection whose answers are plain lists, with every wait for the server bounded."""

from __future__ import annotations

import contextlib
import re
import socket
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection as PlainConnection
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from streams.connectors.redis.resp import packed
from streams.connectors.redis.server_address import client_options, shown_address
from streams.connectors.redis.server_errors import CommandRefused, refused

if TYPE_CHECKING:
    from collections.abc import Iterable

ANSWER_SECONDS: Final = 10.0
"""How long a command may take, in addition to the time for which it blocks by intent."""

CONNECT_SECONDS: Final = 10.0

MULTI: Final = packed(b"MULTI")
EXEC: Final = packed(b"EXEC")
DISCARD: Final = packed(b"DISCARD")
PING: Final = packed(b"PING")


class Connection:
    """One connection. It never connects again by itself: what was watched or subscribed to would be gone.

    Every method raises ``RedisError`` for a connection that ended, after which it is to be closed, and
    ``CommandRefused`` for an answer that is an error. With ``text``, answers are text instead of bytes;
    bytes that are no UTF-8 are surrogates there.
    """

    def __init__(self, url: str, *, what: str, name: str, text: bool = False, key: bytes = b"") -> None:
        self.address = shown_address(url)
        options = client_options(url, what)
        kind = options.pop("connection_class", PlainConnection)
        options |= {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": ANSWER_SECONDS,
            "client_name": re.sub(r"[^!-~]", "-", name),
            "decode_responses": text,
            "encoding_errors": "surrogateescape",
        }
        if "path" not in options:
            options["socket_connect_timeout"] = CONNECT_SECONDS
        self._ended = False
        self._connection = kind(**options)
        self._connection.connect()
        if key:
            self._follow(kind, options, key)

    def _follow(self, kind: Any, options: dict[str, Any], key: bytes) -> None:
        """In a cluster, connect to the server of the key."""
        try:
            if not self.is_cluster:
                return
            slot = self.call(b"CLUSTER", b"KEYSLOT", key)
            for first, last, (name, port, *_), *_ in self.call(b"CLUSTER", b"SLOTS"):
                if first <= slot <= last and name:
                    host = name if isinstance(name, str) else name.decode()
                    if (host, port) != (options.get("host"), options.get("port", 6379)):
                        self._connection.disconnect()
                        self._connection = kind(**options | {"host": host, "port": port})
                        self._connection.connect()
        except BaseException:
            self.close()
            raise

    @property
    def is_cluster(self) -> bool:
        """Whether the server is one of a cluster."""
        return self.information("cluster").get("cluster_enabled") == "1"

    def information(self, section: str) -> dict[str, str]:
        """The server's own description."""
        answer = self.call(b"INFO", section.encode())
        text = answer if isinstance(answer, str) else answer.decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def call(self, *words: bytes, blocking: float = 0.0) -> Any:
        """Execute a command, which may block for that many seconds."""
        self.send([packed(*words)])
        return self.receive(blocking=blocking)

    def calls(self, *commands: bytes) -> list[Any]:
        """Execute packed commands in one round trip. Raises the first error after all have been answered."""
        self.send(commands)
        answers = self.receive_all(len(commands))
        for answer in answers:
            if isinstance(answer, CommandRefused):
                raise answer
        return answers

    def transaction(self, *commands: bytes, raising: bool = True) -> list[Any] | None:
        """Execute packed commands as one transaction in one round trip; ``None`` if a watched key changed.

        Without ``raising``, errors of single commands are among the answers: the others have their effect.
        """
        self.send([MULTI, *commands, EXEC])
        queued = self.receive_all(len(commands) + 1)
        answers = self._received()
        for answer in (*queued, answers):
            if isinstance(answer, CommandRefused):
                raise answer
        if answers is None:
            return None
        found = [refused(answer) if isinstance(answer, RedisError) else answer for answer in answers]
        for answer in found if raising else ():
            if isinstance(answer, CommandRefused):
                raise answer
        return found

    def send(self, commands: Iterable[bytes]) -> None:
        """Send packed commands, whose answers are then to be received."""
        if self._ended:
            # The client would connect again.
            raise redis.exceptions.ConnectionError("the connection has ended")
        try:
            self._connection.send_packed_command([b"".join(commands)], check_health=False)
        except BaseException:
            self._ended = True
            raise

    def receive(self, *, blocking: float = 0.0) -> Any:
        """The next answer."""
        answer = self._received(blocking)
        if isinstance(answer, CommandRefused):
            raise answer
        return answer

    def receive_all(self, count: int) -> list[Any]:
        """The next answers, ``CommandRefused`` among them."""
        return [self._received() for _ in range(count)]

    def _received(self, blocking: float = 0.0) -> Any:
        try:
            if blocking:
                return self._connection.read_response(timeout=ANSWER_SECONDS + blocking)
            return self._connection.read_response()
        except ResponseError as error:
            return refused(error)
        except BaseException:
            self._ended = True
            raise

    def readable(self, timeout: float) -> bool:
        """Whether an answer, or the connection's end, is there within that many seconds."""
        return bool(self._connection.can_read(timeout))

    def interrupt(self) -> None:
        """End a call that another thread waits for, which then raises. Never raises."""
        open_socket = self._connection._sock  # noqa: SLF001 - closing it would free what the call still uses
        if open_socket is not None:
            with contextlib.suppress(OSError):
                # The socket below TLS, whose own method forgets the session that is being read.
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection. Never raises."""
        self._ended = True
        with contextlib.suppress(Exception):
            self._connection.disconnect()


def hash_tag(key: str) -> str:
    """The part of a key that decides about its slot in a cluster."""
    _, _, rest = key.partition("{")
    tag, closing, _ = rest.partition("}")
    return tag if closing and tag else key


def in_slot_of(key: str, name: str) -> str:
    """A name for a key that a cluster keeps where it keeps another one."""
    return f"{name}:{{{hash_tag(key)}}}"
