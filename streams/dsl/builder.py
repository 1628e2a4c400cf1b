"""Collects the nodes of the topology while the user's program describes it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.aggregates.traced import TracedAggregate
from streams.operators.user_code import check_code
from streams.policy import dead_letter
from streams.topology.graph import (
    GlobalSource,
    Node,
    SinkConnectorNode,
    SinkNode,
    SourceNode,
    Step,
    Topology,
    two_steps,
    unique_name,
)
from streams.topology.lineage import with_lineage
from streams.topology.sink_separation import separated
from streams.topology.topic_pattern import OwnTopics, TopicPattern

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.aggregates import Aggregate
    from streams.policy import ErrorPolicy

_PACKAGE = str(Path(__file__).parents[1])


def _calling_line() -> str:
    """The line of the user's program that is being executed, as ``file:line``."""
    frame = sys._getframe(1)  # noqa: SLF001 - documented; inspect.stack reads source files, which is slow
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class TopologyBuilder:
    """Collects nodes while the user's program runs, and gives them names.

    ``application`` is the prefix of the names of the topics between subtopologies. ``on_error`` is the
    default policy of the steps. With ``lineage``, results name the input records that made them.
    """

    def __init__(
        self, application: str = "app", on_error: ErrorPolicy = dead_letter, *, lineage: bool = False
    ) -> None:
        self.application = application
        self.lineage = lineage
        self._on_error = on_error
        self._nodes: list[Node] = []
        self._global_tables: list[GlobalSource] = []

    def build(self, dead_letter_topic: str | None = None) -> Topology:
        """Validate and return the topology; patterns exclude topics it writes. Raises ``TopologyError``."""
        written = {topic for node in self._nodes if isinstance(node, SinkNode) for topic in node.topics}
        if dead_letter_topic is not None:
            written.add(dead_letter_topic)
        own = OwnTopics(self.application, frozenset(written))
        sources = [
            dataclasses.replace(
                node,
                topics=tuple(
                    topic if isinstance(topic, str) else TopicPattern(topic.regex, own)
                    for topic in node.topics
                ),
            )
            if isinstance(node, SourceNode)
            else node
            for node in self._nodes
        ]
        patterns = tuple(
            topic
            for node in sources
            if isinstance(node, SourceNode)
            for topic in node.topics
            if isinstance(topic, TopicPattern)
        )
        nodes = tuple(
            dataclasses.replace(node, closed=patterns)
            if isinstance(node, SinkNode) and not isinstance(node.topic, str)
            else node
            for node in sources
        )
        if any(isinstance(node, SinkConnectorNode) for node in nodes):
            nodes = separated(nodes, self.application, self._on_error)
        if self.lineage:
            nodes = with_lineage(nodes, self.application)
        return Topology(nodes, tuple(self._global_tables))

    def upstream(self, names: Iterable[str]) -> list[Node]:
        """The nodes of these names, and all upstream of them."""
        found: dict[str, Node] = {}
        waiting = list(names)
        by_name = {node.name: node for node in self._nodes}
        while waiting:
            node = by_name[waiting.pop()]
            if node.name not in found:
                found[node.name] = node
                waiting += node.parents
        return list(found.values())

    def name(self, wanted: str | None, generated: str) -> str:
        """The name that the user chose, or a unique one generated from what the node does."""
        if wanted is not None:
            first = next((node for node in self._nodes if node.name == wanted), None)
            if first is not None:
                raise two_steps(wanted, first.place, _calling_line())
            return wanted
        return unique_name(generated, (node.name for node in self._nodes))

    def policy(self, given: ErrorPolicy | None) -> ErrorPolicy:
        """The policy of a step, by default the app's."""
        return self._on_error if given is None else given

    def traced(self, aggregate: Aggregate[Any, Any]) -> Aggregate[Any, Any]:
        """The aggregate, with lineage if results have it."""
        return TracedAggregate(aggregate) if self.lineage else aggregate

    def add(self, node: Node) -> None:
        """Append a node, after its parents. Raises ``TopologyError`` for async functions."""
        operator = node.operator
        place = _calling_line()
        check_code(node.name, operator.kind, node, policy=node.policy, operator=operator, place=place)
        self._nodes.append(dataclasses.replace(node, place=place))

    def add_global_table(self, source: GlobalSource) -> None:
        """Append a table that every worker reads completely. Raises ``TopologyError`` for async functions."""
        check_code(source.store.name, "global table", source)
        self._global_tables.append(source)

    def receives_first(self, stores: Iterable[str], left: str, right: str) -> str | None:
        """Which of two steps first receives a change of a store that both depend on; ``None`` without one."""
        owners = [
            node.name
            for node in self._nodes
            if isinstance(node, Step) and any(store.name in stores for store in node.owns)
        ]
        return next((found for owner in owners if (found := self._reached(owner, (left, right)))), None)

    def _reached(self, start: str, wanted: tuple[str, str]) -> str | None:
        """The first of the wanted steps to forward a record that ``start`` has forwarded."""
        for node in self._nodes:
            if start in node.parents and (found := self._reached(node.name, wanted)):
                return found
        # Children that are added later receive records after the existing ones.
        return start if start in wanted else None
