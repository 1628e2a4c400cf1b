"""Which columns of Postgres can be captured by Debezium: of which types every value arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.table_name import TableName


def require_type(
    table: TableName, column: str, written: str, base: str, kind: str, partial: Sequence[str], *, flat: bool
) -> None:
    """Check that all values of the column arrive, and that those left out by an update can be recognised.

    ``partial`` are the table, or those of its partitions, without REPLICA IDENTITY FULL. An array is ``flat``
    unless it is declared with several dimensions.
    """
    element = base.removeprefix("_") if kind == "array" else None
    if kind == "e" or (element is None and base in _CONVERTED):
        return
    if element is None or element not in _ARRAYS_CONVERTED:
        reason = _REASONS.get(base, "")
        raise ConnectorError(
            f"column {column} of {table} has the type {written}, which cannot be captured{reason}",
            hint="leave the table out, or store the column as text",
        )
    if not flat:
        raise ConnectorError(
            f"column {column} of {table} is an array with several dimensions, which cannot be captured",
            hint="leave the table out, or store the column as JSON",
        )
    if element not in _ARRAYS_MARKED and partial:
        raise ConnectorError(
            f"column {column} of {table} has the type {written}: when an update leaves its value as it was, "
            "a large one could not be told from NULL",
            hint="; ".join(f"ALTER TABLE {relation} REPLICA IDENTITY FULL" for relation in partial),
        )


_CONVERTED: Final = frozenset(
    {
        *("bool", "int2", "int4", "int8", "float4", "float8", "numeric", "money", "oid", "bit"),
        *("text", "varchar", "bpchar", "char", "citext", "bytea", "json", "jsonb", "xml", "uuid", "ltree"),
        *("date", "time", "timestamp", "timestamptz", "interval", "hstore", "point", "tsvector"),
        *("inet", "cidr", "macaddr", "macaddr8"),
        *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
    }
)
"""The types that arrive completely, as tried; any other would be left out, or lose something, silently."""

_ARRAYS_MARKED: Final = frozenset(
    {"int4", "int8", "text", "varchar", "bpchar", "bytea", "json", "jsonb", "uuid"}
)
"""Elements of arrays whose placeholder for a value that was left out arrives."""
_ARRAYS_CONVERTED: Final = _ARRAYS_MARKED | {
    *("bool", "int2", "float4", "float8", "numeric", "oid", "char", "citext", "ltree", "hstore", "enum"),
    *("date", "timestamp", "timestamptz", "inet", "cidr", "macaddr", "macaddr8", "tsvector"),
    *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
}
_REASONS: Final = {
    "timetz": ": its zone would be lost",
    "_time": ": its microseconds would be lost",
}
"""Why, by the type, where it is not simply unknown to Debezium."""


class Excluded(NamedTuple):
    """Values that a constraint has to exclude, as Debezium gives others for them, or ends."""

    values: str
    condition: str
    """As the server writes it, in UTC and ISO style; ``{0}`` is the column."""
    since: int = 0
    """The version of the server that has such values."""

    def conditions(self, column: str) -> list[str]:
        """The condition on a column, and how it is written where the column has a domain of intervals."""
        return [self.condition.format(column), self.condition.format(f"({column})::interval")]


_EARLY: Final = "elements before 15 October 1582"
"""Drivers take days before the present calendar for those of the one before it."""
EXCLUDED: Final = {
    "interval": Excluded("infinite values", "isfinite({0})", 170000),
    "_numeric": Excluded(
        "NaN and infinite elements",
        "(('Infinity'::numeric > ALL ({0})) AND ('-Infinity'::numeric < ALL ({0})))",
    ),
    "_date": Excluded(_EARLY, "('1582-10-15'::date <= ALL ({0}))"),
    "_timestamp": Excluded(_EARLY, "('1582-10-15 00:00:00'::timestamp without time zone <= ALL ({0}))"),
    "_timestamptz": Excluded(_EARLY, "('1582-10-15 00:00:00+00'::timestamp with time zone <= ALL ({0}))"),
}
"""By the type."""
