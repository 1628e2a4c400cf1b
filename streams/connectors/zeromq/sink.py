"""Sinks that send each row as a message: to one of the receivers (PUSH), or to all that subscribe (PUB)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import zmq

from streams.connectors.zeromq.checks import check_count, check_place, check_side
from streams.connectors.zeromq.endpoints import Endpoints
from streams.connectors.zeromq.frames import KEY, ORIGIN, VALUE, checked_frames
from streams.connectors.zeromq.message_writer import MessageWriter
from streams.connectors.zeromq.open_socket import OpenSocket
from streams.connectors.zeromq.subscriptions import Subscriptions
from streams.durations import seconds, to_milliseconds, whole_milliseconds
from streams.errors import SinkUnavailable
from streams.serde import Bytes, Json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from streams.connectors.sink import SinkContext
    from streams.connectors.zeromq.curve import CurveClient, CurveServer
    from streams.serde import Serde

LINGER: Final = seconds(10)
CONNECT_SECONDS: Final = 5.0
"""How long a receiver is waited for when the sink is opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sink:
    """What both sinks have in common."""

    keeps_positions: ClassVar[bool] = False
    """ZeroMQ has no place for them: the group's committed offsets are the positions."""
    takes_retries: ClassVar[bool] = True
    """A message that is sent again is within what the sink guarantees."""

    connect: str | Sequence[str] | None = None
    bind: str | None = None
    key: Serde[Any] = field(default_factory=Bytes)
    value: Serde[Any] = field(default_factory=Json)
    frames: Sequence[str] = (KEY, VALUE, ORIGIN)
    curve: CurveServer | CurveClient | None = None
    high_water_mark: int = 1_000
    linger: timedelta = LINGER
    max_rows: int = 2_000

    def __post_init__(self) -> None:
        name = type(self).__name__
        endpoints = self.endpoints
        checked_frames(name, self.frames, known=True)
        check_side(name, endpoints, self.curve)
        check_count(name, "high_water_mark", self.high_water_mark)
        check_count(name, "max_rows", self.max_rows)
        to_milliseconds(self.linger, f"{name}: linger")

    @property
    def kind(self) -> str:
        """The system."""
        return "zeromq"

    @property
    def endpoints(self) -> Endpoints:
        """Where its socket is."""
        return Endpoints.of(type(self).__name__, self.connect, self.bind)

    def check(self, context: SinkContext) -> None:
        """Read the keys, and look for the folder of a local address. Nothing is sent."""
        check_place(f"sink {context.name!r}", self.endpoints, self.curve)

    def _open_socket(self, kind: int) -> OpenSocket:
        return OpenSocket(
            kind,
            self.endpoints,
            self.curve,
            high_water_mark=self.high_water_mark,
            unavailable=SinkUnavailable,
        )

    def _writer(
        self, opened: OpenSocket, context: SinkContext, subscriptions: Subscriptions | None = None
    ) -> MessageWriter:
        return MessageWriter(
            opened,
            key=self.key,
            value=self.value,
            frames=checked_frames(type(self).__name__, self.frames, known=True),
            patience=context.lock_timeout,
            linger=whole_milliseconds(self.linger),
            name=f"sink {context.name!r} at {self.endpoints}",
            subscriptions=subscriptions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSink(_Sink):
    """Sends each row to one of the receivers (PULL), in turn, and waits while none of them takes more.

    A message has the record's key, its value, and its coordinates as ``topic/partition/offset``, unless
    ``frames`` names others: ``"value"`` alone, or ``"headers"`` as the last. ``high_water_mark`` is how many
    messages may wait for each receiver, ``linger`` how long they are waited for at the end of a worker.

    Rows are sent before Kafka's commit: after a crash of the worker some are sent again, with the same
    ``origin``. Messages in the buffers of this process, of the connection and of a receiver are lost if that
    one ends.
    """

    @property
    def target(self) -> str:
        """What it writes to."""
        return "push"

    def open(self, context: SinkContext) -> MessageWriter:
        """Connect, and wait for a receiver. Raises ``SinkUnavailable`` if there is none."""
        opened = self._open_socket(zmq.PUSH)
        if not opened.connections.wait_until(bool, CONNECT_SECONDS):
            problem = opened.connections.problem
            opened.close(linger=0)
            raise SinkUnavailable(f"no receiver at {self.endpoints}" + (f": {problem}" if problem else ""))
        return self._writer(opened, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSink(_Sink):
    """Sends each row to all that subscribe (SUB) to how its first frame begins, by default the key.

    Options are those of ``PushSink``. Nothing waits for a subscriber: one that connects late, is slow by more
    than the high-water marks, or is away for a while, misses messages, and neither side is told. With
    ``subscribers``, rows are only sent while there are that many subscriptions: otherwise its input waits.
    """

    subscribers: int = 0

    @property
    def target(self) -> str:
        """What it writes to."""
        return "pub"

    def open(self, context: SinkContext) -> MessageWriter:
        """Connect or wait at the address. Raises ``SinkUnavailable`` for too few subscriptions."""
        if not self.subscribers:
            return self._writer(self._open_socket(zmq.PUB), context)
        opened = self._open_socket(zmq.XPUB)
        subscriptions = Subscriptions(opened.socket, self.subscribers)
        try:
            subscriptions.require(CONNECT_SECONDS)
        except SinkUnavailable:
            opened.close(linger=0)
            raise
        return self._writer(opened, context, subscriptions)
