"""Find the records that were queued and not delivered, and whether they were rejected themselves."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from confluent_kafka import KafkaError

from streams.broker import Refusal
from streams.broker.kafka.errors import REFUSED_BY_BROKER, TOO_LARGE
from streams.errors import RecordRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

    from streams.records import Headers, Output

BATCH_BYTES: Final = 61
"""The size of a batch without its records."""

MOST_RECORD_BYTES: Final = 32
"""The maximum size of a record without its key, value and headers: lengths, and offset and time deltas."""

MOST_HEADER_BYTES: Final = 8
"""The maximum additional size of a header, if its lengths take more than a byte each."""

NEAR_MILLISECONDS: Final = 60_000
"""An event time this close to the clock cannot be the reason for which a record is rejected."""

AHEAD_MILLISECONDS: Final = 3_540_000
"""An event time this far ahead may be the reason: ``message.timestamp.after.max.ms`` defaults to an hour."""

_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 - public names of the library


class Failure(NamedTuple):
    """A record that was not delivered."""

    error: KafkaError
    output: Output
    alone: bool
    """Whether it is certain that it was alone in its batch."""
    partition: int | None
    key: bytes | None
    value: bytes | None

    @property
    def collateral(self) -> bool:
        """Whether it only failed because of another record in its batch."""
        return self.error.code() == KafkaError._INVALID_DIFFERENT_RECORD  # noqa: SLF001 - a public name of the library

    @property
    def of_the_record(self) -> bool:
        """Whether the broker rejected the content of the record or of its batch."""
        return self.error.code() in REFUSED_BY_BROKER

    @property
    def too_large(self) -> bool:
        """Whether the record or its batch exceeds the topic's size limit."""
        return self.error.code() in TOO_LARGE

    @property
    def why(self) -> str:
        """The broker's reason."""
        return f"{self.error.str()} ({self.error.name()})"


class Sent:
    """The client's callback for records of an output that were not delivered; one for many records."""

    __slots__ = ("_alone", "_failures", "_output")

    def __init__(self, failures: list[Failure], output: Output, *, alone: bool = False) -> None:
        self._failures = failures
        self._output = output
        self._alone = alone

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        # Purged records belong to an aborted transaction.
        if error is not None and error.code() not in _PURGED:
            self._failures.append(
                Failure(error, self._output, self._alone, message.partition(), message.key(), message.value())
            )


def most_specific(failures: Sequence[Failure]) -> Failure:
    """The failure with the most specific reason."""
    return min(failures, key=lambda failure: (failure.collateral, failure.of_the_record))


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """The minimum size of a record in bytes, before compression."""
    size = (0 if key is None else len(key)) + (0 if value is None else len(value))
    for name, content in headers or ():
        size += 2 + len(name.encode()) + (0 if content is None else len(content))
    return size


def most_bytes(least: int, headers: Headers | None) -> int:
    """The maximum size in bytes of a record whose minimum size is ``least``."""
    return least + MOST_RECORD_BYTES + MOST_HEADER_BYTES * len(headers or ())


def named(failures: Sequence[Failure]) -> list[Failure]:
    """The failures of records that the broker certainly rejected themselves.

    Since Kafka 2.4 the broker names the records of a batch that it rejects (KIP-467). librdkafka 2.16 only
    passes this on if there are several: these have one code, whatever the reason, and the others of their
    batch another one. If it is a single record, all records of its batch have the batch's code, as with older
    brokers.
    """
    specified = {(failure.output.topic, failure.partition) for failure in failures if failure.collateral}
    return [
        failure
        for failure in failures
        if failure.of_the_record
        and (
            failure.alone
            or (
                failure.error.code() == KafkaError.INVALID_RECORD
                and (failure.output.topic, failure.partition) in specified
            )
        )
    ]


class NamedRefusal(NamedTuple):
    """A row that was rejected, with the client's error code."""

    output: Output
    row: int
    code: int
    error: RecordRefused

    @property
    def public(self) -> Refusal:
        """The refusal without the client's code."""
        return Refusal(self.output, self.row, self.error)


def refusals(failures: Sequence[Failure]) -> list[NamedRefusal]:
    """The rows that the broker rejected for what is in them.

    The client reports a record's key and value, not its row: among equal ones, those with event times
    furthest from now are taken. If several batches failed, all records of a batch may be reported for one of
    them: a record in which no reason is visible only counts once it was written alone.
    """
    counts: dict[int, dict[tuple[bytes, bytes], list[Failure]]] = defaultdict(lambda: defaultdict(list))
    outputs: dict[int, Output] = {}
    for failure in named(failures):
        outputs[id(failure.output)] = failure.output
        counts[id(failure.output)][failure.key or b"", failure.value or b""].append(failure)
    now = wall_clock()
    found = []
    for number, output in outputs.items():
        wanted = counts[number]
        rows: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
        for row, pair in enumerate(zip(output.keys, output.values, strict=True)):
            content = pair[0] or b"", pair[1] or b""
            if content in wanted:
                rows[content].append(row)
        for content, failed in wanted.items():
            times = output.timestamps
            candidates = sorted(rows[content], key=lambda row: abs(times[row] - now), reverse=True)
            for row, failure in zip(candidates, failed, strict=False):
                if failure.alone or conspicuous(output, row, now):
                    error = _refused(failure, output, row, now)
                    found.append(NamedRefusal(output, row, failure.error.code(), error))
    return found


def wall_clock() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def conspicuous(output: Output, row: int, now: int) -> bool:
    """Whether Kafka may reject a row: it has no key, or its event time is about an hour after ``now``."""
    return output.keys[row] is None or output.timestamps[row] > now + AHEAD_MILLISECONDS


def _refused(failure: Failure, output: Output, row: int, now: int) -> RecordRefused:
    topic, ahead = output.topic, (output.timestamps[row] - now) / 1000
    headers = None if output.headers is None else output.headers[row]
    size = record_bytes(output.keys[row], output.values[row], headers)
    reason = f"topic {topic} rejects a record of {size} bytes: {failure.why}"
    hints = []
    if failure.error.code() in TOO_LARGE:
        hints.append(f"raise max.message.bytes of {topic}, or write smaller records")
    if failure.error.code() in (KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP):
        if abs(ahead * 1000) > NEAR_MILLISECONDS:
            where = "ahead of" if ahead > 0 else "behind"
            reason += f"; its event time {output.timestamps[row]} is {abs(ahead):,.0f} s {where} this clock"
            side = "after" if ahead > 0 else "before"
            hints.append(f"raise message.timestamp.{side}.max.ms of {topic}, or correct the event time")
        if output.keys[row] is None:
            reason += "; it has no key"
            hints.append(f"a compacted topic needs records with keys (cleanup.policy of {topic})")
    return RecordRefused(reason, position=row, hint="; ".join(hints) or None)
