"""Ranges of a table's rows in the order of their keys, as the server orders them."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from streams.connectors.postgres.replication import connected
from streams.connectors.table_name import quoted
from streams.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from streams.connectors.postgres.replication import TableState

    Key: TypeAlias = Sequence[str]
    """The values of a key as the server writes them."""

WRITERS_EVERY: Final = 0.2


class KeyRanges:
    """The ranges of one table. Every call raises as ``Replication`` does.

    A key never leaves SQL but as text that the server wrote: it alone compares keys, with the operators and
    collations of the primary key.
    """

    def __init__(self, conninfo: str, state: TableState) -> None:
        self._conninfo = conninfo
        self._state = state

    def select(self, after: Key | None, upto: Key | None) -> str:
        """The statement that reads the rows with keys beyond ``after``, up to and with ``upto``."""
        columns = ", ".join(quoted(name) for name in self._state.columns)
        return f"SELECT {columns} FROM {self._state.table.quoted} WHERE {self.within(after, upto)}"

    def within(self, after: Key | None, upto: Key | None) -> str:
        """The same as a condition."""
        conditions = []
        if after is not None:
            conditions.append(self._compared(">", after, included=False))
        if upto is not None:
            conditions.append(self._compared("<", upto, included=True))
        return " AND ".join(conditions) or "true"

    def end(self, after: Key | None, rows: int) -> list[str] | None:
        """The key of the last of so many rows beyond ``after``; ``None`` when there are fewer."""
        keys = [quoted(name) for name, _, _ in self._key]
        found = self._rows(
            f"SELECT {', '.join(f'{key}::text' for key in keys)} FROM {self._state.table.quoted} "
            f"WHERE {self.within(after, None)} ORDER BY {', '.join(keys)} OFFSET {rows - 1} LIMIT 1"
        )
        return list(found[0]) if found else None

    def layout(self) -> str:
        """Another text when the table was altered, or its rows are in other files.

        A transaction that began before a table was truncated, or rewritten by ALTER TABLE, reads no rows.
        """
        ((layout,),) = self._rows(_LAYOUT, (self._state.oid,))
        return str(layout)

    def wait_for_writers(self, proceed: Callable[[float], bool]) -> bool:
        """Wait until each transaction that writes to the table now has ended; return whether it is so.

        ``proceed`` gets how many seconds it takes so far, and returns whether to wait on.
        """
        begin = time.monotonic()
        writers = self._writers()
        while writers:
            if not proceed(time.monotonic() - begin):
                return False
            time.sleep(WRITERS_EVERY)
            writers &= self._writers()
        return True

    def _writers(self) -> set[str]:
        return {transaction for (transaction,) in self._rows(_WRITERS, (self._state.oid, self._state.oid))}

    @cached_property
    def _key(self) -> list[tuple[str, str, str]]:
        """The columns of the key, their types, and the schemas of the operators that order them."""
        found = self._rows(_KEY, (self._state.oid,))
        if tuple(name for name, _, _ in found) != self._state.key:
            raise ConnectorError(f"the primary key of {self._state.table} was changed, or has no order")
        return [(name, kind, schema) for name, kind, schema in found]

    def _compared(self, operator: str, key: Key, *, included: bool) -> str:
        columns = [
            (quoted(name), _literal(value, kind), schema)
            for (name, kind, schema), value in zip(self._key, key, strict=True)
        ]
        schemas = {schema for _, _, schema in columns}
        if len(columns) == 1 or len(schemas) == 1:
            # An index serves for all columns together only this way.
            names, values = (", ".join(part) for part in (list(zip(*columns, strict=True))[:2]))
            sign = f"OPERATOR({quoted(min(schemas))}.{operator}{'=' if included else ''})"
            return f"ROW({names}) {sign} ROW({values})" if len(columns) > 1 else f"{names} {sign} {values}"
        return _by_columns(operator, columns, included=included)

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with connected(self._conninfo, patient=True) as connection:
            return connection.execute(statement.encode(), list(values) or None).fetchall()


def _by_columns(operator: str, columns: list[tuple[str, str, str]], *, included: bool) -> str:
    """The order of rows by one column after the other, each with an operator of its own."""
    (name, value, schema), *others = columns
    strict = f"{name} OPERATOR({quoted(schema)}.{operator}) {value}"
    equal = f"{name} OPERATOR({quoted(schema)}.{operator}=) {value}"
    if not others:
        return equal if included else strict
    return f"({equal} AND ({strict} OR {_by_columns(operator, others, included=included)}))"


def _literal(text: str, kind: str) -> str:
    """A value of a type from its text, whatever is in that and however a session reads strings."""
    return (
        f"CAST(pg_catalog.convert_from(pg_catalog.decode('{text.encode().hex()}', 'hex'), 'UTF8') AS {kind})"
    )


_KEY: Final = """
select a.attname, format_type(a.atttypid, a.atttypmod), n.nspname
from pg_index i cross join lateral unnest(i.indkey, i.indclass) with ordinality k(attnum, opclass, at)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
join pg_opclass c on c.oid = k.opclass
join pg_amop m on m.amopfamily = c.opcfamily and m.amopstrategy = 5
              and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
join pg_operator o on o.oid = m.amopopr
join pg_namespace n on n.oid = o.oprnamespace
where i.indrelid = %s::int8::oid and i.indisprimary order by k.at
"""

_LAYOUT: Final = """
select concat_ws('; ',
    (select string_agg(concat_ws(' ', relid::oid, pg_relation_filenode(relid)), ', ' order by relid::oid)
     from (select relid from pg_partition_tree(t.oid) union select t.oid) r(relid)),
    (select string_agg(concat_ws(' ', attnum, attname, atttypid, atttypmod), ', ' order by attnum)
     from pg_attribute where attrelid = t.oid and attnum > 0 and not attisdropped))
from (select %s::int8::oid::regclass) t(oid)
"""

# A writer holds its lock until its changes are visible to others, which is after they are in the log.
_WRITERS: Final = """
select distinct virtualtransaction from pg_locks
where locktype = 'relation' and granted
  and database = (select oid from pg_database where datname = current_database())
  and relation in (select relid::oid from pg_partition_tree(%s::int8::oid) union select %s::int8::oid)
  and mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
