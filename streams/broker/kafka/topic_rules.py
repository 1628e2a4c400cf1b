"""The limits of topics that have rejected records, so that the next such record aborts no transaction."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError

from streams.broker.kafka.deliveries import (
    BATCH_BYTES,
    conspicuous,
    most_bytes,
    record_bytes,
    wall_clock,
)
from streams.errors import BrokerError, ConfigurationError, RecordRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streams.broker.kafka.deliveries import Failure, NamedRefusal
    from streams.records import Output

REMEMBER_SECONDS: Final = 300.0
"""How long a topic's rules are used before they are read again, as its settings may change."""

SHRINK: Final = 16
"""The factor by which batches become smaller with each rejection that no known rule explains."""

LARGEST_BATCH: Final = 1_000_000
"""The maximum size of a batch with several records in bytes: the client's ``batch.size``."""

CLOCK_MILLISECONDS: Final = 2_000
"""The tolerated difference between the clocks of clients and brokers."""


@dataclass(slots=True)
class TopicRules:
    """The limits of a topic, as far as known from its settings, or from what it has rejected."""

    batch_bytes: int = LARGEST_BATCH + BATCH_BYTES
    """The maximum size of a batch in bytes."""
    exact: bool = False
    """Whether that is the topic's setting, so that a larger record is certainly rejected."""
    needs_keys: bool = False
    ahead: int | None = None
    """The maximum time in milliseconds by which an event time may be ahead of the clock."""
    rows: int = 0
    """The maximum number of records to write at a time, to find a rejected one; 0 for no limit."""
    asked: bool = False
    learnt: float = field(default_factory=time.monotonic)

    @classmethod
    def from_settings(cls, settings: Mapping[str, str]) -> TopicRules:
        """The rules that follow from a topic's settings. Raises ``KeyError`` or ``ValueError``."""
        created = settings["message.timestamp.type"] == "CreateTime"
        after = settings.get("message.timestamp.after.max.ms")
        return cls(
            batch_bytes=int(settings["max.message.bytes"]),
            exact=True,
            needs_keys="compact" in settings["cleanup.policy"],
            ahead=int(after) if created and after is not None else None,
            asked=True,
        )

    def first_refused(self, output: Output, *, compressed: bool) -> RecordRefused | None:
        """The error for the first row that the topic certainly rejects."""
        found = [
            error
            for error in (
                self._without_key(output),
                self._ahead_of_time(output),
                None if compressed else self._too_large(output),
            )
            if error is not None
        ]
        return min(found, key=lambda error: error.position, default=None)

    def _without_key(self, output: Output) -> RecordRefused | None:
        if not self.needs_keys or None not in output.keys:
            return None
        return RecordRefused(
            f"topic {output.topic} rejects records without a key",
            position=list(output.keys).index(None),
            hint=f"{output.topic} is compacted (cleanup.policy): set a key",
        )

    def _ahead_of_time(self, output: Output) -> RecordRefused | None:
        now = wall_clock()
        if self.ahead is None or max(output.timestamps, default=0) <= now + self.ahead + CLOCK_MILLISECONDS:
            return None
        latest = now + self.ahead + CLOCK_MILLISECONDS
        row = next(row for row, stamp in enumerate(output.timestamps) if stamp > latest)
        stamp = output.timestamps[row]
        return RecordRefused(
            f"topic {output.topic} rejects the event time {stamp}, which is {(stamp - now) / 1000:,.0f} s "
            "ahead of the clock",
            position=row,
            hint=f"raise message.timestamp.after.max.ms of {output.topic}, or correct the event time",
        )

    def _too_large(self, output: Output) -> RecordRefused | None:
        if not self.exact:
            return None
        largest = self.batch_bytes - BATCH_BYTES
        for row, size in enumerate(_sizes(output)):
            if size > largest:
                return RecordRefused(
                    f"topic {output.topic} rejects a record of {size} bytes: its max.message.bytes is "
                    f"{self.batch_bytes}",
                    position=row,
                    hint=f"raise max.message.bytes of {output.topic}, or write smaller records",
                )
        return None

    @property
    def in_parts(self) -> bool:
        """Whether rows must be written in parts, each after the previous one is acknowledged."""
        return bool(self.rows) or self.batch_bytes < LARGEST_BATCH + BATCH_BYTES

    def parts(self, output: Output, stop: int) -> Iterator[tuple[int, int]]:
        """Divide the rows before ``stop`` into parts that are small enough; yields (start, stop) of each.

        While a rejected row is being searched, conspicuous rows are alone in their part.
        """
        headers = output.headers
        now = wall_clock()
        start, size = 0, BATCH_BYTES
        for row, least in enumerate(_sizes(output)[:stop]):
            own = most_bytes(least, None if headers is None else headers[row])
            alone = bool(self.rows) and conspicuous(output, row, now)
            full = size + own > self.batch_bytes or row - start >= (self.rows or stop)
            if row > start and (full or alone):
                yield start, row
                start, size = row, BATCH_BYTES
            size += own
            if alone:
                yield start, row + 1
                start, size = row + 1, BATCH_BYTES
        if start < stop:
            yield start, stop


class AllTopicRules:
    """The rules of all topics that have rejected records; shared by the producers of a broker.

    ``settings`` reads a topic's settings, if the client has the right to. Otherwise the rejected records are
    found by writing fewer and fewer records at a time.
    """

    def __init__(self, settings: Callable[[str], Mapping[str, str]]) -> None:
        self._settings = settings
        self._rules: dict[str, TopicRules] = {}
        self._lock = threading.Lock()

    def of(self, topic: str) -> TopicRules | None:
        """The rules of a topic; ``None`` if it has not rejected any record recently."""
        rules = self._rules.get(topic)
        if rules is not None and time.monotonic() - rules.learnt > REMEMBER_SECONDS:
            with self._lock:
                self._rules.pop(topic, None)
            return None
        return rules

    def learn(
        self, failures: Sequence[Failure], refused: Sequence[NamedRefusal], *, compressed: bool
    ) -> None:
        """Update the rules from records that were not delivered, and those known to be the cause."""
        with self._lock:
            for topic in {failure.output.topic for failure in failures if failure.of_the_record}:
                rules = self._rules.get(topic)
                if rules is None or not rules.asked:
                    rules = self._rules[topic] = self._asked(topic) or rules or TopicRules()
                own = [failure for failure in failures if failure.output.topic == topic]
                named = [refusal for refusal in refused if refusal.output.topic == topic]
                _learn(rules, own, named, compressed=compressed)
                rules.learnt = time.monotonic()

    def _asked(self, topic: str) -> TopicRules | None:
        try:
            return TopicRules.from_settings(self._settings(topic))
        except (BrokerError, ConfigurationError, KeyError, ValueError):
            # Without the right to read the topic's settings, which an app need not have.
            return None


def _learn(
    rules: TopicRules, failures: Sequence[Failure], named: Sequence[NamedRefusal], *, compressed: bool
) -> None:
    rows = rules.rows
    # The rejected row was found, or a rule explains it from now on.
    rules.rows = 0
    for refusal in named:
        if refusal.code == KafkaError.INVALID_TIMESTAMP and not rules.asked:
            ahead = refusal.output.timestamps[refusal.row] - wall_clock() - CLOCK_MILLISECONDS
            if ahead > 0:
                rules.ahead = ahead if rules.ahead is None else min(rules.ahead, ahead)
    outputs = {id(failure.output): failure.output for failure in failures}
    if named or any(
        rules.first_refused(output, compressed=compressed) is not None for output in outputs.values()
    ):
        return
    large = [failure for failure in failures if failure.too_large]
    if large and rules.exact and not rules.in_parts:
        # The topic's setting allows larger batches than the client makes, so another limit is the cause.
        rules.exact, rules.batch_bytes = False, LARGEST_BATCH // SHRINK
    elif large and not rules.exact:
        size = sum(most_bytes(record_bytes(failure.key, failure.value, None), None) for failure in large)
        rules.batch_bytes = max(min(size, rules.batch_bytes, LARGEST_BATCH) // SHRINK, 1)
    elif not large:
        rules.rows = max(1, (rows or len(failures)) // SHRINK)


def _sizes(output: Output) -> list[int]:
    headers = [None] * len(output) if output.headers is None else output.headers
    return list(map(record_bytes, output.keys, output.values, headers))
