"""What an error of the server means: by its SQLSTATE, never by its text, which may be translated."""

from __future__ import annotations

import psycopg

from streams.connectors.postgres.connection import DeadlinePassed, LoginRefused
from streams.errors import ConnectorError, SinkUnavailable, StreamsError
from streams.redaction import scrub

_OF_THE_DATA = ("22", "23", "44", "54", "P0", "38", "39")
"""Classes of errors whose cause is in the row: values, constraints, limits, and what triggers raise."""

_FOR_NOW = ("08", "25", "40", "53", "55", "57", "58", "XX")
"""Classes that pass: connection, read-only, rolled back, resources, locks, shutdown and time-outs, system."""

_SAME_ROW_TWICE = "21000"
"""Two rows of a statement have keys that differ here and are equal for the server (1 and 1.0, citext)."""

_STATEMENT_MODE = "not allowed in statement pooling mode"
"""Of PgBouncer, whose errors are not translated."""

_SERVER_GONE = {"57P01", "57P02", "57P03", "25P03", "25P04"}


class RowError(ValueError):
    """The error of a refused row: the server's message, with its SQLSTATE."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def is_of_the_data(error: psycopg.Error) -> bool:
    """Whether a row of the statement is the cause, so that the other rows may be written without it."""
    code = error.sqlstate
    if code is None:
        # The driver refuses values too. Without a code, only these are not about the connection.
        return isinstance(error, psycopg.DataError)
    return code.startswith(_OF_THE_DATA) or code == _SAME_ROW_TWICE


def row_error(error: psycopg.Error) -> RowError:
    """The error of a row for its dead letter."""
    diagnostic = error.diag
    parts = [diagnostic.message_primary or str(error)]
    if diagnostic.message_detail:
        parts.append(diagnostic.message_detail)
    if diagnostic.column_name:
        parts.append(f"column {diagnostic.column_name}")
    if diagnostic.constraint_name:
        parts.append(f"constraint {diagnostic.constraint_name}")
    code = f"SQLSTATE {error.sqlstate}: " if error.sqlstate else ""
    return RowError(code + "; ".join(parts), error.sqlstate)


def to_error(error: psycopg.Error | DeadlinePassed, doing: str, *, starting: bool = False) -> StreamsError:
    """The error that tells the worker whether to repeat the transaction or to end.

    ``starting`` says that there was no connection yet. Later, a password is refused because it was changed,
    or a database while it is restored: that is waited out, as other outages are.
    """
    text = scrub(str(error)).strip()
    if isinstance(error, DeadlinePassed):
        return SinkUnavailable(f"while {doing}, Postgres did not answer: {text}")
    code = error.sqlstate
    if isinstance(error, LoginRefused):
        refused = f"while {doing}, Postgres refused: {f'SQLSTATE {code}: ' if code else ''}{text}"
        return ConnectorError(refused, hint=_login_hint(text)) if starting else SinkUnavailable(refused)
    if _STATEMENT_MODE in text:
        return ConnectorError(
            f"while {doing}: {text}",
            hint="the sink needs transactions: connect to a pool of PgBouncer with pool_mode = transaction",
        )
    if code is None:
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            return SinkUnavailable(f"while {doing}, there was no connection to Postgres: {text}")
        return ConnectorError(f"while {doing}, Postgres could not be used: {text}")
    message = f"while {doing}, Postgres refused: SQLSTATE {code}: {text}"
    if code.startswith(_FOR_NOW):
        return SinkUnavailable(message)
    return ConnectorError(message, hint=_hint(code))


def ends_connection(error: psycopg.Error) -> bool:
    """Whether the connection ended with the error, so that it is not known what the server did."""
    return error.sqlstate is None or error.sqlstate in _SERVER_GONE or error.sqlstate.startswith("08")


def _login_hint(text: str) -> str:
    if "unsupported startup parameter" in text:
        return (
            "PgBouncer does not pass it on: take it out of the dsn, and set it with ALTER ROLE … SET on the "
            "server, or connect to the server itself"
        )
    return "check the user, the password and the database in the dsn, and the user's right to CONNECT"


def _hint(code: str) -> str:
    if code == "42501":
        return "grant the sink's role SELECT, INSERT, UPDATE and DELETE on the table and on the positions"
    if code.startswith("42"):
        return (
            "compare the table with the fields of the values; the worker reads its columns again when started"
        )
    if code.startswith("3F"):
        return 'name the schema, and grant the sink\'s role USAGE on it: table="public.customers"'
    return "see the SQLSTATE in the appendix of PostgreSQL's documentation"
