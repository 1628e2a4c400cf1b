"""Publications and replication slots of Postgres, and what tables must be like to be captured."""

from __future__ import annotations

import math
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from streams.connectors.postgres.captured_types import EXCLUDED, require_type
from streams.connectors.postgres.connection import DeadlinePassed, LoginRefused, log_in
from streams.connectors.table_name import TableName, quoted
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from streams.connectors.postgres.connection import Connection

CONNECT_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 10
READER_SECONDS: Final = 5.0
"""How long another connection may still read a slot before it is ended."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as the server's catalog has it."""

    table: TableName
    oid: int
    key: tuple[str, ...]
    """The columns of the primary key."""
    full_identity: bool
    """Whether changes carry the complete row as it was before."""
    generated: tuple[str, ...]
    """Columns that the server computes: by default not in the log, and therefore not in a snapshot either."""
    dates: tuple[str, ...]
    """Columns with dates."""
    columns: tuple[str, ...]
    """All others than those that the server computes."""

    @property
    def identity(self) -> str:
        """Another one for a table that was created again, or whose rows have other keys."""
        return f"{self.oid} ({', '.join(self.key)})"


@dataclass(frozen=True, slots=True)
class SlotState:
    """A replication slot, and how far the server's log has got beyond it."""

    confirmed: int
    current: int
    """The end of the server's log."""
    active: bool
    lost: str
    """Why the slot can no longer be read; empty while it can."""
    retained_bytes: int
    """How much log the server keeps for the slot."""

    @property
    def lag_bytes(self) -> int:
        return max(0, self.current - self.confirmed)


class Replication:
    """What a source asks and orders of a Postgres server, over one connection at a time.

    Every call raises ``SourceUnavailable`` when the server does not answer, and ``ConnectorError`` when it
    refuses. A refused login is such an error only while ``starting``: later it is waited out, as the password
    may have been changed, or the database is being restored.
    """

    def __init__(self, conninfo: str, *, starting: bool = False) -> None:
        self._conninfo = conninfo
        self._starting = starting

    def system(self) -> tuple[str, int]:
        """The identifier of the database cluster, and the end of its log."""
        ((system, end),) = self._rows(
            "select system_identifier::text, (pg_current_wal_lsn() - '0/0')::text from pg_control_system()"
        )
        return system, int(end)

    def require_logical(self) -> None:
        """Check that the server can decode its log, for this user."""
        ((level, allowed, user, standby),) = self._rows(
            "select current_setting('wal_level'), rolreplication or rolsuper, current_user,"
            " pg_is_in_recovery() from pg_roles where rolname = current_user"
        )
        if standby:
            raise ConnectorError("the server is a standby", hint="connect to the primary")
        if level != "logical":
            raise ConnectorError(
                f"the server's wal_level is {level}, and must be logical",
                hint="ALTER SYSTEM SET wal_level = logical; then restart the server",
            )
        if not allowed:
            raise ConnectorError(
                f"the user {user} may not replicate", hint=f"ALTER ROLE {quoted(user)} REPLICATION"
            )

    def tables(self, tables: Sequence[TableName]) -> list[TableState]:
        """The tables' state. Raises ``ConnectorError`` naming one that is missing or cannot be captured."""
        found = {
            TableName(schema, name): (oid, relations, key, deferrable)
            for schema, name, oid, relations, key, deferrable in self._rows(
                _TABLES, ([table.schema for table in tables], [table.name for table in tables])
            )
        }
        states: list[tuple[TableName, int, tuple[str, ...]]] = []
        partial: dict[int, list[str]] = {}
        names = {found[table][0]: table for table in tables if table in found}
        for table in tables:
            if table not in found:
                raise ConnectorError(
                    f"there is no table {table} (dropped, renamed, or not visible to this user)"
                )
            oid, relations, key, deferrable = found[table]
            for relation, kind, persistence, _ in relations:
                _require_capturable(relation, kind, persistence)
            _require_key(table, key, deferrable=deferrable)
            for relation, _, _, identity in relations:
                _require_identity(relation, identity)
            states.append((table, oid, tuple(key)))
            partial[oid] = [relation for relation, _, _, identity in relations if identity != "f"]
        generated: dict[int, list[str]] = {}
        dates: dict[int, list[str]] = {}
        columns: dict[int, list[str]] = {}
        limited: list[tuple[TableName, int, str, str, str]] = []
        for oid, column, written, base, kind, computed, flat in self._rows(_COLUMNS, (list(partial),)):
            if computed:
                generated.setdefault(oid, []).append(column)
                continue
            require_type(names[oid], column, written, base, kind, partial[oid], flat=flat)
            columns.setdefault(oid, []).append(column)
            if base == "date":
                dates.setdefault(oid, []).append(column)
            if base in EXCLUDED:
                limited.append((names[oid], oid, column, written, base))
        if limited:
            self._require_constraints(limited)
        return [
            TableState(
                table,
                oid,
                key,
                not partial[oid],
                tuple(generated.get(oid, ())),
                tuple(dates.get(oid, ())),
                tuple(columns.get(oid, ())),
            )
            for table, oid, key in states
        ]

    def _require_constraints(self, columns: Sequence[tuple[TableName, int, str, str, str]]) -> None:
        """Check that constraints exclude the values that would not arrive, in the columns' order."""
        names = [column for _, _, column, _, _ in columns]
        ((version, identifiers),) = self._rows(_IDENTIFIERS, (names,))
        checks = set(self._rows(_CHECKS, ([oid for _, oid, *_ in columns],)))
        for (table, oid, column, written, base), identifier in zip(columns, identifiers, strict=True):
            excluded = EXCLUDED[base]
            conditions = excluded.conditions(identifier)
            if version >= excluded.since and not any((oid, condition) in checks for condition in conditions):
                raise ConnectorError(
                    f"column {column} of {table} has the type {written}, of which {excluded.values} would "
                    "arrive as others, or not at all",
                    hint=f"exclude them: ALTER TABLE {table.quoted} ADD CHECK ({conditions[0]}); "
                    "or leave the table out, or store the column as text",
                )

    def require_readable(self, states: Sequence[TableState], within: str = "true") -> None:
        """Check that a snapshot would read all values as they are. ``within`` is a condition in SQL."""
        for state in states:
            for column in state.dates:
                name = quoted(column)
                shifted = f"{name} between '1582-10-05' and '1582-10-14'"
                early = f"{name} < '0001-01-01' and {name} <> '-infinity'"
                query = (
                    f"select 1 from {state.table.quoted} where ({early} or {shifted}) and {within} limit 1"
                )
                if self._rows(query, patient=True):
                    raise ConnectorError(
                        f"column {column} of {state.table} has dates that a snapshot would read as others: "
                        "before Christ, or of the days that the calendar left out in October 1582",
                        hint="leave the table out, or store the column as timestamp",
                    )

    def publication(self, name: str, tables: Sequence[TableName], *, own: bool) -> None:
        """Check that the publication has all changes of exactly these tables; create it if it is our own."""
        wanted = {str(table) for table in tables}
        options = self._rows(
            "select pubinsert and pubupdate and pubdelete and pubtruncate, pubviaroot, puballtables"
            " from pg_publication where pubname = %s",
            (name,),
        )
        listed = ", ".join(table.quoted for table in tables)
        create = (
            f"CREATE PUBLICATION {quoted(name)} FOR TABLE {listed} WITH (publish_via_partition_root = true)"
        )
        if not options:
            if not own:
                raise ConnectorError(f"there is no publication {name}", hint=create)
            self._execute(create)
            return
        published = self.published(name)
        ((complete, via_root, everything),) = options
        if not complete or not via_root:
            raise ConnectorError(
                f"the publication {name} leaves out kinds of changes, or publishes partitions by themselves",
                hint=f"ALTER PUBLICATION {quoted(name)} SET (publish = 'insert, update, delete, truncate', "
                "publish_via_partition_root = true)",
            )
        if own and not everything and published != wanted:
            self._execute(f"ALTER PUBLICATION {quoted(name)} SET TABLE {listed}")
        elif missing := sorted(wanted - published):
            raise ConnectorError(
                f"the publication {name} has no {', '.join(missing)}",
                hint=f"ALTER PUBLICATION {quoted(name)} ADD TABLE {listed}",
            )

    def published(self, name: str) -> set[str]:
        """The tables in a publication."""
        rows = self._rows(
            "select schemaname || '.' || tablename from pg_publication_tables where pubname = %s", (name,)
        )
        return {table for (table,) in rows}

    def slot(self, name: str) -> SlotState | None:
        """The slot, or ``None`` when there is none."""
        rows = self._rows(_SLOT, (name,))
        if not rows:
            return None
        ((slot, current, retained),) = rows
        reason = slot.get("invalidation_reason") or ""
        lost = reason or ("its log was removed" if slot["wal_status"] == "lost" else "")
        return SlotState(
            confirmed=_number(slot["confirmed_flush_lsn"]),
            current=int(current),
            active=slot["active"],
            lost=lost,
            retained_bytes=int(retained or 0),
        )

    def drop_slot(self, name: str) -> None:
        """Drop the slot if there is one, after ending a connection that still reads it.

        Raises ``ConnectorError`` if it is another program's, and ``SourceUnavailable`` if it stays in use.
        """
        while self.free_slot(name):
            # A reader that is just starting may take it in between.
            with suppress(SourceUnavailable):
                self._execute("select pg_drop_replication_slot(%s)", (name,))
                return

    def free_slot(self, name: str, timeout: float = 30.0) -> bool:
        """Wait until nothing reads the slot; return whether there is one.

        A connection that reads it for ``READER_SECONDS`` more is ended: it is that of a worker that was
        replaced, and may outlive it until the server notices. Raises as ``drop_slot``.
        """
        begin = time.monotonic()
        while True:
            rows = self._rows(
                "select active_pid, plugin, database = current_database()"
                " from pg_replication_slots where slot_name = %s",
                (name,),
            )
            if not rows:
                return False
            ((reader, plugin, here),) = rows
            if plugin != "pgoutput" or not here:
                raise ConnectorError(
                    f"the replication slot {name} belongs to another program (plugin {plugin})",
                    hint="give the source another slot",
                )
            if reader is None:
                return True
            waited = time.monotonic() - begin
            if waited > timeout:
                raise SourceUnavailable(
                    f"the replication slot {name} is in use by the server process {reader}"
                )
            if waited > READER_SECONDS:
                self._execute("select pg_terminate_backend(%s)", (reader,))
            time.sleep(0.2)

    def mark(self, prefix: str) -> int:
        """The end of the log now, and two messages after it: with the second one, the first has been read."""
        ((end,),) = self._rows("select (pg_current_wal_insert_lsn() - '0/0')::text")
        self.emit(prefix)
        self.emit(prefix)
        return int(end)

    def emit(self, prefix: str) -> None:
        """Write a message into the log, so that a slot can move while none of its tables changes."""
        self._execute("select pg_logical_emit_message(true, %s, '')", (prefix,))

    def _execute(self, statement: str, values: Collection[Any] = ()) -> None:
        self._rows(statement, values)

    def _rows(
        self, statement: str, values: Collection[Any] = (), *, patient: bool = False
    ) -> list[tuple[Any, ...]]:
        with connected(self._conninfo, patient=patient, starting=self._starting) as connection:
            cursor = connection.execute(statement.encode(), list(values) or None)
            return cursor.fetchall() if cursor.description else []


_FORMS: Final = "-c datestyle=iso -c intervalstyle=postgres -c timezone=utc -c extra_float_digits=1"
"""Values as text that any session reads as the same values."""


@contextmanager
def connected(conninfo: str, *, patient: bool = False, starting: bool = False) -> Iterator[Connection]:
    """A short connection whose errors are those of source connectors. ``patient``: for a long statement."""
    conninfo_values(conninfo)
    seconds = 0 if patient else STATEMENT_SECONDS
    try:
        connection = log_in(
            conninfo,
            connect_timeout=CONNECT_SECONDS,
            options=f"-c statement_timeout={seconds}s -c search_path=pg_catalog {_FORMS}",
            application_name="streams",
        )
        # A server that is frozen answers nothing, not even that a statement took too long.
        connection.patience = math.inf if patient else STATEMENT_SECONDS + CONNECT_SECONDS
        with closing(connection):
            yield connection
    except (psycopg.Error, DeadlinePassed) as error:
        raise _to_error(error, starting=starting) from None


def _to_error(error: psycopg.Error | DeadlinePassed, *, starting: bool) -> ConnectorError | SourceUnavailable:
    """As ``SourceUnavailable`` if it may pass, else as ``ConnectorError``."""
    code = getattr(error, "sqlstate", None)
    text = str(error).strip()
    passes = not starting if isinstance(error, LoginRefused) else not code or code.startswith(_PASSING)
    if not passes:
        return ConnectorError(f"Postgres refuses: {text}" + (f" (SQLSTATE {code})" if code else ""))
    return SourceUnavailable(f"Postgres does not answer: {text}")


_PASSING: Final = ("08", "53", "55", "57", "40", "25006", "XX")
"""Classes of SQLSTATE: connection, resources, object in use, shutdown, rollback, read-only, internal."""


def _number(text: str | None) -> int:
    if not text:
        return 0
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def _require_capturable(relation: str, kind: str, persistence: str) -> None:
    """Check that the changes of a table, or of one partition, are in the log."""
    if kind not in {"r", "p"}:
        raise ConnectorError(
            f"{relation} is a {_KINDS.get(kind, 'relation')}, whose changes are not in the log"
        )
    if persistence != "p":
        raise ConnectorError(
            f"{relation} is {'an unlogged' if persistence == 'u' else 'a temporary'} table, "
            "whose changes are not in the log",
            hint=f"ALTER TABLE {relation} SET LOGGED" if persistence == "u" else None,
        )


def _require_key(table: TableName, key: Sequence[str], *, deferrable: bool) -> None:
    if not key:
        raise ConnectorError(
            f"{table} has no primary key, by which its changes could be told apart",
            hint=f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…)",
        )
    if deferrable:
        raise ConnectorError(
            f"the primary key of {table} is deferrable: a key may be given to a second row before the first "
            "one loses it, so the order of their changes does not tell which row remains; and without "
            "REPLICA IDENTITY FULL, publishing the table would make its updates and deletes fail",
            hint="make the primary key NOT DEFERRABLE",
        )


def _require_identity(relation: str, identity: str) -> None:
    """Check the replica identity of a table, or of one partition: each has its own."""
    if identity in {"d", "f"}:
        return
    reason = (
        "has REPLICA IDENTITY NOTHING: publishing it would make its updates and deletes fail"
        if identity == "n"
        else "has another REPLICA IDENTITY than its primary key: its deletions would not have the key"
    )
    raise ConnectorError(f"{relation} {reason}", hint=f"ALTER TABLE {relation} REPLICA IDENTITY DEFAULT")


_KINDS: Final = {
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "i": "index",
    "c": "composite type",
}


# What is in the log depends on each partition of a partitioned table, where it has some. An index that is the
# primary key is as good an identity as the default.
_TABLES: Final = """
select n.nspname, c.relname, c.oid::int8,
       array(select array[leaf.oid::regclass::text, leaf.relkind::text, leaf.relpersistence::text,
                          case when leaf.relreplident = 'i' and exists (
                                   select from pg_index i
                                   where i.indrelid = leaf.oid and i.indisreplident and i.indisprimary)
                               then 'd' else leaf.relreplident::text end]
             from pg_class leaf
             where leaf.oid in (select relid from pg_partition_tree(c.oid) where isleaf)
                or leaf.oid = c.oid and not exists (
                       select from pg_partition_tree(c.oid) where isleaf and relid <> c.oid)
             order by leaf.oid),
       array(select a.attname::text from pg_index i, unnest(i.indkey) with ordinality k(attnum, at)
             join pg_attribute a using (attnum)
             where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid order by k.at),
       exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and not i.indimmediate)
from unnest(%s::text[], %s::text[]) wanted(schema, name)
join pg_namespace n on n.nspname = wanted.schema
join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
"""

# A domain is what it is based on; an array is the type of its elements with an underscore before it.
_COLUMNS: Final = """
with recursive types(oid, attname, attnum, written, computed, flat, type) as (
    select attrelid, attname, attnum, format_type(atttypid, atttypmod), attgenerated <> '', attndims < 2,
           atttypid
    from pg_attribute where attrelid = any(%s::int8[]::oid[]) and attnum > 0 and not attisdropped
    union all
    select types.oid, attname, attnum, written, computed, flat and typndims < 2, typbasetype
    from types join pg_type on pg_type.oid = type where typtype = 'd'
)
select types.oid::int8, attname, written,
       case when e.oid is null then t.typname
            when e.typtype in ('d', 'c') then '_composite or domain'
            when e.typtype = 'e' then '_enum'
            else '_' || e.typname end,
       case when e.oid is null then t.typtype::text else 'array' end,
       computed, flat
from types join pg_type t on t.oid = type
left join pg_type e on e.oid = t.typelem and t.typlen = -1 and t.typcategory = 'A'
where t.typtype <> 'd'
order by types.oid, attnum
"""

_IDENTIFIERS: Final = """
select current_setting('server_version_num')::int,
       array(select quote_ident(name) from unnest(%s::text[]) with ordinality given(name, at) order by at)
"""

_CHECKS: Final = """
select conrelid::int8, pg_get_expr(conbin, conrelid)
from pg_constraint where conrelid = any(%s::int8[]::oid[]) and contype = 'c' and convalidated
"""

_SLOT: Final = """
select to_json(s), (pg_current_wal_lsn() - '0/0')::text, (pg_current_wal_lsn() - s.restart_lsn)::text
from pg_replication_slots s where slot_name = %s
"""


def conninfo_values(conninfo: str) -> dict[str, Any]:
    """The settings of a connection string or URL, with libpq's defaults and its environment variables."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        # The text may hold the password.
        raise ConfigurationError(
            "the connection string of the Postgres source cannot be read",
            hint="postgresql://user:password@host:5432/database",
        ) from error
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val is not None
    }
    values = {"host": "localhost", "port": "5432", **defaults, **given}
    values.setdefault("dbname", values.get("user"))
    return values
