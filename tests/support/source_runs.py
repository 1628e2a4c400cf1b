"""Runs a source as the engine does, with every failure between the source's system and Kafka's commits."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from streams.connectors.source import SourceContext
from streams.errors import SourceUnavailable
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Self

    from streams.connectors.source import SourceBatch, SourceConnector, SourceReader


def read_on(reader: SourceReader) -> None:
    """Read until an error is raised."""
    while True:
        reader.read(0.05)


class SourceRun:
    """One task of a source. ``values`` and ``position`` are what Kafka has; a context manager.

    ::

        read ──> waiting ──process──> processed ──commit──> values, position

    ``crash`` loses what waits and what is processed. ``reopen`` keeps both, and continues after them.
    """

    def __init__(self, source: SourceConnector[Any, Any], *, name: str = "in", task: int = 0) -> None:
        self.source = source
        self.name = name
        self.task = task
        self.values: list[Any] = []
        self.keys: list[Any] = []
        self.offsets: list[int] = []
        self.position = b""
        self.waiting: deque[SourceBatch] = deque()
        self.processed: list[SourceBatch] = []
        self.zombies: list[SourceReader] = []
        self.reader: SourceReader | None = None

    @property
    def read_position(self) -> bytes:
        """After everything that was read."""
        unfinished = [*self.processed, *self.waiting]
        return unfinished[-1].position if unfinished else self.position

    def open(self) -> SourceReader:
        """The reader, opened if there is none."""
        if self.reader is None:
            self.reader = self.source.open(
                SourceContext(application="shop", name=self.name, task=self.task, position=self.read_position)
            )
        return self.reader

    def read(self, timeout: float = 0.0) -> bool:
        """Read a batch, if there is one."""
        try:
            batch = self.open().read(timeout)
        except SourceUnavailable:
            self.reopen()
            return False
        if batch is not None:
            self.waiting.append(batch)
        return batch is not None

    def process(self) -> None:
        if self.waiting:
            self.processed.append(self.waiting.popleft())

    def commit(self, *, confirm: bool = True) -> None:
        """Commit what is processed; without ``confirm``, the worker ends before the source hears of it."""
        for batch in self.processed:
            payloads = [payload for payload in batch.records.values() if payload is not None]
            self.values += self.source.value.deserialize(payloads)
            self.keys += batch.records.keys()
            self.offsets += batch.records.offsets()
            self.position = batch.position
        if self.processed and confirm and self.reader is not None:
            self.reader.confirm(self.position)
        self.processed.clear()

    def reopen(self) -> None:
        """The source was not available for a while."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def crash(self, *, zombie: bool = False) -> None:
        """Another worker takes over from the committed position; as a ``zombie``, the old reader reads on."""
        self.waiting.clear()
        self.processed.clear()
        if zombie and self.reader is not None:
            self.zombies.append(self.reader)
            self.reader = None
        else:
            self.reopen()

    def step(self, timeout: float = 0.0) -> bool:
        """Read, process and commit a batch."""
        found = self.read(timeout)
        while self.waiting:
            self.process()
        self.commit()
        return found

    def until(self, count: int) -> list[Any]:
        """Process batches until Kafka has this many values."""
        wait_until(lambda: len(self.values) >= count or (self.step(0.05) and False), what=f"{count} values")
        return self.values

    def drain(self) -> list[Any]:
        """Process everything that is there now."""
        while self.step():
            pass
        return self.values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in (*self.zombies, self.reader):
            if reader is not None:
                reader.close()
                reader.close()
