"""Tables whose changes a test sends: as Debezium captures them, with the columns of the table."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from streams.connectors.change import Change, ChangeSource
from streams.connectors.debezium.control import Control
from streams.connectors.debezium.values import Column, Shape
from streams.connectors.table_name import TableName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.change import Operation
    from streams.testing.driver import TopologyDriver

_STEP: Final = 8
"""How far a table's log is apart from one change to the next."""


class CapturedTable:
    """A table of Postgres that a ``Debezium`` source captures, in a test with a ``TopologyDriver``.

    ``store`` is that of the source, ``name`` the table's with its schema. ``columns`` has the SQL type of
    each column, ``key`` the columns of the primary key; with ``full_identity`` the table has ``REPLICA
    IDENTITY FULL``, and what a change says of a row before it is complete. Changes go through the source's
    own processing, so that rows know their columns, as ``ChangeAvro`` needs it. ::

        columns = {"id": "bigint", "name": "text"}
        customers = CapturedTable(driver, "shop", "public.customers", columns, key=["id"])
        customers.insert({"id": 1, "name": "Ann"})
        customers.alter(columns | {"tier": "text"})
        customers.update({"id": 1, "name": "Ann", "tier": "gold"})
        customers.delete({"id": 1})

    Values are those of Python, or text as Postgres writes it; a column that a row lacks is null. Every method
    raises what the app raises. ``position`` is the change's place in the log of the database
    (``change.source.lsn``), unless given one that increases with each change of the table.
    """

    def __init__(
        self,
        driver: TopologyDriver,
        store: str,
        name: str,
        columns: Mapping[str, str],
        *,
        key: Sequence[str],
        full_identity: bool = False,
        database: str = "test",
    ) -> None:
        self._driver = driver
        self._store = store
        self._name = TableName.parse(name)
        self._database = database
        self._key = tuple(key)
        self._full_identity = full_identity
        self._position = 0
        self._announced = False
        self._columns = self._read(columns)

    def read(self, row: Mapping[str, Any], *, position: int | Literal["next"] | None = "next") -> None:
        """Send a row that a snapshot reads."""
        self._send("r", None, row, position)

    def insert(self, row: Mapping[str, Any], *, position: int | Literal["next"] | None = "next") -> None:
        """Send the creation of a row."""
        self._send("c", None, row, position)

    def update(
        self,
        row: Mapping[str, Any],
        before: Mapping[str, Any] | None = None,
        *,
        position: int | Literal["next"] | None = "next",
    ) -> None:
        """Send the row that an update leaves, and what was ``before``, as far as the database sends it.

        An update of the key is a deletion and a creation.
        """
        self._send("u", before, row, position)

    def delete(self, key: Mapping[str, Any], *, position: int | Literal["next"] | None = "next") -> None:
        """Send the deletion of the row with this key, or of a complete row with full identity."""
        self._send("d", key, None, position)

    def alter(self, columns: Mapping[str, str]) -> None:
        """Give the table other columns: those of all later changes."""
        self._columns = self._read(columns)
        self._announced = False

    def _read(self, columns: Mapping[str, str]) -> dict[str, Column]:
        if missing := [name for name in self._key if name not in columns]:
            raise ValueError(f"the key of {self._name} has no columns {missing}: columns={list(columns)}")
        return {name: _column(kind) for name, kind in columns.items()}

    def _send(
        self,
        op: Operation,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        position: int | Literal["next"] | None,
    ) -> None:
        row = before if after is None else after
        assert row is not None, "a change has a row"
        self._position += _STEP
        source = ChangeSource(
            db=self._database,
            schema=self._name.schema,
            table=self._name.name,
            connector="postgresql",
            ts_ms=self._driver.clock,
            snapshot="true" if op == "r" else "false",
            lsn=self._position if position == "next" else position,
        )
        if not self._announced:
            # A source says which columns a table has before the first change with them.
            shape = Shape(self._columns, self._full_identity)
            self._driver.send_source(
                self._store, Control(control="table", snapshot=0, source=source, shape=shape)
            )
            self._announced = True
        change = Change(
            op=op,
            before=None if before is None else self._row(before),
            after=None if after is None else self._row(after),
            source=source,
            ts_ms=self._driver.clock,
        )
        key = self._row(row)
        if nulls := [name for name in self._key if key[name] is None]:
            raise ValueError(f"a row of {self._name} has no {', '.join(nulls)}, which is its key: {row}")
        self._driver.send_source(self._store, change, key={name: key[name] for name in self._key})

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := [name for name in row if name not in self._columns]:
            raise ValueError(
                f"{self._name} has no columns {unknown}, but {list(self._columns)}; alter() adds others"
            )
        return {name: _captured(row.get(name), column) for name, column in self._columns.items()}


class _Kind(NamedTuple):
    """A type as Debezium names it, and that of its values in Kafka Connect."""

    name: str
    stored: str


_TEXT: Final = _Kind("TEXT", "STRING")
_KINDS: Final = {
    **dict.fromkeys(("boolean", "bool"), _Kind("BOOL", "BOOLEAN")),
    **dict.fromkeys(("smallint", "int2", "smallserial"), _Kind("INT2", "INT16")),
    **dict.fromkeys(("integer", "int", "int4", "serial"), _Kind("INT4", "INT32")),
    **dict.fromkeys(("bigint", "int8", "bigserial"), _Kind("INT8", "INT64")),
    "oid": _Kind("OID", "INT64"),
    **dict.fromkeys(("real", "float4"), _Kind("FLOAT4", "FLOAT32")),
    **dict.fromkeys(("double precision", "float8"), _Kind("FLOAT8", "FLOAT64")),
    **dict.fromkeys(("numeric", "decimal"), _Kind("NUMERIC", "STRING")),
    "date": _Kind("DATE", "STRING"),
    **dict.fromkeys(("time", "time without time zone"), _Kind("TIME", "STRING")),
    **dict.fromkeys(("timestamp", "timestamp without time zone"), _Kind("TIMESTAMP", "STRING")),
    **dict.fromkeys(("timestamptz", "timestamp with time zone"), _Kind("TIMESTAMPTZ", "STRING")),
    "uuid": _Kind("UUID", "STRING"),
    "bytea": _Kind("BYTEA", "BYTES"),
}
"""Of all other types values are text, as Postgres writes it."""
_SQL_TYPE: Final = re.compile(
    r"(?P<name>[a-z]\w*(?: precision)?)\s*(?:\(\s*(?P<length>\d+)\s*(?:,\s*(?P<scale>\d+)\s*)?\))?"
    r"(?P<zone> with(?:out)? time zone)?\s*(?P<array>\[\])?"
)


def _column(sql: str) -> Column:
    found = _SQL_TYPE.fullmatch(sql.strip().lower())
    if found is None:
        return Column(_TEXT.name, stored=_TEXT.stored)
    kind = _KINDS.get(f"{found['name']}{found['zone'] or ''}", _TEXT)
    name = f"_{kind.name}" if found["array"] else kind.name
    if kind.name != "NUMERIC" or found["length"] is None:
        return Column(name, stored=kind.stored)
    return Column(name, int(found["length"]), int(found["scale"] or 0), kind.stored)


def _captured(value: Any, column: Column) -> Any:
    """A value as Debezium gives it."""
    if isinstance(value, list | tuple):
        return [_captured(item, column) for item in value]
    if column.scale is not None and isinstance(value, Decimal | int | str):
        # A database has all digits of the column.
        number = Decimal(value)
        return f"{number:.{column.scale}f}" if number.is_finite() else str(number)
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return f"{value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    if isinstance(value, dt.datetime | dt.time):
        text = value.isoformat()
        return text.rstrip("0") if "." in text else text
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else str(value)
    return value
