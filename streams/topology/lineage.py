"""Switches lineage on in a topology: its sinks write it, and its joins of streams keep it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from streams.operators.join import JoinStreams
from streams.topology.graph import SinkNode, Step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.topology.graph import Node


def with_lineage(nodes: Iterable[Node], application: str) -> tuple[Node, ...]:
    """The nodes, such that results name their input records. Aggregates are wrapped where they are built."""
    found: list[Node] = []
    for node in nodes:
        if isinstance(node, SinkNode):
            found.append(replace(node, lineage=application))
        elif isinstance(node, Step) and isinstance(node.operator, JoinStreams):
            found.append(replace(node, operator=replace(node.operator, lineage=True)))
        else:
            found.append(node)
    return tuple(found)
