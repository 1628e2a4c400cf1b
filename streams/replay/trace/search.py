"""Searches the input for records that give a result, where nothing names them: processes it again.

Only for steps without state: what they make depends on one record alone. The record is found by its bytes.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from streams.app import resources_of_worker
from streams.errors import ConfigurationError, ProcessingError
from streams.lineage import HEADER, header_of
from streams.operators import Operator
from streams.policy import skip
from streams.records import TopicPartition
from streams.replay.bounded.effects import muted
from streams.replay.bounded.range_reader import read_range
from streams.replay.bounded.throttle import Throttle
from streams.replay.bounded.unit import SLICE_RECORDS, ReplayRuntime
from streams.replay.trace.paths import sinks_of
from streams.replaying import Replay, running_in
from streams.runtime.task import Task, TaskId
from streams.topology.graph import SourceNode, Step, Subtopology, Topology
from streams.topology.lineage import with_lineage
from streams.tracing.spans import W3C_HEADERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.broker import Broker
    from streams.records import Headers, Output
    from streams.replay.trace.node import TraceNode
    from streams.replay.trace.reader import Bytes
    from streams.replay.trace.tracer import Tracer

_OF_ONE_RUN: Final = W3C_HEADERS | {HEADER}
"""Headers that differ when the same input is processed again."""

MOST_CANDIDATES: Final = 20
"""The number of candidates that are shown."""


def search(
    tracer: Tracer, broker: Broker, tree: TraceNode, topic: str, partition: int, offset: int, records: int
) -> None:
    """Add the input records that give the record at the tree's root, if it names none.

    Reads up to ``records`` of each input partition around its time. Raises ``ConfigurationError`` if the
    record cannot be found that way, with the reason.
    """
    if tree.kind != "result" or any("lineage" in child.record for child in tree.children):
        return
    app, reader = tracer.app, tracer.reader
    parts = _searchable(tracer, topic)
    wanted = reader.required(topic, partition, offset)
    candidates: list[tuple[str, int, int]] = []
    searched = 0
    resources = resources_of_worker(app)
    with closing(resources), running_in(Replay("trace", "bounded")):
        resources.open()
        with resources.active():
            for part in parts:
                for source in part.sources:
                    for place in _places(tracer, source):
                        found, count = _in_partition(tracer, broker, part, place, wanted, records)
                        candidates += found
                        searched += count
    said = f"searched: {searched:,} input records around its time were processed again"
    tree.children = []
    if not candidates:
        tree.remarks.append(
            f"{said}, and none gives this record; it may be of another time (--search with more records), of "
            "another version of the program, or depend on more than its input"
        )
        return
    only = "exactly one gives" if len(candidates) == 1 else f"{len(candidates):,} give"
    tree.remarks.append(f"{said}; {only} a record with the same bytes")
    for candidate in candidates[:MOST_CANDIDATES]:
        node = tracer.input((-1, *candidate), "candidate: ")
        node.kind = "candidate" if node.kind == "input" else node.kind
        tree.children.append(node)


def _searchable(tracer: Tracer, topic: str) -> list[Subtopology]:
    """The parts of the app that write the topic. Raises ``ConfigurationError`` unless none has state."""
    app, topology = tracer.app, tracer.topology
    names = {sink.name for sink in sinks_of(topology, topic)}
    if app.settings.schema_registry_url is not None:
        raise ConfigurationError(
            "--search compares bytes, and results of an app with a schema registry contain the registry's ids"
        )
    quiet = muted(app.topology)
    own = Topology(
        tuple(replace(node, policy=skip) for node in with_lineage(quiet.nodes, app.name)),
        quiet.global_tables,
    )
    found = [
        _only(part, node.name) for part in own.subtopologies for node in part.nodes if node.name in names
    ]
    for part in found:
        why = _state_of(part)
        if why:
            raise ConfigurationError(
                f"--search cannot find what made a record of {topic}: {why}, so no record alone decides",
                hint="switch lineage on: App(lineage=True) or STREAMS_LINEAGE=true",
            )
    return found


def _only(part: Subtopology, sink: str) -> Subtopology:
    """The steps of a part by which records reach a sink."""
    needed = {sink, *(node.name for node in part.ancestors(sink))}
    return Subtopology(part.number, tuple(node for node in part.nodes if node.name in needed))


def _state_of(part: Subtopology) -> str:
    """Why results of a part depend on more than one input record; empty if they do not."""
    for node in part.nodes:
        if isinstance(node, Step) and (node.owns or node.uses):
            store = node.owns[0].name if node.owns else node.uses[0]
            return f"step {node.name!r} has the store {store!r}"
        if isinstance(node, SourceNode) and node.internal:
            return f"it comes through the internal topic {node.topics[0]}"
        if isinstance(node, SourceNode) and node.connector is not None:
            return f"it comes from the source connector {node.store!r}"
        if isinstance(node.operator, Operator) and node.operator.kind == "join_global":
            return f"step {node.name!r} reads a global table"
        if isinstance(node.operator, Operator) and node.operator.makes_processors:
            return f"step {node.name!r} is a processor, which may keep anything"
    return ""


def _places(tracer: Tracer, source: SourceNode) -> list[TopicPartition]:
    topics = [topic for topic in source.topics if isinstance(topic, str)]
    if len(topics) < len(source.topics):
        raise ConfigurationError("--search cannot search the topics of a pattern")
    return [
        TopicPartition(topic, number)
        for topic in topics
        if tracer.reader.exists(topic)
        for number in range(tracer.reader.partitions(topic))
    ]


def _in_partition(
    tracer: Tracer, broker: Broker, part: Subtopology, place: TopicPartition, wanted: Bytes, records: int
) -> tuple[list[tuple[str, int, int]], int]:
    """The coordinates of the records that give the wanted one, and the number of records processed."""
    first, end = tracer.reader.ends(place)
    near = tracer.reader.at_time(place, wanted.timestamp)
    start = max(first, near - records // 2)
    stop = min(end, start + records)
    runtime = ReplayRuntime()
    task = Task(
        TaskId(part.number, place.partition),
        part,
        runtime,
        application=tracer.app.name,
        dead_letter_topic=tracer.app.dead_letter_topic,
    )
    found: list[tuple[str, int, int]] = []
    count = 0
    try:
        for fetched in read_range(
            broker, place, start, stop, size=SLICE_RECORDS, throttle=Throttle(None, None)
        ):
            count += len(fetched)
            runtime.now = max(runtime.now, *fetched.timestamps())
            try:
                task.process(fetched)
            except ProcessingError as error:
                raise ConfigurationError(f"--search could not process {place} again: {error}") from error
            task.take_deliveries()
            for output in task.take():
                found += _equal(output, wanted)
    finally:
        task.close()
    return found, count


def _equal(output: Output, wanted: Bytes) -> list[tuple[str, int, int]]:
    """The input records of those rows of an output that are the wanted record."""
    if output.topic != wanted.topic or output.headers is None:
        return []
    return [
        made.lineage.first[1:]
        for key, value, time, headers in zip(
            output.keys, output.values, output.timestamps, output.headers, strict=True
        )
        if value == wanted.value
        and key == wanted.key
        and time == wanted.timestamp
        and _comparable(headers) == _comparable(wanted.headers)
        and (made := header_of(headers or [])) is not None
        and made.lineage.first is not None
    ]


def _comparable(headers: Headers | None) -> Sequence[Any]:
    """Those that stay the same when the input is processed again."""
    return [header for header in headers or () if header[0] not in _OF_ONE_RUN]
