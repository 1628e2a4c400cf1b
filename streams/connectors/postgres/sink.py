"""The Postgres sink as a program names it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import psycopg

from streams.connectors.postgres.column_checks import require_columns
from streams.connectors.postgres.column_types import postgres_types
from streams.connectors.postgres.connection import DeadlinePassed, connect, recognise_session
from streams.connectors.postgres.positions import DDL_LOCK, Positions
from streams.connectors.postgres.rebuild import PostgresRebuild
from streams.connectors.postgres.server_errors import to_error
from streams.connectors.postgres.table import parse_name, quoted, quoted_list, read_table
from streams.connectors.postgres.target import OnTruncate, Target, TargetOptions, add_columns
from streams.connectors.postgres.writer import PostgresWriter
from streams.durations import to_milliseconds
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streams.connectors.postgres.connection import Connection
    from streams.connectors.sink import SinkContext

Mode: TypeAlias = Literal["upsert", "append"]


@dataclass(frozen=True, slots=True)
class PostgresSink:
    """Writes records to a table, each exactly once, with the positions in the same transaction.

    ``dsn`` is a connection string or URL of libpq; what it does not say is read from the environment
    (``PGHOST``, ``PGPASSWORD``, …). ``table`` is a name as in SQL: ``customers``, ``public.customers``,
    ``public."Order Items"``.

    Values are mappings, Structs, dataclasses, or ``Change`` events of these. With ``mode="upsert"`` a value
    inserts or updates the row of its key, and ``None`` or a ``Change`` with ``op="d"`` deletes it. The key is
    the record's key: its fields are the primary key's columns, or it is the value of the only one. With
    ``key``, these columns of the value are the key, and have a unique index. With ``mode="append"`` each
    value is one more row; ``None`` and deletions add nothing.

    All fields are written to the columns of their names, or those in ``columns``: names of fields, or a
    mapping from fields to columns. A field that is missing in a mapping, or ``msgspec.UNSET``, leaves its
    column as it is, or at its default in a new row.

    ``row_type`` (see ``postgres_types``) is compared with the table before anything is written. With it,
    ``create`` creates a missing table, with ``key`` as its primary key. ``alter`` adds missing columns, also
    for fields that appear later.

    ``on_truncate`` decides about a ``Change`` with ``op="t"``. ``positions_table`` has the positions, and is
    created. A statement that takes longer than ``statement_timeout`` is repeated later.
    """

    dsn: str = field(repr=False)
    table: str
    _: KW_ONLY
    mode: Mode = "upsert"
    key: tuple[str, ...] | None = None
    columns: Mapping[str, str] | Sequence[str] | None = None
    row_type: Any = None
    create: bool = False
    alter: bool = False
    on_truncate: OnTruncate = "fail"
    positions_table: str = "streams_positions"
    statement_timeout: timedelta = timedelta(seconds=60)
    max_rows: int = 5_000

    kind = "postgres"

    @property
    def target(self) -> str:
        """What it writes to."""
        return self.table

    @property
    def takes_retries(self) -> bool:
        """Whether a row may be written again: by key that changes nothing."""
        return self.mode == "upsert"

    def __post_init__(self) -> None:
        try:
            psycopg.conninfo.conninfo_to_dict(self.dsn)
        except psycopg.ProgrammingError:
            # Its message may have a part of the string, and with it the password.
            raise ConfigurationError(
                f"PostgresSink({self.table!r}): the dsn is no connection string of libpq",
                hint='write "host=… dbname=… user=…" or "postgresql://user@host/database"',
            ) from None
        parse_name(self.table)
        parse_name(self.positions_table)
        to_milliseconds(self.statement_timeout, "statement_timeout", least=1)
        for option, value, allowed in (
            ("mode", self.mode, get_args(Mode)),
            ("on_truncate", self.on_truncate, get_args(OnTruncate)),
        ):
            if value not in allowed:
                raise ConfigurationError(
                    f"PostgresSink({self.table!r}): {option}={value!r} is none of {', '.join(allowed)}"
                )
        if self.max_rows < 1:
            raise ConfigurationError(f"PostgresSink(max_rows={self.max_rows}): at least 1 is needed")
        for option, names in (("key", self.key), ("columns", self.columns)):
            if isinstance(names, str):
                raise ConfigurationError(
                    f"PostgresSink({self.table!r}): {option}= takes several names",
                    hint=f"write {option}=({names!r},)",
                )
        if self.create and (self.row_type is None or (self.mode == "upsert" and not self.key)):
            raise ConfigurationError(
                f"PostgresSink({self.table!r}): create=True needs row_type=, and key= for upserts",
                hint='e.g. row_type=Customer, key=("id",)',
            )
        if self.mode == "append" and self.key:
            raise ConfigurationError(f"PostgresSink({self.table!r}): rows that are appended have no key=")

    def check(self, context: SinkContext) -> None:
        with self._connected(context, "checking the table") as connection:
            self._positions(context).create(connection)
            wanted = self._wanted_types()
            if self.create and read_table(connection, self.table) is None:
                self._create(connection, wanted)
            target = Target.find(connection, self._options())
            if self.alter:
                missing = {name: kind for name, kind in wanted.items() if name not in target.table.columns}
                if missing:
                    add_columns(connection, target.table, missing)
                    target = Target.find(connection, self._options())
            if wanted:
                bounded = isinstance(self.row_type, Mapping)
                require_columns(target.table, target.key, wanted, bounded_integers=bounded)

    def open(self, context: SinkContext) -> PostgresWriter:
        connection, target = self._open_target(context)
        seconds = self.statement_timeout.total_seconds()
        return PostgresWriter(connection, context, self._positions(context), target, seconds)

    def rebuild(self, context: SinkContext) -> PostgresRebuild:
        """See ``RebuildableSink``."""
        connection, target = self._open_target(context)
        return PostgresRebuild(
            lambda table: replace(self, table=table, create=False, alter=False, row_type=None),
            context,
            connection,
            self._positions(context),
            target.table,
            target.key,
        )

    def _open_target(self, context: SinkContext) -> tuple[Connection, Target]:
        try:
            connection = connect(self.dsn, context)
            try:
                recognise_session(connection)
                return connection, Target.find(connection, self._options())
            except BaseException:
                connection.close()
                raise
        except (psycopg.Error, DeadlinePassed) as error:
            raise to_error(error, "opening the sink") from error

    def _options(self) -> TargetOptions:
        return TargetOptions(
            self.table, self.mode == "append", self.key, self._renamed(), self.alter, self.on_truncate
        )

    def _renamed(self) -> Mapping[str, str] | None:
        if self.columns is None or isinstance(self.columns, Mapping):
            return self.columns
        return {name: name for name in self.columns}

    def _wanted_types(self) -> dict[str, str]:
        """The types of the columns that are written, as far as the program says."""
        if self.row_type is None:
            return {}
        types = postgres_types(self.row_type)
        renamed = self._renamed()
        if renamed is None:
            return types
        unknown = [name for name in renamed if name not in types]
        if unknown:
            raise ConfigurationError(
                f"PostgresSink({self.table!r}): columns= names {', '.join(map(repr, unknown))}, which "
                f"row_type has not: it has {', '.join(types)}"
            )
        return {column: types[name] for name, column in renamed.items()}

    def _positions(self, context: SinkContext) -> Positions:
        return Positions(self.positions_table, context)

    def _create(self, connection: Connection, types: Mapping[str, str]) -> None:
        schema, name = parse_name(self.table)
        identifier = quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"
        key = self.key or ()
        absent = [name for name in key if name not in types]
        if absent:
            raise ConfigurationError(
                f"PostgresSink({self.table!r}): key= names {', '.join(map(repr, absent))}, which row_type "
                f"has not: it has {', '.join(types)}"
            )
        parts = [f"{quoted(column)} {kind}" for column, kind in types.items()]
        if key:
            parts.append(f"primary key ({quoted_list(key)})")
        # Several workers start at once: the others wait, and find the table.
        columns = ", ".join(parts)
        connection.run(
            f"begin; {DDL_LOCK}; create table if not exists {identifier} ({columns}); commit".encode()
        )

    @contextlib.contextmanager
    def _connected(self, context: SinkContext, doing: str) -> Iterator[Connection]:
        try:
            connection = connect(self.dsn, context)
            try:
                yield connection
            finally:
                connection.close()
        except (psycopg.Error, DeadlinePassed) as error:
            raise to_error(error, doing, starting=True) from error
