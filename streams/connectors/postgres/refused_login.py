"""Why a server refuses a connection: its SQLSTATE, which libpq only puts into a trace of the protocol.

The text of the refusal is in the server's language, so it does not tell a wrong password from a server that
is starting.
"""

from __future__ import annotations

import os
import re
import select
import tempfile
import time
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import psycopg
from psycopg.pq import ConnStatus, PGconn, PollingStatus

if TYPE_CHECKING:
    from psycopg.pq import abc

_LASTING = ("28", "3D000", "42501")
"""Wrong password, no entry in pg_hba.conf; no such database; no right to connect."""

_NO_PASSWORD = "28P01"  # noqa: S105 - an SQLSTATE
"""What a server would answer to a client that has no password."""

_CODE = re.compile(rb"\tErrorResponse\t.*? C \"(\w{5})\"")

_OF_POOLERS = "08P01"
"""The only code of PgBouncer before version 1.21, whatever the reason."""

_LASTING_TEXT = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied|no such (user|database)|"
    r'database ".*" does not exist|unsupported startup parameter'
)
"""Of PgBouncer; and for a libpq before version 18, whose trace begins after the login."""


class Refusal(NamedTuple):
    """Why there is no connection. ``code`` is ``None`` if the server did not answer."""

    code: str | None
    lasts: bool
    """Whether it stays so until somebody changes the program or the server."""


def refusal(error: psycopg.OperationalError, conninfo: str, seconds: float) -> Refusal:
    """Why an attempt to connect failed with this error. Tries once more."""
    code = error.sqlstate or _traced(conninfo, seconds)
    if code is None or code == _OF_POOLERS:
        return Refusal(code, bool(_LASTING_TEXT.search(str(error))))
    return Refusal(code, code.startswith(_LASTING))


def _traced(conninfo: str, seconds: float) -> str | None:
    # The trace has what the client sent too: it is never on a disk where that can be avoided.
    with _memory() as trace:
        try:
            pgconn = PGconn.connect_start(conninfo.encode())
        except psycopg.Error:
            return None
        try:
            if pgconn.status == ConnStatus.BAD:
                return None
            pgconn.trace(trace.fileno())
            _connect(pgconn, time.monotonic() + seconds)
            pgconn.untrace()
            needs_password = pgconn.status == ConnStatus.BAD and pgconn.needs_password
        except psycopg.NotSupportedError:
            # Traces need Linux.
            return None
        finally:
            pgconn.finish()
        trace.seek(0)
        codes = _CODE.findall(trace.read())
    if codes:
        return str(codes[-1].decode())
    return _NO_PASSWORD if needs_password else None


def _connect(pgconn: abc.PGconn, deadline: float) -> None:
    """Connect until it succeeds, fails, or takes too long."""
    status = PollingStatus.WRITING
    while status not in {PollingStatus.OK, PollingStatus.FAILED}:
        left = deadline - time.monotonic()
        reading = [pgconn.socket] if status == PollingStatus.READING else []
        writing = [pgconn.socket] if status == PollingStatus.WRITING else []
        if left <= 0 or not any(select.select(reading, writing, [], left)):
            return
        status = PollingStatus(pgconn.connect_poll())


def _memory() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("trace"), "w+b")
    return tempfile.TemporaryFile()
