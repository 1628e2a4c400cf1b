"""Rows of a query as a source: those that are new or changed since the last poll, by increasing columns.

Numbers from a sequence, and times of changes, become visible in another order than they were given: a
transaction may commit after another one that began later. So a poll notes which transactions are running, and
reads only up to what was there at that moment, and only after those transactions have ended.
"""

from __future__ import annotations

import builtins
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, overload

import msgspec
import psycopg

from streams.connectors.postgres.connection import DeadlinePassed, LoginRefused, beginning, connect
from streams.connectors.postgres.polling_statements import PollingStatements, read_only
from streams.connectors.postgres.server_errors import to_error
from streams.connectors.sink import SinkContext
from streams.connectors.source import PlainSource, SourceBatch, SourceHealth
from streams.durations import seconds, to_milliseconds
from streams.errors import ConfigurationError, ConnectorError, ConnectorUnavailable, SourceUnavailable
from streams.records import FetchedLists
from streams.serde import Json
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from streams.connectors.postgres.connection import Connection
    from streams.connectors.source import SourceContext
    from streams.serde import Serde

V = TypeVar("V")
Type: TypeAlias = builtins.type[V]

LOOK_SECONDS: Final = 0.1
"""The interval of checks whether transactions have ended."""

SLOW_SECONDS: Final = 60.0
"""After how long a wait for transactions is reported as a problem."""

STATEMENT_SECONDS: Final = 60.0
LOCK_SECONDS: Final = 30.0

ONE_SECOND, FIVE_SECONDS = seconds(1), seconds(5)


@dataclass(frozen=True, slots=True)
class _Polling(PlainSource, Generic[V]):
    """The options of a query that is polled."""

    dsn: str = field(repr=False)
    query: str
    value: Serde[V]
    order_by: tuple[str, ...]
    key_columns: tuple[str, ...]
    interval: timedelta
    lag: timedelta
    max_rows: int

    def __post_init__(self) -> None:
        if not self.order_by:
            raise ConfigurationError("order_by= needs at least one column")
        if to_milliseconds(self.interval, "PollingQuery: interval", least=1) < 1:
            raise ConfigurationError("interval= must be positive")
        to_milliseconds(self.lag, "PollingQuery: lag")
        if self.max_rows < 1:
            raise ConfigurationError(f"max_rows= must be positive, got {self.max_rows}")
        if ";" in self.query.strip()[-1:]:
            raise ConfigurationError("the query becomes part of another one: leave out the last ';'")
        try:
            psycopg.conninfo.conninfo_to_dict(self.dsn)
        except psycopg.ProgrammingError:
            # Its message may have a part of the string, and with it the password.
            raise ConfigurationError(
                "PollingQuery: the dsn is no connection string of libpq",
                hint='write "host=… dbname=… user=…" or "postgresql://user@host/database"',
            ) from None


class PollingQuery(_Polling[V]):
    """The rows of a query in Postgres, and again whenever they change, as JSON.

    ``order_by`` names the columns that together are unique, and increase with every new row (a number from a
    sequence) or with every change too (the time of the change, then the key). ``key_columns`` are the
    records' keys, as mappings. Values are mappings, or of ``type``; numerics are text, unless the type says
    ``Decimal``. The query is run every ``interval``, and a row is read after ``lag`` at the earliest.

    It never sees deletions; states that a row had between two polls; rows whose ``order_by`` is null, or a
    time that is not over; rows of a transaction that takes its number or time, then writes nothing for longer
    than ``lag``, and commits after others were read.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: PollingQuery[dict[str, Any]],
        dsn: str,
        query: str,
        type: None = None,
        *,
        order_by: str | Sequence[str],
        key_columns: str | Sequence[str] = (),
        interval: timedelta = ONE_SECOND,
        lag: timedelta = FIVE_SECONDS,
        max_rows: int = 2_000,
    ) -> None: ...

    @overload
    def __init__(
        self,
        dsn: str,
        query: str,
        type: Type[V],
        *,
        order_by: str | Sequence[str],
        key_columns: str | Sequence[str] = (),
        interval: timedelta = ONE_SECOND,
        lag: timedelta = FIVE_SECONDS,
        max_rows: int = 2_000,
    ) -> None: ...

    def __init__(
        self,
        dsn: str,
        query: str,
        type: Any = None,  # noqa: A002 - as of Json
        *,
        order_by: str | Sequence[str],
        key_columns: str | Sequence[str] = (),
        interval: timedelta = ONE_SECOND,
        lag: timedelta = FIVE_SECONDS,
        max_rows: int = 2_000,
    ) -> None:
        order, key = _names(order_by), _names(key_columns)
        super().__init__(dsn, query, Json(type), order, key, interval, lag, max_rows)

    @property
    def kind(self) -> str:
        """The system."""
        return "postgres"

    @property
    def tasks(self) -> int:
        return 1

    @property
    def key(self) -> Serde[Any]:
        return Json()

    def check(self, application: str, name: str) -> None:
        """Check that the query can be executed and has the columns."""
        PollingReader(self, application, name, b"", starting=True).close()

    def open(self, context: SourceContext) -> PollingReader:
        """Connect, and continue at the context's position."""
        return PollingReader(self, context.application, context.name, context.position)


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


@decodable
class Position(msgspec.Struct, frozen=True):
    """The last row that was read: the values of the ordered columns, as the server's text."""

    columns: tuple[str, ...]
    values: tuple[str, ...]


class PollState(Enum):
    """What a poll does next.

    ::

        RESTING ──note the bound──> WAITING ──transactions ended──> READING
           ^────────nothing new────────┘                               │
           └───────────────────────last page───────────────────────────┘
    """

    RESTING = "resting"
    """Until the interval is over."""
    WAITING = "waiting"
    """Until the transactions that were running at the bound have ended, and the lag is over."""
    READING = "reading"
    """Pages up to the bound."""


class PollingReader:
    """A ``SourceReader`` of a query."""

    def __init__(
        self,
        polling: _Polling[Any],
        application: str,
        name: str,
        position: bytes,
        *,
        starting: bool = False,
    ) -> None:
        self._polling = polling
        self._closed = threading.Event()
        self._using_connection = threading.Lock()
        # Sinks and sources connect in the same way: the lock's time-out bounds every wait.
        self._context = SinkContext(
            application=application, name=name, worker="source", lock_timeout=LOCK_SECONDS
        )
        self._position = self._restored(position)
        self._state = PollState.RESTING
        self._due = 0.0
        self._bound = ""
        self._transaction = ""
        self._noted_at = 0.0
        self._read_rows = 0
        self._polled_at = time.monotonic()
        with self._errors("connecting", starting=starting):
            self._connection = connect(polling.dsn, self._context)
        try:
            with self._errors("describing the query"), self._reading() as connection:
                self._statements = PollingStatements.of(
                    connection, polling.query, polling.order_by, polling.key_columns, polling.max_rows
                )
        except BaseException:
            self._connection.close()
            raise

    def read(self, timeout: float) -> SourceBatch | None:
        deadline = time.monotonic() + timeout
        while not self._closed.is_set():
            with self._using_connection:
                if self._closed.is_set():
                    break
                try:
                    batch, pause = self._step()
                except SourceUnavailable:
                    # Closing cancels what the server is doing.
                    if self._closed.is_set():
                        break
                    raise
            if batch is not None:
                return batch
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._closed.wait(min(left, pause))
        return None

    def confirm(self, position: bytes) -> None:
        """Nothing is kept for positions that are not committed."""

    def health(self) -> SourceHealth:
        now = time.monotonic()
        waiting = now - self._noted_at if self._state is PollState.WAITING else 0.0
        problem = ""
        if waiting > SLOW_SECONDS + self._polling.lag.total_seconds():
            problem = (
                f"for {waiting:.0f} s rows wait for transactions that were running when they were written: "
                "see pg_stat_activity for those that began before"
            )
        return SourceHealth(
            problem, {"waiting_seconds": waiting, "seconds_since_poll": now - self._polled_at}
        )

    def close(self) -> None:
        self._closed.set()
        with suppress(Exception):
            self._connection.cancel_safe(timeout=5.0)
        with self._using_connection, suppress(Exception):
            self._connection.close()

    def _restored(self, position: bytes) -> tuple[str, ...] | None:
        if not position:
            return None
        known = msgspec.json.decode(position, type=Position)
        if known.columns != self._polling.order_by:
            raise ConnectorError(
                f"the position of source {self._context.name!r} is of a query ordered by "
                f"{', '.join(known.columns)}, not {', '.join(self._polling.order_by)}",
                hint="order the query as before, or give the source another name to read all rows again",
            )
        return known.values

    def _step(self) -> tuple[SourceBatch | None, float]:
        """Go on with the poll: a batch, or after how many seconds to go on."""
        now = time.monotonic()
        if self._state is PollState.RESTING:
            if now < self._due:
                return None, self._due - now
            self._due = now + self._polling.interval.total_seconds()
            self._note_bound()
            return None, 0.0
        if self._state is PollState.WAITING:
            left = self._noted_at + self._polling.lag.total_seconds() - now
            if left > 0:
                return None, left
            if not self._transactions_ended():
                return None, LOOK_SECONDS
            self._state = PollState.READING
        return self._page(), 0.0

    def _note_bound(self) -> None:
        position = self._position
        with self._errors("looking for new rows"), self._reading() as connection:
            found = connection.run(
                self._statements.bound if position is None else self._statements.bound_after, position or ()
            ).fetchone()
        assert found is not None
        self._transaction, bound = found
        self._noted_at = self._polled_at = time.monotonic()
        if bound is not None:
            self._bound = bound
            self._state = PollState.WAITING

    def _transactions_ended(self) -> bool:
        with self._errors("asking for running transactions"), self._reading() as connection:
            found = connection.run(self._statements.ended, [self._transaction]).fetchone()
        assert found is not None
        return bool(found[0])

    def _page(self) -> SourceBatch | None:
        polling, position = self._polling, self._position
        with self._errors("reading rows"), self._reading() as connection:
            rows = connection.run(
                self._statements.page if position is None else self._statements.page_after,
                (*(position or ()), self._bound),
            ).fetchall()
        for (_, _, *before), (_, _, *after) in pairwise(rows):
            if before == after:
                raise ConnectorError(
                    f"two rows have the same {', '.join(polling.order_by)}: {', '.join(before)}",
                    hint="add the columns of the key to order_by=",
                )
        if len(rows) <= polling.max_rows:
            self._state = PollState.RESTING
        del rows[polling.max_rows :]
        if not rows:
            return None
        self._position = tuple(rows[-1][2:])
        now = time.time_ns() // 1_000_000
        first = self._read_rows
        self._read_rows += len(rows)
        records = FetchedLists(
            self._context.name,
            0,
            [None if row[1] is None else row[1].encode() for row in rows],
            [row[0].encode() for row in rows],
            [now] * len(rows),
            range(first, self._read_rows),
        )
        return SourceBatch(records, msgspec.json.encode(Position(polling.order_by, self._position)))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A transaction that writes nothing, with settings that make texts mean the same everywhere."""
        self._connection.run(read_only(*beginning(self._context, STATEMENT_SECONDS)))
        yield self._connection
        self._connection.run(b"commit")

    @contextmanager
    def _errors(self, doing: str, *, starting: bool = False) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, DeadlinePassed) as error:
            known = to_error(error, doing, starting=starting)
            if isinstance(known, ConnectorUnavailable):
                raise SourceUnavailable(known.message) from error
            if isinstance(error, LoginRefused):
                raise known from error
            raise ConnectorError(
                known.message, hint="correct the query, or grant its user the right to execute it"
            ) from error
