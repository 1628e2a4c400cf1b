"""Reads a stream from a position, without a group: the position is in Kafka alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from streams.connectors.redis.open_source import OpenSource
from streams.connectors.redis.resp import packed
from streams.connectors.redis.server_errors import CommandRefused
from streams.connectors.redis.stream_entries import BEGINNING, as_text, id_numbers, pairs, timestamps
from streams.connectors.source import SourceBatch, SourceHealth
from streams.errors import ConnectorError, SourceUnavailable
from streams.events import Event, get_logger
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.redis.stream_entries import EntryColumns
    from streams.connectors.source import SourceContext


class StreamOptions(Protocol):
    """What a source says of its stream."""

    @property
    def url(self) -> str: ...

    @property
    def stream(self) -> str: ...

    @property
    def begin(self) -> str: ...

    @property
    def out_of_range(self) -> str: ...

    @property
    def max_records(self) -> int: ...


@decodable
class StreamPosition(msgspec.Struct, frozen=True):
    """After an entry."""

    last: str = BEGINNING
    """Its id."""
    number: int = 0
    """How many entries were added up to it, ever, as the server counts; less if some were deleted unread."""
    read: int = 0
    """How many entries the source has read."""


class StreamState(msgspec.Struct, frozen=True):
    """What the server says of a stream."""

    length: int
    added: int
    """Entries, ever."""
    last: str
    """The last id that was given."""
    first: str | None
    """The first entry that is there."""
    end: str | None
    """The last entry that is there."""

    @classmethod
    def of(cls, answer: Sequence[Any]) -> StreamState:
        """From the answer of ``XINFO STREAM``."""
        found = pairs(answer)
        first, end = (
            None if entry is None else as_text(entry[0])
            for entry in (found["first-entry"], found["last-entry"])
        )
        return cls(found["length"], found["entries-added"], as_text(found["last-generated-id"]), first, end)

    def missing(self, position: StreamPosition) -> int:
        """How many entries after the position are gone; -1 if this is another stream than it was."""
        if id_numbers(self.last) < id_numbers(position.last):
            return -1
        if self.first is not None and id_numbers(self.first) <= id_numbers(position.last):
            return 0
        return max(-1, self.added - position.number - self.length)


class StreamReader:
    """A ``SourceReader`` of a stream."""

    def __init__(self, options: StreamOptions, columns: EntryColumns, context: SourceContext) -> None:
        self._options = options
        self._columns = columns
        self._what = f"source {context.name!r}: stream {options.stream!r}"
        self._key = options.stream.encode()
        self._position = (
            msgspec.json.decode(context.position, type=StreamPosition) if context.position else None
        )
        self._there = True
        self._lost = 0
        self._server = OpenSource(
            options.url,
            what=self._what,
            name=f"streams {context.application} {context.name}",
            key=options.stream,
            text=columns.text,
        )

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        server = self._server
        while not server.closed.is_set():
            with server.reading:
                if server.closed.is_set():
                    break
                try:
                    with server.errors("reading"):
                        batch = self._next()
                        left = deadline - time.monotonic()
                        if batch is None and left > 0.001:
                            self._wait(left)
                except SourceUnavailable:
                    # Closing ends the connection.
                    if server.closed.is_set():
                        break
                    raise
            if batch is not None:
                return batch
            if left <= 0.001:
                break
        return None

    def _next(self) -> SourceBatch | None:
        """What is there after the position."""
        after = self._position or StreamPosition()
        count = self._options.max_records
        answers = self._server.connection.transaction(
            packed(b"XRANGE", self._key, b"(" + after.last.encode(), b"+", b"COUNT", b"%d" % count),
            packed(b"XINFO", b"STREAM", self._key),
            raising=False,
        )
        assert answers is not None, "nothing is watched"
        entries, described = answers
        if isinstance(entries, CommandRefused):
            raise entries
        self._there = not isinstance(described, CommandRefused)
        if isinstance(described, CommandRefused):
            if "no such key" not in str(described):
                raise described
            return self._begun(StreamPosition()) if self._position is None else None
        state = StreamState.of(described)
        if self._position is None:
            return self._begun(
                StreamPosition(state.last, state.added)
                if self._options.begin == "latest"
                else StreamPosition(BEGINNING, state.added - state.length)
            )
        if missing := state.missing(after):
            return self._skipped(after, state, missing)
        if not entries:
            return None
        ids = [as_text(entry[0]) for entry in entries]
        at_end = ids[-1] == state.end
        self._position = StreamPosition(
            ids[-1], state.added if at_end else after.number + len(entries), after.read + len(entries)
        )
        return SourceBatch.of(
            self._options.stream,
            after.read,
            msgspec.json.encode(self._position),
            keys=self._columns.keys(entries),
            values=self._columns.values(entries),
            timestamps=timestamps(ids),
        )

    def _begun(self, position: StreamPosition) -> SourceBatch:
        """The first position, which is committed alone: a later start does not choose another one."""
        self._position = position
        return SourceBatch.of(
            self._options.stream, 0, msgspec.json.encode(position), keys=[], values=[], timestamps=[]
        )

    def _skipped(self, after: StreamPosition, state: StreamState, missing: int) -> SourceBatch | None:
        """The position from which to go on. Raises ``ConnectorError`` unless the source may."""
        now = f"the stream now has {state.length} entries from {state.first or 'none'} to {state.last}"
        if missing < 0:
            text = f"{self._what} was deleted and created again after {after.last} was read: {now}"
        else:
            text = f"{self._what}: {missing} entries after {after.last} were removed before they were read"
            text += f": {now}"
        if self._options.out_of_range == "fail":
            raise ConnectorError(
                text,
                hint='to go on with what is there, set out_of_range="earliest"',
            )
        get_logger().warning(Event.SOURCE_OUT_OF_RANGE, source=self._what, error=text, missing=missing)
        self._lost += max(0, missing)
        last = BEGINNING if missing < 0 else after.last
        self._position = StreamPosition(last, state.added - state.length, after.read)
        return None

    def _wait(self, seconds: float) -> None:
        """Wait until there may be another entry."""
        after = self._position or StreamPosition()
        self._server.connection.call(
            *(b"XREAD", b"COUNT", b"1", b"BLOCK", b"%d" % max(1, round(seconds * 1000))),
            *(b"STREAMS", self._key, after.last.encode()),
            blocking=seconds,
        )

    def confirm(self, position: bytes) -> None:
        """The server keeps nothing for a position."""

    def health(self) -> SourceHealth:
        after = self._position or StreamPosition()
        metrics = {"read": float(after.read), "lost": float(self._lost)}
        with self._server.looking() as connection:
            try:
                state = StreamState.of(connection.call(b"XINFO", b"STREAM", self._key))
            except CommandRefused as error:
                if "no such key" not in str(error):
                    raise
                problem = f"{self._what} does not exist" if after.read else ""
                return SourceHealth(problem, metrics | {"lag": 0.0})
        return SourceHealth("", metrics | {"lag": float(max(0, state.added - after.number))})

    def close(self) -> None:
        self._server.close()
