"""Statements that are sent without waiting for the answers of those before: libpq's pipeline mode.

A transaction of several statements is one round trip, and the server executes one while the next is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.waiting import Ready, Wait

from streams.connectors.postgres.encoding import BinaryArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from streams.connectors.postgres.connection import Connection

FLUSH_BYTES = 8 * 1024
"""Smaller statements wait for the next ones, as each call of the network costs more than they do."""

MOST_PREPARED = 100
"""How many statements are prepared in a session; rows may have any number of combinations of columns."""


class Pipeline:
    """The statements of a connection that are sent and not answered yet.

    ``prepares`` says whether statements that are repeated are prepared, which halves the server's work for a
    small transaction. They belong to a session, so behind a pooler they may be missing.
    """

    def __init__(self, connection: Connection, *, prepares: bool) -> None:
        self._connection = connection
        self._prepares = prepares
        self._known: dict[bytes, bytes | None] = {}
        """The statements that were sent before, and the names of those that are prepared."""
        self._prepared = 0
        self.sent = 0
        """How many statements were sent since the last ``finish``."""
        self._unsent = 0
        self._expected: list[int] = []
        """For each answer that is still to come, the number of its statement."""
        self._new: dict[int, bytes] = {}
        """Statements that were prepared since the last ``finish``."""
        self.failed = -1
        """The number of the statement, from 0, whose error ``finish`` raised."""

    def send(self, statement: bytes, parameters: Sequence[bytes] = ()) -> None:
        """Send a statement with ``$1``, … for its parameters: text, or ``BinaryArray``.

        Raises ``psycopg.Error``.
        """
        pgconn = self._connection.pgconn
        if not self._expected:
            pgconn.enter_pipeline_mode()
        name = self._name(statement, pgconn) if self._prepares else None
        formats = [int(type(parameter) is BinaryArray) for parameter in parameters]
        if name is None:
            pgconn.send_query_params(statement, parameters, None, formats)
        else:
            pgconn.send_query_prepared(name, parameters, formats)
        self._expected.append(self.sent)
        self.sent += 1
        self._unsent += sum(map(len, parameters))
        if self._unsent >= FLUSH_BYTES:
            # As much as the network takes now; the rest follows with the next one, or in ``finish``.
            pgconn.flush()
            self._unsent = 0

    def _name(self, statement: bytes, pgconn: PGconn) -> bytes | None:
        """The name under which a statement is prepared: one that was sent before."""
        name = self._known.get(statement)
        if name is None and self._prepared < MOST_PREPARED:
            if statement in self._known:
                name = b"streams_%d" % self._prepared
                self._prepared += 1
                pgconn.send_prepare(name, statement)
                self._expected.append(self.sent)
                self._new[self.sent] = statement
            elif len(self._known) >= 10 * MOST_PREPARED:
                return None
            self._known[statement] = name
        return name

    def finish(self) -> None:
        """Wait until everything that was sent is answered.

        Raises the error of the first statement that failed; those after it had no effect.
        """
        if not self._expected:
            return
        connection = self._connection
        try:
            answers = connection.wait(_answers(connection.pgconn))
            connection.pgconn.exit_pipeline_mode()
        except BaseException:
            # Which answers are still to come is not known.
            connection.pgconn.finish()
            raise
        finally:
            expected, new = self._expected, self._new
            self._expected, self._new, self.sent, self._unsent = [], {}, 0, 0
        for number, result in zip(expected, answers, strict=False):
            if result.status not in _DONE:
                for later, statement in new.items():
                    if later >= number:
                        self._known[statement] = None
                self.failed = number
                raise error_from_result(result, encoding="utf-8")

    def discard(self) -> None:
        """Wait for what was sent, whatever becomes of it. Raises ``psycopg.OperationalError``."""
        try:
            self.finish()
        except psycopg.Error:
            if self._connection.closed:
                raise


_DONE = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}


def _answers(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """The results of all statements, one each."""
    pgconn.pipeline_sync()
    results: list[PGresult] = []
    while True:
        unsent = pgconn.flush()
        ready = yield Wait.RW if unsent else Wait.R
        if not ready & Ready.R:
            continue
        pgconn.consume_input()
        ended = False
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                # After each result, and again where there is nothing more to read.
                if ended:
                    break
                ended = True
                continue
            ended = False
            if result.status == ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)
