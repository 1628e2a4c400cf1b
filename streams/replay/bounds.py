"""Which offsets of each input partition a bounded run reads, and from which one on its results count."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.broker import GroupSettings
from streams.errors import ConfigurationError, TopicError
from streams.records import TopicPartition
from streams.replay.positions import Ago, AtTime, Earliest, resolve
from streams.replay.stages import replayed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import Admin, Broker
    from streams.replay.positions import Position
    from streams.state.definition import StoreDefinition
    from streams.topology.graph import Subtopology, Topology


TIMEOUT_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.2


class PartitionBounds(NamedTuple):
    """Offsets of one partition: ``start <= begin <= end``."""

    start: int
    """The first one to read."""
    begin: int
    """The first one whose results are kept: before it is the warm-up."""
    end: int
    """One past the last one."""


class Bounds(NamedTuple):
    """The range of a run."""

    partitions: dict[TopicPartition, PartitionBounds]
    """Of the input topics, without internal ones."""
    lookups: dict[TopicPartition, int]
    """How far the topics of global tables are read."""
    warmup: str
    """The warm-up in words."""

    @property
    def records(self) -> int:
        """How many offsets are read, warm-up included."""
        return sum(item.end - item.start for item in self.partitions.values())


def longest_window(topology: Topology) -> int | None:
    """For how long before a record others can matter for its results, in milliseconds of event time.

    It is the longest window with its grace; ``None`` if a store keeps entries without such a limit.
    """
    longest = 0
    for part in replayed(topology):
        tables = {store.name for store in part.stores if store.source_topic is not None}
        for store in part.stores:
            span = _span(store)
            if span is None and store.name not in tables:
                return None
            longest = max(longest, span or 0)
    return longest


def _span(store: StoreDefinition) -> int | None:
    return store.retention if store.ttl is None else store.ttl


def find_bounds(
    topology: Topology,
    broker: Broker,
    admin: Admin,
    partitions: Mapping[str, int],
    *,
    begin: Position,
    end: Position,
    warmup: int | None,
    now: int,
    pinned: Mapping[TopicPartition, PartitionBounds] | None = None,
) -> Bounds:
    """Resolve a range of all input topics, of which ``partitions`` are the partition counts.

    Without ``warmup``, it is the longest window with its grace, or everything before ``begin`` if a store
    keeps entries for ever. Tables are read from their beginning. ``pinned`` are partitions whose range is
    known already. Raises ``TopicError`` for a range that the
    log no longer has, and ``ConfigurationError`` for one that ends before it begins.
    """
    parts = replayed(topology)
    places = [
        TopicPartition(topic, number)
        for topic, count in partitions.items()
        if topic not in topology.repartitions and any(part.reads(topic) for part in parts)
        for number in range(count)
    ]
    tables = {place for place in places if _is_table(parts, place.topic)}
    beginnings = admin.beginning_offsets(places)
    begins = _offsets(begin, admin, places, now, default=beginnings)
    # Records of transactions that are still open lie before the end: the run waits for them.
    written = admin.end_offsets(places, "read_uncommitted")
    ends = _offsets(end, admin, places, now, default=written)
    for place, item in (pinned or {}).items():
        if place in begins:
            begins[place], ends[place] = item.begin, item.end
    for place in places:
        if begins[place] > ends[place]:
            raise ConfigurationError(
                f"the range ends before it begins: {place} from {begins[place]} to {ends[place]}",
                hint="choose a later --to or an earlier --from",
            )
    if isinstance(begin, Earliest):
        starts, words = dict(beginnings), "none: the range begins with the oldest records"
    else:
        starts, words = _warmup(topology, broker, admin, begins, ends, beginnings, warmup, begin, now)
    lookups = [
        TopicPartition(table.topic, number)
        for table in topology.global_tables
        for number in range(admin.topics()[table.topic].partitions)
    ]
    return Bounds(
        {
            place: PartitionBounds(
                beginnings[place] if place in tables else min(starts[place], begins[place]),
                begins[place],
                ends[place],
            )
            for place in places
        },
        # Lookups are not ordered by event time in a worker either: all of the run see the same state.
        dict(admin.end_offsets(lookups)) if lookups else {},
        words,
    )


def _is_table(parts: Collection[Subtopology], topic: str) -> bool:
    return any(
        source.table and any(str(wanted) == topic for wanted in source.topics)
        for part in parts
        for source in part.sources
    )


def _offsets(
    position: Position,
    admin: Admin,
    places: Collection[TopicPartition],
    now: int,
    *,
    default: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    """The position's offsets. Partitions that a file of offsets does not name have the default."""
    resolved = resolve(position, admin, places, now=now, isolation="read_uncommitted")
    if resolved.moved:
        listed = ", ".join(
            f"{place} at {offset} (nearest: {resolved.offsets[place]})"
            for place, offset in sorted(resolved.moved.items())
        )
        raise TopicError(
            f"the log does not have these offsets: {listed}",
            hint="records were deleted by retention, or were never written; choose offsets that exist",
        )
    return dict(default) | resolved.offsets


def _warmup(
    topology: Topology,
    broker: Broker,
    admin: Admin,
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    beginnings: Mapping[TopicPartition, int],
    warmup: int | None,
    begin: Position,
    now: int,
) -> tuple[dict[TopicPartition, int], str]:
    """Where reading starts, and the reason in words."""
    span = longest_window(topology) if warmup is None else warmup
    if span is None:
        return dict(beginnings), "everything before the range, as a store keeps entries for ever"
    if span == 0:
        return dict(begins), "none"
    words = f"{span:,} ms" if warmup is not None else f"{span:,} ms, the longest window with its grace"
    match begin:
        case AtTime(milliseconds):
            first = milliseconds
        case Ago(milliseconds):
            first = now - milliseconds
        case _:
            times = first_times(broker, begins, ends)
            if not times:
                return dict(begins), "none: the range has no records"
            first = min(times.values())
    start = resolve(AtTime(max(0, first - span)), admin, list(begins), now=now, isolation="read_uncommitted")
    return dict(begins) | start.offsets, words


def first_times(
    broker: Broker, begins: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """The timestamps of the first records of these ranges, of those that have any."""
    waiting = {place: offset for place, offset in begins.items() if offset < ends[place]}
    found: dict[TopicPartition, int] = {}
    if not waiting:
        return found
    consumer = broker.consumer(
        GroupSettings(group="streams-replay", isolation="read_committed", protocol="classic")
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        consumer.assign(waiting)
        while waiting and time.monotonic() < deadline:
            polled = consumer.poll(len(waiting), POLL_SECONDS)
            for fetched in polled.fetched:
                place = TopicPartition(fetched.topic, fetched.partition)
                if waiting.pop(place, None) is not None and fetched.offsets()[0] < ends[place]:
                    found[place] = fetched.timestamps()[0]
                    consumer.pause([place])
            for place in polled.ends:
                waiting.pop(place, None)
    finally:
        consumer.close()
    return found
