"""Sources that read messages: shared with other receivers (PULL), or those that are subscribed to (SUB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import zmq

from streams.connectors.source import PlainSource
from streams.connectors.zeromq.checks import check_count, check_place, check_side
from streams.connectors.zeromq.endpoints import Endpoints
from streams.connectors.zeromq.frames import KEY, VALUE, checked_frames
from streams.connectors.zeromq.message_reader import MessageReader
from streams.connectors.zeromq.open_socket import OpenSocket
from streams.errors import ConfigurationError, SourceUnavailable
from streams.serde import Bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.source import SourceContext
    from streams.connectors.zeromq.curve import CurveClient, CurveServer
    from streams.serde import Serde

K = TypeVar("K")
V = TypeVar("V")

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Source(PlainSource, Generic[K, V]):
    """What both sources have in common."""

    endpoints: Endpoints
    key: Serde[K]
    value: Serde[V]
    frames: tuple[str, ...]
    subscriptions: tuple[bytes, ...]
    curve: CurveServer | CurveClient | None
    tasks: int
    high_water_mark: int
    max_message_bytes: int
    max_rows: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_side(name, self.endpoints, self.curve)
        for option in ("tasks", "high_water_mark", "max_message_bytes", "max_rows"):
            check_count(name, option, getattr(self, option))
        if self.tasks > 1 and self.endpoints.bound:
            raise ConfigurationError(
                f"{name}: {self.tasks} tasks cannot share bind=",
                hint="connect= to the senders, which then distribute the messages",
            )

    @property
    def kind(self) -> str:
        """The system."""
        return "zeromq"

    def check(self, application: str, name: str) -> None:  # noqa: ARG002 - the protocol's
        """Read the keys, and look for the folder of a local address."""
        check_place(f"source {name!r}", self.endpoints, self.curve)

    def _reader(self, kind: int, context: SourceContext) -> MessageReader:
        opened = OpenSocket(
            kind,
            self.endpoints,
            self.curve,
            high_water_mark=self.high_water_mark,
            # Where it connects, libzmq would not connect again after a message that is too long.
            max_message_bytes=self.max_message_bytes if self.endpoints.bound else -1,
            subscriptions=self.subscriptions,
            unavailable=SourceUnavailable,
        )
        return MessageReader(
            opened,
            self.endpoints,
            frames=self.frames,
            max_rows=self.max_rows,
            position=context.position,
        )


class PullSource(_Source[K, V]):
    """Messages of senders (PUSH), which distribute them among all receivers.

    A message of one frame is a value; of several, a key and a value, unless ``frames`` names others. Frames
    that are neither become headers of their name, ``"headers"`` as the last name takes pairs of name and
    value, and frames without a name become headers ``frame-2`` and so on. The event time is that of
    receiving.

    With ``tasks``, so many workers receive, each a part. ``high_water_mark`` is how many messages may wait
    for each sender. With ``bind``, a message above ``max_message_bytes`` ends its connection.

    ZeroMQ has no acknowledgements: messages that were received and are not committed are lost when the worker
    ends, and so are those in the buffer.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: PullSource[bytes, V],
        *,
        value: Serde[V],
        connect: str | Sequence[str] | None = None,
        bind: str | None = None,
        frames: Sequence[str] = (KEY, VALUE),
        curve: CurveServer | CurveClient | None = None,
        tasks: int = 1,
        high_water_mark: int = 1_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_rows: int = 1_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        value: Serde[V],
        key: Serde[K],
        connect: str | Sequence[str] | None = None,
        bind: str | None = None,
        frames: Sequence[str] = (KEY, VALUE),
        curve: CurveServer | CurveClient | None = None,
        tasks: int = 1,
        high_water_mark: int = 1_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_rows: int = 1_000,
    ) -> None: ...

    def __init__(
        self,
        *,
        value: Serde[V],
        key: Serde[Any] | None = None,
        connect: str | Sequence[str] | None = None,
        bind: str | None = None,
        frames: Sequence[str] = (KEY, VALUE),
        curve: CurveServer | CurveClient | None = None,
        tasks: int = 1,
        high_water_mark: int = 1_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_rows: int = 1_000,
    ) -> None:
        keys: Any = Bytes() if key is None else key
        super().__init__(
            Endpoints.of("PullSource", connect, bind),
            keys,
            value,
            checked_frames("PullSource", frames, known=False),
            (),
            curve,
            tasks,
            high_water_mark,
            max_message_bytes,
            max_rows,
        )

    def open(self, context: SourceContext) -> MessageReader:
        """Begin to receive. Raises ``SourceUnavailable`` where the address is in use."""
        return self._reader(zmq.PULL, context)


class SubSource(_Source[K, V]):
    """Messages of publishers (PUB) whose first frame begins with one of ``subscribe``; by default all.

    The first frame is the key, if there are several; otherwise as ``PullSource``. A publisher drops what a
    subscriber does not take in time, and what it sends while the subscriber is away: no worker is told.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: SubSource[bytes, V],
        *,
        value: Serde[V],
        connect: str | Sequence[str] | None = None,
        bind: str | None = None,
        subscribe: str | bytes | Sequence[str | bytes] = "",
        frames: Sequence[str] = (KEY, VALUE),
        curve: CurveServer | CurveClient | None = None,
        high_water_mark: int = 1_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_rows: int = 1_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        value: Serde[V],
        key: Serde[K],
        connect: str | Sequence[str] | None = None,
        bind: str | None = None,
        subscribe: str | bytes | Sequence[str | bytes] = "",
        frames: Sequence[str] = (KEY, VALUE),
        curve: CurveServer | CurveClient | None = None,
        high_water_mark: int = 1_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_rows: int = 1_000,
    ) -> None: ...

    def __init__(
        self,
        *,
        value: Serde[V],
        key: Serde[Any] | None = None,
        connect: str | Sequence[str] | None = None,
        bind: str | None = None,
        subscribe: str | bytes | Sequence[str | bytes] = "",
        frames: Sequence[str] = (KEY, VALUE),
        curve: CurveServer | CurveClient | None = None,
        high_water_mark: int = 1_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_rows: int = 1_000,
    ) -> None:
        prefixes = (subscribe,) if isinstance(subscribe, str | bytes) else tuple(subscribe)
        if not prefixes:
            raise ConfigurationError(
                "SubSource: subscribe= has no prefix", hint='subscribe="" is all messages'
            )
        keys: Any = Bytes() if key is None else key
        super().__init__(
            Endpoints.of("SubSource", connect, bind),
            keys,
            value,
            checked_frames("SubSource", frames, known=False),
            tuple(prefix.encode() if isinstance(prefix, str) else prefix for prefix in prefixes),
            curve,
            1,
            high_water_mark,
            max_message_bytes,
            max_rows,
        )

    def open(self, context: SourceContext) -> MessageReader:
        """Subscribe and begin to receive. Raises ``SourceUnavailable`` where the address is in use."""
        return self._reader(zmq.SUB, context)
