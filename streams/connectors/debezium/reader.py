"""Reads what Debezium gives: first a snapshot of the tables, then their changes."""

from __future__ import annotations

import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.connectors.change import ChangeSource
from streams.connectors.debezium.control import Control, Kind
from streams.connectors.source import SourceBatch, SourceHealth
from streams.errors import ConnectorError, SourceUnavailable
from streams.records import FetchedLists
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.connectors.debezium.engine import Delivery, Engine
    from streams.connectors.debezium.position import Position
    from streams.connectors.debezium.settings import Capture
    from streams.connectors.debezium.values import Shape
    from streams.connectors.table_name import TableName
    from streams.records import Headers

START_SECONDS: Final = 60.0
"""How long Debezium may take until it reads the log: it reads the catalog first."""
_CHANGES: Final = frozenset("crudt")


class EventSource(msgspec.Struct):
    """What is used here of an event's ``source``."""

    connector: str | None = None
    db: str | None = None
    schema: str | None = None
    table: str | None = None
    ts_ms: int | None = None
    sequence: str | None = None
    snapshot: str | bool | None = None

    @property
    def name(self) -> str:
        """The table, as ``TableName`` writes it."""
        return f"{self.db if self.schema is None else self.schema}.{self.table}"


class Head(msgspec.Struct):
    """What of an event decides where it goes."""

    op: str = ""
    source: EventSource = msgspec.field(default_factory=EventSource)


_HEAD: Final = msgspec.json.Decoder(Head)


def decode_heads(delivery: Delivery) -> list[Head]:
    """What decides where each event goes."""
    return [_HEAD.decode(value) for value in delivery.values]


def in_snapshot(offset: Mapping[str, Any]) -> bool:
    """Whether the snapshot goes on after the event with this offset."""
    if offset.get("initsync"):
        # Of MongoDB.
        return True
    return "snapshot" in offset and not offset.get("snapshot_completed")


class DebeziumReader(ABC):
    """An open source. See ``streams.connectors.source.SourceReader`` for the contract."""

    _engine: Engine
    _position: Position
    """After what was read."""

    def __init__(self, capture: Capture, name: str) -> None:
        self._tables = capture.tables
        self._secrets = capture.secrets
        self._name = name
        self._lock = threading.Lock()
        self._receipts: deque[tuple[bytes, Any]] = deque()
        self._silent_from = time.monotonic() + START_SECONDS
        """When the source is taken as cut off, unless something is heard of it."""
        self._health = SourceHealth("", {})
        self._changes_last = False
        """Whether what was read last were changes, and not what is read beside them."""
        self._opened = True
        """Whether the processor has still to be told that the reader was opened."""
        self._shaped: dict[str, int] = {}
        """By table, the schema of the events that the processor was told of last; or that it has to be."""

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        while True:
            # In turn, so that neither waits for the other.
            changes, self._changes_last = not self._changes_last, False
            batch = self._read_changes(deadline) if changes else None
            self._changes_last = batch is not None
            batch = batch or self._beside()
            if batch is not None or time.monotonic() >= deadline:
                return batch

    def _read_changes(self, deadline: float) -> SourceBatch | None:
        delivery = self._engine.poll(max(0.0, min(deadline - time.monotonic(), self._patience)))
        if delivery is not None:
            self._heard()
            return self._batch(delivery)
        if problem := self._engine.problem:
            raise self._failure(self._scrubbed(problem))
        self._inspect()
        return None

    def confirm(self, position: bytes) -> None:
        receipt = None
        with self._lock:
            if any(at == position for at, _ in self._receipts):
                at = b""
                while at != position:
                    at, found = self._receipts.popleft()
                    # What is read beside the changes has none.
                    receipt = found or receipt
        if receipt is not None:
            self._engine.confirm(receipt)

    def health(self) -> SourceHealth:
        try:
            problem, metrics = self._look()
        except (ConnectorError, SourceUnavailable) as error:
            problem, metrics = str(error), dict(self._health.metrics)
        self._health = SourceHealth(
            problem or (self._engine.problem and self._scrubbed(self._engine.problem)), metrics
        )
        return self._health

    def close(self) -> None:
        self._engine.close()

    # --- what differs between databases

    @property
    @abstractmethod
    def _connector(self) -> str:
        """Debezium's name of the database system."""

    @property
    @abstractmethod
    def _database(self) -> str | None:
        """The database of all tables; ``None`` where it is what their names are in."""

    @abstractmethod
    def _before_snapshot_ends(self, delivery: Delivery, heads: list[Head]) -> None:
        """Take what a snapshot tells beside rows."""

    @abstractmethod
    def _streaming(self) -> None:
        """The snapshot is complete, and what follows are changes."""

    @abstractmethod
    def _unread(
        self, delivery: Delivery, heads: list[Head], rows: list[int]
    ) -> Iterator[int | Control] | list[int]:
        """The rows of the delivery without those that were read before, with controls between them."""

    @abstractmethod
    def _reached(self, delivery: Delivery, position: Position) -> Position:
        """The position after the delivery."""

    @abstractmethod
    def _shape(self, source: EventSource, schema: int) -> Shape:
        """The columns of a table whose next events have this schema."""

    @abstractmethod
    def _inspect(self) -> None:
        """Look whether all is well while nothing comes."""

    @abstractmethod
    def _look(self) -> tuple[str, dict[str, float]]:
        """What is wrong, and the metrics."""

    @abstractmethod
    def _heard(self) -> None:
        """Something came."""

    @abstractmethod
    def _failure(self, problem: str) -> ConnectorError | SourceUnavailable:
        """What to raise for what ended Debezium."""

    # --- what is read beside the changes: nothing, unless a subclass does

    def _opening(self) -> list[Control]:
        """What the processor is told before the first changes of a reader."""
        return [self._control("opened")]

    @property
    def _patience(self) -> float:
        """How long to wait for changes before looking for what is read beside them."""
        return 1.0

    def _beside(self) -> SourceBatch | None:
        """What is read beside the changes, where something is ready."""
        return None

    def _truncated(self, source: EventSource) -> Iterator[Control]:  # noqa: ARG002 - for subclasses
        """What follows from a TRUNCATE beside its event."""
        return iter(())

    # --- from Debezium's events to records

    def _batch(self, delivery: Delivery) -> SourceBatch | None:
        heads = decode_heads(delivery)
        rows = [row for row, head in enumerate(heads) if head.op in _CHANGES]
        before = self._position
        phase = before.phase
        # What is handed over: rows of the delivery, and controls between them.
        taken: list[int | Control] = []
        if self._opened:
            self._opened = False
            taken += self._opening()
        if phase == "snapshot":
            self._before_snapshot_ends(delivery, heads)
            read = next((at for at, row in enumerate(rows) if heads[row].op != "r"), len(rows))
            taken += self._with_shapes(delivery, heads, rows[:read])
            rows = rows[read:]
            if rows or not in_snapshot(delivery.offset):
                taken.append(self._control("complete"))
                phase = "stream"
                self._streaming()
        if phase == "stream":
            taken += self._with_shapes(delivery, heads, self._unread(delivery, heads, rows))
        position = self._reached(
            delivery,
            msgspec.structs.replace(self._position, phase=phase, number=before.number + len(taken)),
        )
        if position == before and delivery.history is None:
            return None
        return self._batch_of(delivery, heads, taken, position, delivery.receipt)

    def _batch_of(
        self,
        delivery: Delivery | None,
        heads: list[Head],
        taken: list[int | Control],
        position: Position,
        receipt: Any,
    ) -> SourceBatch:
        """The records and the position after them, which is the reader's from now on."""
        number, self._position = self._position.number, position
        encoded = position.encode()
        with self._lock:
            self._receipts.append((encoded, receipt))
        records = self._records(delivery, heads, taken, number)
        history = None if delivery is None else delivery.history
        return SourceBatch(records, encoded, None if history is None else zlib.compress(history))

    def _with_shapes(
        self, delivery: Delivery, heads: list[Head], rows: Sequence[int] | Iterator[int | Control]
    ) -> Iterator[int | Control]:
        """The rows, and before the first one of another shape of its table what shape that is."""
        for row in rows:
            if not isinstance(row, Control):
                source = heads[row].source
                schema = delivery.schemas[row]
                if self._shaped.get(source.name) != schema:
                    shape = self._shape(source, schema)
                    self._shaped[source.name] = schema
                    yield self._control("table", source, shape)
                yield row
                if heads[row].op == "t":
                    yield from self._truncated(source)
            else:
                yield row

    def _control(
        self,
        kind: Kind,
        of: EventSource | None = None,
        shape: Shape | None = None,
        of_tables: Sequence[TableName] | None = None,
    ) -> Control:
        if of_tables is None:
            of_tables = self._tables if kind == "complete" else ()
        tables = [self._source(*table) for table in of_tables]
        source = (
            self._source(None, None)
            if of is None
            else self._source(of.db if of.schema is None else of.schema, of.table)
        )
        return Control(
            control=kind, snapshot=self._position.snapshot, source=source, shape=shape, tables=tables
        )

    def _source(self, namespace: str | None, table: str | None) -> ChangeSource:
        database = self._database
        return ChangeSource(
            db=namespace or "" if database is None else database,
            connector=self._connector,
            name=self._name,
            schema=None if database is None else namespace,
            table=table,
        )

    def _records(
        self, delivery: Delivery | None, heads: list[Head], taken: list[int | Control], number: int
    ) -> FetchedLists:
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        times: list[int] = []
        headers: list[Headers | None] = []
        for row in taken:
            if isinstance(row, Control):
                keys.append(None)
                values.append(row.encode())
                times.append(times[-1] if times else -1)
                headers.append(None)
            else:
                assert delivery is not None, "rows are of a delivery"
                keys.append(delivery.keys[row])
                values.append(delivery.values[row])
                times.append(heads[row].source.ts_ms or -1)
                headers.append(delivery.headers.get(row))
        offsets = range(number, number + len(taken))
        with_headers = delivery is not None and bool(delivery.headers)
        return FetchedLists(
            f"{self._name}-changes", 0, keys, values, times, offsets, headers if with_headers else None
        )

    def _scrubbed(self, text: str) -> str:
        return scrub(text, self._secrets)
