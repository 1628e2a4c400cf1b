"""What happened to each dead letter after it was written, from the topic ``<app>-retries``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from streams.broker import BEGINNING, NewTopic
from streams.broker.reading import read_from
from streams.records import Output
from streams.runtime.retry_log import (
    SETTINGS,
    Edit,
    Purge,
    Result,
    RetryOutcome,
    RetryRequest,
    decode_entry,
    decode_key,
    encode_entry,
    encode_key,
    kind_of,
    retry_topic,
)
from streams.runtime.topics import ANY_RECORD, COMPRESSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.broker import Broker
    from streams.runtime.letter import LetterId
    from streams.runtime.retry_log import Entry

FLUSH_SECONDS = 60.0

CHUNK_ENTRIES = 500
"""How many entries are written before they are acknowledged."""


class LetterState(StrEnum):
    """The states of a dead letter.

    ::

        OPEN ──retry──> WAITING ──processed──> RETRIED
          │ ^              │
          │ └──fails again─┘
          └──purge──> PURGED
    """

    OPEN = "open"
    """It became a dead letter, or has failed again in its last retry."""
    WAITING = "waiting"
    """A worker has been requested to retry it, and has not committed an outcome."""
    RETRIED = "retried"
    """Its step has processed it."""
    PURGED = "purged"
    """It was discarded."""


@dataclass(slots=True)
class LetterHistory:
    """The last entry of each kind about one dead letter."""

    request: int = 0
    """The number of the last request."""
    outcome: RetryOutcome | None = None
    edit: Edit | None = None
    purge: Purge | None = None

    @property
    def handled(self) -> int:
        """The number of the last request that has an outcome."""
        return 0 if self.outcome is None else self.outcome.number

    @property
    def tries(self) -> int:
        """How often the step has been given the record."""
        return 1 if self.outcome is None else self.outcome.tries

    @property
    def state(self) -> LetterState:
        if self.purge is not None and self.purge.number >= max(self.handled, self.request):
            return LetterState.PURGED
        if self.request > self.handled:
            return LetterState.WAITING
        if self.outcome is not None and self.outcome.result is Result.DONE:
            return LetterState.RETRIED
        return LetterState.OPEN

    def note(self, entry: Entry) -> None:
        """Take over a later entry."""
        if isinstance(entry, RetryRequest):
            self.request = max(self.request, entry.number)
        elif isinstance(entry, RetryOutcome):
            if entry.number > self.handled:
                self.outcome = entry
        elif isinstance(entry, Edit):
            self.edit = entry
        else:
            self.purge = entry


class Ledger:
    """The histories of an app's dead letters. ``read`` brings them up to date."""

    def __init__(self, broker: Broker, application: str) -> None:
        self.topic = retry_topic(application)
        self._broker = broker
        self._position = BEGINNING
        self._histories: dict[LetterId, LetterHistory] = {}

    def history(self, letter: LetterId) -> LetterHistory:
        """What is known of a dead letter."""
        return self._histories.get(letter) or LetterHistory()

    def read(self) -> None:
        """Read what was committed since the last call. Raises ``BrokerError``."""
        if not self._exists():
            return
        for fetched in read_from(self._broker, {self.topic: self._position}):
            for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                decoded = decode_key(key)
                entry = None if decoded is None or value is None else decode_entry(decoded[0], value)
                if decoded is not None and entry is not None:
                    self._histories.setdefault(decoded[1], LetterHistory()).note(entry)
            self._position = fetched.next_offset

    def write(self, entries: Sequence[tuple[LetterId, Entry]], at: int) -> None:
        """Write entries, in this order, at that time (milliseconds since the epoch).

        They are acknowledged in parts: if the command ends in between, the first ones are written. The topic
        is created if it does not exist. Raises ``BrokerError``.
        """
        if not entries:
            return
        self._create()
        producer = self._broker.producer()
        try:
            for start in range(0, len(entries), CHUNK_ENTRIES):
                chunk = entries[start : start + CHUNK_ENTRIES]
                keys = [encode_key(kind_of(entry), letter) for letter, entry in chunk]
                values = [encode_entry(entry) for _, entry in chunk]
                producer.produce(
                    Output(self.topic.topic, keys, values, [at] * len(chunk), partition=self.topic.partition)
                )
                producer.flush(FLUSH_SECONDS)
        finally:
            producer.close()

    def _exists(self) -> bool:
        admin = self._broker.admin()
        try:
            return bool(admin.topic_ids([self.topic.topic]))
        finally:
            admin.close()

    def _create(self) -> None:
        if self._exists():
            return
        admin = self._broker.admin()
        try:
            topic = NewTopic(
                name=self.topic.topic, partitions=1, settings=SETTINGS, wished=ANY_RECORD | COMPRESSED
            )
            admin.create_topics([topic])
        finally:
            admin.close()
