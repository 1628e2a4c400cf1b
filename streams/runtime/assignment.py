"""The partitions assigned to a worker, their tasks, and the progress of each.

The three paths of a rebalance are methods of ``Assignment``, called by the consumer. They never seek: the
loop does so when the client is no longer in the middle of a rebalance.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from streams.broker import BEGINNING
from streams.errors import ProcessingError, StreamsError
from streams.events import Event, get_logger
from streams.eventtime.merge import InputQueue
from streams.records import TopicPartition
from streams.runtime.counts import Counts
from streams.runtime.status import Progress
from streams.runtime.task import Task, TaskId
from streams.runtime.task_life import TaskLives, TaskState
from streams.runtime.topics import check_copartitions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import Consumer, Polled
    from streams.records import Fetched
    from streams.runtime.cleanup import Cleanup
    from streams.runtime.lost_offsets import LostOffsets
    from streams.runtime.pacing import Pacing
    from streams.runtime.pending import PendingTasks
    from streams.runtime.restore import Restoration
    from streams.runtime.sinks import Sinks
    from streams.runtime.slice import Slice
    from streams.runtime.transaction import Transaction
    from streams.runtime.worker_ledger import WorkerLedger
    from streams.topology.graph import Topology


class RebalanceState(Enum):
    """The states of a rebalance that releases tasks.

    ::

        NONE ──commit before release──> COMMITTING ──error──> FAILED
         ^ ^────────────done───────────────┘                     │
         └──────────────────────error raised by the loop─────────┘
    """

    NONE = "none"
    COMMITTING = "committing"
    """In the client's callback: the group must not be polled again, and other members wait."""
    FAILED = "failed"
    """The error is raised as soon as the client has left the rebalance."""

    def may_become(self, other: RebalanceState) -> bool:
        """Whether the transition is allowed."""
        return other in _NEXT[self]


_NEXT = {
    RebalanceState.NONE: {RebalanceState.COMMITTING},
    RebalanceState.COMMITTING: {RebalanceState.NONE, RebalanceState.FAILED},
    RebalanceState.FAILED: {RebalanceState.NONE},
}


class Assignment:
    """The assignment of one worker; a ``streams.broker.RebalanceListener``.

    ``partitions`` are the input topics with their partition counts, ``matched`` those of them that only
    patterns match. ``make_task`` creates a task, one with stores from their restoration. ``commit`` commits
    the completed slices, or notes in ``transaction`` that the input has to be read again; before that,
    ``hand_over`` lets the background work of tasks end that are given away. ``may_commit`` says
    whether the worker's state allows a commit. ``consumer`` may be called after the worker has joined the
    group.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        pending: PendingTasks,
        sinks: Sinks,
        lives: TaskLives,
        lost: LostOffsets,
        cleanup: Cleanup,
        pacing: Pacing,
        transaction: Transaction,
        ledger: WorkerLedger,
        at_work: Slice,
        partitions: dict[str, int],
        matched: Iterable[str],
        make_task: Callable[[TaskId, Restoration | None], Task],
        consumer: Callable[[], Consumer],
        commit: Callable[[], None],
        hand_over: Callable[[Collection[Task]], None],
        may_commit: Callable[[], bool],
        notes_beginnings: bool,
        clock: Callable[[], float],
    ) -> None:
        self._topology = topology
        self._lives = lives
        self._lost = lost
        self._cleanup = cleanup
        self._pacing = pacing
        self._transaction = transaction
        self._ledger = ledger
        self._slice = at_work
        self._partitions = partitions
        self._make_task = make_task
        self._consumer = consumer
        self._commit = commit
        self._hand_over = hand_over
        self._may_commit = may_commit
        self._notes_beginnings = notes_beginnings
        self._clock = clock
        self._log = get_logger()
        self._state = RebalanceState.NONE
        self._error: StreamsError | None = None

        self.sinks = sinks
        """The sinks of the topology; their partitions wait for the positions that these have."""
        self.pending = pending
        """The tasks that wait for their stores, and the partitions assigned to these tasks."""
        self.tasks: dict[TaskId, Task] = {}
        """The running tasks."""
        self.held: dict[TopicPartition, Task] = {}
        """The partitions of running tasks, and their tasks."""
        self.queues: dict[TaskId, InputQueue] = {}
        """The polled records of tasks with several input partitions, to be merged by event time."""
        self.progress: dict[TopicPartition, Progress] = {}
        """All assigned partitions, waiting ones included; each assignment has a new object."""
        self.committed: dict[TopicPartition, int] = {}
        """The committed next offsets, as far as they are known."""
        self.reached: dict[TopicPartition, int] = {}
        """The highest next offset up to which each partition was processed, committed or not."""
        self.closed_counts = Counts()
        """The counts of all closed tasks together."""
        self._polled: dict[TopicPartition, int] = {}
        """The next offset after the last poll, of partitions whose records are not queued."""
        self._unstarted: set[TopicPartition] = set()
        """Partitions of running tasks whose group position is not known yet."""
        self._matched = set(matched)
        self._unknown_topics: set[str] = set()
        """Topics of tasks with stores that patterns matched after the start, to be checked."""

    @property
    def in_callback(self) -> bool:
        """Whether the client is in the middle of a rebalance."""
        return self._state is RebalanceState.COMMITTING

    def holds(self, partition: TopicPartition, progress: Progress) -> bool:
        """Whether a partition is still held under this assignment: not released, nor assigned again since."""
        return self.progress.get(partition) is progress and partition in self.held

    def raise_error(self) -> None:
        """Raise the error of a failed rebalance, if there was one."""
        if self._state is RebalanceState.FAILED:
            error, self._error = self._error, None
            self._become(RebalanceState.NONE)
            assert error is not None
            raise error

    # --- rebalances: the three paths

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Create tasks for added partitions; those with stores begin when these are restored."""
        now = self._clock()
        claimed: list[TopicPartition] = []
        for partition in partitions:
            subtopology, _ = self._topology.source_of(partition.topic)
            identifier = TaskId(subtopology.number, partition.partition)
            self.progress[partition] = Progress(since=now, idle_until=now)
            task = self.tasks.get(identifier)
            if subtopology.stores:
                if task is not None:
                    # A pattern matched a new topic: the task is restarted with that partition.
                    self._commit_in_callback()
                    self.suspend(task)
                if partition.topic not in self._partitions:
                    self._matched.add(partition.topic)
                    self._unknown_topics.add(partition.topic)
                self.pending.add(identifier, [partition], self._consumer())
                continue
            if task is None:
                task = self.tasks[identifier] = self._make_task(identifier, None)
                self._lives.create(identifier)
                self._lives.become(identifier, TaskState.RUNNING)
            self.held[partition] = task
            if task.delivers:
                self.sinks.assigned(task, partition)
                claimed.append(partition)
                continue
            self._unstarted.add(partition)
        if claimed:
            self._consumer().pause(claimed)
        self.note_starts()
        if self._notes_beginnings:
            self._note_beginnings(partitions)
        self._log.info(Event.PARTITIONS_ASSIGNED, partitions=[str(item) for item in partitions])

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Commit, then release: the next owner continues where this one stopped."""
        if self._may_commit():
            self._commit_in_callback({self.held[item] for item in partitions if item in self.held})
        self._release(partitions)
        self._cleanup.revoked()
        self._log.info(Event.PARTITIONS_REVOKED, partitions=[str(item) for item in partitions])

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Release without committing: another member may already own these partitions."""
        self._transaction.abort()
        self._pacing.discarded()
        self._release(partitions)
        self._log.warning(Event.PARTITIONS_LOST, partitions=[str(item) for item in partitions])

    def _commit_in_callback(self, leaving: Collection[Task] = ()) -> None:
        """Commit before tasks are released, in the middle of a rebalance."""
        if self._state is RebalanceState.FAILED:
            # The transaction is already aborted.
            return
        self._become(RebalanceState.COMMITTING)
        try:
            if self._transaction.between_slices:
                self._slice.abandon()
                self._hand_over(leaving)
                self._commit()
            else:
                # In the middle of a write or a commit there are no complete slices: abort and repeat.
                self._transaction.abort()
        except StreamsError as error:
            self._become(RebalanceState.FAILED)
            self._error = error
            self._transaction.abort()
        finally:
            if self._state is RebalanceState.COMMITTING:
                self._become(RebalanceState.NONE)

    def _release(self, partitions: Iterable[TopicPartition]) -> None:
        self._transaction.refused.clear()
        partitions = list(partitions)
        self.sinks.release(partitions)
        for partition in partitions:
            task = self.held.pop(partition, None)
            self.progress.pop(partition, None)
            self.committed.pop(partition, None)
            self.reached.pop(partition, None)
            self._forget_polled(partition)
            self._lost.discard(partition)
            self._unstarted.discard(partition)
            if task is None:
                self.pending.discard(partition)
                continue
            if task.states:
                self.suspend(task)
                continue
            task.forget(partition)
            if task not in self.held.values():
                self._lives.become(task.id, TaskState.CLOSED)
                self._retire(task)

    def _retire(self, task: Task) -> None:
        del self.tasks[task.id]
        self.queues.pop(task.id, None)
        self._pacing.forget(task.id)
        self.closed_counts.add(task.counts)
        self._ledger.close(task.id, task.ledger)
        self.close_task(task)

    def close_task(self, task: Task) -> None:
        """Close a task's steps and its database; a step's error is only logged."""
        try:
            task.close()
        except ProcessingError as error:
            self._log.error(Event.CLOSE_FAILED, task=str(task.id), error=str(error))

    # --- tasks with sink connectors

    def claim_from_sinks(self) -> None:
        """Begin partitions whose positions in their sinks are known by now.

        Raises ``ConnectorError`` and ``BrokerError``.
        """
        claimed = self.sinks.claim(self.held)
        self.hold_waiting()
        for task in {self.held[partition] for partition in claimed}:
            if task.positions or task.undelivered:
                self._hold(task)
        for partition, position in claimed.items():
            self._begin_from_sink(partition, position)

    def hold_waiting(self) -> None:
        """Discard the uncommitted work of tasks whose partitions wait for their sink again."""
        waiting = self.sinks.waiting_partitions()
        # A partition that was just added waits beside those of its task that are read.
        read = {partition for partition in waiting if partition in self.held}
        for task in {
            self.held[partition] for partition in read if partition in self.held[partition].positions
        }:
            self.sinks.hold(self._hold(task))

    def _hold(self, task: Task) -> list[TopicPartition]:
        """Pause a task and discard its uncommitted work; return its partitions."""
        now = self._clock()
        own = [partition for partition, holder in self.held.items() if holder is task]
        task.drop({})
        task.starts.clear()
        for partition in own:
            self.reached.pop(partition, None)
            self._forget_polled(partition)
            self._lost.discard(partition)
            self.progress[partition] = Progress(since=now, idle_until=now)
        self._consumer().pause(own)
        return own

    def _begin_from_sink(self, partition: TopicPartition, position: int) -> None:
        """Read a partition from the position that its sink has; 0 where it has none yet."""
        task = self.held[partition]
        start = position
        if position == 0:
            # With ``latest``, the group's start was committed before the worker joined.
            own = self._consumer().positions([partition]) if self._notes_beginnings else {}
            start = own.get(partition, BEGINNING)
        self._consumer().seek({partition: start})
        for known in (self.committed, task.positions, task.starts):
            known.pop(partition, None)
        task.ledger.move(partition, -1)
        self._ledger.forget(partition)
        if start >= 0:
            task.starts[partition] = self.committed[partition] = start
        progress = self.progress[partition]
        progress.position, progress.at_end, progress.since = max(0, start), False, self._clock()
        self._consumer().resume([partition])

    # --- tasks with stores

    def suspend(self, task: Task) -> None:
        """Close a task with stores; its partitions that are still held wait until it is restored."""
        left = [partition for partition, holder in self.held.items() if holder is task]
        for partition in left:
            del self.held[partition]
            self._forget_polled(partition)
            if partition in task.starts:
                # Uncommitted work is dropped with the task's changes.
                self.pending.resume_at[partition] = self.committed.get(partition, task.starts[partition])
        self._lives.become(task.id, TaskState.SUSPENDED if left else TaskState.CLOSED)
        self._retire(task)
        if left:
            self.pending.add(task.id, left, self._consumer())

    def restore(self, stopped: Callable[[], bool]) -> list[Restoration]:
        """Continue restoring and return the completed restorations, for ``start``. Raises ``BrokerError``."""
        if self._unknown_topics:
            self._check_unknown_topics()
        return self.pending.poll(self._consumer(), busy=bool(self.tasks), stopped=stopped)

    def start(self, done: Iterable[Restoration]) -> None:
        """Start the restored tasks. Waiting partitions do not count as stalled."""
        now = self._clock()
        for partition in self.pending.partitions:
            self.progress[partition].since = now
        for restoration in done:
            self._activate(restoration)

    def _activate(self, restoration: Restoration) -> None:
        """Start a restored task."""
        identifier = restoration.task
        partitions = self.pending.take(identifier)
        subtopology = self._topology.subtopologies[identifier.subtopology]
        task = self._make_task(identifier, restoration)
        self._lives.become(identifier, TaskState.RUNNING)
        for store, begun in task.begun.items():
            self._log.warning(
                Event.AGGREGATE_BEGINS_EMPTY,
                task=str(identifier),
                store=store,
                aggregates=list(begun.names),
                since=begun.since,
                offsets={str(partition): start for partition, start in partitions.items()},
            )
        self.tasks[identifier] = task
        positions = {partition: start for partition, start in partitions.items() if start is not None}
        task.starts |= positions
        self.held |= dict.fromkeys(partitions, task)
        if len(partitions) > 1:
            self.queues[identifier] = InputQueue(
                {partition: subtopology.rank(partition.topic) for partition in partitions},
                task.event_times,
            )
        if positions:
            self._consumer().seek(positions)
        for partition, position in positions.items():
            progress = self.progress[partition]
            progress.position, progress.at_end = position, False
        self._consumer().resume(list(partitions))

    def _check_unknown_topics(self) -> None:
        """Read the partition counts of topics that patterns matched after the start.

        Raises ``TopicError`` if keys would be in other partitions than their state.
        """
        self._partitions |= self._cleanup.partition_counts(self._unknown_topics)
        self._unknown_topics.clear()
        check_copartitions(self._topology, self._partitions)

    @property
    def inputs(self) -> dict[str, int]:
        """The input topics with their partition counts, as far as known; from any thread."""
        return dict(self._partitions)

    def forget_deleted_topics(self) -> None:
        """Forget deleted topics that patterns matched: no task waits for their partitions."""
        for topic in self._cleanup.check_topics(self._matched):
            self._matched.discard(topic)
            self._partitions.pop(topic, None)
            self._log.info(Event.TOPIC_GONE, topic=topic)

    # --- positions

    def note_starts(self) -> None:
        """Remember the group's positions in assigned partitions, to commit markers that follow."""
        if not self._unstarted:
            return
        for partition, start in self._consumer().positions(self._unstarted).items():
            self._unstarted.discard(partition)
            # Without a committed offset, the start is the first record or end that is polled.
            if start >= 0:
                self.held[partition].starts.setdefault(partition, start)

    def _note_beginnings(self, partitions: Collection[TopicPartition]) -> None:
        """Log which partitions have no committed offset although the group has begun."""
        positions = self._consumer().positions(partitions)
        added = sorted(
            str(partition)
            for partition, start in positions.items()
            if start == BEGINNING and partition.topic not in self._topology.repartitions
        )
        if added:
            self._log.info(
                Event.PARTITIONS_FROM_BEGINNING,
                partitions=added,
                hint="they were added after the group had begun: it has no committed offset in them",
            )

    def received(self, polled: Polled, *, stopping: bool) -> None:
        """Note the starts and ends of polled partitions, whether or not the records are processed.

        When ``stopping``, earlier polled records need not have been processed.
        """
        polled_now: dict[TopicPartition, int] = {}
        for fetched in polled.fetched:
            partition = TopicPartition(fetched.topic, fetched.partition)
            task = self.held.get(partition)
            if task is None:
                continue
            self._note_received(partition, task, fetched)
            if task.id not in self.queues:
                polled_now[partition] = fetched.next_offset
                before = self._polled.get(partition)
                assert before is None or stopping or task.positions.get(partition, -1) >= before, (
                    f"{partition} was polled up to {before} and processed up to "
                    f"{task.positions.get(partition)}: records between are skipped"  # I6
                )
        self._polled |= polled_now
        waiting = self.sinks.waiting_partitions()
        for partition, end in polled.ends.items():
            task = self.held.get(partition)
            if task is not None and partition not in waiting:
                # An end is reported once: remember it as the start for a rewind without any record.
                task.starts.setdefault(partition, end)
        for partition, found in polled.out_of_range.items():
            if partition in self.progress:
                self._lost.add(partition, found)

    def _forget_polled(self, partition: TopicPartition) -> None:
        """The partition's records are polled again, or by another worker."""
        self._polled.pop(partition, None)
        self._ledger.forget(partition)

    def _note_received(self, partition: TopicPartition, task: Task, fetched: Fetched) -> None:
        self._ledger.polled(partition, fetched)
        first = fetched.offsets([0])[0]
        # If these records are dropped before they are processed, they are read again from here.
        task.starts.setdefault(partition, first)
        progress = self.progress[partition]
        # Polled records count as lag, in case their processing hangs.
        progress.at_end, progress.end = False, max(progress.end or 0, fetched.next_offset)
        if progress.position is None:
            progress.position = first

    def refresh_ends(self) -> None:
        """Update the known ends of partitions, from what the client has fetched."""
        for partition, end in self._consumer().known_ends(self.progress).items():
            self.progress[partition].end = end

    def processed(self, partition: TopicPartition, task: Task, fetched: Fetched) -> None:
        """Note a completed slice, committed or not."""
        self._ledger.processed(task.id, partition, fetched)
        self.reached[partition] = max(self.reached.get(partition, -1), task.positions[partition])

    def note_ends(self, polled: Polled, assignments: Mapping[TopicPartition, Progress | None]) -> None:
        """Move positions to ends that were polled under the current assignment."""
        ends = dict(polled.ends)
        for queue in self.queues.values():
            # In a queue, an end is valid when the records polled before it are processed.
            ends |= queue.ends()
        for partition, end in ends.items():
            progress = assignments.get(partition, self.progress.get(partition))
            if progress is None or not self.holds(partition, progress):
                continue
            if partition in self.sinks.waiting_partitions():
                continue
            task = self.held[partition]
            queue_here = self.queues.get(task.id)
            if queue_here is not None and queue_here.ends().get(partition) != end:
                continue
            if queue_here is not None and task.positions.get(partition) == end and progress.at_end:
                continue
            before = task.positions.get(partition, task.starts.get(partition))
            if queue_here is None and before is not None and before < self._polled.get(partition, -1):
                # A stop left polled records unprocessed: the end is not reached. (I6)
                continue
            task.advance(partition, end)
            position = task.positions[partition]
            if before is not None and position > before:
                self._transaction.processed()
            if position <= end:
                progress.position = progress.end = position
                progress.at_end, progress.since = True, self._clock()

    def continue_from(self, partition: TopicPartition, committed: int) -> None:
        """Discard records that another member has already processed; continue from the committed offset."""
        task = self.held.get(partition)
        if task is None:
            self.pending.resume_at[partition] = committed
            self._consumer().seek({partition: committed})
            return
        self.committed[partition] = committed
        task.ledger.move(partition, committed)
        self.reached.pop(partition, None)
        task.starts.setdefault(partition, committed)
        self._transaction.abort()

    def jump(self, partition: TopicPartition, target: int) -> None:
        """Continue from an offset other than the next one."""
        now = self._clock()
        self.reached.pop(partition, None)
        self._forget_polled(partition)
        # The target may be lower than the committed offset, if the topic was created again.
        self.committed.pop(partition, None)
        task = self.held.get(partition)
        if task is not None:
            task.ledger.move(partition, target)
        if task is None:
            self.pending.resume_at[partition] = target
        elif task.id not in self.queues:
            # Everything before was processed. The jump is committed, so that the next owner need not repeat
            # it.
            task.positions[partition] = task.starts[partition] = target
            self._transaction.processed()
            # The position may be lower than before, so progress is measured from here.
            self.progress[partition] = Progress(position=target, since=now, idle_until=now)
        self._consumer().seek({partition: target})

    def held_back_by(self, partition: TopicPartition) -> list[TopicPartition]:
        """The other inputs of the partition's task whose records its own wait for, by event time."""
        task = self.held.get(partition)
        queue = None if task is None else self.queues.get(task.id)
        if task is None or queue is None or not queue.size(partition):
            return []
        others = [item for item, holder in list(self.held.items()) if holder is task]
        return [item for item in others if not queue.size(item) and item not in queue.ends()]

    def caught_up(self) -> bool:
        """Whether no partition is known to have more records."""
        behind = [
            partition
            for partition, progress in self.progress.items()
            if progress.position is not None and not progress.at_end
        ]
        ends = self._consumer().known_ends(behind)
        for partition in behind:
            position = self.progress[partition].position
            # One offset may be a transaction's marker, which is never delivered.
            if position is not None and ends.get(partition, position + 2) - position > 1:
                return False
        return True

    def position(self, partition: TopicPartition) -> int | None:
        """The next offset to process of a partition, as far as its task knows it."""
        task = self.held.get(partition)
        return None if task is None else task.positions.get(partition, task.starts.get(partition))

    def read_queued_again(self) -> None:
        """Discard polled records that wait to be merged, and poll them again."""
        for identifier, queue in self.queues.items():
            queue.clear()
            own = [partition for partition, task in self.held.items() if task.id == identifier]
            known = {item: position for item in own if (position := self.position(item)) is not None}
            if known:
                self.seek(known)

    # --- committed offsets

    def offsets(self, *, confirm: bool = False) -> dict[TopicPartition, int]:
        """The next offsets to commit; with ``confirm`` all of tasks with background work."""
        offsets: dict[TopicPartition, int] = {}
        for task in self.tasks.values():
            reached = task.offsets
            moved = {
                partition: offset
                for partition, offset in reached.items()
                if self.committed.get(partition) != offset
            }
            for partition, offset in moved.items():
                assert self.held.get(partition) is task, f"{partition} is not held by task {task.id}"  # I4
                assert offset >= self.committed.get(partition, 0), (
                    f"{partition} would go back from {self.committed[partition]} to {offset}"  # I4
                )
            # Only offsets fence, so changes of state must never be committed without them, nor outcomes.
            fenced = task.staged or task.retried or task.delivered
            assert not fenced or reached, f"task {task.id} has changes and no offsets"  # I5
            offsets |= reached if fenced or (confirm and task.has_background_work) else moved
        return offsets

    def offset_metadata(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, str]:
        """What is committed beside these offsets: which commits of their stores they belong to."""
        tasks = {task.id: task for partition in offsets if (task := self.held[partition]).states}
        texts = {identifier: task.offset_metadata for identifier, task in tasks.items()}
        return {
            partition: text
            for partition in offsets
            if (text := texts.get(self.held[partition].id)) is not None
        }

    def note_committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """These next offsets are committed."""
        self.committed |= offsets
        for partition, offset in offsets.items():
            task = self.held.get(partition)
            if task is not None:
                self._ledger.committed(task.id, task.ledger, partition, offset)

    def uncommitted(self) -> dict[TopicPartition, tuple[int, int]]:
        """The committed and the processed next offset of each held partition, where they differ.

        At least once, records that will be read again after a rewind count as processed: their results were
        written.
        """
        found = {}
        for partition, reached in list(self.reached.items()):
            task = self.held.get(partition)
            start = 0 if task is None else task.starts.get(partition, 0)
            committed = self.committed.get(partition, start)
            finished = reached if task is None else min(reached, task.offsets.get(partition, reached))
            if committed < finished:
                found[partition] = committed, finished
        return found

    def read_committed(self) -> dict[TopicPartition, int]:
        """Read the committed offsets from the broker. Raises ``BrokerError``."""
        # The positions of partitions with sinks are those of the sinks.
        own = {partition for partition, task in self.held.items() if not task.delivers}
        return self._consumer().committed(own | self.pending.resume_at.keys())

    def take_committed(self, committed: Mapping[TopicPartition, int]) -> None:
        """Take over offsets that were read back after a commit of unknown outcome."""
        self.committed |= committed
        resume_at = self.pending.resume_at
        resume_at |= {partition: committed.get(partition, at) for partition, at in resume_at.items()}

    def drop(self, *, states_unknown: bool) -> dict[TopicPartition, int]:
        """Discard the tasks' uncommitted work and return the positions to read again from.

        ``states_unknown`` says that it is not known whether the stores' changes were committed.
        """
        positions: dict[TopicPartition, int] = {}
        for task in list(self.tasks.values()):
            own = {
                partition: self.committed.get(partition, start)
                for partition, start in task.starts.items()
                if partition in self.held
            }
            task.drop(own)
            positions |= own
            if states_unknown and task.states:
                # The changelog shows which changes were committed: restore the stores from it.
                self.suspend(task)
        for queue in self.queues.values():
            queue.clear()
        return positions

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read partitions again from these offsets."""
        self._consumer().seek(positions)
        now = self._clock()
        for partition, position in positions.items():
            self._forget_polled(partition)
            progress = self.progress[partition]
            progress.position, progress.at_end, progress.since = position, False, now

    def _become(self, state: RebalanceState) -> None:
        assert self._state.may_become(state), (
            f"a rebalance that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
