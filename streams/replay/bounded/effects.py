"""What a replay leaves out so that nothing outside of Kafka happens again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.topology.effects import peeks, with_muted_peeks
from streams.topology.graph import SourceNode, Step

if TYPE_CHECKING:
    from streams.topology.graph import Topology


def muted(topology: Topology) -> Topology:
    """The topology with functions of ``peek`` that are not called.

    Rows for sink connectors are still made, and dropped by the run.
    """
    return with_muted_peeks(topology, lambda: True)


def effects_left_out(topology: Topology) -> list[str]:
    """The effects that a replay leaves out, in words."""
    found = [f"peek {step.name!r}{_at(step.place)}" for step in peeks(topology)]
    return found + [
        f"sink {node.store!r} ({node.connector.kind}){_at(node.place)}" for node in topology.sink_connectors
    ]


def differences_by_design(topology: Topology) -> list[str]:
    """What of the app works in another way in a replay than in a worker, in words."""
    found: list[str] = []
    if topology.own_topics:
        found.append(
            "jobs are not executed; those that steps enqueue are written beside the results, where no worker "
            "reads them"
        )
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


def _at(place: str) -> str:
    return f" at {place}" if place else ""
