"""What a worker reports of itself as JSON, for whoever puts the workers of an app together."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from streams.monitoring.ledger import Difference, LedgerFigures  # noqa: TC001 - msgspec reads the annotations
from streams.monitoring.series import Sample  # noqa: TC001 - msgspec reads the annotation
from streams.process.memory import resident_memory
from streams.runtime.counts import Counts
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streams.monitoring.observer import Observer
    from streams.monitoring.partition_figures import PartitionFigures
    from streams.monitoring.watchdog import Watchdog
    from streams.records import TopicPartition
    from streams.runtime.restore import RestoreProgress
    from streams.runtime.task import Task, TaskId
    from streams.runtime.worker import Worker


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A partition; see ``PartitionFigures``. ``None`` is unknown."""

    topic: str
    partition: int
    task: str | None
    """The task that processes it, or will once its stores are restored; ``None`` if it has just moved."""
    position: int | None
    end: int | None
    lag: int | None
    waiting_seconds: float | None
    arrival_rate: float | None
    processing_rate: float | None
    caught_up_in_seconds: float | None
    deleted_in_seconds: float | None
    age_seconds: float | None
    problem: str
    """Why it makes no progress; empty while it does."""


class StepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A step, in all tasks of the worker, since the worker started."""

    step: str
    records: int
    """Records that reached it; 0 for a source, whose records its partitions count."""
    seconds: float
    """Its own time, waiting included."""
    dead_letters: int
    skipped: int
    late: int


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A task: since when it runs here, what it has read and what that took."""

    task: str
    records: int
    seconds: float
    stream_time: int | None
    """The lowest of its stream times, in milliseconds since the epoch."""
    restored: int | None
    """While its stores are restored: changelog records that are done, of ``to_restore``."""
    to_restore: int | None


class RebalanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the worker's partitions; see ``Rebalance``."""

    time: int
    kind: str
    reason: str
    partitions: list[str]
    seconds: float


class BottleneckStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the worker's input back; see ``Bottleneck``."""

    cause: str
    subject: str
    share: float | None
    sentence: str


class FiringAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert of the app that fires. Times are milliseconds since the epoch."""

    alert: str
    subject: str
    severity: str
    sentence: str
    since: int
    raised: int | None
    silenced: bool


@decodable
class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of itself at ``time`` (milliseconds since the epoch)."""

    app: str
    worker: str
    version: str
    started: int
    """When its process started to report, in milliseconds since the epoch."""
    memory_bytes: int | None
    """The resident memory of its process; ``None`` where the system does not tell."""
    state: str
    """``created``, ``running``, ``stopping``, ``stopped`` or ``failed``."""
    time: int
    measured: int
    """When the figures of the partitions were measured."""
    condition: str
    since: int
    caught_up_in_seconds: float | None
    waiting_seconds: float | None
    """The longest waiting time; ``None`` if that of a partition is unknown."""
    bottlenecks: list[BottleneckStatus]
    busy_seconds: dict[str, float]
    """Time spent since the start, by stage: ``poll``, ``decode``, ``process``, ``produce``, ``commit``."""
    commits: int
    transactions_aborted: int
    problems: dict[str, str]
    """Connectors that cannot be used, and why."""
    partitions: list[PartitionStatus]
    tasks: list[TaskStatus]
    steps: list[StepStatus]
    rebalances: list[RebalanceStatus]
    ledger: list[LedgerFigures] = []
    """What became of the records, by task and topic; empty until the first check."""
    differences: list[Difference] = []
    """Records that are not accounted for."""
    alerts: list[FiringAlert] = []
    """The app's alerts that fire, if it has alerts; each worker reports the same ones."""
    sink_seconds: dict[str, float] = {}
    """How long it has waited for the systems of sinks since the start, by the sink's step."""
    workers_wanted: float | None = None
    """Its part of how many workers the app needs; the sum over all workers is to be rounded up."""
    workers_useful: float | None = None
    """The same where a task counts as one worker at most; see ``WorkersWanted``. ``None`` is unknown."""


@decodable
class WorkerHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's figures were; see ``Sample``."""

    worker: str
    started: int
    samples: list[Sample]


def status_json(
    worker: Worker, observer: Observer, watchdog: Watchdog, alerts: Sequence[FiringAlert] = ()
) -> bytes:
    """A worker's report as JSON."""
    return msgspec.json.encode(report(worker, observer, watchdog, alerts))


def report(
    worker: Worker, observer: Observer, watchdog: Watchdog, alerts: Sequence[FiringAlert] = ()
) -> WorkerReport:
    """What a worker knows of itself now, with the ``alerts`` of its app; from any thread."""
    observation, status = observer.latest, worker.status
    judgement = observation.judgement
    total = Counts.total(worker.counts)
    tasks, restoring = worker.tasks, worker.restoring
    owners = worker.owners
    problems = {stall.partition: stall.reason for stall in watchdog.stalls}
    stages, workers = worker.stages, observation.workers
    return WorkerReport(
        app=worker.application,
        worker=worker.name,
        version=version("streams"),
        started=observer.started,
        memory_bytes=resident_memory(),
        state=worker.state.value,
        time=worker.wall_clock(),
        measured=observation.time,
        condition=judgement.condition.value,
        since=observation.since,
        caught_up_in_seconds=judgement.caught_up_in,
        waiting_seconds=observation.waiting,
        bottlenecks=[
            BottleneckStatus(
                cause=item.cause.value, subject=item.subject, share=item.share, sentence=item.sentence
            )
            for item in observation.bottlenecks
        ],
        busy_seconds={
            "poll": stages.poll,
            **total.seconds,
            "produce": stages.produce,
            "commit": stages.commit,
        },
        commits=status.commits,
        transactions_aborted=status.rewinds,
        problems=worker.problems,
        partitions=[_partition(figures, owners, problems) for figures in observation.partitions.values()],
        tasks=_tasks(tasks, restoring),
        steps=[
            StepStatus(
                step=step,
                records=total.step_records.get(step, 0),
                seconds=total.step_seconds.get(step, 0.0),
                dead_letters=total.dead_letters[step],
                skipped=total.skipped[step],
                late=total.late[step],
            )
            # Sources have no time of their own, but records that they cannot read.
            for step in dict.fromkeys((*total.step_seconds, *total.dead_letters, *total.skipped, *total.late))
        ],
        rebalances=[
            RebalanceStatus(
                time=item.time,
                kind=item.kind,
                reason=item.reason.value,
                partitions=[str(partition) for partition in item.partitions],
                seconds=item.seconds,
            )
            for item in worker.rebalances.history
        ],
        ledger=list(observer.ledger.figures or ()),
        differences=list(observer.ledger.differences),
        alerts=list(alerts),
        sink_seconds=dict(worker.sink_seconds),
        workers_wanted=None if workers is None else workers.wanted,
        workers_useful=None if workers is None else workers.useful,
    )


def history_json(worker: Worker, observer: Observer, since: int) -> bytes:
    """The samples of a worker that end after ``since`` (milliseconds since the epoch), as JSON."""
    return msgspec.json.encode(
        WorkerHistory(
            worker=worker.name, started=observer.started, samples=list(observer.series.since(since))
        )
    )


def _partition(
    figures: PartitionFigures,
    owners: Mapping[TopicPartition, TaskId],
    problems: Mapping[TopicPartition, str],
) -> PartitionStatus:
    partition = figures.partition
    owner = owners.get(partition)
    return PartitionStatus(
        topic=partition.topic,
        partition=partition.partition,
        task=None if owner is None else str(owner),
        position=figures.position,
        end=figures.end,
        lag=figures.lag,
        waiting_seconds=figures.waiting,
        arrival_rate=figures.arrival_rate,
        processing_rate=figures.processing_rate,
        caught_up_in_seconds=figures.caught_up_in,
        deleted_in_seconds=figures.deleted_in,
        age_seconds=figures.age,
        problem=problems.get(partition, ""),
    )


def _tasks(tasks: Mapping[TaskId, Task], restoring: Mapping[TaskId, RestoreProgress]) -> list[TaskStatus]:
    """Running tasks, then those whose stores are restored."""
    running = [
        TaskStatus(
            task=str(identifier),
            records=task.counts.records_in,
            seconds=sum(task.counts.seconds.values()),
            stream_time=min((time for time in task.stream_times.values() if time >= 0), default=None),
            restored=None,
            to_restore=None,
        )
        for identifier, task in tasks.items()
    ]
    return running + [
        TaskStatus(
            task=str(identifier),
            records=0,
            seconds=0.0,
            stream_time=None,
            restored=progress.done,
            to_restore=progress.total,
        )
        for identifier, progress in restoring.items()
    ]
