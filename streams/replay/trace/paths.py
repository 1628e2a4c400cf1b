"""What the topology knows of a result: the steps and topics through which it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.operators.join import JoinStreams
from streams.operators.process import Process
from streams.replay.trace.node import TraceNode
from streams.topology.graph import SinkNode, SourceNode, Step, matches
from streams.topology.topic_pattern import TopicPattern

if TYPE_CHECKING:
    from streams.topology.graph import Node, Subtopology, Topology

UNNAMED_KINDS = ("merge",)
"""Steps that only pass records on."""


def sinks_of(topology: Topology, topic: str) -> list[SinkNode]:
    """The sinks that write to a topic, or may, as a function chooses theirs."""
    certain = [sink for sink in topology.sinks if topic in sink.topics]
    if certain or topic in {name for source in topology.sources for name in source.topics}:
        return certain
    return [sink for sink in topology.sinks if not sink.topics]


def path_of(topology: Topology, node: Node, seen: frozenset[str] = frozenset()) -> list[TraceNode]:
    """The ways by which records reach a node: one for each source, upstream of internal topics too."""
    part = next(part for part in topology.subtopologies if node in part.nodes)
    found = []
    for source in part.sources:
        steps = _between(part, source, node)
        if steps is None or source.name in seen:
            continue
        via = ", ".join(_described(step) for step in steps)
        topics = ", ".join(
            topic if isinstance(topic, str) else f"/{topic.pattern}/" for topic in source.topics
        )
        origin = f"source connector {source.store!r}" if source.connector is not None else topics
        way = TraceNode("path", f"from {origin}" + (f" through {via}" if via else ""))
        way.remarks += _reads_too(topology, steps)
        if source.internal:
            for topic in source.topics:
                for writer in topology.sinks:
                    if topic in writer.topics and isinstance(topic, str):
                        way.children += path_of(topology, writer, seen | {source.name})
        found.append(way)
    return found


def way_of(topology: Topology, node: Node) -> list[str]:
    """The ways to a node, each as one line from the input topic on."""
    return [line for way in path_of(topology, node) for line in _flat(way)]


def notes_of(topology: Topology, node: Node) -> list[str]:
    """What contributes to a node's records besides the input records that their lineage names."""
    found: dict[str, None] = {}

    def collect(ways: list[TraceNode]) -> None:
        for way in ways:
            found.update(dict.fromkeys(way.remarks))
            collect(way.children)

    collect(path_of(topology, node))
    return list(found)


def reads(topology: Topology, topic: str) -> SourceNode | None:
    """The source that reads a topic, if any does."""
    return next(
        (source for source in topology.sources if any(matches(wanted, topic) for wanted in source.topics)),
        None,
    )


def inputs(topology: Topology) -> list[str]:
    """The topics that the app reads and does not only use itself, patterns between slashes."""
    return [
        f"/{topic.pattern}/" if isinstance(topic, TopicPattern) else str(topic)
        for source in topology.sources
        if not source.internal and source.connector is None
        for topic in source.topics
    ]


def _flat(way: TraceNode) -> list[str]:
    if not way.children:
        return [way.title]
    return [f"{before}, {way.title}" for child in way.children for before in _flat(child)]


def _between(part: Subtopology, source: SourceNode, node: Node) -> list[Step] | None:
    """The steps between a source and a node, upstream ones first; ``None`` if no record goes that way."""
    if source.name not in {item.name for item in part.ancestors(node.name)}:
        return None
    upstream = {item.name for item in part.ancestors(node.name)} | {node.name}
    return [
        item
        for item in part.nodes
        if isinstance(item, Step)
        and item.name in upstream
        and any(parent.name == source.name for parent in part.ancestors(item.name))
    ]


def _described(step: Step) -> str:
    kind = step.operator.kind
    return step.name if kind in step.name or kind in UNNAMED_KINDS else f"{kind} {step.name}"


def _reads_too(topology: Topology, steps: list[Step]) -> list[str]:
    owners = {store.name: store for item in topology.nodes if isinstance(item, Step) for store in item.owns}
    found = []
    for step in steps:
        operator = step.operator
        if isinstance(operator, Process) and operator.stores:
            found.append(
                f"processor {step.name!r} has stores ({', '.join(operator.stores)}): what earlier records "
                "left there is not part of the lineage"
            )
        elif step.uses and not isinstance(operator, JoinStreams):
            for name in step.uses:
                topic = owners[name].source_topic if name in owners else None
                table = f"table {name!r}" + ("" if topic is None else f" (topic {topic})")
                found.append(f"{step.name!r} reads {table}, whose entries are not part of the lineage")
        elif operator.kind == "join_global":
            found.append(f"{step.name!r} reads a global table, whose entries are not part of the lineage")
    return list(dict.fromkeys(found))
