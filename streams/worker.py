"""The loop of one process: poll, process, commit if due; and the three paths of a rebalance."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from streams.broker import GroupSettings
from streams.errors import (
    BrokerError,
    BrokerUnreachable,
    DeadLetterLimitExceeded,
    OutcomeUnknown,
    ProcessingError,
    RecordRefused,
    Retriable,
    StreamsError,
    TransactionAborted,
)
from streams.events import Event, get_logger
from streams.guard import Interrupted
from streams.records import Output, TopicPartition
from streams.task import Counts, Task, TaskId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.broker import Broker, Consumer, Polled
    from streams.commit import Guarantee
    from streams.config import Settings
    from streams.records import Fetched
    from streams.topology import Topology

T = TypeVar("T")

SLICE_SECONDS = 0.25
"""A slice is sized to take about this long, so that commits and stops need not wait for more."""

POLL_SECONDS = 1.0
"""No more records are polled at once than take about this long."""

FIRST_SLICE = 1_000
SERVE_SECONDS = 1.0
"""While a slice takes long, the group is served this often: a rebalance does not wait for user code."""

LETTERS_SECONDS = 1.0
"""Dead letters are logged at most this often, however many there are."""

ENDS_SECONDS = 1.0
"""How often lag is brought up to date."""

OPEN_SECONDS = 5.0
"""How long one attempt to get a producer may take before the group is served again."""


class State(Enum):
    """Where a worker is in its life.

    ::

        CREATED ──> RUNNING ──> STOPPING ──> STOPPED
                       └───────────┴───────> FAILED
    """

    CREATED = "created"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_NEXT = {
    State.CREATED: {State.RUNNING, State.FAILED},
    State.RUNNING: {State.STOPPING, State.FAILED},
    State.STOPPING: {State.STOPPED, State.FAILED},
    State.STOPPED: set(),
    State.FAILED: set(),
}


@dataclass(slots=True)
class Progress:
    """How far one partition is. Written by the worker's thread, read by others."""

    position: int | None = None
    """The next offset to process; ``None`` until something is known."""
    end: int | None = None
    """The partition's end as last heard of."""
    at_end: bool = False
    since: float = 0.0
    """When the position last changed, or the end was reached, on the worker's clock."""

    @property
    def lag(self) -> int:
        """Records (and markers) between position and end; 0 where either is unknown."""
        if self.position is None or self.end is None or self.at_end:
            return 0
        return max(0, self.end - self.position)


@dataclass(slots=True)
class Stages:
    """Where the worker's time went, in seconds, besides what its tasks count."""

    poll: float = 0.0
    produce: float = 0.0
    commit: float = 0.0


@dataclass(slots=True)
class _DeadLetterShare:
    """The share of dead letters among at least the last ``window`` records."""

    window: int
    slices: deque[tuple[int, int]] = field(default_factory=deque)
    records: int = 0
    letters: int = 0

    def add(self, records: int, letters: int) -> float:
        """Count a slice; the share so far, or 0 until the window is full."""
        self.slices.append((records, letters))
        self.records += records
        self.letters += letters
        while self.records - self.slices[0][0] >= self.window:
            gone = self.slices.popleft()
            self.records -= gone[0]
            self.letters -= gone[1]
        return self.letters / self.records if self.records >= self.window else 0.0


class Worker:
    """One member of the app's consumer group.

    ``run`` returns after ``request_stop`` and raises what ended the worker otherwise. Everything happens in
    the thread that calls it, user code included; ``request_stop`` and the properties may be used from others.
    ``clock`` counts seconds and ``pause`` lets some pass, at most as many as it is given.
    """

    def __init__(
        self,
        topology: Topology,
        broker: Broker,
        guarantee: Guarantee,
        settings: Settings,
        *,
        application: str,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._topology = topology
        self._broker = broker
        self._guarantee = guarantee
        self._settings = settings
        self._application = application
        self._clock = clock
        self._log = get_logger()
        self._state = State.CREATED
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait
        self._stop_by = float("inf")
        self._consumer: Consumer | None = None
        self._tasks: dict[TaskId, Task] = {}
        self._held: dict[TopicPartition, Task] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._progress: dict[TopicPartition, Progress] = {}
        self._seconds_per_record: dict[TaskId, float] = {}
        self._given_up = Counts()
        self._share = _DeadLetterShare(settings.dead_letter_window)
        self._unlogged: Counter[str] = Counter()
        self._letters_logged = -float("inf")
        self._current: tuple[TopicPartition, Progress] | None = None
        self._must_rewind = False
        self._must_reopen = False
        self._dirty_since: float | None = None
        self._last_commit = -float("inf")
        self._last_served = clock()
        self._ends_known = -float("inf")
        self.stages = Stages()
        self.observe_commit: Callable[[float], None] = _ignore
        """Told the duration of each commit, in seconds."""

    @property
    def state(self) -> State:
        return self._state

    @property
    def progress(self) -> dict[TopicPartition, Progress]:
        """The partitions held, and how far each is."""
        return dict(self._progress)

    @property
    def counts(self) -> list[Counts]:
        """What the tasks given up have done together, then what each of the others has done."""
        return [self._given_up, *(task.counts for task in list(self._tasks.values()))]

    def stalled(self) -> list[TopicPartition]:
        """The partitions that have lag and made no progress for ``stall_timeout``."""
        now = self._clock()
        return [
            partition
            for partition, progress in self.progress.items()
            if (progress.lag > 0 or progress.position is None)
            and now - progress.since > self._settings.stall_timeout
        ]

    def request_stop(self) -> None:
        """Finish the slice at hand, commit, leave the group. Safe in a signal handler and from any thread."""
        self._stop_by = min(self._stop_by, self._clock() + self._settings.shutdown_timeout / 2)
        self._stop.set()

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
        self._enter(State.RUNNING)
        self._consumer = self._broker.consumer(
            GroupSettings(
                group=self._application,
                offset_reset=settings.offset_reset,
                protocol=settings.group_protocol,
                instance_id=settings.group_instance_id,
                poll_deadline=settings.poll_deadline,
                session_timeout=settings.session_timeout,
            )
        )
        self._open_guarantee()
        self._log.info(Event.WORKER_STARTED, application=self._application, guarantee=settings.guarantee)
        self._consumer.subscribe(self._topology.input_topics, self)

    def run_once(self) -> None:
        """One round of the loop."""
        polled = self._poll()
        assignments = {partition: self._progress.get(partition) for partition in polled.ends}
        # Whatever aborts the transaction, a rebalance during the poll included, has all of it read again.
        if not self._must_rewind:
            self._process(polled)
        if not self._must_rewind:
            self._note_ends(polled, assignments)
            if self._commit_due():
                self._commit()
        if self._must_rewind:
            self._rewind()

    def close(self) -> None:
        """Commit and leave the group."""
        self._enter(State.STOPPING)
        assert self._consumer is not None
        self._commit()
        self._consumer.close()
        self._guarantee.close()
        self._enter(State.STOPPED)
        self._log.info(Event.WORKER_STOPPED)

    # --- rebalances: the three paths, called from inside the consumer

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Make tasks for what was added."""
        now = self._clock()
        for partition in partitions:
            subtopology, _ = self._topology.source_of(partition.topic)
            identifier = TaskId(subtopology.number, partition.partition)
            task = self._tasks.get(identifier)
            if task is None:
                task = self._tasks[identifier] = Task(
                    identifier,
                    subtopology,
                    self,
                    application=self._application,
                    dead_letter_topic=self.dead_letter_topic,
                )
            self._held[partition] = task
            self._progress[partition] = Progress(since=now)
        self._log.info(Event.PARTITIONS_ASSIGNED, partitions=[str(item) for item in partitions])

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Commit, then give up: the next owner continues where this one stopped."""
        if self._state in (State.RUNNING, State.STOPPING):
            self._commit()
        self._give_up(partitions)
        self._log.info(Event.PARTITIONS_REVOKED, partitions=[str(item) for item in partitions])

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Give up without committing: another member may already be at work on these."""
        self._must_rewind = True
        self._abort()
        self._dirty_since = None
        self._give_up(partitions)
        self._log.warning(Event.PARTITIONS_LOST, partitions=[str(item) for item in partitions])

    # --- what tasks may ask while a slice is open

    def keep_alive(self) -> None:
        """Serve the group if it is due. Raises ``Interrupted`` when the open slice must be given up."""
        now = self._clock()
        if now > self._stop_by:
            raise Interrupted
        if self._overdue():
            # What is whole need not wait for a slow slice, and its transaction would time out if it did.
            self._commit()
            if self._must_rewind:
                raise Interrupted
        if now - self._last_served >= min(SERVE_SECONDS, self._settings.poll_deadline / 10):
            self._serve_in_slice()

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Let time pass in the middle of a slice: commit what is whole, then serve the group."""
        kind = type(error).__name__
        self._log.warning(Event.RECORD_RETRIED, step=step, error=f"{kind}: {error}", seconds=seconds)
        # A transaction left open would time out meanwhile; the open slice has written nothing to it yet.
        self._commit()
        until = self._clock() + seconds
        while True:
            self._serve_in_slice()
            left = until - self._clock()
            if left <= 0:
                return
            self._pause(min(left, 0.1))
            if self._stop.is_set():
                raise Interrupted

    @property
    def dead_letter_topic(self) -> str:
        """Where dead letters go."""
        return self._settings.dead_letter_topic or f"{self._application}-dead-letters"

    # --- the loop's parts

    def _poll(self) -> Polled:
        assert self._consumer is not None
        begun = self._clock()
        if begun - self._ends_known >= ENDS_SECONDS:
            self._refresh_ends(begun)
        timeout = 0.1
        if self._dirty_since is not None:
            timeout = min(timeout, max(0.0, self._next_commit() - begun))
        polled = self._consumer.poll(self._poll_size(), timeout)
        self._last_served = now = self._clock()
        self.stages.poll += now - begun
        for fetched in polled.fetched:
            self._note_received(fetched)
        return polled

    def _note_received(self, fetched: Fetched) -> None:
        """Remember where a partition begins and how far it reaches, whatever becomes of its records now."""
        partition = TopicPartition(fetched.topic, fetched.partition)
        task = self._held.get(partition)
        if task is None:
            return
        first = fetched.offsets([0])[0]
        # Given up before they are processed, records are read again from here.
        task.starts.setdefault(partition, first)
        progress = self._progress[partition]
        # What is in hand is lag, should its processing hang.
        progress.at_end, progress.end = False, max(progress.end or 0, fetched.next_offset)
        if progress.position is None:
            progress.position = first

    def _refresh_ends(self, now: float) -> None:
        assert self._consumer is not None
        self._ends_known = now
        for partition, end in self._consumer.known_ends(self._progress).items():
            self._progress[partition].end = end

    def _process(self, polled: Polled) -> None:
        # A partition given up and assigned again in between is another assignment: hold on to this one.
        work = [
            (partition, progress, fetched)
            for fetched in polled.fetched
            if (progress := self._progress.get(partition := TopicPartition(fetched.topic, fetched.partition)))
        ]
        for partition, progress, fetched in work:
            start = 0
            while start < len(fetched):
                if self._stop.is_set():
                    return
                if self._would_time_out():
                    self._commit()
                if self._must_rewind or not self._holds(partition, progress):
                    break
                task = self._held[partition]
                stop = min(len(fetched), start + self._slice_size(task))
                whole = start == 0 and stop == len(fetched)
                try:
                    self._process_slice(partition, task, fetched if whole else fetched.slice(start, stop))
                except Interrupted:
                    # Its records come again: to the next owner, or after the rewind.
                    break
                start = stop
                if self._clock() - self._last_served >= SERVE_SECONDS:
                    self._serve()
                if self._overdue():
                    self._commit()

    def _process_slice(self, partition: TopicPartition, task: Task, fetched: Fetched) -> None:
        begun = self._clock()
        self._current = partition, self._progress[partition]
        letters = task.counts.dead_letters.copy()
        try:
            task.process(fetched)
        except ProcessingError:
            # What is whole is kept: the failing record is then the next one after a restart.
            self._current = None
            self._commit()
            raise
        finally:
            self._current = None
        written = self._clock()
        # Quickly up, slowly down: an expensive batch must shorten the next one.
        cost = (written - begun) / len(fetched)
        self._seconds_per_record[task.id] = max(
            cost, 0.8 * self._seconds_per_record.get(task.id, 0.0) + 0.2 * cost
        )
        try:
            self._write(task)
        except (TransactionAborted, OutcomeUnknown, Retriable) as error:
            self._give_up_transaction(error)
            return
        now = self._clock()
        self.stages.produce += now - written
        if self._dirty_since is None:
            self._dirty_since = now
        progress = self._progress[partition]
        progress.position, progress.at_end, progress.since = task.positions[partition], False, now
        self._watch_dead_letters(len(fetched), task.counts.dead_letters - letters)

    def _write(self, task: Task) -> None:
        while pending := task.take():
            for output, refuse in pending:
                at = 0
                while at < len(output):
                    try:
                        self._guarantee.write(output if at == 0 else _rest(output, at))
                    except RecordRefused as error:
                        refuse(at + error.position, error)
                        at += error.position + 1
                    else:
                        break

    def _watch_dead_letters(self, records: int, letters: Counter[str]) -> None:
        share = self._share.add(records, letters.total())
        self._unlogged.update(letters)
        now = self._clock()
        if self._unlogged and now - self._letters_logged >= LETTERS_SECONDS:
            self._log.warning(Event.DEAD_LETTERS, by_step=dict(self._unlogged), topic=self.dead_letter_topic)
            self._unlogged.clear()
            self._letters_logged = now
        if share > self._settings.dead_letter_limit:
            raise DeadLetterLimitExceeded(
                f"{share:.1%} of the last {self._share.records} records became dead letters, "
                f"dead_letter_limit is {self._settings.dead_letter_limit:.1%}",
                hint=f"look at the headers of {self.dead_letter_topic}; the last commit holds, start again "
                "once the input or the code is mended, or raise dead_letter_limit",
            )

    def _note_ends(self, polled: Polled, assignments: Mapping[TopicPartition, Progress | None]) -> None:
        """Move positions to ends, where the assignment is still the one that they were polled under."""
        fetched = {TopicPartition(item.topic, item.partition): item.next_offset for item in polled.fetched}
        for partition, end in polled.ends.items():
            progress = assignments[partition]
            if progress is None or not self._holds(partition, progress):
                continue
            task = self._held[partition]
            before = task.positions.get(partition)
            if partition in fetched and before != fetched[partition]:
                # A stop came before all of them were processed: the end is not reached.
                continue
            task.advance(partition, end)
            position = task.positions[partition]
            if before is not None and position > before and self._dirty_since is None:
                self._dirty_since = self._clock()
            if position <= end:
                progress.position = progress.end = position
                progress.at_end, progress.since = True, self._clock()

    def _would_time_out(self) -> bool:
        """Whether the open transaction may not outlive one more record."""
        if self._dirty_since is None:
            return False
        age = self._clock() - self._dirty_since
        return age + 2 * self._record_seconds() > self._settings.transaction_timeout

    def _poll_size(self) -> int:
        """As many records as the costliest task can process before other partitions have waited too long."""
        return max(
            1, min(self._settings.max_poll_records, int(POLL_SECONDS / max(self._record_seconds(), 1e-9)))
        )

    def _record_seconds(self) -> float:
        """What a record of the costliest task takes, as far as is known."""
        return max(self._seconds_per_record.values(), default=0.0)

    def _slice_size(self, task: Task) -> int:
        cost = self._seconds_per_record.get(task.id)
        if cost is None:
            return FIRST_SLICE
        return max(1, int(SLICE_SECONDS / max(cost, 1e-9)))

    # --- commits

    def _overdue(self) -> bool:
        since = self._dirty_since
        return since is not None and self._clock() - since >= self._settings.commit_interval

    def _next_commit(self) -> float:
        """When the next commit is due if nothing more comes: soon, as the worker has then caught up."""
        return self._last_commit + self._settings.shortest_commit_interval

    def _commit_due(self) -> bool:
        if self._dirty_since is None:
            return False
        return self._overdue() or (self._clock() >= self._next_commit() and self._caught_up())

    def _caught_up(self) -> bool:
        """Whether nothing more is known to be waiting on any partition held."""
        assert self._consumer is not None
        behind = [
            partition
            for partition, progress in self._progress.items()
            if progress.position is not None and not progress.at_end
        ]
        ends = self._consumer.known_ends(behind)
        for partition in behind:
            position = self._progress[partition].position
            # One offset may be a transaction's marker, which is never delivered.
            if position is not None and ends.get(partition, position + 2) - position > 1:
                return False
        return True

    def _commit(self) -> None:
        """Commit all that is whole, or note that the input must be read again."""
        if self._must_rewind:
            return
        assert self._consumer is not None
        begun = self._clock()
        offsets = {
            partition: offset
            for task in self._tasks.values()
            for partition, offset in task.positions.items()
            if self._committed.get(partition) != offset
        }
        try:
            self._guarantee.commit(offsets, self._consumer)
        except (TransactionAborted, OutcomeUnknown, Retriable) as error:
            self._give_up_transaction(error)
        else:
            self._committed |= offsets
        self._dirty_since = None
        self._last_commit = now = self._clock()
        if offsets:
            self.stages.commit += now - begun
            self.observe_commit(now - begun)

    def _give_up_transaction(self, error: BrokerError) -> None:
        """Note that what was written since the last commit is gone, or that nobody knows whether it is."""
        self._must_rewind = True
        if isinstance(error, TransactionAborted):
            self._log.warning(Event.TRANSACTION_ABORTED, error=str(error))
            self._abort()
        else:
            self._log.warning(Event.OUTCOME_UNKNOWN, error=str(error))
            self._must_reopen = True

    def _abort(self) -> None:
        try:
            self._guarantee.abort()
        except BrokerError as error:
            self._log.warning(Event.OUTCOME_UNKNOWN, error=str(error))
            self._must_reopen = True

    def _rewind(self) -> None:
        """Read the input again from the committed offsets, after whatever was not committed is given up."""
        assert self._consumer is not None
        if self._must_reopen:
            self._open_guarantee()
            if self._stop.is_set():
                # Nothing is lost by leaving now: what was committed stands.
                return
            # Only the broker knows whether the last commit happened.
            self._committed |= self._insist(self._committed_offsets) or {}
            self._must_reopen = False
        positions: dict[TopicPartition, int] = {}
        for task in self._tasks.values():
            own = {
                partition: self._committed.get(partition, start)
                for partition, start in task.starts.items()
                if partition in self._held
            }
            task.drop(own)
            positions |= own
        self._must_rewind = False
        self._dirty_since = None
        self._consumer.seek(positions)
        now = self._clock()
        for partition, position in positions.items():
            progress = self._progress[partition]
            progress.position, progress.at_end, progress.since = position, False, now

    def _committed_offsets(self) -> dict[TopicPartition, int]:
        assert self._consumer is not None
        return self._consumer.committed(self._held)

    def _open_guarantee(self) -> None:
        self._insist(lambda: self._guarantee.open(OPEN_SECONDS))

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Repeat a call until the broker answers, as a member of the group; ``None`` when told to stop."""
        assert self._consumer is not None
        while True:
            try:
                return call()
            except (Retriable, OutcomeUnknown, BrokerUnreachable) as error:
                self._log.warning(Event.BROKER_TROUBLE, error=str(error))
            self._pause(0.1)
            if self._stop.is_set():
                return None
            self._serve()

    # --- the group

    def _serve(self) -> None:
        assert self._consumer is not None
        self._consumer.keep_alive()
        self._last_served = self._clock()

    def _serve_in_slice(self) -> None:
        """Let the group act. Raises ``Interrupted`` when the slice that is open has become pointless."""
        self._serve()
        if self._must_rewind or (self._current is not None and not self._holds(*self._current)):
            raise Interrupted

    def _holds(self, partition: TopicPartition, progress: Progress) -> bool:
        """Whether this is still the same assignment: not given up, nor given up and assigned again."""
        return self._progress.get(partition) is progress

    def _give_up(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            task = self._held.pop(partition, None)
            self._progress.pop(partition, None)
            self._committed.pop(partition, None)
            if task is None:
                continue
            task.forget(partition)
            if task not in self._held.values():
                del self._tasks[task.id]
                self._seconds_per_record.pop(task.id, None)
                self._given_up.add(task.counts)

    def _enter(self, state: State) -> None:
        if state not in _NEXT[self._state]:
            raise StreamsError(f"a worker that is {self._state.value} cannot become {state.value}")
        self._state = state

    def _fail(self, error: BaseException) -> None:
        """Leave as little behind as possible, without hiding what went wrong."""
        if State.FAILED in _NEXT[self._state]:
            self._enter(State.FAILED)
        self._log.error(Event.WORKER_FAILED, error=str(error), kind=type(error).__name__)
        for release in (
            self._guarantee.abort,
            self._guarantee.close,
            *([self._consumer.close] if self._consumer is not None else []),
        ):
            try:
                release()
            except Exception as also:  # noqa: BLE001 - the error that ends the worker must not be replaced
                self._log.warning(Event.BROKER_TROUBLE, error=str(also))


def _ignore(_: float) -> None:
    return


def _rest(output: Output, start: int) -> Output:
    return Output(
        output.topic,
        output.keys[start:],
        output.values[start:],
        output.timestamps[start:],
        None if output.headers is None else output.headers[start:],
        partition=output.partition,
    )
