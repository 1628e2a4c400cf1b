"""How an app's connectors do: what systems report of their sources, and what sinks have written."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streams.console.app_snapshot import AppSnapshot
    from streams.monitoring.scrape import Scrape
    from streams.monitoring.worker_report import PartitionStatus, WorkerReport

COLUMNS = ("lag_bytes", "lag_seconds", "lag", "retained_bytes", "snapshot_tables", "snapshot_rows")
"""The figures of sources that have columns of their own."""


class SourceTask(NamedTuple):
    """A task of a source connector. ``None`` is unknown."""

    name: str
    source: str
    connector: str
    worker: str | None
    state: str
    """``read``, ``starting``, ``unavailable`` or ``unknown``."""
    problem: str
    figures: Mapping[str, float]
    """As the system reports them, e.g. ``lag_bytes``."""

    @property
    def others(self) -> Mapping[str, float]:
        """The figures without a column of their own."""
        return {name: value for name, value in self.figures.items() if name not in COLUMNS}


class Sink(NamedTuple):
    """A sink connector, in all workers. ``None`` is unknown."""

    name: str
    connector: str
    topics: Sequence[str]
    state: str
    """``written``, ``unavailable`` or ``unknown``."""
    problems: Sequence[tuple[str, str]]
    """Workers that cannot write to it, and why."""
    refused: int | None
    """Rows that became dead letters, since the workers were started."""
    lag: int | None
    waiting: float | None
    partitions: Sequence[tuple[WorkerReport, PartitionStatus]]
    """Of its topics, those that wait longest first."""


class Connectors(NamedTuple):
    """All connectors of an app."""

    sources: Sequence[SourceTask]
    sinks: Sequence[Sink]
    others: Sequence[tuple[str, str, str]]
    """Workers, connectors and problems that belong to none of these."""


def connectors(app: AppSnapshot, figures: Mapping[str, Scrape | None]) -> Connectors:
    """The connectors of an app, from its topology and what its workers report."""
    reported = {
        (worker.worker, name): problem
        for worker in app.report.workers
        for name, problem in worker.problems.items()
    }
    partitions: defaultdict[str, list[tuple[WorkerReport, PartitionStatus]]] = defaultdict(list)
    for worker, item in app.partitions:
        partitions[item.topic].append((worker, item))
    sources: list[SourceTask] = []
    sinks: list[Sink] = []
    for part in (app.topology or {}).get("subtopologies", ()):
        nodes = {node["name"]: node for node in part["nodes"]}
        for node in part["nodes"]:
            if "connector" not in node:
                continue
            if node["role"] == "source":
                found = [item for topic in node["topics"] for item in partitions[topic]]
                sources += _tasks(node, found, figures, reported)
            else:
                sinks.append(_sink(app, node, nodes, partitions, reported))
    known = {task.name for task in sources} | {sink.name for sink in sinks}
    others = [
        (worker, name, problem) for (worker, name), problem in sorted(reported.items()) if name not in known
    ]
    return Connectors(sources, sinks, others)


def _tasks(
    node: Mapping[str, Any],
    partitions: Iterable[tuple[WorkerReport, PartitionStatus]],
    figures: Mapping[str, Scrape | None],
    reported: Mapping[tuple[str, str], str],
) -> list[SourceTask]:
    source = node["name"]
    owners = {f"{source}-{item.partition}": worker.worker for worker, item in partitions if item.task}
    numbers = {f"{source}-{item.partition}" for _, item in partitions}
    values: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for worker, scrape in figures.items():
        for name in () if scrape is None else scrape.samples:
            if name.startswith("streams_source_") and scrape is not None:
                for task, value in scrape.by_label(name).items():
                    if task.rpartition("-")[0] == source:
                        values[task][name.removeprefix("streams_source_")] = value
                        owners.setdefault(task, worker)
    found = []
    for task in sorted(numbers | values.keys() | owners.keys(), key=_by_number) or [f"{source}-0"]:
        owner = owners.get(task)
        problem = "" if owner is None else reported.get((owner, task), "")
        state = "unavailable" if problem else "unknown" if owner is None else "read"
        if state == "read" and not values[task]:
            state = "starting" if node["connector"] == "debezium" else "read"
        found.append(SourceTask(task, source, node["connector"], owner, state, problem, values[task]))
    return found


def _sink(
    app: AppSnapshot,
    node: Mapping[str, Any],
    nodes: Mapping[str, Any],
    partitions: Mapping[str, Sequence[tuple[WorkerReport, PartitionStatus]]],
    reported: Mapping[tuple[str, str], str],
) -> Sink:
    name = node["name"]
    topics = sorted(_topics(name, nodes))
    found = [item for topic in topics for item in partitions.get(topic, ())]
    problems = [(worker, problem) for (worker, own), problem in sorted(reported.items()) if own == name]
    lags = [item.lag for _, item in found]
    waiting = [item.waiting_seconds for _, item in found]
    steps = [step for worker in app.report.workers for step in worker.steps if step.step == name]
    return Sink(
        name,
        node["connector"],
        topics,
        "unavailable" if problems else "written" if found else "unknown",
        problems,
        sum(step.dead_letters for step in steps) if app.report.workers else None,
        _unless_unknown(lags, sum),
        _unless_unknown(waiting, max),
        sorted(found, key=lambda item: _worst(item[1])),
    )


def _topics(name: str, nodes: Mapping[str, Any]) -> set[str]:
    """The topics that a step's records come from, within its subtopology."""
    found: set[str] = set()
    seen: set[str] = set()
    left = [name]
    while left:
        node = nodes.get(left.pop())
        if node is None or node["name"] in seen:
            continue
        seen.add(node["name"])
        if node["role"] == "source":
            found |= set(map(str, node["topics"]))
        left += node["parents"]
    return found


def _unless_unknown(values: Sequence[Any], combine: Any) -> Any:
    return None if not values or None in values else combine(values)


def _worst(item: PartitionStatus) -> tuple[bool, float, str, int]:
    return item.waiting_seconds is not None, -(item.waiting_seconds or 0.0), item.topic, item.partition


def _by_number(task: str) -> tuple[int, str]:
    number = task.rpartition("-")[2]
    return (int(number) if number.isdecimal() else 0), task
