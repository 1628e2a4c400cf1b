"""Runs one subtopology on one partition number: bytes in, bytes out, without a client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.errors import ProcessingError, error_text
from streams.events import log_fields
from streams.operators import fan_out
from streams.operators.source_position import POSITION, STATE
from streams.records import TopicPartition
from streams.runtime.binding import Binding, guard_of
from streams.runtime.clocks import Clocks
from streams.runtime.counts import Counts
from streams.runtime.dead_letters import FirstFailures
from streams.runtime.hooks import Hooks, TurnKind
from streams.runtime.ledger import TaskLedger
from streams.runtime.outbox import Outbox
from streams.runtime.refused_rows import RefusedRows
from streams.runtime.retried import Retried
from streams.runtime.retry_gates import RetryGates
from streams.runtime.retry_path import RetryPath, source_in
from streams.runtime.step_times import StepTimes
from streams.runtime.task_stores import TaskStores
from streams.state.buffered import KeyValueState
from streams.topology.graph import Node, SourceNode, Subtopology, matches
from streams.tracing.spans import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.connectors.source import SourceBatch
    from streams.operators import Forward, Receive
    from streams.operators.background import BackgroundWork
    from streams.operators.origins import TimedChanges
    from streams.operators.runtime import Runtime
    from streams.operators.source import Decode
    from streams.records import Fetched, Output
    from streams.runtime.binding import Lookup
    from streams.runtime.outbox import Delivery
    from streams.runtime.retried import Ordered
    from streams.runtime.task_stores import BegunAggregates, State
    from streams.state.changelog import Checkpoint
    from streams.state.committed import CommittedStore
    from streams.state.store import Database
    from streams.tracing.spans import WorkerSpans


BACKGROUND_SECONDS = 0.002
"""How often a worker looks whether work has finished that runs outside of its thread."""


class TaskId(NamedTuple):
    """A subtopology and a partition number."""

    subtopology: int
    partition: int

    def __str__(self) -> str:
        return f"{self.subtopology}_{self.partition}"


class Task:
    """Runs a subtopology over slices of input, and keeps the output until it is taken.

    ``positions`` are the next offsets after the completely processed slices, to be committed once the result
    of ``take`` has been written. ``starts`` are, for each partition, the group's committed offset at its
    assignment, or without one the first offset read: reading restarts there as long as this task has not
    committed an offset of the partition.

    With stores, a commit has three steps: ``prepare`` lets steps forward what has changed and encodes the
    changes, ``take`` returns both to be written, and ``committed`` writes the changes to ``database``.
    ``database`` must be restored when the task is created. ``checkpoints`` are the offset in its changelog up
    to which each store is restored. ``lookups`` are the app's global tables. ``refused`` are rows that the
    broker has rejected: when they are processed again, their sink's policy applies and they are not written.
    ``failures`` logs the first failures of steps, for all tasks of a process. ``spans`` are those of its
    slices, with the setting ``tracing``.
    """

    def __init__(
        self,
        identifier: TaskId,
        subtopology: Subtopology,
        runtime: Runtime,
        *,
        application: str,
        dead_letter_topic: str,
        database: Database | None = None,
        checkpoints: Mapping[str, Checkpoint] | None = None,
        lookups: Mapping[str, Lookup] | None = None,
        refused: RefusedRows | None = None,
        failures: FirstFailures | None = None,
        spans: WorkerSpans | None = None,
    ) -> None:
        self.id = identifier
        self._spans = spans
        self.positions: dict[TopicPartition, int] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.counts = Counts()
        self.ledger = TaskLedger(subtopology)
        self._runtime = runtime
        self._application = application
        self._subtopology = subtopology
        self._lookups = dict(lookups or {})
        self._outbox = Outbox(
            runtime,
            self.counts,
            self.ledger,
            RefusedRows() if refused is None else refused,
            FirstFailures(dead_letter_topic) if failures is None else failures,
            node=subtopology.node,
            application=application,
            dead_letter_topic=dead_letter_topic,
        )
        self._stores = TaskStores(
            str(identifier),
            identifier.partition,
            application,
            subtopology.stores,
            database,
            checkpoints or {},
            runtime.wall_clock,
        )
        self._clocks = Clocks(subtopology, self._stores.checkpoints)
        self._hooks = Hooks()
        self._times = StepTimes(self.counts)
        self._gates = RetryGates(subtopology, self.ledger.withheld)
        self.retried: list[Retried] = []
        """Dead letters that were processed again since the last commit."""
        self.delivered: list[Retried] = []
        """Those of them whose rows the last commit wrote to a sink: their outcomes are committed next."""
        self._timed_changes: dict[str, TimedChanges] = {}
        self._decoders: dict[str, Decode] = {}
        self._receivers: dict[str, Receive] = {}
        """The operator of each source, and its bound function, by the source's name."""
        self._source_names: dict[str, str] = {}
        """The source that reads each topic, for the topics read so far."""
        try:
            self._bind_nodes()
        except BaseException:
            # The caller gets no task that it could close.
            self._hooks.close()
            raise
        self.least_slice = max(node.operator.least_slice for node in subtopology.nodes)
        """The slice size that its steps need to have as many calls in flight as they may."""
        self.stateful = bool(self._stores.states or self._hooks.schedules)
        self.delivers = bool(subtopology.sink_connectors)
        """Whether it has sink connectors."""

    def _bind_nodes(self) -> None:
        bound: dict[str, Forward] = {}
        for node in reversed(self._subtopology.nodes):
            children = {child.name: bound[child.name] for child in self._subtopology.children(node.name)}
            if isinstance(node, SourceNode):
                # One observation for all children of a source.
                children = self.ledger.leaving(node.name, self._gates.bound(node.name, children))
                forward = self._clocks.observed(node.name, fan_out(children))
                decoder = self._decoders[node.name] = node.operator
                self._receivers[node.name] = decoder.bind(self._binding(node), {node.name: forward})
            else:
                children = {name: self._clocks.observed(node.name, child) for name, child in children.items()}
                children = self.ledger.leaving(node.name, self._gates.bound(node.name, children))
                bound[node.name] = self._times.counted(
                    node.name,
                    node.operator.bind(self._binding(node), children),
                    self.ledger.entrance(node.name),
                )

    def _binding(self, node: Node) -> Binding:
        account = self.ledger.account(node.name)
        return Binding(
            guard=guard_of(node, self._runtime, self._outbox.failed, account.resumed),
            account=account,
            subtopology=self.id.subtopology,
            partition=self.id.partition,
            _task=str(self.id),
            _node=node,
            _within=self._subtopology,
            _application=self._application,
            _states=self._stores.states,
            _lookups=self._lookups,
            _clocks=self._clocks,
            _hooks=self._hooks,
            _times=self._times,
            _outbox=self._outbox,
            _counts=self.counts,
            _wall_clock=self._runtime.wall_clock,
            _timed_changes=self._timed_changes,
            _inline=self._runtime.inline,
        )

    @property
    def current_step(self) -> tuple[str, float] | None:
        """The step that is called now, and its own time in this call, in seconds; from any thread."""
        return self._times.current()

    @property
    def states(self) -> Mapping[str, State]:
        """Its stores, by name."""
        return self._stores.states

    @property
    def begun(self) -> Mapping[str, BegunAggregates]:
        """Aggregates that are new in stores that exist, by store."""
        return self._stores.begun

    @property
    def dirty(self) -> int:
        """How many entries of its stores the next commit would write."""
        return self._stores.dirty

    @property
    def staged(self) -> bool:
        """Whether the commit being made changes stores."""
        return self._stores.staged

    @property
    def stream_times(self) -> dict[str, int]:
        """Stream time after each step that assigns event times, in milliseconds since the epoch."""
        return {name: clock.time for name, clock in self._clocks.by_maker.items()}

    def process(self, fetched: Fetched) -> None:
        """Process one slice of one input partition, completely or not at all.

        Raises ``ProcessingError`` when a record fails under policy ``fail``, and ``Interrupted`` when the
        runtime abandons the slice; in both cases nothing of the slice is kept.
        """
        begun = time.perf_counter()
        decoding = self.counts.seconds["decode"]
        partition = TopicPartition(fetched.topic, fetched.partition)
        source = self._source_name(fetched.topic)
        receive = self._receivers[source]

        def run() -> None:
            self.ledger.read(source, len(fetched))
            receive(fetched)

        self._as_slice(run, Work.PROCESS, records=fetched, partition=partition)
        self.positions[partition] = fetched.next_offset
        counts = self.counts
        counts.records_in += len(fetched)
        seconds = counts.seconds
        seconds["process"] += time.perf_counter() - begun - (seconds["decode"] - decoding)

    def process_source(self, batch: SourceBatch) -> None:
        """Process a batch of the source connector, and put the position after it, as one slice.

        Raises as ``process`` does.
        """
        source = self._subtopology.source_connector
        assert source is not None, f"task {self.id} has no source connector"
        begun = time.perf_counter()
        decoding = self.counts.seconds["decode"]
        receive = self._receivers[source.name]
        positions = self._stores.states[source.positions]
        assert isinstance(positions, KeyValueState)

        def run() -> None:
            if len(batch.records):
                self.ledger.read(source.name, len(batch.records))
                receive(batch.records)
            positions.put(POSITION, batch.position)
            if batch.state is not None:
                positions.put(STATE, batch.state)

        self._as_slice(run, Work.SOURCE, records=batch.records, source=source.name)
        counts = self.counts
        counts.records_in += len(batch.records)
        seconds = counts.seconds
        seconds["process"] += time.perf_counter() - begun - (seconds["decode"] - decoding)

    def retry(self, ordered: Sequence[Ordered]) -> None:
        """Process records of dead letters again at their step, as one slice.

        They were read from the same partition, and have the same step. What becomes of each is in
        ``retried``; steps beside the path to the step are not run. Raises as ``process`` does.
        """
        request = ordered[0].request
        source = source_in(self._subtopology, request.topic)
        assert source is not None, f"task {self.id} does not read {request.topic}"
        path = RetryPath(self._subtopology, source, request.step)
        records = Retried(ordered, path.upstream, internal=source.internal)
        begun = time.perf_counter()

        def run() -> None:
            self._gates.begin(path)
            self.ledger.read(source.name, len(records))
            try:
                self._receivers[source.name](records)
                self._gates.release(records)
            finally:
                # What steps forward at the end of a slice is not the records'.
                self._gates.end()

        self._as_slice(run, Work.RETRY, records=records, partition=request.source)
        self.retried.append(records)
        self.counts.seconds["process"] += time.perf_counter() - begun

    @property
    def source_position(self) -> tuple[bytes, bytes]:
        """The committed position and state of its source connector; empty at the beginning."""
        source = self._subtopology.source_connector
        assert source is not None, f"task {self.id} has no source connector"
        positions = self._stores.states[source.positions]
        assert isinstance(positions, KeyValueState)
        position, state = positions.committed_many([POSITION, STATE])
        return position or b"", state or b""

    def timed(self, fetched: Fetched) -> Iterable[Fetched]:
        """The records in pieces whose ``event_times`` can be read before they are processed.

        Where event times are extracted from the values, these are decoded once, for both.
        """
        return self._decoders[self._source_name(fetched.topic)].timed(fetched, self._count_decoding)

    def event_times(self, fetched: Fetched) -> Sequence[int]:
        """The records' event times as their source extracts them; if there is none, the one before."""
        return self._decoders[self._source_name(fetched.topic)].event_times(fetched, self._count_decoding)

    def punctuate(self) -> bool:
        """Run the calls that are due on the wall clock, as a slice. Returns whether there were any."""
        now = self._runtime.wall_clock()
        due = self._hooks.due(now)
        if not due:
            return False

        def run() -> None:
            for schedule in due:
                schedule.run(now)

        self._as_slice(run, Work.TIMERS)
        return True

    def idle(self, milliseconds: int, since: int) -> bool:
        """Let stream time follow the wall clock for steps with ``close_idle_after``, while no records arrive.

        ``milliseconds`` is the time without records, ``since`` the part of it since the last call. Returns
        whether any stream time advanced.
        """
        moved = self._hooks.overdue(milliseconds, since)
        if not moved:
            return False

        def run() -> None:
            for clock, to in moved.items():
                clock.advance(to)

        self._as_slice(run, Work.IDLE)
        return True

    def advance(self, partition: TopicPartition, offset: int) -> None:
        """Note that only transaction markers lie before ``offset``, the partition's end in the last poll."""
        for work in self._hooks.background:
            work.reached(partition, offset)
        if offset > self.positions.get(partition, -1):
            self.starts.setdefault(partition, offset)
            self.positions[partition] = offset
            self.ledger.advance(partition, offset)

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """The next offsets to commit: ``positions``, or before them the first record of unfinished work."""
        background = self._hooks.background
        if not background:
            return self.positions
        offsets = dict(self.positions)
        for work in background:
            for partition, position in offsets.items():
                first = work.first_unfinished(partition)
                if first is not None and first < position:
                    offsets[partition] = first
        return offsets

    @property
    def has_background_work(self) -> bool:
        """Whether work of its steps runs outside of the worker's thread."""
        return bool(self._hooks.background)

    @property
    def background_work(self) -> tuple[BackgroundWork, ...]:
        """The work of its steps that runs outside of the worker's thread."""
        return tuple(self._hooks.background)

    @property
    def running_in_background(self) -> bool:
        """Whether any of that may finish soon."""
        return any(work.is_running() for work in self._hooks.background)

    @property
    def background_wait(self) -> float:
        """How many seconds it can be until any of it has something to do."""
        if self.running_in_background:
            return BACKGROUND_SECONDS
        return min(work.wait_milliseconds() for work in self._hooks.background) / 1000

    @property
    def background_due(self) -> int | None:
        """How many milliseconds it is until any of it is due by its time; ``None``: never."""
        due = [work.due_milliseconds() for work in self._hooks.background]
        return min((each for each in due if each is not None), default=None)

    @property
    def full(self) -> bool:
        """Whether it takes no more input for now, as too much of that is unfinished."""
        return any(work.is_full() for work in self._hooks.background)

    def collect(self) -> bool:
        """Take what has finished in the background, as a slice. Returns whether there was anything."""
        finished = [work for work in self._hooks.background if work.has_finished()]
        if not finished:
            return False

        def run() -> None:
            for work in finished:
                work.collect()

        self._as_slice(run, Work.OUTCOMES)
        return True

    def stop_background_work(self) -> None:
        """Begin nothing new in the background; what runs may finish."""
        for work in self._hooks.background:
            work.stop()

    def prepare(self) -> None:
        """Let steps forward what has changed since the last commit, and encode the changes of stores.

        Raises as ``process`` does. Called once per commit; nothing may be processed until ``committed`` or
        ``drop``.
        """
        if not self.stateful:
            return
        self._as_slice(lambda: None, Work.COMMIT)
        self._stores.stage(self._clocks.keepers)

    def take(self) -> list[Output]:
        """Take the outputs of the slices since the last call, dead letters last.

        Raises ``ProcessingError`` for a dead letter that its topic does not accept in any form.
        """
        return self._outbox.take()

    @property
    def undelivered(self) -> int:
        """The number of rows that ``take_deliveries`` would return."""
        return self._outbox.undelivered

    def take_deliveries(self) -> list[Delivery]:
        """Take the rows for sink connectors of the slices since the last call."""
        return self._outbox.take_deliveries()

    def drop_dead_letters(self, known: Callable[[TopicPartition, int], bool]) -> None:
        """Discard dead letters of input records that ``known`` says were written before."""
        self._outbox.drop_dead_letters(known)

    def take_changelog(self) -> list[Output]:
        """Take the changelog records that ``prepare`` has encoded."""
        return self._stores.take_changelog()

    @property
    def offset_metadata(self) -> str:
        """The metadata of its input offsets: its epoch, the numbers of its stores' last commits."""
        return self._stores.offset_metadata

    def committed(self) -> None:
        """All that was taken is committed: write the changes and their checkpoints to the database."""
        self._clocks.committed()
        self._hooks.committed()
        self._outbox.settle()
        self._stores.committed(self.positions)
        for records in self.retried:
            self.counts.retried.update(outcome.result for _, outcome in records.outcomes(0))
        self.delivered = self.retried if self.delivers else []
        self.retried = []

    def forget_retried(self) -> None:
        """Let the dead letters that were retried since the last commit be retried again."""
        self.retried = []

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        """The content of a store, with uncommitted changes; by start and key for a windowed one."""
        return self._stores.entries(name)

    def committed_store(self, name: str) -> CommittedStore:
        """A store as of the last commit, to be read from any thread. Raises ``StateError`` once closed."""
        return self._stores.committed_store(name)

    def drop_slice(self) -> None:
        """Abandon the open slice, if there is one."""
        self._outbox.drop_slice()
        self._stores.drop_slice()
        self._clocks.drop_slice()
        self._hooks.drop_slice()

    def drop(self, positions: dict[TopicPartition, int]) -> None:
        """Discard outputs and changes since the last commit, and continue from ``positions``."""
        self.positions = dict(positions)
        self.retried = []
        self._outbox.drop()
        self.ledger.rewind(positions)
        self._clocks.drop()
        self._hooks.drop()
        self._stores.drop()

    def forget(self, partition: TopicPartition) -> None:
        """Drop the position of an input partition that is no longer assigned."""
        self.positions.pop(partition, None)
        self.starts.pop(partition, None)
        self.ledger.move(partition, -1)

    def close(self) -> None:
        """Close the steps, then release the database. Uncommitted changes are lost.

        Raises ``ProcessingError`` for the first step that failed to close, after all others are closed.
        """
        failed = self._hooks.close()
        self._stores.close()
        for step, error in failed:
            raise ProcessingError(
                f"step {step!r}, task {self.id}: close() failed: {type(error).__name__}: {error_text(error)}",
                hint="what the task has processed is not affected",
            ) from error

    def _as_slice(
        self,
        run: Callable[[], None],
        work: Work,
        *,
        records: Fetched | None = None,
        partition: TopicPartition | None = None,
        source: str = "",
    ) -> None:
        """Run the steps, on records of an input partition or without input, completely or not at all."""
        read = work is Work.PROCESS
        self.ledger.begin_slice(partition if read else None, records if read else None)
        fields = {"task": str(self.id)} | ({} if partition is None else {"partition": str(partition)})
        with log_fields(**fields):
            if self._spans is None:
                self._run_slice(run, committing=work is Work.COMMIT)
            else:
                self._run_traced(run, work, records, source, self._spans)

    def _run_traced(
        self,
        run: Callable[[], None],
        work: Work,
        records: Fetched | None,
        source: str,
        spans: WorkerSpans,
    ) -> None:
        if work is Work.COMMIT:
            self._run_slice(run, committing=True)
            if spans.committing is not None:
                self._outbox.carry(spans.committing)
            return
        if work is Work.SOURCE and not records:
            # Only the position has moved.
            self._run_slice(run, committing=False)
            return
        with spans.batch(work, str(self.id), records, source) as span:
            self._run_slice(run, committing=False)
            span.dead_letters(*self._outbox.carry(span))

    def _run_slice(self, run: Callable[[], None], *, committing: bool) -> None:
        self._outbox.begin_slice()
        try:
            run()
            for _, kind, call in self._hooks.turns:
                if kind is TurnKind.COMMIT:
                    if not committing:
                        continue
                    # Upstream steps have changed the stores too, with what they forwarded at this commit.
                    self._stores.end_slice()
                call()
        except BaseException:
            self.drop_slice()
            raise
        finally:
            self._outbox.end_slice()
        self._stores.end_slice()
        self._clocks.end_slice()
        self._hooks.end_slice()
        self.ledger.end_slice()

    def _source_name(self, topic: str) -> str:
        found = self._source_names.get(topic)
        if found is None:
            found = self._source_names[topic] = next(
                source.name
                for source in self._subtopology.sources
                if any(matches(wanted, topic) for wanted in source.topics)
            )
        return found

    def _count_decoding(self, seconds: float) -> None:
        self.counts.seconds["decode"] += seconds
