"""Records that were queued and not delivered: which they are, and whether the fault is their own."""

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
"""What a batch has besides its records."""

MOST_RECORD_BYTES: Final = 32
"""What a record has at most besides its key, value and headers: lengths, its place and time in the batch."""

MOST_HEADER_BYTES: Final = 8
"""What each header has at most besides, where its lengths are longer than a byte each."""

NEAR_MILLISECONDS: Final = 60_000
"""An event time this close to the clock is not why a record is refused."""

AHEAD_MILLISECONDS: Final = 3_540_000
"""An event time this far ahead may well be: the default of ``message.timestamp.after.max.ms`` is an hour."""

_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 - public names of the library


class Failure(NamedTuple):
    """A record that was not delivered."""

    error: KafkaError
    output: Output
    alone: bool
    """Whether it was alone in its batch for certain."""
    partition: int | None
    key: bytes | None
    value: bytes | None

    @property
    def collateral(self) -> bool:
        """Whether it failed only because of another record in its batch."""
        return self.error.code() == KafkaError._INVALID_DIFFERENT_RECORD  # noqa: SLF001 - a public name of the library

    @property
    def of_the_record(self) -> bool:
        """Whether the broker refused what is in the record, or in its batch."""
        return self.error.code() in REFUSED_BY_BROKER

    @property
    def too_large(self) -> bool:
        """Whether it, or its batch, is larger than the topic takes."""
        return self.error.code() in TOO_LARGE

    @property
    def why(self) -> str:
        """The broker's reason."""
        return f"{self.error.str()} ({self.error.name()})"


class Sent:
    """Called by the client for records of an output that were not delivered. One for many records."""

    __slots__ = ("_alone", "_failures", "_output")

    def __init__(self, failures: list[Failure], output: Output, *, alone: bool = False) -> None:
        self._failures = failures
        self._output = output
        self._alone = alone

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        # What was purged belongs to an aborted transaction.
        if error is not None and error.code() not in _PURGED:
            self._failures.append(
                Failure(error, self._output, self._alone, message.partition(), message.key(), message.value())
            )


def telling(failures: Sequence[Failure]) -> Failure:
    """The failure that tells most about all of them."""
    return min(failures, key=lambda failure: (failure.collateral, failure.of_the_record))


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers | None) -> int:
    """What a record has at least, in bytes, before compression."""
    size = (0 if key is None else len(key)) + (0 if value is None else len(value))
    for name, content in headers or ():
        size += 2 + len(name.encode()) + (0 if content is None else len(content))
    return size


def most_bytes(least: int, headers: Headers | None) -> int:
    """What a record has at most that has ``least``."""
    return least + MOST_RECORD_BYTES + MOST_HEADER_BYTES * len(headers or ())


def named(failures: Sequence[Failure]) -> list[Failure]:
    """The failures of records that the broker refused themselves, as far as that is certain.

    Since Kafka 2.4 the broker says which records of a batch it does not take (KIP-467). librdkafka 2.16
    passes that on where they are several: these have one code, whatever the reason, and the others of their
    batch another one. Where it is a single record, all of its batch have the batch's code, as with older
    brokers.
    """
    told = {(failure.output.topic, failure.partition) for failure in failures if failure.collateral}
    return [
        failure
        for failure in failures
        if failure.of_the_record
        and (
            failure.alone
            or (
                failure.error.code() == KafkaError.INVALID_RECORD
                and (failure.output.topic, failure.partition) in told
            )
        )
    ]


class NamedRefusal(NamedTuple):
    """A row that was refused, and the client's code for why."""

    output: Output
    row: int
    code: int
    error: RecordRefused

    @property
    def public(self) -> Refusal:
        """As those know it who know no codes."""
        return Refusal(self.output, self.row, self.error)


def refusals(failures: Sequence[Failure]) -> list[NamedRefusal]:
    """The rows that were refused for reasons of their own.

    The client gives back a record's key and value, not its number: among equal ones, those whose event times
    are furthest from now were refused. Of several batches that failed, one may have all its records named for
    one of them: where the reason cannot be seen in a record, it is to be written alone first.
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
    """Whether a row looks like what Kafka refuses: it has no key, or is about an hour ahead of ``now``."""
    return output.keys[row] is None or output.timestamps[row] > now + AHEAD_MILLISECONDS


def _refused(failure: Failure, output: Output, row: int, now: int) -> RecordRefused:
    topic, ahead = output.topic, (output.timestamps[row] - now) / 1000
    headers = None if output.headers is None else output.headers[row]
    size = record_bytes(output.keys[row], output.values[row], headers)
    reason = f"topic {topic} refuses a record of {size} bytes: {failure.why}"
    hints = []
    if failure.error.code() in TOO_LARGE:
        hints.append(f"raise max.message.bytes of {topic}, or write less")
    if failure.error.code() in (KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP):
        if abs(ahead * 1000) > NEAR_MILLISECONDS:
            where = "ahead of" if ahead > 0 else "behind"
            reason += f"; its event time {output.timestamps[row]} is {abs(ahead):,.0f} s {where} this clock"
            side = "after" if ahead > 0 else "before"
            hints.append(f"see message.timestamp.{side}.max.ms of {topic}, or give the record another time")
        if output.keys[row] is None:
            reason += "; it has no key"
            hints.append(f"a compacted topic takes no record without a key (cleanup.policy of {topic})")
    return RecordRefused(reason, position=row, hint="; ".join(hints) or None)
