"""Channels as a source (pub/sub): what is published while the source is connected, at most once."""

from __future__ import annotations

import builtins
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, overload

import msgspec

from streams.connectors.redis.connection import ANSWER_SECONDS, PING
from streams.connectors.redis.open_source import OpenSource, check_source
from streams.connectors.redis.resp import packed
from streams.connectors.redis.server_address import client_options
from streams.connectors.source import PlainSource, SourceBatch, SourceHealth
from streams.errors import ConfigurationError, SourceUnavailable
from streams.serde import Json, Text
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.source import SourceContext
    from streams.serde import Serde

V = TypeVar("V")
Type: TypeAlias = builtins.type[V]

PING_SECONDS: Final = 5.0
"""After how long without messages the server is sent a ping, to notice a connection that is lost."""


@dataclass(frozen=True, slots=True)
class _ChannelSource(PlainSource, Generic[V]):
    """The options of channels."""

    url: str = field(repr=False)
    channels: tuple[str, ...]
    patterns: tuple[str, ...]
    value: Serde[V]
    max_records: int

    def __post_init__(self) -> None:
        client_options(self.url, "RedisChannel")
        if not self.channels and not self.patterns:
            raise ConfigurationError("RedisChannel needs a channel or a pattern")
        if self.max_records < 1:
            raise ConfigurationError(f"RedisChannel: max_records={self.max_records}, needed is at least 1")


class RedisChannel(_ChannelSource[V]):
    """The messages of channels, at most once: only those that are published while the source is connected.

    ``patterns`` are as for ``PSUBSCRIBE``: ``news.*``. A message is read once for each channel and pattern
    that it matches. Values are text, JSON of ``type``, or what the serde ``value`` reads. The key is the
    channel, and the event time that of receiving. How often the source has connected is among its metrics:
    each time after the first, messages may be missing.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: RedisChannel[str],
        url: str,
        channels: str | Sequence[str] = (),
        type: None = None,
        *,
        patterns: str | Sequence[str] = (),
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        url: str,
        channels: str | Sequence[str],
        type: Type[V],
        *,
        patterns: str | Sequence[str] = (),
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        url: str,
        channels: str | Sequence[str] = (),
        *,
        value: Serde[V],
        patterns: str | Sequence[str] = (),
        max_records: int = 2_000,
    ) -> None: ...

    def __init__(
        self,
        url: str,
        channels: str | Sequence[str] = (),
        type: Any = None,  # noqa: A002 - as of Json
        *,
        value: Any = None,
        patterns: str | Sequence[str] = (),
        max_records: int = 2_000,
    ) -> None:
        if value is not None and type is not None:
            raise ConfigurationError("RedisChannel: give a type or value=, not both")
        if value is None:
            value = Text() if type is None else Json(type)
        super().__init__(url, _names(channels), _names(patterns), value, max_records)

    @property
    def kind(self) -> str:
        """The system."""
        return "redis"

    @property
    def tasks(self) -> int:
        return 1

    @property
    def key(self) -> Serde[str]:
        return Text()

    def check(self, application: str, name: str) -> None:
        """Check that the server can be read."""
        check_source(self.url, what=f"source {name!r}", name=f"streams {application} {name}")

    def open(self, context: SourceContext) -> ChannelReader:
        """Connect and subscribe."""
        return ChannelReader(self.url, self.channels, self.patterns, self.max_records, context)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


@decodable
class ChannelPosition(msgspec.Struct, frozen=True):
    """What was received; nothing can be read again from it."""

    messages: int = 0
    connections: int = 0


class ChannelReader:
    """A ``SourceReader`` of channels."""

    def __init__(
        self,
        url: str,
        channels: tuple[str, ...],
        patterns: tuple[str, ...],
        max_records: int,
        context: SourceContext,
    ) -> None:
        self._what = f"source {context.name!r}: channels {', '.join((*channels, *patterns))}"
        self._label = ",".join((*channels, *patterns))
        self._max_records = max_records
        known = (
            msgspec.json.decode(context.position, type=ChannelPosition)
            if context.position
            else ChannelPosition()
        )
        self._position = ChannelPosition(known.messages, known.connections + 1)
        self._counted = False
        self._server = OpenSource(url, what=self._what, name=f"streams {context.application} {context.name}")
        try:
            with self._server.errors("subscribing"):
                for command, names in ((b"SUBSCRIBE", channels), (b"PSUBSCRIBE", patterns)):
                    if names:
                        self._server.connection.send([packed(command, *(name.encode() for name in names))])
                        for _ in names:
                            self._server.connection.receive()
        except BaseException:
            self._server.close()
            raise
        self._heard_at = time.monotonic()
        self._asked_at: float | None = None

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        server = self._server
        if not self._counted:
            self._counted = True
            return self._batch([])
        with server.reading:
            while not server.closed.is_set():
                left = deadline - time.monotonic()
                try:
                    with server.errors("receiving"):
                        messages = self._received(max(0.0, left))
                        self._ask_if_silent()
                except SourceUnavailable:
                    # Closing ends the connection.
                    if server.closed.is_set():
                        break
                    raise
                if messages:
                    return self._batch(messages)
                if left <= 0:
                    break
        return None

    def _received(self, timeout: float) -> list[tuple[bytes, bytes]]:
        """Channels and messages that are there, or arrive in that many seconds."""
        connection = self._server.connection
        found: list[tuple[bytes, bytes]] = []
        while len(found) < self._max_records and connection.readable(0.0 if found else timeout):
            kind, *rest = connection.receive()
            self._heard_at, self._asked_at = time.monotonic(), None
            if kind in {b"message", b"pmessage"}:
                found.append((rest[-2], rest[-1]))
            elif not found:
                break
        return found

    def _ask_if_silent(self) -> None:
        """A peer that is gone without a word is noticed by its missing answer."""
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > ANSWER_SECONDS:
            raise SourceUnavailable(f"{self._what}: no answer in {ANSWER_SECONDS:.0f} s")
        if self._asked_at is None and now - self._heard_at > PING_SECONDS:
            self._server.connection.send([PING])
            self._asked_at = now

    def _batch(self, messages: list[tuple[bytes, bytes]]) -> SourceBatch:
        first = self._position.messages
        self._position = ChannelPosition(first + len(messages), self._position.connections)
        now = time.time_ns() // 1_000_000
        return SourceBatch.of(
            self._label,
            first,
            msgspec.json.encode(self._position),
            keys=[channel for channel, _ in messages],
            values=[message for _, message in messages],
            timestamps=[now] * len(messages),
        )

    def confirm(self, position: bytes) -> None:
        """The server keeps nothing."""

    def health(self) -> SourceHealth:
        with self._server.looking() as connection:
            connection.call(b"PING")
        return SourceHealth(
            "",
            {"messages": float(self._position.messages), "connections": float(self._position.connections)},
        )

    def close(self) -> None:
        self._server.close()
