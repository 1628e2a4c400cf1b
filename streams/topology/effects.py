"""Steps with effects outside of the app, which a replay or a muted app leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from streams.operators.single_records import PeekRecords
from streams.operators.stateless import Peek
from streams.topology.graph import Step, Topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.topology.graph import Node


def peeks(topology: Topology) -> tuple[Step, ...]:
    """The steps that call a function for its effects alone."""
    return tuple(
        node
        for node in topology.nodes
        if isinstance(node, Step) and isinstance(node.operator, Peek | PeekRecords)
    )


def with_muted_peeks(topology: Topology, muted: Callable[[], bool]) -> Topology:
    """The topology with functions of ``peek`` that are left out while ``muted`` returns true.

    ``muted`` is called for each batch.
    """

    def with_muted(node: Node) -> Node:
        if isinstance(node, Step) and isinstance(node.operator, Peek | PeekRecords):
            return replace(node, operator=replace(node.operator, muted=muted))
        return node

    return Topology(tuple(map(with_muted, topology.nodes)), topology.global_tables)
