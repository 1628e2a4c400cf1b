"""Write lines to a topic as they arrive, each as a record."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from streams.errors import BrokerError, RecordRefused
from streams.ingest.lines import LONGEST_LINE

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Sequence

    from streams.ingest.line_records import LineRecords
    from streams.ingest.lines import LineReader, Lines
    from streams.process.stop_request import StopRequest
    from streams.records import Output

LOOK_SECONDS: Final = 0.2
"""Seconds between checks for a stop while no lines arrive."""

STOP_SECONDS: Final = 8.0
"""How long the broker may take, after a signal, to acknowledge everything that was read."""

REST_OF_PIPE: Final = 1 << 20
"""How many bytes are still read from a pipe after a signal: more than its default capacity."""


class RefusedLine(Protocol):
    """A line that the broker rejects. See ``streams.broker.kafka.writer.RefusedRow``."""

    @property
    def number(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def error(self) -> RecordRefused: ...


class Writer(Protocol):
    """Writes records outside of transactions. See ``streams.broker.kafka.writer.KafkaWriter``."""

    @property
    def acknowledged(self) -> int: ...
    def write(self, output: Output, first: int, waiting: Callable[[], None]) -> None: ...
    def settle(self, timeout: float | None, waiting: Callable[[], None]) -> None: ...
    def take_refused(self) -> Sequence[RefusedLine]: ...


class _TimeIsOver(Exception):
    """After a stop request, the broker has not acknowledged everything in time."""


@dataclass(slots=True)
class Ingestion:
    """Writes lines through a writer, and accounts for each of them.

    Every line read is acknowledged by the broker, refused, or counted in the error. ``records`` is the number
    acknowledged. With ``skip_refused``, lines that the broker rejects are skipped and counted, and ``report``
    is called with a message about each of the first ones.
    """

    writer: Writer
    shape: LineRecords
    stop: StopRequest
    report: Callable[[str], None]
    progress: Callable[[int, int], None] | None = None
    skip_refused: bool = False
    refused: int = 0
    unfinished: str | None = None
    """The place in a file where a signal stopped it; ``None`` if all files were read to their ends."""
    half_line: bool = False
    """Whether the last record is an incomplete line, whose end had not arrived before the signal."""
    _deadline: float | None = None

    @property
    def records(self) -> int:
        """The number of records that the broker has acknowledged."""
        return self.writer.acknowledged

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that stopped it, if any."""
        return self.stop.received

    def read(self, source: LineReader) -> None:
        """Write the lines of a source, to its end or until a signal.

        Raises ``RecordRefused`` for a line that the broker rejects, and ``BrokerError``; both say how many
        lines are acknowledged.
        """
        begun = self.writer.acknowledged + self.refused
        try:
            for lines in self._lines(source):
                if lines.too_long:
                    self._too_long(source, lines)
                if lines.values:
                    output = self.shape.records(lines.values, lines.milliseconds)
                    self.writer.write(output, lines.first, self._wait)
                if self.progress is not None:
                    self.progress(len(lines.values), lines.size)
                self._take_refused(source)
            # Settled before the next source, as rejected lines are reported by their number in this one.
            self.writer.settle(None, self._wait)
            self._take_refused(source)
        except _TimeIsOver:
            self._incomplete(
                source, begun, f"the broker did not answer within {STOP_SECONDS:.0f} s after the signal", None
            )
        except RecordRefused:
            raise
        except BrokerError as error:
            self._incomplete(source, begun, str(error), error)

    def _lines(self, source: LineReader) -> Iterator[Lines]:
        while not self.stop:
            lines = source.read(LOOK_SECONDS)
            if lines is None:
                return
            yield lines
        if source.is_file:
            self.unfinished = f"{source.name} after line {source.lines:,}"
            return
        # The content of a pipe cannot be read again, so it is written before stopping.
        left = REST_OF_PIPE
        while left > 0 and (lines := source.read(0)) is not None and lines.size:
            left -= lines.size
            yield lines
        rest = source.rest()
        if rest is not None:
            self.half_line = bool(rest.values)
            yield rest

    def _wait(self) -> None:
        """Check the time limit of a stop; called while waiting for the broker."""
        if self.stop:
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + STOP_SECONDS
            elif now >= self._deadline:
                raise _TimeIsOver

    def _too_long(self, source: LineReader, lines: Lines) -> None:
        self._refuse(
            f"line {lines.first - 1:,} of {source.name} has {lines.too_long:,} bytes, "
            f"the limit is {LONGEST_LINE:,}"
        )

    def _take_refused(self, source: LineReader) -> None:
        for row in self.writer.take_refused():
            self._refuse(
                f"the broker rejects line {row.number:,} of {source.name}, {row.size:,} bytes: {row.error}"
            )

    def _refuse(self, text: str) -> None:
        self.refused += 1
        if self.skip_refused:
            if self.refused <= 3:
                self.report(text)
            return
        self.writer.settle(STOP_SECONDS, self._wait)
        raise RecordRefused(
            f"{text}; {self.records:,} records are acknowledged",
            position=0,
            hint="use --on-refused skip to skip and count such lines",
        )

    def _incomplete(self, source: LineReader, begun: int, why: str, cause: Exception | None) -> None:
        here = self.records + self.refused - begun
        raise BrokerError(
            f"of {source.lines:,} lines read from {source.name}, {source.lines - here:,} are not "
            f"acknowledged, most likely the last ones: {why}",
            hint=f"{self.records:,} records are acknowledged in total",
        ) from cause
