"""An open Postgres sink: transactions that move positions and write rows, whatever is wrong with a row."""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING, TypeVar

import psycopg

from streams.connectors.postgres.application import Application
from streams.connectors.postgres.changes import UnknownFields, refused_rows
from streams.connectors.postgres.connection import (
    ROUND_TRIP_SECONDS,
    DeadlinePassed,
    beginning,
)
from streams.connectors.postgres.pipeline import Pipeline
from streams.connectors.postgres.server_errors import ends_connection, to_error
from streams.errors import SinkOutcomeUnknown, SinkUnavailable, StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from streams.connectors.postgres.changes import Changes
    from streams.connectors.postgres.connection import Connection
    from streams.connectors.postgres.positions import Positions
    from streams.connectors.postgres.target import Target
    from streams.connectors.sink import RefusedRow, SinkContext, SinkRows
    from streams.records import TopicPartition

T = TypeVar("T")


class _State(enum.Enum):
    """The life of a writer.

    ::

        IDLE ──write──> WRITTEN ──commit, rollback──> IDLE
          └──────close──────┴──> CLOSED

    A failed call leaves no transaction; the writer is then to be closed.
    """

    IDLE = "idle"
    WRITTEN = "written"
    CLOSED = "closed"


class PostgresWriter:
    """A sink's connection of one worker."""

    def __init__(
        self,
        connection: Connection,
        context: SinkContext,
        positions: Positions,
        target: Target,
        statement_timeout: float,
    ) -> None:
        self._connection = connection
        self._context = context
        self._positions = positions
        self._target = target
        self._begin = beginning(context, statement_timeout)
        self._pipeline = Pipeline(connection, prepares=connection.own_session)
        self._patience = statement_timeout + ROUND_TRIP_SECONDS
        self._state = _State.IDLE

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        assert self._state is _State.IDLE, f"claim while {self._state.value}"
        with self._transaction("claiming positions"):
            self._connection.run(b"; ".join(self._begin))
            found = self._positions.lock(self._connection, partitions)
            # Without new partitions there is nothing to commit: a commit may wait for a standby.
            self._connection.run(b"commit" if found.added else b"rollback")
        return found.positions

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept for them: the positions are in the database."""

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        assert self._state is _State.IDLE, f"write while {self._state.value}"
        with self._transaction("writing rows"):
            # The server moves the positions while the rows are read.
            self._begin_at(rows)
            changes = self._read(rows)
            application = Application(self._pipeline, self._target.statements, changes)
            unwritable = len(changes.refused)
            done = self._moved(rows, application.at_once)
            if not done and len(changes.refused) > unwritable:
                self._begin_again(rows)
                done = self._moved(rows, application.at_once)
            if not done:
                self._begin_again(rows)
                self._moved(rows, application.exactly)
        self._state = _State.WRITTEN
        return refused_rows(changes.refused, rows)

    def _read(self, rows: Sequence[SinkRows]) -> Changes:
        """Read rows in a transaction that has begun, or in the next one."""
        while True:
            try:
                return self._target.read(rows)
            except UnknownFields as error:
                self._moved(rows, self._pipeline.finish)
                self._connection.run(b"rollback")
                self._target.learn(self._connection, error)
                self._begin_at(rows)

    def _begin_at(self, rows: Sequence[SinkRows]) -> None:
        for statement in self._begin:
            self._pipeline.send(statement)
        self._positions.move(self._pipeline, rows)

    def _begin_again(self, rows: Sequence[SinkRows]) -> None:
        self._connection.run(b"rollback")
        self._begin_at(rows)

    def _moved(self, rows: Sequence[SinkRows], call: Callable[[], T]) -> T:
        """Call what waits for the statements of ``_begin_at``. Raises ``SinkFenced``."""
        try:
            return call()
        except psycopg.errors.UndefinedObject as error:
            if self._pipeline.failed == len(self._begin):
                raise self._positions.fenced(rows) from error
            raise

    def commit(self) -> None:
        assert self._state is _State.WRITTEN, f"commit while {self._state.value}"
        self._state = _State.IDLE
        # Whoever takes over waits for the lock as long.
        self._connection.patience = self._context.lock_timeout
        try:
            done = self._connection.run(b"commit")
        except (psycopg.Error, DeadlinePassed) as error:
            if isinstance(error, DeadlinePassed) or ends_connection(error):
                raise SinkOutcomeUnknown(
                    f"the connection to Postgres ended in a commit, which may have happened: {error}"
                ) from error
            raise to_error(error, "committing") from error
        if done.statusmessage != "COMMIT":
            raise SinkUnavailable(f"Postgres answered {done.statusmessage} to a commit: it was rolled back")

    def rollback(self) -> None:
        if self._state is _State.WRITTEN:
            self._state = _State.IDLE
            self._abandon_transaction()

    def close(self) -> None:
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            with contextlib.suppress(psycopg.Error):
                self._connection.close()

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        """Translate the errors of a transaction, after which there is none."""
        self._connection.patience = self._patience
        try:
            yield
        except (psycopg.Error, DeadlinePassed) as error:
            self._abandon_transaction()
            raise to_error(error, doing) from error
        except StreamsError:
            self._abandon_transaction()
            raise

    def _abandon_transaction(self) -> None:
        self._connection.patience = ROUND_TRIP_SECONDS
        with contextlib.suppress(psycopg.Error, DeadlinePassed):
            if not self._connection.closed:
                self._pipeline.discard()
                self._connection.run(b"rollback")
