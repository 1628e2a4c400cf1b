"""One subtopology on one partition number, at work: bytes in, bytes out, no client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from structlog.contextvars import bound_contextvars

from streams.errors import ProcessingError, error_text
from streams.operators import fan_out
from streams.records import TopicPartition
from streams.runtime.binding import Binding, guard_of
from streams.runtime.clocks import Clocks
from streams.runtime.counts import Counts
from streams.runtime.dead_letters import FirstFailures
from streams.runtime.hooks import Hooks, TurnKind
from streams.runtime.outbox import Outbox
from streams.runtime.refused_rows import RefusedRows
from streams.runtime.task_stores import TaskStores
from streams.topology.graph import Node, SourceNode, Subtopology, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from streams.operators import Forward, Receive
    from streams.operators.origins import TimedChanges
    from streams.operators.runtime import Runtime
    from streams.operators.source import Decode
    from streams.records import Fetched, Output
    from streams.runtime.binding import Lookup
    from streams.runtime.task_stores import BegunAggregates, State
    from streams.state.changelog import Checkpoint
    from streams.state.committed import CommittedStore
    from streams.state.store import Database


class TaskId(NamedTuple):
    """Which subtopology, on which partition number."""

    subtopology: int
    partition: int

    def __str__(self) -> str:
        return f"{self.subtopology}_{self.partition}"


class Task:
    """Runs a subtopology over slices of input and keeps what comes of them until it is taken.

    ``positions`` are the next offsets after the slices that were processed as a whole: what may be
    committed once ``take`` has been written. ``starts`` say, for each partition, where the
    group was when it was assigned, or without that what offset came first: where it is read again from as
    long as this task has committed nothing of it.

    With stores, a commit is three steps: ``prepare`` lets steps forward what has changed and encodes the
    changes, ``take`` hands both over to be written, and ``committed`` puts the changes into ``database``.
    ``database`` must be restored when the task is made. ``checkpoints`` tell, for each store, up to where of
    its changelog it is. ``lookups`` are the app's global tables. ``refused`` are rows that the broker has
    refused: where they are met again, they get their sink's policy and are not written. ``failures`` has the
    first failures of steps logged, for all tasks of a process.
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
    ) -> None:
        self.id = identifier
        self.positions: dict[TopicPartition, int] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.counts = Counts()
        self._runtime = runtime
        self._application = application
        self._subtopology = subtopology
        self._lookups = dict(lookups or {})
        self._outbox = Outbox(
            runtime,
            self.counts,
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
        self._timed_changes: dict[str, TimedChanges] = {}
        self._decoders: dict[str, Decode] = {}
        self._receivers: dict[str, Receive] = {}
        """What each source does, and the same at work, by its name."""
        self._source_names: dict[str, str] = {}
        """Which source reads each topic that was met."""
        try:
            self._bind_nodes()
        except BaseException:
            # There is no task that could be closed.
            self._hooks.close()
            raise
        self.least_slice = max(node.operator.least_slice for node in subtopology.nodes)
        """Fewer records at a time would not keep as many calls in flight as its steps may make."""
        self.stateful = bool(self._stores.states or self._hooks.schedules)

    def _bind_nodes(self) -> None:
        bound: dict[str, Forward] = {}
        for node in reversed(self._subtopology.nodes):
            children = {child.name: bound[child.name] for child in self._subtopology.children(node.name)}
            if isinstance(node, SourceNode):
                # One observation for all that a source feeds.
                forward = self._clocks.observed(node.name, fan_out(children))
                decoder = self._decoders[node.name] = node.operator
                self._receivers[node.name] = decoder.bind(self._binding(node), {node.name: forward})
            else:
                children = {name: self._clocks.observed(node.name, child) for name, child in children.items()}
                bound[node.name] = node.operator.bind(self._binding(node), children)

    def _binding(self, node: Node) -> Binding:
        return Binding(
            guard=guard_of(node, self._runtime, self._outbox.failed),
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
            _outbox=self._outbox,
            _counts=self.counts,
            _wall_clock=self._runtime.wall_clock,
            _timed_changes=self._timed_changes,
        )

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
        """Stream time behind each step that makes event times for somebody: milliseconds since the epoch."""
        return {name: clock.time for name, clock in self._clocks.by_maker.items()}

    def process(self, fetched: Fetched) -> None:
        """Run one slice of one input partition, as a whole or not at all.

        Raises ``ProcessingError`` when a record fails under policy ``fail``, and ``Interrupted`` when the
        runtime gives the slice up; either way nothing of the slice is kept.
        """
        begun = time.perf_counter()
        decoding = self.counts.seconds["decode"]
        partition = TopicPartition(fetched.topic, fetched.partition)
        receive = self._receivers[self._source_name(fetched.topic)]
        self._as_slice(lambda: receive(fetched), partition=partition)
        self.positions[partition] = fetched.next_offset
        counts = self.counts
        counts.records_in += len(fetched)
        seconds = counts.seconds
        seconds["process"] += time.perf_counter() - begun - (seconds["decode"] - decoding)

    def timed(self, fetched: Fetched) -> Iterable[Fetched]:
        """The records in pieces whose ``event_times`` may be asked for before they are processed.

        Where event times are taken from the values, these are decoded once, for both.
        """
        return self._decoders[self._source_name(fetched.topic)].timed(fetched, self._count_decoding)

    def event_times(self, fetched: Fetched) -> Sequence[int]:
        """The records' event times, as their source will find them; where it finds none, as those before."""
        return self._decoders[self._source_name(fetched.topic)].event_times(fetched, self._count_decoding)

    def punctuate(self) -> bool:
        """Run what is due on the wall clock, as a slice of its own. Returns whether anything was."""
        now = self._runtime.wall_clock()
        due = self._hooks.due(now)
        if not due:
            return False

        def run() -> None:
            for schedule in due:
                schedule.run(now)

        self._as_slice(run)
        return True

    def idle(self, milliseconds: int, since: int) -> bool:
        """Let stream time follow the wall clock, where a step asked for it, as no record came for a while.

        ``milliseconds`` is how long none came, ``since`` how much of it has not been told yet. Returns
        whether anything was closed.
        """
        moved = self._hooks.overdue(milliseconds, since)
        if not moved:
            return False

        def run() -> None:
            for clock, to in moved.items():
                clock.advance(to)

        self._as_slice(run)
        return True

    def advance(self, partition: TopicPartition, offset: int) -> None:
        """Note that nothing but markers lies before ``offset``: the partition's end, found by polling."""
        if offset > self.positions.get(partition, -1):
            self.starts.setdefault(partition, offset)
            self.positions[partition] = offset

    def prepare(self) -> None:
        """Let steps forward what has changed since the last commit, and encode the changes of stores.

        May raise what ``process`` may. Done once a commit; nothing may be processed until ``committed`` or
        ``drop``.
        """
        if not self.stateful:
            return
        self._as_slice(lambda: None, committing=True)
        self._stores.stage(self._clocks.keepers)

    def take(self) -> list[Output]:
        """What the slices since the last call produced, dead letters last. Empty when there is nothing.

        Raises ``ProcessingError`` for a dead letter that its topic does not take in any form.
        """
        return self._outbox.take()

    def take_changelog(self) -> list[Output]:
        """What ``prepare`` found for the changelog topics."""
        return self._stores.take_changelog()

    @property
    def offset_metadata(self) -> str:
        """The metadata of its input offsets: the numbers of its stores' last commits."""
        return self._stores.offset_metadata

    def committed(self) -> None:
        """All that was taken is permanent: the changes go into the database, with where they come from."""
        self._clocks.committed()
        self._hooks.committed()
        self._stores.committed(self.positions)

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        """What a store holds, changes that are not committed included; starts and keys of a windowed one."""
        return self._stores.entries(name)

    def committed_store(self, name: str) -> CommittedStore:
        """A store as of the last commit, to be read from any thread. Raises ``StateError`` once closed."""
        return self._stores.committed_store(name)

    def drop_slice(self) -> None:
        """Give up the slice that is open, if any."""
        self._outbox.drop_slice()
        self._stores.drop_slice()
        self._clocks.drop_slice()
        self._hooks.drop_slice()

    def drop(self, positions: dict[TopicPartition, int]) -> None:
        """Forget what was produced and changed since the last commit, and continue from ``positions``."""
        self.positions = dict(positions)
        self._outbox.drop()
        self._clocks.drop()
        self._hooks.drop()
        self._stores.drop()

    def forget(self, partition: TopicPartition) -> None:
        """Hold this input partition no longer."""
        self.positions.pop(partition, None)
        self.starts.pop(partition, None)

    def close(self) -> None:
        """Close the steps, then release the database. What is not committed is gone.

        Raises ``ProcessingError`` for the first step whose closing failed, after all else is closed.
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
        *,
        committing: bool = False,
        partition: TopicPartition | None = None,
    ) -> None:
        """Let the steps work, on records of an input partition or without input, as a whole or not at all."""
        fields = {"task": str(self.id)} | ({} if partition is None else {"partition": str(partition)})
        with bound_contextvars(**fields):
            self._run_slice(run, committing=committing)

    def _run_slice(self, run: Callable[[], None], *, committing: bool) -> None:
        self._outbox.begin_slice()
        try:
            run()
            for _, kind, call in self._hooks.turns:
                if kind is TurnKind.COMMIT:
                    if not committing:
                        continue
                    # What earlier steps forwarded at this commit has changed it too.
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
