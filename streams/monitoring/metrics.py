"""All metrics; they are read from the worker when they are scraped."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest

from streams.monitoring.observed_metrics import consumer_group, observed
from streams.monitoring.program_metrics import samples
from streams.monitoring.queue_metrics import QueueMetrics, jobs_lag
from streams.runtime.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from streams.monitoring.observer import Observer
    from streams.monitoring.program_metrics import Metrics
    from streams.monitoring.watchdog import Watchdog
    from streams.queries.directory import Replicas
    from streams.runtime.worker import Worker

_COMMIT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class WorkerMetrics:
    """A worker's metrics and those that the program has declared, in Prometheus' text format.

    The worker counts in plain attributes, once per slice; a scrape turns them into metrics.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self,
        worker: Worker,
        watchdog: Watchdog | None = None,
        replicas: Replicas | None = None,
        program: Metrics | None = None,
        observer: Observer | None = None,
        alerts: Callable[[], Mapping[str, int] | None] | None = None,
    ) -> None:
        self._worker = worker
        self._program = program
        self._observer = observer
        self._alerts = alerts
        self._queue = QueueMetrics(worker)
        self._replicas = replicas
        self._watchdog = watchdog
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        commits = Histogram(
            "streams_commit_seconds",
            "Duration of commits that moved offsets.",
            buckets=_COMMIT_BUCKETS,
            registry=self._registry,
        )
        worker.observe_commit = commits.observe

    def exposition(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Read the worker. Called by the registry."""
        counts = self._worker.counts
        for name, text, value in (
            ("records_in", "Records read.", sum(count.records_in for count in counts)),
            ("bytes_in", "Bytes of values read.", sum(count.bytes_in for count in counts)),
            ("records_out", "Records written, dead letters included.", sum(c.records_out for c in counts)),
            ("bytes_out", "Bytes of values written.", sum(count.bytes_out for count in counts)),
        ):
            yield CounterMetricFamily(f"streams_{name}", text, value=value)
        yield from self._connectors()
        for name, text, by_step in (
            ("dead_letters", "Records written as dead letters.", [count.dead_letters for count in counts]),
            ("skipped", "Records skipped by policy.", [count.skipped for count in counts]),
            ("late", "Records that were too late for a window or join.", [count.late for count in counts]),
        ):
            family = CounterMetricFamily(f"streams_{name}", text, labels=["step"])
            for step, value in sum((Counter(item) for item in by_step), Counter[str]()).items():
                family.add_metric([step], value)
            yield family
        retried = CounterMetricFamily(
            "streams_dead_letters_retried", "Dead letters that were retried, by result.", labels=["result"]
        )
        for result, value in sum((count.retried for count in counts), Counter[str]()).items():
            retried.add_metric([result], value)
        yield retried
        skipped = CounterMetricFamily(
            "streams_out_of_range_skipped",
            "Offsets skipped by out_of_range_reset: mostly records that were deleted before they were read.",
            labels=["topic", "partition"],
        )
        for partition, offsets in self._worker.skipped_offsets.items():
            skipped.add_metric([partition.topic, str(partition.partition)], offsets)
        yield skipped
        stages = self._worker.stages
        seconds = {"poll": stages.poll, "produce": stages.produce, "commit": stages.commit}
        for stage in ("decode", "process"):
            seconds[stage] = sum(count.seconds[stage] for count in counts)
        spent = CounterMetricFamily("streams_stage_seconds", "Time spent, by stage.", labels=["stage"])
        for stage, spent_seconds in seconds.items():
            spent.add_metric([stage], spent_seconds)
        yield spent
        yield from self._tasks()
        lag = GaugeMetricFamily(
            "streams_lag",
            "Records between the position and the partition's end, and jobs that could run.",
            labels=["topic", "partition"],
        )
        jobs = {
            partition: count
            for task in self._worker.tasks.values()
            if task.has_background_work and (count := jobs_lag(task))
            for partition in list(task.positions)
        }
        for partition, progress in self._worker.progress.items():
            # Records that a queue of jobs has read are not finished yet.
            unfinished = jobs.get(partition, 0)
            lag.add_metric([partition.topic, str(partition.partition)], progress.lag + unfinished)
        yield lag
        yield from self._queue.collect()
        yield from self._restoring()
        yield GaugeMetricFamily("streams_state_bytes", "Memory of stores.", value=self._worker.state_bytes)
        times = GaugeMetricFamily(
            "streams_stream_time_seconds", "Stream time since the epoch.", labels=["task", "step"]
        )
        for identifier, task in self._worker.tasks.items():
            for step, time in task.stream_times.items():
                times.add_metric([str(identifier), step], time / 1000)
        yield times
        yield GaugeMetricFamily(
            "streams_stalled_partitions",
            "Partitions with lag and no progress for stall_timeout.",
            value=0 if self._watchdog is None else len(self._watchdog.stalls),
        )
        yield GaugeMetricFamily(
            "streams_replicas_age_seconds",
            "Seconds since the workers' directory was last read; 0 if it is not used.",
            value=0 if self._replicas is None else self._replicas.seconds_behind,
        )
        if self._observer is not None:
            yield from observed(self._observer.latest, self._worker.wall_clock())
            yield from self._ledger(self._observer)
            yield from self._scaling(self._observer)
            yield from consumer_group(self._observer.latest, self._worker.application)
        yield from self._steps()
        yield from self._rebalances()
        yield from self._switching()
        yield from self._firing()
        yield from self._programs_own()

    def _switching(self) -> Iterator[Metric]:
        """For an app of a blue/green pair."""
        switching = self._worker.switching
        if switching is None:
            return
        yield GaugeMetricFamily(
            "streams_muted",
            "1 while the results of this app are dropped, as another app of its blue/green pair emits.",
            value=int(switching.muted),
        )
        yield GaugeMetricFamily(
            "streams_stopped_for_switch",
            "1 while input is held back for a switch.",
            value=int(switching.stopped),
        )
        yield CounterMetricFamily(
            "streams_muted_dropped", "Records and rows dropped while muted.", value=switching.dropped
        )

    def _ledger(self, observer: Observer) -> Iterator[Metric]:
        """Records that are not accounted for. Without a series until the ledger was checked."""
        difference = GaugeMetricFamily(
            "streams_ledger_difference",
            "Records that are missing, or too many, since the worker's start; 0 if all are accounted for.",
            labels=["task", "topic"],
        )
        if observer.ledger.figures is not None:
            for labels, records in observer.ledger.by_topic().items():
                difference.add_metric(labels, records)
        yield difference

    def _scaling(self, observer: Observer) -> Iterator[Metric]:
        """For autoscalers. What is not known has no series: a sum over other workers alone is too small."""
        labels = [self._worker.application]
        tasks = GaugeMetricFamily(
            "streams_tasks",
            "Tasks of the worker, those that are restored included: more workers than all of them are idle.",
            labels=["app"],
        )
        tasks.add_metric(labels, len(self._worker.held))
        yield tasks
        yield GaugeMetricFamily(
            "streams_waiting_goal_seconds", "How long a record may wait (waiting_goal).", value=observer.goal
        )
        workers = observer.latest.workers
        for name, text, value in (
            ("wanted", "The worker's part of how many workers the app needs.", workers and workers.wanted),
            (
                "useful",
                "The same where a task counts as one worker at most, as it cannot be divided.",
                workers and workers.useful,
            ),
        ):
            family = GaugeMetricFamily(f"streams_workers_{name}", text, labels=["app"])
            if value is not None:
                family.add_metric(labels, value)
            yield family

    def _tasks(self) -> Iterator[Metric]:
        """What each task takes: the busiest one decides whether more workers would help."""
        information = GaugeMetricFamily("streams_worker_info", "1.", labels=["app", "worker"])
        information.add_metric([self._worker.application, self._worker.name], 1)
        yield information
        built = GaugeMetricFamily("streams_build_info", "1.", labels=["version", "python"])
        built.add_metric([version("streams"), platform.python_version()], 1)
        yield built
        records = CounterMetricFamily(
            "streams_task_records", "Records read, by task, since the worker has it.", labels=["task"]
        )
        seconds = CounterMetricFamily(
            "streams_task_seconds", "Time spent decoding and processing, by task.", labels=["task"]
        )
        for identifier, task in self._worker.tasks.items():
            records.add_metric([str(identifier)], task.counts.records_in)
            seconds.add_metric([str(identifier)], sum(task.counts.seconds.values()))
        yield records
        yield seconds

    def _steps(self) -> Iterator[Metric]:
        """What each step takes, waiting included, without the steps downstream of it."""
        total = Counts.total(self._worker.counts)
        records = CounterMetricFamily(
            "streams_step_records", "Records that reached the step.", labels=["step"]
        )
        seconds = CounterMetricFamily(
            "streams_step_seconds", "Time spent in the step, waiting included.", labels=["step"]
        )
        for step, spent in total.step_seconds.items():
            seconds.add_metric([step], spent)
        for step, number in total.step_records.items():
            records.add_metric([step], number)
        yield records
        yield seconds

    def _rebalances(self) -> Iterator[Metric]:
        rebalances = self._worker.rebalances
        changes = CounterMetricFamily(
            "streams_rebalances", "Changes of the worker's partitions, by reason.", labels=["reason"]
        )
        for reason, count in rebalances.counts.items():
            changes.add_metric([reason.value], count)
        yield changes
        yield CounterMetricFamily(
            "streams_rebalance_seconds", "Time spent in rebalances.", value=rebalances.seconds
        )
        yield CounterMetricFamily(
            "streams_transactions_aborted",
            "Transactions whose results were dropped and whose input was read again.",
            value=self._worker.status.rewinds,
        )

    def _connectors(self) -> Iterator[Metric]:
        """What connectors report: those that cannot be used, and numbers of the systems that are read."""
        problems = self._worker.problems
        if problems:
            unavailable = GaugeMetricFamily(
                "streams_connector_unavailable",
                "1 for each connector that cannot be used now.",
                labels=["connector"],
            )
            for name in problems:
                unavailable.add_metric([name], 1)
            yield unavailable
        families: dict[str, GaugeMetricFamily] = {}
        for source, health in self._worker.source_health.items():
            for name, value in health.metrics.items():
                family = families.setdefault(
                    name,
                    GaugeMetricFamily(
                        f"streams_source_{name}", f"{name} as the source reports it.", labels=["source"]
                    ),
                )
                family.add_metric([source], value)
        yield from families.values()

    def _firing(self) -> Iterator[Metric]:
        """The app's alerts, from the worker that decides about them: a sum over workers has each once."""
        counts = None if self._alerts is None else self._alerts()
        if counts is None:
            return
        firing = GaugeMetricFamily(
            "streams_alerts_firing", "Alerts of the app that fire, by name.", labels=["alert"]
        )
        for name, count in counts.items():
            firing.add_metric([name], count)
        yield firing

    def _programs_own(self) -> Iterator[Metric]:
        for metric in samples(self._program) if self._program is not None else ():
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.description, labels=metric.labels)
            for labels, value in metric.values.items():
                family.add_metric(labels, value)
            yield family

    def _restoring(self) -> Iterator[Metric]:
        left = GaugeMetricFamily(
            "streams_restore_records_left", "Changelog records that a task still needs.", labels=["task"]
        )
        done = GaugeMetricFamily(
            "streams_restore_records_done", "Changelog records that a task has restored.", labels=["task"]
        )
        for identifier, progress in self._worker.restoring.items():
            left.add_metric([str(identifier)], progress.total - progress.done)
            done.add_metric([str(identifier)], progress.done)
        yield left
        yield done
        behind = GaugeMetricFamily(
            "streams_standby_lag",
            "Changelog records that a standby replica has not read yet.",
            labels=["task"],
        )
        for identifier, lag in self._worker.standby_lag.items():
            behind.add_metric([str(identifier)], lag)
        yield behind
        yield GaugeMetricFamily(
            "streams_standby_abandoned",
            "Tasks of which this worker cannot keep a standby replica.",
            value=self._worker.standbys_abandoned,
        )
