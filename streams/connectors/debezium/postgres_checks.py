"""Whether a Postgres server still has all that follows a committed position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.connectors.debezium.position import lsn_text
from streams.connectors.debezium.table_readings import not_begun
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.debezium.position import Position
    from streams.connectors.debezium.postgres_capture import PostgresCapture
    from streams.connectors.postgres.replication import SlotState, TableState


@dataclass(frozen=True)
class PostgresChecks:
    """The checks of one source. Each raises ``ConnectorError`` with what to do."""

    capture: PostgresCapture
    name: str
    slot: str
    publication: str

    def require_same(self, committed: Position, position: Position, states: Sequence[TableState]) -> None:
        """Check that the stream continues at the committed position, as ``position`` with its tables."""
        again = self.capture.again(self.name)
        system, end = self.capture.replication.system()
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
        self.require_tables(position, states)
        self.require_published(position)
        # Changes of what was there before may be in the log still, under the name of this one.
        rekeyed = [
            str(state.table)
            for state in states
            if str(state.table) in committed.tables
            and _key_of(committed.tables[str(state.table)]) != _key_of(state.identity)
        ]
        if rekeyed:
            raise ConnectorError(f"{', '.join(sorted(rekeyed))} has another key", hint=again)
        self.require_slot(committed.confirmed)

    def require_tables(self, position: Position, states: Sequence[TableState]) -> None:
        """Check that each table is the one that it was."""
        other = [str(state.table) for state in states if position.tables[str(state.table)] != state.identity]
        if other:
            raise ConnectorError(
                f"{', '.join(sorted(other))} was dropped and created again, replaced by "
                "renaming, or has another key",
                hint=self.capture.again(self.name, *other),
            )

    def require_published(self, position: Position) -> None:
        """Check that no table was taken out of the publication: what changed meanwhile is in no slot.

        One that has still to be read may have been.
        """
        captured = set(map(str, self.capture.tables)) - set(not_begun(position))
        missing = captured - self.capture.replication.published(self.publication)
        if missing:
            raise ConnectorError(
                f"the publication {self.publication} does not have {', '.join(sorted(missing))} any more, "
                "whose changes may be lost",
                hint=self.capture.again(self.name, *missing),
            )

    def require_slot(self, confirmed: int | None) -> SlotState:
        """Check that the slot is there, and that nothing was read of it beyond what was confirmed."""
        again = self.capture.again(self.name)
        slot = self.capture.replication.slot(self.slot)
        if slot is None:
            raise ConnectorError(f"the replication slot {self.slot} does not exist any more", hint=again)
        if slot.lost:
            raise ConnectorError(f"the replication slot {self.slot} is lost: {slot.lost}", hint=again)
        if confirmed is not None and slot.confirmed > confirmed:
            raise ConnectorError(
                f"the replication slot {self.slot} was read by another program up to "
                f"{lsn_text(slot.confirmed)}, beyond the committed position {lsn_text(confirmed)}",
                hint=again,
            )
        return slot


def _key_of(identity: str) -> str:
    """What of a table's identity says which columns its key has."""
    return identity.partition(" ")[2]
