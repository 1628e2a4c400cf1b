"""Drives a source as a worker does, without one: batches are processed, committed, confirmed, or lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streams import App, Record, key_value_store
from streams.connectors.change_avro import ChangeAvro
from streams.connectors.change_json import ChangeJson
from streams.connectors.source import SourceContext
from streams.durations import seconds
from streams.errors import SourceUnavailable
from streams.serde.basic import nullable
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streams.connectors.change import Change
    from streams.connectors.debezium import Debezium
    from streams.connectors.source import SourceBatch, SourceReader

DEADLINE = 120.0
"""Of a wait that does not end. A process's first engine needs 40 s where twenty programs share two cores."""


class Captured:
    """What a source's task writes, and the position that is committed with it.

    ``kill`` loses what was read and not committed, as a process that dies does.
    """

    def __init__(self, source: Debezium, name: str = "src", *, schemas: Path | None = None) -> None:
        self.position = b""
        self.state = b""
        self.changes: list[Change[Any]] = []
        """What came out downstream, in order."""
        self.keys_seen: list[Any] = []
        self.headers: list[dict[str, bytes | None]] = []
        self.reader: SourceReader | None = None
        self._name = name
        self.use(source)
        app = App("captured")
        records = app.stream("in", key=source.key, value=source.value)
        stores = [key_value_store(store, key=k, value=v) for store, (k, v) in source.stores.items()]
        changes = records.process(source.process, stores=stores)
        changes.to("out", key=source.key, value=source.value)
        self.from_avro: list[Change[Any]] = []
        """The changes as they are read again from Avro, with ``schemas``."""
        self._avro = None if schemas is None else ChangeAvro(schemas=schemas)
        if self._avro is not None:
            changes.to("avro", key=source.key, value=self._avro)
        self._driver = TopologyDriver(app)

    def use(self, source: Debezium) -> None:
        """Continue with a changed source."""
        self.source = source

    def close(self) -> None:
        self.kill()
        self._driver.close()

    def open(self) -> SourceReader:
        if self.reader is None:
            self.reader = self.source.open(
                SourceContext(
                    application="captured", name=self._name, task=0, position=self.position, state=self.state
                )
            )
        return self.reader

    def kill(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def read(self) -> SourceBatch | None:
        return self.open().read(0.2)

    def commit(self, batch: SourceBatch, *, confirm: bool = True) -> None:
        """Process a batch completely, as one transaction."""
        records = batch.records
        columns = zip(
            nullable(self.source.key.deserialize)(records.keys()),
            nullable(self.source.value.deserialize)(records.values()),
            records.timestamps(),
            records.headers() or [None] * len(records),
            strict=True,
        )
        rows = [Record(key, value, max(0, at), headers) for key, value, at, headers in columns]
        if rows:
            self._driver.send_all("in", rows, partition=0)
        self._take()
        self.position = batch.position
        if batch.state is not None:
            self.state = batch.state
        if confirm and self.reader is not None:
            self.reader.confirm(batch.position)

    def sweep(self) -> None:
        """Let the wall clock go on, for what the processor does bit by bit."""
        self._driver.advance(seconds(1))
        self._take()

    def until(
        self,
        reached: Callable[[], Any],
        *,
        confirm: bool = True,
        deadline: float = DEADLINE,
        reopen: bool = False,
    ) -> None:
        """Read and commit until a condition holds.

        ``reopen``: as a worker does, open the source again at the committed position when it is unavailable.
        """
        end = time.monotonic() + deadline
        while not reached():
            assert time.monotonic() < end, f"not reached; {len(self.changes)} changes, {self.changes[-3:]}"
            try:
                batch = self.read()
            except SourceUnavailable:
                if not reopen:
                    raise
                self.kill()
                continue
            if batch is not None:
                self.commit(batch, confirm=confirm)

    def streaming(self) -> None:
        """Read until the snapshot is complete."""
        self.until(lambda: b'"phase":"stream"' in self.position)

    def count(self, number: int) -> None:
        """Read until so many changes have come out in all."""
        self.until(lambda: len(self.changes) >= number)

    def table(self, name: str = "t") -> dict[Any, Any]:
        """The table that results from the changes in order, by the first column of the key."""
        rows: dict[Any, Any] = {}
        for change in self.changes:
            if change.source.table == name:
                row = change.before if change.op == "d" else change.after
                key = self.keys(name, row)
                if change.op == "d":
                    rows.pop(key, None)
                else:
                    rows[key] = change.after
        return rows

    def keys(self, name: str, row: Any) -> Any:
        return next(iter(row.values()))

    def operations(self, name: str = "t") -> list[str]:
        return [change.op for change in self.changes if change.source.table == name]

    def _take(self) -> None:
        if self._avro is not None:
            self.from_avro += [record.value for record in self._driver.read("avro", value=self._avro)]
        records = self._driver.read("out", value=ChangeJson())
        self.changes += [record.value for record in records]
        self.keys_seen += [record.key for record in records]
        self.headers += [dict(record.headers or ()) for record in records]
