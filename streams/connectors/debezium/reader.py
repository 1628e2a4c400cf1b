"""Reads the changes of Postgres tables through Debezium: first a snapshot, then the log."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.connectors.change import ChangeSource
from streams.connectors.debezium.control import Control, Kind
from streams.connectors.debezium.engine import Engine
from streams.connectors.debezium.position import (
    EventsMissing,
    Position,
    Transactions,
    confirmed_by,
    lsn_text,
)
from streams.connectors.debezium.values import Shape
from streams.connectors.source import SourceBatch, SourceHealth
from streams.errors import ConnectorError, SourceUnavailable
from streams.records import FetchedLists
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streams.connectors.debezium.engine import Delivery
    from streams.connectors.debezium.settings import Capture
    from streams.connectors.postgres.replication import TableState
    from streams.connectors.source import SourceContext
    from streams.records import Headers

INSPECT_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 15.0
"""After how long without a reader of its slot the source is taken as cut off."""
START_SECONDS: Final = 60.0
"""The same before Debezium has begun to read the slot: it reads the catalog first."""
_LASTING: Final = re.compile(
    r"can no longer get changes|has been invalidated|does not exist|permission denied"
)


class _Source(msgspec.Struct):
    schema: str | None = None
    table: str | None = None
    ts_ms: int | None = None
    sequence: str | None = None


class _Head(msgspec.Struct):
    """What of an event decides where it goes."""

    op: str = ""
    source: _Source = msgspec.field(default_factory=_Source)


_HEAD: Final = msgspec.json.Decoder(_Head)
_SEQUENCE: Final = msgspec.json.Decoder(list[str | None])
_CHANGES: Final = frozenset("crudt")


class PostgresReader:
    """An open source. See ``streams.connectors.source.SourceReader`` for the contract."""

    def __init__(self, capture: Capture, context: SourceContext) -> None:
        self._capture = capture
        self._name = context.name
        self._slot = capture.slot_of(context.application, context.name)
        self._publication = capture.publication_of(context.application, context.name)
        self._replication = capture.replication
        self._lock = threading.Lock()
        self._receipts: deque[tuple[bytes, Any]] = deque()
        self._inspected = time.monotonic()
        self._silent_from = self._inspected + START_SECONDS
        """When the source is taken as cut off, unless something reads its slot."""
        self._health = SourceHealth("", {})
        committed = Position.decode(context.position)
        self._replication.require_logical()
        states = self._replication.tables(capture.tables)
        system, end = self._replication.system()
        tables = identities(states)
        offset: dict[str, Any] | None = None
        if (
            committed.phase == "stream"
            and committed.label == capture.snapshot
            and set(committed.tables) == set(tables)
        ):
            self._require_same(committed, system, end, tables)
            self._require_published()
            self._replication.free_slot(self._slot)
            offset = {"lsn": committed.lsn, "lsn_commit": committed.lsn, "ts_usec": 0}
            self._position = committed
        else:
            self._replication.drop_slot(self._slot)
            self._position = Position(
                snapshot=committed.snapshot + 1,
                label=capture.snapshot,
                number=committed.number,
                system=system,
                tables=tables,
            )
        self._replication.publication(self._publication, capture.tables, own=capture.publication is None)
        self._transactions = Transactions(self._position.lsn, self._position.events)
        self._opened: Control | None = self._control("opened")
        self._full = {str(state.table): state.full_identity for state in states}
        self._shaped: dict[str, int] = {}
        if offset is None:
            self._replication.require_readable(states)
        self._engine = Engine(
            capture.properties(
                context.application,
                context.name,
                resume=offset is not None,
                left_out=[(state.table, column) for state in states for column in state.generated],
            ),
            offset,
        )

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        while True:
            delivery = self._engine.poll(max(0.0, min(deadline - time.monotonic(), 1.0)))
            if delivery is not None:
                self._heard()
                batch = self._batch(delivery)
                if batch is not None:
                    return batch
            elif problem := self._engine.problem:
                raise self._failure(problem)
            else:
                self._inspect()
            if time.monotonic() >= deadline:
                return None

    def confirm(self, position: bytes) -> None:
        receipt = None
        with self._lock:
            while self._receipts:
                at, of = self._receipts[0]
                if Position.decode(at).order > Position.decode(position).order:
                    break
                receipt = of
                self._receipts.popleft()
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

    def _require_same(self, committed: Position, system: str, end: int, tables: dict[str, str]) -> None:
        """Check that the server still has what follows the committed position."""
        again = self._capture.again(self._name)
        if system != committed.system:
            raise ConnectorError(
                f"the server is another database cluster ({system}) than the one of the committed position "
                f"({committed.system})",
                hint=again,
            )
        if committed.lsn > end:
            raise ConnectorError(
                f"the committed position {lsn_text(committed.lsn)} is beyond the end of the server's log "
                f"({lsn_text(end)}): it was restored, or failed over to a standby that had not received all",
                hint=again,
            )
        self._require_tables(tables, committed.tables)
        self._require_slot(committed.confirmed)

    def _require_tables(self, tables: dict[str, str], before: dict[str, str]) -> None:
        other = [table for table, identity in tables.items() if before[table] != identity]
        if other:
            raise ConnectorError(
                f"{', '.join(sorted(other))} was dropped and created again, replaced by "
                "renaming, or has another key",
                hint=self._capture.again(self._name),
            )

    def _require_published(self) -> None:
        """Check that no table was taken out of the publication: what changed meanwhile is in no slot."""
        missing = set(map(str, self._capture.tables)) - self._replication.published(self._publication)
        if missing:
            raise ConnectorError(
                f"the publication {self._publication} does not have {', '.join(sorted(missing))} any more, "
                "whose changes may be lost",
                hint=self._capture.again(self._name),
            )

    def _require_slot(self, confirmed: int | None) -> Any:
        again = self._capture.again(self._name)
        slot = self._replication.slot(self._slot)
        if slot is None:
            raise ConnectorError(f"the replication slot {self._slot} does not exist any more", hint=again)
        if slot.lost:
            raise ConnectorError(f"the replication slot {self._slot} is lost: {slot.lost}", hint=again)
        if confirmed is not None and slot.confirmed > confirmed:
            raise ConnectorError(
                f"the replication slot {self._slot} was read by another program up to "
                f"{lsn_text(slot.confirmed)}, beyond the committed position {lsn_text(confirmed)}",
                hint=again,
            )
        return slot

    def _batch(self, delivery: Delivery) -> SourceBatch | None:
        heads = [_HEAD.decode(value) for value in delivery.values]
        rows = [row for row, head in enumerate(heads) if head.op in _CHANGES]
        before = self._position
        phase = before.phase
        # What is handed over: rows of the delivery, and controls between them.
        chosen: list[int | Control] = []
        opened, self._opened = self._opened, None
        if opened is not None:
            chosen.append(opened)
        if phase == "snapshot":
            read = next((at for at, row in enumerate(rows) if heads[row].op != "r"), len(rows))
            chosen += self._with_shapes(delivery, heads, rows[:read])
            rows = rows[read:]
            if rows or not _in_snapshot(delivery.offset):
                chosen.append(self._control("complete"))
                phase = "stream"
                self._silent_from = time.monotonic() + START_SECONDS
                # Nothing is confirmed yet: the slot is where it was made, which is where the snapshot is.
                self._transactions = Transactions(self._require_slot(None).confirmed, 0)
        if phase == "stream":
            chosen += self._with_shapes(delivery, heads, self._unread(delivery, heads, rows))
        position = msgspec.structs.replace(
            before,
            phase=phase,
            lsn=self._transactions.lsn,
            events=self._transactions.events,
            confirmed=max(before.confirmed, self._transactions.lsn, confirmed_by(delivery.offset)),
            number=before.number + len(chosen),
        )
        if position == before:
            return None
        self._position = position
        encoded = position.encode()
        with self._lock:
            self._receipts.append((encoded, delivery.receipt))
        return SourceBatch(self._records(delivery, heads, chosen, before.number), encoded)

    def _unread(self, delivery: Delivery, heads: list[_Head], rows: list[int]) -> list[int]:
        """The rows without those that were read before the reader was opened."""
        try:
            befores = [_before(heads[row].source.sequence) for row in rows]
            skipped = self._transactions.take(befores) if rows else 0
            commit = delivery.offset.get("lsn_commit")
            self._transactions.committed(None if commit is None else int(commit))
        except EventsMissing as error:
            raise ConnectorError(
                f"the replication slot {self._slot} did not continue where it was: {error}",
                hint=self._capture.again(self._name),
            ) from error
        return rows[skipped:]

    def _with_shapes(
        self, delivery: Delivery, heads: list[_Head], rows: list[int]
    ) -> Iterator[int | Control]:
        """The rows, and before the first one of another shape of its table what shape that is."""
        for row in rows:
            source = heads[row].source
            table = f"{source.schema}.{source.table}"
            schema = delivery.schemas[row]
            if self._shaped.get(table) != schema:
                columns = self._engine.columns(schema)
                if table in self._shaped:
                    # Of a column that cannot be captured there is no trace in the event.
                    states = self._replication.tables(self._capture.tables)
                    self._require_tables(identities(states), self._position.tables)
                    self._full = {str(state.table): state.full_identity for state in states}
                self._shaped[table] = schema
                yield self._control("table", source, Shape(columns, self._full.get(table, False)))
            yield row

    def _control(self, kind: Kind, of: _Source | None = None, shape: Shape | None = None) -> Control:
        source = ChangeSource(
            db=self._capture.database,
            connector="postgresql",
            name=self._name,
            schema=None if of is None else of.schema,
            table=None if of is None else of.table,
        )
        tables = [(table.schema, table.name) for table in self._capture.tables if kind == "complete"]
        return Control(
            control=kind, snapshot=self._position.snapshot, source=source, shape=shape, tables=tables
        )

    def _records(
        self, delivery: Delivery, heads: list[_Head], chosen: list[int | Control], number: int
    ) -> FetchedLists:
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        times: list[int] = []
        headers: list[Headers | None] = []
        for row in chosen:
            if isinstance(row, Control):
                keys.append(None)
                values.append(row.encode())
                times.append(times[-1] if times else -1)
                headers.append(None)
            else:
                keys.append(delivery.keys[row])
                values.append(delivery.values[row])
                times.append(heads[row].source.ts_ms or -1)
                headers.append(delivery.headers.get(row))
        offsets = range(number, number + len(chosen))
        return FetchedLists(
            f"{self._name}-changes", 0, keys, values, times, offsets, headers if delivery.headers else None
        )

    def _inspect(self) -> None:
        """Look at the server while nothing comes: the slot may be lost, or the connection cut."""
        now = time.monotonic()
        if now - self._inspected < INSPECT_SECONDS:
            return
        self._inspected = now
        self._look()
        if self._position.phase == "stream":
            tables = self._replication.tables(self._capture.tables)
            self._require_tables(
                {str(state.table): state.identity for state in tables}, self._position.tables
            )
        if time.monotonic() > self._silent_from:
            raise SourceUnavailable(f"nothing reads the replication slot {self._slot}: Debezium hangs")

    def _heard(self) -> None:
        self._silent_from = time.monotonic() + SILENT_SECONDS

    def _look(self) -> tuple[str, dict[str, float]]:
        if self._position.phase == "snapshot":
            # The slot may be about to be created; the snapshot reads the tables through another connection.
            self._silent_from = time.monotonic() + START_SECONDS
            return "", {}
        slot = self._require_slot(None)
        problem = ""
        if slot.active:
            self._heard()
        else:
            problem = f"nothing reads the replication slot {self._slot}"
        return problem, {"lag_bytes": slot.lag_bytes, "retained_bytes": slot.retained_bytes}

    def _failure(self, problem: str) -> ConnectorError | SourceUnavailable:
        text = self._scrubbed(problem)
        if self._position.phase == "stream":
            # A lost slot, or another key, has an error of its own, which says what to do.
            self._require_slot(None)
            self._require_tables(
                identities(self._replication.tables(self._capture.tables)), self._position.tables
            )
            self._require_published()
        if _LASTING.search(text):
            return ConnectorError(f"Debezium ended: {text}")
        return SourceUnavailable(f"Debezium ended: {text}")

    def _scrubbed(self, text: str) -> str:
        return scrub(text, self._capture.secrets)


def identities(states: Sequence[TableState]) -> dict[str, str]:
    """The captured tables, with what tells each from another one of that name."""
    return {str(state.table): state.identity for state in states}


def _in_snapshot(offset: Any) -> bool:
    return "snapshot" in offset and not offset.get("snapshot_completed")


def _before(sequence: str | None) -> int | None:
    """The end of the last commit before an event's transaction: the first of its sequence numbers."""
    first = _SEQUENCE.decode(sequence or "[null]")[0]
    return None if first is None else int(first)
