"""A sink and a source in memory, whose systems fail when a test says so."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from streams import Json
from streams.connectors.sink import RefusedRow
from streams.connectors.source import SourceBatch, SourceHealth
from streams.errors import (
    ConnectorError,
    SinkFenced,
    SinkMismatch,
    SinkOutcomeUnknown,
    SinkUnavailable,
    SourceUnavailable,
)
from streams.records import FetchedLists, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.connectors.sink import SinkContext, SinkRows
    from streams.connectors.source import SourceContext
    from streams.serde import Serde


@dataclass
class Database:
    """What a sink writes to: rows appended, and positions, committed together."""

    rows: list[tuple[Any, Any]] = field(default_factory=list)
    positions: dict[tuple[str, TopicPartition], tuple[str, int]] = field(default_factory=dict)
    """The topic's id and the next offset, by sink and partition."""
    refuses: Callable[[Any], bool] = lambda _: False
    faults: dict[str, list[str]] = field(default_factory=dict)
    """What happens at the next calls: ``open``, ``claim``, ``write`` and ``commit`` fail with
    ``unavailable``; ``commit`` also with ``lost answer``, after it has taken effect.
    """
    transactions: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    owner: MemoryWriter | None = None
    down: bool = False
    unfit: bool = False
    takes_retries: bool = False
    retried: int = 0
    """Rows of dead letters that were retried, in all attempts."""

    def fault(self, call: str) -> str | None:
        if self.down:
            return "unavailable"
        waiting = self.faults.get(call)
        return waiting.pop(0) if waiting else None


@dataclass(frozen=True)
class MemorySink:
    """A sink connector that appends to a ``Database``."""

    kind: ClassVar[str] = "memory"

    database: Database = field(compare=False)
    target: str = "rows"
    max_rows: int = 1_000

    @property
    def takes_retries(self) -> bool:
        return self.database.takes_retries

    def check(self, context: SinkContext) -> None:
        if self.database.down:
            raise SinkUnavailable(f"{context.name} is down")
        if self.database.unfit:
            raise ConnectorError(f"{context.name} does not fit")

    def open(self, context: SinkContext) -> MemoryWriter:
        if self.database.fault("open"):
            raise SinkUnavailable("not reachable")
        return MemoryWriter(self.database, context.name)


@dataclass(frozen=True)
class MemoryQueue:
    """A sink connector that keeps no positions: what is written is delivered, and cannot be taken back."""

    kind: ClassVar[str] = "queue"
    keeps_positions: ClassVar[bool] = False

    database: Database = field(compare=False)
    target: str = "messages"
    max_rows: int = 1_000

    def check(self, context: SinkContext) -> None:
        if self.database.down:
            raise SinkUnavailable(f"{context.name} is down")

    def open(self, context: SinkContext) -> MemoryQueueWriter:
        if self.database.fault("open"):
            raise SinkUnavailable("not reachable")
        return MemoryQueueWriter(self.database)


class MemoryQueueWriter:
    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def release(self, partitions: Collection[TopicPartition]) -> None:
        pass

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        database = self._database
        fault = database.fault("write")
        refused = []
        with database.lock:
            for item in rows:
                for row, (key, value) in enumerate(zip(item.keys, item.values, strict=True)):
                    if database.refuses(value):
                        refused.append(RefusedRow(item.partition, row, ValueError(f"refused: {value}")))
                        continue
                    if fault == "half" and row >= len(item) // 2:
                        raise SinkUnavailable("failed in the middle")
                    database.rows.append((key, value))
            if fault == "unavailable":
                raise SinkUnavailable("failed at the end")
            if fault == "crash":
                raise RuntimeError("the process ends between the sink's delivery and Kafka's commit")
        return refused

    def commit(self) -> None:
        self._database.transactions += 1

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryWriter:
    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._pending: list[tuple[Any, Any]] | None = None
        self._moves: dict[TopicPartition, int] = {}

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        database = self._database
        with database.lock:
            if database.fault("claim"):
                raise SinkUnavailable("claim failed")
            if database.owner not in (None, self):
                raise SinkUnavailable("positions are locked")
            found = {}
            for partition, topic_id in partitions.items():
                known, position = database.positions.setdefault((self._name, partition), (topic_id, 0))
                if known != topic_id:
                    raise SinkMismatch(f"{partition} was topic {known} and is {topic_id} now")
                found[partition] = position
            return found

    def release(self, partitions: Collection[TopicPartition]) -> None:
        pass

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        database = self._database
        assert self._pending is None
        with database.lock:
            if database.fault("write"):
                raise SinkUnavailable("write failed")
            if database.owner not in (None, self):
                raise SinkUnavailable("positions are locked")
            for item in rows:
                if database.positions[self._name, item.partition][1] != item.start:
                    raise SinkFenced(f"{item.partition} has moved")
                new = [offset for offset in item.offsets if offset >= item.start]
                assert new == sorted(new)
                assert all(offset < item.next_offset for offset in new)
                retried = len(item.offsets) - len(new)
                assert database.takes_retries or not retried, "rows before the position"
                database.retried += retried
            database.owner = self
            self._pending = []
            refused = []
            for item in rows:
                self._moves[item.partition] = item.next_offset
                for row, (key, value) in enumerate(zip(item.keys, item.values, strict=True)):
                    if database.refuses(value):
                        refused.append(RefusedRow(item.partition, row, ValueError(f"refused: {value}")))
                    else:
                        self._pending.append((key, value))
            return refused

    def commit(self) -> None:
        database = self._database
        with database.lock:
            fault = database.fault("commit")
            if fault == "unavailable":
                raise SinkUnavailable("commit failed")
            assert self._pending is not None
            database.rows += self._pending
            for partition, position in self._moves.items():
                topic_id = database.positions[self._name, partition][0]
                database.positions[self._name, partition] = topic_id, position
            database.transactions += 1
            self._end()
            if fault == "lost answer":
                raise SinkOutcomeUnknown("no answer")

    def rollback(self) -> None:
        with self._database.lock:
            self._end()

    def close(self) -> None:
        with self._database.lock:
            self._end()

    def _end(self) -> None:
        self._pending = None
        self._moves = {}
        if self._database.owner is self:
            self._database.owner = None


@dataclass
class Feed:
    """What a source reads: numbered values, and what the engine has confirmed."""

    values: list[Any] = field(default_factory=list)
    confirmed: list[int] = field(default_factory=list)
    opened_at: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """The next reads that fail with ``unavailable``."""
    batch: int = 10
    problem: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    """What its system reports, beside the number of the next value."""
    key: Callable[[int, Any], Any] = lambda number, _: number
    """Of the value with a number."""


@dataclass(frozen=True)
class MemorySource:
    """A source connector that reads a ``Feed``; its positions are the numbers of the next values."""

    kind: ClassVar[str] = "memory"

    feed: Feed = field(compare=False)
    tasks: int = 1
    key: Serde[Any] = field(default_factory=Json)
    value: Serde[Any] = field(default_factory=Json)
    process: Callable[[], Any] | None = None
    stores: Mapping[str, tuple[Serde[Any], Serde[Any]]] = field(default_factory=dict)

    def check(self, application: str, name: str) -> None:
        pass

    def open(self, context: SourceContext) -> MemoryReader:
        return MemoryReader(self.feed, int(context.position or b"0"))


class MemoryReader:
    def __init__(self, feed: Feed, position: int) -> None:
        self._feed = feed
        self._next = position
        self._closed = threading.Event()
        feed.opened_at.append(position)

    def read(self, timeout: float) -> SourceBatch | None:
        if self._feed.faults:
            raise SourceUnavailable(self._feed.faults.pop(0))
        until = time.monotonic() + timeout
        while self._next >= len(self._feed.values):
            if time.monotonic() > until or self._closed.wait(0.002):
                return None
        numbers = range(self._next, min(len(self._feed.values), self._next + self._feed.batch))
        payloads = [json.dumps(self._feed.values[number]).encode() for number in numbers]
        keys = [self._feed.key(number, self._feed.values[number]) for number in numbers]
        self._next = numbers.stop
        records = FetchedLists(
            "feed",
            0,
            [None if key is None else json.dumps(key).encode() for key in keys],
            payloads,
            [0] * len(numbers),
            list(numbers),
        )
        return SourceBatch(records, str(numbers.stop).encode())

    def confirm(self, position: bytes) -> None:
        self._feed.confirmed.append(int(position))

    def health(self) -> SourceHealth:
        return SourceHealth(self._feed.problem, {"next": float(self._next), **self._feed.numbers})

    def close(self) -> None:
        self._closed.set()
