"""Reads a page of a topic's records: from the newest ones backwards, or from a place on; with a deadline."""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.broker.range_reader import RangeReader
from streams.console.moments import parse_moment
from streams.console.record_parts import Part, header_texts, key_part, value_part
from streams.errors import TopicError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streams.broker import Admin, Broker, Isolation
    from streams.console.formats import ValueFormat
    from streams.console.record_parts import Search
    from streams.records import Fetched, Headers
    from streams.topology.topic_format import TopicFormat

PAGE_RECORDS: Final = 50
SEARCH_SECONDS: Final = 5.0
"""How long one page reads at most: the next one continues."""

MOST_OFFSETS: Final = 100_000
"""Offsets of all partitions that are read at once, backwards: few first, as records may be large."""

ORDERED_PARTITIONS: Final = 32
"""Up to so many partitions, the newest records are those of the topic; of more, those of each partition."""

PART_OF_TIME: Final = 0.7
"""The part of the time left that reading the next ones may take, by the rate so far."""

LISTED_PARTITIONS: Final = 100
"""Partitions whose places a link can have. Of a topic with more, a page is of one partition."""


class FoundRecord(NamedTuple):
    """A record of a page."""

    place: TopicPartition
    offset: int
    timestamp: int | None
    """In milliseconds since the epoch."""
    key: Part
    value: Part
    headers: Sequence[tuple[str, str]]
    bytes: int
    """Size of key and value."""


class Wanted(NamedTuple):
    """Which records a page has. ``places`` are offsets by partition: before or from which it reads."""

    topic: str
    partition: int | None
    newest_first: bool
    places: tuple[tuple[int, int], ...]
    """Where a page before has stopped; empty to begin."""
    offset: int | None
    time: str
    """Where to begin, forwards: an offset, or a time or an age."""
    isolation: Isolation
    search: Search


class FoundPage(NamedTuple):
    """Records of a page, and where the next one begins."""

    records: Sequence[FoundRecord]
    next: tuple[tuple[int, int], ...]
    """The offset of each partition before which (or from which, forwards) there is more; empty at the end."""
    read: int
    """Offsets that were read."""
    late: bool
    """Whether the time was over before the page was full."""
    problems: Sequence[str]
    """Partitions that could not be read, in sentences."""
    bounds: Mapping[int, tuple[int, int]]
    """Beginning and end of each partition that was read."""


class PartitionBounds(NamedTuple):
    """A partition's first offset and its end; ``None`` where they are not known, as ``problem`` says."""

    partition: int
    beginning: int | None
    end: int | None
    problem: str = ""


def partition_bounds(admin: Admin, topic: str, isolation: Isolation) -> list[PartitionBounds]:
    """The bounds of all partitions: one without a leader costs no other one its figures.

    Raises ``TopicError`` for a topic that does not exist, and ``BrokerError``.
    """
    description = admin.topics().get(topic)
    if description is None:
        raise TopicError(f"there is no topic {topic!r}")
    places = [TopicPartition(topic, number) for number in range(description.partitions)]
    leaderless = admin.without_leader([topic])
    led = [place for place in places if place not in leaderless]
    beginnings, ends = admin.beginning_offsets(led), admin.end_offsets(led, isolation)
    return [
        PartitionBounds(place.partition, None, None, "no broker leads it now")
        if place in leaderless
        else PartitionBounds(place.partition, beginnings[place], ends[place])
        for place in places
    ]


def read_page(broker: Broker, form: TopicFormat, values: ValueFormat, wanted: Wanted) -> FoundPage:
    """Read the records of a page. Raises ``TopicError`` and ``BrokerError``."""
    deadline = time.monotonic() + SEARCH_SECONDS
    admin = broker.admin()
    try:
        known = partition_bounds(admin, wanted.topic, wanted.isolation)
        if wanted.partition is not None:
            known = [item for item in known if item.partition == wanted.partition]
            if not known:
                raise TopicError(f"topic {wanted.topic} has no partition {wanted.partition}")
        problems = [f"partition {item.partition}: {item.problem}" for item in known if item.problem]
        bounds = {
            TopicPartition(wanted.topic, item.partition): (item.beginning, item.end)
            for item in known
            if item.beginning is not None and item.end is not None
        }
        reading = _Reading(broker, form, values, wanted, bounds, deadline)
        if wanted.newest_first:
            reading.backwards()
        else:
            reading.forwards(_starts(admin, wanted, bounds))
    finally:
        admin.close()
    return FoundPage(
        reading.found,
        tuple(sorted((place.partition, offset) for place, offset in reading.rest.items())),
        reading.read,
        reading.late,
        problems,
        {place.partition: bound for place, bound in bounds.items()},
    )


def read_record(broker: Broker, place: TopicPartition, offset: int) -> tuple[Row | None, PartitionBounds]:
    """One record, and the bounds of its partition. Raises ``TopicError`` and ``BrokerError``."""
    admin = broker.admin()
    try:
        # Of open transactions too: whoever has its address knows that it is there.
        known = partition_bounds(admin, place.topic, "read_uncommitted")
    finally:
        admin.close()
    bounds = next((item for item in known if item.partition == place.partition), None)
    if bounds is None:
        raise TopicError(f"topic {place.topic} has no partition {place.partition}")
    if bounds.beginning is None or bounds.end is None or not bounds.beginning <= offset < bounds.end:
        return None, bounds
    with RangeReader(broker, "read_uncommitted") as reader:
        for fetched in reader.read({place: (offset, offset + 1)}, time.monotonic() + SEARCH_SECONDS):
            for row in _rows(fetched):
                if row.offset == offset:
                    return row, bounds
    return None, bounds


class Row(NamedTuple):
    """A record as it was fetched."""

    place: TopicPartition
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers | None


def shown(values: ValueFormat, form: TopicFormat, row: Row) -> FoundRecord:
    """A record as pages show it."""
    return FoundRecord(
        row.place,
        row.offset,
        None if row.timestamp < 0 else row.timestamp,
        key_part(values, form, row.key, row.headers),
        value_part(values, form, row.key, row.value, row.headers),
        header_texts(values, row.headers),
        len(row.key or b"") + len(row.value or b""),
    )


def _rows(fetched: Fetched) -> Iterable[Row]:
    place = TopicPartition(fetched.topic, fetched.partition)
    headers = fetched.headers() or [None] * len(fetched)
    columns = fetched.offsets(), fetched.timestamps(), fetched.keys(), fetched.values(), headers
    return (Row(place, *columns) for columns in zip(*columns, strict=True))


def _starts(
    admin: Admin, wanted: Wanted, bounds: Mapping[TopicPartition, tuple[int, int]]
) -> dict[TopicPartition, int]:
    if wanted.places:
        known = dict(wanted.places)
        # A partition that a page before has read to its end is not among them.
        starts = {place: known.get(place.partition, end) for place, (_, end) in bounds.items()}
    elif wanted.time:
        moment = parse_moment(wanted.time, time.time_ns() // 1_000_000)
        starts = admin.offsets_for_times(dict.fromkeys(bounds, moment), wanted.isolation)
    else:
        starts = dict.fromkeys(bounds, wanted.offset or 0)
    return {place: min(max(start, bounds[place][0]), bounds[place][1]) for place, start in starts.items()}


class _Reading:
    """The records of one page, while it is read."""

    def __init__(
        self,
        broker: Broker,
        form: TopicFormat,
        values: ValueFormat,
        wanted: Wanted,
        bounds: Mapping[TopicPartition, tuple[int, int]],
        deadline: float,
    ) -> None:
        self._broker = broker
        self._form = form
        self._values = values
        self._wanted = wanted
        self._bounds = bounds
        self._deadline = deadline
        self.found: list[FoundRecord] = []
        self.rest: dict[TopicPartition, int] = {}
        """Where the next page begins."""
        self.read = 0
        self.late = False

    def _matching(self, fetched: Fetched) -> list[Row]:
        search = self._wanted.search
        rows = _rows(fetched)
        if not search:
            return list(rows)
        values, form = self._values, self._form
        return [row for row in rows if search.matches(values, form, row.key, row.value, row.headers)]

    def backwards(self) -> None:
        """Read windows before the ends, each further back, until enough is found."""
        known = dict(self._wanted.places)
        begins = {place: begin for place, (begin, _) in self._bounds.items()}
        tops = {
            # A partition that was read to its beginning is not among the places.
            place: min(end, known.get(place.partition, begins[place] if known else end))
            for place, (_, end) in self._bounds.items()
        }
        rows: dict[TopicPartition, list[Row]] = {}
        # What a search finds may lie anywhere: it is in the order in which it was found.
        ordered = not self._wanted.search and len(tops) <= ORDERED_PARTITIONS
        bounds = begins if ordered else dict(tops)
        total, began = PAGE_RECORDS, time.monotonic()
        with RangeReader(self._broker, self._wanted.isolation) as reader:
            while len(_newest(rows, tops, bounds)[0]) < PAGE_RECORDS:
                ranges = _windows(tops, begins, total)
                if not ranges:
                    break
                window: list[Row] = []
                reached: dict[TopicPartition, int] = {}
                for fetched in reader.read(ranges, self._deadline, reached):
                    window += self._matching(fetched)
                if any(reached[place] < stop for place, (_, stop) in ranges.items()):
                    # The time is over: the next page reads this window again.
                    self.late = True
                    break
                for row in reversed(window):
                    rows.setdefault(row.place, []).append(row)
                self.read += sum(stop - start for start, stop in ranges.values())
                tops.update({place: start for place, (start, _) in ranges.items()})
                now = time.monotonic()
                rate = self.read / max(0.001, now - began)
                total = round(min(total * 4, MOST_OFFSETS, rate * (self._deadline - now) * PART_OF_TIME))
                if total < PAGE_RECORDS:
                    self.late = len(_newest(rows, tops, bounds)[0]) < PAGE_RECORDS
                    break
        newest, left = _newest(rows, tops, bounds)
        tops.update(left)
        self.found = [shown(self._values, self._form, row) for row in newest]
        self.rest = {place: top for place, top in tops.items() if top > begins[place]}
        self.late = self.late and bool(self.rest)

    def forwards(self, starts: Mapping[TopicPartition, int]) -> None:
        """Read on from these offsets until enough is found."""
        rest = {place: start for place, start in starts.items() if start < self._bounds[place][1]}
        rows: list[Row] = []
        if rest:
            with RangeReader(self._broker, self._wanted.isolation) as reader:
                self._forwards(reader, rest, rows)
        rows.sort(key=lambda row: (row.timestamp, row.place, row.offset))
        self.found = [shown(self._values, self._form, row) for row in rows]
        self.rest = {place: offset for place, offset in rest.items() if offset < self._bounds[place][1]}

    def _forwards(self, reader: RangeReader, rest: dict[TopicPartition, int], rows: list[Row]) -> None:
        ranges = {place: (start, self._bounds[place][1]) for place, start in rest.items()}
        # From the first page on, each partition has its part: else one of them would fill it.
        share = PAGE_RECORDS if self._wanted.search else max(1, -(-PAGE_RECORDS // len(ranges)))
        full: set[TopicPartition] = set()
        reached: dict[TopicPartition, int] = {}
        for fetched in reader.read(ranges, self._deadline, reached):
            place = TopicPartition(fetched.topic, fetched.partition)
            if place in full:
                continue
            before = rest[place]
            matching = self._matching(fetched)
            room = min(share, PAGE_RECORDS - len(rows))
            own = sum(row.place == place for row in rows)
            take = matching[: max(0, min(room, share - own))]
            rows += take
            if len(take) < len(matching):
                rest[place] = take[-1].offset + 1 if take else matching[0].offset
                full.add(place)
            else:
                rest[place] = fetched.next_offset
                if own + len(take) >= share:
                    full.add(place)
            self.read += rest[place] - before
            if len(rows) >= PAGE_RECORDS or len(full) == len(ranges):
                return
        for place, offset in reached.items():
            if place not in full:
                self.read += max(0, offset - rest[place])
                rest[place] = max(rest[place], offset)
        self.late = (
            any(rest[place] < stop for place, (_, stop) in ranges.items() if place not in full)
            and len(rows) < PAGE_RECORDS
        )


def _windows(
    tops: Mapping[TopicPartition, int], begins: Mapping[TopicPartition, int], total: int
) -> dict[TopicPartition, tuple[int, int]]:
    """What is read next of each partition that is not read to its beginning: ``total`` offsets of all."""
    left = [place for place, top in tops.items() if top > begins[place]]
    size = max(1, -(-total // max(1, len(left))))
    return {place: (max(begins[place], tops[place] - size), tops[place]) for place in left}


def _newest(
    rows: Mapping[TopicPartition, list[Row]],
    tops: Mapping[TopicPartition, int],
    bounds: Mapping[TopicPartition, int],
) -> tuple[list[Row], dict[TopicPartition, int]]:
    """The newest ones, in the order of offsets within a partition, and where what is left out begins.

    They end where all of a partition's are used up that were read, if there are others before them: if
    ``tops``, before which nothing was read, are behind ``bounds``.
    """
    heads = [(-own[0].timestamp, place, 0) for place, own in rows.items()]
    heapq.heapify(heads)
    found: list[Row] = []
    while heads and len(found) < PAGE_RECORDS:
        _, place, at = heapq.heappop(heads)
        found.append(rows[place][at])
        if at + 1 < len(rows[place]):
            heapq.heappush(heads, (-rows[place][at + 1].timestamp, place, at + 1))
        elif tops[place] > bounds[place]:
            break
    return found, {place: rows[place][at].offset + 1 for _, place, at in heads}


def parse_places(text: str) -> tuple[tuple[int, int], ...]:
    """Read what ``places_text`` wrote. Raises ``ValueError``."""
    pairs: list[Any] = [item.split(":") for item in text.split(",") if item]
    if len(pairs) > LISTED_PARTITIONS:
        raise ValueError("too many partitions")
    return tuple((int(partition), int(offset)) for partition, offset in pairs)


def places_text(places: Sequence[tuple[int, int]]) -> str:
    """Offsets by partition, for a link."""
    return ",".join(f"{partition}:{offset}" for partition, offset in places)
