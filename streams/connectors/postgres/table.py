"""What the catalog says about the table that a sink writes to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.connectors.postgres.connection import Connection

_PART = re.compile(r'"((?:[^"]|"")+)"|([^\W\d][\w$]*)')

_ROUNDS = {"numeric", "timestamp", "timestamptz", "time", "timetz", "interval"}
"""Types whose values are rounded to the column's precision; all others are refused when they do not fit."""

_EXACT = {"int2", "int4", "int8", "oid", "uuid", "date", "bool", "bytea"}
"""Types whose values are equal exactly when their usual Python values are; text depends on the collation."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column. ``base`` is the type's name; that of the elements for an array, of the base for a domain."""

    name: str
    type: str
    """As an SQL statement names it, without a length or precision: a cast to ``varchar(3)`` would cut."""
    declared: str
    """As it was declared, e.g. ``character varying(100)``."""
    base: str
    is_array: bool
    has_arrays: bool
    """Whether the server has arrays of this type that can be written as lists of its text."""
    required: bool
    """Not null and without a default: an INSERT must have it."""
    not_null: bool
    checked: bool
    """A CHECK constraint, or a domain's, concerns it."""
    generated: bool
    identity_always: bool
    exact: bool
    """Whether two values are equal for the server exactly when they are equal in Python."""

    @property
    def compared(self) -> str:
        """The type to which a value is cast before it is compared with the column's values."""
        return self.declared if self.base in _ROUNDS and not self.is_array else self.type


@dataclass(frozen=True, slots=True)
class Index:
    """A unique index, or another one. Only a usable one decides which rows ON CONFLICT updates."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool
    usable: bool
    simple: bool
    """Whether it can never refuse a row: not unique, no expression, and no text that may be too long."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, its columns by name, and its indexes."""

    schema: str
    name: str
    kind: str
    persistence: str
    columns: dict[str, Column]
    indexes: tuple[Index, ...]
    independent: bool
    """Only its indexes can make a row depend on others or on earlier states: no trigger, foreign key, …"""
    deferred: bool
    """It has constraints that are checked at the end of the transaction."""
    can_stage: bool
    missing_rights: tuple[str, ...]

    @property
    def identifier(self) -> str:
        """Its quoted name, with the schema."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def key_index(self, key: Sequence[str]) -> Index | None:
        """The unique index of exactly these columns."""
        return next((i for i in self.indexes if i.usable and set(i.columns) == set(key)), None)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Its columns, none if there is no primary key."""
        return next((i.columns for i in self.indexes if i.primary), ())

    def is_plain(self, key: Sequence[str]) -> bool:
        """Whether only a row's last state matters, so that earlier ones need not be written."""
        own = self.key_index(key)
        return self.independent and all(index is own or index.simple for index in self.indexes)


def quoted(name: str) -> str:
    """An identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def quoted_list(names: Iterable[str]) -> str:
    """Identifiers for SQL, separated by commas."""
    return ", ".join(map(quoted, names))


def parse_name(text: str) -> tuple[str | None, str]:
    """The schema and the name in a table's name, as SQL reads it: without quotes in lower case."""
    parts: list[str] = []
    end = -1
    while end < len(text):
        found = _PART.match(text, end + 1)
        if found is None or (found.end() < len(text) and text[found.end()] != "."):
            parts = []
            break
        parts.append(found[1].replace('""', '"') if found[1] else found[2].lower())
        end = found.end()
    if len(parts) not in {1, 2}:
        raise ConfigurationError(
            f"{text!r} is no name of a table",
            hint='write it as in SQL: customers, public.customers or public."Order Items"',
        )
    return (parts[0] if len(parts) == 2 else None), parts[-1]


_TABLE = """
select c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
    c.relkind = 'r' and not c.relhasrules and not c.relrowsecurity and not c.relhassubclass
        and not exists (select from pg_trigger t where t.tgrelid = c.oid)
        and not exists (select from pg_constraint f where f.contype in ('f', 'x')
            and c.oid in (f.conrelid, f.confrelid))
        and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated <> ''),
    exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgdeferrable)
        or exists (select from pg_constraint f where f.conrelid = c.oid and f.condeferrable),
    has_database_privilege(current_database(), 'TEMP'),
    array(select r from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r
        where not has_table_privilege(c.oid, r))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass(%s)
"""

_COLUMNS = """
select a.attname, format_type(t.oid, -1), format_type(t.oid, a.atttypmod),
    coalesce(e.typname, b.typname, t.typname), t.typcategory = 'A' and t.typtype <> 'd',
    t.typarray <> 0 and t.typdelim = ',' and t.typtype <> 'p',
    a.attnotnull and not (a.atthasdef or a.attidentity <> '' or t.typdefault is not null), a.attnotnull,
    t.typtype = 'd' or exists (select from pg_constraint k where k.conrelid = a.attrelid
        and k.contype = 'c' and (a.attnum = any(k.conkey) or k.conkey is null)),
    a.attgenerated <> '', a.attidentity = 'a',
    t.typtype = 'b' and (t.typname = any(%s) or t.typname in ('text', 'varchar')
        and coalesce((select collisdeterministic from pg_collation o where o.oid = a.attcollation), false))
from pg_attribute a
join pg_type t on t.oid = a.atttypid
left join pg_type b on b.oid = t.typbasetype and t.typtype = 'd'
left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
where a.attrelid = %s and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

_INDEXES = """
select c.relname, array(
        select a.attname::text from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k(n, o)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.n order by k.o),
    i.indisunique, i.indisprimary,
    i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and i.indexprs is null,
    not i.indisunique and not i.indisexclusion and i.indpred is null and i.indexprs is null
        and not exists (select from pg_attribute a where a.attrelid = i.indexrelid and a.attlen < 0)
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = %s and i.indislive
order by i.indisprimary desc, c.relname
"""


def read_table(connection: Connection, name: str) -> Table | None:
    """Read a table's description, ``None`` if there is none of that name. Raises ``psycopg.Error``."""
    schema, relation = parse_name(name)
    spelled = quoted(relation) if schema is None else f"{quoted(schema)}.{quoted(relation)}"
    found = connection.run(_TABLE.encode(), [spelled]).fetchone()
    if found is None:
        return None
    oid, schema_name, relation, kind, persistence, independent, deferred, can_stage, missing = found
    # Types outside pg_catalog are then named with their schema.
    connection.run(b"begin; set local search_path = pg_catalog")
    try:
        columns = {row[0]: Column(*row) for row in connection.run(_COLUMNS.encode(), [list(_EXACT), oid])}
        indexes = tuple(
            Index(row[0], tuple(row[1]), *row[2:]) for row in connection.run(_INDEXES.encode(), [oid])
        )
    finally:
        if not connection.closed:
            connection.run(b"rollback")
    return Table(
        schema_name,
        relation,
        kind,
        persistence,
        columns,
        indexes,
        independent,
        deferred,
        can_stage,
        tuple(missing),
    )


def require_fit(table: Table, key: Sequence[str], *, append: bool) -> None:
    """Raise ``ConnectorError`` if a sink cannot keep its guarantee with this table."""
    if table.kind not in {"r", "p"}:
        raise ConnectorError(
            f"{table.identifier} is no table (its kind in pg_class is {table.kind!r})",
            hint="name the table behind it",
        )
    if table.persistence != "p":
        raise ConnectorError(
            f"{table.identifier} is unlogged or temporary: its rows may be lost while the positions are kept",
            hint=f"ALTER TABLE {table.identifier} SET LOGGED",
        )
    missing = {"INSERT"} & set(table.missing_rights) if append else set(table.missing_rights)
    if missing:
        raise ConnectorError(
            f"the sink's role lacks {', '.join(sorted(missing))} on {table.identifier}",
            hint=f"GRANT {', '.join(sorted(missing))} ON {table.identifier} TO the role",
        )
    if append:
        return
    if not key:
        raise ConnectorError(
            f"{table.identifier} has no primary key, by which rows are updated and deleted",
            hint=f"ALTER TABLE {table.identifier} ADD PRIMARY KEY (…), or name the columns of a unique index "
            'with key=, or write with mode="append"',
        )
    absent = [name for name in key if name not in table.columns]
    if absent:
        raise ConnectorError(
            f"{table.identifier} has no column {', '.join(map(repr, absent))}, which is part of the key",
            hint=f"its columns are {', '.join(table.columns)}",
        )
    if table.key_index(key) is None:
        raise ConnectorError(
            f"{table.identifier} has no unique index of the columns {', '.join(key)} that decides which row "
            "is updated (one that is partial, deferrable, invalid or has expressions does not)",
            hint=f"CREATE UNIQUE INDEX ON {table.identifier} ({quoted_list(key)})",
        )
