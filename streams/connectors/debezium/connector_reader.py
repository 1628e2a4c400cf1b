"""Reads the changes of tables at Debezium's own offsets, for databases whose positions are opaque."""

from __future__ import annotations

import re
import time
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from streams.connectors.debezium.engine import Engine
from streams.connectors.debezium.position import Position
from streams.connectors.debezium.reader import START_SECONDS, DebeziumReader, EventSource
from streams.connectors.debezium.values import Shape
from streams.errors import ConnectorError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.connectors.debezium.connector_capture import ConnectorCapture
    from streams.connectors.debezium.control import Control
    from streams.connectors.debezium.engine import Delivery
    from streams.connectors.debezium.reader import Head
    from streams.connectors.source import SourceBatch, SourceContext

INSPECT_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 10.0
"""After how long without a connection to the database the source is taken as cut off."""
_LOST: Final = re.compile(
    r"no longer available|purged|could not find first log file|is missing|history topic|oldest|"
    r"db history|schema isn't known|not in the (binlog|redo|archive)|no longer be in the oplog|"
    r"ChangeStreamHistoryLost",
    re.IGNORECASE,
)
_LASTING: Final = re.compile(
    r"access denied|permission|privilege|not enabled|must be|unknown database|login failed|invalid username|"
    r"couldn't be parsed|authenticat|not authorized",
    re.IGNORECASE,
)


class _Table(msgspec.Struct, rename="camel"):
    primary_key_column_names: list[str] = []


class _TableChange(msgspec.Struct):
    type: str = ""
    id: str = ""
    table: _Table | None = None


class _SchemaChange(msgspec.Struct, rename="camel"):
    """Of an event about a table's columns, what is used here."""

    source: EventSource = msgspec.field(default_factory=EventSource)
    ddl: str | None = None
    table_changes: list[_TableChange] | None = None


_RENAMED: Final = re.compile(r"\brename\s+(?!column\b|index\b|key\b)", re.IGNORECASE)
"""Of a table, not of something in it."""
_NEW_KEY: Final = "__debezium.newkey"
_SCHEMA_CHANGE: Final = msgspec.json.Decoder(_SchemaChange)


class ConnectorReader(DebeziumReader):
    """Continues at the offset that Debezium gave with the last committed event.

    What Debezium knew of the tables' columns at that offset is the source's state: without it, events written
    before a table was altered could not be read.
    """

    def __init__(self, capture: ConnectorCapture, context: SourceContext) -> None:
        super().__init__(capture, context.name)
        self._capture = capture
        self._inspected = time.monotonic()
        self._cut: Delivery | None = None
        """Ends with the deletion of a changed key: its creation, with the same offset, is in the next one."""
        committed = Position.decode(context.position)
        tables = dict.fromkeys(map(str, capture.tables), "")
        resumes = (
            committed.phase == "stream"
            and committed.label == capture.snapshot
            and set(committed.tables) == set(tables)
        )
        self._position = (
            committed
            if resumes
            else Position(
                snapshot=committed.snapshot + 1,
                label=capture.snapshot,
                number=committed.number,
                tables=tables,
            )
        )
        properties = capture.properties(context.application, context.name)
        self._server, self._tags = properties["topic.prefix"], properties["custom.metric.tags"]
        self._engine = Engine(
            properties,
            committed.offset if resumes else None,
            partition=committed.partition if resumes else None,
            history=zlib.decompress(context.state) if resumes and context.state else b"",
            jars=capture.jars,
        )

    @property
    def _connector(self) -> str:
        return self._capture.system

    @property
    def _database(self) -> str | None:
        return self._capture.database

    def _batch(self, delivery: Delivery) -> SourceBatch | None:
        cut, self._cut = self._cut, None
        if cut is not None:
            delivery = cut.followed_by(delivery)
        if _NEW_KEY in dict(delivery.headers.get(len(delivery.values) - 1, ())):
            self._cut = delivery
            return None
        return super()._batch(delivery)

    def _before_snapshot_ends(self, delivery: Delivery, heads: list[Head]) -> None:
        """Learn the keys of the tables, whose columns come before their rows."""
        for row, head in enumerate(heads):
            if not head.op:
                change = _SCHEMA_CHANGE.decode(delivery.values[row])
                for table, altered in self._captured(change):
                    if altered.table is not None:
                        self._require_key(table, altered.table, change)

    def _streaming(self) -> None:
        self._silent_from = time.monotonic() + START_SECONDS
        missing = [table for table, key in self._position.tables.items() if not key]
        if missing:
            raise ConnectorError(
                f"there is no table {', '.join(missing)} (dropped, or not visible to this user)"
            )

    def _unread(self, delivery: Delivery, heads: list[Head], rows: list[int]) -> Iterator[int | Control]:
        changes = set(rows)
        for row, head in enumerate(heads):
            if row in changes:
                yield row
            elif not head.op:
                yield from self._altered(_SCHEMA_CHANGE.decode(delivery.values[row]))

    def _altered(self, change: _SchemaChange) -> Iterator[Control]:
        """What follows from DDL: a table that was dropped has no rows, and another key or name is refused."""
        if change.source.snapshot not in {None, "false", False}:
            return
        self._require_not_renamed(change)
        for table, altered in self._captured(change):
            if altered.table is not None:
                self._require_key(table, altered.table, change)
            elif altered.type == "DROP":
                namespace, _, name = table.partition(".")
                source = msgspec.structs.replace(change.source, schema=namespace, table=name)
                yield self._control("dropped", source)
                # It may be created again, with another key.
                self._set_key(table, "")

    def _captured(self, change: _SchemaChange) -> Iterator[tuple[str, _TableChange]]:
        """The captured tables in an event, by their names."""
        for altered in change.table_changes or ():
            name = altered.id.replace('"', "")
            for table in self._position.tables:
                if name == table or name.endswith(f".{table}"):
                    yield table, altered

    def _require_not_renamed(self, change: _SchemaChange) -> None:
        text = change.ddl or ""
        if not _RENAMED.search(text):
            return
        for table in self._position.tables:
            _, _, name = table.partition(".")
            if re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", text, re.IGNORECASE):
                raise ConnectorError(
                    f"{table} was renamed, or replaced by renaming: {text.strip()[:200]}",
                    hint=self._capture.again(self._name),
                )

    def _require_key(self, table: str, columns: _Table, change: _SchemaChange) -> None:
        """Check that a table has a key, and the same one as before; remember it."""
        key = ", ".join(columns.primary_key_column_names)
        if self._capture.has_own_keys:
            key = "as configured"
        known = self._position.tables.get(table)
        if not key:
            raise ConnectorError(
                f"{table} has no primary key, by which its changes could be told apart",
                hint="ALTER TABLE … ADD PRIMARY KEY (…), or set the property message.key.columns",
            )
        if known and known != key:
            raise ConnectorError(
                f"{table} has another key, ({key}) instead of ({known}): {(change.ddl or '').strip()[:200]}",
                hint=self._capture.again(self._name),
            )
        if not known:
            self._set_key(table, key)

    def _set_key(self, table: str, key: str) -> None:
        tables = {**self._position.tables, table: key}
        self._position = msgspec.structs.replace(self._position, tables=tables)

    def _reached(self, delivery: Delivery, position: Position) -> Position:
        if position.phase == "snapshot":
            # One that is not finished begins again.
            return position
        return msgspec.structs.replace(
            position, offset=dict(delivery.offset), partition=dict(delivery.partition)
        )

    def _shape(self, source: EventSource, schema: int) -> Shape:  # noqa: ARG002 - of the contract
        return Shape(self._engine.columns(schema), full_identity=True, connector=self._connector)

    def _inspect(self) -> None:
        now = time.monotonic()
        if now - self._inspected < INSPECT_SECONDS:
            return
        self._inspected = now
        self._look()
        if now > self._silent_from:
            raise SourceUnavailable(f"Debezium has no connection to {self._connector}")

    def _heard(self) -> None:
        self._silent_from = time.monotonic() + SILENT_SECONDS

    def _look(self) -> tuple[str, dict[str, float]]:
        if self._position.phase == "snapshot":
            self._silent_from = time.monotonic() + START_SECONDS
            return "", {}
        found = self._engine.metrics(self._server, self._tags)
        if found.get("Connected"):
            self._heard()
            lag = found.get("MilliSecondsBehindSource", -1)
            return "", {"lag_seconds": max(0.0, lag / 1000)}
        if found:
            # It does not connect again by itself.
            self._silent_from = min(self._silent_from, time.monotonic() + SILENT_SECONDS)
        return f"Debezium has no connection to {self._connector}", {}

    def _failure(self, problem: str) -> ConnectorError | SourceUnavailable:
        if _LOST.search(problem):
            return ConnectorError(
                f"Debezium cannot continue: {problem}", hint=self._capture.again(self._name)
            )
        if _LASTING.search(problem):
            return ConnectorError(f"Debezium ended: {problem}")
        return SourceUnavailable(f"Debezium ended: {problem}")
