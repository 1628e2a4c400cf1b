"""Avro schemas of a table's changes, in Debezium's form, and of their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from streams.connectors.avro_columns import avro_branches, key_type
from streams.serde.dynamic_avro import COLUMN
from streams.serde.schemas.avro_names import avro_name, avro_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.connectors.table_row import TableColumns

_SOURCE: Final = (
    *(("db", "string", ""), ("schema", "string", None), ("table", "string", None)),
    *(("connector", "string", None), ("name", "string", None), ("version", "string", None)),
    *(("ts_ms", "long", None), ("snapshot", "string", None), ("sequence", "string", None)),
    *(("txId", "long", None), ("lsn", "long", None)),
)
SOURCE_FIELDS: Final = tuple(name for name, _, _ in _SOURCE)
BLOCK_FIELDS: Final = ("id", "total_order", "data_collection_order")
COMPLETE_BEFORE: Final = "complete_before"
"""The field of an envelope that is no part of Debezium's: whether ``before`` has all columns of the row."""


def record_name(table: TableColumns, what: str) -> str:
    """The full name of one of a table's records. Names that Avro does not allow are encoded reversibly."""
    return ".".join([*map(avro_name, filter(None, table.path)), what])


def change_schema(table: TableColumns) -> dict[str, Any]:
    """The schema of a table's changes.

    Columns are nullable, with the default null, unless they belong to the key: a database does not send all
    of them in ``before``, and a new one does not make the schema incompatible.
    """
    row = record_name(table, "Value")
    names = avro_names((column.name for column in table.columns), "columns")
    fields = [
        _column(names, column.name, avro_branches(column), nullable=column.name not in table.key)
        for column in table.columns
    ]
    return {
        "type": "record",
        "name": record_name(table, "Envelope"),
        "fields": [
            _nullable("before", {"type": "record", "name": row, "fields": fields}),
            _nullable("after", row),
            {
                "name": "source",
                "type": {
                    "type": "record",
                    "name": record_name(table, "Source"),
                    "fields": [
                        {"name": name, "type": kind, "default": default}
                        if default is not None
                        else _nullable(name, kind)
                        for name, kind, default in _SOURCE
                    ],
                },
            },
            {"name": "op", "type": "string"},
            _nullable("ts_ms", "long"),
            _nullable(
                "transaction",
                {
                    "type": "record",
                    "name": record_name(table, "Block"),
                    "fields": [
                        {"name": name, "type": "string" if name == "id" else "long"} for name in BLOCK_FIELDS
                    ],
                },
            ),
            {"name": COMPLETE_BEFORE, "type": "boolean", "default": False},
        ],
    }


def key_schema(table: TableColumns) -> dict[str, Any]:
    """The schema of the keys of a table's rows."""
    columns = table.key_columns
    names = avro_names((column.name for column in columns), "columns")
    return {
        "type": "record",
        "name": record_name(table, "Key"),
        "fields": [_column(names, column.name, [key_type(column)], nullable=False) for column in columns],
    }


def _column(names: dict[str, str], name: str, branches: Iterable[Any], *, nullable: bool) -> dict[str, Any]:
    types = [*(["null"] if nullable else []), *branches]
    field: dict[str, Any] = {"name": names[name], "type": types if len(types) > 1 else types[0]}
    if names[name] != name:
        field[COLUMN] = name
    return {**field, "default": None} if nullable else field


def _nullable(name: str, kind: Any) -> dict[str, Any]:
    return {"name": name, "type": ["null", kind], "default": None}
