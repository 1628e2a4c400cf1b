"""The queries of a comparison, for one table and layout."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.connectors.postgres import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.connectors.comparison.table import ComparedColumn, Key, KeyRange, Layout


class TableColumn(NamedTuple):
    """A column of a table, or an expression that stands for one."""

    sql: str
    oid: int
    type_name: str
    """As a cast takes it."""
    bytewise: bool
    """Whether its own order is that of the bytes of its text."""
    collation: int
    """The number of its own collation, 0 for what is no text."""


class Relation(NamedTuple):
    """A table as queries name it, with the expression of its rows' versions.

    ``indexes`` have the column and the collation of each place that has the direction of the first.
    """

    name: str
    oid: int
    version: str
    indexes: Sequence[Sequence[tuple[str | None, int]]]


class Query(NamedTuple):
    """SQL with the driver's placeholders, and their values."""

    sql: str
    values: Sequence[Any]


class ComparisonQueries:
    """Where a text or a hash is used more than once, ``OFFSET 0`` keeps the query that makes it apart.

    Otherwise each use would make it again.
    """

    def __init__(self, relation: Relation, columns: Mapping[str, TableColumn], layout: Layout) -> None:
        self._relation = relation
        self._layout = layout
        self._keys = [(columns[column.name], column) for column in layout.key]
        self._names = [f"c{number}" for number in range(len(layout.columns))]
        texts = [self._text(columns[column.name], column) for column in layout.columns]
        self._texts = ", ".join(f"{text} AS {name}" for text, name in zip(texts, self._names, strict=True))
        size = len(layout.key)
        self._key_texts = [
            f"{text} AS {name}" for text, name in zip(texts[:size], self._names[:size], strict=True)
        ]
        self._orders = [
            canonical.order_of(own.sql, own.oid, column, bytewise=own.bytewise, exact=layout.exact)
            for own, column in self._keys
        ]

    @property
    def indexed(self) -> int:
        """How many of the first key columns an index has, in the order of the layout."""
        wanted: list[tuple[str, int]] = []
        for (own, column), order in zip(self._keys, self._orders, strict=True):
            if order == own.sql:
                wanted.append((column.name, own.collation))
            elif order == canonical.by_bytes(own.sql):
                wanted.append((column.name, canonical.C_COLLATION))
            else:
                break
        lengths = [
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(index, wanted, strict=False)))
            for index in self._relation.indexes
        ]
        return max(lengths, default=0)

    def null_keys(self) -> Query:
        """A row if any key is null."""
        nulls = " OR ".join(f"{own.sql} IS NULL" for own, _ in self._keys)
        return Query(f"SELECT 1 FROM {self._relation.name} WHERE {nulls} LIMIT 1", ())

    def boundary(self, part: KeyRange, rows: int, width: int) -> Query:
        """The beginning of the key of the range's row of that number."""
        where, values = self._within(part)
        return Query(
            f"SELECT {', '.join(self._key_texts[:width])} FROM {self._relation.name} WHERE {where} "
            f"ORDER BY {', '.join(self._orders[:width])} LIMIT 1 OFFSET %s",
            [*values, rows - 1],
        )

    def cuts(self, part: KeyRange, step: int) -> Query:
        """Every ``step``-th key of the range."""
        where, values = self._within(part)
        return Query(
            f"SELECT {', '.join(self._names[: len(self._keys)])} FROM (SELECT {', '.join(self._key_texts)}, "
            f"row_number() OVER (ORDER BY {', '.join(self._orders)}) AS number "
            f"FROM {self._relation.name} WHERE {where}) AS numbered WHERE number %% %s = 0 ORDER BY number",
            [*values, step],
        )

    def checksum(self, part: KeyRange) -> Query:
        """The parts of the range's checksum."""
        where, values = self._within(part)
        texts = f"SELECT {self._texts} FROM {self._relation.name} WHERE {where}"
        hashes = f"SELECT {canonical.row_hash(self._names)} AS hash FROM ({texts}) AS texts OFFSET 0"
        return Query(f"SELECT {', '.join(canonical.SUMS)} FROM ({hashes}) AS hashed", values)

    def checksums(self, part: KeyRange) -> Query:
        """Each key of the range, with the parts of its checksum."""
        where, values = self._within(part)
        return Query(self._by_key(where, canonical.SUMS), values)

    def rows(self, keys: Sequence[Key]) -> Query:
        """The keys that have a row: the parts of its checksum, its version, two parts of each value."""
        own_values, given, lists = [], [], []
        for number, (own, column) in enumerate(self._keys):
            # Equal floats may have other texts, and json has no equality.
            by_text = column.kind in {"single", "double", "single_bits", "double_bits", "json"}
            own_values.append(self._text(own, column) if by_text else own.sql)
            given.append(f"a{number}" if by_text else f"a{number}::{own.type_name}")
            lists.append([key[number] for key in keys])
        arrays = ", ".join("%s::text[]" for _ in lists)
        names = ", ".join(f"a{number}" for number in range(len(lists)))
        wanted = f"SELECT {', '.join(given)} FROM unnest({arrays}) AS given({names})"
        values = [item for name in self._names for item in canonical.shown(name)]
        results = (*canonical.SUMS, "coalesce(max(version), '')", *values)
        return Query(self._by_key(f"({', '.join(own_values)}) IN ({wanted})", results), lists)

    def _by_key(self, where: str, results: Sequence[str]) -> str:
        keys = [canonical.by_bytes(name) for name in self._names[: len(self._keys)]]
        row_hash = canonical.row_hash(self._names)
        hashes = f"SELECT *, {row_hash} AS hash FROM ({self._rows(where)}) AS texts OFFSET 0"
        places = ", ".join(str(number) for number, _ in enumerate(keys, 1))
        return f"SELECT {', '.join([*keys, *results])} FROM ({hashes}) AS hashed GROUP BY {places}"

    def _rows(self, where: str) -> str:
        texts = f"{self._texts}, {self._relation.version} AS version"
        return f"SELECT {texts} FROM {self._relation.name} WHERE {where} OFFSET 0"

    def _within(self, part: KeyRange) -> tuple[str, list[Any]]:
        """The condition of a range of keys, and its values."""
        conditions, values = [], list[Any]()
        for key, sign in ((part.after, ">"), (part.upto, "<=")):
            if key is not None:
                bounds = ", ".join(map(self._bound, range(len(key))))
                conditions.append(f"({', '.join(self._orders[: len(key)])}) {sign} ({bounds})")
                values += key
        return " AND ".join(conditions) or "true", values

    def _bound(self, number: int) -> str:
        own = self._keys[number][0]
        return f"%s::text::{own.type_name}" if self._orders[number] == own.sql else "%s::text"

    def _text(self, own: TableColumn, column: ComparedColumn) -> str:
        return canonical.text_of(own.sql, own.oid, column.kind, exact=self._layout.exact)
