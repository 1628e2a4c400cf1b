"""SQL for the text of values: the same for every server version, session setting and type of column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.connectors.comparison.table import SHOWN_CHARACTERS, ColumnType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.comparison.table import ComparedColumn, Kind

SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    # The shortest text that reads back as the same number.
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    # Compiling takes longer than a query.
    "jit": "off",
}
"""On most of these, the text of values depends."""

BPCHAR, INET, UUID = 1042, 869, 2950

C_COLLATION = 950
"""The number of the collation ``C``, in all versions."""

_TYPES: dict[int, ColumnType] = {
    16: ColumnType("boolean", "boolean", "boolean"),
    17: ColumnType("bytes", "text", "bytea"),
    20: ColumnType("integer", "number", "bigint"),
    21: ColumnType("integer", "number", "smallint"),
    23: ColumnType("integer", "number", "integer"),
    25: ColumnType("text", "text", "text"),
    114: ColumnType("json", "text", "json"),
    700: ColumnType("single", "number", "real"),
    701: ColumnType("double", "number", "double precision"),
    BPCHAR: ColumnType("padded", "text", "character"),
    1043: ColumnType("text", "text", "character varying"),
    1082: ColumnType("date", "date", "date"),
    1114: ColumnType("timestamp", "timestamp", "timestamp"),
    1184: ColumnType("timestamptz", "timestamptz", "timestamptz"),
    1700: ColumnType("decimal", "number", "numeric"),
    UUID: ColumnType("uuid", "text", "uuid"),
    3802: ColumnType("jsonb", "text", "jsonb"),
}

BYTEWISE_ALREADY = {UUID}
"""Types whose own order is that of their text's bytes."""

STRINGS = {25, 1043}


def column_type(oid: int, name: str) -> ColumnType:
    """What is known of a type, by its number."""
    return _TYPES.get(oid, ColumnType("other", "text", name))


def text_of(sql: str, oid: int, kind: Kind, *, exact: bool) -> str:
    """The text of a value of type ``oid`` in a column that is compared as ``kind``; null stays null."""
    own = column_type(oid, "").kind
    match kind:
        case "decimal" if own != "integer" and not exact:
            return f"trim_scale({sql}::numeric)::text"
        case "double" | "single":
            wanted = "float8" if kind == "double" else "float4"
            # Adding 0 makes 0 of -0.
            return f"{sql}::{wanted}::text" if exact else f"({sql}::{wanted} + 0::{wanted})::text"
        case "double_bits" | "single_bits":
            wanted = "float8" if kind == "double_bits" else "float4"
            number = f"{sql}::{wanted}" + f" + 0::{wanted}" * (not exact)
            return f"CASE {sql} WHEN 'NaN' THEN 'NaN' ELSE encode({wanted}send({number}), 'hex') END"
        case "padded":
            return f"rtrim({sql}::text, ' ')"
        case "timestamp" if own == "timestamptz":
            return f"({sql} AT TIME ZONE 'UTC')::text"
        case "timestamp":
            return f"{sql}::timestamp::text"
        case "jsonb":
            return f"{sql}::jsonb::text"
        case "text" if oid == INET:
            # Its cast to text adds a netmask that its output does not have.
            return f"CASE WHEN {sql} IS NOT NULL THEN concat({sql}) END"
        case _:
            return f"{sql}::text"


def order_of(sql: str, oid: int, column: ComparedColumn, *, bytewise: bool, exact: bool) -> str:
    """The expression by which a key column is ordered, so that an index of the column serves if it can."""
    if column.order != "text" or oid in BYTEWISE_ALREADY:
        return sql
    if oid in STRINGS:
        return sql if bytewise else by_bytes(sql)
    return by_bytes(text_of(sql, oid, column.kind, exact=exact))


def by_bytes(sql: str) -> str:
    """Text that is ordered by its bytes, whatever the database's collation."""
    return f'({sql}) COLLATE "C"'


def row_hash(columns: Sequence[str]) -> str:
    """The hash of a row's texts.

    Quoted as literals, texts keep their borders, and null is another one than any text.
    """
    return f"sha256(convert_to({_joined([f'quote_nullable({name})' for name in columns])}, 'UTF8'))"


def _joined(items: Sequence[str]) -> str:
    """A comma-separated text; a function takes 100 arguments at most."""
    while len(items) > 1:
        items = [f"concat_ws(',', {', '.join(items[at : at + 50])})" for at in range(0, len(items), 50)]
    return items[0]


def _half(start: int) -> str:
    """Eight bytes of the hash as a number, the least significant one first."""
    parts = (f"get_byte(hash, {start + place})::bigint << {8 * place}" for place in range(8))
    return " | ".join(f"({part})" for part in parts)


SUMS = ("count(*)", *(f"coalesce(sum({_half(start)}), 0)::text" for start in (0, 8)))
"""The parts of a ``Checksum`` over rows with a column ``hash``."""


def shown(column: str) -> tuple[str, str]:
    """The beginning of a text, and the hash of a longer one; of any row, where there are several."""
    rest = f"CASE WHEN length({column}) > {SHOWN_CHARACTERS} THEN {_hexadecimal(column)} END"
    return (f"min({by_bytes(f'left({column}, {SHOWN_CHARACTERS})')})", f"min({by_bytes(rest)})")


def _hexadecimal(text: str) -> str:
    return f"encode(sha256(convert_to({text}, 'UTF8')), 'hex')"
