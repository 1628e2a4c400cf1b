"""What a Postgres source captures, and how Debezium is configured for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.postgres.replication import Replication, Table, conninfo_values

if TYPE_CHECKING:
    from collections.abc import Iterable

UNAVAILABLE: Final = "__streams_unavailable_value_4c1b7e"
"""Debezium's text for a value that the server did not send: unlikely to be anybody's own."""
HEARTBEAT_MS: Final = 5_000
MESSAGE_PREFIX: Final = "streams-heartbeat"

_ENGINES: Final = count(1)
_NAME: Final = re.compile(r"[^a-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class Capture:
    """The tables of one database, and the names on the server."""

    conninfo: str
    tables: tuple[Table, ...]
    slot: str | None
    publication: str | None
    snapshot: str
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
        return frozenset(str(value) for name, value in self._values.items() if "password" in name and value)

    def slot_of(self, application: str, name: str) -> str:
        return self.slot or server_name(application, name)

    def publication_of(self, application: str, name: str) -> str:
        return self.publication or server_name(application, name)

    def again(self, name: str) -> str:
        """What to do when changes were lost."""
        return (
            f"take a new snapshot: give the source {name} another snapshot= than {self.snapshot!r}; "
            "rows that are gone are then deleted downstream, and rows that are the same are not sent again"
        )

    def properties(
        self, application: str, name: str, *, resume: bool, left_out: Iterable[tuple[Table, str]] = ()
    ) -> dict[str, str]:
        """Debezium's properties. ``left_out`` are columns that are in no change."""
        values = self._values
        return {
            # Options that change what is captured, never how its place is kept.
            "poll.interval.ms": "20",
            "heartbeat.interval.ms": str(HEARTBEAT_MS),
            **dict(self.properties_given),
            "name": server_name(application, name),
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "topic.prefix": server_name(application, name),
            # Engines of one process, also one that is still ending, register their metrics apart.
            "custom.metric.tags": f"engine={next(_ENGINES)}",
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
            "table.include.list": ",".join(_pattern(str(table)) for table in self.tables),
            "snapshot.mode": "no_data" if resume else "initial",
            # Nobody else reads the slot, and it is confirmed only up to the committed position.
            "lsn.flush.mode": "connector",
            # On a connection that is cut, an engine that ends would wait for this.
            "lsn.flush.timeout.ms": "3000",
            "lsn.flush.timeout.action": "warn",
            # A failed engine is opened again at the committed position: Debezium would continue at its own.
            "errors.max.retries": "0",
            "heartbeat.action.query": f"select pg_logical_emit_message(true, '{MESSAGE_PREFIX}', '')",
            # Bytes become base64 in JSON; told to make base64 itself, Debezium gives null for a large value.
            "binary.handling.mode": "bytes",
            "time.precision.mode": "isostring",
            "decimal.handling.mode": "string",
            "interval.handling.mode": "string",
            "hstore.handling.mode": "json",
            "column.propagate.source.type": ".*",
            "column.exclude.list": ",".join(_pattern(f"{table}.{column}") for table, column in left_out),
            # A value that cannot be converted would arrive as null, with a warning.
            "event.converting.failure.handling.mode": "fail",
            "skipped.operations": "none",
            "tombstones.on.delete": "false",
            "unavailable.value.placeholder": UNAVAILABLE,
            "extended.headers.enabled": "false",
            "key.converter.schemas.enable": "false",
            "value.converter.schemas.enable": "false",
            "header.converter.schemas.enable": "false",
            # Otherwise NULL in a column that has a default arrives as the default.
            "key.converter.replace.null.with.default": "false",
            "value.converter.replace.null.with.default": "false",
        }


def server_name(application: str, name: str) -> str:
    """The name of a source's slot and publication: what a slot may be called, in 63 characters.

    Another source never has the same one: it would drop this one's slot.
    """
    text = f"{application}_{name}"
    allowed = _NAME.sub("_", text.lower())[:63]
    if allowed == text and application.count("_") + name.count("_") == 0:
        return text
    return f"{allowed[:54]}_{blake2b(repr((application, name)).encode(), digest_size=4).hexdigest()}"


_TLS: Final = {
    "sslmode": "sslmode",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "sslpassword": "sslpassword",
    "sslrootcert": "sslrootcert",
}


def _pattern(name: str) -> str:
    """A regular expression of Java that matches this name only, without a comma."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in name)
