"""Reads tables piece by piece, in a thread of its own, beside the reader of their changes."""

from __future__ import annotations

import enum
import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from streams.connectors.debezium.engine import Engine
from streams.connectors.debezium.postgres_capture import MESSAGE_PREFIX
from streams.connectors.debezium.reader import Head, decode_heads, in_snapshot
from streams.connectors.postgres.key_ranges import KeyRanges
from streams.errors import ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.connectors.debezium.engine import Delivery
    from streams.connectors.debezium.position import TableReading
    from streams.connectors.debezium.postgres_capture import PostgresCapture
    from streams.connectors.debezium.values import Column
    from streams.connectors.postgres.replication import TableState
    from streams.connectors.table_name import TableName

CHUNK_ROWS: Final = 10_000
FIRST_CHUNK_ROWS: Final = 1_000
CHUNK_BYTES: Final = 16_000_000
"""How large a chunk should be at most, as JSON: the next one has so many rows less. It is held in memory."""
SILENT_SECONDS: Final = 300.0
"""How long nothing may come of a chunk's rows."""
RETRY_SECONDS: Final = 2.0
LOG_EVERY: Final = 30.0
"""Seconds between two lines of the log about the progress of a table."""

_LOG: Final = logging.getLogger("streams.debezium")


class _TooLarge(Exception):
    """A chunk has far more bytes than it should have."""


@dataclass(slots=True)
class Piece:
    """Some rows of a chunk: as many as Debezium delivered together."""

    delivery: Delivery
    heads: list[Head]
    rows: list[int]


@dataclass(slots=True)
class Chunk:
    """The rows of a table in a range of keys, as of one moment."""

    table: TableName
    upto: list[str] | None
    """The last key of the range; ``None`` when it has no end."""
    pieces: deque[Piece] = field(default_factory=deque)
    columns: dict[int, dict[str, Column]] = field(default_factory=dict)
    """By the number of their schema."""
    size: int = 0
    """Of all rows, in bytes."""
    lsn: int = 0
    """An end of the log after that moment: all that the rows contain was committed before."""


class _State(enum.Enum):
    """The life of the thread.

    ::

        READING ──(all tables are read, or it failed)──> ENDED ──close──> CLOSED
           └───────────────────close──────────────────────────────────────^
    """

    READING = "reading"
    ENDED = "ended"
    CLOSED = "closed"


_NEXT: Final = {
    _State.READING: {_State.ENDED, _State.CLOSED},
    _State.ENDED: {_State.CLOSED},
    _State.CLOSED: {_State.CLOSED},
}


class TableChunks:
    """Reads tables one after the other, each from where its reading has got to.

    Each chunk is read by an engine of its own, with the properties of the source: so its values are like
    those of changes, and its transaction is short. It is begun again if the table was altered meanwhile.
    """

    def __init__(
        self,
        capture: PostgresCapture,
        application: str,
        name: str,
        identities: Mapping[str, str],
        readings: Mapping[TableName, TableReading],
    ) -> None:
        self._capture = capture
        self._application = application
        self._name = name
        self._identities = identities
        self._readings = readings
        self.problem = ""
        """Why the rows cannot be read now; empty while they can."""
        self._skipped: set[TableName] = set()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._state = _State.READING
        self._problem: BaseException | None = None
        self._chunks: queue.Queue[Chunk] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="debezium-tables", daemon=True)
        self._thread.start()

    def poll(self) -> Chunk | None:
        """The next chunk, if one is there. Raises what ended the thread."""
        try:
            return self._chunks.get_nowait()
        except queue.Empty:
            if self._problem is not None:
                raise self._problem from None
            return None

    @property
    def ended(self) -> bool:
        """Whether all has been read and polled, without a problem."""
        return self._state is _State.ENDED and self._problem is None and self._chunks.empty()

    def skip(self, table: TableName) -> None:
        """Nothing more of this table is needed."""
        self._skipped.add(table)

    def close(self) -> None:
        """End reading. Never raises; may be called twice."""
        self._enter(_State.CLOSED)
        self._ending.set()
        self._thread.join(1.0)

    def _enter(self, state: _State) -> None:
        with self._lock:
            if self._state is _State.CLOSED:
                return
            assert state in _NEXT[self._state], f"{self._state} cannot become {state}"
            self._state = state

    # --- the thread

    def _run(self) -> None:
        try:
            for table, reading in self._readings.items():
                self._read_table(table, reading)
        except BaseException as error:  # noqa: BLE001 - raised by poll, in the reader's thread
            self._problem = error
        self._enter(_State.ENDED)

    def _wanted(self, table: TableName) -> bool:
        return table not in self._skipped and not self._ending.is_set()

    def _read_table(self, table: TableName, reading: TableReading) -> None:
        after, rows, read = reading.after, FIRST_CHUNK_ROWS, reading.rows
        begin = logged = time.monotonic()
        _LOG.info("reading the table %s%s", table, "" if after is None else f", after the first {read} rows")
        waited = after is not None
        while self._wanted(table):
            try:
                # What is written to it now may be in the log already, and not visible yet.
                waited = waited or self._wait_for_writers(table)
                if not waited:
                    return
                chunk = self._read_chunk(table, after, rows)
            except _TooLarge:
                rows = max(1, rows // 8)
                continue
            except SourceUnavailable as error:
                # Changes are read on meanwhile.
                if self.problem != str(error):
                    _LOG.warning("reading the table %s: %s; it is tried again", table, error)
                self.problem = str(error)
                self._ending.wait(RETRY_SECONDS)
                continue
            self.problem = ""
            if chunk is None:
                continue
            count = sum(len(piece.rows) for piece in chunk.pieces)
            read += count
            if not self._hand_over(chunk):
                return
            after = chunk.upto
            if after is None:
                _LOG.info("read the table %s: %d rows in %.0f s", table, read, time.monotonic() - begin)
                return
            if time.monotonic() - logged > LOG_EVERY:
                logged = time.monotonic()
                _LOG.info("reading the table %s: %d rows in %.0f s", table, read, logged - begin)
            fitting = CHUNK_BYTES * count // chunk.size if chunk.size else CHUNK_ROWS
            rows = max(1, min(CHUNK_ROWS, 2 * rows, fitting))

    def _wait_for_writers(self, table: TableName) -> bool:
        """Wait until what is written to the table now, and may be in the log already, is visible."""
        said = False

        def proceed(seconds: float) -> bool:
            nonlocal said
            if seconds > LOG_EVERY and not said:
                said = True
                _LOG.warning("reading the table %s waits for a transaction that has written to it", table)
            return self._wanted(table)

        return KeyRanges(self._capture.conninfo, self._state_of(table)).wait_for_writers(proceed)

    def _state_of(self, table: TableName) -> TableState:
        (state,) = self._capture.replication.tables([table])
        if state.identity != self._identities[str(table)]:
            raise ConnectorError(
                f"{table} was dropped and created again, replaced by renaming, or has another key",
                hint=self._capture.again(self._name, table),
            )
        return state

    def _read_chunk(self, table: TableName, after: list[str] | None, rows: int) -> Chunk | None:
        """The next rows; ``None`` if the table was altered meanwhile, or is not wanted any more."""
        state = self._state_of(table)
        ranges = KeyRanges(self._capture.conninfo, state)
        layout = ranges.layout()
        upto = ranges.end(after, rows)
        self._capture.replication.require_readable([state], ranges.within(after, upto))
        chunk = Chunk(table, upto)
        try:
            complete = self._fill(chunk, state, ranges.select(after, upto))
        except SourceUnavailable:
            if ranges.layout() == layout:
                raise
            complete = False
        if not complete:
            return None
        if ranges.layout() != layout:
            _LOG.info("the table %s was altered or truncated: some of its rows are read again", table)
            return None
        chunk.lsn = self._capture.replication.mark(MESSAGE_PREFIX)
        return chunk

    def _fill(self, chunk: Chunk, state: TableState, select: str) -> bool:
        """Read the rows of a chunk; return whether they are complete."""
        properties = self._capture.properties_of_chunk(self._application, self._name, state, select)
        engine = Engine(properties, None)
        heard = time.monotonic()
        try:
            while self._wanted(chunk.table):
                delivery = engine.poll(0.2)
                if delivery is None:
                    if engine.problem:
                        raise SourceUnavailable(engine.problem)
                    if time.monotonic() - heard > SILENT_SECONDS:
                        raise SourceUnavailable("no rows come: Debezium hangs")
                    continue
                heard = time.monotonic()
                heads = decode_heads(delivery)
                rows = [row for row, head in enumerate(heads) if head.op == "r"]
                if rows:
                    schemas = {delivery.schemas[row] for row in rows}
                    chunk.columns |= {schema: engine.columns(schema) for schema in schemas}
                    chunk.pieces.append(Piece(delivery, heads, rows))
                    chunk.size += sum(map(len, delivery.values))
                if not in_snapshot(delivery.offset):
                    return True
                if chunk.size > 8 * CHUNK_BYTES and len(chunk.pieces) + len(rows) > 2:
                    raise _TooLarge
        finally:
            engine.close()
        return False

    def _hand_over(self, chunk: Chunk) -> bool:
        while self._wanted(chunk.table):
            try:
                self._chunks.put(chunk, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
