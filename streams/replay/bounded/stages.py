"""The order in which a bounded run processes the subtopologies: each after those that feed it."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from streams.errors import ConfigurationError
from streams.runtime.task import TaskId
from streams.topology.graph import SinkNode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.topology.graph import Subtopology, Topology


@dataclass(frozen=True, slots=True)
class Stage:
    """Subtopologies that are processed together: one, or several that feed each other."""

    parts: tuple[Subtopology, ...]

    def units(self, partitions: Mapping[str, int]) -> list[tuple[TaskId, ...]]:
        """Its tasks, in groups that one process runs. ``partitions`` are the counts of all input topics."""
        tasks = [
            TaskId(part.number, number)
            for part in self.parts
            for number in range(
                max((count for topic, count in partitions.items() if part.reads(topic)), default=0)
            )
        ]
        if len(self.parts) > 1 or self._feeds_itself:
            return [tuple(tasks)] if tasks else []
        return [(task,) for task in tasks]

    @property
    def _feeds_itself(self) -> bool:
        return any(part.reads(topic) for part in self.parts for topic in internal_outputs(part))


def internal_outputs(part: Subtopology) -> set[str]:
    """The repartition topics that a subtopology writes."""
    return {
        node.topic
        for node in part.nodes
        if isinstance(node, SinkNode) and node.repartition is not None and isinstance(node.topic, str)
    }


def replayed(topology: Topology) -> tuple[Subtopology, ...]:
    """The subtopologies that a replay runs: all but those that begin with a source connector."""
    return tuple(part for part in topology.subtopologies if part.source_connector is None)


def require_replayable(topology: Topology) -> None:
    """Check that all input of what is replayed is in topics.

    Raises ``ConfigurationError`` where a source connector's records reach other subtopologies only through a
    repartition topic, whose records are gone.
    """
    for part in topology.subtopologies:
        source = part.source_connector
        if source is not None and (topics := internal_outputs(part)):
            raise ConfigurationError(
                f"source {source.store!r} cannot be replayed: its records reach other steps through "
                f"{', '.join(sorted(topics))}, which keeps none",
                hint="write what it reads to a topic (.to), and begin the steps at that topic (app.stream)",
            )


def stages(topology: Topology) -> tuple[Stage, ...]:
    """The stages of a replay, each after those whose repartition topics it reads."""
    parts = {part.number: part for part in replayed(topology)}
    feeds = {
        number: {
            other.number
            for other in parts.values()
            if any(other.reads(topic) for topic in internal_outputs(part))
        }
        for number, part in parts.items()
    }
    reached = {number: _reached(feeds, number) for number in parts}
    # Two subtopologies that reach each other are one stage, which its lowest number stands for.
    leader = {
        number: min({number} | {other for other in reached[number] if number in reached[other]})
        for number in parts
    }
    order = TopologicalSorter({number: set[int]() for number in sorted(set(leader.values()))})
    for number, others in feeds.items():
        for other in others:
            if leader[number] != leader[other]:
                order.add(leader[other], leader[number])
    return tuple(
        Stage(tuple(parts[number] for number in sorted(parts) if leader[number] == first))
        for first in order.static_order()
    )


def _reached(feeds: Mapping[int, set[int]], start: int) -> set[int]:
    """The subtopologies that receive, directly or not, what one writes."""
    found: set[int] = set()
    waiting = [*feeds[start]]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += feeds[number]
    return found
