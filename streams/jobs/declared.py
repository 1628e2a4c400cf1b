"""The jobs that a program declares, and their queue."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from streams.broker import NewTopic
from streams.coroutines.awaitables import is_asynchronous
from streams.errors import ConfigurationError, TopologyError
from streams.jobs.batch_job import BatchJob
from streams.jobs.commands import command_table
from streams.jobs.executors.choice import Executors
from streams.jobs.handle import Handle
from streams.jobs.job import AsyncJob, BaseJob, Job
from streams.jobs.operator import own_topics, queue_nodes
from streams.jobs.queue_client import QueueClient
from streams.jobs.record import JobId, jobs_topic
from streams.jobs.schedule import Schedule, schedule_of
from streams.jobs.schedule_rules import Cron, Every

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import Protocol

    from streams.broker import Broker
    from streams.jobs.handle import Ends
    from streams.jobs.job import Call, Enqueuer
    from streams.jobs.record import JobEnd, JobRecord
    from streams.jobs.schedule_rules import Rule
    from streams.topology.graph import Node
    from streams.tracing.spans import JobSpans

    class JobClient(Enqueuer, Ends, Protocol):
        """Puts jobs into the queue, and finds out about their ends."""

        def find(self, identifier: str) -> JobRecord | JobEnd | None:
            """How a job has ended, or else its record; see ``QueueClient``."""

    class Opened(Protocol):
        """What each worker opens once."""

        def get(self) -> Executors:
            """That of this worker."""


class Queue:
    """The queue of one app. ``resource`` declares what each worker opens once, see ``App.resource``.

    ``spans`` are those of its jobs, with the setting ``tracing``.
    """

    def __init__(
        self,
        application: str,
        broker: Callable[[], Broker],
        resource: Callable[[Callable[[], AbstractContextManager[Executors]]], Opened],
        *,
        concurrency: int,
        partitions: int,
        spans: JobSpans | None = None,
    ) -> None:
        self._application = application
        self.spans = spans
        self._jobs: dict[str, BaseJob[Any, Any]] = {}
        self.schedules: dict[str, Schedule] = {}
        """By name."""
        self._partitions = partitions
        self.client = QueueClient(application, broker, self._prepare, spans=spans)
        self._used: JobClient | None = None
        self.failures: dict[str, list[Exception]] = {}
        """What the next executions of jobs raise, by name, in tests."""

        @contextmanager
        def job_executors() -> Iterator[Executors]:
            executors = Executors(concurrency)
            try:
                yield executors
            finally:
                executors.close()

        opened = resource(job_executors)
        self.nodes: tuple[Node, ...] = queue_nodes(
            application,
            self._jobs,
            opened.get,
            self.schedules,
            partitions=partitions,
            failures=self.failures,
            spans=spans,
        )
        """What the app's topology needs for it."""
        self.commands = command_table(application)

    def add(self, function: Callable[..., Any], options: Mapping[str, Any]) -> BaseJob[Any, Any]:
        """Declare a job. Raises ``TopologyError`` if there is another one of its name."""
        if isinstance(function, BaseJob):
            raise TopologyError(f"{function!r} is a job already", hint="use @app.job once")
        kind: type[BaseJob[Any, Any]] = AsyncJob if is_asynchronous(function) else Job
        if "batch" in options:
            kind = BatchJob
        job: BaseJob[Any, Any] = kind(
            function, lambda: self._used or self.client, options, topic=jobs_topic(self._application)
        )
        known = self._jobs.get(job.name)
        if known is not None:
            raise TopologyError(
                f"two jobs are named {job.name!r}: workers could not tell them apart",
                hint="give one of them another name=",
            )
        schedule = job.definition.schedule
        if schedule is not None:
            self._schedule(schedule_of(job, schedule))
        self._jobs[job.name] = job
        return job

    def schedule(self, call: Call[Any], rule: Rule, name: str | None) -> None:
        """Declare a schedule. Raises ``TopologyError``, ``ConfigurationError``."""
        given: object = rule
        if not isinstance(given, Cron | Every):
            raise ConfigurationError(
                f"schedule() takes a Cron or an Every, got {given!r:.80}",
                hint="app.schedule(job.call(…), Cron('30 2 * * *', zone='Europe/Berlin'))",
            )
        if self._jobs.get(call.job.name) is None or call.job.topic != jobs_topic(self._application):
            raise TopologyError(f"schedule(): {call.job!r} is a job of another app")
        self._schedule(Schedule(name or call.job.name, call, rule))

    def _schedule(self, schedule: Schedule) -> None:
        if schedule.name in self.schedules:
            raise TopologyError(
                f"two schedules are named {schedule.name!r}: what they did could not be told apart",
                hint="give one of them another name: app.schedule(…, name=…)",
            )
        self.schedules[schedule.name] = schedule

    def handle(self, identifier: str) -> Handle[Any]:
        """The handle of a job by its id; its result is plain JSON. Raises ``ConfigurationError``."""
        return Handle(str(JobId.parse(identifier)), "", self._used or self.client, msgspec.json.decode)

    def find(self, identifier: str) -> JobRecord | JobEnd | None:
        """How a job has ended, or else its record; ``None`` if there is none, or its result was deleted.

        Raises ``ConfigurationError`` for a text that is no id, ``BrokerError``.
        """
        return (self._used or self.client).find(identifier)

    def use(self, client: JobClient | None) -> None:
        """Enqueue with this client, in a test; ``None``: as in production again."""
        self._used = client

    @property
    def jobs(self) -> Mapping[str, BaseJob[Any, Any]]:
        """The jobs that the program declares, by name."""
        return self._jobs

    def _prepare(self, broker: Broker) -> None:
        """Create the queue's topics, where no worker has done so yet."""
        own = own_topics(self._application, self._partitions)
        admin = broker.admin()
        try:
            existing = admin.topics()
            new = [
                NewTopic(name=topic, partitions=kind.partitions, settings=dict(kind.settings))
                for topic, kind in own.items()
                if topic not in existing
            ]
            if new:
                admin.create_topics(new)
        finally:
            admin.close()
