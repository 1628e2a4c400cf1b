"""Reads the changes of Postgres tables through a replication slot."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streams.connectors.debezium.engine import LOST, Engine
from streams.connectors.debezium.position import (
    EventsMissing,
    Position,
    Transactions,
    confirmed_by,
    lsn_text,
)
from streams.connectors.debezium.reader import START_SECONDS, DebeziumReader
from streams.connectors.debezium.values import POSTGRES, Shape
from streams.errors import ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.debezium.engine import Delivery
    from streams.connectors.debezium.postgres_capture import PostgresCapture
    from streams.connectors.debezium.reader import EventSource, Head
    from streams.connectors.postgres.replication import TableState
    from streams.connectors.source import SourceContext

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
        self._full = {str(state.table): state.full_identity for state in states}
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

    @property
    def _connector(self) -> str:
        return POSTGRES

    @property
    def _database(self) -> str:
        return self._capture.database

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

    def _before_snapshot_ends(self, delivery: Delivery, heads: list[Head]) -> None:
        """Nothing: the catalog was read before."""

    def _streaming(self) -> None:
        self._silent_from = time.monotonic() + START_SECONDS
        # Nothing is confirmed yet: the slot is where it was made, which is where the snapshot is.
        self._transactions = Transactions(self._require_slot(None).confirmed, 0)

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
            skipped = self._transactions.take(befores) if rows else 0
            commit = delivery.offset.get("lsn_commit")
            self._transactions.committed(None if commit is None else int(commit))
        except EventsMissing as error:
            raise ConnectorError(
                f"the replication slot {self._slot} did not continue where it was: {error}",
                hint=self._capture.again(self._name),
            ) from error
        return rows[skipped:]

    def _shape(self, source: EventSource, schema: int) -> Shape:
        columns = self._engine.columns(schema)
        if source.name in self._shaped:
            # Of a column that cannot be captured there is no trace in the event.
            states = self._replication.tables(self._capture.tables)
            self._require_tables(identities(states), self._position.tables)
            self._full = {str(state.table): state.full_identity for state in states}
        return Shape(columns, self._full.get(source.name, False))

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
        if self._position.phase == "stream":
            # A lost slot, or another key, has an error of its own, which says what to do.
            self._require_slot(None)
            self._require_tables(
                identities(self._replication.tables(self._capture.tables)), self._position.tables
            )
            self._require_published()
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
