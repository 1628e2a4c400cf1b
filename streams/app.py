"""The app: the program's topology, and everything that a worker needs to run it."""

from __future__ import annotations

import html
import os
import textwrap
import threading
import time
from contextlib import ExitStack, closing, nullcontext
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, cast, overload

import msgspec

from streams.broker.kafka import KafkaBroker
from streams.config import load_settings
from streams.coroutines.awaitables import is_asynchronous, location
from streams.dsl.builder import TopologyBuilder
from streams.dsl.connectors import read_connector
from streams.dsl.flow import Flow, is_untyped
from streams.dsl.sources import read_global_table, read_stream, read_table
from streams.dsl.stream import GlobalTable, Stream, Table
from streams.errors import ConfigurationError, NotAuthorized, StateUnavailable, TopologyError
from streams.events import Event, get_logger, log_fields, program_logger
from streams.local_cluster import running as running_cluster
from streams.monitoring.partition_counts import PartitionCounts
from streams.monitoring.program_metrics import Metrics
from streams.monitoring.watchdog import Watchdog
from streams.policy import ErrorPolicy, dead_letter
from streams.process.ownership import own_process as take_process, rare_garbage_collections
from streams.process.role import is_job_process
from streams.process.slot import Slot, default_state_dir
from streams.process.stop import START_SECONDS, StopSignals
from streams.queries.directory import Replica, Replicas
from streams.queries.query import Queries
from streams.runtime.commit import AtLeastOnce, ExactlyOnce
from streams.runtime.dead_letters import dead_letter_topic
from streams.runtime.key_placement import check_key_placement
from streams.runtime.resources import Resource, Resources
from streams.runtime.retry_requests import RetryRequests
from streams.runtime.task import TaskId
from streams.runtime.topics import most_tasks_with_stores, prepare_topics
from streams.runtime.worker import Worker
from streams.serde import Bytes, Json, Serde, Text
from streams.state.changelog import changelog_topic
from streams.state.memory import MemoryDatabases
from streams.topology.topic_names import ADVICE, topic_name_fault
from streams.tracing.setting import check_installed, job_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from contextlib import AbstractContextManager

    from structlog.stdlib import BoundLogger

    from streams.alerts.configured import Configured
    from streams.alerts.declared import Alerts
    from streams.alerts.watch import AlertWatch
    from streams.broker import Broker
    from streams.config import Settings, SettingsArguments
    from streams.connectors.source import SourceConnector
    from streams.eventtime.windows import Windowed
    from streams.jobs.batch_job import BatchDecorator, BatchOptions
    from streams.jobs.declared import Queue
    from streams.jobs.handle import Handle
    from streams.jobs.job import AsyncJob, Call, Job, JobDecorator, JobOptions
    from streams.jobs.record import JobEnd
    from streams.jobs.schedule_rules import Cron, Every
    from streams.jobs.schedule_status import ScheduleStatus
    from streams.monitoring.observer import Observer
    from streams.runtime.resources import Manager
    from streams.state.store import Databases
    from streams.topology.graph import Topic, Topology

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

P = ParamSpec("P")
R = TypeVar("R")

STOP_LOOK_SECONDS = 0.1
"""Seconds between checks of whether the program has set ``stop``, or the run has ended."""


class App:
    """A stream-processing program.

    ``name`` is the id of the consumer group, and the prefix of the transactional ids and of the app's own
    topics. Keyword arguments are the settings of ``streams.config.Settings``, which the environment
    overrides. No connection is made before ``run``.

    ``on_error`` is the default error policy of the steps, for records on which a step fails: by default they
    become dead letters. ``alerts`` are raised by the app itself, without Prometheus: to a topic, webhooks and
    e-mail.

    Raises ``ConfigurationError`` for an unknown setting or a value of the wrong type.
    """

    def __init__(
        self,
        name: str,
        *,
        on_error: ErrorPolicy = dead_letter,
        alerts: Alerts | None = None,
        **settings: Unpack[SettingsArguments],
    ) -> None:
        fault = topic_name_fault(name) or topic_name_fault(f"{name}-dead-letters")
        if fault:
            raise ConfigurationError(
                f"{name!r} cannot name an app: it is part of topic names (<app>-dead-letters), and {fault}",
                hint=ADVICE,
            )
        self.name = name
        if not isinstance(on_error, ErrorPolicy):
            raise ConfigurationError(
                f"App({name!r}): on_error takes a policy, got {on_error!r:.80}",
                hint="fail, dead_letter, skip or retry(…)",
            )
        if alerts is not None:
            _check_alerts(name, alerts)
        self._alerts = alerts
        self.settings: Settings = load_settings(settings, os.environ)
        if self.settings.tracing:
            check_installed()
        self._builder = TopologyBuilder(name, on_error, lineage=self.settings.lineage)
        _refuse_async_callbacks(self.settings)
        fault = topic_name_fault(self.dead_letter_topic)
        if fault:
            raise ConfigurationError(
                f"dead_letter_topic={self.dead_letter_topic!r} cannot name a topic: {fault}", hint=ADVICE
            )
        self._queries: Queries | None = None
        self._resources: list[Resource[Any]] = []
        self._queue: Queue | None = None
        self.metrics = Metrics(name)
        """The program's own counters and gauges, served in ``/metrics`` beside those of the library."""

    @cached_property
    def log(self) -> BoundLogger:
        """A logger for the program, with structlog's interface: ``app.log.info("sent", mails=3)``.

        In functions of steps, lines have the fields ``app``, ``worker``, ``task`` and ``partition``. They go
        to the logger ``streams.app`` of ``logging``. A log line costs more than processing most records: log
        rare events, not every record.
        """
        return program_logger(self.name)

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        timestamp: Callable[[Any], int] | None = None,
        tombstones: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[bytes, Any]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        value: Serde[V],
        timestamp: Callable[[V], int] | None = None,
        tombstones: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[bytes, V]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        key: Serde[K],
        timestamp: Callable[[Any], int] | None = None,
        tombstones: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, Any]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        key: Serde[K],
        value: Serde[V],
        timestamp: Callable[[V], int] | None = None,
        tombstones: Literal[False] = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        timestamp: Callable[[Any], int] | None = None,
        tombstones: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[bytes, Any]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        value: Serde[V],
        timestamp: Callable[[V], int] | None = None,
        tombstones: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[bytes, V | None]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        key: Serde[K],
        timestamp: Callable[[Any], int] | None = None,
        tombstones: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, Any]: ...

    @overload
    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        key: Serde[K],
        value: Serde[V],
        timestamp: Callable[[V], int] | None = None,
        tombstones: Literal[True],
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V | None]: ...

    def stream(
        self,
        topics: Topic | Iterable[Topic],
        *,
        key: Serde[Any] | None = None,
        value: Serde[Any] | None = None,
        timestamp: Callable[[Any], int] | None = None,
        tombstones: bool = False,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[Any, Any]:
        """Read a topic, several topics, or all topics whose full name matches a compiled pattern.

        ``timestamp`` returns the event time of a value, in milliseconds since the epoch; without it, the
        record's own timestamp is used. Keys are bytes and values JSON unless serdes are given. ``on_error``,
        the app's policy unless given, handles records that cannot be decoded.

        It also handles tombstones, records with a null value, as functions of a stream of ``V`` never see
        ``None``. With ``tombstones``, they are passed on and the stream is one of ``V | None``; they keep
        their record's time.
        """
        return Stream(
            read_stream(
                self._builder,
                topics,
                key=key or Bytes(),
                value=value or Json(),
                timestamp=timestamp,
                tombstones=tombstones,
                on_error=on_error,
                name=name,
            )
        )

    def source(
        self,
        connector: SourceConnector[K, V],
        *,
        store: str | None = None,
        timestamp: Callable[[V], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Stream[K, V]:
        """Read another system, e.g. the changes of a database's tables.

        Its records, and the position that they reach, are committed in one transaction; after a failure it
        continues from the last committed position. ``store`` (default: the kind of the connector) names the
        positions: with another one, it reads from the beginning. One worker of the group reads each of the
        connector's tasks, and another takes over when it ends. Records are in one task: aggregations by key
        send them through an internal topic first.
        """
        return Stream(
            read_connector(
                self._builder, connector, store=store, timestamp=timestamp, on_error=on_error, name=name
            )
        )

    @overload
    def table(
        self,
        topic: str,
        *,
        store: str | None = None,
        timestamp: Callable[[Any], int] | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Table[bytes, Any]: ...

    @overload
    def table(
        self,
        topic: str,
        *,
        value: Serde[V],
        store: str | None = None,
        timestamp: Callable[[V], int] | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Table[bytes, V]: ...

    @overload
    def table(
        self,
        topic: str,
        *,
        key: Serde[K],
        store: str | None = None,
        timestamp: Callable[[Any], int] | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Table[K, Any]: ...

    @overload
    def table(
        self,
        topic: str,
        *,
        key: Serde[K],
        value: Serde[V],
        store: str | None = None,
        timestamp: Callable[[V], int] | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Table[K, V]: ...

    def table(
        self,
        topic: str,
        *,
        key: Serde[Any] | None = None,
        value: Serde[Any] | None = None,
        store: str | None = None,
        timestamp: Callable[[Any], int] | None = None,
        on_error: ErrorPolicy | None = None,
        name: str | None = None,
    ) -> Table[Any, Any]:
        """Read a topic as a table: the latest value of each key, where a null value deletes.

        So does a value that the serde reads as ``None``, such as the JSON text ``null``.

        The table is kept in a store called ``store`` (default: the topic's name), which is restored from the
        topic itself: the topic should be compacted, and must not delete records by age. Later records win,
        whatever their event times. Keys are bytes and values JSON unless serdes are given. ``on_error``
        handles records without a key and those that cannot be decoded. A deletion has its record's own
        timestamp, even if ``timestamp`` is given.
        """
        _refuse_name("table", topic, name)
        return Table(
            read_table(
                self._builder,
                topic,
                key=key or Bytes(),
                value=value or Json(),
                store=store,
                timestamp=timestamp,
                on_error=on_error,
            )
        )

    @overload
    def global_table(self, topic: str, *, store: str | None = None) -> GlobalTable[bytes, Any]: ...

    @overload
    def global_table(
        self, topic: str, *, value: Serde[V], store: str | None = None
    ) -> GlobalTable[bytes, V]: ...

    @overload
    def global_table(self, topic: str, *, key: Serde[K], store: str | None = None) -> GlobalTable[K, Any]: ...

    @overload
    def global_table(
        self, topic: str, *, key: Serde[K], value: Serde[V], store: str | None = None
    ) -> GlobalTable[K, V]: ...

    def global_table(
        self,
        topic: str,
        *,
        key: Serde[Any] | None = None,
        value: Serde[Any] | None = None,
        store: str | None = None,
        name: str | None = None,
    ) -> GlobalTable[Any, Any]:
        """Read a topic as a table of which every worker has a complete copy, for ``Stream.join_global``.

        It is for small tables that are read by other keys than the stream's. Each worker reads the topic to
        its end before it processes records, and then follows it. Records without a key, and those that cannot
        be decoded, are left out: they are counted as skipped under the name of its
        store, ``store`` or the topic's, and logged.
        """
        _refuse_name("global_table", topic, name)
        keys = key or Bytes()
        values = value or Json()
        table = read_global_table(self._builder, topic, key=keys, value=values, store=store)
        return GlobalTable(table, keys, untyped=is_untyped(values, Any))

    @overload
    def job(  # type: ignore[overload-overlap]  # a coroutine function matches both: the first one is meant
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncJob[P, R]: ...

    @overload
    def job(self, function: Callable[P, R], /) -> Job[P, R]: ...

    @overload
    def job(self, function: None = None, /, **options: Unpack[BatchOptions]) -> BatchDecorator: ...

    @overload
    def job(self, function: None = None, /, **options: Unpack[JobOptions]) -> JobDecorator: ...

    def job(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a function a job: calls of it can be put into the app's queue, and workers execute them.

        ::

            @app.job(retry=Retry(5, backoff=seconds(10)), key=lambda order_id, cents: order_id)
            def charge(order_id: str, cents: int) -> Receipt: ...


            charge.enqueue("o-1", 500)

        It stays a function: ``charge("o-1", 500)`` calls it. Arguments and results are written as JSON, by
        their annotated types. A job is executed at least once: see ``CurrentJob.idempotency_key``.

        ``name`` (default: module and name of the function) identifies the function in the queue. ``retry``
        says how often a job that fails is executed; by default once. Jobs with an equal ``key``, a text
        made of the arguments, are executed one after another in their order, also if one waits for its next
        attempt; with ``on_failure="continue"`` others of its key do not wait for that. ``limit`` is how
        many run, or begin in a time, in all workers. A higher ``priority``, from -100 to 100, is earlier:
        each step is worth a minute of waiting. A job that has not begun ``expires`` after it was enqueued
        becomes a dead letter. With ``executor="process"``, it is executed in a process of its own, which
        ends after ``timeout``; async functions are cancelled then, and threads, which cannot be, reported.

        With ``batch``, the function takes a list, whose items are the arguments of up to that many jobs:
        ``send.enqueue(mail)`` for ``def send(mails: list[Mail])``. It is called once there are so many, or at
        most ``within`` after the first of them could begin. It returns ``None``, or a list with a result or
        an exception for each, and each succeeds or fails alone.

        ``schedule`` calls it without arguments at the instants of a ``Cron`` or an ``Every``.
        """
        if function is None:
            return lambda decorated: self._add_job(decorated, options)
        return self._add_job(function, options)

    def _add_job(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        if self._queue is None:
            from streams.jobs.declared import Queue  # noqa: PLC0415 - an app without jobs does without it

            self._queue = Queue(
                self.name,
                self.broker,
                self.resource,
                concurrency=self.settings.job_concurrency,
                partitions=self.settings.job_partitions,
                spans=job_spans(self.name, enabled=self.settings.tracing),
            )
            for node in self._queue.nodes:
                self._builder.add(node)
            self._builder.add_global_table(self._queue.commands)
        return self._queue.add(function, options)

    def schedule(self, call: Call[Any], rule: Cron | Every, /, *, name: str | None = None) -> None:
        """Put a call into the queue at each instant of a schedule, exactly once, as long as workers run.

        ::

            app.schedule(report.call("weekly"), Cron("0 7 * * MON", zone="Europe/Berlin"), name="weekly")

        ``name`` (default: that of the job) identifies the schedule: what was decided for its last instant
        is known by it. It begins when a worker first runs with it. For a function that needs no arguments,
        ``app.job(schedule=…)`` does the same. Raises ``TopologyError`` for a second schedule of its name.
        """
        from streams.jobs.job import Call  # noqa: PLC0415 - as above

        given: object = call
        if self._queue is None or not isinstance(given, Call):
            raise TopologyError(
                f"schedule() takes a call of a job, got {given!r:.80}",
                hint="app.schedule(job.call(…), Cron('0 7 * * *'))",
            )
        self._queue.schedule(call, rule, name)

    def job_handle(self, identifier: str) -> Handle[Any]:
        """The handle of a job by its id, e.g. in another process than the one that has enqueued it.

        Raises ``ConfigurationError`` for a text that is no id, and if the app has no jobs.
        """
        return queue_of(self).handle(identifier)

    def resource(self, factory: Callable[[], Manager[T]]) -> Resource[T]:
        """Declare a resource that each worker opens once for the functions of its steps, e.g. a connection.

        ``factory`` is a function without arguments that returns a context manager. A worker enters it before
        it creates its first task, in the thread that runs the steps, and exits it after its last task has
        ended, for whatever reason the worker ends. Several resources are opened in the order of their
        declaration, and closed in reverse order. An async context manager is entered in the event loop in
        which ``map_async`` calls its functions. ``get`` returns what the worker has opened. ::

            @app.resource
            @contextmanager
            def database() -> Iterator[sqlite3.Connection]:
                with closing(sqlite3.connect("users.db")) as connection:
                    yield connection


            app.stream("visits").map(lambda visit: with_name(visit, database.get()))

        An exception while it is opened ends the worker. ``TopologyDriver`` opens it with its first record and
        closes it in ``close``.
        """
        resource = Resource(self.name, factory)
        self._resources.append(resource)
        return resource

    @property
    def topology(self) -> Topology:
        """The program as data. Raises ``TopologyError`` if it cannot run."""
        topology = self._builder.build(self.dead_letter_topic)
        stores = [store for part in topology.subtopologies for store in part.stores]
        for topic in (changelog_topic(self.name, store) for store in stores):
            fault = topic_name_fault(topic)
            if fault:
                raise TopologyError(
                    f"{topic!r} cannot name a changelog topic: {fault}",
                    hint="give the app or the store a shorter name",
                )
        return topology

    def __repr__(self) -> str:
        """The app and its topology, or why the topology cannot run so far."""
        return f"App({self.name!r})\n{textwrap.indent(self._shown(), '  ')}"

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return f"<b>App {html.escape(self.name)}</b><pre>{html.escape(self._shown())}</pre>"

    def _shown(self) -> str:
        try:
            return self.topology.describe()
        except TopologyError as error:
            return f"not complete: {error}"

    @property
    def dead_letter_topic(self) -> str:
        """The topic for dead letters."""
        return dead_letter_topic(self.settings, self.name)

    def broker(self, *, client_id: str | None = None) -> Broker:
        """The cluster of the settings, else ``KAFKA_BOOTSTRAP_SERVERS``, else a running local Kafka.

        The cluster's quotas apply to the clients of a ``client_id``, by default that of the settings or the
        app's name.
        """
        settings = self.settings
        servers = settings.bootstrap_servers or find_bootstrap_servers()
        return KafkaBroker(
            {"client.id": self.name, **settings.client}
            | ({} if client_id is None else {"client.id": client_id}),
            servers=servers,
            consumer=settings.consumer,
            producer=settings.producer,
        )

    def run(
        self,
        *,
        broker: Broker | None = None,
        stop: threading.Event | None = None,
        own_process: bool = False,
    ) -> None:
        """Run one worker until SIGTERM or SIGINT (or ``stop`` is set), then commit and leave the group.

        Settings, topics and the broker are checked before the worker joins the group. Raises the error that
        ended the worker: see ``streams.errors`` for the meaning of each. It returns only if everything that
        was processed is committed.

        It may run in a program that also does other things, and leaves the process as it is:

        - Logs go to the logger ``streams`` of ``logging``, which the program configures.
        - In the main thread, SIGTERM and SIGINT are handled while it runs; the previous handlers are restored
          afterwards. A signal ends the process within ``shutdown_timeout`` even if something hangs; if
          something is not committed by then, with the exit code of ``NotCommitted``. In another thread,
          signals are not handled: ``stop`` ends the worker.
        - The soft limit of open files is raised, at most to the hard limit, only if the app has too many
          stores for it.

        With ``own_process``, as ``streams run`` calls it, the process belongs to the worker: logs are written
        to standard error according to ``log_format`` and ``log_level``, the garbage collector runs less
        often, which saves a fifth of the CPU time, and the limit of open files is raised to the hard limit.
        """
        if is_job_process():
            raise ConfigurationError(
                f"app {self.name!r} is run in a process that executes its jobs, which has only imported the "
                "program",
                hint="""write if __name__ == "__main__": app.run(), so that an import does not run the app""",
            )
        settings = self.settings
        if own_process:
            take_process(settings.log_format, settings.log_level)
        with (
            StopSignals(
                settings.shutdown_timeout,
                # Another program may need time for its own clean-up.
                start_seconds=START_SECONDS if own_process else settings.shutdown_timeout,
            ) as signals,
            rare_garbage_collections() if own_process else nullcontext(),
        ):
            if signals.call(lambda: self._run(broker, stop, signals)):
                get_logger().info(Event.WORKER_STOPPED)

    def _run(self, broker: Broker | None, stop: threading.Event | None, signals: StopSignals) -> None:
        settings = self.settings
        topology = self.topology
        cluster = broker or self.broker()
        check_state_dir(self)
        admin = cluster.admin()
        try:
            partitions = prepare_topics(
                topology,
                admin,
                application=self.name,
                dead_letter_topic=self.dead_letter_topic,
                create_outputs=settings.create_topics,
            )
        finally:
            admin.close()
        with ExitStack() as stack:
            if settings.schema_registry_url is not None:
                from streams.registry_topics import connect_registry  # noqa: PLC0415 - few apps need it

                connection = stack.enter_context(closing(connect_registry(topology, settings)))
                if not connection.register(time.sleep if stop is None else stop.wait):
                    return
                topology = connection.topology
            slot = stack.enter_context(Slot(self.name, _state_dir(settings)))
            worker_id = f"{settings.worker_id}-{slot.number}" if settings.worker_id else slot.worker_id
            if settings.group_instance_id is not None:
                instance = f"{settings.group_instance_id}-{slot.number}"
                settings = msgspec.structs.replace(settings, group_instance_id=instance)
            stack.enter_context(log_fields(worker=worker_id))
            kind = ExactlyOnce if settings.guarantee == "exactly_once" else AtLeastOnce
            guarantee: ExactlyOnce | AtLeastOnce = kind(
                cluster, f"{self.name}-{worker_id}", timeout=settings.transaction_timeout
            )
            databases: Databases = MemoryDatabases()
            stores = topology.global_tables or any(part.stores for part in topology.subtopologies)
            if settings.state_store == "rocksdb" and stores:
                from streams.state.rocksdb import RocksDatabases  # noqa: PLC0415 - only stores need it

                databases = RocksDatabases(
                    slot.folder / "state",
                    settings.state_memory_mb * 1_000_000,
                    tasks=most_tasks_with_stores(topology, partitions) + len(topology.global_tables),
                )
            replicas = stack.enter_context(Replicas(cluster, self.name, worker_id))
            worker = Worker(
                topology,
                cluster,
                guarantee,
                settings,
                application=self.name,
                worker=worker_id,
                partitions=partitions,
                databases=databases,
                members=lambda: replicas.members,
                retries=RetryRequests(cluster, self.name, time.monotonic)
                if topology.writes_dead_letters
                else None,
            )
            elsewhere = check_key_placement(topology, cluster, partitions)
            self._queries = queries = Queries(topology, worker, partitions, elsewhere=elsewhere)
            stack.callback(self._forget_queries)
            if stop is not None:
                finished = threading.Event()
                stack.callback(finished.set)
                threading.Thread(
                    target=_pass_on, args=(stop, finished, worker), name="streams-stop", daemon=True
                ).start()
            watchdog = Watchdog(worker, cluster, settings)
            stack.callback(watchdog.close)
            watchdog.start()
            counts = PartitionCounts(worker, cluster)
            stack.callback(counts.close)
            if stores:
                counts.start()
            served, observer, alert_watch = None, None, None
            alerts = configured_alerts(self)
            # What follows is imported by the workers that need it: together it takes a third of a start.
            if settings.http_port is not None or alerts is not None:
                from streams.monitoring.observer import Observer  # noqa: PLC0415 - as above

                observer = Observer(
                    worker, watchdog, cluster, goal=settings.waiting_goal, show_keys=settings.show_keys
                )
                stack.callback(observer.close)
                observer.start()
                if alerts is not None:
                    alert_watch = stack.enter_context(
                        _alert_watch(self, alerts, topology, cluster, worker, watchdog, observer)
                    )
                if settings.http_port is not None:
                    from streams.http_service import serve  # noqa: PLC0415 - as above

                    served = serve(
                        stack,
                        settings,
                        settings.http_port + slot.number if settings.http_port else 0,
                        application=self.name,
                        cluster=cluster,
                        worker=worker,
                        queries=queries,
                        replicas=replicas,
                        watchdog=watchdog,
                        observer=observer,
                        program=self.metrics,
                        alerts=alert_watch,
                        has_jobs=self._queue is not None,
                        topology=topology.describe("json"),
                        console=_console(self, cluster) if settings.http_console != "off" else None,
                    )
            follow = bool(settings.standby_replicas and stores)
            if served is not None or follow:
                try:
                    replicas.start(
                        lambda: Replica(
                            member=worker.member,
                            tasks=sorted(map(str, worker.held)),
                            stores=queries.held() | ({} if served is None else served.held()),
                        ),
                        address=None if served is None else served.address,
                        follow=follow,
                        tasks=_tasks(topology, partitions),
                    )
                except NotAuthorized as error:
                    if follow or queries.names or self._queue is not None:
                        raise
                    # Without stores and jobs, workers need not find each other.
                    get_logger().warning(Event.WORKER_UNPUBLISHED, error=str(error).partition("\n")[0])
            stack.enter_context(resources_of_worker(self))
            signals.running(worker.request_stop, lambda: worker.unfinished)
            worker.run()
            watchdog.raise_if_fatal()

    def query(self, store: str, key: Any) -> Any:
        """The value of a key in a store, as of the last commit; ``None`` if there is none.

        It may be called from any thread while ``run`` runs in this process. Raises ``HeldElsewhere`` for a
        key that another worker has, or may have if producers placed keys by another hash than murmur2 (a
        query over HTTP finds such keys, see ``http_port``); ``StateUnavailable`` while the state is being
        restored or no worker runs; ``UnknownStore``; and ``QueryError`` for a key of the wrong type.
        """
        return self._running_queries().get(store, key)

    def query_range(
        self, store: str, start: Any = None, stop: Any = None, *, limit: int | None = None
    ) -> list[tuple[Any, Any]]:
        """The keys with ``start <= key < stop`` in this worker's partitions, and their values.

        As of the last commit, in the order of the keys' bytes. Raises the same errors as ``query``.
        """
        return self._running_queries().entries(store, start, stop, limit=limit)

    def query_windows(
        self,
        store: str,
        key: Any = None,
        *,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
    ) -> list[Windowed[Any, Any]]:
        """The windows of a key, or of all keys in this worker's partitions, as of the last commit.

        Those with ``start <= window start < stop`` (milliseconds since the epoch), in the order of their
        starts. Windows that have closed, and are kept by ``window(…, keep=…)``, are ``ClosedWindow``s.
        Sessions and sliding windows can only be read for one key. Raises the same errors as ``query``.
        """
        return self._running_queries().windows(store, key, start, stop, limit=limit)

    def _running_queries(self) -> Queries:
        queries = self._queries
        if queries is None:
            raise StateUnavailable(
                f"app {self.name!r} does not run in this process: there is no state to query",
                hint="query from another thread while app.run() runs, or over HTTP (setting http_port)",
            )
        return queries

    def _forget_queries(self) -> None:
        self._queries = None


def queue_if_any(app: App) -> Queue | None:
    """The app's queue of jobs, if it has jobs."""
    return app._queue  # noqa: SLF001 - programs declare jobs by app.job


def resources_of_worker(app: App) -> Resources:
    """The app's resources for one worker, not opened yet."""
    return Resources(tuple(app._resources))  # noqa: SLF001 - programs declare resources and never open them


def configured_alerts(app: App) -> Configured | None:
    """The app's alerts, if it has any. Raises ``ConfigurationError`` for a file that cannot be used."""
    declared, path = app._alerts, app.settings.alerts_file  # noqa: SLF001 - programs declare alerts, and only workers read them
    if declared is None and path is None:
        return None
    from streams.alerts.configured import Configured  # noqa: PLC0415 - an app without alerts does without it
    from streams.alerts.declared import Alerts  # noqa: PLC0415 - as above

    return Configured(declared or Alerts(), None if path is None else Path(path))


def queue_of(app: App) -> Queue:
    """The app's queue of jobs. Raises ``ConfigurationError`` if it has none."""
    queue = queue_if_any(app)
    if queue is None:
        raise ConfigurationError(f"app {app.name!r} has no jobs", hint="declare one with @app.job")
    return queue


def ends_of_jobs(app: App) -> Stream[str, JobEnd]:
    """How the app's jobs end, downstream of the step that executes them. ``ConfigurationError`` as above."""
    from streams.jobs.operator import STEP  # noqa: PLC0415 - an app without jobs does without it
    from streams.jobs.record import JobEnd  # noqa: PLC0415 - as above

    queue_of(app)
    return Stream(Flow(app._builder, (STEP,), Text(), Json(JobEnd)))  # noqa: SLF001 - as above


def schedules_of(app: App, *, count: int = 3) -> list[ScheduleStatus]:
    """The app's schedules: the next ``count`` instants of each, and what it did last. Asks the cluster."""
    queue = queue_if_any(app)
    if queue is None:
        return []
    from streams.jobs.schedule_status import schedule_statuses  # noqa: PLC0415 - as above

    now = time.time_ns() // 1_000_000
    return schedule_statuses(queue.schedules, app.broker(), app.name, now, count=count)


def check_state_dir(app: App) -> None:
    """Raise ``ConfigurationError`` if a worker could not write its files, before topics are created."""
    Slot(app.name, _state_dir(app.settings)).release()


def _state_dir(settings: Settings) -> Path:
    return Path(settings.state_dir) if settings.state_dir else default_state_dir()


def find_bootstrap_servers() -> str:
    """The default cluster: ``KAFKA_BOOTSTRAP_SERVERS``, else a local Kafka that is running.

    Raises ``ConfigurationError`` if there is neither.
    """
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if named:
        return named
    local = running_cluster()
    if local is not None:
        return local.bootstrap_servers
    raise ConfigurationError(
        "no broker is configured and no local Kafka is running",
        hint="set bootstrap_servers (or STREAMS_BOOTSTRAP_SERVERS), or start one: streams broker start",
    )


def _pass_on(stop: threading.Event, finished: threading.Event, worker: Worker) -> None:
    """Stop the worker when the program sets ``stop``. The event belongs to the program and is only read."""
    while not finished.is_set():
        if stop.wait(STOP_LOOK_SECONDS):
            worker.request_stop()
            return


def _check_alerts(application: str, alerts: object) -> None:
    from streams.alerts.declared import Alerts  # noqa: PLC0415 - an app without alerts does without it

    if not isinstance(alerts, Alerts):
        raise ConfigurationError(
            f"App({application!r}): alerts takes Alerts(…), got {alerts!r:.80}", hint="alerts=Alerts()"
        )


def _alert_watch(
    app: App,
    alerts: Configured,
    topology: Topology,
    cluster: Broker,
    worker: Worker,
    watchdog: Watchdog,
    observer: Observer,
) -> AlertWatch:
    from streams.alerts.figures import FigureReader, measured_inputs  # noqa: PLC0415 - as above
    from streams.alerts.watch import AlertWatch  # noqa: PLC0415 - as above

    return AlertWatch(
        cluster,
        app.name,
        worker.name,
        alerts,
        figures=FigureReader(worker, observer, watchdog).read,
        expected=lambda: measured_inputs(topology, worker),
        goal=app.settings.waiting_goal,
    )


def _tasks(topology: Topology, partitions: Mapping[str, int]) -> set[str] | None:
    """The ids of all tasks of the app; ``None`` if a pattern may match topics that are created later."""
    if any(not isinstance(topic, str) for topic in topology.input_topics):
        return None
    return {
        str(TaskId(part.number, number))
        for part in topology.subtopologies
        for topic, count in partitions.items()
        if part.reads(topic)
        for number in range(count)
    }


def _console(app: App, broker: Broker) -> AbstractContextManager[Any]:
    """The console of the worker's HTTP port. It is built on the app, so the app only knows its name."""
    try:
        module = import_module("streams.console.mounted")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"http_console={app.settings.http_console!r} needs {error.name}, which is not installed",
            hint="pip install 'streams[console]'",
        ) from error
    return cast("AbstractContextManager[Any]", module.mounted(app, broker))


def _refuse_name(method: str, topic: str, name: object) -> None:
    """Refuse what the signatures do not have: earlier versions named a table's store by ``name=``."""
    if name is not None:
        raise TopologyError(
            f"app.{method}({topic!r}, name={name!r:.80}): store= names its store, and its step has no label",
            hint=f"app.{method}({topic!r}, store={name!r:.80}) keeps the state of a store of this name",
        )


def _refuse_async_callbacks(settings: Settings) -> None:
    for kind in ("client", "consumer", "producer"):
        for name, value in getattr(settings, kind).items():
            if callable(value) and is_asynchronous(value):
                raise ConfigurationError(
                    f"{kind}={{{name!r}: …}} is async ({location(value)}): "
                    "the Kafka client calls it without awaiting the result",
                    hint="use a plain function",
                )
