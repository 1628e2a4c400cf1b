"""The statements of a polling source, around the program's query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streams.connectors.postgres.table import quoted
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.postgres.connection import Connection

AS_JSON: Final = frozenset(
    {
        *(16, 20, 21, 23, 700, 701),  # bool, int8, int2, int4, float4, float8
        *(19, 25, 1042, 1043, 2950, 114, 3802),  # name, text, bpchar, varchar, uuid, json, jsonb
        *(1082, 1083, 1114, 1184, 1266),  # date, time, timestamp, timestamptz, timetz
        *(1000, 1005, 1007, 1016, 1021, 1022),  # arrays of numbers
        *(1009, 1015, 1115, 1182, 1185, 2951),  # arrays of text, dates, times and uuids
    }
)
"""Types, by oid, whose JSON has the whole value; all others are read as text, whatever it says."""

NUMERIC_ARRAY: Final = 1231
TIMESTAMPTZ: Final = 1184


@dataclass(frozen=True, slots=True)
class PollingStatements:
    """The statements for one query, whose columns and their types are known."""

    bound: bytes
    """The greatest value of the first ordered column, and the first transaction that had not begun yet."""

    bound_after: bytes
    """The same, beyond a position."""

    ended: bytes
    """Whether all transactions before one have ended."""

    page: bytes
    """Rows from the beginning up to a bound, in order."""

    page_after: bytes
    """Rows beyond a position up to a bound, in order."""

    @classmethod
    def of(
        cls, connection: Connection, query: str, order_by: Sequence[str], key: Sequence[str], limit: int
    ) -> PollingStatements:
        """Describe the query. Raises ``psycopg.Error``, and ``ConnectorError`` for a missing column."""
        description = connection.run(f"select * from ({query}\n) as q limit 0".encode()).description or ()
        types = {column.name: column.type_code for column in description}
        if missing := [name for name in (*order_by, *key) if name not in types]:
            raise ConnectorError(
                f"the query has no column {', '.join(map(repr, missing))}: it has {', '.join(types)}",
                hint="select the columns of order_by= and key_columns= too",
            )
        names = connection.run(
            b"select format_type(oid, null) from unnest(%s::oid[]) with ordinality as t(oid, n) order by n",
            [[types[name] for name in order_by]],
        ).fetchall()
        kinds = [kind for (kind,) in names]
        first = f"q.{_quoted(order_by[0])}"
        ordered = ", ".join(f"q.{_quoted(name)}" for name in order_by)
        present = " and ".join(f"q.{_quoted(name)} is not null" for name in order_by)
        rows = f"({query}\n) as q".replace("%", "%%")
        beyond = f" and ({ordered}) > ({', '.join(f'%s::{kind}' for kind in kinds)})"
        # A later time may be in a row that is written only then; infinity is one as well.
        begun = f" and {first} < now()" if types[order_by[0]] == TIMESTAMPTZ else ""
        fields = ", ".join(_field(name, oid) for name, oid in types.items())
        keys = ", ".join(f"streams_row.{_quoted(name)}" for name in key)
        key_json = "null"
        if key:
            key_json = f"(select row_to_json(streams_key)::text from (select {keys}) as streams_key)"
        texts = ", ".join(f"q.{_quoted(name)}::text" for name in order_by)

        def bound(condition: str) -> bytes:
            last = (
                f"select {first}::text from {rows} where {present}{begun}{condition} "
                f"order by {first} desc limit 1"
            )
            return f"select pg_snapshot_xmax(pg_current_snapshot())::text, ({last})".encode()

        def page(condition: str) -> bytes:
            return (
                f"select row_to_json(streams_row)::text, {key_json}, {texts} "
                f"from (select * from {rows} where {present}{condition} and {first} <= %s::{kinds[0]} "
                f"order by {ordered} limit {limit + 1}) as q "
                f"cross join lateral (select {fields}) as streams_row "
                f"order by {ordered}"
            ).encode()

        return cls(
            bound=bound(""),
            bound_after=bound(beyond),
            ended=b"select pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8",
            page=page(""),
            page_after=page(beyond),
        )


def _field(name: str, oid: int) -> str:
    column = _quoted(name)
    if oid in AS_JSON:
        return f"q.{column}"
    return f"q.{column}::text{'[]' * (oid == NUMERIC_ARRAY)} as {column}"


def _quoted(name: str) -> str:
    """A name in a statement with parameters."""
    return quoted(name).replace("%", "%%")


def read_only(*beginning: bytes) -> bytes:
    """The statements that begin a transaction in which nothing is written."""
    return b"; ".join([*beginning, b"set transaction read only"])
