"""Reads sources as the engine does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.connectors.source import SourceContext
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Self

    from streams.connectors.source import SourceConnector, SourceReader


class Reading:
    """A source that is read, committed and restarted by a test. It is a context manager."""

    def __init__(self, source: SourceConnector[Any, Any]) -> None:
        self.source = source
        self.committed = b""
        self.values: list[Any] = []
        """Decoded values of committed batches; the error's class for a value that cannot be decoded."""
        self.offsets: list[int] = []
        self.reader: SourceReader = self._opened()

    def _opened(self) -> SourceReader:
        return self.source.open(SourceContext(application="shop", name="in", task=0, position=self.committed))

    def restart(self) -> None:
        self.reader.close()
        self.reader = self._opened()

    def step(self, *, commit: bool = True) -> bool:
        """Process the next batch, if there is one now; without ``commit`` it is lost with a restart."""
        batch = self.reader.read(0.0)
        if batch is None:
            return False
        if commit:
            for payload in batch.records.values():
                assert payload is not None
                try:
                    self.values += self.source.value.deserialize([payload])
                except Exception as error:  # noqa: BLE001 - any error makes a dead letter
                    self.values.append(type(error).__name__)
            self.offsets += batch.records.offsets()
            self.committed = batch.position
            self.reader.confirm(batch.position)
        return True

    def drain(self) -> list[Any]:
        """Process everything that is there now; returns all values so far."""
        while self.step():
            pass
        return self.values

    def until(self, count: int) -> list[Any]:
        """Process batches until there are this many values."""
        wait_until(lambda: self.step() and len(self.values) >= count, what=f"{count} values")
        return self.values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.reader.close()
