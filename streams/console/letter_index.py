"""The dead letters of an app, as the console keeps them: each is read once, and what became of it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.broker.range_reader import RangeReader
from streams.broker.reading import read_from
from streams.records import TopicPartition
from streams.replay.dead_letters.ledger import Ledger, LetterHistory, LetterState
from streams.replay.dead_letters.rows import LetterRow
from streams.runtime.letter import letters
from streams.runtime.retry_log import Result, decode_entry, decode_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.broker import Admin, Broker
    from streams.records import Fetched
    from streams.runtime.letter import Letter, LetterId
    from streams.runtime.retry_log import Entry

READ_SECONDS: Final = 60.0
"""How long one look reads at most; the next one continues."""

MOST_LETTERS: Final = 200_000
"""Dead letters that are kept, the newest ones of each partition."""

MESSAGE_CHARACTERS: Final = 500
"""Characters of an error's message that are kept of each: all of it is read with the dead letter itself."""


class LetterLine(NamedTuple):
    """A dead letter in a list."""

    id: LetterId
    state: LetterState
    tries: int
    step: str
    exception: str
    message: str
    """The beginning of the last error's message."""
    failed_at: int
    topic: str
    partition: int
    offset: int
    source: str
    """The topic from which the step's task has read it: another one where there is an internal topic."""
    key: bytes | None


@dataclass(slots=True)
class LetterGroup:
    """Dead letters of one step and one class of error. Times are milliseconds since the epoch."""

    step: str
    exception: str
    states: Counter[LetterState] = field(default_factory=Counter)
    first: int = sys.maxsize
    """When the first of those that are open or waiting failed."""
    last: int = 0
    tries: int = 0
    """The most tries of one of them."""
    example: str = ""
    """The message of the last one."""

    @property
    def count(self) -> int:
        """Those that are open or waiting."""
        return self.states[LetterState.OPEN] + self.states[LetterState.WAITING]

    def add(self, line: LetterLine) -> None:
        """Count one."""
        self.states[line.state] += 1
        if line.state in (LetterState.OPEN, LetterState.WAITING):
            self.first = min(self.first, line.failed_at)
            self.tries = max(self.tries, line.tries)
            if line.failed_at >= self.last:
                self.last, self.example = line.failed_at, line.message


class LetterList(NamedTuple):
    """All dead letters that are known at one moment."""

    version: int
    """Another number means other content."""
    time: int
    """When the topic was read, in milliseconds since the epoch."""
    lines: Sequence[LetterLine]
    """The last failure first."""
    groups: Sequence[LetterGroup]
    """The largest first."""
    complete: bool
    """Whether all was read that was there: a first look at many takes longer than one look may."""
    left_out: int
    """Offsets of older dead letters that are not kept."""
    problems: Sequence[str]
    """What could not be read, in sentences."""

    @property
    def states(self) -> Counter[LetterState]:
        """How many are in each state."""
        total: Counter[LetterState] = Counter()
        for group in self.groups:
            total += group.states
        return total


class _Kept(NamedTuple):
    id: LetterId
    step: str
    exception: str
    message: str
    written: int
    topic: str
    partition: int
    offset: int
    source: str
    key: bytes | None


class LetterIndex:
    """Reads an app's dead-letter topic, from where it was read last. Used from any thread."""

    def __init__(self, broker: Broker, application: str, topic: str) -> None:
        self.topic = topic
        self._broker = broker
        self._application = application
        self._lock = threading.Lock()
        self._list: LetterList | None = None
        self._begin("")

    def _begin(self, topic_id: str) -> None:
        self._topic_id = topic_id
        self._ledger = Ledger(self._broker, self._application)
        self._positions: dict[TopicPartition, int] = {}
        self._left_out: dict[TopicPartition, int] = {}
        self._kept: dict[TopicPartition, dict[int, _Kept]] = {}

    @property
    def latest(self) -> LetterList | None:
        """What was read last; ``None`` before the first time. Does not wait."""
        return self._list

    def update(self) -> LetterList:
        """Read what was added and what happened since the last call. Raises ``BrokerError``."""
        with self._lock:
            now = time.time_ns() // 1_000_000
            admin = self._broker.admin()
            try:
                topic_id = admin.topic_ids([self.topic]).get(self.topic, "")
                if topic_id != self._topic_id:
                    # It was deleted, and perhaps created again: its offsets are others.
                    self._begin(topic_id)
                if not topic_id:
                    self._list = LetterList(self._next_version(), now, (), (), True, 0, ())
                    return self._list
                leaderless = admin.without_leader([self.topic])
                count = admin.topics()[self.topic].partitions
                places = {TopicPartition(self.topic, number) for number in range(count)} - leaderless
                begins, ends = admin.beginning_offsets(places), admin.end_offsets(places)
            finally:
                admin.close()
            self._ledger.read()
            most = max(1, MOST_LETTERS // max(1, count))
            bounds = {place: max(begins[place], ends[place] - most) for place in places}
            self._left_out = {place: bound - begins[place] for place, bound in bounds.items()}
            self._forget_before(bounds)
            ranges = {
                place: (max(self._positions.get(place, 0), bounds[place]), ends[place]) for place in places
            }
            self._read(ranges)
            self._list = self._made(
                now,
                complete=all(self._positions[place] >= stop for place, (_, stop) in ranges.items()),
                problems=[
                    f"{place} has no leader: its dead letters cannot be read" for place in sorted(leaderless)
                ],
            )
            return self._list

    def row(self, partition: int, offset: int) -> LetterRow | None:
        """One dead letter, read again, complete; ``None`` if it is not there (any more).

        Raises ``BrokerError``.
        """
        place = TopicPartition(self.topic, partition)
        admin = self._broker.admin()
        try:
            topic_id = admin.topic_ids([self.topic]).get(self.topic)
            if topic_id is None or not _exists(admin, place, offset):
                return None
        finally:
            admin.close()
        deadline = time.monotonic() + READ_SECONDS
        with RangeReader(self._broker) as reader:
            found: list[Letter] = []
            for fetched in reader.read({place: (offset, offset + 1)}, deadline):
                found += letters(fetched, topic_id)
        for letter in found:
            if letter.application == self._application and letter.id.offset == offset:
                with self._lock:
                    self._ledger.read()
                    # As it is now: the ledger changes its own.
                    return LetterRow(letter, replace(self._ledger.history(letter.id)))
        return None

    def entries(self, letter: LetterId) -> list[tuple[int, Entry]]:
        """What the topic of retries still has about a dead letter, with the times of writing, oldest first.

        Raises ``BrokerError``.
        """
        admin = self._broker.admin()
        try:
            if not admin.topic_ids([self._ledger.topic.topic]):
                return []
            starts = admin.beginning_offsets([self._ledger.topic])
        finally:
            admin.close()
        suffix = f"/{letter}".encode()
        found = []
        for fetched in read_from(self._broker, starts):
            rows = [row for row, key in enumerate(fetched.keys()) if key is not None and key.endswith(suffix)]
            if not rows:
                continue
            columns = fetched.timestamps(rows), fetched.keys(rows), fetched.values(rows)
            for written, key, value in zip(*columns, strict=True):
                decoded = decode_key(key)
                entry = None if decoded is None or value is None else decode_entry(decoded[0], value)
                if entry is not None:
                    found.append((written, entry))
        return found

    def _forget_before(self, bounds: Mapping[TopicPartition, int]) -> None:
        for place, bound in bounds.items():
            kept = self._kept.get(place)
            if kept and next(iter(kept)) < bound:
                self._kept[place] = {offset: each for offset, each in kept.items() if offset >= bound}

    def _read(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> None:
        if all(start >= stop for start, stop in ranges.values()):
            self._positions.update({place: start for place, (start, _) in ranges.items()})
            return
        with RangeReader(self._broker) as reader:
            for fetched in reader.read(ranges, time.monotonic() + READ_SECONDS, self._positions):
                self._keep(fetched)

    def _keep(self, fetched: Fetched) -> None:
        kept = self._kept.setdefault(TopicPartition(fetched.topic, fetched.partition), {})
        for letter in letters(fetched, self._topic_id):
            # Several apps may share a topic.
            if letter.application == self._application:
                kept[letter.id.offset] = _Kept(
                    letter.id,
                    # Many share these texts.
                    sys.intern(letter.step),
                    sys.intern(letter.exception),
                    letter.message[:MESSAGE_CHARACTERS],
                    letter.written,
                    sys.intern(letter.topic),
                    letter.partition,
                    letter.offset,
                    sys.intern(letter.source.topic),
                    letter.record.key,
                )

    def _next_version(self) -> int:
        return 1 if self._list is None else self._list.version + 1

    def _made(self, now: int, *, complete: bool, problems: Sequence[str]) -> LetterList:
        lines = [
            _line(each, self._ledger.history(each.id))
            for kept in self._kept.values()
            for each in kept.values()
        ]
        lines.sort(key=lambda line: (-line.failed_at, line.id))
        before = self._list
        left_out = sum(self._left_out.values())
        if before is not None and lines == before.lines and left_out == before.left_out:
            return before._replace(time=now, complete=complete, problems=problems)
        groups: dict[tuple[str, str], LetterGroup] = {}
        for line in lines:
            place = line.step, line.exception
            group = groups.get(place)
            if group is None:
                group = groups[place] = LetterGroup(*place)
            group.add(line)
        return LetterList(
            self._next_version(),
            now,
            lines,
            sorted(groups.values(), key=lambda group: (-group.count, group.step, group.exception)),
            complete,
            left_out,
            problems,
        )


def _line(kept: _Kept, history: LetterHistory) -> LetterLine:
    exception, message, at = kept.exception, kept.message, kept.written
    outcome = history.outcome
    if outcome is not None and outcome.result is Result.FAILED:
        exception, message, at = outcome.exception, outcome.message[:MESSAGE_CHARACTERS], outcome.at
    return LetterLine(
        kept.id,
        history.state,
        history.tries,
        kept.step,
        exception,
        message,
        at,
        kept.topic,
        kept.partition,
        kept.offset,
        kept.source,
        kept.key,
    )


def _exists(admin: Admin, place: TopicPartition, offset: int) -> bool:
    description = admin.topics().get(place.topic)
    if description is None or not 0 <= place.partition < description.partitions:
        return False
    return admin.beginning_offsets([place])[place] <= offset < admin.end_offsets([place])[place]
