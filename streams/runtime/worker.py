"""The loop of one worker: poll, process, commit if due."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from streams.broker import GroupSettings
from streams.errors import (
    BrokerError,
    BrokerUnreachable,
    NotCommitted,
    ProcessingError,
    RegistryUnavailable,
    Retriable,
    StreamsError,
    TransactionAborted,
    error_text,
)
from streams.events import Event, get_logger
from streams.operators.guard import Interrupted
from streams.records import TopicPartition
from streams.runtime.assignment import Assignment
from streams.runtime.background import HANDOVER_SECONDS, Background
from streams.runtime.cleanup import Cleanup
from streams.runtime.connector_check import ConnectorCheck
from streams.runtime.counts import Counts
from streams.runtime.dead_letter_retries import DeadLetterRetries
from streams.runtime.dead_letters import DeadLetterWatch, FirstFailures, dead_letter_topic
from streams.runtime.global_tables import GlobalTables
from streams.runtime.group_start import commit_group_start
from streams.runtime.key_sample import KeySample
from streams.runtime.ledger import Outside
from streams.runtime.lost_offsets import LostOffsets
from streams.runtime.originals import Originals
from streams.runtime.pacing import SLICE_SECONDS, Pacing
from streams.runtime.pending import PendingTasks
from streams.runtime.rebalances import Rebalance, Rebalances, reason_of
from streams.runtime.restore import Restorer
from streams.runtime.retry_log import retry_topic
from streams.runtime.sinks import Sinks
from streams.runtime.slice import Slice
from streams.runtime.sources import Sources
from streams.runtime.standby import Standbys
from streams.runtime.status import Progress, Stages, State, WorkerStatus
from streams.runtime.switching import ACTIVE_POLL_SECONDS, Switching
from streams.runtime.task import Task, TaskId
from streams.runtime.task_life import TaskLives
from streams.runtime.topics import more_partitions
from streams.runtime.transaction import UNFINISHED, Transaction
from streams.runtime.worker_ledger import WorkerLedger
from streams.state.memory import MemoryDatabases
from streams.topology.graph import matches
from streams.tracing.setting import worker_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from streams.broker import Broker, Consumer, Polled
    from streams.config import Settings
    from streams.connectors.source import SourceHealth
    from streams.coroutines.event_loop import Calls
    from streams.errors import TopicError
    from streams.eventtime.merge import InputQueue
    from streams.origin import Origin
    from streams.records import Fetched, Record
    from streams.runtime.commit import Guarantee
    from streams.runtime.restore import Restoration, RestoreProgress
    from streams.runtime.retry_requests import RetryRequests
    from streams.state.store import Databases
    from streams.topology.graph import Topology

T = TypeVar("T")

LOOK_SECONDS = 0.1
"""How often a worker that waits for async calls checks whether it has to poll its group."""

SERVE_SECONDS = 1.0
"""How often the group is polled during a long slice, so that a rebalance does not wait for user code."""

ENDS_SECONDS = 1.0
"""How often lag is updated."""

IDLE_SECONDS = 0.25
"""How often stream time is advanced while no records arrive."""

OPEN_SECONDS = 5.0
"""Longest time of one attempt to open a producer, before the group is polled again."""

SOURCE_SECONDS = 0.01
"""How often a worker looks whether its source connectors have read anything, while it has no input."""

BUSY_SOURCE_SECONDS = 0.001
"""The same for a while after they have: what a fast source reads ahead is processed in a few milliseconds."""

BUSY_SECONDS = 0.1
"""How long that while is."""

CAUGHT_UP_SECONDS = 0.005
"""How long sources must have nothing until what was read is committed early, as after the end of an input."""

CAREFUL_SLICE = 1_000
"""Largest slice while the broker refuses records."""

_TRANSIENT = (Retriable, BrokerUnreachable, RegistryUnavailable, TransactionAborted)
"""Errors that may have passed by the next round of the loop."""


class Worker:
    """One member of the app's consumer group.

    ``run`` returns after ``request_stop``, or raises the error that ended the worker. Everything happens
    in the thread that calls it, user code included; ``request_stop`` and the properties may be used from
    other threads. ``worker`` names it in other systems. ``partitions`` are the input topics with their
    partition counts, ``databases`` hold the tasks' stores. ``members`` returns the known members of the
    group, for ``standby_replicas``, see ``member``. ``retries`` reads the requests to retry dead letters;
    without it none is processed. ``clock`` returns seconds, ``pause`` waits for at most
    the given seconds, and ``wall_clock`` returns the time in milliseconds since the epoch.
    """

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        guarantee: Guarantee,
        settings: Settings,
        *,
        application: str,
        worker: str = "",
        partitions: Mapping[str, int] | None = None,
        databases: Databases | None = None,
        members: Callable[[], Sequence[str]] | None = None,
        retries: RetryRequests | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._switching: Switching | None = None
        if settings.blue_green is not None:
            self._switching = Switching(
                topology, broker, pair=settings.blue_green, application=application, clock=clock
            )
            topology = self._switching.with_muted_effects(topology)
        self._topology = topology
        self._broker = broker
        self._guarantee = guarantee
        self._settings = settings
        self.application = application
        self.name = worker
        self._databases = databases or MemoryDatabases()
        self._dead_letter_topic = dead_letter_topic(settings, application)
        self._clock = clock
        self.stopwatch = clock
        self.inline = False
        self.look_seconds: float | None = LOOK_SECONDS
        """As ``LOOK_SECONDS``; ``None`` to check only after all calls have ended."""
        self.wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._spans = worker_spans(application, enabled=settings.tracing)
        self._written = 0
        """How many records were written before the transaction, for its span."""
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait
        self._stop_by = float("inf")
        self._finishes_by = -float("inf")
        """Until when a stop that has waited for work in the background is not considered to hang."""
        self._log = get_logger()

        counts = dict(partitions or {})
        self._standbys: Standbys | None = None
        if settings.standby_replicas and members is not None:
            self._standbys = Standbys(
                topology,
                broker,
                self._databases,
                application=application,
                partitions=counts,
                failures=settings.standby_replicas,
                members=members,
                clock=clock,
                wall_clock=self.wall_clock,
            )
        self._globals = GlobalTables(
            topology.global_tables,
            broker,
            self._databases,
            application=application,
            wall_clock=self.wall_clock,
        )
        self._originals = Originals(broker, application, self._is_input, clock, self._pause)
        self._lost = LostOffsets(settings, application)
        self._pacing = Pacing(settings, clock)
        self.ledger = WorkerLedger()
        self._transaction = Transaction(
            guarantee,
            self._pacing,
            self.ledger,
            own_topics={*topology.output_topics, self._dead_letter_topic, retry_topic(application).topic},
            waiting=self._wait_to_write,
            clock=clock,
            pause=self._pause,
            stopping=self._stop_is_overdue,
        )
        self._dead_letters = DeadLetterWatch(settings, self._dead_letter_topic, clock)
        self._failures = FirstFailures(self._dead_letter_topic)
        self._cleanup = Cleanup(topology, broker, self._databases, settings, clock)
        self._slice = Slice()
        self._sinks = Sinks(
            topology,
            broker,
            application=application,
            worker=worker,
            # A transaction in Kafka is open while a sink is waited for.
            lock_timeout=settings.transaction_timeout / 2,
            committed=lambda partitions: self._consumer.committed(partitions),  # noqa: PLW0108 - it is created later
            waiting=self._wait_to_write,
            clock=clock,
        )
        self._sources = Sources(topology, application, clock)
        # Before the pause, the last heartbeat may have been as long ago as it takes until the next one.
        self._background = Background(settings.session_timeout / 3, clock)
        self._connector_check = ConnectorCheck(
            topology, application, self._sinks.contexts, self._sinks.unreachable, self._pause
        )
        self._lives = TaskLives()
        self._assignment = Assignment(
            topology,
            pending=PendingTasks(
                topology,
                Restorer(
                    broker, self._databases, application=application, clock=clock, wall_clock=self.wall_clock
                ),
                self._standbys,
                partitions=counts,
                lives=self._lives,
                clock=clock,
            ),
            sinks=self._sinks,
            lives=self._lives,
            lost=self._lost,
            cleanup=self._cleanup,
            pacing=self._pacing,
            transaction=self._transaction,
            ledger=self.ledger,
            at_work=self._slice,
            partitions=counts,
            matched=(topic for topic in counts if any(matches(item, topic) for item in topology.patterns)),
            make_task=self._make_task,
            consumer=lambda: self._consumer,
            commit=self._commit,
            hand_over=self._hand_over,
            may_commit=lambda: self._state in (State.RUNNING, State.STOPPING),
            notes_beginnings=settings.offset_reset == "latest",
            clock=clock,
        )

        self._retries: DeadLetterRetries | None = None
        if retries is not None:
            self._retries = DeadLetterRetries(
                retries,
                topology,
                self._assignment,
                self._transaction,
                self._pacing,
                self._slice,
                commit=self._commit,
                commit_if_overdue=self._commit_if_overdue,
                write=self._write,
                may_retry=self._sinks.may_retry,
                stopping=self._stop.is_set,
                clock=clock,
                wall_clock=self.wall_clock,
            )

        self._state = State.CREATED
        self._thread: int | None = None
        self._opened_consumer: Consumer | None = None
        self._member: str | None = None
        self._last_served = clock()
        self._ends_known = -float("inf")
        self._source_read = -float("inf")
        """When a batch of a source was last processed."""

        # Read by metrics and by the observer.
        self.stages = Stages()
        self._grown: TopicError | None = None
        """Of an input topic that has more partitions now; set by another thread."""
        self.key_sample = KeySample()
        self.rebalances = Rebalances()
        self.observe_commit: Callable[[float], None] = _ignore
        """Called with the duration of each commit, in seconds."""

    @property
    def state(self) -> State:
        return self._state

    @property
    def progress(self) -> dict[TopicPartition, Progress]:
        """The progress of each partition held."""
        return dict(self._assignment.progress)

    @property
    def counts(self) -> list[Counts]:
        """The counts of closed tasks together, those of global tables, then each task's."""
        skipped = Counts(skipped=Counter(self._globals.skipped))
        tasks = list(self._assignment.tasks.values())
        return [self._assignment.closed_counts, skipped, *(task.counts for task in tasks)]

    @property
    def member(self) -> str | None:
        """The worker's name in the group, see ``Consumer.member``; from any thread."""
        return self._member

    @property
    def held(self) -> set[TaskId]:
        """The worker's tasks, those that are being restored included."""
        return self._lives.tasks()

    @property
    def standby_lag(self) -> dict[TaskId, int]:
        """The standby replicas of other workers' tasks, and how many records each is behind."""
        return {} if self._standbys is None else self._standbys.lag

    @property
    def standbys_abandoned(self) -> int:
        """The number of other workers' tasks whose standby replica cannot be kept."""
        return 0 if self._standbys is None else self._standbys.abandoned

    @property
    def restoring(self) -> dict[TaskId, RestoreProgress]:
        """The tasks whose stores are being restored."""
        return self._assignment.pending.progress

    @property
    def inputs(self) -> dict[str, int]:
        """The app's input topics with their partition counts, as far as known; from any thread."""
        return self._assignment.inputs

    @property
    def inputs_of_stores(self) -> dict[str, int]:
        """Those of the input topics whose keys have state, with their partition counts; from any thread."""
        parts = [part for part in self._topology.subtopologies if part.stores]
        return {
            topic: count
            for topic, count in self._assignment.inputs.items()
            if any(part.reads(topic) for part in parts)
        }

    def note_partition_count(self, topic: str, count: int) -> None:
        """End with an error before the next commit if a topic whose keys have state has more partitions.

        From any thread: it only notes it. Raised by ``run`` as ``TopicError``.
        """
        known = self.inputs_of_stores.get(topic)
        if known is not None and count > known:
            self._grown = more_partitions(topic, known)

    @property
    def purged_topics(self) -> Collection[str]:
        """The app's own topics, from which it deletes what is committed; from any thread."""
        return self._cleanup.purged_topics

    @property
    def skipped_offsets(self) -> dict[TopicPartition, int]:
        """The number of offsets of each partition skipped by ``out_of_range_reset``."""
        return self._lost.skipped

    @property
    def state_bytes(self) -> int:
        """Memory of the stores' databases in bytes."""
        return self._databases.memory_bytes()

    @property
    def ready(self) -> bool:
        """Whether it is running with all its stores restored, and its connectors can be used."""
        return self._state is State.RUNNING and not self._assignment.pending and not self.problems

    @property
    def problems(self) -> dict[str, str]:
        """The connectors that cannot be used now, or report a problem, and why; from any thread."""
        return {**self._connector_check.problems, **self._sinks.problems, **self._sources.problems}

    @property
    def sink_seconds(self) -> dict[str, float]:
        """How long it has waited for each sink connector to write and to commit, by the sink's step."""
        return self._sinks.seconds

    @property
    def background_wait(self) -> float | None:
        """How many seconds it can be until background work has something to do; ``None`` without any."""
        working = [task for task in self._assignment.tasks.values() if task.has_background_work]
        return min((task.background_wait for task in working), default=None)

    @property
    def switching(self) -> Switching | None:
        """Its part in switches of a blue/green pair, if the app belongs to one."""
        return self._switching

    @property
    def source_health(self) -> dict[str, SourceHealth]:
        """What the source connectors reported last, by source and task; from any thread."""
        return self._sources.health

    @property
    def tasks(self) -> dict[TaskId, Task]:
        """The running tasks."""
        return dict(self._assignment.tasks)

    @property
    def owners(self) -> dict[TopicPartition, TaskId]:
        """The task of each partition held, those that are being restored included; from any thread."""
        owners = self._assignment.pending.partitions
        return {**owners, **{partition: task.id for partition, task in dict(self._assignment.held).items()}}

    @property
    def status(self) -> WorkerStatus:
        """What the worker is doing; from any thread."""
        busy, transaction = self._slice.input, self._transaction
        return WorkerStatus(
            thread=self._thread,
            served=self._last_served,
            busy=None if busy is None else busy[0],
            pieces=self._slice.pieces,
            retrying=self._slice.retrying,
            dirty=self._pacing.dirty or transaction.must_rewind,
            commits=transaction.commits,
            rewinds=transaction.rewinds,
            waiting=self._assignment.pending.partitions,
            full=self._background.paused,
            writing=transaction.writing,
            aborted_by=transaction.aborted_by,
            restoring=self.restoring,
        )

    def held_back_by(self, partition: TopicPartition) -> list[TopicPartition]:
        """The other inputs of the partition's task for whose records its own wait, by event time."""
        return self._assignment.held_back_by(partition)

    def request_stop(self) -> None:
        """Finish the current slice, commit, leave the group. Safe in a signal handler and from any thread."""
        self._stop_by = min(self._stop_by, self._clock() + self._settings.shutdown_timeout / 2)
        self._stop.set()

    def _stop_is_overdue(self) -> bool:
        return self._clock() > self._stop_by

    def run(self) -> None:
        """Run until ``request_stop``.

        Raises ``ProcessingError``, ``DeadLetterLimitExceeded`` or ``BrokerError``; everything processed
        before is committed if that is still possible, and the worker leaves the group.
        """
        try:
            self.start()
            while not self._stop.is_set():
                self.run_once()
            self.close()
        except BaseException as error:
            self._fail(error)
            raise

    def start(self) -> None:
        """Open the producer and join the group."""
        settings = self._settings
        self._thread = threading.get_ident()
        self._last_served = self._clock()
        self._enter(State.RUNNING)
        self._connector_check.run(self._stop.is_set)
        consumer = self._broker.consumer(
            GroupSettings(
                group=self.application,
                # With ``latest`` the start is committed before: a partition without an offset was added
                # later.
                offset_reset="earliest",
                protocol=settings.group_protocol,
                instance_id=settings.group_instance_id,
                poll_deadline=settings.poll_deadline,
                session_timeout=settings.session_timeout,
                reports_out_of_range=True,
            )
        )
        self._opened_consumer = consumer if self._switching is None else self._switching.gate(consumer)
        if self._switching is not None:
            self._until_answered(self._switching.start)
        self._open_guarantee()
        self._until_answered(lambda: self._globals.start(self._stop.is_set))
        if settings.offset_reset == "latest":
            self._until_answered(lambda: commit_group_start(self._topology, self._broker, self.application))
        self._log.info(Event.WORKER_STARTED, application=self.application, guarantee=settings.guarantee)
        self._consumer.subscribe(self._topology.input_topics, self)

    def run_once(self) -> None:
        """One round of the loop."""
        if self._assignment.pending:
            self._restore()
        else:
            if self._standbys is not None:
                self._keep_standbys(self._standbys)
            self._cleanup.delete_unused_state()
        self._follow_global_tables()
        self._claim_partitions()
        if self._switching is not None:
            self._switching.follow(self._assignment, self._transaction, self._commit)
        polled = self._poll()
        self._assignment.forget_deleted_topics()
        assignments = {partition: self._assignment.progress.get(partition) for partition in polled.ends}
        # If the transaction is aborted, also by a rebalance during the poll, all of this is read again.
        if not self._transaction.must_rewind:
            self._process(polled)
        if not self._transaction.must_rewind:
            self._assignment.note_ends(polled, assignments)
            if self._lost:
                self._handle_lost_offsets()
        if not self._transaction.must_rewind and not self._stopped_for_switch:
            self._punctuate()
            self._process_sources()
            self._collect_background_work()
            # A muted app drops its results: its dead letters wait until it emits.
            if self._retries is not None and not (self._switching is not None and self._switching.muted):
                self._retries.run()
        if not self._transaction.must_rewind and self._commit_due():
            self._commit()
        if self._transaction.must_rewind:
            self._timed_rewind()

    @property
    def unfinished(self) -> bool:
        """Whether work is in progress, or not known to be committed; from any thread."""
        return (
            self._clock() < self._finishes_by
            or self._slice.input is not None
            or self._pacing.dirty
            or bool(self._assignment.uncommitted())
        )

    def close(self) -> None:
        """Commit and leave the group.

        Raises ``NotCommitted`` if it is not known that everything processed is committed.
        """
        self._enter(State.STOPPING)
        self._finish_background_work()
        dirty = self._pacing.dirty
        self._commit()
        left = self._assignment.uncommitted()
        # Work that moves no offset (timers) is committed with the offsets of its transaction, if it has any.
        lost = dirty and self._transaction.must_rewind and not left
        if left and self._transaction.in_doubt and self._clock() <= self._stop_by:
            self._read_back()
            left = self._assignment.uncommitted()
        self._consumer.close()
        self._guarantee.close()
        self._close_stores()
        if left or lost:
            where = ", ".join(
                f"{partition} from offset {committed} to {reached}"
                for partition, (committed, reached) in sorted(left.items())
            )
            raise NotCommitted(
                f"stopped, but not everything processed is known to be committed: {where or 'see the log'}"
                f"{f' ({self._transaction.aborted_by})' if self._transaction.aborted_by else ''}",
                hint="nothing is lost: the next owner of these partitions processes these records again",
            )
        self._enter(State.STOPPED)
        self._log.info(Event.WORKER_STOPPED)

    def _read_back(self) -> None:
        """Read the committed offsets after a commit of unknown outcome, if the broker answers at once."""
        try:
            self._guarantee.open(OPEN_SECONDS)
            self._assignment.committed |= self._assignment.read_committed()
        except BrokerError as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _make_task(self, identifier: TaskId, restoration: Restoration | None) -> Task:
        return Task(
            identifier,
            self._topology.subtopologies[identifier.subtopology],
            self,
            application=self.application,
            dead_letter_topic=self._dead_letter_topic,
            database=None if restoration is None else restoration.database,
            checkpoints=None if restoration is None else restoration.checkpoints,
            lookups=self._globals.lookups,
            refused=self._transaction.refused,
            failures=self._failures,
            spans=self._spans,
        )

    # --- rebalances, called from inside the consumer

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """See ``Assignment.assigned``."""
        with self._rebalance("assigned", partitions):
            self._assignment.assigned(partitions)
            if self._switching is not None:
                self._switching.assigned(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """See ``Assignment.revoked``."""
        with self._rebalance("revoked", partitions):
            self._assignment.revoked(partitions)
            if self._switching is not None:
                self._switching.released(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """See ``Assignment.lost``."""
        with self._rebalance("lost", partitions):
            self._assignment.lost(partitions)
            if self._switching is not None:
                self._switching.released(partitions)

    @contextmanager
    def _rebalance(self, kind: str, partitions: Sequence[TopicPartition]) -> Iterator[None]:
        """Note a rebalance, with its reason and duration."""
        begun = self._clock()
        reason = reason_of(
            kind,
            first=not self.rebalances.history,
            stopping=self._stop.is_set(),
            silent=begun - self._last_served,
            poll_deadline=self._settings.poll_deadline,
            session=self._settings.session_timeout,
        )
        yield
        seconds = self._clock() - begun
        self.rebalances.note(Rebalance(self.wall_clock(), kind, reason, tuple(partitions), seconds))

    # --- what tasks call while a slice is open

    def keep_alive(self) -> None:
        """Poll the group if due. Raises ``Interrupted`` when the open slice has to be abandoned."""
        self._slice.pieces += 1
        self._serve_group()

    def attend(self, calls: Calls) -> None:
        """Wait until async calls have ended, and poll the group meanwhile. Raises ``Interrupted`` too."""
        finished = 0
        while not calls.wait(self.look_seconds):
            # Counts as progress only when a call has ended, so that the watchdog detects hanging calls.
            self._slice.pieces += calls.finished > finished
            finished = calls.finished
            self._serve_group()

    def _serve_group(self) -> None:
        now = self._clock()
        if now > self._stop_by:
            raise Interrupted
        if self._overdue() and not self._transaction.committing:
            # Completed slices must not wait for a slow one: their transaction would time out.
            self._commit_in_slice()
        if now - self._last_served >= min(SERVE_SECONDS, self._settings.poll_deadline / 10):
            self._serve_in_slice()

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Wait in the middle of a slice: commit the completed slices, then poll the group."""
        kind = type(error).__name__
        self._log.warning(Event.RECORD_RETRIED, step=step, error=f"{kind}: {error}", seconds=seconds)
        # A transaction left open would time out meanwhile; the open slice has written nothing to it yet.
        if not self._transaction.committing:
            self._commit_in_slice()
        until = self._clock() + seconds
        self._slice.retrying = step, f"{kind}: {error_text(error)}"
        while True:
            self._serve_in_slice()
            left = until - self._clock()
            if left <= 0:
                return
            self._pause(min(left, 0.1))
            if self._stop.is_set():
                raise Interrupted

    def _commit_in_slice(self) -> None:
        """Commit the completed slices.

        Raises ``Interrupted`` when the open slice cannot continue after that.
        """
        if not self._pacing.dirty:
            return
        if self._slice.holds_back_commits:
            self._slice.restart_after_commit()
            raise Interrupted
        self._commit()
        if self._transaction.must_rewind:
            raise Interrupted

    def _is_input(self, topic: str) -> bool:
        return any(matches(wanted, topic) for wanted in self._topology.input_topics)

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        """The input records at these coordinates, without those that no longer exist."""
        return self._originals.read(origins)

    # --- parts of the loop

    def _poll(self) -> Polled:
        begun = self._clock()
        if begun - self._ends_known >= ENDS_SECONDS:
            self._ends_known = begun
            self._assignment.refresh_ends()
        self._assignment.note_starts()
        timeout = 0.1
        if self._pacing.dirty:
            timeout = min(timeout, max(0.0, self._pacing.next_commit() - begun))
        if self._sources:
            busy = begun < self._source_read + BUSY_SECONDS
            look = BUSY_SOURCE_SECONDS if busy else SOURCE_SECONDS
            timeout = 0.0 if self._sources.backlog else min(timeout, look)
        timeout = min(timeout, self._background.poll_seconds(self._assignment.tasks.values()))
        if self._assignment.pending:
            timeout = 0.0 if self._assignment.tasks else min(timeout, 0.02)
        if self._stopped_for_switch:
            timeout = min(timeout, ACTIVE_POLL_SECONDS)
        if rest := self._pacing.rest():
            self._pause(rest)
        least = max((task.least_slice for task in self._assignment.tasks.values()), default=1)
        polled = self._consumer.poll(self._pacing.poll_size(least), timeout)
        self._assignment.raise_error()
        if self._grown is not None:
            raise self._grown
        self._last_served = now = self._clock()
        self.stages.poll += now - begun
        self._pacing.waited(now - begun)
        self._assignment.received(polled, stopping=self._stop.is_set())
        return polled

    def _process(self, polled: Polled) -> None:
        if self.key_sample.wanted:
            self.key_sample.note(polled.fetched)
        assignment = self._assignment
        # A partition that is released and assigned again in between has another progress object.
        work = [
            (partition, progress, fetched)
            for fetched in polled.fetched
            if (partition := TopicPartition(fetched.topic, fetched.partition)) in assignment.held
            and (progress := assignment.progress.get(partition))
        ]
        for partition, progress, fetched in work:
            if not assignment.holds(partition, progress):
                continue
            task = assignment.held[partition]
            queue = assignment.queues.get(task.id)
            if queue is not None:
                for piece in task.timed(fetched):
                    queue.add(piece)
                continue
            start = 0
            while start < len(fetched):
                stop = min(len(fetched), start + self._slice_size(task))
                complete = start == 0 and stop == len(fetched)
                piece = fetched if complete else fetched.slice(start, stop)
                if not self._attempt(partition, progress, piece):
                    break
                start = stop
        for partition, end in polled.ends.items():
            holder = assignment.held.get(partition)
            if holder is not None and holder.id in assignment.queues:
                assignment.queues[holder.id].at_end(partition, end)
        for identifier, queue in list(assignment.queues.items()):
            self._drain(identifier, queue)

    def _drain(self, identifier: TaskId, queue: InputQueue) -> None:
        """Process the queued records of a task with several input partitions, by lowest event time."""
        assignment = self._assignment
        while assignment.queues.get(identifier) is queue:
            fetched = queue.peek(self._slice_size(assignment.tasks[identifier]))
            if fetched is None:
                break
            partition = TopicPartition(fetched.topic, fetched.partition)
            if not self._attempt(partition, assignment.progress[partition], fetched):
                break
            queue.taken(fetched)
        if assignment.queues.get(identifier) is not queue or self._transaction.must_rewind:
            return
        # A partition that is far ahead must not fill the memory while it waits for another.
        own = [partition for partition, task in assignment.held.items() if task.id == identifier]
        limit = self._settings.max_poll_records
        full = [partition for partition in own if queue.size(partition) >= 2 * limit]
        low = [partition for partition in own if queue.size(partition) < limit]
        self._consumer.pause(full)
        self._consumer.resume(low)

    def _attempt(self, partition: TopicPartition, progress: Progress, fetched: Fetched) -> bool:
        """Process one slice if the partition is still held, with the commits that are due before and after.

        Returns whether it was processed; if not, its records are read again: by the next owner, or after the
        rewind.
        """
        while True:
            if self._stop.is_set():
                return False
            if self._pacing.would_time_out():
                self._commit()
            if self._transaction.must_rewind or not self._assignment.holds(partition, progress):
                return False
            try:
                self._process_slice(partition, self._assignment.held[partition], fetched)
            except Interrupted:
                # If the partition is still held, the slice was abandoned for a commit: begin it again.
                if self._slice.commit_first:
                    self._commit()
                continue
            if self._clock() - self._last_served >= SERVE_SECONDS:
                self._serve()
            if self._overdue():
                self._commit()
            return True

    def _process_slice(self, partition: TopicPartition, task: Task, fetched: Fetched) -> None:
        begun = self._clock()
        self._slice.open(task, (partition, self._assignment.progress[partition]))
        letters = task.counts.dead_letters.copy()
        try:
            task.process(fetched)
        except ProcessingError:
            # Commit the completed slices: after a restart the failing record is the next one.
            self._slice.close()
            if not self._transaction.must_rewind:
                self._commit()
            raise
        finally:
            self._slice.close()
        written = self._clock()
        self._assignment.processed(partition, task, fetched)
        self._pacing.measured(task.id, len(fetched), written - begun)
        try:
            # Dead letters of a task with sinks wait for the rows that the sink refuses.
            if not task.delivers:
                self._write(task)
        except UNFINISHED as error:
            self._transaction.failed(error)
            self.stages.lost += self._clock() - written
            return
        now = self._clock()
        self.stages.produce += now - written
        self._transaction.processed()
        progress = self._assignment.progress[partition]
        progress.position, progress.at_end, progress.since = task.positions[partition], False, now
        self._dead_letters.add(len(fetched), task.counts.dead_letters - letters)

    def _write(self, task: Task) -> None:
        while outputs := task.take():
            for output in outputs:
                if self._switching is not None and self._switching.drops(output):
                    task.ledger.outside[Outside.MUTED] += len(output)
                    continue
                if output.topic == self._dead_letter_topic:
                    self._dead_letters.note(output)
                written = self._transaction.write(output)
                task.ledger.outside[Outside.ACCEPTED] += written

    def _wait_to_write(self) -> None:
        """Poll the group while the producer waits for the broker. Raises ``Interrupted``."""
        now = self._clock()
        if now > self._stop_by:
            raise self._unwritten()
        if self._assignment.in_callback:
            # In the middle of a rebalance the other members wait for this worker.
            writing = self._transaction.writing
            if writing is not None and now - writing[1] > self._settings.transaction_timeout:
                raise self._unwritten()
            return
        if now - self._last_served >= min(SERVE_SECONDS, self._settings.poll_deadline / 10):
            self._serve()
            if self._transaction.must_rewind:
                raise Interrupted

    def _unwritten(self) -> Interrupted:
        """Abort, as some outputs are not written and will not be."""
        self._transaction.abort()
        return Interrupted()

    def _handle_lost_offsets(self) -> None:
        """Stop or continue by ``out_of_range_reset`` where the log does not have the next offset."""
        if self._stop.is_set():
            return
        try:
            committed = self._consumer.committed(self._lost.partitions)
        except _TRANSIENT as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            return
        for partition, offset in self._lost.take_committed(committed).items():
            self._assignment.continue_from(partition, offset)
        if not self._lost or self._transaction.must_rewind:
            return
        if self._lost.fatal:
            self._commit()
            raise self._lost.error(committed)
        for partition, target in self._lost.take_reset().items():
            self._assignment.jump(partition, target)

    # --- commits

    def _slice_size(self, task: Task) -> int:
        size = self._pacing.slice_size(task.id, task.least_slice)
        return min(size, CAREFUL_SLICE) if self._transaction.careful else size

    def _overdue(self) -> bool:
        if not self._pacing.dirty:
            return False
        tasks = self._assignment.tasks.values()
        return (
            self._transaction.careful
            or self._pacing.overdue(sum(task.dirty for task in tasks))
            or (bool(self._sinks) and self._sinks.full(tasks))
        )

    @property
    def _sources_busy(self) -> bool:
        """Whether sources have more, or had a moment ago: one that is read quickly is empty now and then."""
        if not self._sources:
            return False
        return self._sources.backlog or self._clock() < self._source_read + CAUGHT_UP_SECONDS

    def _commit_if_overdue(self) -> None:
        if self._overdue():
            self._commit()

    @property
    def _stopped_for_switch(self) -> bool:
        return self._switching is not None and self._switching.stopped

    def _commit_due(self) -> bool:
        if (
            self._switching is not None
            and self._clock() >= self._pacing.next_commit()
            and self._switching.due(self._assignment, self._sinks)
        ):
            return True
        if not self._pacing.dirty:
            return False
        return self._overdue() or (
            self._clock() >= self._pacing.next_commit()
            and self._assignment.caught_up()
            and not self._sources_busy
        )

    def _commit(self, *, confirm: bool = False) -> None:
        """Commit the completed slices, or note that the input has to be read again.

        With ``confirm``, offsets of tasks with background work as well that have not moved: a commit succeeds
        only while the worker is a member of the group.
        """
        if self._transaction.must_rewind:
            return
        if self._grown is not None:
            # What is uncommitted may have used the state of another partition's keys.
            raise self._grown
        if self._spans is None or not self._spans.uncommitted:
            self._commit_slices(confirm=confirm)
            return
        with self._spans.commit() as span:
            self._commit_slices(confirm=confirm)
            transaction, before = self._transaction, self._written
            self._written = self._records_out()
            span.ended(
                records=self._written - before,
                outcome="committed" if not transaction.must_rewind else transaction.state.value,
                reason=transaction.aborted_by if transaction.must_rewind else "",
            )

    def _records_out(self) -> int:
        return sum(count.records_out for count in self.counts)

    def _commit_slices(self, *, confirm: bool) -> None:
        begun = self._clock()
        assert not self._slice.holds_back_commits, "a commit cannot be made in the middle of a slice"  # I1
        self._transaction.begin_commit()
        self.stages.begin_commit(begun, self._step_seconds())
        moved = failed = False
        try:
            self._prepare()
            self.stages.prepare_commit(self._clock(), self._step_seconds())
            stopped = (
                {}
                if self._switching is None
                else self._switching.stopped_partitions(self._assignment, self._sinks)
            )
            self._write_to_sinks()
            retried = [] if self._retries is None else self._retries.write_outcomes()
            offsets = self._assignment.offsets(confirm=confirm) | stopped
            metadata = self._assignment.offset_metadata(offsets)
            if self._switching is not None:
                metadata = self._switching.add_tokens(metadata, stopped)
            self._transaction.commit(offsets, self._consumer, metadata)
            self._commit_sinks(offsets)
        except UNFINISHED as error:
            failed = True
            self._transaction.failed(error)
        except Interrupted:
            # A rebalance or a stop interrupted the steps that forward at a commit.
            self._transaction.abort()
        else:
            self._assignment.note_committed(offsets)
            if self._switching is not None:
                self._switching.committed(stopped)
            for task in self._assignment.tasks.values():
                task.committed()
            if self._retries is not None:
                self._retries.committed(retried)
            self._sources.committed()
            self._cleanup.committed(offsets)
            moved = bool(offsets)
            if moved:
                self.observe_commit(self._clock() - begun)
        finally:
            self.stages.end_commit(self._clock(), self._step_seconds(), moved=moved, failed=failed)
            self._sinks.rollback()
            self._transaction.end_commit()
        self._pacing.committed(begun, transaction=self._guarantee.undoes)
        if self._retries is not None:
            self._retries.commit_delivered()

    def _step_seconds(self) -> float:
        return sum(sum(dict(task.counts.step_seconds).values()) for task in self.tasks.values())

    @property
    def current_step(self) -> tuple[str, float] | None:
        """The step that is called now, and its own time in this call, in seconds; from any thread."""
        for task in list(self._assignment.tasks.values()):
            if current := task.current_step:
                return current
        return None

    @property
    def stages_now(self) -> Stages:
        """The time spent, with that of a write, a commit or a rewind that is going on; from any thread."""
        now, writing = self._clock(), self._transaction.writing
        current = self.current_step
        stages = self.stages.at(now, self._step_seconds() + (0.0 if current is None else current[1]))
        if writing is not None and stages.commit_begun is None:
            stages.produce += now - writing[1]
        return stages

    def _prepare(self) -> None:
        """Let tasks forward and encode their changes, and write these."""
        for task in list(self._assignment.tasks.values()):
            if not task.stateful or not task.positions:
                # Nothing was processed; changes for a new schema are written once there are offsets. (I5)
                continue
            task.prepare()
            if self._transaction.must_rewind:
                raise Interrupted
            self._write(task)
            for output in task.take_changelog():
                self._transaction.write_changes(output)

    def _write_to_sinks(self) -> None:
        """Write the rows of completed slices to the sinks, and the dead letters of tasks with sinks to Kafka.

        The partitions of a sink that cannot be written to wait; other tasks are committed without them.
        """
        if not self._sinks:
            return
        if self._switching is not None:
            self._switching.drop_rows(self._assignment.tasks.values())
        self._sinks.write(self._assignment.tasks.values())
        self._assignment.hold_waiting()
        if self._transaction.must_rewind:
            raise Interrupted
        for task in list(self._assignment.tasks.values()):
            if task.delivers:
                self._write(task)

    def _commit_sinks(self, offsets: dict[TopicPartition, int]) -> None:
        """Commit what was written to sinks; take the partitions for which this failed out of ``offsets``."""
        if self._sinks and self._sinks.commit():
            self._assignment.hold_waiting()
            for partition in self._sinks.waiting_partitions():
                offsets.pop(partition, None)

    def _claim_partitions(self) -> None:
        """Begin partitions whose positions in their sinks are known by now."""
        if not self._sinks or self._transaction.must_rewind:
            return
        try:
            self._assignment.claim_from_sinks()
        except _TRANSIENT as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _process_sources(self) -> None:
        """Process what the source connectors have read, for about as long as a slice takes."""
        if not self._sources:
            return
        until = self._clock() + SLICE_SECONDS
        for task, feed in self._sources.feeds(self._assignment.tasks, self._lives.tasks()):
            while not self._stop.is_set() and (batch := feed.peek()) is not None:
                if self._pacing.would_time_out():
                    self._commit()
                if not self._without_input(task, partial(_true, partial(task.process_source, batch))):
                    return
                feed.processed()
                self._source_read = self._clock()
                if self._clock() - self._last_served >= SERVE_SECONDS:
                    self._serve()
                if self._overdue():
                    self._commit()
                if self._clock() >= until:
                    return

    def _collect_background_work(self) -> None:
        """Take what steps have finished outside of this thread, and pause the input of full ones."""
        self._confirm_partitions()
        if self._transaction.must_rewind:
            return
        for task in self._background.finished(self._assignment.tasks.values()):
            self._without_input(task, task.collect)
            if self._overdue():
                self._commit()
        held = self._assignment.held
        pause, resume = self._background.backpressure(held)
        if pause:
            self._consumer.pause(pause)
        if resume:
            self._consumer.resume(resume)

    def _confirm_partitions(self) -> None:
        """Let background work go on to begin; after a long pause only once a commit has shown that it may."""
        tasks = [task for task in self._assignment.tasks.values() if task.has_background_work]
        if self._background.doubtful() and tasks:
            self._commit(confirm=True)
            if self._transaction.must_rewind:
                return
        self._background.confirm(tasks)

    def _hand_over(self, leaving: Collection[Task]) -> None:
        """Let the background work of tasks end that a rebalance gives away, and take it, in its callback."""
        longest = min(HANDOVER_SECONDS, self._settings.poll_deadline / 10)
        until = min(self._clock() + longest, self._stop_by)
        self._background.hand_over(leaving, self._collect_in_callback, self._clock, until)

    def _collect_in_callback(self) -> bool:
        """Take what steps have finished, that of tasks that stay as well: they would have to wait.

        A slice may be open, in the middle of which the group was polled: not of these tasks, whose steps do
        not poll it. Returns whether the transaction goes on.
        """
        for task in self._background.finished(self._assignment.tasks.values()):
            if self._transaction.must_rewind:
                return False
            if task is self._slice.task:
                continue
            try:
                if task.collect():
                    self._write(task)
                    self._transaction.processed()
            except UNFINISHED as error:
                self._transaction.failed(error)
            except Interrupted:
                return False
            if self._overdue():
                self._commit()
        return not self._transaction.must_rewind

    def _finish_background_work(self) -> None:
        """Begin no more work in the background, and wait for what runs, at most half of the time to stop.

        What has not begun, or does not end, is processed by the next owner.
        """
        stopped: set[Task] = set()
        while not self._transaction.must_rewind:
            # A rebalance may end tasks meanwhile, and begin others.
            working = {task for task in self._assignment.tasks.values() if task.has_background_work}
            for task in working - stopped:
                task.stop_background_work()
            stopped = working
            self._collect_background_work()
            late = self._clock() > self._stop_by
            if late or not any(task.running_in_background for task in working):
                return
            if self._commit_due():
                self._commit()
            self._finishes_by = min(self._clock(), self._stop_by) + self._settings.shutdown_timeout / 5
            time.sleep(SOURCE_SECONDS)
            self._serve()

    def _timed_rewind(self) -> None:
        self.stages.rewind_begun = self._clock()
        try:
            self._rewind()
        finally:
            self.stages.end_rewind(self._clock())

    def _rewind(self) -> None:
        """Discard the uncommitted work and read the input again from the committed offsets."""
        self._wait_for_retry()
        unknown = self._transaction.in_doubt
        if unknown:
            self._open_guarantee()
            if self._stop.is_set():
                # Nothing is lost by leaving now: committed work stays committed.
                return
            # Only the broker knows whether the last commit succeeded.
            committed = self._until_answered(self._assignment.read_committed)
            if committed is None:
                return
            self._assignment.take_committed(committed)
            self._transaction.read_back()
        positions = self._assignment.drop(states_unknown=unknown)
        self._transaction.rewound()
        if self._spans is not None:
            self._spans.rewound()
            self._written = self._records_out()
        self._sources.rewind()
        if self._retries is not None and unknown:
            self._retries.doubt()
        if self._guarantee.undoes:
            # The transaction undid all outputs: the records count as not processed.
            self._assignment.reached.clear()
        self._assignment.seek(positions)

    def _wait_for_retry(self) -> None:
        """Wait before the next attempt after consecutive failures, and poll the group meanwhile."""
        until = self._clock() + self._transaction.backoff
        while not self._stop.is_set() and (left := until - self._clock()) > 0:
            self._pause(min(left, 0.1))
            self._serve()

    def _open_guarantee(self) -> None:
        self._until_answered(lambda: self._guarantee.open(OPEN_SECONDS))

    def _until_answered(self, call: Callable[[], T]) -> T | None:
        """Repeat a call, polling the group, until the broker answers; ``None`` after a stop request."""
        while True:
            try:
                return call()
            except (*UNFINISHED, BrokerUnreachable, RegistryUnavailable) as error:
                self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            self._pause(0.1)
            if self._stop.is_set():
                return None
            self._serve()

    # --- the group

    @property
    def _consumer(self) -> Consumer:
        assert self._opened_consumer is not None, "start comes first"
        return self._opened_consumer

    def _serve(self) -> None:
        self._consumer.keep_alive()
        self._assignment.raise_error()
        self._last_served = self._clock()

    def _serve_in_slice(self) -> None:
        """Poll the group. Raises ``Interrupted`` when the open slice has to be abandoned."""
        if self._assignment.in_callback:
            # The client is already in the middle of a rebalance.
            return
        self._serve()
        if self._transaction.must_rewind or self._slice.abandoned:
            raise Interrupted
        source = self._slice.input
        if source is not None and not self._assignment.holds(*source):
            raise Interrupted

    # --- stores

    def _restore(self) -> None:
        """Continue restoring, and start the restored tasks."""
        try:
            done = self._assignment.restore(self._stop.is_set)
        except _TRANSIENT as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            return
        self._assignment.start(done)

    def _punctuate(self) -> None:
        """Run timers that are due on the wall clock, and advance stream time of idle inputs."""
        now, partitions = self._clock(), self._assignment.progress
        for task in list(self._assignment.tasks.values()):
            if not task.stateful or not task.positions:
                continue
            self._without_input(task, task.punctuate)
            own = [partitions[item] for item in task.positions if item in partitions]
            if not own or not all(progress.at_end for progress in own):
                continue
            since = max(progress.since for progress in own)
            idle_until = max(since, *(progress.idle_until for progress in own))
            if now - idle_until < IDLE_SECONDS:
                continue
            idle, elapsed = round((now - since) * 1000), round((now - idle_until) * 1000)
            if self._without_input(task, partial(task.idle, idle, elapsed)):
                for progress in own:
                    progress.idle_until = now

    def _without_input(self, task: Task, run: Callable[[], bool]) -> bool:
        """Run a task's work without input (timers, idle windows) as a slice. Returns whether there was any.

        Work that is abandoned in the middle is due again in the next round.
        """
        if self._transaction.must_rewind or self._assignment.tasks.get(task.id) is not task:
            return False
        self._slice.open(task)
        try:
            worked = run()
        except Interrupted:
            worked = False
        finally:
            self._slice.close()
        if self._slice.commit_first:
            self._commit()
        if not worked:
            return False
        try:
            self._write(task)
        except UNFINISHED as error:
            self._transaction.failed(error)
            return False
        except Interrupted:
            return False
        self._transaction.processed()
        return True

    def _follow_global_tables(self) -> None:
        try:
            self._globals.poll()
        except _TRANSIENT as error:
            # The next round repeats the read.
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _keep_standbys(self, standbys: Standbys) -> None:
        self._member = self._consumer.member
        try:
            standbys.poll(self._member, self.held, self._consumer.committed)
        except _TRANSIENT as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _close_stores(self) -> None:
        for task in list(self._assignment.tasks.values()):
            # Tasks that are still open, as leaving the group failed.
            self._assignment.close_task(task)
        self._originals.close()
        if self._switching is not None:
            self._switching.close()
        self._assignment.pending.close()
        self._sinks.close(overdue=self._stop_is_overdue)
        self._sources.close()
        if self._retries is not None:
            self._retries.close()
        if self._standbys is not None:
            self._standbys.close()
        self._globals.close()
        self._databases.close()
        self._cleanup.close()

    def _enter(self, state: State) -> None:
        if not self._state.may_become(state):
            raise StreamsError(f"a worker that is {self._state.value} cannot become {state.value}")
        self._state = state

    def _fail(self, error: BaseException) -> None:
        """Release everything that can be released, without hiding the error."""
        if self._state.may_become(State.FAILED):
            self._enter(State.FAILED)
        self._log.error(Event.WORKER_FAILED, error=str(error), kind=type(error).__name__)
        for release in (
            self._guarantee.abort,
            self._guarantee.close,
            *([self._opened_consumer.close] if self._opened_consumer is not None else []),
            self._close_stores,
        ):
            try:
                release()
            except Exception as also:  # noqa: BLE001 - the error that ends the worker must not be replaced
                self._log.warning(Event.BROKER_TROUBLE, error=str(also))


def _ignore(_: float) -> None:
    return


def _true(call: Callable[[], None]) -> bool:
    """Call, and say that there was work."""
    call()
    return True
