"""Files into a topic, a record a line."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.broker import Producer

CHUNK_LINES = 10_000
FLUSH_SECONDS = 60.0


def without_line_end(line: bytes) -> bytes:
    """The value that a line is."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def ingest_lines(
    file: BinaryIO,
    topic: str,
    producer: Producer,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write each line, without its line end, as the value of a record, and return how many there were.

    Records have no key, so they spread over the partitions; they are acknowledged when this returns.
    ``progress`` is told of each chunk's records and bytes, line ends included. Raises ``BrokerError``.
    """
    total = 0
    while lines := list(islice(file, CHUNK_LINES)):
        values = list(map(without_line_end, lines))
        # Time -1 has the broker's client fill in the time of writing.
        producer.produce(Output(topic, [None] * len(lines), values, [-1] * len(lines)))
        total += len(lines)
        if progress is not None:
            progress(len(lines), sum(map(len, lines)))
    producer.flush(FLUSH_SECONDS)
    return total
