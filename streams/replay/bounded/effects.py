"""What a replay leaves out so that nothing outside of Kafka happens again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streams.operators.single_records import PeekRecords
from streams.operators.stateless import Peek
from streams.topology.graph import SinkConnectorNode, SourceNode, Step, Topology

if TYPE_CHECKING:
    from streams.topology.graph import Node


def muted(topology: Topology) -> tuple[Topology, list[str]]:
    """The topology with functions of ``peek`` that do nothing, and what is left out, in words.

    Rows for sink connectors are still made, and dropped by the run.
    """
    left_out: list[str] = []
    nodes: list[Node] = []
    for node in topology.nodes:
        if isinstance(node, Step) and isinstance(node.operator, Peek | PeekRecords):
            left_out.append(f"peek {node.name!r}{_at(node.place)}")
            nodes.append(replace(node, operator=replace(node.operator, function=_nothing)))
            continue
        if isinstance(node, SinkConnectorNode):
            left_out.append(f"sink {node.store!r} ({node.connector.kind}){_at(node.place)}")
        nodes.append(node)
    return Topology(tuple(nodes), topology.global_tables), left_out


def differences_by_design(topology: Topology) -> list[str]:
    """What of the app works in another way in a replay than in a worker, in words."""
    found: list[str] = []
    for node in topology.nodes:
        if isinstance(node, SourceNode) and node.connector is not None:
            found.append(
                f"source {node.store!r} ({node.connector.kind}) is not read: its topics are, where the app "
                "reads them"
            )
        if isinstance(node, Step):
            if getattr(node.operator, "close_idle_after", None) is not None:
                found.append(f"{node.name!r}: close_idle_after is ignored, as no time passes without records")
            if node.operator.awaits:
                found.append(f"{node.name!r}: its async function is called as in a worker")
    return found


def _nothing(_: Any) -> None:
    return


def _at(place: str) -> str:
    return f" at {place}" if place else ""
