"""The metrics of a queue of jobs, and its part of the lag. Read when they are scraped, from any thread."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from streams.errors import StateError
from streams.jobs.job_store import STORE, JobStore, StoredState
from streams.jobs.queue import JobQueue
from streams.state.buffered import prefix_stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from streams.jobs.queue_numbers import QueueNumbers
    from streams.runtime.task import Task
    from streams.runtime.worker import Worker
    from streams.state.store import Store

LOOKED_AT = 100
"""How many waiting jobs in the store are looked at, to find the one that has waited longest."""


class QueueMetrics:
    """The metrics of a worker's jobs."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """The metrics, if the worker has a part of the queue."""
        found = [
            (task, work, work.numbers())
            for task in self._worker.tasks.values()
            for work in task.background_work
            if isinstance(work, JobQueue)
        ]
        if not found:
            return
        numbers = [item for _, _, item in found]
        yield _gauge("jobs_running", "Jobs that run, by function.", _sum(item.running for item in numbers))
        yield _gauge(
            "jobs_waiting", "Jobs that are due and do not run, by function.", _sum(map(waiting_jobs, numbers))
        )
        for name, text, state in (
            ("jobs_delayed", "Jobs that are not due, by function.", StoredState.DELAYED),
            ("jobs_retrying", "Jobs that wait for their next attempt, by function.", StoredState.RETRYING),
        ):
            yield _gauge(name, text, _sum(_stored(item, state) for item in numbers))
        yield GaugeMetricFamily(
            "streams_jobs_oldest_due_seconds",
            "How long the job that has waited longest has been due; 0 without one.",
            value=_longest_due(found),
        )
        yield GaugeMetricFamily(
            "streams_jobs_overdue",
            "Jobs that run in a thread for longer than their time limit.",
            value=found[0][1].overdue,
        )
        yield GaugeMetricFamily(
            "streams_jobs_places", "How many jobs the worker executes at once.", value=found[0][1].places
        )
        taken = CounterMetricFamily(
            "streams_jobs_seconds",
            "Time for which attempts ran that have ended, by function; jobs that run together share it.",
            labels=["job"],
        )
        for job, seconds in found[0][1].seconds.items():
            taken.add_metric([job], seconds)
        yield taken
        ended = CounterMetricFamily(
            "streams_jobs_ended", "Jobs that have ended, by function and ending.", labels=["job", "ending"]
        )
        for (job, ending), count in dict(found[0][1].ended_counts).items():
            ended.add_metric([job, ending.value], count)
        yield ended
        for name, text, times in (
            (
                "schedule_next_seconds",
                "The next instant of a schedule, in seconds since the epoch; one that has passed is late.",
                [work.next_instants for _, work, _ in found],
            ),
            (
                "schedule_missed_seconds",
                "When this worker last found that instants of a schedule were missed, since the epoch.",
                [work.missed_instants for _, work, _ in found],
            ),
        ):
            family = GaugeMetricFamily(f"streams_{name}", text, labels=["schedule"])
            for schedule, time_of_it in (item for each in times for item in each.items()):
                family.add_metric([schedule], time_of_it / 1000)
            yield family


def longest_due(worker: Worker) -> float:
    """For how many seconds the job has been due that has waited longest and does not run; 0 without one."""
    return _longest_due(
        [
            (task, work, work.numbers())
            for task in worker.tasks.values()
            if task.has_background_work
            for work in task.background_work
            if isinstance(work, JobQueue)
        ]
    )


def _longest_due(found: Sequence[tuple[Task, JobQueue, QueueNumbers]]) -> float:
    oldest = [
        since for task, _, item in found for since in (item.oldest, _oldest_stored(task)) if since is not None
    ]
    now = time.time_ns() // 1_000_000
    return max(0, now - min(oldest)) / 1000 if oldest else 0.0


def jobs_lag(task: Task) -> int:
    """How many unfinished jobs of a task could run: those that are due and not paused, running ones included.

    The paused ones in the store count, as their number is not known without reading them.
    """
    total = 0
    for work in task.background_work:
        if isinstance(work, JobQueue):
            item = work.numbers()
            total += waiting_jobs(item).total() + item.running.total() - item.paused
    return total


def waiting_jobs(item: QueueNumbers) -> Counter[str]:
    """Jobs that are due and do not run, by function; paused ones included."""
    return item.waiting + _stored(item, StoredState.WAITING) - item.running_stored


def _stored(item: QueueNumbers, state: StoredState) -> Counter[str]:
    return Counter({name: counts[state] for name, counts in item.stored.items() if counts[state]})


def _sum(counters: Iterator[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())


def _gauge(name: str, text: str, values: Counter[str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"streams_{name}", text, labels=["job"])
    for job, value in values.items():
        family.add_metric([job], value)
    return family


class _Committed:
    """The committed entries of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._store.scan(prefix, prefix_stop(prefix)))

    def put(self, key: bytes, value: bytes | None) -> None:  # noqa: ARG002 - of the protocol
        raise AssertionError("only the task writes")

    def delete(self, key: bytes) -> None:  # noqa: ARG002 - of the protocol
        raise AssertionError("only the task writes")


def _oldest_stored(task: Task) -> int | None:
    """Since when the job has been due that has waited longest in the store, of the first ones there."""
    try:
        jobs = JobStore(_Committed(task.committed_store(STORE).store)).jobs()
        return min(
            (
                max(job.timestamp, job.released)
                for _, job in islice(jobs, LOOKED_AT)
                if job.state is StoredState.WAITING
            ),
            default=None,
        )
    except StateError:
        # The task was closed a moment ago.
        return None
