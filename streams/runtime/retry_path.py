"""How a dead letter's record reaches its step again: from the source, along the edges that lead to the step.

Steps beside that path have processed the record before, so nothing is forwarded to them. From the step on,
the record is processed as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.connectors.sink import takes_retries
from streams.topology.graph import SinkConnectorNode, Step, closest, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streams.runtime.letter import Letter
    from streams.topology.graph import Node, SourceNode, Subtopology, Topology


class RetryPath:
    """The path of one step in its subtopology, from one of its sources."""

    def __init__(self, subtopology: Subtopology, source: SourceNode, step: str) -> None:
        self.source = source
        self.step = step
        self.upstream = frozenset({node.name for node in subtopology.ancestors(step)} | {step})
        """The nodes that lead to the step, and the step."""
        self._downstream = frozenset(node.name for node in downstream(subtopology, step)) | {step}

    def is_open(self, parent: str, child: str) -> bool:
        """Whether rows are forwarded along that edge."""
        return parent in self._downstream or child in self.upstream


def downstream(subtopology: Subtopology, name: str) -> tuple[Node, ...]:
    """The nodes downstream of the named one."""
    found: dict[str, Node] = {}
    waiting = list(subtopology.children(name))
    while waiting:
        node = waiting.pop(0)
        if node.name not in found:
            found[node.name] = node
            waiting.extend(subtopology.children(node.name))
    return tuple(found.values())


def source_in(subtopology: Subtopology, topic: str) -> SourceNode | None:
    """The source of the subtopology that reads a topic."""
    return next(
        (source for source in subtopology.sources if any(matches(wanted, topic) for wanted in source.topics)),
        None,
    )


def letter_refusal(
    topology: Topology,
    letter: Letter,
    *,
    edited: bool,
    of_step: Callable[[str, str], str | None] | None = None,
) -> str | None:
    """Why a dead letter cannot be retried; ``None`` if it can. ``edited``: key and value were replaced.

    ``of_step`` is ``step_refusal`` for the topology, of a caller who asks for many and keeps its answers.
    """
    if letter.left_out and not edited:
        return f"the dead letter lacks {letter.left_out}: edit it first"
    if letter.via is None and letter.payload:
        return f"it is {letter.payload}: a result is made from state, not from one record"
    if letter.via is not None and letter.received is None and not letter.payload:
        return "it came through an internal topic, and an earlier version has not kept what the step read"
    if of_step is not None:
        return of_step(letter.source.topic, letter.step)
    return step_refusal(topology, letter.source.topic, letter.step)


def step_refusal(topology: Topology, topic: str, step: str) -> str | None:
    """Why records of a topic cannot be retried at a step; ``None`` if they can."""
    known = [node.name for node in topology.nodes]
    if step not in known:
        return f"the program has no step {step!r}: {closest(step, known)}"
    subtopology = next(
        part for part in topology.subtopologies if any(node.name == step for node in part.nodes)
    )
    return refusal(subtopology, topic, step)


def refusal(subtopology: Subtopology, topic: str, step: str) -> str | None:
    """As ``step_refusal``, for the subtopology that should have the step."""
    if all(node.name != step for node in subtopology.nodes):
        return f"the program has no step {step!r} that reads {topic}"
    if subtopology.node(step).operator.kind == "jobs":
        return "it is a job: enqueue it again with streams jobs retry"
    source = source_in(subtopology, topic)
    before = subtopology.ancestors(step)
    if source is None or (source.name != step and source.name not in {node.name for node in before}):
        return f"step {step!r} does not read {topic} in this version of the program"
    after = (subtopology.node(step), *downstream(subtopology, step))
    keeping = _names(node for node in before if isinstance(node, Step) and _keeps_state(node))
    if keeping:
        return f"it reached step {step!r} through {keeping}, whose state contains the record already"
    tables = _names(
        node
        for node in after
        if isinstance(node, Step) and any(store.source_topic is not None for store in node.owns)
    )
    if tables:
        return f"{tables} is a copy of its topic: write the record to {topic} again instead"
    appending = _names(
        node for node in after if isinstance(node, SinkConnectorNode) and not takes_retries(node.connector)
    )
    if appending:
        return f"{appending} does not write by key, so that a crash might add the row twice"
    return None


def _keeps_state(step: Step) -> bool:
    return bool(step.owns) or step.operator.makes_processors


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(repr(node.name) for node in nodes)
