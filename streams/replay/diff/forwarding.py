"""Which results depend on when tasks commit: those of steps that forward updates at commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.topology.graph import SourceNode, Step

if TYPE_CHECKING:
    from streams.topology.graph import Topology


def forwarded_at_commits(topology: Topology) -> set[str]:
    """The topics with results downstream of an aggregation's updates, or of a table of them.

    How many updates of a key there are depends on how many records lie between two commits, which a change
    upstream moves: only the last one of each key and window can be compared between two programs.
    """
    by_name = {node.name: node for node in topology.nodes}
    found: set[str] = set()
    for sink in topology.sinks:
        waiting = [(parent, sink.name) for parent in sink.parents]
        known: set[tuple[str, str]] = set()
        while waiting:
            place = waiting.pop()
            if place in known:
                continue
            known.add(place)
            name, below = place
            node = by_name[name]
            if isinstance(node, Step) and node.operator.forwards_at_commits_to(below):
                found.update(sink.topics)
            waiting += [(parent, name) for parent in node.parents]
            if isinstance(node, SourceNode) and node.internal:
                waiting += [
                    (parent, other.name)
                    for other in topology.sinks
                    if other.topic in node.topics
                    for parent in other.parents
                ]
    return found
