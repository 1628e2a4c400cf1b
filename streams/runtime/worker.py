"""The loop of one process: poll, process, commit if due; and the three paths of a rebalance."""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from streams.broker import GroupSettings
from streams.errors import (
    BrokerError,
    BrokerUnreachable,
    NotCommitted,
    ProcessingError,
    Retriable,
    StreamsError,
    TransactionAborted,
    error_text,
)
from streams.events import Event, get_logger
from streams.operators.guard import Interrupted
from streams.records import TopicPartition
from streams.runtime.assignment import Assignment
from streams.runtime.cleanup import Upkeep
from streams.runtime.dead_letters import DeadLetterWatch, dead_letter_topic
from streams.runtime.global_tables import GlobalTables
from streams.runtime.group_start import commit_group_start
from streams.runtime.lost_offsets import LostOffsets
from streams.runtime.originals import Originals
from streams.runtime.pacing import Pace
from streams.runtime.pending import PendingTasks
from streams.runtime.restore import Restorer
from streams.runtime.slice import Slice
from streams.runtime.standby import Standbys
from streams.runtime.status import Activity, Progress, Stages, State
from streams.runtime.task import Counts, Task, TaskId
from streams.runtime.task_life import TaskLives
from streams.runtime.transaction import UNFINISHED, Transaction
from streams.state.memory import MemoryDatabases
from streams.topology.graph import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from streams.broker import Broker, Consumer, Polled
    from streams.config import Settings
    from streams.coroutines.event_loop import Calls
    from streams.eventtime.merge import InputQueue
    from streams.origin import Origin
    from streams.records import Fetched, Record
    from streams.runtime.commit import Guarantee
    from streams.runtime.restore import Restoration, RestoreProgress
    from streams.state.store import Databases
    from streams.topology.graph import Topology

T = TypeVar("T")

LOOK_SECONDS = 0.1
"""While calls of async functions are awaited, it is looked this often whether the group is due."""

SERVE_SECONDS = 1.0
"""While a slice takes long, the group is served this often: a rebalance does not wait for user code."""

ENDS_SECONDS = 1.0
"""How often lag is brought up to date."""

IDLE_SECONDS = 0.25
"""How often stream time is moved on where nothing comes."""

OPEN_SECONDS = 5.0
"""How long one attempt to get a producer may take before the group is served again."""

CAREFUL_SLICE = 1_000
"""While the broker refuses records, no more of them are processed at a time."""

_PASSING = (Retriable, BrokerUnreachable, TransactionAborted)
"""What the next round of the loop may find gone."""


class Worker:
    """One member of the app's consumer group.

    ``run`` returns after ``request_stop`` and raises what ended the worker otherwise. Everything happens in
    the thread that calls it, user code included; ``request_stop`` and the properties may be used from others.
    ``partitions`` are the input topics with their partition counts, ``databases`` keep the tasks' stores.
    ``members`` are the members of the group as far as known, for ``standby_replicas``, see ``member``.
    ``clock`` counts seconds, ``pause`` lets some pass, at most as many as it is given, and ``wall_clock`` is
    the time in milliseconds since the epoch.
    """

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        guarantee: Guarantee,
        settings: Settings,
        *,
        application: str,
        partitions: Mapping[str, int] | None = None,
        databases: Databases | None = None,
        members: Callable[[], Sequence[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self._topology = topology
        self._broker = broker
        self._guarantee = guarantee
        self._settings = settings
        self._application = application
        self._databases = databases or MemoryDatabases()
        self._dead_letter_topic = dead_letter_topic(settings, application)
        self._clock = clock
        self.stopwatch = clock
        self.look_seconds: float | None = LOOK_SECONDS
        """As ``LOOK_SECONDS``; ``None`` for only when the calls have ended."""
        self.wall_clock = wall_clock or (lambda: time.time_ns() // 1_000_000)
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait
        self._stop_by = float("inf")
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
        self._pace = Pace(settings, clock)
        self._transaction = Transaction(
            guarantee,
            self._pace,
            own_topics={*topology.output_topics, self._dead_letter_topic},
            waiting=self._wait_to_write,
            clock=clock,
            pause=self._pause,
            stopping=self._stop_is_overdue,
        )
        self._dead_letters = DeadLetterWatch(settings, self._dead_letter_topic, clock)
        self._upkeep = Upkeep(topology, broker, self._databases, settings, clock)
        self._slice = Slice()
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
            lives=self._lives,
            lost=self._lost,
            upkeep=self._upkeep,
            pace=self._pace,
            transaction=self._transaction,
            at_work=self._slice,
            partitions=counts,
            matched=(topic for topic in counts if any(matches(item, topic) for item in topology.patterns)),
            make_task=self._make_task,
            consumer=lambda: self._consumer,
            commit=self._commit,
            may_commit=lambda: self._state in (State.RUNNING, State.STOPPING),
            notes_beginnings=settings.offset_reset == "latest",
            clock=clock,
        )

        self._state = State.CREATED
        self._thread: int | None = None
        self._opened_consumer: Consumer | None = None
        self._member: str | None = None
        self._last_served = clock()
        self._ends_known = -float("inf")

        # For those who look on.
        self.stages = Stages()
        self.observe_commit: Callable[[float], None] = _ignore
        """Told the duration of each commit, in seconds."""

    @property
    def state(self) -> State:
        return self._state

    @property
    def progress(self) -> dict[TopicPartition, Progress]:
        """The partitions held, and how far each is."""
        return dict(self._assignment.progress)

    @property
    def counts(self) -> list[Counts]:
        """What the tasks given up have done together, what global tables left out, then each task's."""
        skipped = Counts(skipped=Counter(self._globals.skipped))
        tasks = list(self._assignment.tasks.values())
        return [self._assignment.given_up, skipped, *(task.counts for task in tasks)]

    @property
    def member(self) -> str | None:
        """What the group knows this worker by, see ``Consumer.member``; from any thread."""
        return self._member

    @property
    def held(self) -> set[TaskId]:
        """The worker's tasks, those that are being restored included."""
        return self._lives.tasks()

    @property
    def standby_lag(self) -> dict[TaskId, int]:
        """The copies kept of other workers' tasks, and how many records each is behind."""
        return {} if self._standbys is None else self._standbys.lag

    @property
    def standbys_abandoned(self) -> int:
        """Of how many tasks of other workers no standby replica can be kept."""
        return 0 if self._standbys is None else self._standbys.abandoned

    @property
    def restoring(self) -> dict[TaskId, RestoreProgress]:
        """The tasks whose stores are being brought up to date."""
        return self._assignment.pending.progress

    @property
    def skipped_offsets(self) -> dict[TopicPartition, int]:
        """How many offsets of each partition were left out by ``out_of_range_reset``."""
        return self._lost.skipped

    @property
    def state_bytes(self) -> int:
        """Memory that the stores' databases use."""
        return self._databases.memory_bytes()

    @property
    def ready(self) -> bool:
        """Whether it is running with all its stores up to date."""
        return self._state is State.RUNNING and not self._assignment.pending

    @property
    def tasks(self) -> dict[TaskId, Task]:
        """The tasks at work."""
        return dict(self._assignment.tasks)

    @property
    def activity(self) -> Activity:
        """What it is about; asked for by other threads."""
        busy, transaction = self._slice.input, self._transaction
        return Activity(
            thread=self._thread,
            served=self._last_served,
            busy=None if busy is None else busy[0],
            pieces=self._slice.pieces,
            retrying=self._slice.retrying,
            dirty=self._pace.dirty or transaction.given_up,
            commits=transaction.commits,
            rewinds=transaction.rewinds,
            waiting=self._assignment.pending.partitions,
            writing=transaction.writing,
            aborted_by=transaction.aborted_by,
            restoring=self.restoring,
        )

    def held_back_by(self, partition: TopicPartition) -> list[TopicPartition]:
        """The other inputs of the partition's task whose records its own wait for, by event time."""
        return self._assignment.held_back_by(partition)

    def request_stop(self) -> None:
        """Finish the slice at hand, commit, leave the group. Safe in a signal handler and from any thread."""
        self._stop_by = min(self._stop_by, self._clock() + self._settings.shutdown_timeout / 2)
        self._stop.set()

    def _stop_is_overdue(self) -> bool:
        return self._clock() > self._stop_by

    def run(self) -> None:
        """Work until ``request_stop``.

        Raises ``ProcessingError``, ``DeadLetterLimitExceeded`` or ``BrokerError``; what was processed before
        is committed where that is still possible, and the group is left.
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
        """Get the producer ready and join the group."""
        settings = self._settings
        self._thread = threading.get_ident()
        self._last_served = self._clock()
        self._enter(State.RUNNING)
        self._opened_consumer = self._broker.consumer(
            GroupSettings(
                group=self._application,
                # Where it begins with ``latest`` is committed before: what has no offset then came later.
                offset_reset="earliest",
                protocol=settings.group_protocol,
                instance_id=settings.group_instance_id,
                poll_deadline=settings.poll_deadline,
                session_timeout=settings.session_timeout,
                tells_out_of_range=True,
            )
        )
        self._open_guarantee()
        self._insist(lambda: self._globals.start(self._stop.is_set))
        if settings.offset_reset == "latest":
            self._insist(lambda: commit_group_start(self._topology, self._broker, self._application))
        self._log.info(Event.WORKER_STARTED, application=self._application, guarantee=settings.guarantee)
        self._consumer.subscribe(self._topology.input_topics, self)

    def run_once(self) -> None:
        """One round of the loop."""
        if self._assignment.pending:
            self._restore()
        else:
            if self._standbys is not None:
                self._keep_standbys(self._standbys)
            self._upkeep.delete_unused_state()
        self._follow_global_tables()
        polled = self._poll()
        self._assignment.forget_deleted_topics()
        assignments = {partition: self._assignment.progress.get(partition) for partition in polled.ends}
        # Whatever aborts the transaction, a rebalance during the poll included, has all of it read again.
        if not self._transaction.given_up:
            self._process(polled)
        if not self._transaction.given_up:
            self._assignment.note_ends(polled, assignments)
            if self._lost:
                self._settle_lost_offsets()
        if not self._transaction.given_up:
            self._punctuate()
            if self._commit_due():
                self._commit()
        if self._transaction.given_up:
            self._rewind()

    @property
    def unfinished(self) -> bool:
        """Whether something is being processed, or is processed and not known to be committed; any thread."""
        return self._slice.input is not None or self._pace.dirty or bool(self._assignment.uncommitted())

    def close(self) -> None:
        """Commit and leave the group.

        Raises ``NotCommitted`` where something that was processed is not known to be committed.
        """
        self._enter(State.STOPPING)
        dirty = self._pace.dirty
        self._commit()
        left = self._assignment.uncommitted()
        # What moves no offset is known by the offsets of its transaction, if that has any.
        lost = dirty and self._transaction.given_up and not left
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
                f"stopped, and not all that was processed is known to be committed: {where or 'see the log'}"
                f"{f' ({self._transaction.aborted_by})' if self._transaction.aborted_by else ''}",
                hint="nothing is lost: it is processed again by the worker that continues",
            )
        self._enter(State.STOPPED)
        self._log.info(Event.WORKER_STOPPED)

    def _read_back(self) -> None:
        """Find out what became of a commit whose outcome is unknown, if the broker tells at once."""
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
            application=self._application,
            dead_letter_topic=self._dead_letter_topic,
            database=None if restoration is None else restoration.database,
            checkpoints=None if restoration is None else restoration.checkpoints,
            lookups=self._globals.lookups,
            refused=self._transaction.refused,
        )

    # --- rebalances, called from inside the consumer

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """See ``Assignment.assigned``."""
        self._assignment.assigned(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """See ``Assignment.revoked``."""
        self._assignment.revoked(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """See ``Assignment.lost``."""
        self._assignment.lost(partitions)

    # --- what tasks may ask while a slice is open

    def keep_alive(self) -> None:
        """Serve the group if it is due. Raises ``Interrupted`` when the open slice must be given up."""
        self._slice.pieces += 1
        self._look_after_group()

    def attend(self, calls: Calls) -> None:
        """Wait until calls of an async function have ended, serving the group. Raises ``Interrupted`` too."""
        finished = 0
        while not calls.wait(self.look_seconds):
            # Where none has ended, nothing gets further: that is for the watchdog to see.
            self._slice.pieces += calls.finished > finished
            finished = calls.finished
            self._look_after_group()

    def _look_after_group(self) -> None:
        now = self._clock()
        if now > self._stop_by:
            raise Interrupted
        if self._overdue() and not self._transaction.committing:
            # What is whole need not wait for a slow slice, and its transaction would time out if it did.
            self._commit_in_slice()
        if now - self._last_served >= min(SERVE_SECONDS, self._settings.poll_deadline / 10):
            self._serve_in_slice()

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Let time pass in the middle of a slice: commit what is whole, then serve the group."""
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
        """Commit what is whole. Raises ``Interrupted`` when the open slice cannot go on after that."""
        if not self._pace.dirty:
            return
        if self._slice.holds_back_commits:
            self._slice.give_up_for_commit()
            raise Interrupted
        self._commit()
        if self._transaction.given_up:
            raise Interrupted

    def _is_input(self, topic: str) -> bool:
        return any(matches(wanted, topic) for wanted in self._topology.input_topics)

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        """The input records at these places, without those that cannot be read any more."""
        return self._originals.read(origins)

    # --- the loop's parts

    def _poll(self) -> Polled:
        begun = self._clock()
        if begun - self._ends_known >= ENDS_SECONDS:
            self._ends_known = begun
            self._assignment.refresh_ends()
        self._assignment.note_starts()
        timeout = 0.1
        if self._pace.dirty:
            timeout = min(timeout, max(0.0, self._pace.next_commit() - begun))
        if self._assignment.pending:
            timeout = 0.0 if self._assignment.tasks else min(timeout, 0.02)
        if rest := self._pace.rest():
            self._pause(rest)
        least = max((task.least_slice for task in self._assignment.tasks.values()), default=1)
        polled = self._consumer.poll(self._pace.poll_size(least), timeout)
        self._assignment.raise_error()
        self._last_served = now = self._clock()
        self.stages.poll += now - begun
        self._pace.waited(now - begun)
        self._assignment.received(polled, stopping=self._stop.is_set())
        return polled

    def _process(self, polled: Polled) -> None:
        assignment = self._assignment
        # A partition given up and assigned again in between is another assignment: hold on to this one.
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
                whole = start == 0 and stop == len(fetched)
                if not self._attempt(partition, progress, fetched if whole else fetched.slice(start, stop)):
                    break
                start = stop
        for partition, end in polled.ends.items():
            holder = assignment.held.get(partition)
            if holder is not None and holder.id in assignment.queues:
                assignment.queues[holder.id].at_end(partition, end)
        for identifier, queue in list(assignment.queues.items()):
            self._drain(identifier, queue)

    def _drain(self, identifier: TaskId, queue: InputQueue) -> None:
        """Process what can be had of a task with several input partitions, by lowest event time."""
        assignment = self._assignment
        while assignment.queues.get(identifier) is queue:
            fetched = queue.peek(self._slice_size(assignment.tasks[identifier]))
            if fetched is None:
                break
            partition = TopicPartition(fetched.topic, fetched.partition)
            if not self._attempt(partition, assignment.progress[partition], fetched):
                break
            queue.taken(fetched)
        if assignment.queues.get(identifier) is not queue or self._transaction.given_up:
            return
        # One that is far ahead must not fill the memory while it waits for another.
        own = [partition for partition, task in assignment.held.items() if task.id == identifier]
        limit = self._settings.max_poll_records
        full = [partition for partition in own if queue.size(partition) >= 2 * limit]
        low = [partition for partition in own if queue.size(partition) < limit]
        self._consumer.pause(full)
        self._consumer.resume(low)

    def _attempt(self, partition: TopicPartition, progress: Progress, fetched: Fetched) -> bool:
        """Process one slice if that still makes sense, with the commits that are due around it.

        Returns whether it was processed; if not, its records come again: to the next owner, or after the
        rewind.
        """
        while True:
            if self._stop.is_set():
                return False
            if self._pace.would_time_out():
                self._commit()
            if self._transaction.given_up or not self._assignment.holds(partition, progress):
                return False
            try:
                self._process_slice(partition, self._assignment.held[partition], fetched)
            except Interrupted:
                # Where the partition is still held, the slice was given up for a commit's sake: begin anew.
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
            # What is whole is kept: the failing record is then the next one after a restart.
            self._slice.close()
            if not self._transaction.given_up:
                self._commit()
            raise
        finally:
            self._slice.close()
        written = self._clock()
        self._assignment.processed(partition, task)
        self._pace.measured(task.id, len(fetched), written - begun)
        try:
            self._write(task)
        except UNFINISHED as error:
            self._transaction.failed(error)
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
                if output.topic == self._dead_letter_topic:
                    self._dead_letters.note(output)
                self._transaction.write(output)

    def _wait_to_write(self) -> None:
        """Serve the group while no broker takes what is to be written. Raises ``Interrupted``."""
        now = self._clock()
        if now > self._stop_by:
            raise self._unwritten()
        if self._assignment.in_callback:
            # In the middle of a rebalance, others wait for this worker.
            writing = self._transaction.writing
            if writing is not None and now - writing[1] > self._settings.transaction_timeout:
                raise self._unwritten()
            return
        if now - self._last_served >= min(SERVE_SECONDS, self._settings.poll_deadline / 10):
            self._serve()
            if self._transaction.given_up:
                raise Interrupted

    def _unwritten(self) -> Interrupted:
        """Note that some of what was processed is not written, and will not be."""
        self._transaction.give_up()
        return Interrupted()

    def _settle_lost_offsets(self) -> None:
        """Where the log does not have what comes next: stop, or go on, as ``out_of_range_reset`` says."""
        if self._stop.is_set():
            return
        try:
            committed = self._consumer.committed(self._lost.partitions)
        except _PASSING as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            return
        for partition, offset in self._lost.take_committed(committed).items():
            self._assignment.continue_from(partition, offset)
        if not self._lost or self._transaction.given_up:
            return
        if self._lost.fatal:
            self._commit()
            raise self._lost.error(committed)
        for partition, target in self._lost.take_reset().items():
            self._assignment.jump(partition, target)

    # --- commits

    def _slice_size(self, task: Task) -> int:
        size = self._pace.slice_size(task.id, task.least_slice)
        return min(size, CAREFUL_SLICE) if self._transaction.careful else size

    def _overdue(self) -> bool:
        if not self._pace.dirty:
            return False
        return self._transaction.careful or self._pace.overdue(
            sum(task.dirty for task in self._assignment.tasks.values())
        )

    def _commit_due(self) -> bool:
        if not self._pace.dirty:
            return False
        return self._overdue() or (self._clock() >= self._pace.next_commit() and self._assignment.caught_up())

    def _commit(self) -> None:
        """Commit all that is whole, or note that the input must be read again."""
        if self._transaction.given_up:
            return
        begun = self._clock()
        assert not self._slice.holds_back_commits, "a commit cannot be made in the middle of a slice"  # I1
        self._transaction.begin_commit()
        try:
            self._prepare()
            offsets = self._assignment.offsets()
            metadata = self._assignment.offset_metadata(offsets)
            self._transaction.commit(offsets, self._consumer, metadata)
        except UNFINISHED as error:
            self._transaction.failed(error)
        except Interrupted:
            # The group or a stop did not wait for what steps forward at a commit.
            self._transaction.give_up()
        else:
            self._assignment.committed |= offsets
            for task in self._assignment.tasks.values():
                task.committed()
            self._upkeep.committed(offsets)
            if offsets:
                now = self._clock()
                self.stages.commit += now - begun
                self.observe_commit(now - begun)
        finally:
            self._transaction.end_commit()
        self._pace.committed(begun, transaction=self._guarantee.undoes)

    def _prepare(self) -> None:
        """Let tasks forward and encode what has changed, and write it."""
        for task in list(self._assignment.tasks.values()):
            if not task.stateful or not task.positions:
                # Nothing was processed; what a new schema asks for is written once there are offsets. (I5)
                continue
            task.prepare()
            if self._transaction.given_up:
                raise Interrupted
            self._write(task)
            for output in task.take_changelog():
                self._transaction.write_changes(output)

    def _rewind(self) -> None:
        """Read the input again from the committed offsets, after whatever was not committed is given up."""
        self._wait_for_retry()
        unknown = self._transaction.in_doubt
        if unknown:
            self._open_guarantee()
            if self._stop.is_set():
                # Nothing is lost by leaving now: what was committed stands.
                return
            # Only the broker knows whether the last commit happened.
            committed = self._insist(self._assignment.read_committed)
            if committed is None:
                return
            self._assignment.take_committed(committed)
            self._transaction.read_back()
        positions = self._assignment.drop(states_unknown=unknown)
        self._transaction.rewound()
        if self._guarantee.undoes:
            # Nothing is left of what was processed: it is as if it had not been.
            self._assignment.reached.clear()
        self._assignment.seek(positions)

    def _wait_for_retry(self) -> None:
        """Where attempt after attempt fails, let some time pass before the next one; the group is served."""
        until = self._clock() + self._transaction.backoff
        while not self._stop.is_set() and (left := until - self._clock()) > 0:
            self._pause(min(left, 0.1))
            self._serve()

    def _open_guarantee(self) -> None:
        self._insist(lambda: self._guarantee.open(OPEN_SECONDS))

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Repeat a call until the broker answers, as a member of the group; ``None`` when told to stop."""
        while True:
            try:
                return call()
            except (*UNFINISHED, BrokerUnreachable) as error:
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
        """Let the group act. Raises ``Interrupted`` when the slice that is open has become pointless."""
        if self._assignment.in_callback:
            # The client is in the middle of a rebalance already.
            return
        self._serve()
        if self._transaction.given_up or self._slice.abandoned:
            raise Interrupted
        source = self._slice.input
        if source is not None and not self._assignment.holds(*source):
            raise Interrupted

    # --- stores

    def _restore(self) -> None:
        """Continue to bring stores up to date, and start the tasks that are done."""
        try:
            done = self._assignment.restore(self._stop.is_set)
        except _PASSING as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            return
        self._assignment.start(done)

    def _punctuate(self) -> None:
        """Run what is due on the wall clock, and move stream time on where nothing comes."""
        now, partitions = self._clock(), self._assignment.progress
        for task in list(self._assignment.tasks.values()):
            if not task.stateful or not task.positions:
                continue
            self._without_input(task, task.punctuate)
            own = [partitions[item] for item in task.positions if item in partitions]
            if not own or not all(progress.at_end for progress in own):
                continue
            since = max(progress.since for progress in own)
            told = max(since, *(progress.told for progress in own))
            if now - told < IDLE_SECONDS:
                continue
            quiet, untold = round((now - since) * 1000), round((now - told) * 1000)
            if self._without_input(task, partial(task.idle, quiet, untold)):
                for progress in own:
                    progress.told = now

    def _without_input(self, task: Task, run: Callable[[], bool]) -> bool:
        """Let a task do what no record asks for, as a slice of its own. Returns whether there was anything.

        What is given up in the middle is due again in the next round.
        """
        if self._transaction.given_up or self._assignment.tasks.get(task.id) is not task:
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
        except _PASSING as error:
            # What was not read now is read in the next round.
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _keep_standbys(self, standbys: Standbys) -> None:
        self._member = self._consumer.member
        try:
            standbys.poll(self._member, self.held, self._consumer.committed)
        except _PASSING as error:
            self._log.warning(Event.BROKER_TROUBLE, error=str(error))

    def _close_stores(self) -> None:
        for task in list(self._assignment.tasks.values()):
            # Where the group could not be left, these were not taken away.
            self._assignment.close_task(task)
        self._originals.close()
        self._assignment.pending.close()
        if self._standbys is not None:
            self._standbys.close()
        self._globals.close()
        self._databases.close()
        self._upkeep.close()

    def _enter(self, state: State) -> None:
        if not self._state.may_become(state):
            raise StreamsError(f"a worker that is {self._state.value} cannot become {state.value}")
        self._state = state

    def _fail(self, error: BaseException) -> None:
        """Leave as little behind as possible, without hiding what went wrong."""
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
