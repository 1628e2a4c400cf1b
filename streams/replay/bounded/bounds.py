"""Which offsets of each input partition a bounded run reads, and from which one on its results count."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.broker import GroupSettings
from streams.errors import BrokerError, ConfigurationError, TopicError
from streams.records import TopicPartition
from streams.replay.bounded.stages import replayed
from streams.replay.positions import Earliest, resolve

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.broker import Admin, Broker
    from streams.replay.positions import Position
    from streams.state.definition import StoreDefinition
    from streams.topology.graph import Subtopology, Topology


TIMEOUT_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.2
EVERYTHING: Final = 2**62
"""As a warm-up: from the oldest records on."""
LOOK_BACK: Final = 200
"""How many offsets before the range are read to learn the time up to which the log has come."""


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

    Without ``warmup``, it is twice the longest window with its grace, or everything before ``begin`` if a
    store keeps entries for ever. Tables are read from their beginning. ``pinned`` are partitions whose range
    is known already. Raises ``TopicError`` for a range that the log no longer has, and ``ConfigurationError``
    for one that ends before it begins.
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
        starts, words = _warmup(topology, broker, admin, begins, beginnings, warmup)
    existing = admin.topics()
    lookups = [
        TopicPartition(table.topic, number)
        for table in topology.global_tables
        for number in range(existing[table.topic].partitions)
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
    beginnings: Mapping[TopicPartition, int],
    warmup: int | None,
) -> tuple[dict[TopicPartition, int], str]:
    """Where reading starts, and the reason in words.

    It is measured from the last records before the range: a window stays open until a later record comes.
    """
    span = longest_window(topology)
    if warmup is not None:
        span = warmup
        words = "everything before the range" if warmup >= EVERYTHING else duration_text(warmup)
    elif span is None:
        return dict(beginnings), "everything before the range, as a store keeps entries for ever"
    else:
        # Stream time of a task downstream of others may lag behind that of the input.
        span *= 2
        words = f"{duration_text(span)}, twice the longest window with its grace"
    if span == 0:
        return dict(begins), "none"
    starts = {place: max(0, time - span) for place, time in newest_before(broker, begins, beginnings).items()}
    return dict(begins) | admin.offsets_for_times(starts, "read_uncommitted"), words


def newest_before(
    broker: Broker, begins: Mapping[TopicPartition, int], beginnings: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """The highest timestamp among the last records before these offsets, of partitions that have any.

    Of records, the last ``LOOK_BACK`` are read. A partition of which only markers are there is left out.
    """
    starts = {
        place: max(beginnings[place], offset - LOOK_BACK)
        for place, offset in begins.items()
        if offset > beginnings[place]
    }
    found: dict[TopicPartition, int] = {}
    if not starts:
        return found
    waiting = set(starts)
    consumer = broker.consumer(
        GroupSettings(group="streams-replay", isolation="read_committed", protocol="classic")
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        consumer.assign(starts)
        while waiting:
            polled = consumer.poll(LOOK_BACK * len(starts), POLL_SECONDS)
            reached = dict(polled.ends)
            for fetched in polled.fetched:
                place = TopicPartition(fetched.topic, fetched.partition)
                times = [
                    stamp
                    for offset, stamp in zip(fetched.offsets(), fetched.timestamps(), strict=True)
                    if offset < begins[place]
                ]
                found[place] = max([*times, found.get(place, 0)])
                reached[place] = fetched.next_offset
            done = {place for place, offset in reached.items() if offset >= begins[place]}
            consumer.pause(done & waiting)
            waiting -= done
            if waiting and time.monotonic() > deadline:
                raise BrokerError(
                    f"the records before the range did not arrive within {TIMEOUT_SECONDS:.0f} s: "
                    f"{', '.join(map(str, sorted(waiting)))}"
                )
    finally:
        consumer.close()
    return found


def duration_text(milliseconds: int) -> str:
    """A duration as it is written on the command line, e.g. ``1h30m``."""
    parts = []
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"
