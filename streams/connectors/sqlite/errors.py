"""What SQLite's result codes mean to a sink."""

from __future__ import annotations

import sqlite3
from typing import Final

from streams.errors import ConnectorError, SinkUnavailable, StreamsError

REFUSING: Final = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_RANGE,
}
"""The row is at fault: repeating it is useless, and others can be written."""

PASSING: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
"""Another connection has the lock, the disk is full, and the like."""

LATER_NAMES: Final = {3091: "SQLITE_CONSTRAINT_DATATYPE"}
"""Codes that Python's module has no name for."""


def primary_code(error: Exception) -> int:
    """SQLite's result code without its extension; -1 for an error of Python's module."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def refuses_row(error: Exception) -> bool:
    """Whether the error is about the values of one row."""
    if not isinstance(error, sqlite3.Error):
        # A value that cannot be bound: an integer beyond 64 bits, text with a lone surrogate.
        return isinstance(error, OverflowError | ValueError | TypeError)
    code = primary_code(error)
    # A value of a type that the module does not know, or a text that is too long for it.
    return code in REFUSING if code >= 0 else isinstance(error, sqlite3.ProgrammingError | sqlite3.DataError)


def with_code(error: Exception) -> Exception:
    """The same error, whose message names SQLite's code."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return error
    name = LATER_NAMES.get(code) or getattr(error, "sqlite_errorname", str(code))
    return type(error)(f"{error} ({name})")


def to_error(error: Exception, path: str, doing: str) -> StreamsError:
    """The library's error for one that is not about a row."""
    what = f"SQLite database {path}: {doing}: {with_code(error)}"
    if primary_code(error) in PASSING:
        return SinkUnavailable(what)
    if primary_code(error) == sqlite3.SQLITE_ERROR:
        return ConnectorError(what, hint="make the table fit the rows, or the rows the table")
    return ConnectorError(what)
