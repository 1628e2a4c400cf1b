"""Replays in tests: a range of given records processed by an app, and the results of two apps compared."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.durations import to_milliseconds
from streams.errors import TopologyError
from streams.partitioning import partition_for
from streams.records import Output, Record
from streams.replay.bounded.bounds import EVERYTHING
from streams.replay.bounded.run import BoundedRun, RunRequest
from streams.replay.diff.fields import Rules
from streams.replay.positions import to_position
from streams.replay.shadow import Program, Shadow
from streams.serde import Bytes
from streams.testing.encoding import decode, encode
from streams.topology.graph import closest, matches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from datetime import timedelta

    from streams.app import App
    from streams.broker import Broker
    from streams.config import Settings
    from streams.replay.bounded.plan import RunPlan
    from streams.replay.bounded.run import RunReport
    from streams.replay.diff.result import Diff
    from streams.replay.positions import PositionInCode
    from streams.serde import Serde

RangeInput: TypeAlias = "Mapping[str, Iterable[Record[Any, Any]]] | Broker"
"""Records by topic, or a broker that has them."""

FLUSH_SECONDS: Final = 10.0


class ReplayResults:
    """What a replay would have written. Reading does not take it away."""

    def __init__(self, app: App, plan: RunPlan, report: RunReport) -> None:
        self.report: dict[str, Any] = report.fields()
        """What was done, as ``streams replay run --json`` prints it: ``records``, ``partitions`` with the
        offsets of the range, ``late``, ``skipped``, ``dead_letters``, ``left_out``, ``rows_left_out``."""
        self._dead_letter_topic = app.dead_letter_topic
        self._serdes = {topic: (sink.key, sink.value) for sink in app.topology.sinks for topic in sink.topics}
        self._written = {
            topic: list(_records(plan, topic)) for topic in dict.fromkeys([*plan.outputs, *plan.spool.topics])
        }

    @property
    def topics(self) -> list[str]:
        """The topics with results, by the names that they have in the app."""
        return sorted(topic for topic, records in self._written.items() if records)

    def read(
        self, topic: str, *, key: Serde[Any] | None = None, value: Serde[Any] | None = None
    ) -> list[Record[Any, Any]]:
        """The records for a topic, in the order in which they are written.

        They are decoded with the serdes of the sink that writes them, unless others are given. Those of the
        dead-letter topic, and of topics that a function chose, stay bytes. Raises ``TopologyError`` for a
        topic that the app does not write.
        """
        if topic not in self._written:
            raise TopologyError(f"the app does not write to {topic!r}", hint=closest(topic, self._written))
        own_key, own_value = self._serdes.get(topic, (Bytes(), Bytes()))
        return [
            Record(
                decode(key or own_key, record.key),
                decode(value or own_value, record.value),
                record.timestamp,
                record.headers,
                record.topic,
                record.partition,
                record.offset,
            )
            for record in self._written[topic]
        ]

    def values(self, topic: str) -> list[Any]:
        """The values for a topic. Raises ``TopologyError`` as ``read`` does."""
        return [record.value for record in self.read(topic)]

    def dead_letters(self) -> list[Record[Any, Any]]:
        """The dead letters: original bytes, with coordinates in the headers."""
        return self.read(self._dead_letter_topic)


def replay(
    app: App,
    records: RangeInput,
    *,
    begin: PositionInCode = "earliest",
    end: PositionInCode = "latest",
    warmup: timedelta | Literal["all"] | None = None,
    partitions: int = 1,
    effects: bool = False,
) -> ReplayResults:
    """Process a range of records as ``streams replay run`` does, in memory, and return the results.

    ``records`` are encoded with the serdes of the sources that read them, in topics of ``partitions``
    partitions; a record's ``partition``, if it has one, is kept. Instead, a broker may be given, such as a
    ``MemoryBroker`` that a worker has used: nothing is written to it. The range begins at ``begin`` and ends
    before ``end``: ``"earliest"``, ``"latest"``, a time (ISO 8601, or milliseconds since the epoch), or
    offsets by partition. ``warmup`` is how much before it is read without results, as for the command.

    No schema registry is used. Raises what the app raises, ``ConfigurationError`` for a range that is none,
    ``TopicError`` for offsets that do not exist, and ``TopologyError`` for records of a topic that the app
    does not read.
    """
    broker = _broker(records, (app,), partitions)
    request = _request(begin, end, warmup, effects=effects)
    with tempfile.TemporaryDirectory(prefix="streams-replay-") as folder:
        run = BoundedRun(app, request, broker=broker, folder=Path(folder), settings=_settings(app))
        plan = run.plan()
        return ReplayResults(app, plan, run.process(plan))


def shadow(
    new: App,
    old: App,
    records: RangeInput,
    *,
    begin: PositionInCode = "earliest",
    end: PositionInCode = "latest",
    warmup: timedelta | Literal["all"] | None = None,
    partitions: int = 1,
    absolute: float = 0.0,
    relative: float = 1e-9,
    ignore: Collection[str] = (),
) -> Diff:
    """Compare the results of a new program with those of the old one, as ``streams replay shadow`` does.

    The old program runs twice; fields that differ then are not compared. ``Diff.equal`` says whether nothing
    differs, ``Diff.topics`` how each topic does. The other arguments are those of ``replay``; floats are
    equal within ``absolute`` or ``relative``, and fields in ``ignore`` are not compared. Raises what
    ``replay`` raises.
    """
    broker = _broker(records, (old, new), partitions)
    after, before = (Program(app, settings=_settings(app)) for app in (new, old))
    rules = Rules(absolute=absolute, relative=relative, ignore=frozenset(ignore))
    work = Shadow(after, before, _request(begin, end, warmup), rules=rules, broker=broker)
    return work.run().diff


def _request(
    begin: PositionInCode,
    end: PositionInCode,
    warmup: timedelta | Literal["all"] | None,
    *,
    effects: bool = False,
) -> RunRequest:
    milliseconds = (
        None if warmup is None else EVERYTHING if warmup == "all" else to_milliseconds(warmup, "the warm-up")
    )
    return RunRequest(
        name="test", begin=to_position(begin), end=to_position(end), warmup=milliseconds, effects=effects
    )


def _settings(app: App) -> Settings:
    """The app's settings, without what is outside of the test."""
    return msgspec.structs.replace(app.settings, state_store="memory", schema_registry_url=None)


def _broker(given: RangeInput, apps: Collection[App], partitions: int) -> Broker:
    if not isinstance(given, Mapping):
        return given
    broker = MemoryBroker(wall_clock=None)
    topics = dict.fromkeys(
        [
            *(topic for app in apps for topic in _inputs(app)),
            *given,
        ]
    )
    admin = broker.admin()
    admin.create_topics([NewTopic(name=topic, partitions=partitions) for topic in topics])
    admin.close()
    producer = broker.producer()
    for topic, records in given.items():
        key, value = _serdes(apps, topic)
        for record in records:
            producer.produce(
                Output(
                    topic,
                    [encode(key, record.key)],
                    [encode(value, record.value)],
                    [record.timestamp],
                    None if record.headers is None else [record.headers],
                    partition=record.partition if record.partition >= 0 else None,
                )
            )
    producer.flush(FLUSH_SECONDS)
    producer.close()
    return broker


def _inputs(app: App) -> Iterator[str]:
    topology = app.topology
    for topic in topology.input_topics:
        if isinstance(topic, str) and topic not in topology.repartitions:
            yield topic
    for table in topology.global_tables:
        yield table.topic


def _serdes(apps: Collection[App], topic: str) -> tuple[Serde[Any], Serde[Any]]:
    """Those of the first app that reads the topic."""
    reads = [app for app in apps if any(matches(wanted, topic) for wanted in app.topology.input_topics)]
    if reads:
        source = reads[0].topology.source_of(topic)[1]
        return source.key, source.value
    for app in apps:
        for table in app.topology.global_tables:
            if table.topic == topic:
                return table.key, table.value
    known = [name for app in apps for name in _inputs(app)]
    raise TopologyError(f"the app does not read topic {topic!r}", hint=closest(topic, known))


def _records(plan: RunPlan, topic: str) -> Iterator[Record[bytes | None, bytes | None]]:
    """A topic's results. Offsets count over all partitions, as for the ``TopologyDriver``."""
    count = plan.outputs.get(topic) or max(plan.outputs.values(), default=1)
    offset = 0
    for rows in plan.spool.read_results(topic):
        headers = rows.headers or [None] * len(rows)
        places = rows.partitions or [None] * len(rows)
        for key, value, time, own, place in zip(
            rows.keys, rows.values, rows.timestamps, headers, places, strict=True
        ):
            number = partition_for(key or b"", count) if place is None else place
            yield Record(key, value, time, own, topic, number, offset)
            offset += 1
