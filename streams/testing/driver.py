"""Test apps without a broker: the driver runs the real tasks, on a clock that the test moves."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from streams.aggregates.traced import without_lineage
from streams.app import queue_if_any, queue_of, resources_of_worker
from streams.broker.placement import first_misplaced
from streams.durations import to_milliseconds
from streams.errors import ProcessingError, TopologyError, error_text
from streams.jobs.record import ends_topic, jobs_topic
from streams.operators.guard import came_from
from streams.origin import Origin, without_origin
from streams.partitioning import partition_for
from streams.queries.query import FOREVER
from streams.records import FetchedLists, Headers, Record, TopicPartition
from streams.runtime.dead_letter_rows import DeadLetterRows
from streams.runtime.dead_letters import FirstFailures
from streams.runtime.global_tables import GlobalTable
from streams.runtime.letter import LetterId, read_letter
from streams.runtime.retried import Ordered
from streams.runtime.retry_log import Result, request_for
from streams.runtime.retry_path import letter_refusal
from streams.runtime.task import Task, TaskId
from streams.serde import Bytes
from streams.state.changelog import Checkpoint, decode_metadata
from streams.state.memory import MemoryDatabases
from streams.testing.encoding import decode, encode
from streams.testing.jobs import DriverQueue
from streams.topology.graph import closest, matches
from streams.tracing.setting import worker_spans

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from streams.app import App
    from streams.coroutines.event_loop import Calls
    from streams.eventtime.windows import Windowed
    from streams.jobs.batch_job import BatchJob
    from streams.jobs.job import AsyncJob, Job
    from streams.records import Output
    from streams.runtime.dead_letter_rows import DeadLetter
    from streams.serde import Serde
    from streams.state.store import Database
    from streams.testing.jobs import EnqueuedJob
    from streams.topology.graph import Subtopology


class TopologyDriver:
    """Runs an app's tasks in this thread: records in, records out, and a clock that only the test moves.

    ``clock`` is the time in milliseconds since the epoch; it is the timestamp of records sent without one.
    Records that the app writes to a topic that it also reads are processed in turn. Topics have
    ``partitions`` partitions. Each call commits what it sent, so that aggregates forward their updates.

    ::

        driver = TopologyDriver(app)
        driver.send("lines", "GET / 500")
        assert driver.values("errors") == [...]

    Jobs that are enqueued while the driver is open are put into its queue, and executed at once in this
    thread, or, with ``run_jobs`` false, when ``run_due`` is called.

    ``close`` ends the tasks and closes the app's resources, as does leaving the driver as a context manager.
    Both raise ``ProcessingError`` for dead letters that the test has not read, unless ``check_dead_letters``
    is false.
    """

    def __init__(
        self,
        app: App,
        *,
        partitions: int = 1,
        clock: int = 0,
        check_dead_letters: bool = True,
        run_jobs: bool = True,
    ) -> None:
        self.clock = clock
        self._run_jobs = run_jobs
        self._client: DriverQueue | None = None
        self._busy = False
        self._placed_jobs: deque[FetchedLists] = deque()
        """Jobs that were enqueued while a task was at work."""
        self._check_dead_letters = check_dead_letters
        self._unread: list[DeadLetter] = []
        """Dead letters since the test last read them."""
        self._partitions = partitions
        self._tasks: dict[TaskId, Task] = {}
        self._queues: set[TopicPartition] = set()
        """The partitions of the app's queue of jobs that have tasks."""
        self._unfinished: dict[TopicPartition, list[FetchedLists]] = {}
        """Records of the queue that are not committed: a task that is created reads them again."""
        self._finished: dict[TopicPartition, int] = {}
        """The committed offsets of the queue."""
        self._next_offsets: dict[TopicPartition, int] = {}
        self._written: dict[str, deque[Record[Any, Any]]] = {}
        self._delivered: dict[str, list[Record[Any, Any]]] = {}
        self._counts: dict[str, int] = {}
        self._databases = MemoryDatabases()
        self._idle_since: dict[TaskId, int] = {}
        self._sent: dict[Origin, Record[bytes | None, bytes | None]] = {}
        """Input records, for dead letters of records that came through an internal topic."""
        self._use(app)

    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> None:
        """Send one record, encoded with the serdes of the source that reads the topic.

        Without ``partition``, the key determines the partition as for a producer. Raises what the app raises.
        """
        self.send_all(topic, [Record(key, value, self._time(timestamp), headers)], partition=partition)

    def send_bytes(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> None:
        """Send one record with encoded key and value, e.g. one that cannot be decoded."""
        self._feed(topic, [Record(key, value, self._time(timestamp), headers)], partition)

    def send_all(
        self, topic: str, records: Iterable[Record[Any, Any]], *, partition: int | None = None
    ) -> None:
        """Send several records as one batch for each partition."""
        table = self._global_tables.get(topic)
        source = table.source if table is not None else self._topology.source_of(topic)[1]
        encoded = [
            Record(
                encode(source.key, record.key),
                encode(source.value, record.value),
                record.timestamp,
                record.headers,
            )
            for record in records
        ]
        self._feed(topic, encoded, partition)

    def send_source(
        self,
        store: str,
        value: Any,
        *,
        key: Any = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
        task: int = 0,
    ) -> None:
        """Send one record as if the source connector of that ``store`` had read it, in one of its tasks.

        It is encoded with the connector's serdes. Raises what the app raises.
        """
        self.send(
            self._source_topic(store), value, key=key, timestamp=timestamp, headers=headers, partition=task
        )

    def rows(self, store: str) -> list[Record[Any, Any]]:
        """Take the rows for the sink connector of that ``store`` since the last call, in their order."""
        known = {sink.store for sink in self._topology.sink_connectors}
        if store not in known:
            raise TopologyError(
                f"the app has no sink connector with store {store!r}", hint=closest(store, known)
            )
        return list(self._delivered.pop(store, ()))

    def read(
        self, topic: str, *, key: Serde[Any] | None = None, value: Serde[Any] | None = None
    ) -> list[Record[Any, Any]]:
        """Take the records written to a topic since the last call, oldest first.

        They are decoded with the serdes of the sink that writes them, unless others are given. Records of the
        dead-letter topic, and of topics that a function chose, stay bytes. ``offset`` counts the records
        written to the topic, over all partitions.
        """
        sink = self._serdes.get(topic, (Bytes(), Bytes()))
        written = self._written.pop(topic, deque())
        if topic == self._app.dead_letter_topic:
            self._unread.clear()
        internal = topic in self._topology.repartitions
        return [
            Record(
                decode(key or sink[0], record.key),
                decode(value or sink[1], without_origin(record.value) if internal else record.value),
                record.timestamp,
                record.headers,
                record.topic,
                record.partition,
                record.offset,
            )
            for record in written
        ]

    def values(self, topic: str) -> list[Any]:
        """Take the values written to a topic since the last call."""
        return [record.value for record in self.read(topic)]

    def dead_letters(self) -> list[Record[Any, Any]]:
        """Take the dead letters since the last call: original bytes, with coordinates in the headers."""
        return self.read(self._app.dead_letter_topic)

    def retry(self, letter: Record[bytes | None, bytes | None]) -> None:
        """Process a dead letter again at its step, as ``streams dead-letters retry`` does.

        ``letter`` is one that ``dead_letters`` has returned, also from before a ``restart`` with a changed
        app. Raises ``ProcessingError`` if it fails again, and if it cannot be retried.
        """
        found = read_letter(
            LetterId("", letter.partition, letter.offset),
            letter.timestamp,
            letter.key,
            letter.value,
            letter.headers or [],
        )
        if found is None:
            raise ProcessingError("the record is no dead letter", hint="take one from driver.dead_letters()")
        reason = letter_refusal(self._topology, found, edited=False)
        if reason is not None:
            raise ProcessingError(f"the dead letter of step {found.step!r} cannot be retried: {reason}")
        request = request_for(found, found.record, number=1, partition=found.source.partition)
        self._resources.open()
        with self._resources.active():
            task = self._task(request.topic, request.partition)
            task.retry([Ordered(found.id, request, 1, 0)])
            for delivery in task.take_deliveries():
                node = self._topology.sink_connector(delivery.sink)
                self._delivered.setdefault(node.store, []).extend(delivery.batch.records())
            ((_, outcome),) = task.retried[0].outcomes(self.clock)
            self._commit(task)
        if outcome.result is not Result.DONE:
            raise ProcessingError(
                f"step {outcome.step!r} has failed again on the dead letter: "
                f"{outcome.exception}: {outcome.message}",
                hint="driver.restart(app) continues with a changed program",
            )

    def enqueued(self, job: Job[..., Any] | AsyncJob[..., Any] | BatchJob[Any, Any]) -> list[EnqueuedJob]:
        """Take the jobs of this function that were enqueued since the last call, executed or not."""
        return self._queue().take(job.name)

    def run_due(self) -> None:
        """Execute the jobs that may run now, and those that they enqueue. Raises what the app raises."""
        self._resources.open()
        with self._resources.active():
            for topic, partition in sorted(self._queues):
                self._task(topic, partition)
            for task in list(self._tasks.values()):
                self._run_queue(task)

    def fail_next(
        self,
        job: Job[..., Any] | AsyncJob[..., Any] | BatchJob[Any, Any],
        *,
        times: int = 1,
        error: Exception | None = None,
    ) -> None:
        """Let the next executions of this job raise ``error`` (an ``OSError``) instead of the function's."""
        queue = queue_of(self._app)
        queue.failures.setdefault(job.name, []).extend([error or OSError("made to fail by the test")] * times)

    @property
    def topics(self) -> list[str]:
        """The topics with records that were not read yet."""
        return sorted(self._written)

    def skipped(self) -> dict[str, int]:
        """The number of records skipped by policy ``skip``, by step, and by global tables, by name."""
        total = {
            table.source.store.name: table.skipped for table in self._global_tables.values() if table.skipped
        }
        for task in self._tasks.values():
            for step, count in task.counts.skipped.items():
                total[step] = total.get(step, 0) + count
        return total

    def late(self) -> dict[str, int]:
        """The number of records that were too late for a window or join, by step, since the start."""
        total: dict[str, int] = {}
        for task in self._tasks.values():
            for step, count in task.counts.late.items():
                total[step] = total.get(step, 0) + count
        return total

    def store(self, name: str) -> dict[Any, Any]:
        """The content of a store over all partitions, by key; by window start and key for a windowed one.

        Keys that are lists are returned as tuples, and dictionaries as tuples of pairs.
        """
        found: dict[Any, Any] = {}
        for key, value in self.entries(name):
            place = _hashable(key)
            if place in found:
                raise ValueError(
                    f"store {name!r} has {key!r:.80} and an equal key with another encoding: "
                    "use driver.entries(…)"
                )
            found[place] = value
        return found

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        """The content of a store as pairs of key and value, even if equal keys have different encodings."""
        found: list[tuple[Any, Any]] = []
        for task in self._tasks.values():
            if name in task.states:
                found += ((key, without_lineage(value)) for key, value in task.entries(name))
        for table in self._global_tables.values():
            if table.source.store.name == name:
                found += table.entries()
        return found

    def windows(
        self, store: str, key: Any = None, *, start: int | None = None, stop: int | None = None
    ) -> list[Windowed[Any, Any]]:
        """What ``App.query_windows`` returns, over all partitions."""
        low, high = max(0, start or 0), FOREVER if stop is None else stop
        found = [
            task.committed_store(store).windows(low, high)
            if key is None
            else task.committed_store(store).windows_of(key, low, high)
            for task in self._tasks.values()
            if store in task.states
        ]
        return [window for _, window in merge(*found, key=itemgetter(0))]

    def advance(self, duration: timedelta) -> None:
        """Advance the clock, e.g. by ``minutes(2)``: timers on the wall clock run, and idle windows close."""
        milliseconds = to_milliseconds(duration, "the time to advance by")
        self._resources.open()
        with self._resources.active():
            self._work_until(self.clock + milliseconds)
            for task in list(self._tasks.values()):
                since = self._idle_since.get(task.id, self.clock)
                worked = task.punctuate()
                if task.idle(self.clock - since, milliseconds) or worked:
                    self._commit(task)
                if self._run_jobs:
                    self._run_queue(task)

    def _work_until(self, end: int) -> None:
        """Advance the clock to ``end``, and on the way to each time at which anything of a queue is due."""
        # As a worker does: a queue works without new records, also after a restart.
        tasks = [self._task(topic, partition) for topic, partition in sorted(self._queues)]
        while self._run_jobs:
            for task in tasks:
                self._run_queue(task)
            tasks = [self._task(topic, partition) for topic, partition in sorted(self._queues)]
            due = [task.background_due for task in tasks]
            wait = min((each for each in due if each), default=None)
            if wait is None or self.clock + wait > end:
                break
            self.clock += wait
        self.clock = max(self.clock, end)

    def restart(self, app: App | None = None) -> None:
        """End all tasks and start them again from the committed state, as after a stop or a crash.

        ``app`` is a changed version of the program that continues with the existing state, to test whether
        it can. A task that cannot read its state raises ``StateError`` with its next record.
        """
        self._close_tasks()
        if app is not None:
            for table in self._global_tables.values():
                table.close()
            self._use(app)

    def close(self) -> None:
        """End all tasks and close the app's resources, as a worker does when it stops. Raises what fails.

        A record sent later creates the tasks again, with the existing state. Raises ``ProcessingError`` for
        dead letters that were not read.
        """
        self._close_tasks()
        if self._unread and self._check_dead_letters:
            count, first = len(self._unread), self._unread[0]
            raise ProcessingError(
                f"{count} dead {'letter was' if count == 1 else 'letters were'} not read; the first: step "
                f"{first.step!r} failed on {came_from(first.batch, first.row)}: "
                f"{type(first.error).__name__}: {error_text(first.error)}",
                hint="if the test expects them, read them with driver.dead_letters(), or create the driver "
                "with check_dead_letters=False",
            ) from first.error

    def _close_tasks(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        queue = queue_if_any(self._app)
        if queue is not None:
            queue.use(None)
        try:
            with self._resources.active(), ExitStack() as stack:
                for task in reversed(tasks):
                    stack.callback(task.close)
        finally:
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._close_tasks()

    def _use(self, app: App) -> None:
        self._app = app
        self._failures = FirstFailures(app.dead_letter_topic)
        self._spans = worker_spans(app.name, enabled=app.settings.tracing)
        self._resources = resources_of_worker(app)
        self._topology = app.topology
        # Schedules are decided there, also before there is any job.
        self._queues |= {
            TopicPartition(topic, 0)
            for topic in self._topology.own_topics
            if topic in self._topology.input_topics
        }
        self._global_tables = {
            source.topic: GlobalTable(source, self._databases, self.wall_clock)
            for source in self._topology.global_tables
        }
        queue = queue_if_any(app)
        if queue is not None:
            self._client = self._client or DriverQueue(
                jobs_topic(app.name), self._partitions, self.wall_clock, self._place_job, queue.spans
            )
            queue.use(self._client)
        self._serdes = {
            topic: (sink.key, sink.value) for sink in self._topology.sinks for topic in sink.topics
        }

    # --- the runtime's interface for tasks

    @property
    def inline(self) -> bool:
        return True

    def wall_clock(self) -> int:
        return self.clock

    def stopwatch(self) -> float:
        return time.perf_counter()

    def keep_alive(self) -> None:
        """Do nothing: there is no group to serve."""

    def attend(self, calls: Calls) -> None:
        """Wait for calls of async functions without a time-out."""
        calls.wait(None)

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        """The records that were sent at these origins."""
        return {origin: self._sent[origin] for origin in origins if origin in self._sent}

    def wait(self, seconds: float, step: str, error: Exception) -> None:  # noqa: ARG002 - only time matters
        """Advance the clock instead of waiting."""
        self.clock += round(seconds * 1000)

    def _time(self, timestamp: int | None) -> int:
        return self.clock if timestamp is None else timestamp

    def _feed(
        self,
        topic: str,
        records: Sequence[Record[bytes | None, bytes | None]],
        partition: int | None,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Process records from one partition, from one for each, or from those that their keys go to."""
        if partitions is None:
            partitions = [
                self._partition_of(record.key) if partition is None else partition for record in records
            ]
        self._resources.open()
        with self._resources.active():
            self._feed_partitions(topic, records, partitions)

    def _feed_partitions(
        self,
        topic: str,
        records: Sequence[Record[bytes | None, bytes | None]],
        partitions: Sequence[int],
    ) -> None:
        by_partition: dict[int, list[Record[bytes | None, bytes | None]]] = {}
        for record, chosen in zip(records, partitions, strict=True):
            by_partition.setdefault(chosen, []).append(record)
        for number, group in by_partition.items():
            place = TopicPartition(topic, number)
            first = self._next_offsets.get(place, 0)
            self._next_offsets[place] = first + len(group)
            headers = [record.headers for record in group]
            fetched = FetchedLists(
                topic,
                number,
                [record.key for record in group],
                [record.value for record in group],
                [record.timestamp for record in group],
                range(first, first + len(group)),
                headers if any(headers) else None,
            )
            if topic in self._global_tables:
                self._global_tables[topic].apply(fetched)
                if self._run_jobs:
                    # Commands for jobs are such records.
                    for task in list(self._tasks.values()):
                        self._run_queue(task)
                continue
            if self._topology.repartitions and topic not in self._topology.repartitions:
                for offset, record in enumerate(group, first):
                    self._sent[Origin(topic, number, offset)] = record
            task = self._task(topic, number)
            if self._is_queue(topic):
                self._admit(task, fetched)
                continue
            task.process(fetched)
            self._idle_since[task.id] = self.clock
            self._commit(task)

    def _source_topic(self, store: str) -> str:
        topics = self._topology.source_topics
        topic = f"{self._app.name}-{store}-source"
        if topic not in topics:
            known = [name.removeprefix(f"{self._app.name}-").removesuffix("-source") for name in topics]
            raise TopologyError(
                f"the app has no source connector with store {store!r}", hint=closest(store, known)
            )
        return topic

    def _commit(self, task: Task) -> None:
        if self._spans is None or not self._spans.uncommitted:
            written = self._take(task)
        else:
            with self._spans.commit() as span:
                written = self._take(task)
                span.ended(records=sum(map(len, written)), outcome="committed", reason="")
        for output in written:
            self._write(output)

    def _take(self, task: Task) -> list[Output]:
        """Commit what a task has processed; return what it has written."""
        for delivery in task.take_deliveries():
            node = self._topology.sink_connector(delivery.sink)
            self._delivered.setdefault(node.store, []).extend(delivery.batch.records())
        written = task.take()
        task.prepare()
        written += task.take()
        written = [placed for output in written for placed in self._placed(output)]
        # Rejected records may have become dead letters.
        written += task.take()
        task.take_changelog()
        task.committed()
        for place, offset in task.offsets.items():
            if place in self._unfinished:
                self._unfinished[place] = [
                    fetched for fetched in self._unfinished[place] if fetched.next_offset > offset
                ]
                self._finished[place] = offset
        return written

    def _admit(self, task: Task, fetched: FetchedLists) -> None:
        """Let a task of the queue take records, and execute what may run."""
        place = TopicPartition(fetched.topic, fetched.partition)
        self._unfinished.setdefault(place, []).append(fetched)
        client = self._queue()
        for offset, value in zip(fetched.offsets(), fetched.values(), strict=True):
            client.note_job(fetched.partition, offset, value)
        task.process(fetched)
        self._idle_since[task.id] = self.clock
        self._commit(task)
        if self._run_jobs:
            self._run_queue(task)

    def _run_queue(self, task: Task) -> None:
        """Execute the jobs of a task that may run, and those that they enqueue."""
        if self._busy:
            return
        self._busy = True
        try:
            while True:
                self._collect(task)
                if self._placed_jobs:
                    fetched = self._placed_jobs.popleft()
                    task = self._task(fetched.topic, fetched.partition)
                    self._admit(task, fetched)
                    continue
                # Records that were written meanwhile may have made jobs of other partitions.
                if not any(self._collect(self._task(*place)) for place in sorted(self._queues)):
                    return
        finally:
            self._busy = False

    def _collect(self, task: Task) -> bool:
        """Execute the jobs of a task that may run; return whether there were any."""
        found = False
        while self._tasks.get(task.id) is task and task.collect():
            self._commit(task)
            found = True
        return found

    def _is_queue(self, topic: str) -> bool:
        """Whether a topic is the app's queue; its other topics are input like any, to apps that read them."""
        return self._client is not None and topic == self._client.topic

    def _queue(self) -> DriverQueue:
        if self._client is None:
            raise TopologyError(f"app {self._app.name!r} has no jobs", hint="declare one with @app.job")
        return self._client

    def _place_job(self, partition: int, record: Record[bytes | None, bytes | None]) -> int:
        """Write a record of the queue for a job that the program enqueues; return its offset."""
        place = TopicPartition(self._queue().topic, partition)
        offset = self._next_offsets.get(place, 0)
        self._next_offsets[place] = offset + 1
        fetched = FetchedLists(
            place.topic,
            partition,
            [record.key],
            [record.value],
            [record.timestamp],
            [offset],
            None if record.headers is None else [record.headers],
        )
        if self._busy:
            self._placed_jobs.append(fetched)
            return offset
        self._resources.open()
        with self._resources.active():
            self._admit(self._task(place.topic, partition), fetched)
        return offset

    def _task(self, topic: str, partition: int) -> Task:
        if not 0 <= partition < self._partitions:
            raise TopologyError(
                f"topic {topic} has no partition {partition}: the driver has {self._partitions} partitions",
                hint="create the driver with more: TopologyDriver(app, partitions=…)",
            )
        subtopology, _ = self._topology.source_of(topic)
        identifier = TaskId(subtopology.number, partition)
        if identifier not in self._tasks:
            if self._is_queue(topic):
                self._queues.add(TopicPartition(topic, partition))
            names = [store.name for store in subtopology.stores]
            database = self._databases.open(names, partition) if names else None
            try:
                self._tasks[identifier] = Task(
                    identifier,
                    subtopology,
                    self,
                    application=self._app.name,
                    dead_letter_topic=self._app.dead_letter_topic,
                    database=database,
                    checkpoints=self._checkpoints(subtopology, database),
                    lookups={table.source.store.name: table.lookup for table in self._global_tables.values()},
                    failures=self._failures,
                    spans=self._spans,
                )
            except BaseException:
                # After a program that cannot read its state, a test may restart with one that can.
                if database is not None:
                    database.close()
                raise
            self._read_again(self._tasks[identifier], TopicPartition(topic, partition))
        return self._tasks[identifier]

    def _read_again(self, task: Task, place: TopicPartition) -> None:
        """Process the records of a queue that were read before and are not committed."""
        committed = self._finished.get(place, 0)
        for fetched in self._unfinished.get(place, ()):
            offsets = fetched.offsets()
            start = next(row for row, offset in enumerate(offsets) if offset >= committed)
            task.process(fetched.slice(start, len(fetched)))

    def _checkpoints(self, subtopology: Subtopology, database: Database | None) -> dict[str, Checkpoint]:
        saved = {} if database is None else decode_metadata(database.metadata())
        checkpoints = {}
        for store in subtopology.stores:
            checkpoint = checkpoints[store.name] = Checkpoint(store.schema)
            if store.name in saved:
                checkpoint.follow(saved[store.name])
        return checkpoints

    def _placed(self, output: Output) -> Iterator[Output]:
        """The rows whose partitions exist; their step's policy applies to the others, as with a broker."""
        while (refused := first_misplaced(output, self._partitions)) is not None:
            if refused.position:
                yield output.part(0, refused.position)
            output.refuse(refused.position, refused)
            output = output.rest(refused.position + 1)
        if len(output):
            yield output

    def _write(self, output: Output) -> None:
        written = self._written.setdefault(output.topic, deque())
        records = list(_records(output))
        places = output.partitions or [self._partition_of(record.key) for record in records]
        for record, place in zip(records, places, strict=True):
            record.topic = output.topic
            record.partition = place
            record.offset = self._counts.get(output.topic, 0)
            self._counts[output.topic] = record.offset + 1
            written.append(record)
            if self._client is not None and output.topic == ends_topic(self._app.name):
                self._client.note_end(record.value)
        read = any(matches(wanted, output.topic) for wanted in self._topology.input_topics)
        if isinstance(output.owner, DeadLetterRows) and not read:
            self._unread += output.owner.letters
        if read or output.topic in self._global_tables:
            self._feed(output.topic, records, output.partition, output.partitions)

    def _partition_of(self, key: bytes | None) -> int:
        return 0 if key is None else partition_for(key, self._partitions)


def _records(output: Output) -> Iterator[Record[bytes | None, bytes | None]]:
    headers = output.headers or [None] * len(output)
    for columns in zip(output.keys, output.values, output.timestamps, headers, strict=True):
        yield Record(*columns)


def _hashable(key: Any) -> Any:
    if isinstance(key, list | tuple):
        return tuple(map(_hashable, key)) if type(key) in {list, tuple} else key
    if isinstance(key, dict):
        return tuple((name, _hashable(value)) for name, value in key.items())
    return key
