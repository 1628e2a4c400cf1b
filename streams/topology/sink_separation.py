"""Puts an internal topic before sink connectors whose task would do anything else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from streams.errors import TopologyError
from streams.serde.round_trip import RoundTrip
from streams.topology.graph import (
    Node,
    Repartition,
    SinkConnectorNode,
    SinkNode,
    SourceNode,
    Step,
    Subtopology,
    Topology,
    unique_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.policy import ErrorPolicy


def separated(nodes: Sequence[Node], application: str, policy: ErrorPolicy) -> tuple[Node, ...]:
    """The nodes, with an internal topic before each sink connector whose task would do anything else.

    A sink connector's input is read again from the sink's own position. So its task must not have state or
    write to topics, which follow the group's committed offsets, and its input must not be purged by those.
    """
    mixed = {
        sink.name
        for part in Topology(tuple(nodes)).subtopologies
        if part.sink_connectors and not _only_delivers(part)
        for sink in part.sink_connectors
    }
    found: list[Node] = []
    for node in nodes:
        if node.name in mixed and isinstance(node, SinkConnectorNode):
            found += _through_topic(node, application, policy, {other.name for other in (*nodes, *found)})
        else:
            found.append(node)
    return tuple(found)


def _only_delivers(part: Subtopology) -> bool:
    return all(
        isinstance(node, SinkConnectorNode)
        or (isinstance(node, SourceNode) and not node.internal and node.connector is None)
        or (isinstance(node, Step) and not node.owns and not node.uses)
        for node in part.nodes
    )


def _through_topic(
    node: SinkConnectorNode, application: str, policy: ErrorPolicy, taken: set[str]
) -> tuple[Node, Node, Node]:
    topic = f"{application}-{node.store}-sink"
    if node.value is None:
        raise TopologyError(
            f"the records for sink {node.name!r} go through the internal topic {topic}, but the type of "
            "their values is not known",
            hint="pass their serde, e.g. value=Json(Type), to sink(…)",
        )
    writer = SinkNode(
        name=unique_name(f"{node.name}-to-topic", taken),
        parents=node.parents,
        topic=topic,
        key=node.key,
        value=node.value if node.as_read else RoundTrip(node.value),
        policy=node.policy,
        repartition=Repartition(kept=not node.table, compacted=node.table),
        place=node.place,
    )
    source = SourceNode(
        name=unique_name(f"{node.name}-from-topic", {*taken, writer.name}),
        topics=(topic,),
        key=node.key,
        value=node.value,
        policy=policy,
        tombstones=True,
        internal=True,
        place=node.place,
    )
    return writer, source, replace(node, parents=(source.name,))
