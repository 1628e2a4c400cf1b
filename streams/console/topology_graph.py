"""The graph of an app as a worker or a program describes it, and the figures of its steps."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streams.console.recent_reports import StepRate
from streams.monitoring.bottleneck import Cause, hot_partition
from streams.monitoring.partition_figures import known_total
from streams.records import TopicPartition
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.console.app_snapshot import AppSnapshot
    from streams.monitoring.worker_report import PartitionStatus


class OnError(msgspec.Struct, frozen=True):
    """What happens with a record that a step cannot process."""

    action: str = ""
    retries: int = 0


class NodeDescription(msgspec.Struct, frozen=True):
    """A node, as ``streams describe --format json`` has it."""

    name: str
    role: str
    """``source``, ``step`` or ``sink``."""
    parents: tuple[str, ...] = ()
    on_error: OnError = OnError()
    operator: str = ""
    code: str | None = None
    stores: tuple[str, ...] = ()
    connector: str = ""
    """The kind of its connector, if it is one."""
    key: str = ""
    value: str = ""
    topics: tuple[str, ...] = ()
    topic: str | None = None

    @property
    def shape(self) -> str:
        """``connector``, else its role."""
        return "connector" if self.connector else self.role

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        if self.connector:
            return f"{self.connector} {self.role}"
        if self.role == "step":
            return f"{self.operator} {self.code}" if self.code else self.operator
        return f"{self.role}: {self.key} → {self.value}"

    @property
    def read_topics(self) -> tuple[str, ...]:
        """The topics (and patterns, as ``/…/``) that it reads; a connector's own topic is an empty one."""
        return () if self.connector else self.topics


class SubtopologyDescription(msgspec.Struct, frozen=True):
    """Connected nodes, which one task runs for one partition number."""

    number: int
    nodes: tuple[NodeDescription, ...]


class GlobalTableDescription(msgspec.Struct, frozen=True):
    """A topic that every worker reads completely into a store."""

    name: str
    topic: str
    key: str = ""
    value: str = ""


@decodable
class GraphDescription(msgspec.Struct, frozen=True):
    """All nodes of an app."""

    subtopologies: tuple[SubtopologyDescription, ...]
    global_tables: tuple[GlobalTableDescription, ...] = ()

    @property
    def nodes(self) -> list[tuple[int, NodeDescription]]:
        """All nodes with the numbers of their subtopologies."""
        return [(part.number, node) for part in self.subtopologies for node in part.nodes]


def read_graph(topology: Mapping[str, Any] | None) -> GraphDescription | None:
    """The graph; ``None`` if it is unknown, or is described in a way that this version does not know."""
    if topology is None:
        return None
    try:
        return msgspec.convert(topology, GraphDescription)
    except msgspec.ValidationError:
        return None


class StepFigures(NamedTuple):
    """A step in all workers that answer. ``None`` is unknown."""

    rate: float | None
    """Records that reach it, for each second."""
    share: float | None
    """The share of the workers' time that it takes; ``None`` for a source as well."""
    busiest: float | None
    """The share of the time of the worker where that is largest."""
    dead_letters: int | None
    """Since the workers started, as the next two."""
    skipped: int | None
    late: int | None
    new_dead_letters: int
    """In the last seconds."""


def step_figures(app: AppSnapshot, graph: GraphDescription) -> dict[str, StepFigures]:
    """The figures of all steps, by name."""
    workers = app.report.workers
    rates = [app.rates.get(worker.worker) for worker in workers]
    lately = [item for item in rates if item is not None] if workers and all(rates) else None
    failures: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for worker in workers:
        for item in worker.steps:
            counts = failures[item.step]
            counts[0] += item.dead_letters
            counts[1] += item.skipped
            counts[2] += item.late
    read = _source_rates(app, graph)
    found = {}
    for _, node in graph.nodes:
        letters, skipped, late = failures[node.name] if workers else (None, None, None)
        rate: float | None
        share = busiest = None
        new = 0
        if lately is None:
            rate = None
        else:
            nothing = StepRate(0.0, 0.0, 0)
            of_step = [(item.steps.get(node.name, nothing), item.seconds) for item in lately]
            rate = sum(step.records for step, _ in of_step)
            new = sum(step.dead_letters for step, _ in of_step)
            if node.role != "source":
                seconds = sum(seconds for _, seconds in of_step)
                share = sum(step.share * seconds for step, seconds in of_step) / seconds
                busiest = max(step.share for step, _ in of_step)
        found[node.name] = StepFigures(rate, share, busiest, letters, skipped, late, new)
    for _, node in graph.nodes:
        if node.role == "source":
            found[node.name] = found[node.name]._replace(rate=_read(node, graph, found, read))
    return found


def _read(
    node: NodeDescription,
    graph: GraphDescription,
    figures: Mapping[str, StepFigures],
    read: Mapping[str, float | None],
) -> float | None:
    """What a source reads: what reaches a step that follows only it.

    Without such a step, by the offsets of its partitions, which also count markers of transactions.
    """
    following = [other.name for _, other in graph.nodes if other.parents == (node.name,)]
    return figures[following[0]].rate if following else read[node.name]


def _source_rates(app: AppSnapshot, graph: GraphDescription) -> dict[str, float | None]:
    """What each source reads, by the offsets of its partitions."""
    partitions: defaultdict[str, list[PartitionStatus]] = defaultdict(list)
    for _, item in app.partitions:
        partitions[item.topic].append(item)
    missing = {item.topic for item in app.report.missing}
    named = {topic for _, node in graph.nodes for topic in node.topics}
    found: dict[str, float | None] = {}
    for _, node in graph.nodes:
        if node.role != "source":
            continue
        topics = {topic for topic in partitions if _reads(node, topic, named)}
        figures = [item.processing_rate for topic in topics for item in partitions[topic]]
        unknown = not topics or any(_reads(node, topic, named) for topic in missing)
        # Offsets of a connector's own topic say nothing of its records.
        found[node.name] = None if unknown or node.connector else known_total(figures, 0.0)
    return found


def _reads(node: NodeDescription, topic: str, named: set[str]) -> bool:
    if topic in node.topics:
        return True
    if topic in named:
        return False
    patterns = [text[1:-1] for text in node.topics if len(text) > 2 and text[0] == text[-1] == "/"]
    try:
        return any(re.fullmatch(pattern, topic) for pattern in patterns)
    except re.error:
        return False


def edge_rates(
    graph: GraphDescription, figures: Mapping[str, StepFigures]
) -> dict[tuple[str, str], float | None]:
    """Records for each second between two nodes.

    What reaches a node with one parent comes from that. A source gives what it reads to all. Of a node with
    several parents, what the others do not give comes from the last one, if only that is unknown.
    """
    sources = {node.name for _, node in graph.nodes if node.role == "source" and not node.connector}
    found: dict[tuple[str, str], float | None] = {}
    for _, node in graph.nodes:
        rate = figures[node.name].rate
        if len(node.parents) == 1:
            found[node.parents[0], node.name] = rate
            continue
        unknown: list[str] = []
        rest = rate
        for parent in node.parents:
            known = figures[parent].rate if parent in sources else None
            found[parent, node.name] = known
            if known is None:
                unknown.append(parent)
            elif rest is not None:
                rest -= known
        if len(unknown) == 1 and rest is not None:
            found[unknown[0], node.name] = max(0.0, rest)
    return found


def causes(app: AppSnapshot) -> dict[str, str]:
    """What holds the app back: the names of steps, sinks, connectors and topics, with the sentences."""
    found: dict[str, str] = {}
    for worker in app.report.workers:
        for item in worker.bottlenecks:
            subject = item.subject
            if item.cause in {Cause.TRANSACTION.value, Cause.OTHER_INPUT.value}:
                subject = subject.rpartition("-")[0]
            if item.cause != Cause.PARTITION.value:
                found.setdefault(subject, item.sentence)
    # A worker sees its own partitions only.
    arriving: defaultdict[str, dict[TopicPartition, float]] = defaultdict(dict)
    for _, status in app.partitions:
        if status.arrival_rate is not None:
            arriving[status.topic][TopicPartition(status.topic, status.partition)] = status.arrival_rate
    for topic, rates in arriving.items():
        for bottleneck in hot_partition(rates):
            found[topic] = bottleneck.sentence
    return found


def workers_of(app: AppSnapshot, step: str) -> Sequence[tuple[str, StepRate | None, tuple[int, int, int]]]:
    """A step in each worker: its rates, if known; and its dead letters, skipped and late records."""
    rows = []
    for worker in app.report.workers:
        status = next((item for item in worker.steps if item.step == step), None)
        rates = app.rates.get(worker.worker)
        counts = (0, 0, 0) if status is None else (status.dead_letters, status.skipped, status.late)
        rows.append((worker.worker, None if rates is None else rates.steps.get(step), counts))
    return sorted(rows, key=lambda row: (-(row[1].share if row[1] else 0.0), row[0]))
