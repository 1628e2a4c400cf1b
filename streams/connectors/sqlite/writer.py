"""The open sink of one worker: rows and positions in one transaction of an SQLite file."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from operator import length_hint
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.connectors.change import Change
from streams.connectors.mapped_rows import (
    DELETION,
    key_fields,
    names_of,
    present,
    reader,
    rows_of,
    runs,
)
from streams.connectors.sink import RefusedRow
from streams.connectors.sqlite.errors import primary_code, refuses_row, to_error, with_code
from streams.connectors.sqlite.table import quoted
from streams.connectors.sqlite.values import keeps, stored
from streams.connectors.writer_state import WriterState
from streams.errors import ConnectorError, SinkFenced, SinkMismatch, SinkOutcomeUnknown, SinkUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.connectors.mapped_rows import Run, Shape
    from streams.connectors.sink import SinkContext, SinkRows
    from streams.connectors.sqlite.table import Column, Table
    from streams.records import TopicPartition


class _Plan(NamedTuple):
    """How rows of one shape are written."""

    take: Callable[[Any], tuple[Any, ...]]
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    """Where the key's columns are among the columns."""
    statement: str
    update: str | None
    """For rows that lack a column that a new row must have: tried before the statement."""


class SqliteWriter:
    """A ``SinkWriter`` on one connection.

    The write lock is taken before the first statement, so a transaction never fails halfway because another
    connection has written; and rows are written in the order of their offsets, so changes of one key,
    and states that another unique index needs, take effect one after the other.
    """

    def __init__(
        self,
        context: SinkContext,
        connection: sqlite3.Connection,
        *,
        path: str,
        table: Table,
        key: tuple[str, ...],
        fields: Mapping[str, str] | None,
        positions: str,
        on_truncate: str,
    ) -> None:
        self._context = context
        self._connection = connection
        self._path = path
        self._table = table
        self._key = key
        self._fields = fields
        self._positions = quoted(positions)
        self._on_truncate = on_truncate
        self._plans: dict[Shape, _Plan] = {}
        self._refused: list[RefusedRow] = []
        self._state = WriterState.CLAIMED

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        assert self._state is WriterState.CLAIMED
        try:
            self._begin()
            found = {partition: self._position(partition, topic) for partition, topic in partitions.items()}
            self._connection.execute("COMMIT")
        except Exception as error:
            self._fail(error, "claiming partitions")
            raise
        return found

    def lock(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        """As ``claim``, in a transaction that stays open: no other connection can write."""
        assert self._state is WriterState.CLAIMED
        try:
            self._begin()
            return {partition: self._position(partition, topic) for partition, topic in partitions.items()}
        except Exception as error:
            self._fail(error, "locking partitions")
            raise

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept for a partition."""

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        self._state = self._state.to(WriterState.WRITTEN)
        self._refused = []
        try:
            self._begin()
            for part in rows:
                self._move(part)
            for part in rows:
                self._write(part)
        except Exception as error:
            self._fail(error, f"writing table {self._table.name!r}")
            raise
        # In the order of their rows: each run adds first those that cannot be converted.
        order = {part.partition: number for number, part in enumerate(rows)}
        return sorted(self._refused, key=lambda refused: (order[refused.partition], refused.row))

    def commit(self) -> None:
        following = self._state.to(WriterState.CLAIMED)
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            # In the rollback-journal mode the commit has to wait for readers; it had no effect then.
            undone = primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL}
            what = f"SQLite database {self._path}: committing: {with_code(error)}"
            self.close()
            raise (SinkUnavailable if undone else SinkOutcomeUnknown)(what) from error
        self._state = following

    def rollback(self) -> None:
        if self._state is WriterState.WRITTEN:
            self._undo()
            self._state = self._state.to(WriterState.CLAIMED)

    def close(self) -> None:
        if self._state is not WriterState.CLOSED:
            self._state = self._state.to(WriterState.CLOSED)
            self._undo()
            with suppress(sqlite3.Error):
                self._connection.close()

    def _begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def _undo(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _fail(self, error: Exception, doing: str) -> None:
        """Close, as the contract says for an error; raises the library's error for one of SQLite."""
        self.close()
        if isinstance(error, sqlite3.Error):
            raise to_error(error, self._path, doing) from error

    def _position(self, partition: TopicPartition, topic_id: str) -> int:
        """The next offset of a partition, which is created at 0. Raises ``SinkMismatch``."""
        application, name = self._context.application, self._context.name
        place = (application, name, *partition)
        self._connection.execute(
            f"INSERT OR IGNORE INTO {self._positions} VALUES (?, ?, ?, ?, ?, 0)",
            (*place, topic_id),
        )
        known, next_offset = self._connection.execute(
            f"SELECT topic_id, next_offset FROM {self._positions} "
            "WHERE (application, sink, topic, partition) = (?, ?, ?, ?)",
            place,
        ).fetchone()
        if known == topic_id:
            return int(next_offset)
        raise SinkMismatch(
            f"SQLite database {self._path}: sink {name!r} is at offset {next_offset} of the topic "
            f"{partition.topic!r} with the id {known}, but the topic of that name now has the id {topic_id}",
            hint="the topic was deleted and created again; to read it from its beginning into this table, "
            f"delete the rows of {self._positions} with application {application!r}, sink {name!r} "
            f"and topic {partition.topic!r}",
        )

    def _move(self, part: SinkRows) -> None:
        """Move the position, which must be where these rows begin: no other worker has moved it."""
        moved = self._connection.execute(
            f"UPDATE {self._positions} SET next_offset = ? WHERE "
            "(application, sink, topic, partition, next_offset) = (?, ?, ?, ?, ?)",
            (
                part.next_offset,
                self._context.application,
                self._context.name,
                *part.partition,
                part.start,
            ),
        )
        if moved.rowcount != 1:
            raise SinkFenced(
                f"SQLite database {self._path}: the position of sink {self._context.name!r} in "
                f"{part.partition} is not offset {part.start}: another worker has moved it"
            )

    def _write(self, part: SinkRows) -> None:
        rows = rows_of(part.values)
        for run in runs(rows):
            if run.shape is DELETION:
                if self._key:
                    self._delete(part, run)
                continue
            try:
                plan = self._plans.get(run.shape) or self._planned(run.shape)
            except TypeError as error:
                self._refuse(part, range(run.start, run.stop), error)
                continue
            if len(plan.key) < len(self._key):
                self._write_with_keys(part, rows, run)
            else:
                numbers, taken = self._converted(
                    part, run, plan, list(map(plan.take, rows[run.start : run.stop]))
                )
                self._execute(part, plan, numbers, taken)

    def _planned(self, shape: Shape) -> _Plan:
        """Decide how rows of a shape are written. Raises ``ConnectorError`` for an unknown column."""
        fields, table = self._fields, self._table
        names, columns = [], []
        for name in names_of(shape):
            column = name if fields is None else fields.get(name)
            if column is None or column.lower() in table.generated:
                continue
            if (found := table.columns.get(column.lower())) is None:
                raise ConnectorError(
                    f"SQLite database {self._path}: table {table.name!r} has no column {column!r} "
                    f"for the field {name!r}",
                    hint=f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(column)}, "
                    "or choose the fields by columns=",
                )
            names.append(name)
            columns.append(found)
        written = [column.name for column in columns]
        key = tuple(written.index(name) for name in self._key if name in written)
        needed = {column.name for column in table.columns.values() if column.required}
        others = [name for name in written if name not in self._key]
        partial = bool(self._key) and bool(others) and not needed <= set(written)
        plan = _Plan(
            reader(shape, names),
            tuple(columns),
            key,
            table.upsert(written, self._key) if self._key else table.insert(written),
            table.update(others, self._key) if partial else None,
        )
        self._plans[shape] = plan
        return plan

    def _write_with_keys(self, part: SinkRows, rows: Sequence[Any], run: Run) -> None:
        """Rows whose values lack key columns: they are taken from the records' keys."""
        field_of = {column: name for name, column in (self._fields or {}).items()}
        for row in range(run.start, run.stop):
            try:
                key = zip(self._key, key_fields(part.keys[row], self._key), strict=True)
            except ValueError as error:
                self._refuse(part, [row], error)
                continue
            whole = {**{field_of.get(column, column): value for column, value in key}, **present(rows[row])}
            shape = tuple(whole)
            plan = self._plans.get(shape) or self._planned(shape)
            if len(plan.key) < len(self._key):
                raise ConnectorError(
                    f"columns= leaves out the key {', '.join(self._key)}", hint="name its columns too"
                )
            numbers, taken = self._converted(
                part, run._replace(start=row, stop=row + 1), plan, [plan.take(whole)]
            )
            self._execute(part, plan, numbers, taken)

    def _converted(
        self, part: SinkRows, run: Run, plan: _Plan, taken: list[tuple[Any, ...]]
    ) -> tuple[Sequence[int], list[tuple[Any, ...]]]:
        """The rows as SQLite stores them, with their numbers; those that it cannot store are refused."""
        numbers: Sequence[int] = range(run.start, run.stop)
        kinds = [column.affinity for column in plan.columns]
        columns = list(zip(*taken, strict=True))
        null_keys = any(None in columns[at] for at in plan.key)
        if not null_keys and all(map(keeps, kinds, columns)):
            return numbers, taken
        kept, whole = [], []
        for number, row in zip(numbers, taken, strict=True):
            try:
                if null_keys and any(row[at] is None for at in plan.key):
                    raise ValueError(f"the key {', '.join(self._key)} is null")  # noqa: TRY301 - as for other values
                whole.append(tuple(map(stored, kinds, row)))
            except (ValueError, TypeError, OverflowError) as error:
                self._refuse(part, [number], error)
            else:
                kept.append(number)
        return kept, whole

    def _execute(
        self, part: SinkRows, plan: _Plan, numbers: Sequence[int], rows: list[tuple[Any, ...]]
    ) -> None:
        if plan.update is not None:
            self._execute_partial(part, plan, numbers, rows)
            return
        feed = iter(rows)
        # A statement that fails has no effect; those before it stay, and the iterator is behind its row.
        while length_hint(feed):
            try:
                self._connection.executemany(plan.statement, feed)
            except Exception as error:  # noqa: BLE001 - what is not about the row is raised again
                self._refuse_failed(part, numbers[len(rows) - length_hint(feed) - 1], error)

    def _execute_partial(
        self, part: SinkRows, plan: _Plan, numbers: Sequence[int], rows: list[tuple[Any, ...]]
    ) -> None:
        """Rows that only an existing row can take: SQLite checks a new row before it looks for a conflict."""
        assert plan.update is not None
        others = [at for at in range(len(plan.columns)) if at not in plan.key]
        for number, row in zip(numbers, rows, strict=True):
            try:
                changed = self._connection.execute(
                    plan.update, [row[at] for at in others] + [row[at] for at in plan.key]
                )
                if not changed.rowcount:
                    self._connection.execute(plan.statement, row)
            except Exception as error:  # noqa: BLE001 - what is not about the row is raised again
                self._refuse_failed(part, number, error)

    def _delete(self, part: SinkRows, run: Run) -> None:
        statement = self._table.delete(self._key)
        kinds = [self._table.columns[name.lower()].affinity for name in self._key]
        for row in range(run.start, run.stop):
            value = part.values[row]
            if isinstance(value, Change) and value.op == "t":
                self._truncate(part, row)
                continue
            try:
                key = self._deleted_key(part, row)
                if any(
                    type(field) is bytes and kind != "NONE" for field, kind in zip(key, kinds, strict=True)
                ):
                    raise ValueError(  # noqa: TRY301 - refused as other keys
                        f"the record key is bytes, {key!r:.80}: give the source the serde of its keys (key=)"
                    )
                self._connection.execute(statement, tuple(map(stored, kinds, key)))
            except Exception as error:  # noqa: BLE001 - what is not about the row is raised again
                self._refuse_failed(part, row, error)

    def _truncate(self, part: SinkRows, row: int) -> None:
        if self._on_truncate == "fail":
            raise ConnectorError(
                f"table {self._table.name!r}: the source's table was truncated (offset {part.offsets[row]} "
                f"of {part.partition}), which concerns rows of all partitions",
                hint="for a topic of one partition, use on_truncate='delete'; otherwise rebuild the table, "
                "or use on_truncate='ignore'",
            )
        if self._on_truncate == "delete":
            self._connection.execute(f"DELETE FROM {quoted(self._table.name)}")

    def _deleted_key(self, part: SinkRows, row: int) -> tuple[Any, ...]:
        value = part.values[row]
        before = value.before if isinstance(value, Change) else None
        if part.keys[row] is None and before is not None:
            return key_fields(before, self._key)
        return key_fields(part.keys[row], self._key)

    def _refuse_failed(self, part: SinkRows, number: int, error: Exception) -> None:
        """Refuse a row if the error is about it; otherwise raise it again."""
        if not refuses_row(error):
            raise error
        if not self._connection.in_transaction:
            raise ConnectorError(
                f"SQLite database {self._path}: table {self._table.name!r}: {with_code(error)}; "
                "the constraint or trigger rolls the transaction back, so that no row can be written",
                hint="declare it without ON CONFLICT ROLLBACK or RAISE(ROLLBACK)",
            ) from error
        self._refuse(part, [number], error)

    def _refuse(self, part: SinkRows, rows: Sequence[int], error: Exception) -> None:
        named = with_code(error)
        self._refused += [RefusedRow(part.partition, row, named) for row in rows]
