"""Dead letters with what happened to them since, as rows to select from."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from msgspec.structs import replace

from streams.broker.range_reader import RangeReader
from streams.broker.reading import TIMEOUT_SECONDS, find_partitions, read_to_end
from streams.errors import BrokerError, TopicError
from streams.records import TopicPartition
from streams.replay.dead_letters.ledger import Ledger, LetterHistory, LetterState
from streams.runtime.letter import Letter, Received, letters
from streams.runtime.retry_log import Result
from streams.topology.topic_format import TopicFormat, topic_format

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

    from streams.app import App
    from streams.broker import Broker
    from streams.records import Fetched
    from streams.topology.graph import Topology


@dataclass(frozen=True, slots=True)
class LetterRow:
    """A dead letter and its history."""

    letter: Letter
    history: LetterHistory

    @property
    def state(self) -> LetterState:
        return self.history.state

    @property
    def failed_again(self) -> bool:
        """Whether its last retry failed, so that the reason is that of the retry."""
        outcome = self.history.outcome
        return outcome is not None and outcome.result is Result.FAILED

    @property
    def exception(self) -> str:
        """The class of the last error."""
        outcome = self.history.outcome
        return outcome.exception if self.failed_again and outcome else self.letter.exception

    @property
    def message(self) -> str:
        """The text of the last error."""
        outcome = self.history.outcome
        return outcome.message if self.failed_again and outcome else self.letter.message

    @property
    def failed_at(self) -> int:
        """When it last failed, in milliseconds since the epoch."""
        outcome = self.history.outcome
        return outcome.at if self.failed_again and outcome else self.letter.written

    @property
    def note(self) -> str:
        """Why the last retry did not process it; empty unless it was refused."""
        outcome = self.history.outcome
        return outcome.message if outcome is not None and outcome.result is Result.REFUSED else ""

    @property
    def record(self) -> Received:
        """The record that a retry gives to the failing task, as edited."""
        record, edit = self.letter.record, self.history.edit
        return record if edit is None else replace(record, key=edit.key, value=edit.value)


Predicate: TypeAlias = Callable[[LetterRow], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters are meant. What is ``None`` or empty does not restrict.

    ``since`` and ``until`` are in milliseconds since the epoch, and compared with the time of the last
    failure; ``places`` are written ``partition:offset``.
    """

    states: Collection[LetterState] = (LetterState.OPEN, LetterState.WAITING)
    places: Collection[str] = ()
    step: str | None = None
    topic: str | None = None
    exception: str | None = None
    message: re.Pattern[str] | None = None
    since: int | None = None
    until: int | None = None
    predicate: Predicate | None = None

    def selects(self, row: LetterRow) -> bool:
        """Whether a row is meant."""
        letter = row.letter
        return (
            row.state in self.states
            and (not self.places or letter.id.place in self.places)
            and self.step in (None, letter.step)
            and self.topic in (None, letter.topic)
            and self.exception in (None, row.exception)
            and (self.message is None or self.message.search(row.message) is not None)
            and (self.since is None or row.failed_at >= self.since)
            and (self.until is None or row.failed_at < self.until)
            and (self.predicate is None or self.predicate(row))
        )


class DeadLetters:
    """The dead letters of one app on one cluster. ``topology`` is the app's, connected to its registry."""

    def __init__(self, app: App, broker: Broker, topology: Topology | None = None) -> None:
        self.app = app
        self.broker = broker
        self.topology = topology or app.topology
        self.ledger = Ledger(broker, app.name)
        self.topic = app.dead_letter_topic
        self._formats: dict[str, TopicFormat] = {}

    def rows(self, selection: Selection | None = None) -> Iterator[LetterRow]:
        """The selected rows, partition by partition in the order in which they were written; by default all.

        Raises ``TopicError`` if there is no dead-letter topic, and ``BrokerError``.
        """
        admin = self.broker.admin()
        try:
            topic_id = admin.topic_ids([self.topic]).get(self.topic)
        finally:
            admin.close()
        if topic_id is None:
            raise TopicError(
                f"there is no topic {self.topic}: no worker of app {self.app.name!r} has started yet",
                hint="check the cluster (bootstrap_servers) and the setting dead_letter_topic",
            )
        self.ledger.read()
        places = () if selection is None else selection.places
        for fetched in self._at(places) if places else read_to_end(self.broker, [self.topic]):
            for letter in letters(fetched, topic_id):
                # Several apps may share a topic.
                if letter.application == self.app.name:
                    row = LetterRow(letter, self.ledger.history(letter.id))
                    if selection is None or selection.selects(row):
                        yield row

    def _at(self, places: Collection[str]) -> Iterator[Fetched]:
        """The records at these places, and those between them, without the others of the topic."""
        existing = set(find_partitions(self.broker, [self.topic]))
        wanted: dict[TopicPartition, list[int]] = {}
        for text in places:
            partition, _, offset = text.partition(":")
            place = TopicPartition(self.topic, int(partition))
            if place in existing:
                wanted.setdefault(place, []).append(int(offset))
        admin = self.broker.admin()
        try:
            begins, ends = admin.beginning_offsets(wanted), admin.end_offsets(wanted)
        finally:
            admin.close()
        ranges = {
            place: (max(begins[place], min(offsets)), min(ends[place], max(offsets) + 1))
            for place, offsets in wanted.items()
        }
        reached: dict[TopicPartition, int] = {}
        with RangeReader(self.broker) as reader:
            yield from reader.read(ranges, time.monotonic() + TIMEOUT_SECONDS, reached)
        for place, (start, stop) in ranges.items():
            if reached[place] < stop and start < stop:
                raise BrokerError(f"{place} was not read to offset {stop} within {TIMEOUT_SECONDS:.0f} s")

    def format(self, letter: Letter) -> TopicFormat:
        """The serdes by which the failing task reads the record."""
        topic = letter.source.topic
        found = self._formats.get(topic)
        if found is None:
            # What the dead letter has of an internal topic is without the origin.
            found = topic_format(self.topology, self.app.name, topic)._replace(relayed=False)
            self._formats[topic] = found
        return found
