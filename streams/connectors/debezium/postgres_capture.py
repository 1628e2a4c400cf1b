"""What a Postgres source captures, and how Debezium is configured for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.debezium import jvm
from streams.connectors.debezium.settings import (
    again,
    chosen,
    common,
    pattern,
    secrets_of,
    server_name,
    table_again,
)
from streams.connectors.postgres.replication import Replication, conninfo_values
from streams.redaction import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.connectors.postgres.replication import TableState
    from streams.connectors.table_name import TableName

MESSAGE_PREFIX: Final = "streams-heartbeat"
CHUNK_FETCH_ROWS: Final = 500
CHUNK_QUEUE_BYTES: Final = 32_000_000


@dataclass(frozen=True, kw_only=True)
class PostgresCapture:
    """The tables of one database, and the names on the server."""

    conninfo: str
    tables: tuple[TableName, ...]
    slot: str | None
    publication: str | None
    snapshot: str
    table_snapshots: tuple[tuple[TableName, str], ...]
    properties_given: tuple[tuple[str, str], ...]

    @cached_property
    def replication(self) -> Replication:
        return Replication(self.conninfo)

    @cached_property
    def _values(self) -> dict[str, Any]:
        return conninfo_values(self.conninfo)

    @property
    def database(self) -> str:
        return str(self._values["dbname"])

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be in logs and errors."""
        return secrets_of(self._values)

    def described(self) -> str:
        return f"Debezium.postgres({HIDDEN!r}, tables=[{', '.join(map(str, self.tables))}])"

    def check(self, application: str, name: str) -> None:  # noqa: ARG002 - of the contract
        """Check the server and the tables, and start the Java runtime in the thread of the caller."""
        replication = Replication(self.conninfo, starting=True)
        replication.require_logical()
        replication.tables(self.tables)
        if self.publication is not None:
            replication.publication(self.publication, self.tables, own=False)
        jvm.start()

    def slot_of(self, application: str, name: str) -> str:
        return self.slot or server_name(application, name)

    def publication_of(self, application: str, name: str) -> str:
        return self.publication or server_name(application, name)

    def again(self, name: str, *tables: TableName | str) -> str:
        """What to do when changes were lost, of all tables or of these."""
        if tables:
            return table_again(name, sorted(map(str, tables)))
        return again(name, self.snapshot)

    def properties(
        self,
        application: str,
        name: str,
        *,
        resume: bool,
        tables: Iterable[str] | None = None,
        left_out: Iterable[tuple[TableName, str]] = (),
    ) -> dict[str, str]:
        """Debezium's properties. ``left_out`` are columns that are in no change; ``tables`` other tables."""
        values = self._values
        return {
            **chosen(dict(self.properties_given)),
            **common(application, name),
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": str(values["host"]),
            "database.port": str(values["port"]),
            "database.user": str(values["user"]),
            "database.password": str(values.get("password") or ""),
            "database.dbname": self.database,
            **{
                f"database.{ours}": str(values[theirs]) for theirs, ours in _TLS.items() if values.get(theirs)
            },
            "plugin.name": "pgoutput",
            "slot.name": self.slot_of(application, name),
            "slot.max.retries": "0",
            "publication.name": self.publication_of(application, name),
            "publication.autocreate.mode": "disabled",
            "table.include.list": ",".join(map(pattern, map(str, self.tables) if tables is None else tables)),
            "snapshot.mode": "no_data" if resume else "initial",
            # Otherwise a table could be rewritten after the snapshot began, which would then read no rows.
            "snapshot.locking.mode": "shared",
            # Nobody else reads the slot, and it is confirmed only up to the committed position.
            "lsn.flush.mode": "connector",
            # On a connection that is cut, an engine that ends would wait for this.
            "lsn.flush.timeout.ms": "3000",
            "lsn.flush.timeout.action": "warn",
            "heartbeat.action.query": f"select pg_logical_emit_message(true, '{MESSAGE_PREFIX}', '')",
            "interval.handling.mode": "string",
            # As text, 24:00 would be 00:00.
            "time.precision.mode": "microseconds",
            "hstore.handling.mode": "json",
            "column.exclude.list": ",".join(pattern(f"{table}.{column}") for table, column in left_out),
        }

    def properties_of_chunk(
        self, application: str, name: str, state: TableState, select: str
    ) -> dict[str, str]:
        """Debezium's properties to read some rows of one table, and no changes."""
        table = state.table
        left_out = [(table, column) for column in state.generated]
        return {
            **self.properties(application, name, resume=False, tables=[str(table)], left_out=left_out),
            "snapshot.mode": "initial_only",
            "snapshot.isolation.mode": "repeatable_read",
            "snapshot.select.statement.overrides": table.quoted,
            f"snapshot.select.statement.overrides.{table.quoted}": select,
            "snapshot.fetch.size": str(CHUNK_FETCH_ROWS),
            "max.queue.size.in.bytes": str(CHUNK_QUEUE_BYTES),
            # It also tells that all is read.
            "heartbeat.interval.ms": "50",
            "heartbeat.action.query": "",
        }


_TLS: Final = {
    "sslmode": "sslmode",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "sslpassword": "sslpassword",
    "sslrootcert": "sslrootcert",
}
