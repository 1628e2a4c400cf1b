"""Connections without session state (PgBouncer may serve each transaction by another session), and bounded.

A server that freezes neither answers nor closes its connections: every wait for it has a deadline.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from streams.connectors.postgres.refused_login import refusal

if TYPE_CHECKING:
    from collections.abc import Generator

    from psycopg.abc import Params, PQGen

    from streams.connectors.sink import SinkContext

T = TypeVar("T")

ROUND_TRIP_SECONDS = 5.0
"""Added to the server's own time-outs, so that it reports them before the connection is abandoned."""


CONNECT_SECONDS = 10


class DeadlinePassed(Exception):
    """The server did not answer in time. The connection was abandoned."""


class LoginRefused(psycopg.OperationalError):
    """The server refuses the user, the password or the database, or a pooler refuses a parameter."""

    def __init__(self, error: psycopg.OperationalError, code: str | None) -> None:
        super().__init__(str(error))
        self.sqlstate = code


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection in autocommit mode, whose statements must be answered within ``patience`` seconds."""

    patience = 30.0
    own_session = False
    """Whether it is known that one session of the server executes all statements."""

    def wait(self, gen: PQGen[T], *arguments: Any, **keywords: Any) -> T:
        """Wait for the server, as psycopg does for every call, but not for ever."""
        return super().wait(self._bounded(gen), *arguments, **keywords)

    def run(self, statement: bytes, parameters: Params | None = None) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute without preparing: a prepared statement is state of the session."""
        return self.execute(statement, parameters, prepare=False)

    def _bounded(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        deadline = time.monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                # psycopg resumes it ten times a second, also while nothing arrives.
                ready = yield wanted
                if ready:
                    # One of several statements is answered, or a part of a large one is taken.
                    deadline = time.monotonic() + self.patience
                elif time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise DeadlinePassed(f"no answer in {self.patience:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


def log_in(conninfo: str, **options: Any) -> Connection:
    """Connect with further options of libpq and psycopg. Raises ``psycopg.Error``, also ``LoginRefused``."""
    try:
        return Connection.connect(conninfo, autocommit=True, prepare_threshold=None, **options)
    except psycopg.OperationalError as error:
        own = {name: value for name, value in options.items() if name in _OF_LIBPQ}
        code, lasts = refusal(error, psycopg.conninfo.make_conninfo(conninfo, **own), CONNECT_SECONDS)
        if lasts:
            raise LoginRefused(error, code) from error
        error.sqlstate = code
        raise


_OF_LIBPQ = {"application_name", "options"}
"""Options that a server, or a pooler, may refuse."""


def connect(dsn: str, context: SinkContext) -> Connection:
    """Connect as the worker. Raises ``psycopg.Error``, also ``LoginRefused``."""
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    seconds = max(1, round(context.lock_timeout))
    defaults: dict[str, Any] = {
        "application_name": f"streams {context.application} {context.name} {context.worker}"[:63],
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": seconds,
        "keepalives_interval": max(1, seconds // 3),
        "keepalives_count": 3,
        "tcp_user_timeout": seconds * 1000,
    }
    return log_in(
        dsn,
        client_encoding="utf8",
        **{name: value for name, value in defaults.items() if name not in given},
    )


def recognise_session(connection: Connection) -> None:
    """Find out whether the server at the other end is Postgres itself: a pooler names no process of it.

    Raises ``psycopg.Error``.
    """
    process = connection.run(b"select pg_backend_pid()").fetchone()
    connection.own_session = process == (connection.info.backend_pid,)


def beginning(context: SinkContext, statement_timeout: float) -> tuple[bytes, bytes]:
    """The statements that begin a transaction, and set what holds in it only.

    An owner that hangs loses its locks: in the middle of a transaction (``idle_in_transaction_…``), in a
    statement, or when its machine is gone (``tcp_…``).
    """
    lock_ms = max(1, round(context.lock_timeout * 1000))
    seconds = max(1, round(context.lock_timeout))
    settings = {
        "lock_timeout": f"{lock_ms}ms",
        "idle_in_transaction_session_timeout": f"{lock_ms}ms",
        "statement_timeout": f"{max(1, round(statement_timeout * 1000))}ms",
        "tcp_keepalives_idle": f"{seconds}s",
        "tcp_keepalives_interval": f"{max(1, seconds // 3)}s",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": f"{seconds}s",
        # Text without an offset or a unit has one meaning, whatever the role's and the database's settings.
        "timezone": "UTC",
        "datestyle": "ISO, YMD",
        "intervalstyle": "postgres",
        "standard_conforming_strings": "on",
    }
    # One call for all of them: each SET would be an answer of its own.
    local = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
    return b"begin isolation level read committed", f"select {local}".encode()
