"""Reads the changes of Postgres tables through a replication slot."""

from __future__ import annotations

import re
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from streams.connectors.debezium.engine import LOST, Engine
from streams.connectors.debezium.left_out import may_leave_out
from streams.connectors.debezium.position import (
    EventsMissing,
    Position,
    Transactions,
    confirmed_by,
)
from streams.connectors.debezium.postgres_capture import MESSAGE_PREFIX
from streams.connectors.debezium.postgres_checks import PostgresChecks
from streams.connectors.debezium.reader import START_SECONDS, DebeziumReader
from streams.connectors.debezium.rows import NEW_KEY
from streams.connectors.debezium.table_chunks import TableChunks
from streams.connectors.debezium.table_readings import (
    begun,
    complete,
    first_position,
    moved,
    not_begun,
    read_to,
    read_to_end,
)
from streams.connectors.debezium.values import POSTGRES, Shape
from streams.connectors.postgres.key_ranges import KeyRanges
from streams.connectors.table_name import TableName
from streams.errors import ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streams.connectors.debezium.control import Control
    from streams.connectors.debezium.engine import Delivery
    from streams.connectors.debezium.postgres_capture import PostgresCapture
    from streams.connectors.debezium.reader import EventSource, Head
    from streams.connectors.debezium.table_chunks import Chunk, Piece
    from streams.connectors.debezium.values import Column
    from streams.connectors.postgres.replication import TableState
    from streams.connectors.source import SourceBatch, SourceContext

INSPECT_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 15.0
"""After how long without a reader of its slot the source is taken as cut off."""
_LASTING: Final = re.compile(
    rf"can no longer get changes|has been invalidated|does not exist|permission denied|{LOST}"
)
_SEQUENCE: Final = msgspec.json.Decoder(list[str | None])


class PostgresReader(DebeziumReader):
    """An open source. See ``streams.connectors.source.SourceReader`` for the contract."""

    def __init__(self, capture: PostgresCapture, context: SourceContext) -> None:
        super().__init__(capture, context.name)
        self._capture = capture
        self._slot = capture.slot_of(context.application, context.name)
        self._publication = capture.publication_of(context.application, context.name)
        self._replication = capture.replication
        self._inspected = time.monotonic()
        self._application = context.application
        self._later: Position | None = None
        """With the tables that are captured from the next transaction on; ``None`` when they are now."""
        self._checks = PostgresChecks(capture, context.name, self._slot, self._publication)
        committed = Position.decode(context.position)
        self._replication.require_logical()
        states = self._replication.tables(capture.tables)
        tables = identities(states)
        self._resumes = committed.phase == "stream" and committed.label == capture.snapshot
        labels = {str(table): text for table, text in capture.table_snapshots}
        if self._resumes:
            self._position = first_position(committed, tables, labels)
            self._checks.require_same(committed, self._position, states)
            self._replication.free_slot(self._slot)
        else:
            self._replication.drop_slot(self._slot)
            self._position = Position(
                snapshot=committed.snapshot + 1,
                label=capture.snapshot,
                number=committed.number,
                system=self._replication.system()[0],
                tables=tables,
                labels={table: text for table, text in labels.items() if text},
            )
        self._replication.publication(self._publication, capture.tables, own=capture.publication is None)
        self._transactions = Transactions(self._position.lsn, self._position.events)
        self._take(states)
        self._columns: dict[str, dict[str, Column]] = {}
        """By table, those that were looked at last."""
        self._chunks: TableChunks | None = None
        self._chunk: Chunk | None = None
        self._begin_from = 0
        """Where in the log the tables that have still to be read may begin."""
        self._layouts: dict[str, str] = {}
        if self._resumes:
            if not_begun(self._position):
                # From here on, all changes of these tables are in the log, and of no others of that name.
                self._begin_from = self._replication.mark(MESSAGE_PREFIX)
            if committed.events and committed.tables.keys() != tables.keys():
                # A transaction that was read in part must be sent again with the same events.
                self._later, self._position = self._position, committed
                self._open_engine(list(committed.tables))
                return
        else:
            self._replication.require_readable(states)
            self._layouts = self._layouts_now()
        self._open_engine(list(tables))

    def _take(self, states: Sequence[TableState]) -> None:
        self._full = {str(state.table): state.full_identity for state in states}
        self._left_out = [(state.table, column) for state in states for column in state.generated]

    def _open_engine(self, tables: list[str]) -> None:
        lsn = self._transactions.lsn
        self._engine = Engine(
            self._capture.properties(
                self._application,
                self._name,
                resume=self._resumes,
                tables=tables,
                left_out=self._left_out,
            ),
            {"lsn": lsn, "lsn_commit": lsn, "ts_usec": 0} if self._resumes else None,
        )

    def close(self) -> None:
        if self._chunks is not None:
            self._chunks.close()
        super().close()

    @property
    def _connector(self) -> str:
        return POSTGRES

    @property
    def _database(self) -> str:
        return self._capture.database

    def _require_tables(self, states: Sequence[TableState]) -> None:
        self._checks.require_tables(self._later or self._position, states)

    def _before_snapshot_ends(self, delivery: Delivery, heads: list[Head]) -> None:  # noqa: ARG002 - of the contract
        """Check that the snapshot read the tables' rows: all tables are locked when the first ones come."""
        before, self._layouts = self._layouts, {}
        if before and (other := {each for each, now in self._layouts_now().items() if now != before[each]}):
            raise SourceUnavailable(
                f"{', '.join(sorted(other))} was altered or truncated just when the snapshot began: "
                "it begins again"
            )

    def _layouts_now(self) -> dict[str, str]:
        return {
            str(state.table): KeyRanges(self._capture.conninfo, state).layout()
            for state in self._replication.tables(self._capture.tables)
        }

    def _streaming(self) -> None:
        self._silent_from = time.monotonic() + START_SECONDS
        # Nothing is confirmed yet: the slot is where it was made, which is where the snapshot is.
        self._transactions = Transactions(self._checks.require_slot(None).confirmed, 0)

    def _reached(self, delivery: Delivery, position: Position) -> Position:
        lsn = self._transactions.lsn
        return msgspec.structs.replace(
            position,
            lsn=lsn,
            events=self._transactions.events,
            confirmed=max(position.confirmed, lsn, confirmed_by(delivery.offset)),
        )

    def _unread(self, delivery: Delivery, heads: list[Head], rows: list[int]) -> list[int]:
        """The rows without those that were read before the reader was opened."""
        try:
            befores = [_before(heads[row].source.sequence) for row in rows]
            if self._later is not None:
                return self._unread_of_first(delivery, rows, befores, self._later.lsn)
            skipped = self._transactions.take(befores) if rows else 0
            commit = delivery.offset.get("lsn_commit")
            self._transactions.committed(None if commit is None else int(commit))
        except EventsMissing as error:
            raise ConnectorError(
                f"the replication slot {self._slot} did not continue where it was: {error}",
                hint=self._capture.again(self._name),
            ) from error
        self._note_moved(delivery, heads, rows[skipped:])
        return rows[skipped:]

    def _note_moved(self, delivery: Delivery, heads: list[Head], rows: list[int]) -> None:
        """Remember tables of which a row may be read under neither key, while the log has not all of it."""
        for row in delivery.headers.keys() & rows:
            reading = self._position.reading.get(heads[row].source.name)
            if reading is None or not reading.begun or NEW_KEY not in dict(delivery.headers[row]):
                continue
            # Its creation follows, in this delivery or in the next one.
            if row == len(heads) - 1 or may_leave_out(delivery.values):
                self._position = moved(self._position, heads[row].source.name)

    def _unread_of_first(
        self, delivery: Delivery, rows: list[int], befores: list[int | None], lsn: int
    ) -> list[int]:
        """The rows of the transaction after ``lsn``, which was read in part; the rest is sent again later."""
        rest = next((at for at, before in enumerate(befores) if (before or 0) > lsn), len(rows))
        skipped = self._transactions.take(befores[:rest]) if rest else 0
        commit = befores[rest] if rest < len(rows) else delivery.offset.get("lsn_commit")
        self._transactions.committed(None if commit is None else int(commit))
        return rows[skipped:rest]

    def _batch(self, delivery: Delivery) -> SourceBatch | None:
        batch = super()._batch(delivery)
        if self._later is not None and self._transactions.lsn > self._later.lsn:
            later, self._later = self._later, None
            self._position = msgspec.structs.replace(
                self._position, tables=later.tables, labels=later.labels, reading=later.reading
            )
            # The processor has to be told of tables that are read.
            self._opened = True
            self._engine.close()
            with self._lock:
                # They are the closed engine's, and the last one is of events that are read again.
                self._receipts = deque((at, None) for at, _ in self._receipts)
            self._replication.free_slot(self._slot)
            self._silent_from = time.monotonic() + START_SECONDS
            self._open_engine(list(self._position.tables))
        return batch

    def _shape(self, source: EventSource, schema: int) -> Shape:
        return self._shape_of(source.name, self._engine.columns(schema))

    def _shape_of(self, table: str, columns: dict[str, Column]) -> Shape:
        if self._columns.setdefault(table, columns) != columns:
            # Of a column that cannot be captured there is no trace in the event.
            states = self._replication.tables(self._capture.tables)
            self._require_tables(states)
            self._take(states)
            self._columns[table] = columns
        return Shape(columns, self._full.get(table, False))

    # --- tables that are read beside the changes

    def _opening(self) -> list[Control]:
        waiting = not_begun(self._position)
        return super()._opening() + ([self._reading(waiting)] if waiting else [])

    def _reading(self, tables: list[str]) -> Control:
        return self._control("reading", of_tables=[TableName.parse(table) for table in tables])

    @property
    def _patience(self) -> float:
        return 0.05 if self._position.reading else 1.0

    def _beside(self) -> SourceBatch | None:
        position = self._position
        if not position.reading or self._opened or position.phase != "stream":
            return None
        if waiting := not_begun(position):
            if position.lsn < self._begin_from:
                return None
            return self._beside_batch([self._reading(waiting)], begun(position))
        if self._chunks is None or (self._chunk is None and self._chunks.ended):
            self._chunks = TableChunks(
                self._capture,
                self._application,
                self._name,
                position.tables,
                {TableName.parse(table): reading for table, reading in position.reading.items()},
            )
        if self._chunk is None:
            self._chunk = self._chunks.poll()
            if self._chunk is not None and str(self._chunk.table) not in position.reading:
                self._chunk = None
        if self._chunk is None or position.lsn < self._chunk.lsn:
            return None
        return self._next_piece(self._chunk)

    def _next_piece(self, chunk: Chunk) -> SourceBatch:
        """Rows whose changes up to when they were read have been handed over before."""
        table = str(chunk.table)
        if not chunk.pieces:
            self._chunk = None
            position = read_to(self._position, table, chunk.upto, 0)
            if chunk.upto is not None:
                return self._beside_batch([], position)
            position = read_to_end(position, table)
            if table not in position.reading:
                return self._beside_batch([self._complete(chunk.table)], position)
            self._begin_from = self._replication.mark(MESSAGE_PREFIX)
            return self._beside_batch([], position)
        piece = chunk.pieces.popleft()
        taken: list[int | Control] = []
        schema: int | None = None
        for row in piece.rows:
            if piece.delivery.schemas[row] != schema:
                schema = piece.delivery.schemas[row]
                shape = self._shape_of(table, chunk.columns[schema])
                taken.append(self._control("table", piece.heads[row].source, shape))
            taken.append(row)
        # Changes may have another one.
        self._shaped.pop(table, None)
        return self._beside_batch(taken, read_to(self._position, table, None, len(piece.rows)), piece)

    def _beside_batch(
        self, taken: Sequence[int | Control], position: Position, piece: Piece | None = None
    ) -> SourceBatch:
        position = msgspec.structs.replace(position, number=position.number + len(taken))
        delivery, heads = (None, []) if piece is None else (piece.delivery, piece.heads)
        return self._batch_of(delivery, heads, list(taken), position, None)

    def _complete(self, table: TableName) -> Control:
        return self._control("complete", of_tables=[table])

    def _truncated(self, source: EventSource) -> Iterator[Control]:
        """All rows that the table has now are in the log: there is no more to read."""
        reading = self._position.reading.get(source.name)
        if reading is None or not reading.begun:
            return
        table = TableName.parse(source.name)
        if self._chunks is not None:
            self._chunks.skip(table)
        if self._chunk is not None and self._chunk.table == table:
            self._chunk = None
        self._position = complete(self._position, source.name)
        yield self._complete(table)

    def _inspect(self) -> None:
        """Look at the server while nothing comes: the slot may be lost, or the connection cut."""
        now = time.monotonic()
        if now - self._inspected < INSPECT_SECONDS:
            return
        self._inspected = now
        self._look()
        if self._position.phase == "stream":
            tables = self._replication.tables(self._capture.tables)
            self._require_tables(tables)
        if time.monotonic() > self._silent_from:
            raise SourceUnavailable(f"nothing reads the replication slot {self._slot}: Debezium hangs")

    def _heard(self) -> None:
        self._silent_from = time.monotonic() + SILENT_SECONDS

    def _look(self) -> tuple[str, dict[str, float]]:
        if self._position.phase == "snapshot":
            # The slot may be about to be created; the snapshot reads the tables through another connection.
            self._silent_from = time.monotonic() + START_SECONDS
            return "", {}
        slot = self._checks.require_slot(None)
        problem = ""
        if slot.active:
            self._heard()
        else:
            problem = f"nothing reads the replication slot {self._slot}"
        reading = (self._later or self._position).reading
        if self._chunks is not None and self._chunks.problem:
            problem = problem or f"tables cannot be read: {self._chunks.problem}"
        return problem, {
            "lag_bytes": slot.lag_bytes,
            "retained_bytes": slot.retained_bytes,
            "snapshot_tables": len(reading),
            "snapshot_rows": sum(each.rows for each in reading.values()),
        }

    def _failure(self, problem: str) -> ConnectorError | SourceUnavailable:
        if self._position.phase == "stream":
            # A lost slot, or another key, has an error of its own, which says what to do.
            self._checks.require_slot(None)
            self._require_tables(self._replication.tables(self._capture.tables))
            self._checks.require_published(self._position)
        if _LASTING.search(problem):
            return ConnectorError(f"Debezium ended: {problem}")
        return SourceUnavailable(f"Debezium ended: {problem}")


def identities(states: Sequence[TableState]) -> dict[str, str]:
    """The captured tables, with what tells each from another one of that name."""
    return {str(state.table): state.identity for state in states}


def _before(sequence: str | None) -> int | None:
    """The end of the last commit before an event's transaction: the first of its sequence numbers."""
    first = _SEQUENCE.decode(sequence or "[null]")[0]
    return None if first is None else int(first)
