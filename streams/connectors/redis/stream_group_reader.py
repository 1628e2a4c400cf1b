"""Reads a stream as a consumer of a group, whose entries are acknowledged once they are committed."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from redis.exceptions import RedisError

from streams.connectors.redis.open_source import OpenSource
from streams.connectors.redis.server_errors import CommandRefused
from streams.connectors.redis.stream_entries import BEGINNING, as_text, id_numbers, pairs, timestamps
from streams.connectors.redis.stream_ranges import Delivered, GroupPosition, StreamRanges, runs
from streams.connectors.redis.stream_reader import StreamOptions
from streams.connectors.source import SourceBatch, SourceHealth
from streams.errors import SourceUnavailable

if TYPE_CHECKING:
    from datetime import timedelta

    from streams.connectors.redis.stream_entries import EntryColumns
    from streams.connectors.source import SourceContext

CLAIM_SECONDS: Final = 5.0
"""How often pending entries of others are looked for."""

MOST_RANGES: Final = 2_000
"""How many ranges may wait for their commit before entries of others are claimed: the position has all."""

CLOSE_SECONDS: Final = 3.0
"""How long closing waits for a read to end."""

PENDING: Final = 5_000
"""How many pending entries one command lists or acknowledges."""


class GroupOptions(StreamOptions, Protocol):
    """What a source says of its stream and group."""

    @property
    def group(self) -> str | None: ...

    @property
    def claim_after(self) -> timedelta: ...


class StreamGroupReader:
    """A ``SourceReader`` of a group, each of which is a new consumer of it."""

    def __init__(self, options: GroupOptions, columns: EntryColumns, context: SourceContext) -> None:
        assert options.group is not None
        self._options = options
        self._columns = columns
        self._what = f"source {context.name!r}: stream {options.stream!r}, group {options.group!r}"
        self._place = (options.stream.encode(), options.group.encode())
        self._source = f"{context.application}/{context.name}/"
        self._task = f"{self._source}{context.task}/"
        position = (
            msgspec.json.decode(context.position, type=GroupPosition)
            if context.position
            else GroupPosition([])
        )
        self._ranges = StreamRanges(position.ranges)
        self._read = position.read
        self._consumer = f"{self._task}{uuid.uuid4().hex[:12]}"
        self._confirmed = b""
        self._acknowledged = b""
        self._claim_at = 0.0
        self._failed = False
        self._server = OpenSource(
            options.url,
            what=self._what,
            name=f"streams {context.application} {context.name}",
            key=options.stream,
            text=columns.text,
        )
        try:
            with self._server.errors("creating the group"):
                self._create_group()
        except BaseException:
            self._server.close()
            raise

    def _create_group(self) -> None:
        """Create the group unless it exists; one that was deleted, where this source has been."""
        begin = "$" if self._options.begin == "latest" else BEGINNING
        start = max((item.last for item in self._ranges.inherited), key=id_numbers, default=begin)
        try:
            self._server.connection.call(b"XGROUP", b"CREATE", *self._place, start.encode(), b"MKSTREAM")
        except CommandRefused as error:
            if error.code != "BUSYGROUP":
                raise

    def read(self, timeout: float) -> SourceBatch | None:
        server = self._server
        with server.reading:
            if server.closed.is_set():
                return None
            try:
                with server.errors("reading"):
                    self._acknowledge()
                    return self._claimed() or self._delivered(timeout)
            except BaseException as error:
                # What the server has delivered meanwhile is not known: the next reader claims it.
                self._failed = True
                # Closing ends the connection.
                if isinstance(error, SourceUnavailable) and server.closed.is_set():
                    return None
                raise

    def _delivered(self, timeout: float) -> SourceBatch | None:
        """Entries that no consumer of the group has had."""
        connection = self._server.connection
        blocking = (b"BLOCK", b"%d" % max(1, round(timeout * 1000))) if timeout > 0 else ()
        answer = connection.call(
            *(b"XREADGROUP", b"GROUP", self._place[1], _encoded(self._consumer)),
            *(b"COUNT", b"%d" % self._options.max_records, *blocking, b"STREAMS", self._place[0], b">"),
            blocking=timeout,
        )
        if not answer:
            return None
        entries = answer[0][1]
        ids = [as_text(entry[0]) for entry in entries]
        before = self._ranges.last
        if before is not None and id_numbers(ids[0]) <= id_numbers(before):
            # The group went back (XGROUP SETID, or a crash of the server).
            return self._known_left_out(entries, ids)
        between = before is not None and connection.call(
            *(b"XRANGE", self._place[0], b"(" + before.encode(), b"(" + ids[0].encode(), b"COUNT", b"1")
        )
        self._ranges.delivered.append(Delivered(ids, joins=before is not None and not between))
        return self._batch(entries, ids)

    def _known_left_out(self, entries: list[Any], ids: list[str]) -> SourceBatch | None:
        """The entries that are not in the ranges already."""
        new = set(self._ranges.unknown(ids))
        left = [entry for entry, entry_id in zip(entries, ids, strict=True) if entry_id in new]
        return self._batch_of_runs(left, ids) if left else None

    def _claimed(self) -> SourceBatch | None:
        """Entries that were delivered to consumers that do not process them, if it is time to look."""
        now = time.monotonic()
        if now < self._claim_at or len(self._ranges) > MOST_RANGES:
            return None
        entries = [
            entry
            for idle, ids in self._abandoned().items()
            for entry in self._claim(ids, idle)
            if entry is not None and entry[1] is not None
        ]
        if not entries:
            self._claim_at = now + CLAIM_SECONDS
            return None
        entries.sort(key=lambda entry: id_numbers(as_text(entry[0])))
        first, last = entries[0][0], entries[-1][0]
        there = self._server.connection.call(
            *(b"XRANGE", self._place[0], _encoded(as_text(first)), _encoded(as_text(last))),
            *(b"COUNT", b"%d" % (2 * len(entries))),
        )
        return self._batch_of_runs(entries, [as_text(entry[0]) for entry in there])

    def _batch_of_runs(self, entries: list[Any], among: list[str]) -> SourceBatch:
        ids = [as_text(entry[0]) for entry in entries]
        self._ranges.delivered += runs(ids, among)
        return self._batch(entries, ids)

    def _abandoned(self) -> dict[int, list[str]]:
        """Ids of pending entries that no consumer processes, by how many milliseconds they must be idle.

        What is pending for this task's other readers was not committed, unless it is in the ranges. Other
        tasks of this source take over their own.
        """
        claim_after = round(self._options.claim_after.total_seconds() * 1000)
        found: dict[int, list[str]] = {0: [], claim_after: []}
        for described in self._server.connection.call(b"XINFO", b"CONSUMERS", *self._place):
            consumer, pending = (pairs(described)[name] for name in ("name", "pending"))
            name = as_text(consumer)
            if not pending or name == self._consumer:
                continue
            idle = 0 if name.startswith(self._task) else claim_after
            if idle and name.startswith(self._source):
                continue
            left = self._options.max_records - sum(map(len, found.values()))
            found[idle] += self._unknown(name, idle, left)
        return {idle: ids for idle, ids in found.items() if ids}

    def _unknown(self, consumer: str, idle: int, count: int) -> list[str]:
        """Ids of up to ``count`` entries that are pending for a consumer, and are in none of the ranges."""
        found: list[str] = []
        first = b"-"
        while len(found) < count:
            ids = self._pending(first, b"+", idle=idle, consumer=consumer)
            found += self._ranges.unknown(ids)
            if len(ids) < PENDING:
                break
            first = b"(" + ids[-1].encode()
        return found[:count]

    def _pending(self, first: bytes, last: bytes, *, idle: int = 0, consumer: str = "") -> list[str]:
        """Ids of entries that are pending, for a consumer or for all."""
        words = (b"IDLE", b"%d" % idle) if idle else ()
        only = (_encoded(consumer),) if consumer else ()
        answer = self._server.connection.call(
            b"XPENDING", *self._place, *words, first, last, b"%d" % PENDING, *only
        )
        return [as_text(item[0]) for item in answer]

    def _claim(self, ids: list[str], idle: int) -> list[Any]:
        """Take entries over, those that still are idle for so many milliseconds."""
        answer: list[Any] = self._server.connection.call(
            *(b"XCLAIM", *self._place, _encoded(self._consumer), b"%d" % idle),
            *(entry_id.encode() for entry_id in ids),
        )
        return answer

    def _batch(self, entries: list[Any], ids: list[str]) -> SourceBatch:
        first = self._read
        self._read += len(ids)
        return SourceBatch.of(
            self._options.stream,
            first,
            msgspec.json.encode(GroupPosition(self._ranges.all(), self._read)),
            keys=self._columns.keys(entries),
            values=self._columns.values(entries),
            timestamps=timestamps(ids),
        )

    def _acknowledge(self) -> None:
        """Acknowledge what the last confirmed position has."""
        confirmed = self._confirmed
        if confirmed == self._acknowledged:
            return
        ranges = msgspec.json.decode(confirmed, type=GroupPosition).ranges
        ids = self._ranges.confirmed(ranges)
        for start in range(0, len(ids), PENDING):
            self._acknowledge_ids(ids[start : start + PENDING])
        for part in self._ranges.inherited_parts(ranges):
            while found := self._pending(part.first.encode(), part.last.encode()):
                self._acknowledge_ids(found)
        self._ranges.acknowledged(ranges)
        self._acknowledged = confirmed

    def _acknowledge_ids(self, ids: list[str]) -> None:
        self._server.connection.call(b"XACK", *self._place, *(entry_id.encode() for entry_id in ids))

    def confirm(self, position: bytes) -> None:
        # Acknowledged by the thread that reads.
        self._confirmed = position

    def health(self) -> SourceHealth:
        with self._server.looking() as connection:
            groups = [pairs(answer) for answer in connection.call(b"XINFO", b"GROUPS", self._place[0])]
        own = next((group for group in groups if group["name"] == self._place[1]), None)
        if own is None:
            return SourceHealth(f"{self._what}: the group does not exist", {"read": float(self._read)})
        # Redis does not know the lag where entries were deleted.
        lag = {} if own["lag"] is None else {"lag": float(own["lag"])}
        return SourceHealth("", {"read": float(self._read), "pending": float(own["pending"]), **lag})

    def close(self) -> None:
        server = self._server
        server.closed.set()
        # Without ending a call: the server may deliver entries to a connection that is gone.
        if server.reading.acquire(timeout=CLOSE_SECONDS):
            try:
                if not self._failed:
                    self._finish()
            finally:
                server.reading.release()
        server.close()

    def _finish(self) -> None:
        """Acknowledge what is confirmed, so that no other program takes it over."""
        self._failed = True
        with suppress(RedisError, CommandRefused):
            self._acknowledge()
            if not len(self._ranges):
                # Nothing is pending for it, which would be lost.
                self._server.connection.call(
                    b"XGROUP", b"DELCONSUMER", *self._place, _encoded(self._consumer)
                )


def _encoded(name: str) -> bytes:
    """A name as the server has it."""
    return name.encode("utf-8", "surrogateescape")
