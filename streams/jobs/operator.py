"""The step that executes the jobs of a queue, and the topics around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from streams.jobs.commands import TABLE, CommandLog, command_table, commands_topic
from streams.jobs.executors.inline import InlineExecutor
from streams.jobs.job_store import STORE, JobStore
from streams.jobs.occurrence import Occurrence, occurrences_topic
from streams.jobs.outcomes import Outcomes
from streams.jobs.queue import JobQueue
from streams.jobs.queued_job import QueuedJob
from streams.jobs.record import JobEnd, JobRecord, Release, ends_topic, jobs_topic, releases_topic
from streams.jobs.scheduler import PARTITION, Scheduler
from streams.operators import Operator, fan_out
from streams.policy import dead_letter
from streams.records import Batch
from streams.replaying import current_replay
from streams.serde import Bytes, Json, Text
from streams.state.definition import StoreDefinition
from streams.topology.graph import OwnTopic, SinkNode, SourceNode, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.jobs.executors.choice import Executors
    from streams.jobs.job import BaseJob
    from streams.jobs.schedule import Schedule
    from streams.jobs.scheduler import Released
    from streams.operators import Binding, Children, Forward
    from streams.records import FetchedLists, Rows, Trace
    from streams.topology.graph import Node
    from streams.tracing.spans import JobSpans

SOURCE, STEP, ENDS, RELEASES = "jobs", "run-jobs", "job-results", "job-releases"
SCHEDULED, OCCURRENCES = "scheduled-jobs", "job-occurrences"
"""The names of the nodes."""

KEPT_DAYS = 7
"""How long the records of results and releases stay."""

OCCURRENCES_KEPT_DAYS = 180
"""How long the records of what schedules did stay."""


@dataclass(frozen=True, slots=True)
class RunJobs(Operator):
    """Executes the jobs of one partition of the queue. ``executors`` returns those of the worker.

    Steps downstream, beside the queue's own sinks, get the ends of jobs.
    """

    kind: ClassVar[str] = "jobs"
    terminal: ClassVar[bool] = True
    # Which records are unfinished is stored at each commit, as of the last complete slice.
    forwards_at_commits: ClassVar[bool] = True

    topic: str
    jobs: Mapping[str, BaseJob[Any, Any]]
    executors: Callable[[], Executors]
    schedules: Mapping[str, Schedule]
    failures: dict[str, list[Exception]]
    """What the next executions raise, by job, in tests."""
    spans: JobSpans | None = None

    def bind(self, step: Binding, children: Children) -> Forward:
        store = JobStore(step.state(STORE))
        queue = JobQueue(
            store,
            self.jobs,
            InlineExecutor(step.wall_clock, self.failures) if step.inline else self.executors(),
            _Outcomes(step, self.topic, children).outcomes,
            topic=self.topic,
            partition=step.partition,
            clock=step.wall_clock,
            commands=CommandLog(step.lookup(TABLE)),
            scheduler=Scheduler(store, self.schedules) if step.partition == PARTITION else None,
            spans=self.spans,
        )
        account = step.account
        step.in_background(queue)
        step.at_commit(queue.store_progress)
        step.at_close(queue.close)

        def run(batch: Batch[Any, JobRecord]) -> None:
            if current_replay() is not None:
                # A replay has no effects outside; what it enqueues is in a topic of its own.
                account.ended(batch)
                return
            fetched, rows = batch.fetched, batch.rows
            headers = fetched.headers(rows)
            jobs = [
                QueuedJob(offset, record, key, value or b"", time, None if headers is None else headers[row])
                for row, (offset, record, key, value, time) in enumerate(
                    zip(
                        batch.offsets,
                        batch.values,
                        fetched.keys(rows),
                        fetched.values(rows),
                        fetched.timestamps(rows),
                        strict=True,
                    )
                )
            ]
            queue.admit(jobs)
            account.held(len(jobs))

        return run


class _Outcomes:
    """Forwards what happened to jobs, as records that are traced to those of the jobs."""

    def __init__(self, step: Binding, topic: str, children: Children) -> None:
        self._step = step
        self._topic = topic
        own = {RELEASES, SCHEDULED, OCCURRENCES}
        self._after_ends = [name for name in children if name not in own]
        self._ends = fan_out({name: children[name] for name in self._after_ends})
        self._releases = children[RELEASES]
        self._scheduled = children[SCHEDULED]
        self._occurrences = children[OCCURRENCES]
        self.outcomes = Outcomes(self._ended, self._released, self._failed, self._enqueued, self._occurred)

    def _ended(self, ends: list[tuple[JobEnd, int, int]]) -> None:
        offsets = [offset for _, offset, _ in ends]
        for child in self._after_ends:
            self._step.account.made(len(ends), child)
        self._forward(self._ends, [end for end, _, _ in ends], [time for _, _, time in ends], offsets)

    def _released(self, releases: list[Release]) -> None:
        offsets = [int(release.id.partition("-")[2]) for release in releases]
        self._step.account.made(len(releases), RELEASES)
        self._forward(self._releases, releases, [release.released for release in releases], offsets)

    def _enqueued(self, jobs: list[Released]) -> None:
        now = self._step.wall_clock()
        self._step.account.made(len(jobs), SCHEDULED)
        self._scheduled(
            self._step.derive(None, [job.key for job in jobs], [job.value for job in jobs], [now] * len(jobs))
        )

    def _occurred(self, occurrences: list[Occurrence]) -> None:
        self._step.account.made(len(occurrences), OCCURRENCES)
        self._occurrences(
            self._step.derive(
                None,
                [occurrence.schedule for occurrence in occurrences],
                occurrences,
                [occurrence.decided for occurrence in occurrences],
            )
        )

    def _failed(self, record: FetchedLists, error: BaseException) -> None:
        batch: Batch[Any, Any] = Batch(record, record.values())
        # The queue has taken it in before.
        self._step.account.resumed(1)
        self._step.guard.refuse(batch, 0, error if isinstance(error, Exception) else _Ended(repr(error)))

    def _forward(
        self, forward: Forward, values: Sequence[Any], times: Sequence[int], offsets: Sequence[int]
    ) -> None:
        place = self._topic, self._step.partition

        def changed_by(rows: Rows) -> list[Trace | None]:
            return [(*place, offsets[row]) for row in rows]

        forward(self._step.derive(None, [value.id for value in values], values, times, changed_by))


class _Ended(Exception):
    """A job's function has raised something that is no ``Exception``, e.g. ``SystemExit``."""


def queue_nodes(
    application: str,
    jobs: Mapping[str, BaseJob[Any, Any]],
    executors: Callable[[], Executors],
    schedules: Mapping[str, Schedule],
    *,
    partitions: int,
    failures: dict[str, list[Exception]],
    spans: JobSpans | None = None,
) -> tuple[Node, ...]:
    """The nodes of an app's queue: its topic, the step that executes jobs, and the topics of outcomes."""
    source = SourceNode(
        name=SOURCE,
        topics=(jobs_topic(application),),
        key=Bytes(),
        value=Json(JobRecord),
        policy=dead_letter,
        own=own_topics(application, partitions)[jobs_topic(application)],
    )
    step = Step(
        name=STEP,
        parents=(source.name,),
        operator=RunJobs(jobs_topic(application), jobs, executors, schedules, failures, spans),
        # A job that failed for good must not stop the others.
        policy=dead_letter,
        owns=(StoreDefinition(name=STORE, key=Bytes(), value=Bytes(), purpose="jobs", view=None),),
    )
    outcomes = (
        (ENDS, ends_topic(application), JobEnd),
        (RELEASES, releases_topic(application), Release),
        (OCCURRENCES, occurrences_topic(application), Occurrence),
    )
    return (
        source,
        step,
        SinkNode(
            name=SCHEDULED,
            parents=(step.name,),
            topic=jobs_topic(application),
            key=Text(),
            value=Bytes(),
            policy=dead_letter,
        ),
        *(
            SinkNode(
                name=name,
                parents=(step.name,),
                topic=topic,
                key=Text(),
                value=Json(kind),
                policy=dead_letter,
                own=own_topics(application, partitions)[topic],
            )
            for name, topic, kind in outcomes
        ),
    )


def _commands(application: str) -> OwnTopic:
    own = command_table(application).own
    assert own is not None
    return own


def own_topics(application: str, partitions: int) -> dict[str, OwnTopic]:
    """The topics of an app's queue, and how they are created."""
    kept, kept_long = (
        (("retention.ms", str(days * 24 * 3600 * 1000)), ("message.timestamp.type", "LogAppendTime"))
        for days in (KEPT_DAYS, OCCURRENCES_KEPT_DAYS)
    )
    return {
        # A job that waits must never be deleted by age; those that are done are deleted.
        jobs_topic(application): OwnTopic(partitions, (("retention.ms", "-1"),), purged=True),
        ends_topic(application): OwnTopic(partitions, kept),
        releases_topic(application): OwnTopic(partitions, kept),
        commands_topic(application): _commands(application),
        # One partition has them in their order.
        occurrences_topic(application): OwnTopic(1, kept_long),
    }
