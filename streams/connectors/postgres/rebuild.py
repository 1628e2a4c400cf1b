"""Fills a table again beside itself: a copy that the sink writes to, and a merge in one transaction."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg

from streams.connectors.postgres.connection import DeadlinePassed, beginning
from streams.connectors.postgres.server_errors import to_error
from streams.connectors.postgres.table import quoted, quoted_list
from streams.connectors.sink import MergeCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streams.connectors.postgres.connection import Connection
    from streams.connectors.postgres.positions import Positions
    from streams.connectors.postgres.table import Table
    from streams.connectors.sink import SinkConnector, SinkContext
    from streams.records import TopicPartition

SUFFIX = "__rebuild"

LONGEST_NAME = 63
"""Bytes of a name in Postgres."""

MERGE_SECONDS = 4 * 3600.0
"""Bounds a merge, in which the positions are locked."""


class PostgresRebuild:
    """The copy of a sink's table, in the same schema. ``key`` has no columns where rows are only appended.

    ``sink_for`` returns the sink for another table.
    """

    def __init__(
        self,
        sink_for: Callable[[str], SinkConnector],
        context: SinkContext,
        connection: Connection,
        positions: Positions,
        table: Table,
        key: tuple[str, ...],
    ) -> None:
        self._sink_for = sink_for
        self._context = context
        self._connection = connection
        self._positions = positions
        self._table = table
        self._key = key
        name = table.name.encode()[: LONGEST_NAME - len(SUFFIX)].decode(errors="ignore")
        self._copy = f"{quoted(table.schema)}.{quoted(name + SUFFIX)}"
        connection.patience = MERGE_SECONDS

    def copy(self) -> SinkConnector:
        with self._translated("creating the copy"):
            self._remove()
            # Without its foreign keys and triggers: the copy is compared, and never read by anyone else.
            self._connection.run(
                f"create table {self._copy} (like {self._table.identifier} including all)".encode()
            )
        return self._sink_for(self._copy)

    def positions(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        with self._translated("reading positions"):
            found = self.lock(partitions)
            self._connection.run(b"commit")
        return found

    def lock(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        with self._translated("locking positions"):
            # Waits for a worker's transaction as long as a claim does; the merge itself may take long.
            self._connection.run(b"; ".join(beginning(self._context, MERGE_SECONDS)))
            self._connection.run(b"set local idle_in_transaction_session_timeout = 0")
            return self._positions.lock(self._connection, partitions).positions

    def merge(self) -> MergeCounts:
        with self._translated("merging the copy"):
            counts = self._merge_by_key() if self._key else self._replace_all()
            self._connection.run(b"commit")
        return counts

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error, DeadlinePassed):
            if not self._connection.closed:
                self._connection.run(b"rollback")
                self._remove()
                self._connection.close()

    def _remove(self) -> None:
        self._connection.run(f"drop table if exists {self._copy}".encode())
        self._connection.run(
            f"delete from {self._positions.identifier.replace('%', '%%')} "
            "where application = %s and sink = %s".encode(),
            [self._context.application, f"{self._context.name}{SUFFIX}"],
        )

    def _merge_by_key(self) -> MergeCounts:
        target, copy = self._table.identifier, self._copy
        same = " and ".join(f"t.{quoted(name)} = c.{quoted(name)}" for name in self._key)
        written = [name for name, column in self._table.columns.items() if not column.generated]
        others = [
            name
            for name in written
            if name not in self._key and not self._table.columns[name].identity_always
        ]
        deleted = self._run(f"delete from {target} t where not exists (select from {copy} c where {same})")
        changed = 0
        if others:
            assignments = ", ".join(f"{quoted(name)} = c.{quoted(name)}" for name in others)
            # As text: some types have no equality, and equal numbers may be written differently.
            old = ", ".join(f"t.{quoted(name)}::text" for name in others)
            new = ", ".join(f"c.{quoted(name)}::text" for name in others)
            changed = self._run(
                f"update {target} t set {assignments} from {copy} c "
                f"where {same} and ({old}) is distinct from ({new})"
            )
        added = self._run(
            f"insert into {self._into(written)} select {quoted_list(written)} from {copy} c "
            f"where not exists (select from {target} t where {same})"
        )
        return MergeCounts(added, changed, deleted)

    def _replace_all(self) -> MergeCounts:
        written = [name for name, column in self._table.columns.items() if not column.generated]
        deleted = self._run(f"delete from {self._table.identifier}")
        added = self._run(
            f"insert into {self._into(written)} select {quoted_list(written)} from {self._copy}"
        )
        return MergeCounts(added, 0, deleted)

    def _into(self, columns: list[str]) -> str:
        identity = any(self._table.columns[name].identity_always for name in columns)
        overriding = " overriding system value" if identity else ""
        return f"{self._table.identifier} ({quoted_list(columns)}){overriding}"

    def _run(self, statement: str) -> int:
        return self._connection.run(statement.encode()).rowcount

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, DeadlinePassed) as error:
            with contextlib.suppress(psycopg.Error, DeadlinePassed):
                if not self._connection.closed:
                    self._connection.run(b"rollback")
            raise to_error(error, f"rebuilding {self._table.identifier}: {doing}") from error
