"""How each topic that an app writes can be compared between runs that commit at different times."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.jobs.operator import RunJobs
from streams.simulation.jobs import JOBS, QueueTopics
from streams.state.changelog import changelog_topic
from streams.topology.graph import SourceNode, Step as TopologyStep

if TYPE_CHECKING:
    from collections.abc import Collection

    from streams.app import App
    from streams.topology.graph import Node, Topology

EVERY = "every record, in the order of each key"
ANY = "every record, in any order"
LAST = "the last record of each key: earlier ones depend on when commits happen"
NOT = "not compared: it depends on intermediate results, and so on when commits happen"
TWICE = "not compared: at least once, state downstream of a repartition topic may count a record twice"
TIMED = "not compared: it depends on when jobs are executed"

IGNORED = "not compared: ignored on request"
_LOOSENESS = [EVERY, ANY, LAST, JOBS, NOT, TWICE, TIMED, IGNORED].index

UNCOMPARED = frozenset({NOT, TWICE, TIMED, IGNORED})


def comparisons(topology: Topology, app: App, ignore: Collection[str] = ()) -> dict[str, str]:
    """How each topic that the app writes is compared, in words: ``EVERY`` and the others."""
    at_least_once = app.settings.guarantee == "at_least_once"
    queue = QueueTopics.of(topology, app.name)
    found: dict[str, str] = {}

    def compare(topic: str, how: str) -> None:
        found[topic] = max(found.get(topic, how), how, key=_LOOSENESS)

    for sink in topology.sinks:
        if isinstance(sink.topic, str) and sink.repartition is None:
            if queue is not None and sink.topic in queue:
                compare(sink.topic, _comparison_of_jobs(topology, sink))
            else:
                compare(sink.topic, _comparison(topology, sink, at_least_once=at_least_once))
    for node in topology.nodes:
        if isinstance(node, TopologyStep) and isinstance(node.operator, RunJobs):
            assert queue is not None, "it belongs to a queue"
            compare(queue.changelog, _comparison_of_jobs(topology, node))
        elif isinstance(node, TopologyStep):
            how = _comparison(topology, node, at_least_once=at_least_once)
            for store in node.owns:
                if store.source_topic is None and store.retention is None:
                    compare(
                        changelog_topic(app.name, store),
                        LAST if how in (EVERY, ANY) else max(NOT, how, key=_LOOSENESS),
                    )
    letters = dead_letter_comparisons(topology, at_least_once=at_least_once)
    if letters:
        # Dead letters of one slice are in the order of the steps, and slices differ between runs.
        alike = ANY if {EVERY, ANY} & set(letters.values()) else max((NOT, *letters.values()), key=_LOOSENESS)
        compare(app.dead_letter_topic, alike)
    return found | {topic: IGNORED for topic in ignore if topic in found}


def dead_letter_comparisons(topology: Topology, *, at_least_once: bool) -> dict[str, str]:
    """How the dead letters of each step that may write some can be compared."""
    return {
        node.name: _comparison(topology, node, at_least_once=at_least_once)
        for node in topology.nodes
        if node.policy.action == "dead_letter"
    }


class _Place(NamedTuple):
    """A node on a path from a result upstream to the input."""

    node: Node
    below: str
    """The downstream node from which the path reached this one."""
    passed: int = 0
    """Steps in between that forward at commits."""
    keeps: bool = False
    """Whether a step downstream has a store."""


class _Dependence(NamedTuple):
    """What the results of a node depend on."""

    at_commits: int
    """How many steps upstream forward at commits: 0, 1 or more."""
    twice: bool
    ordered: bool
    executed: bool
    """Whether they are what becomes of jobs."""


def _comparison_of_jobs(topology: Topology, node: Node) -> str:
    """How a topic of the queue is compared: as jobs, unless they are enqueued for intermediate results."""
    found = _dependence(topology, node)
    # The step that executes jobs counts as one that forwards at commits.
    return NOT if found.at_commits > found.executed else JOBS


def _comparison(topology: Topology, node: Node, *, at_least_once: bool) -> str:
    """How ``node`` is compared: by the number of steps upstream that forward at commits (0, 1 or more)."""
    found = _dependence(topology, node)
    if found.executed:
        return TIMED
    if at_least_once and found.twice:
        return TWICE
    worst, stateful = found.at_commits, isinstance(node, TopologyStep)
    return (EVERY if found.ordered else ANY, LAST, NOT)[min(worst + (worst > 0 and stateful), 2)]


def _executes(node: Node) -> bool:
    return isinstance(node, TopologyStep) and isinstance(node.operator, RunJobs)


def _dependence(topology: Topology, node: Node) -> _Dependence:
    by_name = {item.name: item for item in topology.nodes}
    worst, twice, ordered, executed = 0, False, True, False
    waiting = [_Place(node, "")]
    known = set()
    while waiting:
        place = waiting.pop()
        at, below, passed, keeps = place
        if (at.name, below, passed, keeps) in known:
            continue
        known.add((at.name, below, passed, keeps))
        if isinstance(at, TopologyStep):
            keeps = keeps or bool(at.owns or at.uses)
            if at is not node:
                # An aggregate forwards intermediate results at commits, from which later steps compute.
                executed = executed or _executes(at)
                ordered = ordered and not at.operator.order_depends_on_slices
                passed = min(2, passed + at.operator.forwards_at_commits_to(below))
        worst = max(worst, passed)
        waiting += [_Place(by_name[parent], at.name, passed, keeps) for parent in at.parents]
        if isinstance(at, SourceNode):
            # A queue that writes the jobs of its schedules feeds itself.
            feeding = [
                sink
                for sink in topology.sinks
                if sink.topic in at.topics
                and not (at.own is not None and any(_executes(by_name[parent]) for parent in sink.parents))
            ]
            twice = twice or bool(keeps and feeding)
            waiting += [_Place(sink, at.name, passed, keeps) for sink in feeding]
    return _Dependence(worst, twice, ordered, executed)
