"""``PostgresTable``: a table of a Postgres database, for comparisons."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors as refusals

from streams.connectors.comparison.table import Checksum, Row, Value
from streams.connectors.postgres import canonical
from streams.connectors.postgres.comparison_queries import ComparisonQueries, Query, Relation, TableColumn
from streams.connectors.postgres.connection import LoginRefused, log_in
from streams.durations import seconds, to_milliseconds
from streams.errors import ConnectorError, ConnectorUnavailable
from streams.redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from streams.connectors.comparison.table import ColumnType, Key, KeyRange, Layout

T = TypeVar("T")

_ATTEMPTS = 3
"""How often a query is made that a standby or a deadlock ends."""

_FIND_TABLE = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.oid::bigint, c.relkind::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s)
"""

# The number of the collation "C" is 950 and that of the database's own 100, in all versions; 0 is no text.
# Columns of pg_database that some versions lack are read through JSON.
_DESCRIBE_COLUMNS = """
WITH used AS (
  SELECT datcollate IN ('C', 'POSIX') AND coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c'
         OR coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'b'
         AND to_jsonb(d) ->> 'datlocale' IN ('C', 'C.UTF-8') AS bytewise
  FROM pg_database AS d WHERE datname = current_database()
)
SELECT a.attname, a.attcollation = 950 OR a.attcollation = 100 AND used.bytewise, a.attcollation::bigint
FROM pg_attribute AS a, used
WHERE a.attrelid = %s::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped
"""

_FIND_INDEXES = """
SELECT i.indexrelid::bigint,
       CASE WHEN i.indoption[k.place] & 1 = i.indoption[0] & 1 THEN a.attname END,
       i.indcollation[k.place]::bigint
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_am AS m ON m.oid = c.relam AND m.amname = 'btree'
CROSS JOIN generate_series(0, i.indnkeyatts - 1) AS k(place)
LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place] AND a.attnum > 0
WHERE i.indrelid = %s::bigint::oid AND i.indisvalid AND i.indpred IS NULL
ORDER BY i.indexrelid, k.place
"""

_NAME_TYPES = """
SELECT t.oid::bigint, quote_ident(n.nspname) || '.' || quote_ident(t.typname)
FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
WHERE t.oid = ANY (%s::bigint[]::oid[])
"""

_POSITION = """
SELECT pg_wal_lsn_diff(
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0'
)::text
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresTable:
    """A table, view or partitioned table of Postgres 13 or later, to compare with another one.

    ``table`` is written as in SQL (``public.customers``) or is a plain name. ``expressions`` are SQL by the
    name of the column that they stand for, where the other table is a transformed copy:
    ``{"email": "lower(trim(email))"}``. A query that takes longer than ``query_timeout`` is ended.
    """

    dsn: str = field(repr=False)
    table: str
    expressions: Mapping[str, str] = field(default_factory=dict)
    query_timeout: timedelta = seconds(60)

    def open(self) -> _Reader:
        """Connect. Raises ``ConnectorUnavailable``, or ``ConnectorError`` where the table does not fit."""
        return _Reader(self)


class _Reader:
    def __init__(self, table: PostgresTable) -> None:
        self._table = table
        self._timeout = to_milliseconds(table.query_timeout, "query_timeout", least=1)
        self.name = table.table
        try:
            self._connection = log_in(table.dsn, client_encoding="utf8", application_name="streams compare")
            self._connection.autocommit = False
            # The server's own limit is the query_timeout.
            self._connection.patience = math.inf
        except psycopg.Error as error:
            raise self._failure(error) from error
        try:
            self._connection.read_only = True
            info = self._connection.info
            self.name = f"{table.table} at {info.host or 'localhost'}:{info.port}/{info.dbname}"
            self._relation = self._find()
            self._columns = self._describe()
        except BaseException:
            self.close()
            raise
        self._begun: ComparisonQueries | None = None

    @property
    def indexed(self) -> int:
        return self._queries.indexed

    def columns(self) -> dict[str, ColumnType]:
        return {
            name: canonical.column_type(column.oid, column.type_name)
            for name, column in self._columns.items()
        }

    def begin(self, layout: Layout) -> None:
        self._begun = ComparisonQueries(self._relation, self._columns, layout)
        if self._read(self._queries.null_keys()):
            raise ConnectorError(
                f"{self.name} has rows whose key ({', '.join(column.name for column in layout.key)}) is null",
                hint="choose columns that identify each row",
            )

    def boundary(self, part: KeyRange, rows: int, width: int) -> Key | None:
        found = self._read(self._queries.boundary(part, rows, width))
        return found[0] if found else None

    def cuts(self, part: KeyRange, step: int) -> list[Key]:
        return self._read(self._queries.cuts(part, step))

    def checksum(self, part: KeyRange) -> Checksum:
        return _checksum(self._read(self._queries.checksum(part))[0])

    def checksums(self, part: KeyRange) -> dict[Key, Checksum]:
        return {row[:-3]: _checksum(row[-3:]) for row in self._read(self._queries.checksums(part))}

    def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        size, wanted = len(keys[0]), set(keys)
        return {
            row[:size]: Row(_checksum(row[size : size + 3]), row[size + 3], _values(row[size + 4 :]))
            for row in self._read(self._queries.rows(keys))
            # A collation may find other keys equal.
            if row[:size] in wanted
        }

    def position(self) -> int | None:
        return int(self._read(Query(_POSITION, ()))[0][0])

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._connection.close()

    @property
    def _queries(self) -> ComparisonQueries:
        assert self._begun is not None, "begin sets what is read"
        return self._begun

    def _find(self) -> Relation:
        version = self._connection.info.server_version // 10_000
        if version < 13:
            raise ConnectorError(f"{self.name} has Postgres {version}, comparing needs 13 or later")
        name = self._table.table
        for written in (name, '"' + name.replace('"', '""') + '"'):
            # What is no name in SQL is refused.
            with contextlib.suppress(
                refusals.InvalidName, refusals.SyntaxError, refusals.FeatureNotSupported
            ):
                for quoted, oid, kind in self._transaction(
                    lambda cursor, written=written: cursor.execute(_FIND_TABLE, [written]).fetchall()  # type: ignore[misc]  # bound
                ):
                    # A percent sign is the driver's.
                    return Relation(
                        quoted.replace("%", "%%"),
                        oid,
                        "xmin::text || ctid::text" if kind in {"r", "m"} else "''",
                        self._indexes(oid),
                    )
        raise ConnectorError(f"there is no table {self.name}", hint="write its schema too: public.customers")

    def _indexes(self, table: int) -> list[list[tuple[str | None, int]]]:
        found: dict[int, list[tuple[str | None, int]]] = {}
        for index, column, collation in self._read(Query(_FIND_INDEXES, [table])):
            found.setdefault(index, []).append((column, collation))
        return list(found.values())

    def _describe(self) -> dict[str, TableColumn]:
        expressions = self._table.expressions
        plain = {name: more for name, *more in self._read(Query(_DESCRIBE_COLUMNS, [self._relation.oid]))}
        sqls = {
            name: '"' + name.replace('"', '""').replace("%", "%%") + '"'
            for name in plain
            if name not in expressions
        } | {name: f"({text.replace('%', '%%')})" for name, text in expressions.items()}
        oids = self._types(list(sqls.values()))
        names = dict(self._read(Query(_NAME_TYPES, [oids])))
        return {
            # No index column has the number -1 for its collation.
            name: TableColumn(sql, oid, names[oid], *((False, -1) if name in expressions else plain[name]))
            for (name, sql), oid in zip(sqls.items(), oids, strict=True)
        }

    def _types(self, sqls: Sequence[str]) -> list[int]:
        """The types of expressions as results have them: domains are resolved."""

        def read(cursor: psycopg.Cursor[Any]) -> list[int]:
            _execute(cursor, Query(f"SELECT {', '.join(sqls)} FROM {self._relation.name} LIMIT 0", ()))
            return [item.type_code for item in cursor.description or ()]

        return self._attempted(read)

    def _read(self, query: Query) -> list[Any]:
        return self._attempted(lambda cursor: _execute(cursor, query).fetchall())

    def _attempted(self, read: Callable[[psycopg.Cursor[Any]], T]) -> T:
        attempt = 1
        while True:
            try:
                return self._transaction(read)
            except (refusals.SerializationFailure, refusals.DeadlockDetected) as error:
                if attempt == _ATTEMPTS:
                    raise self._failure(error) from error
                attempt += 1
            except psycopg.Error as error:
                raise self._failure(error) from error

    def _transaction(self, read: Callable[[psycopg.Cursor[Any]], T]) -> T:
        settings = {
            **canonical.SETTINGS,
            "statement_timeout": str(self._timeout),
            "lock_timeout": str(self._timeout),
            "idle_in_transaction_session_timeout": str(self._timeout),
        }
        # Settings of the transaction and not of the session, which a connection pool may share.
        chosen = ", ".join("set_config(%s, %s, true)" for _ in settings)
        try:
            with self._connection.cursor() as cursor:
                _execute(
                    cursor, Query(f"SELECT {chosen}", [text for pair in settings.items() for text in pair])
                )
                return read(cursor)
        finally:
            with contextlib.suppress(psycopg.Error):
                self._connection.rollback()

    def _failure(self, error: psycopg.Error) -> ConnectorUnavailable | ConnectorError:
        text = f"{self.name} cannot be compared: {scrub(str(error).strip())}"
        if isinstance(error, refusals.QueryCanceled):
            return ConnectorUnavailable(
                f"{text} (after {self._timeout / 1000:g} s)",
                hint="allow a longer query_timeout, or create an index in the order of the key's bytes: "
                f'CREATE INDEX ON {self._table.table} (column COLLATE "C")',
            )
        if isinstance(error, LoginRefused):
            return ConnectorError(text, hint="check the user, the password and the database in the dsn")
        if isinstance(error, psycopg.OperationalError):
            return ConnectorUnavailable(text)
        return ConnectorError(text, hint="check the table's columns and their expressions")


def _execute(cursor: psycopg.Cursor[Any], query: Query) -> psycopg.Cursor[Any]:
    return cursor.execute(query.sql, query.values)


def _checksum(row: Sequence[Any]) -> Checksum:
    return Checksum(row[0], int(row[1]), int(row[2]))


def _values(row: Sequence[Any]) -> tuple[Value | None, ...]:
    return tuple(
        None if text is None else Value(text, digest)
        for text, digest in zip(row[::2], row[1::2], strict=True)
    )
