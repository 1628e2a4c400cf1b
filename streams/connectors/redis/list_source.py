"""A list as a source: elements move into a list of its own, and are removed once they are committed."""

from __future__ import annotations

import builtins
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args, overload

import msgspec
from redis.exceptions import RedisError

from streams.connectors.redis.connection import in_slot_of
from streams.connectors.redis.open_source import OpenSource, check_source
from streams.connectors.redis.resp import packed
from streams.connectors.redis.server_address import client_options
from streams.connectors.redis.server_errors import CommandRefused
from streams.connectors.source import PlainSource, SourceBatch, SourceHealth
from streams.errors import ConfigurationError, SourceUnavailable
from streams.events import Event, get_logger
from streams.serde import Bytes, Json, Text
from streams.structs import decodable

if TYPE_CHECKING:
    from streams.connectors.source import SourceContext
    from streams.serde import Serde

V = TypeVar("V")
Type: TypeAlias = builtins.type[V]
End: TypeAlias = Literal["left", "right"]

CLOSE_SECONDS: Final = 3.0
"""How long closing waits for a read to end."""


@dataclass(frozen=True, slots=True)
class _ListSource(PlainSource, Generic[V]):
    """The options of a list."""

    url: str = field(repr=False)
    list: str
    value: Serde[V]
    take: End
    max_records: int

    def __post_init__(self) -> None:
        client_options(self.url, "RedisList")
        if not self.list:
            raise ConfigurationError("RedisList needs the name of a list")
        if self.take not in get_args(End):
            raise ConfigurationError(f"RedisList({self.list!r}): take={self.take!r} is none of left, right")
        if self.max_records < 1:
            raise ConfigurationError(
                f"RedisList({self.list!r}): max_records={self.max_records}, needed is at least 1"
            )


class RedisList(_ListSource[V]):
    """The elements of a list, each exactly once, taken from its left end (``RPUSH``) or ``take="right"``.

    Values are text, JSON of ``type``, or what the serde ``value`` reads. There is no key, and the event time
    is that of reading. Elements are moved into a list of this source, and removed when they are committed;
    several programs may take from the same list. A batch has up to ``max_records`` elements.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: RedisList[str],
        url: str,
        list: str,
        type: None = None,
        *,
        take: End = "left",
        max_records: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self, url: str, list: str, type: Type[V], *, take: End = "left", max_records: int = 2_000
    ) -> None: ...

    @overload
    def __init__(
        self, url: str, list: str, *, value: Serde[V], take: End = "left", max_records: int = 2_000
    ) -> None: ...

    def __init__(
        self,
        url: str,
        list: str,  # noqa: A002 - Redis' own name
        type: Any = None,  # noqa: A002 - as of Json
        *,
        value: Any = None,
        take: End = "left",
        max_records: int = 2_000,
    ) -> None:
        if value is not None and type is not None:
            raise ConfigurationError(f"RedisList({list!r}): give a type or value=, not both")
        if value is None:
            value = Text() if type is None else Json(type)
        super().__init__(url, list, value, take, max_records)

    @property
    def kind(self) -> str:
        """The system."""
        return "redis"

    @property
    def tasks(self) -> int:
        return 1

    @property
    def key(self) -> Serde[bytes]:
        return Bytes()

    def check(self, application: str, name: str) -> None:
        """Check that the server can be read, and that the key is a list, if it exists."""
        check_source(
            self.url,
            what=f"source {name!r}",
            name=f"streams {application} {name}",
            key=self.list,
            key_type="list",
        )

    def open(self, context: SourceContext) -> ListReader:
        """Connect, and continue at the context's position."""
        return ListReader(self.url, self.list, self.take, self.max_records, context)


@decodable
class ListPosition(msgspec.Struct, frozen=True):
    """The number of the next element, of all that were ever moved."""

    next: int


class ListReader:
    """A ``SourceReader`` of a list."""

    def __init__(self, url: str, name: str, take: End, max_records: int, context: SourceContext) -> None:
        self._what = f"source {context.name!r}: list {name!r}"
        self._name = name
        moved = f"{in_slot_of(name, 'streams:processing')}:{context.application}/{context.name}"
        self._list, self._moved, self._count = name.encode(), moved.encode(), f"{moved}/removed".encode()
        self._end = take.upper().encode()
        self._max_records = max_records
        known = msgspec.json.decode(context.position, type=ListPosition) if context.position else None
        self._next = None if known is None else known.next
        self._removed = 0
        """How many elements were removed from the own list, as far as it is known."""
        self._waiting = 0
        """How many elements were in the list itself."""
        self._confirmed = 0
        self._failed = False
        self._server = OpenSource(
            url, what=self._what, name=f"streams {context.application} {context.name}", key=name
        )

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        server = self._server
        with server.reading:
            while not server.closed.is_set():
                try:
                    with server.errors("reading"):
                        self._remove()
                        batch = self._take()
                        if batch is not None:
                            return batch
                        left = deadline - time.monotonic()
                        if not self._waiting and left > 0.001:
                            self._wait(left)
                        elif left <= 0:
                            break
                except BaseException as error:
                    self._failed = True
                    # Closing ends the connection.
                    if isinstance(error, SourceUnavailable) and server.closed.is_set():
                        break
                    raise
        return None

    def _take(self) -> SourceBatch | None:
        """The next elements of the own list: those that are there, else those that are moved into it now."""
        count = min(self._waiting, self._max_records)
        after = max(0, (self._next or 0) - self._removed)
        answers = self._server.connection.transaction(
            packed(b"GET", self._count),
            packed(b"LLEN", self._moved),
            packed(b"LRANGE", self._moved, b"%d" % after, b"%d" % (after + self._max_records - 1)),
            *[packed(b"LMOVE", self._list, self._moved, self._end, b"RIGHT")] * count,
            packed(b"LLEN", self._list),
        )
        assert answers is not None, "nothing is watched"
        removed, length, found, *moved, self._waiting = answers
        removed = int(removed or 0)
        if self._next is None or self._next < removed:
            # Before the first commit; or the position in Kafka was reset.
            self._next = removed
            return self._again(removed)
        if removed + length < self._next:
            return self._went_back(removed, length)
        if removed != self._removed:
            return self._again(removed)
        # Whatever another reader of this source has moved is in the list too, and comes first.
        values = found or [element for element in moved if element is not None]
        if not values:
            return None
        first = self._next
        self._next = first + len(values)
        now = time.time_ns() // 1_000_000
        return SourceBatch.of(
            self._name,
            first,
            msgspec.json.encode(ListPosition(self._next)),
            keys=[None] * len(values),
            values=values,
            timestamps=[now] * len(values),
        )

    def _again(self, removed: int) -> SourceBatch | None:
        """Look again, with another number of removed elements."""
        self._removed = removed
        return self._take()

    def _went_back(self, removed: int, length: int) -> SourceBatch | None:
        """The server has lost moves: what it still has was read, and what is moved from now on is new."""
        assert self._next is not None
        get_logger().warning(
            Event.SOURCE_WENT_BACK,
            source=self._what,
            records=self._next - removed - length,
            error="the server lost its last writes: elements that were read are in the list again",
        )
        connection = self._server.connection
        connection.calls(packed(b"WATCH", self._count), packed(b"GET", self._count))
        connection.transaction(packed(b"SET", self._count, b"%d" % (self._next - length)))
        return self._take()

    def _wait(self, seconds: float) -> None:
        """Wait until an element is moved."""
        self._server.connection.call(
            *(b"BLMOVE", self._list, self._moved, self._end, b"RIGHT", b"%.3f" % seconds), blocking=seconds
        )

    def _remove(self) -> None:
        """Remove the elements that are committed."""
        confirmed = self._confirmed
        if confirmed <= self._removed:
            return
        connection = self._server.connection
        found = connection.calls(packed(b"WATCH", self._count), packed(b"GET", self._count))
        removed = int(found[1] or 0)
        if confirmed <= removed:
            connection.call(b"UNWATCH")
            self._removed = removed
            return
        done = connection.transaction(
            packed(b"LTRIM", self._moved, b"%d" % (confirmed - removed), b"-1"),
            packed(b"SET", self._count, b"%d" % confirmed),
        )
        if done is not None:
            self._removed = confirmed

    def confirm(self, position: bytes) -> None:
        # Removed by the thread that reads.
        self._confirmed = msgspec.json.decode(position, type=ListPosition).next

    def health(self) -> SourceHealth:
        with self._server.looking() as connection:
            lag, processing = connection.calls(packed(b"LLEN", self._list), packed(b"LLEN", self._moved))
        return SourceHealth("", {"lag": float(lag), "processing": float(processing)})

    def close(self) -> None:
        server = self._server
        server.closed.set()
        if server.reading.acquire(timeout=CLOSE_SECONDS):
            try:
                if not self._failed:
                    self._failed = True
                    with suppress(RedisError, CommandRefused):
                        self._remove()
            finally:
                server.reading.release()
        server.close()
