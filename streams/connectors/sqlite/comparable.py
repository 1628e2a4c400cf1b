"""``SqliteTable``: a table of an SQLite database, for comparisons."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.connectors.comparison.table import SHOWN_CHARACTERS, Checksum, ColumnType, KeyRange, Row, Value
from streams.connectors.sqlite.canonical import text_of
from streams.durations import seconds, to_milliseconds
from streams.errors import ConnectorError, ConnectorUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from streams.connectors.comparison.table import Key, Layout

_KEYS_PER_QUERY = 500
"""SQLite limits the number of parameters, and the depth of an expression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteTable:
    """A table of an SQLite database, to compare with another one.

    Decimals, times, booleans and JSON are compared as what they are in the other table. ``expressions`` are
    SQL by the name of the column that they stand for. A locked database is waited for up to ``lock_timeout``.
    """

    path: str | Path
    table: str
    expressions: Mapping[str, str] = field(default_factory=dict)
    lock_timeout: timedelta = seconds(30)

    def open(self) -> _Reader:
        """Open the file. Raises ``ConnectorUnavailable`` or ``ConnectorError``."""
        return _Reader(self)


class _Reader:
    def __init__(self, table: SqliteTable) -> None:
        path = Path(table.path).absolute()
        self.name = f"{table.table} in {table.path}"
        if not path.is_file():
            raise ConnectorError(f"{self.name}: there is no such file", hint="check the path of the database")
        self._table = _quoted(table.table)
        try:
            # Opened for reading only, so that it is not even created.
            self._connection = sqlite3.connect(
                f"{path.as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=to_milliseconds(table.lock_timeout, "lock_timeout") / 1000,
            )
        except sqlite3.Error as error:
            raise ConnectorUnavailable(f"{self.name} cannot be opened: {error}") from error
        # Text that is not UTF-8 is compared by its bytes.
        self._connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            self._columns = self._describe(table.expressions)
        except BaseException:
            self.close()
            raise
        self._begun: _Plan | None = None

    @property
    def indexed(self) -> int:
        """How many of the first key columns SQLite itself uses to search."""
        return max((width for width in range(1, self._plan.size + 1) if self._searches(width)), default=0)

    def _searches(self, width: int) -> bool:
        # With equal values before it, a column is searched by only if the index has all of them.
        *equal, last = range(width)
        conditions = [f"{self._plan.orders[number]} = {self._plan.bounds[number]}" for number in equal]
        conditions.append(f"{self._plan.orders[last]} > {self._plan.bounds[last]}")
        plan = self._read(
            f"EXPLAIN QUERY PLAN SELECT 1 FROM {self._table} WHERE {' AND '.join(conditions)}", ["0"] * width
        )
        return any("SEARCH" in row[-1] and row[-1].count("?") == width for row in plan)

    def columns(self) -> dict[str, ColumnType]:
        return {name: kind for name, (_, kind) in self._columns.items()}

    def begin(self, layout: Layout) -> None:
        self._begun = _Plan(self._connection, layout, {name: sql for name, (sql, _) in self._columns.items()})
        nulls = " OR ".join(f"{sql} IS NULL" for sql in self._plan.key)
        if self._read(f"SELECT 1 FROM {self._table} WHERE {nulls} LIMIT 1"):
            raise ConnectorError(
                f"{self.name} has rows whose key ({', '.join(column.name for column in layout.key)}) is null",
                hint="choose columns that identify each row",
            )

    def boundary(self, part: KeyRange, rows: int, width: int) -> Key | None:
        where, values = self._plan.within(part)
        found = self._read(
            f"SELECT {', '.join(self._plan.key[:width])} FROM {self._table} WHERE {where} "
            f"ORDER BY {', '.join(self._plan.orders[:width])} LIMIT 1 OFFSET ?",
            [*values, rows - 1],
        )
        return self._plan.key_of(found[0]) if found else None

    def cuts(self, part: KeyRange, step: int) -> list[Key]:
        where, values = self._plan.within(part)
        keys = self._rows(
            f"SELECT {', '.join(self._plan.key)} FROM {self._table} WHERE {where} "
            f"ORDER BY {', '.join(self._plan.orders)}",
            values,
        )
        return [self._plan.key_of(key) for number, key in enumerate(keys, 1) if number % step == 0]

    def checksum(self, part: KeyRange) -> Checksum:
        where, values = self._plan.within(part)
        rows = high = low = 0
        for texts in self._texts(where, values):
            digest = _digest(texts)
            rows, high, low = rows + 1, high + digest[0], low + digest[1]
        return Checksum(rows, high, low)

    def checksums(self, part: KeyRange) -> dict[Key, Checksum]:
        where, values = self._plan.within(part)
        found: dict[Key, Checksum] = {}
        for texts in self._texts(where, values):
            _add(found, texts[: self._plan.size], texts)
        return found

    def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        found: dict[Key, Checksum] = {}
        shown: dict[Key, tuple[Value | None, ...]] = {}
        wanted = set(keys)
        for start in range(0, len(keys), _KEYS_PER_QUERY // self._plan.size or 1):
            chosen = keys[start : start + (_KEYS_PER_QUERY // self._plan.size or 1)]
            places = ", ".join(f"({', '.join(self._plan.bounds)})" for _ in chosen)
            where = f"({', '.join(self._plan.orders)}) IN (VALUES {places})"
            for texts in self._texts(where, [text for key in chosen for text in key]):
                key = texts[: self._plan.size]
                if key in wanted:
                    _add(found, key, texts)
                    shown[key] = tuple(map(_shown, texts))
        return {key: Row(checksum, "", shown[key]) for key, checksum in found.items()}

    def position(self) -> int | None:
        return None

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    @property
    def _plan(self) -> _Plan:
        assert self._begun is not None, "begin sets what is read"
        return self._begun

    def _describe(self, expressions: Mapping[str, str]) -> dict[str, tuple[str, ColumnType]]:
        declared = self._read("SELECT name, type FROM pragma_table_xinfo(?)", [self._asked_name()])
        if not declared:
            raise ConnectorError(f"there is no table {self.name}", hint="check the name of the table")
        found = {
            name: (_quoted(name), ColumnType("any", "number" if "INT" in kind.upper() else "text", kind))
            for name, kind in declared
        }
        return found | {
            name: (f"({sql})", ColumnType("any", "text", "expression")) for name, sql in expressions.items()
        }

    def _asked_name(self) -> str:
        return self._table[1:-1].replace('""', '"')

    def _texts(self, where: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        texts = self._plan.texts
        for row in self._rows(
            f"SELECT {', '.join(self._plan.columns)} FROM {self._table} WHERE {where}", values
        ):
            yield tuple([text(value) for text, value in zip(texts, row, strict=True)])

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return list(self._rows(query, values))

    def _rows(self, query: str, values: Sequence[Any]) -> Iterator[Any]:
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.OperationalError as error:
            text = f"{self.name} cannot be compared: {error}"
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise ConnectorUnavailable(text) from error
            raise ConnectorError(
                text, hint="check the table's name and columns, and their expressions"
            ) from error
        except sqlite3.Error as error:
            raise ConnectorError(f"{self.name} cannot be compared: {error}") from error


class _Plan:
    """What the queries of a comparison are made of."""

    def __init__(self, connection: sqlite3.Connection, layout: Layout, sqls: Mapping[str, str]) -> None:
        self.size = len(layout.key)
        self.columns = [sqls[column.name] for column in layout.columns]
        self.texts: list[Callable[[Any], str | None]] = [
            text_of(column.kind, exact=layout.exact) for column in layout.columns
        ]
        self.key = self.columns[: self.size]
        self.orders: list[str] = []
        self.bounds: list[str] = []
        for number, column in enumerate(layout.key):
            if column.order == "number":
                self.orders.append(self.key[number])
                self.bounds.append("CAST(? AS NUMERIC)")
            elif column.kind in {"text", "uuid"}:
                self.orders.append(f"{self.key[number]} COLLATE BINARY")
                self.bounds.append("?")
            else:
                # Ordered by what the value means, for which SQLite has no order.
                name = f"streams_text_{number}"
                connection.create_function(name, 1, self.texts[number], deterministic=True)
                self.orders.append(f"{name}({self.key[number]}) COLLATE BINARY")
                self.bounds.append("?")

    def key_of(self, values: Sequence[Any]) -> Key:
        return tuple(text(value) or "" for text, value in zip(self.texts, values, strict=False))

    def within(self, part: KeyRange) -> tuple[str, list[str]]:
        conditions, values = [], list[str]()
        for key, sign in ((part.after, ">"), (part.upto, "<=")):
            if key is not None:
                orders, bounds = self.orders[: len(key)], self.bounds[: len(key)]
                conditions.append(f"({', '.join(orders)}) {sign} ({', '.join(bounds)})")
                values += key
        return " AND ".join(conditions) or "1", values


def _digest(texts: Sequence[str | None]) -> tuple[int, int]:
    """Both halves of a row's hash, which is that of the same texts in Postgres."""
    row = ",".join(["NULL" if text is None else _literal(text) for text in texts])
    digest = hashlib.sha256(row.encode("utf-8", "surrogateescape")).digest()
    return (
        int.from_bytes(digest[:8], "little", signed=True),
        int.from_bytes(digest[8:16], "little", signed=True),
    )


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"E'{quoted.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{quoted}'"


def _add(found: dict[Key, Checksum], key: Key, texts: Sequence[str | None]) -> None:
    high, low = _digest(texts)
    before = found.get(key, Checksum(0, 0, 0))
    found[key] = Checksum(before.rows + 1, before.high + high, before.low + low)


def _shown(text: str | None) -> Value | None:
    if text is None:
        return None
    rest = len(text) > SHOWN_CHARACTERS
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() if rest else None
    return Value(text[:SHOWN_CHARACTERS], digest)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
