"""What a worker has been assigned: its partitions, their tasks, and how far each is.

The three paths of a rebalance are methods of ``Assignment``, called from inside the consumer. They never
seek: the loop does so once the client is not in the middle of a rebalance any more.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from streams.broker import BEGINNING
from streams.errors import ProcessingError, StreamsError
from streams.events import Event, get_logger
from streams.eventtime.merge import InputQueue
from streams.records import TopicPartition
from streams.runtime.status import Progress
from streams.runtime.task import Counts, Task, TaskId
from streams.runtime.task_life import TaskLives, TaskState
from streams.runtime.topics import check_copartitions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from streams.broker import Consumer, Polled
    from streams.records import Fetched
    from streams.runtime.cleanup import Upkeep
    from streams.runtime.lost_offsets import LostOffsets
    from streams.runtime.pacing import Pace
    from streams.runtime.pending import PendingTasks
    from streams.runtime.restore import Restoration
    from streams.runtime.slice import Slice
    from streams.runtime.transaction import Transaction
    from streams.topology.graph import Topology


class RebalanceState(Enum):
    """Whether a rebalance is under way in which tasks go.

    ::

        NONE ──commit before tasks go──> COMMITTING ──error──> FAILED
         ^ ^────────────done────────────────┘                    │
         └──────────────────────error raised by the loop─────────┘
    """

    NONE = "none"
    COMMITTING = "committing"
    """The client waits in the middle of it: nobody may serve the group again, and others wait for it."""
    FAILED = "failed"
    """The error is raised as soon as the client is out of the rebalance."""

    def may_become(self, other: RebalanceState) -> bool:
        """Whether there is a way from here to there in one step."""
        return other in _NEXT[self]


_NEXT = {
    RebalanceState.NONE: {RebalanceState.COMMITTING},
    RebalanceState.COMMITTING: {RebalanceState.NONE, RebalanceState.FAILED},
    RebalanceState.FAILED: {RebalanceState.NONE},
}


class Assignment:
    """One worker's; a ``streams.broker.RebalanceListener``.

    ``partitions`` are the input topics with their partition counts, ``matched`` those of them that only
    patterns match. ``make_task`` makes a task, one with stores from their restoration. ``commit`` commits
    what is whole, or notes in ``transaction`` that the input must be read again; ``may_commit`` says whether
    the worker is at work at all. ``consumer`` may be called once the group is joined.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        pending: PendingTasks,
        lives: TaskLives,
        lost: LostOffsets,
        upkeep: Upkeep,
        pace: Pace,
        transaction: Transaction,
        at_work: Slice,
        partitions: dict[str, int],
        matched: Iterable[str],
        make_task: Callable[[TaskId, Restoration | None], Task],
        consumer: Callable[[], Consumer],
        commit: Callable[[], None],
        may_commit: Callable[[], bool],
        notes_beginnings: bool,
        clock: Callable[[], float],
    ) -> None:
        self._topology = topology
        self._lives = lives
        self._lost = lost
        self._upkeep = upkeep
        self._pace = pace
        self._transaction = transaction
        self._slice = at_work
        self._partitions = partitions
        self._make_task = make_task
        self._consumer = consumer
        self._commit = commit
        self._may_commit = may_commit
        self._notes_beginnings = notes_beginnings
        self._clock = clock
        self._log = get_logger()
        self._state = RebalanceState.NONE
        self._error: StreamsError | None = None

        self.pending = pending
        """The tasks that wait for their stores, and the partitions assigned that wait for them."""
        self.tasks: dict[TaskId, Task] = {}
        """The tasks at work."""
        self.held: dict[TopicPartition, Task] = {}
        """The partitions at work, and their tasks."""
        self.queues: dict[TaskId, InputQueue] = {}
        """What was polled for the tasks with several input partitions, and waits for its turn."""
        self.progress: dict[TopicPartition, Progress] = {}
        """All partitions assigned, those that wait included; another assignment is another object."""
        self.committed: dict[TopicPartition, int] = {}
        """The next offsets committed, as far as they are known."""
        self.reached: dict[TopicPartition, int] = {}
        """The highest next offset up to which each partition was processed, whatever became of it."""
        self.given_up = Counts()
        """What the tasks that are gone have done together."""
        self._polled: dict[TopicPartition, int] = {}
        """The next offset after what was polled last, of partitions whose records are processed at once."""
        self._unstarted: set[TopicPartition] = set()
        """Partitions at work of which it is not known where the group is in them."""
        self._matched = set(matched)
        self._unknown_topics: set[str] = set()
        """Topics of tasks with stores that patterns have come to match since the start: to be checked."""

    @property
    def in_callback(self) -> bool:
        """Whether the client is in the middle of a rebalance."""
        return self._state is RebalanceState.COMMITTING

    def holds(self, partition: TopicPartition, progress: Progress) -> bool:
        """Whether a partition is at work under this assignment: not given up, nor assigned again since."""
        return self.progress.get(partition) is progress and partition in self.held

    def raise_error(self) -> None:
        """Raise what went wrong in a rebalance."""
        if self._state is RebalanceState.FAILED:
            error, self._error = self._error, None
            self._become(RebalanceState.NONE)
            assert error is not None
            raise error

    # --- rebalances: the three paths

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Make tasks for what was added; those with stores begin once these are restored."""
        now = self._clock()
        for partition in partitions:
            subtopology, _ = self._topology.source_of(partition.topic)
            identifier = TaskId(subtopology.number, partition.partition)
            self.progress[partition] = Progress(since=now, told=now)
            task = self.tasks.get(identifier)
            if subtopology.stores:
                if task is not None:
                    # A topic that a pattern has come to match: the task begins again with that partition.
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
            self._unstarted.add(partition)
        self.note_starts()
        if self._notes_beginnings:
            self._note_beginnings(partitions)
        self._log.info(Event.PARTITIONS_ASSIGNED, partitions=[str(item) for item in partitions])

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Commit, then give up: the next owner continues where this one stopped."""
        if self._may_commit():
            self._commit_in_callback()
        self._give_up(partitions)
        self._upkeep.revoked()
        self._log.info(Event.PARTITIONS_REVOKED, partitions=[str(item) for item in partitions])

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Give up without committing: another member may already be at work on these."""
        self._transaction.give_up()
        self._pace.discarded()
        self._give_up(partitions)
        self._log.warning(Event.PARTITIONS_LOST, partitions=[str(item) for item in partitions])

    def _commit_in_callback(self) -> None:
        """Commit before tasks go, in the middle of a rebalance."""
        if self._state is RebalanceState.FAILED:
            # What was not committed is given up already.
            return
        self._become(RebalanceState.COMMITTING)
        try:
            if self._transaction.between_slices:
                self._slice.abandon()
                self._commit()
            else:
                # In the middle of these there is nothing whole: what they stand for is done again.
                self._transaction.give_up()
        except StreamsError as error:
            self._become(RebalanceState.FAILED)
            self._error = error
            self._transaction.give_up()
        finally:
            if self._state is RebalanceState.COMMITTING:
                self._become(RebalanceState.NONE)

    def _give_up(self, partitions: Iterable[TopicPartition]) -> None:
        self._transaction.refused.clear()
        for partition in partitions:
            task = self.held.pop(partition, None)
            self.progress.pop(partition, None)
            self.committed.pop(partition, None)
            self.reached.pop(partition, None)
            self._polled.pop(partition, None)
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
        self._pace.forget(task.id)
        self.given_up.add(task.counts)
        self.close_task(task)

    def close_task(self, task: Task) -> None:
        """Close a task's steps and its database; a step that fails in that ends nothing."""
        try:
            task.close()
        except ProcessingError as error:
            self._log.error(Event.CLOSE_FAILED, task=str(task.id), error=str(error))

    # --- tasks with stores

    def suspend(self, task: Task) -> None:
        """Close a task with stores; the partitions of it that are still held wait until it is restored."""
        left = [partition for partition, holder in self.held.items() if holder is task]
        for partition in left:
            del self.held[partition]
            self._polled.pop(partition, None)
            if partition in task.starts:
                # What was processed and not committed is gone with the task's changes.
                self.pending.resume_at[partition] = self.committed.get(partition, task.starts[partition])
        self._lives.become(task.id, TaskState.SUSPENDED if left else TaskState.CLOSED)
        self._retire(task)
        if left:
            self.pending.add(task.id, left, self._consumer())

    def restore(self, stopped: Callable[[], bool]) -> list[Restoration]:
        """Continue to bring stores up to date; what is done, for ``start``. Raises ``BrokerError``."""
        if self._unknown_topics:
            self._check_unknown_topics()
        return self.pending.poll(self._consumer(), busy=bool(self.tasks), stopped=stopped)

    def start(self, done: Iterable[Restoration]) -> None:
        """Let the tasks begin whose stores are up to date; no progress is expected of the others."""
        now = self._clock()
        for partition in self.pending.partitions:
            self.progress[partition].since = now
        for restoration in done:
            self._activate(restoration)

    def _activate(self, restoration: Restoration) -> None:
        """Let a task begin whose stores are up to date."""
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
        """Find out how many partitions topics have that patterns have come to match.

        Raises ``TopicError`` where keys would lie in other partitions than the state they belong to.
        """
        self._partitions |= self._upkeep.partition_counts(self._unknown_topics)
        self._unknown_topics.clear()
        check_copartitions(self._topology, self._partitions)

    def forget_deleted_topics(self) -> None:
        """Topics that patterns matched were deleted: no task waits for partitions of them any more."""
        for topic in self._upkeep.check_topics(self._matched):
            self._matched.discard(topic)
            self._partitions.pop(topic, None)
            self._log.info(Event.TOPIC_GONE, topic=topic)

    # --- where the partitions are

    def note_starts(self) -> None:
        """Remember where the group is in what was assigned: markers that come behind are to be committed."""
        if not self._unstarted:
            return
        for partition, start in self._consumer().positions(self._unstarted).items():
            self._unstarted.discard(partition)
            # Where nothing is committed, it begins with the first record or end that is met.
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
                hint="the group had begun, and had committed no offset in them: they were added later",
            )

    def received(self, polled: Polled, *, stopping: bool) -> None:
        """Remember where partitions begin and how far they reach, whatever becomes of the records now.

        When ``stopping``, what was polled before need not have been processed.
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
        for partition, end in polled.ends.items():
            task = self.held.get(partition)
            if task is not None:
                # An end is told once: after a rewind it is found again, also where there never was a record.
                task.starts.setdefault(partition, end)
        for partition, found in polled.out_of_range.items():
            if partition in self.progress:
                self._lost.add(partition, found)

    def _note_received(self, partition: TopicPartition, task: Task, fetched: Fetched) -> None:
        first = fetched.offsets([0])[0]
        # Given up before they are processed, records are read again from here.
        task.starts.setdefault(partition, first)
        progress = self.progress[partition]
        # What is in hand is lag, should its processing hang.
        progress.at_end, progress.end = False, max(progress.end or 0, fetched.next_offset)
        if progress.position is None:
            progress.position = first

    def refresh_ends(self) -> None:
        """Bring lag up to date, as far as the client knows."""
        for partition, end in self._consumer().known_ends(self.progress).items():
            self.progress[partition].end = end

    def processed(self, partition: TopicPartition, task: Task) -> None:
        """A slice is through, whatever becomes of it."""
        self.reached[partition] = max(self.reached.get(partition, -1), task.positions[partition])

    def note_ends(self, polled: Polled, assignments: Mapping[TopicPartition, Progress | None]) -> None:
        """Move positions to ends, where the assignment is still the one that they were polled under."""
        ends = dict(polled.ends)
        for queue in self.queues.values():
            # There, an end counts once what was polled before it is processed.
            ends |= queue.ends()
        for partition, end in ends.items():
            progress = assignments.get(partition, self.progress.get(partition))
            if progress is None or not self.holds(partition, progress):
                continue
            task = self.held[partition]
            queue_here = self.queues.get(task.id)
            if queue_here is not None and queue_here.ends().get(partition) != end:
                continue
            if queue_here is not None and task.positions.get(partition) == end and progress.at_end:
                continue
            before = task.positions.get(partition, task.starts.get(partition))
            if queue_here is None and before is not None and before < self._polled.get(partition, -1):
                # A stop came before all that was polled was processed: the end is not reached. (I6)
                continue
            task.advance(partition, end)
            position = task.positions[partition]
            if before is not None and position > before:
                self._transaction.processed()
            if position <= end:
                progress.position = progress.end = position
                progress.at_end, progress.since = True, self._clock()

    def continue_from(self, partition: TopicPartition, committed: int) -> None:
        """Give up what was read behind the back of another member, and continue from what is committed."""
        task = self.held.get(partition)
        if task is None:
            self.pending.resume_at[partition] = committed
            self._consumer().seek({partition: committed})
            return
        self.committed[partition] = committed
        self.reached.pop(partition, None)
        task.starts.setdefault(partition, committed)
        self._transaction.give_up()

    def jump(self, partition: TopicPartition, target: int) -> None:
        """Continue from an offset that does not follow from the one before."""
        now = self._clock()
        self.reached.pop(partition, None)
        self._polled.pop(partition, None)
        # It may lie before what was committed, as where a topic was made again.
        self.committed.pop(partition, None)
        task = self.held.get(partition)
        if task is None:
            self.pending.resume_at[partition] = target
        elif task.id not in self.queues:
            # Everything before was processed. Committed, the jump need not be made again by the next owner.
            task.positions[partition] = task.starts[partition] = target
            self._transaction.processed()
            # Its position may be lower than before: as far as progress is concerned, it begins.
            self.progress[partition] = Progress(position=target, since=now, told=now)
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
        """Whether nothing more is known to be waiting on any partition."""
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

    # --- what is committed of them

    def offsets(self) -> dict[TopicPartition, int]:
        """The next offsets to commit."""
        offsets: dict[TopicPartition, int] = {}
        for task in self.tasks.values():
            moved = {
                partition: offset
                for partition, offset in task.positions.items()
                if self.committed.get(partition) != offset
            }
            for partition, offset in moved.items():
                assert self.held.get(partition) is task, f"{partition} is not held by task {task.id}"  # I4
                assert offset >= self.committed.get(partition, 0), (
                    f"{partition} would go back from {self.committed[partition]} to {offset}"  # I4
                )
            # Only offsets fence: changes of state must never be committed without any.
            assert not task.staged or task.positions, f"task {task.id} has changes and no offsets"  # I5
            offsets |= task.positions if task.staged else moved
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

    def uncommitted(self) -> dict[TopicPartition, tuple[int, int]]:
        """Of partitions held, the next offset that is committed and the one that processing has reached.

        Where these are the same, the partition is left out. At least once, what was given up to be read again
        counts as reached: it was written.
        """
        found = {}
        for partition, reached in list(self.reached.items()):
            task = self.held.get(partition)
            start = 0 if task is None else task.starts.get(partition, 0)
            committed = self.committed.get(partition, start)
            if committed < reached:
                found[partition] = committed, reached
        return found

    def read_committed(self) -> dict[TopicPartition, int]:
        """Ask the broker for the committed offsets. Raises ``BrokerError``."""
        return self._consumer().committed({*self.held, *self.pending.resume_at})

    def take_committed(self, committed: Mapping[TopicPartition, int]) -> None:
        """These were read back, as it was not known what became of the last commit."""
        self.committed |= committed
        resume_at = self.pending.resume_at
        resume_at |= {partition: committed.get(partition, at) for partition, at in resume_at.items()}

    def drop(self, *, states_unknown: bool) -> dict[TopicPartition, int]:
        """Give up what the tasks hold; where each partition is to be read again.

        With ``states_unknown``, nobody here knows what became of the stores' changes.
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
                # The changelog knows what of the stores' changes was committed.
                self.suspend(task)
        for queue in self.queues.values():
            queue.clear()
        return positions

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read partitions again from these offsets."""
        self._consumer().seek(positions)
        now = self._clock()
        for partition, position in positions.items():
            self._polled.pop(partition, None)
            progress = self.progress[partition]
            progress.position, progress.at_end, progress.since = position, False, now

    def _become(self, state: RebalanceState) -> None:
        assert self._state.may_become(state), (
            f"a rebalance that is {self._state.value} cannot become {state.value}"
        )
        self._state = state
