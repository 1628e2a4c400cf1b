"""One subtopology on one partition number, at work: bytes in, bytes out, no client."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import msgspec
from structlog.contextvars import bound_contextvars

from streams.coroutines.awaitables import settled
from streams.errors import ProcessingError, StateError, StreamsError, TopologyError, error_text
from streams.events import program_logger
from streams.eventtime.clock import StreamClock
from streams.eventtime.windows import Windowed
from streams.operators import fan_out
from streams.operators.change import Change
from streams.operators.decoded import DecodedRecords, decode, pieces
from streams.operators.guard import Guard, preview
from streams.operators.keys import HeldKeys, readable_keys
from streams.operators.map_async import MapAsync
from streams.operators.origins import TimedChanges
from streams.operators.stateless import extract_timestamps
from streams.origin import Relayed, with_origins
from streams.records import Batch, Derived, Output, TopicPartition, take
from streams.runtime import commit_numbers
from streams.runtime.dead_letter_rows import DeadLetter, DeadLetterRows, dead_letter_output
from streams.runtime.refused_rows import RefusedRows
from streams.serde import Bytes, nullable
from streams.state.buffered import KeyValueState, WindowState
from streams.state.changelog import (
    Checkpoint,
    changelog_records,
    changelog_topic,
    encode_metadata,
    metadata_records,
)
from streams.state.committed import CommittedStore
from streams.state.evolution import check, kept, migrated_entries, new_aggregates, reading
from streams.topology.graph import Node, Sink, Source, Step, Subtopology, function_name, matches
from streams.topology.topic_names import topic_name_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

    from structlog.stdlib import BoundLogger

    from streams.coroutines.event_loop import Calls
    from streams.operators import Forward
    from streams.operators.decoded import Columns
    from streams.operators.processor import Cancel, TimeKind
    from streams.origin import Origin
    from streams.policy import Action
    from streams.records import Fetched, Record, RowOwner, Rows, Trace
    from streams.serde import Serde
    from streams.state.definition import StoreDefinition
    from streams.state.store import Changes, Database
    from streams.topology.topic_pattern import TopicPattern


Lookup: TypeAlias = "Callable[[Sequence[Any]], list[Any]]"
"""Reads a global table: the values of several keys, ``None`` where there is none."""


class TaskId(NamedTuple):
    """Which subtopology, on which partition number."""

    subtopology: int
    partition: int

    def __str__(self) -> str:
        return f"{self.subtopology}_{self.partition}"


class Runtime(Protocol):
    """What a task needs of whatever runs it: the time, and what to do while user code is slow or waits."""

    def wall_clock(self) -> int:
        """Milliseconds since the epoch."""

    def stopwatch(self) -> float:
        """Seconds since some moment: how long user code takes is measured with it."""

    def keep_alive(self) -> None:
        """Serve the group if it is due. Raises ``Interrupted`` when the open slice must be given up."""

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Let time pass while serving the group, as ``step`` failed. Raises ``Interrupted`` too."""

    def attend(self, calls: Calls) -> None:
        """Wait until calls of an async function have ended, serving the group. Raises ``Interrupted`` too."""

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        """The input records at these places, without those that cannot be read any more."""


class BegunAggregates(NamedTuple):
    """Aggregates among several of a store that begin empty, as what was stored has nothing of them."""

    names: tuple[str, ...]
    since: int
    """Milliseconds since the epoch."""


@dataclass(slots=True)
class Counts:
    """What a task has done since it was made. ``seconds`` by stage: ``decode`` and ``process``."""

    records_in: int = 0
    bytes_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    """Records written as dead letters, by step."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records left out under policy ``skip``, by step."""
    late: Counter[str] = field(default_factory=Counter)
    """Records that came too late for a window or a join, by step."""
    seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "process": 0.0})

    def add(self, other: Counts) -> None:
        """Count what another has counted too."""
        self.records_in += other.records_in
        self.bytes_in += other.bytes_in
        self.records_out += other.records_out
        self.bytes_out += other.bytes_out
        self.dead_letters.update(other.dead_letters)
        self.skipped.update(other.skipped)
        self.late.update(other.late)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


@dataclass(slots=True)
class _Schedule:
    step: str
    every: int
    call: Callable[[int], None]
    due: int | None
    """When it is run next; ``None`` as long as stream time has not begun."""
    clock: StreamClock | None
    """The clock it follows; ``None`` for the wall clock."""
    cancelled: bool = False
    _at_slice: int | None = field(init=False)
    _at_commit: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._at_slice = self._at_commit = self.due

    def cancel(self) -> None:
        self.cancelled = True

    def follow(self) -> None:
        """Run it if its stream time has got there."""
        assert self.clock is not None
        now = self.clock.time
        if self.cancelled or now < 0:
            return
        if self.due is None:
            self.due = self._after(now)
        elif now >= self.due:
            self.run(now)

    def run(self, now: int) -> None:
        # Calls that were missed are not made up for.
        self.due = now + self.every if self.clock is None else self._after(now)
        try:
            self.call(now)
        except StreamsError:
            raise
        except Exception as error:
            raise ProcessingError(
                f"step {self.step!r} failed in what it scheduled every {self.every} ms: "
                f"{type(error).__name__}: {error_text(error)}",
                hint="there is no record to become a dead letter: mend the code and start again",
            ) from error

    def end_slice(self) -> None:
        self._at_slice = self.due

    def drop_slice(self) -> None:
        self.due = self._at_slice

    def committed(self) -> None:
        self._at_commit = self._at_slice

    def drop(self) -> None:
        """What it did since the last commit is undone: that is due again."""
        self.due = self._at_slice = self._at_commit

    def _after(self, now: int) -> int:
        return now - now % self.every + self.every


class _Kind(IntEnum):
    """What a step does when the records of a slice are through, in this order."""

    SLICE_END = 0
    STREAM_TIME = 1
    COMMIT = 2


class _Turn(NamedTuple):
    position: int
    kind: _Kind
    call: Callable[[], None]


@dataclass(slots=True)
class _Hooks:
    """What the steps of a task asked to be called for. Numbers are positions of nodes in the subtopology."""

    turns: list[_Turn] = field(default_factory=list)
    schedules: list[_Schedule] = field(default_factory=list)
    closers: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """What to call when the task ends, with the step's name; the last one first."""
    idle: list[tuple[int, int, StreamClock]] = field(default_factory=list)
    """After how many milliseconds without records, and how far, which clock follows the wall clock."""

    def add(self, position: int, kind: _Kind, call: Callable[[], None]) -> None:
        """Steps come before later ones: what one forwards, the next takes in before its own turn."""
        self.turns = sorted([*self.turns, _Turn(position, kind, call)], key=itemgetter(0, 1))


class _Clocks:
    """The clocks of a task: one for all steps that make event times for the same stateful steps."""

    def __init__(self, subtopology: Subtopology, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._subtopology = subtopology
        self._checkpoints = checkpoints
        self.by_maker: dict[str, StreamClock] = {}
        self.keepers: dict[str, StreamClock] = {}
        """The store in whose changelog each clock's time is kept."""
        groups: list[set[str]] = []
        owners = {
            store.name: node for node in subtopology.nodes if isinstance(node, Step) for store in node.owns
        }
        windowed = {
            store.name for store in subtopology.stores if store.retention is not None or store.ttl is not None
        }
        for node in subtopology.nodes:
            if isinstance(node, Step) and (node.owns or node.uses or node.operator.stamps):
                # Steps that share a store must agree on what is late, and on what has expired.
                sharing = [owners[name] for name in node.uses if name in windowed]
                groups.append({maker for step in (node, *sharing) for maker in self._makers(step)})
        self._groups = _joined(groups)

    def of(self, step: Step) -> StreamClock:
        makers = self._makers(step)
        group = next(group for group in self._groups if makers[0] in group)
        clock = self.by_maker.get(makers[0])
        if clock is None:
            clock = StreamClock()
            self.by_maker.update(dict.fromkeys(group, clock))
        kept = [store for store in step.owns if store.source_topic is None]
        # What of a windowed store is over, each changelog must tell for itself.
        for store in [store for store in kept if store.retention is not None] or kept[:1]:
            if store.name not in self.keepers:
                self.keepers[store.name] = clock
                checkpoint = self._checkpoints[store.name]
                clock.restore(checkpoint.time, checkpoint.observed)
        return clock

    def all(self) -> list[StreamClock]:
        return list({id(clock): clock for clock in self.by_maker.values()}.values())

    def observed(self, name: str, forward: Forward) -> Forward:
        """``forward`` that also tells the clock of the records, where somebody asked for one."""
        clock = self.by_maker.get(name)
        if clock is None:
            return forward

        def run(batch: Batch[Any, Any]) -> None:
            before = clock.observe(batch)
            forward(batch)
            clock.resume(before)

        return run

    def _makers(self, step: Step) -> list[str]:
        nodes = self._subtopology.ancestors(step.name, stop=_stamps)
        return [node.name for node in nodes if _stamps(node)]


def _joined(groups: list[set[str]]) -> list[set[str]]:
    """The groups, with those that overlap made one."""
    joined: list[set[str]] = []
    for group in groups:
        overlapping = [other for other in joined if other & group]
        joined = [other for other in joined if not other & group]
        joined.append(group.union(*overlapping))
    return joined


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
    refused: where they are met again, they get their sink's policy and are not written.
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
    ) -> None:
        self.id = identifier
        self.positions: dict[TopicPartition, int] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.counts = Counts()
        self._runtime = runtime
        self._application = application
        self._dead_letter_topic = dead_letter_topic
        self._refused = RefusedRows() if refused is None else refused
        self._in_slice: dict[tuple[str, str], list[Batch[Any, Any]]] = {}
        """What the open slice has brought each sink so far, by the sink and the topic."""
        self._pending: list[Output] = []
        self._dead_letters: list[DeadLetter] = []
        self._before_slice = 0, 0
        """How much of both there was before the slice that is open."""
        self._timed_changes: dict[str, TimedChanges] = {}
        self._slice: Fetched | None = None
        """What the slice that is open was read as, if it has input."""
        self._subtopology = subtopology
        self._database = database
        self._lookups = dict(lookups or {})
        self._checkpoints = dict(checkpoints or {})
        self._staged: dict[str, Changes] | None = None
        self._definitions = {store.name: store for store in subtopology.stores}
        if self._definitions and database is None:
            raise StreamsError(f"task {identifier} has stores and was given no database")
        self._migrations: dict[str, str] = {}
        """Stores whose entries are of an earlier schema, until a commit has rewritten them."""
        self.begun: dict[str, BegunAggregates] = {}
        """Aggregates that are new in stores that exist, by store, until a commit has stored that they are."""
        self._values: dict[str, Serde[Any]] = {}
        """How values of each store are read here, where that depends on what has been stored."""
        self.states: dict[str, KeyValueState[Any, Any] | WindowState[Any, Any]] = {
            name: self._open_state(store) for name, store in self._definitions.items()
        }
        self._migrate()
        self._clocks = _Clocks(subtopology, self._checkpoints)
        self._hooks = _Hooks()
        self._sources: dict[str, Callable[[Fetched], None]] = {}
        try:
            self._bind_nodes()
        except BaseException:
            # There is no task that could be closed.
            self._close_steps()
            raise
        self._by_topic: dict[str, Callable[[Fetched], None]] = {}
        self.least_slice = max(
            (
                node.operator.least_slice
                for node in subtopology.nodes
                if isinstance(node, Step) and isinstance(node.operator, MapAsync)
            ),
            default=1,
        )
        """Fewer records at a time would not keep as many calls in flight as its steps may make."""
        self.stateful = bool(self.states or self._hooks.schedules)

    def _bind_nodes(self) -> None:
        bound: dict[str, Forward] = {}
        for node in reversed(self._subtopology.nodes):
            children = {child.name: bound[child.name] for child in self._subtopology.children(node.name)}
            if isinstance(node, Source):
                forward = self._clocks.observed(node.name, fan_out(children))
                self._sources[node.name] = self._bind_source(node, forward)
            elif isinstance(node, Step):
                children = {name: self._clocks.observed(node.name, child) for name, child in children.items()}
                bound[node.name] = node.operator.bind(self._binding(node), children)
            else:
                bound[node.name] = self._bind_sink(node)

    @property
    def dirty(self) -> int:
        """How many entries of its stores the next commit would write."""
        return sum(state.dirty for state in self.states.values())

    @property
    def staged(self) -> bool:
        """Whether the commit being made changes stores."""
        return self._staged is not None

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
        try:
            self._as_slice(lambda: self._source_for(fetched.topic)(fetched), partition=partition)
        finally:
            self._slice = None
        self.positions[partition] = fetched.next_offset
        counts = self.counts
        counts.records_in += len(fetched)
        seconds = counts.seconds
        seconds["process"] += time.perf_counter() - begun - (seconds["decode"] - decoding)

    def timed(self, fetched: Fetched) -> Iterable[Fetched]:
        """The records in pieces whose ``event_times`` may be asked for before they are processed.

        Where event times are taken from the values, these are decoded once, for both.
        """
        source = self._source_node(fetched.topic)
        if source.timestamp is None:
            return (fetched,)
        return pieces(fetched, partial(self._decode_timed, source))

    def event_times(self, fetched: Fetched) -> Sequence[int]:
        """The records' event times, as their source will find them; where it finds none, as those before."""
        if isinstance(fetched, DecodedRecords):
            return fetched.event_times()
        source = self._source_node(fetched.topic)
        return fetched.timestamps() if source.timestamp is None else self._decode_timed(source, fetched).times

    def _decode_timed(self, source: Source, fetched: Fetched) -> Columns:
        assert source.timestamp is not None
        begun = time.perf_counter()
        decoded = decode(nullable(source.value.deserialize), source.timestamp, fetched, table=source.table)
        self.counts.seconds["decode"] += time.perf_counter() - begun
        return decoded

    def punctuate(self) -> bool:
        """Run what is due on the wall clock, as a slice of its own. Returns whether anything was."""
        now = self._runtime.wall_clock()
        due = [
            schedule
            for schedule in self._hooks.schedules
            if schedule.clock is None and not schedule.cancelled and now >= (schedule.due or 0)
        ]
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
        moved: dict[StreamClock, int] = {}
        for after, horizon, clock in self._hooks.idle:
            to = min(clock.time + since, clock.observed + horizon)
            if milliseconds >= after and 0 <= clock.time < to:
                moved[clock] = max(to, moved.get(clock, to))
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
        self._stage()

    def take(self) -> list[Output]:
        """What the slices since the last call produced, dead letters last. Empty when there is nothing.

        Raises ``ProcessingError`` for a dead letter that its topic does not take in any form.
        """
        pending, self._pending = self._pending, []
        letters, self._dead_letters = self._dead_letters, []
        if letters:
            pending.append(self._dead_letter_output(letters))
        for output in pending:
            self.counts.records_out += len(output)
            self.counts.bytes_out += total_bytes(output.values)
        return pending

    def take_changelog(self) -> list[Output]:
        """What ``prepare`` found for the changelog topics."""
        outputs = []
        for name, changes in (self._staged or {}).items():
            definition = self._definitions[name]
            if definition.source_topic is not None:
                continue
            checkpoint = self._checkpoints[name]
            topic = changelog_topic(self._application, definition)
            entries = changelog_records(changes.entries)
            if entries[0] or checkpoint.unwritten():
                checkpoint.count()
            written = [entries, metadata_records(checkpoint)]
            for keys, values, headers in written:
                if keys:
                    now = [self._runtime.wall_clock()] * len(keys)
                    owner = _ChangelogRows(definition.name, topic, self.id, keys, values)
                    outputs.append(
                        Output(topic, keys, values, now, headers, partition=self.id.partition, owner=owner)
                    )
            checkpoint.wrote(sum(len(keys) for keys, _, _ in written))
        return outputs

    @property
    def offset_metadata(self) -> str:
        """What is committed beside the offsets of its input: the numbers of its stores' last commits."""
        return commit_numbers.encode({name: item.number or 0 for name, item in self._checkpoints.items()})

    def committed(self) -> None:
        """All that was taken is permanent: the changes go into the database, with where they come from."""
        for clock in self._clocks.all():
            clock.committed()
        for schedule in self._hooks.schedules:
            schedule.committed()
        if self._staged is None:
            return
        staged, self._staged = self._staged, None
        assert self._database is not None
        partition = self.id.partition
        for name, definition in self._definitions.items():
            if definition.source_topic is not None:
                source = TopicPartition(definition.source_topic, partition)
                if source in self.positions:
                    self._checkpoints[name].offset = self.positions[source]
        for checkpoint in self._checkpoints.values():
            checkpoint.committed()
        self._database.write(
            {name: changes for name, changes in staged.items() if changes.entries or changes.deleted},
            encode_metadata(self._checkpoints, self._runtime.wall_clock()),
        )
        for state in self.states.values():
            state.committed()

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        """What a store holds, changes that are not committed included; starts and keys of a windowed one."""
        state, held = self.states[name], HeldKeys(self._definitions[name].key)
        if isinstance(state, KeyValueState):
            found = list(state.entries())
            return list(zip(held.shown(key for key, _ in found), (value for _, value in found), strict=True))
        entries = list(state.entries())
        keys = held.shown(key for (_, key), _ in entries)
        return [((start, key), value) for key, ((start, _), value) in zip(keys, entries, strict=True)]

    def committed_store(self, name: str) -> CommittedStore:
        """A store as of the last commit, to be read from any thread. Raises ``StateError`` once closed."""
        assert self._database is not None
        definition = self._definitions[name]
        time = self._checkpoints[name].time_written
        oldest = 0 if definition.retention is None else max(0, time - definition.retention + 1)
        return CommittedStore(self._database.store(name), definition, oldest, self._values[name])

    def drop_slice(self) -> None:
        """Give up the slice that is open, if any."""
        pending, letters = self._before_slice
        del self._pending[pending:], self._dead_letters[letters:]
        for state in self.states.values():
            state.drop_slice()
        for clock in self._clocks.all():
            clock.drop_slice()
        for schedule in self._hooks.schedules:
            schedule.drop_slice()

    def drop(self, positions: dict[TopicPartition, int]) -> None:
        """Forget what was produced and changed since the last commit, and continue from ``positions``."""
        self._pending, self._dead_letters = [], []
        self._staged = None
        self.positions = dict(positions)
        for state in self.states.values():
            state.drop()
        for clock in self._clocks.all():
            clock.drop()
        for schedule in self._hooks.schedules:
            schedule.drop()
        for checkpoint in self._checkpoints.values():
            checkpoint.drop()
        self._migrate()

    def forget(self, partition: TopicPartition) -> None:
        """Hold this input partition no longer."""
        self.positions.pop(partition, None)
        self.starts.pop(partition, None)

    def close(self) -> None:
        """Close the steps, then release the database. What is not committed is gone.

        Raises ``ProcessingError`` for the first step whose closing failed, after all else is closed.
        """
        failed = self._close_steps()
        if self._database is not None:
            self._database.close()
        for step, error in failed:
            raise ProcessingError(
                f"step {step!r}, task {self.id}: close() failed: {type(error).__name__}: {error_text(error)}",
                hint="what the task has processed is not affected",
            ) from error

    def _close_steps(self) -> list[tuple[str, Exception]]:
        """Close each step once; those that failed."""
        failed: list[tuple[str, Exception]] = []
        while self._hooks.closers:
            step, call = self._hooks.closers.pop()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the others must be closed too
                failed.append((step, error))
        return failed

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
        self._before_slice = len(self._pending), len(self._dead_letters)
        try:
            run()
            for _, kind, call in self._hooks.turns:
                if kind is _Kind.COMMIT:
                    if not committing:
                        continue
                    # What earlier steps forwarded at this commit has changed it too.
                    self._end_slice_of_states()
                call()
        except BaseException:
            self.drop_slice()
            raise
        finally:
            self._in_slice = {}
        self._end_slice_of_states()
        for clock in self._clocks.all():
            clock.end_slice()
        for schedule in self._hooks.schedules:
            schedule.end_slice()

    def _end_slice_of_states(self) -> None:
        for state in self.states.values():
            state.end_slice()

    def _stage(self) -> None:
        """Encode what the commit writes to stores; nothing, when nothing changed."""
        for name, clock in self._clocks.keepers.items():
            self._checkpoints[name].time, self._checkpoints[name].observed = clock.time, clock.observed
        changes = {name: state.take() for name, state in self.states.items()}
        changed = any(item.entries or item.deleted for item in changes.values())
        if changed or any(checkpoint.unwritten() for checkpoint in self._checkpoints.values()):
            self._staged = changes

    def _open_state(self, store: StoreDefinition) -> KeyValueState[Any, Any] | WindowState[Any, Any]:
        assert self._database is not None
        checkpoint = self._checkpoints.setdefault(store.name, Checkpoint(store.schema))
        stored = checkpoint.schema_written
        if stored is not None and check(store, stored):
            self._migrations[store.name] = stored
        else:
            now = self._runtime.wall_clock()
            checkpoint.schema = kept(stored, store.schema, now)
            if stored is not None and (new := new_aggregates(stored, store.schema)):
                self.begun[store.name] = BegunAggregates(tuple(new), now)
        value = self._values[store.name] = reading(store, checkpoint.schema)
        committed = self._database.store(store.name)
        if store.retention is None:
            return KeyValueState(committed, store.held_key, value)
        return WindowState(
            committed,
            store.held_key,
            value,
            retention=store.retention,
            stream_time=checkpoint.time,
            expired_span=store.expired_span,
        )

    def _migrate(self) -> None:
        """Put what must be migrated into the next commit, which also writes the new schema."""
        assert self._database is not None or not self._migrations
        for name, stored in self._migrations.items():
            if self._checkpoints[name].schema_written != stored:
                continue
            assert self._database is not None
            entries = migrated_entries(self._definitions[name], stored, self._database.store(name))
            state = self.states[name]
            if isinstance(state, KeyValueState):
                state.put_many(entries)
            else:
                for (start, key), value in entries:
                    if start >= state.expired:
                        state.put(start, key, value)
            state.end_slice()

    def keep_alive(self) -> None:
        self._runtime.keep_alive()

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        self._runtime.wait(seconds, step, error)

    def attend(self, calls: Calls) -> None:
        self._runtime.attend(calls)

    def failed(self, action: Action, batch: Batch[Any, Any], row: int, step: str, error: Exception) -> None:
        """Take note of a record that ``step`` could not process, as its policy says."""
        if action == "skip":
            self.counts.skipped[step] += 1
            return
        self.counts.dead_letters[step] += 1
        self._dead_letters.append(DeadLetter(batch, row, step, error))

    def _binding(self, step: Step) -> _Binding:
        return _Binding(
            guard=self._guard(step),
            subtopology=self.id.subtopology,
            partition=self.id.partition,
            _step=step,
            _within=self._subtopology,
            _application=self._application,
            _states=self.states,
            _lookups=self._lookups,
            _clocks=self._clocks,
            _hooks=self._hooks,
            _counts=self.counts,
            _wall_clock=self._runtime.wall_clock,
            _last_read=self._last_read,
            _timed_changes=self._timed_changes,
        )

    def _last_read(self) -> Trace | None:
        """The last record of the slice that is open, if it has input."""
        if self._slice is None:
            return None
        (trace,) = Batch(self._slice, [None], rows=[len(self._slice) - 1]).traces([0])
        return trace

    def _guard(self, node: Node) -> Guard:
        describe = f"step {node.name!r}"
        if isinstance(node, Step) and node.operator.code is not None:
            describe += f" ({_where(node.operator.code)})"
        # What serdes return has a type of its own, so that only steps need to look.
        plain = isinstance(node, Step)
        return Guard(node.name, node.policy, self, describe, self._runtime.stopwatch, plain=plain)

    def _source_for(self, topic: str) -> Callable[[Fetched], None]:
        found = self._by_topic.get(topic)
        if found is None:
            found = self._by_topic[topic] = self._sources[self._source_node(topic).name]
        return found

    def _source_node(self, topic: str) -> Source:
        return next(
            source
            for source in self._subtopology.sources
            if any(matches(wanted, topic) for wanted in source.topics)
        )

    def _bind_source(self, source: Source, forward: Forward) -> Callable[[Fetched], None]:
        guard = self._guard(source)
        deserialize_value = nullable(source.value.deserialize)
        # Keys that stay bytes stay with the client too, until somebody asks for them.
        deserialize_key = None if isinstance(source.key, Bytes) else nullable(source.key.deserialize)
        timestamp, counts, internal = source.timestamp, self.counts, source.internal

        def run(fetched: Fetched) -> None:
            begun = time.perf_counter()
            if internal:
                fetched = Relayed(fetched)
            self._slice = fetched
            payloads = fetched.values()
            counts.bytes_in += total_bytes(payloads)
            batch: Batch[Any, Any] = Batch(fetched, payloads)
            decoded = fetched.take() if isinstance(fetched, DecodedRecords) else None
            if decoded is None:
                readable, values = guard.apply(deserialize_value, payloads, batch)
                batch = readable.with_values(values)
            else:
                batch = batch.with_values(decoded.values).with_timestamps(decoded.times)
            if deserialize_key is not None:
                readable, keys = guard.apply(deserialize_key, batch.keys, batch)
                batch = readable.with_keys(keys)
            if source.needs_key and None in batch.keys:
                batch = _present(guard, batch, batch.keys, "key")
            if source.needs_value and None in batch.values:
                batch = _present(guard, batch, batch.values, "value")
            if timestamp is not None and decoded is None:
                batch = extract_timestamps(guard, timestamp, batch, table=source.table)
            counts.seconds["decode"] += time.perf_counter() - begun
            if len(batch):
                forward(batch)

        return run

    def _bind_sink(self, sink: Sink) -> Forward:
        guard = self._guard(sink)
        # Keys of an internal topic are read again, and what cannot be is found now, by its record.
        write_keys = sink.key.serialize if sink.repartition is None else readable_keys(sink.key)
        serialize_value, serialize_key = nullable(sink.value.serialize), nullable(write_keys)
        internal = sink.repartition is not None

        def encode(batch: Batch[Any, Any], topic: str) -> None:
            writable, keys = guard.apply(serialize_key, batch.keys, batch)
            writable, values = guard.apply(serialize_value, writable.values, writable.with_keys(keys))
            if values:
                before = self._in_slice.setdefault((sink.name, topic), [])
                rows = _SinkRows(sink.name, topic, guard, writable, tuple(before))
                before.append(writable)
                if internal:
                    values = with_origins(values, writable)
                output = Output(
                    topic, writable.keys, values, writable.timestamps, writable.headers, owner=rows
                )
                if self._refused:
                    output = self._without_refused(output, rows)
                if len(output):
                    self._pending.append(output)

        if isinstance(sink.topic, str):
            fixed = sink.topic
            return lambda batch: encode(batch, fixed)
        choose = partial(_topic_names, sink.topic, sink.closed)

        def run(batch: Batch[Any, Any]) -> None:
            addressed, topics = guard.apply(choose, batch.values, batch)
            by_topic: dict[str, list[int]] = {}
            for row, topic in enumerate(topics):
                by_topic.setdefault(topic, []).append(row)
            for topic, rows in by_topic.items():
                encode(addressed.select(rows), topic)

        return run

    def _without_refused(self, output: Output, rows: _SinkRows) -> Output:
        """The rows that the broker has not refused before; the others get the sink's policy."""
        kept = []
        for row, place in enumerate(rows.places()):
            error = self._refused.meet(place)
            if error is None:
                kept.append(row)
            else:
                rows.refuse(row, error)
        if len(kept) == len(output):
            return output
        return Output(
            output.topic,
            take(output.keys, kept),
            take(output.values, kept),
            take(output.timestamps, kept),
            None if output.headers is None else take(output.headers, kept),
            owner=_SomeRows(rows, kept),
        )

    def _dead_letter_output(self, letters: Sequence[DeadLetter]) -> Output:
        places = self._dead_letter_places(letters)
        if self._refused:
            errors = map(self._refused.meet, places)
            letters = [
                letter if error is None else letter.cut_to(self._refused.times(place), error)
                for letter, place, error in zip(letters, places, errors, strict=True)
            ]
        owner = DeadLetterRows(letters, places, self._dead_letters.append)
        return dead_letter_output(
            letters,
            self._dead_letter_topic,
            self._application,
            owner,
            self._runtime.wall_clock,
            self._runtime.originals,
        )

    def _dead_letter_places(self, letters: Sequence[DeadLetter]) -> list[Hashable]:
        seen: Counter[Hashable] = Counter()
        places: list[Hashable] = []
        for letter in letters:
            source = ("dead letter", letter.step, letter.identity)
            places.append((*source, seen[source]))
            seen[source] += 1
        return places


class _SinkRows:
    """The rows of one batch that a sink writes to one topic; see ``RowOwner``.

    ``before`` are the batches that the sink has had for the topic in the same slice: several rows of one
    input record are told apart by their order in the slice, however slices are cut.
    """

    def __init__(
        self,
        sink: str,
        topic: str,
        guard: Guard,
        batch: Batch[Any, Any],
        before: tuple[Batch[Any, Any], ...],
    ) -> None:
        self._sink = sink
        self._topic = topic
        self._guard = guard
        self._batch = batch
        self._before = before
        self._places: list[Hashable] | None = None

    def places(self) -> list[Hashable]:
        if self._places is None:
            seen = Counter(identity for batch in self._before for identity in batch.identities())
            self._places = []
            for identity in self._batch.identities():
                self._places.append((self._sink, self._topic, identity, seen[identity]))
                seen[identity] += 1
        return self._places

    def place(self, row: int) -> Hashable:
        return self.places()[row]

    def refuse(self, row: int, error: Exception) -> None:
        self._guard.refuse(self._batch, row, error)


class _SomeRows:
    """Those rows of another owner."""

    def __init__(self, owner: RowOwner, rows: Sequence[int]) -> None:
        self._owner = owner
        self._rows = rows

    def place(self, row: int) -> Hashable | None:
        return self._owner.place(self._rows[row])

    def refuse(self, row: int, error: Exception) -> None:
        self._owner.refuse(self._rows[row], error)


class _ChangelogRows:
    """The changes of one store; see ``RowOwner``. There is no policy for these: left out, state is lost."""

    def __init__(
        self,
        store: str,
        topic: str,
        task: TaskId,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
    ) -> None:
        self._store = store
        self._topic = topic
        self._task = task
        self._keys = keys
        self._values = values

    def place(self, row: int) -> None:  # noqa: ARG002 - to be refused at once
        return None

    def refuse(self, row: int, error: Exception) -> None:
        key, value = self._keys[row], self._values[row]
        raise StateError(
            f"store {self._store!r}, task {self._task}: the entry of key {preview(key)} has a key of "
            f"{len(key or b'')} and a value of {len(value or b'')} bytes, which its changelog {self._topic} "
            f"does not take: {error_text(error)}",
            hint=f"keep less in one entry (a limit for collect, say), or raise max.message.bytes of "
            f"{self._topic}; nothing of this commit was written",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """One step's side of its task; see ``streams.operators.Binding``."""

    guard: Guard
    subtopology: int
    partition: int
    _step: Step
    _within: Subtopology
    _application: str
    _states: Mapping[str, KeyValueState[Any, Any] | WindowState[Any, Any]]
    _lookups: Mapping[str, Lookup]
    _clocks: _Clocks
    _hooks: _Hooks
    _counts: Counts
    _wall_clock: Callable[[], int]
    _last_read: Callable[[], Trace | None]
    _timed_changes: dict[str, TimedChanges]

    @property
    def log(self) -> BoundLogger:
        task = TaskId(self.subtopology, self.partition)
        logger: BoundLogger = program_logger(self._application).bind(step=self._step.name, task=str(task))
        return logger

    @property
    def clock(self) -> StreamClock:
        return self._clocks.of(self._step)

    @property
    def sends_old(self) -> bool:
        return _wants_old(self._within, self._step)

    def state(self, name: str) -> KeyValueState[Any, Any]:
        state = self._states[name]
        assert isinstance(state, KeyValueState)
        return state

    def windows(self, name: str) -> WindowState[Any, Any]:
        state = self._states[name]
        assert isinstance(state, WindowState)
        return state

    def definition(self, name: str) -> StoreDefinition:
        return next(store for store in self._within.stores if store.name == name)

    def lookup(self, name: str) -> Lookup:
        if name not in self._lookups:
            raise StreamsError(f"step {self._step.name!r} was given no global table {name!r}")
        return self._lookups[name]

    def at_slice_end(self, call: Callable[[], None]) -> None:
        self._hooks.add(self._within.nodes.index(self._step), _Kind.SLICE_END, call)

    def at_commit(self, call: Callable[[], None]) -> None:
        self._hooks.add(self._within.nodes.index(self._step), _Kind.COMMIT, call)

    def at_close(self, call: Callable[[], None]) -> None:
        self._hooks.closers.append((self._step.name, call))

    def close_idle_after(self, milliseconds: int, horizon: int) -> None:
        self._hooks.idle.append((milliseconds, horizon, self.clock))

    def schedule(self, every: int, on: TimeKind, call: Callable[[int], None]) -> Cancel:
        if every <= 0:
            raise TopologyError(
                f"step {self._step.name!r} schedules a call every {every} ms: needs 1 or more"
            )
        if on == "wall_clock":
            schedule = _Schedule(self._step.name, every, call, self._wall_clock() + every, None)
        else:
            clock = self.clock
            # After a restart, stream time is not at its beginning.
            due = clock.time - clock.time % every + every if clock.time >= 0 else None
            schedule = _Schedule(self._step.name, every, call, due, clock)
            self._hooks.add(self._within.nodes.index(self._step), _Kind.STREAM_TIME, schedule.follow)
        self._hooks.schedules.append(schedule)
        return schedule.cancel

    def late(self, records: int) -> None:
        self._counts.late[self._step.name] += records

    def timed_changes(self, store: str) -> TimedChanges:
        return self._timed_changes.setdefault(store, TimedChanges())

    def derive(
        self,
        store: str | None,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        changed_by: Callable[[Rows], Sequence[Trace | None]] | None = None,
    ) -> Batch[Any, Any]:
        definition = next((item for item in self._within.stores if item.name == store), None)
        step = self._step.name
        topic = changelog_topic(self._application, definition) if definition else step
        # A timer's records are made by no input record, also where stream time has called it.
        made_at = self._last_read() if definition else None
        origin = Derived(
            topic,
            self.partition,
            keys,
            values,
            timestamps,
            _payload,
            step,
            changed_by,
            made_at or (step, self.partition, -1),
            _window=_window,
        )
        return Batch(origin, values, keys=keys, timestamps=timestamps)


def _present(guard: Guard, batch: Batch[Any, Any], column: Sequence[Any], what: str) -> Batch[Any, Any]:
    """The rows that have what the app always writes to this topic; the others meet the policy."""
    for row in [row for row, item in enumerate(column) if item is None]:
        guard.refuse(batch, row, ValueError(f"the app writes no record without a {what} to this topic"))
    return batch.select([row for row, item in enumerate(column) if item is not None])


def _stamps(node: Node) -> bool:
    return isinstance(node, Source) or (isinstance(node, Step) and node.operator.stamps)


def _wants_old(subtopology: Subtopology, step: Step) -> bool:
    """Whether the changes that ``step`` forwards must tell the old values too."""
    for child in subtopology.children(step.name):
        if isinstance(child, Step):
            needs = getattr(child.operator, "needs_old", False)
            passes_on = getattr(child.operator, "passes_changes", False)
            if needs or (passes_on and _wants_old(subtopology, child)):
                return True
    return False


def _window(value: Any) -> tuple[int, int] | None:
    """Which window a result is of, if it is of one."""
    return (value.start, value.end) if isinstance(value, Windowed) else None


def _payload(value: Any) -> bytes | None:
    """A value from a store as a dead letter shows it; of a change of a table the new value."""
    if isinstance(value, Change):
        value = value.new
    if value is None or isinstance(value, bytes):
        return value
    return msgspec.json.encode(value, enc_hook=repr)


def total_bytes(payloads: Sequence[bytes | None]) -> int:
    """The sum of the payloads' lengths, nulls counting nothing."""
    try:
        return sum(map(len, payloads))  # type: ignore[arg-type]  # a null raises, and then they are left out
    except TypeError:
        return sum(map(len, filter(None, payloads)))


def _topic_names(choose: Callable[[Any], str], closed: Sequence[TopicPattern], values: Sequence[Any]) -> Any:
    allowed: set[str] = set()
    for value in values:
        topic = choose(value)
        if type(topic) is not str or topic not in allowed:
            if type(topic) is not str or not topic:
                settled(topic)
                raise TypeError(f"a topic's name is needed, got {topic!r}")
            fault = topic_name_fault(topic)
            if fault:
                raise ValueError(f"{topic!r} cannot name a topic: {fault}")
            for pattern in closed:
                if pattern.fullmatch(topic):
                    raise ValueError(
                        f"the app would read its own output: topic {topic!r} is matched by its pattern "
                        f"/{pattern.pattern}/; narrow the pattern or write to another topic"
                    )
            allowed.add(topic)
        yield topic


def _where(code: object) -> str:
    source = getattr(code, "__code__", None)
    name = function_name(code)
    return f"{name}, {source.co_filename}:{source.co_firstlineno}" if source is not None else name
