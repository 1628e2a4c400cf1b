"""The SQL that writes rows: one parameter for each column, an array of the rows' values.

Statements of many rows need no session state and no temporary table, so they work through PgBouncer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from streams.connectors.postgres.table import quoted, quoted_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.connectors.postgres.table import Column, Table

STAGE = "streams_superseded_rows"

MOST_KNOWN = 1_000
"""How many statements are kept; rows may have any number of combinations of columns."""

_PARAMETER = "\0"
"""Where a parameter is, until the statement is complete: no name can have this character."""


@dataclass(frozen=True)
class Statements:
    """The statements for one table. Their parameters are the key's columns, then the other ones."""

    table: Table
    key: tuple[str, ...]
    _known: dict[tuple[str, ...], bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def put(self, columns: tuple[str, ...]) -> bytes:
        """Write rows: by key, if there is one."""
        statement = self._known.get(columns)
        if statement is None:
            statement = self._upsert(columns) if self.key else self._insert(columns)
            if len(self._known) < MOST_KNOWN:
                self._known[columns] = statement
        return statement

    def _insert(self, columns: Sequence[str]) -> bytes:
        """Append rows."""
        return _parameterised(f"insert into {self._into(columns)} select {self._values(columns)}")

    def _upsert(self, columns: Sequence[str]) -> bytes:
        """Insert rows, or update the row that has their key."""
        if not self.inserts_first(columns):
            return self._upsert_of_parts(columns)
        return _parameterised(
            f"insert into {self._into(self._all(columns))} select {self._values(self._all(columns))} "
            f"{self._on_conflict(columns)}"
        )

    def inserts_first(self, columns: Sequence[str]) -> bool:
        """Whether rows of these columns can be proposed for insertion although their key may exist.

        Postgres checks a proposed row before it looks for a conflict: a row that has only what an update
        changed would be refused for the columns that it leaves as they are.
        """
        have = {*self.key, *columns}
        return all(
            column.name in have or column.generated or not (column.required or column.checked)
            for column in self.table.columns.values()
        )

    def is_complete(self, columns: Sequence[str]) -> bool:
        """Whether rows of these columns have all that the table checks, and no default is needed."""
        have = {*self.key, *columns}
        return all(
            column.name in have or not (column.not_null or column.checked)
            for column in self.table.columns.values()
        )

    @cached_property
    def delete(self) -> bytes:
        """Delete the rows that have the keys."""
        return _parameterised(
            f"delete from {self.table.identifier} t using {self._rows(self.key)} where {self._same_key()}"
        )

    @cached_property
    def truncate(self) -> bytes:
        """Delete all rows, visibly to those who read beside it only once it is committed."""
        return f"delete from {self.table.identifier}".encode()

    @cached_property
    def create_stage(self) -> bytes:
        """A table with the target's types, lengths and checks, in which rows are tried but not kept."""
        return (
            f"create temporary table {STAGE} "
            f"(like {self.table.identifier} including constraints) on commit drop"
        ).encode()

    def stage(self, columns: Sequence[str]) -> bytes:
        """Try rows."""
        names = self._all(columns)
        return _parameterised(
            f"insert into pg_temp.{STAGE} ({quoted_list(names)}) select {self._values(names)}"
        )

    def _all(self, columns: Sequence[str]) -> tuple[str, ...]:
        return (*self.key, *columns)

    def _upsert_of_parts(self, columns: Sequence[str]) -> bytes:
        names = self._all(columns)
        set_ = ", ".join(
            f"{quoted(name)} = r.c{number}" for number, name in enumerate(names) if self._is_set(name)
        )
        update = (
            f", u as (update {self.table.identifier} t set {set_} from r where {self._same_key()})"
            if set_
            else ""
        )
        return _parameterised(
            f"with r as materialized (select {self._values(names, named=True)}){update} "
            f"insert into {self._into(names)} select r.* from r "
            f"where not exists (select from {self.table.identifier} t where {self._same_key()}) "
            f"{self._on_conflict(columns)}"
        )

    def _is_set(self, name: str) -> bool:
        """Whether an update may write the column."""
        return name not in self.key and not self.table.columns[name].identity_always

    def _into(self, columns: Sequence[str]) -> str:
        identity = any(self.table.columns[name].identity_always for name in columns)
        overriding = " overriding system value" if identity else ""
        return f"{self.table.identifier} ({quoted_list(columns)}){overriding}"

    def _on_conflict(self, columns: Sequence[str]) -> str:
        set_ = ", ".join(
            f"{quoted(name)} = excluded.{quoted(name)}" for name in columns if self._is_set(name)
        )
        return f"on conflict ({quoted_list(self.key)}) do {f'update set {set_}' if set_ else 'nothing'}"

    def _values(self, columns: Sequence[str], *, named: bool = False) -> str:
        """The columns of the rows, as the target takes them, and where they come from."""
        values = (
            _cast(self.table.columns[name], f"r.c{number}") + (f" as c{number}" if named else "")
            for number, name in enumerate(columns)
        )
        return f"{', '.join(values)} from {self._rows(columns)}"

    def _rows(self, columns: Sequence[str]) -> str:
        arrays = (f"{_PARAMETER}::{_array(self.table.columns[name])}" for name in columns)
        return f"unnest({', '.join(arrays)}) as r({', '.join(f'c{n}' for n in range(len(columns)))})"

    def _same_key(self) -> str:
        return " and ".join(
            f"t.{quoted(name)} = r.c{number}::{self.table.columns[name].compared}"
            for number, name in enumerate(self.key)
        )


def _array(column: Column) -> str:
    """The type of the parameter: an array of the column's type, of its text where there is none.

    Arrays of arrays would be unnested to their elements.
    """
    return f"{column.type}[]" if column.has_arrays and not column.is_array else "text[]"


def _cast(column: Column, expression: str) -> str:
    return expression if column.has_arrays and not column.is_array else f"{expression}::{column.type}"


def _parameterised(statement: str) -> bytes:
    """The statement with numbered parameters, in the order in which they occur."""
    first, *others = statement.split(_PARAMETER)
    return (first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))).encode()
