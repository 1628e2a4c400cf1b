"""The reports of an app's workers, put together: one answer to whether the app keeps up."""

from __future__ import annotations

from collections import defaultdict
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from streams.monitoring.bottleneck import FEWEST_RECORDS, WINDOW_SECONDS, hot_partition
from streams.monitoring.condition import Condition
from streams.monitoring.partition_figures import known_longest, known_total
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.monitoring.worker_report import PartitionStatus, WorkerReport

NO_WORKERS = "no workers"
"""The condition of an app of which no worker answers."""

LEAST_RATE = FEWEST_RECORDS / WINDOW_SECONDS
"""Records a second of a topic from which on it is said that a partition gets most of them."""


class AppReport(NamedTuple):
    """What is known of an app. ``None`` is unknown."""

    app: str
    condition: str
    """The worst of its workers' conditions, or ``no workers``."""
    since: int | None
    """Since when, in milliseconds since the epoch."""
    caught_up_in: float | None
    """Seconds until the slowest worker has caught up, while they catch up."""
    waiting: float | None
    """The longest waiting time, in seconds."""
    lag: int | None
    arrival_rate: float | None
    processing_rate: float | None
    deleted_in: float | None
    """Seconds until records are deleted unprocessed, at the present rates; ``None`` if they are not."""
    bottlenecks: Sequence[str]
    """Sentences, those that concern most workers first."""
    workers: Sequence[WorkerReport]
    silent: Sequence[str]
    """The addresses at which no worker answers."""
    missing: Sequence[TopicPartition]
    """Partitions of the input that no worker has reported."""
    wanted: int | None
    """Workers that the app needs; ``None`` while a worker does not know its part, or does not answer."""
    useful: int | None
    """The same without those that would have nothing to do, as a task cannot be divided."""
    largest_task: str | None
    """The task that needs most, by what arrives and what a record takes; ``None`` if that is unknown."""


def put_together(
    app: str,
    reports: Mapping[str, WorkerReport | None],
    partitions: Sequence[TopicPartition],
) -> AppReport:
    """The reports by address (``None`` where no worker answers), and the partitions of the app's input.

    A partition that several report, as it has just moved, is the one's whose figures are newest.
    """
    workers = [report for report in reports.values() if report is not None and report.app == app]
    silent = sorted(address for address, report in reports.items() if report is None)
    known: dict[TopicPartition, PartitionStatus] = {}
    for worker in sorted(workers, key=lambda item: item.measured):
        for item in worker.partitions:
            known[TopicPartition(item.topic, item.partition)] = item
    figures = list(known.values())
    missing = [partition for partition in partitions if partition not in known]
    unknown = [None] * len(missing)
    condition, since, caught_up_in = _condition(workers)
    complete = not silent and not missing
    return AppReport(
        app,
        condition,
        since,
        caught_up_in,
        known_longest([*(item.waiting_seconds for item in figures), *unknown]),
        known_total([*(item.lag for item in figures), *unknown], 0),
        known_total([*(item.arrival_rate for item in figures), *unknown], 0.0),
        known_total([*(item.processing_rate for item in figures), *unknown], 0.0),
        min(
            (item.deleted_in_seconds for item in figures if item.deleted_in_seconds is not None), default=None
        ),
        _sentences(workers, figures),
        workers,
        silent,
        missing,
        _workers([worker.workers_wanted for worker in workers], complete=complete),
        _workers([worker.workers_useful for worker in workers], complete=complete),
        _largest_task(workers),
    )


def _workers(parts: Sequence[float | None], *, complete: bool) -> int | None:
    """How many workers all parts need together, one at least: without one, nothing is measured."""
    known = [part for part in parts if part is not None]
    if not complete or not known or len(known) < len(parts):
        return None
    # Rounding errors of the sum want no worker.
    return max(1, ceil(round(sum(known), 6)))


def _largest_task(workers: Sequence[WorkerReport]) -> str | None:
    needs: dict[str, float] = {}
    for worker in workers:
        rates: defaultdict[str | None, float] = defaultdict(float)
        for item in worker.partitions:
            rates[item.task] += item.arrival_rate or 0.0
        for task in worker.tasks:
            if task.records:
                needs[task.task] = rates[task.task] * task.seconds / task.records
    return max(needs, key=lambda task: needs[task], default=None)


def _condition(workers: Sequence[WorkerReport]) -> tuple[str, int | None, float | None]:
    if not workers:
        return NO_WORKERS, None, None
    worst = max((Condition(worker.condition) for worker in workers), key=lambda item: item.severity)
    such = [worker for worker in workers if worker.condition == worst.value]
    times = [worker.caught_up_in_seconds for worker in such]
    known = [time for time in times if time is not None]
    caught_up_in = max(known, default=None) if len(known) == len(times) else None
    return worst.value, min(worker.since for worker in such), caught_up_in


def _sentences(workers: Sequence[WorkerReport], figures: Sequence[PartitionStatus]) -> list[str]:
    """Each cause once, with the workers where it is; hot partitions by all of a topic's partitions."""
    where: defaultdict[tuple[str, str], list[tuple[float, str, str]]] = defaultdict(list)
    for worker in workers:
        for item in worker.bottlenecks:
            if item.cause != "partition":
                where[item.cause, item.subject].append((item.share or 0.0, worker.worker, item.sentence))
    found = []
    for places in sorted(where.values(), key=len, reverse=True):
        _, _, sentence = max(places)
        names = sorted(name for _, name, _ in places)
        found.append(f"{sentence} ({_named(names)})" if len(workers) > 1 else sentence)
    rates: defaultdict[str, dict[TopicPartition, float]] = defaultdict(dict)
    lags: defaultdict[str, dict[TopicPartition, float]] = defaultdict(dict)
    for figure in figures:
        place = TopicPartition(figure.topic, figure.partition)
        if figure.arrival_rate is not None:
            rates[figure.topic][place] = figure.arrival_rate
        if figure.lag is not None:
            lags[figure.topic][place] = figure.lag
    for topic in sorted({*rates, *lags}):
        # While hardly any arrive, those that have arrived before wait.
        arriving = sum(rates[topic].values()) >= LEAST_RATE
        parts = rates[topic] if arriving else lags[topic]
        if arriving or sum(parts.values()) >= FEWEST_RECORDS:
            found += [item.sentence for item in hot_partition(parts)]
    return found


def _named(workers: Sequence[str], most: int = 3) -> str:
    more = f" and {len(workers) - most} more" if len(workers) > most else ""
    return ", ".join(workers[:most]) + more
