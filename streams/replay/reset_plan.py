"""The plan of a reset: from which offsets to which, and what is emptied. Reads only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from streams.broker import GroupSettings, NewTopic
from streams.errors import ConfigurationError, Retriable, TopicError
from streams.records import TopicPartition
from streams.replay.affected import Affected, derived_stores, find_affected
from streams.replay.positions import AtOffsets, AtTime, Position, Resolved, resolve, within
from streams.replay.topic_notes import decode_topics
from streams.runtime import commit_numbers
from streams.runtime.topics import input_partitions, missing_changelogs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.broker import Admin, Broker, TopicDescription
    from streams.topology.graph import Topology

TRANSACTION_SECONDS: Final = 60.0
"""How long to wait for a transaction that a worker left open, which may still commit offsets."""

PAUSE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class ShiftBy:
    """The committed offsets, moved by a number of offsets (back if it is negative)."""

    number: int

    def __str__(self) -> str:
        return f"the committed offsets {self.number:+d}"


@dataclass(frozen=True, slots=True)
class ToOffset:
    """The same offset in each partition."""

    offset: int

    def __str__(self) -> str:
        return f"offset {self.offset}"


ResetPosition: TypeAlias = Position | ShiftBy | ToOffset


class Committed(NamedTuple):
    """The committed offsets of a group, with the texts beside them."""

    offsets: dict[TopicPartition, int]
    texts: dict[TopicPartition, str]


class PartitionReset(NamedTuple):
    """The committed offset of a partition, and the one that replaces it. Counts are in offsets."""

    partition: TopicPartition
    committed: int | None
    new: int
    end: int
    requested: int | None = None
    """The requested offset, where the log does not have it: ``new`` is the nearest one."""

    @property
    def again(self) -> int:
        """Offsets (records and transaction markers) that were processed and will be again."""
        return max(0, (self.committed or 0) - self.new)

    @property
    def skipped(self) -> int:
        """Offsets that were not processed and will not be."""
        return 0 if self.committed is None else max(0, self.new - self.committed)

    @property
    def left(self) -> int:
        """Offsets from the new one to the end."""
        return self.end - self.new


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPlan:
    """What a reset does, complete: executing it makes no further choice."""

    group: str
    position: str
    partitions: tuple[PartitionReset, ...]
    """Of all topics whose offsets are replaced."""
    affected: Affected
    changelogs: tuple[NewTopic, ...]
    """The changelog topics that are emptied, as they are created again."""
    committed: Committed
    """Of all input partitions of the app, when the plan was made."""
    retention: Mapping[str, int]
    """Output topics that delete records by event time, and after how many milliseconds."""
    resumes: bool = False
    """Whether an interrupted reset is continued."""

    def fields(self, rate: float | None = None) -> dict[str, Any]:
        """The plan as JSON; ``rate`` is in records a second."""
        affected = self.affected
        return {
            "group": self.group,
            "position": self.position,
            "partitions": [
                {
                    "topic": item.partition.topic,
                    "partition": item.partition.partition,
                    "committed": item.committed,
                    "new": item.new,
                    "end": item.end,
                    "again": item.again,
                    "skipped": item.skipped,
                    **({} if item.requested is None else {"requested": item.requested}),
                }
                for item in self.partitions
            ],
            "again": self.again,
            "left": self.left,
            "seconds": None if rate is None else round(self.left / rate, 3),
            "stores": list(affected.stores),
            "emptied_changelogs": [topic.name for topic in self.changelogs],
            "emptied_repartition_topics": list(affected.repartitions),
            "continued_at_end": list(affected.intermediate),
            "written_again": list(affected.outputs),
            "deleted_by_event_time": dict(self.retention),
            "written_again_chosen_by": list(affected.choosing),
            "written_again_sinks": list(affected.sinks),
            "not_reset": dict(affected.left_out),
            "resumes": self.resumes,
        }

    @property
    def again(self) -> int:
        """Offsets that were processed and will be again, in selected topics."""
        return sum(item.again for item in self._selected)

    @property
    def left(self) -> int:
        """Offsets to process until everything that is there now is processed, in selected topics."""
        return sum(item.left for item in self._selected)

    @property
    def _selected(self) -> list[PartitionReset]:
        return [item for item in self.partitions if item.partition.topic in self.affected.selected]


def plan_reset(
    topology: Topology,
    broker: Broker,
    *,
    application: str,
    position: ResetPosition,
    topics: Collection[str] = (),
    now: int | None = None,
    waiting: Callable[[str], None] = lambda _: None,
    patience: float = TRANSACTION_SECONDS,
) -> ResetPlan:
    """Plan a reset of an app's committed offsets to a position in these input topics, default: in all.

    ``now`` is in milliseconds since the epoch; ``waiting`` is called with the reason while a transaction has
    to end first, for ``patience`` seconds at most. Raises ``ConfigurationError`` for what cannot be reset or
    is not a position here, ``TopicError`` for an app that never committed or topics that do not exist, and
    errors of the clients.
    """
    admin = broker.admin()
    try:
        existing = admin.topics()
        inputs = input_partitions(topology, existing)
        missing = [topic for topic in topology.repartitions if topic not in existing]
        if missing:
            raise TopicError(
                f"the app's own topics do not exist: {', '.join(missing)}",
                hint="check the app and the cluster; a worker creates them when it starts",
            )
        if isinstance(position, AtOffsets):
            topics = topics or tuple(dict.fromkeys(place.topic for place in position.offsets))
        affected = find_affected(topology, inputs, application, topics)
        places = places_of(inputs, inputs)
        committed = read_committed(broker, application, places, waiting, patience)
        if not committed.offsets:
            raise TopicError(
                f"group {application!r} has no committed offsets in {', '.join(sorted(inputs))}",
                hint="nothing was processed, so there is nothing to reset: check the app and the cluster",
            )
        interrupted = _interrupted(committed, affected)
        resolved = _resolve(position, affected, admin, inputs, committed, now)
        _require_beginnings(topology, affected, admin, resolved)
        ends = admin.end_offsets(places_of(affected.selected + affected.intermediate, inputs))
        ends |= admin.end_offsets(places_of(affected.repartitions, inputs), "read_uncommitted")
        others = places_of(affected.intermediate + affected.repartitions, inputs)
        offsets = resolved.offsets | {place: ends[place] for place in others}
        return ResetPlan(
            group=application,
            position=str(position),
            partitions=tuple(
                PartitionReset(
                    place,
                    committed.offsets.get(place),
                    offsets[place],
                    ends[place],
                    resolved.moved.get(place),
                )
                for place in places_of(affected.replaced, inputs)
            ),
            affected=affected,
            changelogs=_changelogs(topology, admin, affected, inputs, existing, application, committed),
            committed=committed,
            retention=_retention(admin, [topic for topic in affected.outputs if topic in existing]),
            resumes=interrupted,
        )
    finally:
        admin.close()


def _retention(admin: Admin, topics: Collection[str]) -> dict[str, int]:
    return {
        topic: retention
        for topic, settings in admin.settings(topics).items()
        if "delete" in settings.get("cleanup.policy", "delete")
        and settings.get("message.timestamp.type", "CreateTime") == "CreateTime"
        and (retention := int(settings.get("retention.ms", "-1"))) >= 0
    }


def places_of(topics: Collection[str], counts: Mapping[str, int]) -> list[TopicPartition]:
    """All partitions of these topics."""
    return [TopicPartition(topic, number) for topic in topics for number in range(counts[topic])]


def read_committed(
    broker: Broker,
    group: str,
    places: Sequence[TopicPartition],
    waiting: Callable[[str], None],
    patience: float,
) -> Committed:
    """The group's offsets and the texts beside them, when no transaction may still commit others.

    Raises ``Retriable`` if such a transaction does not end.
    """
    consumer = broker.consumer(GroupSettings(group=group, protocol="classic"))
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                return Committed(consumer.committed(places), consumer.committed_metadata(places))
            except Retriable as error:
                if time.monotonic() > deadline:
                    raise
                waiting(error.message)
            time.sleep(PAUSE_SECONDS)
    finally:
        consumer.close()


def _interrupted(committed: Committed, affected: Affected) -> bool:
    """Whether a reset was interrupted. Raises ``ConfigurationError`` if it affects other topics."""
    marked = {
        place.topic for place, text in committed.texts.items() if commit_numbers.reset_begun(text) is not None
    }
    others = marked - {*affected.replaced}
    if others:
        raise ConfigurationError(
            f"an interrupted reset also affects {', '.join(sorted(others))}, which would not be reset now",
            hint="continue that reset: select its topics",
        )
    return bool(marked)


def _resolve(
    position: ResetPosition,
    affected: Affected,
    admin: Admin,
    inputs: Mapping[str, int],
    committed: Committed,
    now: int | None,
) -> Resolved:
    places = places_of(affected.selected, inputs)
    now = time.time_ns() // 1_000_000 if now is None else now
    match position:
        case ShiftBy(number):
            missing = [place for place in places if place not in committed.offsets]
            if missing:
                raise ConfigurationError(
                    f"{missing[0]} has no committed offset that could be shifted", hint="use --to"
                )
            return within(
                {place: max(0, committed.offsets[place] + number) for place in places},
                admin,
                "read_committed",
            )
        case ToOffset(offset):
            return within(dict.fromkeys(places, offset), admin, "read_committed")
        case AtTime(moment) if moment > now:
            raise ConfigurationError(
                f"{position} is in the future", hint="to skip everything that is there: --to latest"
            )
        case AtOffsets(offsets):
            _check_offsets(offsets, position.source, places, inputs)
    return resolve(position, admin, places, now=now)


def _check_offsets(
    offsets: Mapping[TopicPartition, int],
    source: str,
    places: Sequence[TopicPartition],
    inputs: Mapping[str, int],
) -> None:
    for topic, number in offsets:
        if number >= inputs[topic]:
            raise ConfigurationError(
                f"{source}: {topic} has no partition {number}, it has {inputs[topic]}, numbered from 0"
            )
    missing = [place for place in places if place not in offsets]
    if missing:
        raise ConfigurationError(
            f"{source} has no offset for {', '.join(map(str, missing))}: state begins again in all partitions"
        )


def _require_beginnings(topology: Topology, affected: Affected, admin: Admin, resolved: Resolved) -> None:
    """Raise ``ConfigurationError`` for state that is made of a table's changes, some of which are skipped."""
    derived = {
        topic: stores
        for topic in (*affected.selected, *affected.intermediate)
        if (stores := derived_stores(topology, topic))
    }
    if not derived:
        return
    for topic, stores in derived.items():
        places = [place for place in resolved.offsets if place.topic == topic]
        beginnings = admin.beginning_offsets(places)
        late = [place for place in places if resolved.offsets[place] > beginnings[place]]
        if late or not places:
            where = f"offset {resolved.offsets[late[0]]} of {late[0]}" if late else f"the end of {topic}"
            raise ConfigurationError(
                f"store {', '.join(stores)}: made of all changes of table {topic}, so it would be incomplete "
                f"from {where} on",
                hint="reset to earliest, or give the positions in a file, with the table's at its beginning",
            )


def _changelogs(
    topology: Topology,
    admin: Admin,
    affected: Affected,
    inputs: Mapping[str, int],
    existing: Mapping[str, TopicDescription],
    application: str,
    committed: Committed,
) -> tuple[NewTopic, ...]:
    """The changelog topics as they are, or were when an interrupted reset began."""
    noted: dict[str, NewTopic] = {}
    for text in committed.texts.values():
        noted |= decode_topics(commit_numbers.reset_notes(text))
    there = [topic for topic in affected.changelogs if topic in existing and topic not in noted]
    settings = admin.own_settings(there)
    copies = {
        topic: NewTopic(
            name=topic,
            partitions=existing[topic].partitions,
            replication_factor=existing[topic].replication_factor,
            settings=settings[topic],
        )
        for topic in there
    }
    missing = {topic.name: topic for topic in missing_changelogs(topology, inputs, existing, application)}
    found = missing | copies | noted
    return tuple(found[topic] for topic in affected.changelogs)
