"""The interface of a task for its operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from streams.errors import StreamsError, TopologyError
from streams.events import program_logger
from streams.eventtime.windows import Windowed
from streams.operators.change import Change
from streams.operators.guard import Guard
from streams.operators.origins import TimedChanges
from streams.records import Batch, SyntheticBatch, total_bytes
from streams.runtime.hooks import TurnKind
from streams.runtime.outbox import Delivery
from streams.runtime.schedule import Schedule
from streams.state.buffered import KeyValueState, WindowState
from streams.state.changelog import changelog_topic
from streams.topology.graph import Node, Step, Subtopology, written_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from structlog.stdlib import BoundLogger

    from streams.eventtime.clock import StreamClock
    from streams.lineage import Ancestry
    from streams.operators.background import BackgroundWork
    from streams.operators.guard import Failed
    from streams.operators.processor import Cancel, TimeKind
    from streams.operators.runtime import Runtime
    from streams.operators.uncommitted import FollowsSlices
    from streams.records import Fetched, Output, Rows, Trace
    from streams.runtime.clocks import Clocks
    from streams.runtime.counts import Counts
    from streams.runtime.hooks import Hooks
    from streams.runtime.ledger import StepAccount
    from streams.runtime.outbox import Outbox
    from streams.runtime.refused_rows import RefusedRows
    from streams.runtime.step_times import StepTimes
    from streams.state.definition import StoreDefinition

Lookup: TypeAlias = "Callable[[Sequence[Any]], list[Any]]"
"""Reads a global table: the values of several keys, ``None`` where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The task's interface for the operator of one node; see ``streams.operators.Binding``."""

    guard: Guard
    subtopology: int
    partition: int
    _task: str
    _node: Node
    _within: Subtopology
    _application: str
    _states: Mapping[str, KeyValueState[Any, Any] | WindowState[Any, Any]]
    _lookups: Mapping[str, Lookup]
    _clocks: Clocks
    _hooks: Hooks
    _times: StepTimes
    _outbox: Outbox
    _counts: Counts
    _wall_clock: Callable[[], int]
    _timed_changes: dict[str, TimedChanges]
    _inline: bool
    account: StepAccount

    @property
    def refused(self) -> RefusedRows:
        return self._outbox.refused

    def reading(self, fetched: Fetched, payloads: Sequence[bytes | None]) -> None:
        self._outbox.read = fetched
        self._counts.bytes_in += total_bytes(payloads)

    def decoded(self, seconds: float) -> None:
        self._counts.seconds["decode"] += seconds

    def sent_before(self, topic: str, batch: Batch[Any, Any]) -> Sequence[Batch[Any, Any]]:
        return self._outbox.sent_before(self._node.name, topic, batch)

    def emit(self, output: Output) -> None:
        self.account.emitted(len(output))
        self._outbox.emit(output)

    def deliver(self, batch: Batch[Any, Any]) -> None:
        self.account.emitted(len(batch))
        self._outbox.deliver(Delivery(self._node.name, self.guard, batch))

    @property
    def log(self) -> BoundLogger:
        logger: BoundLogger = program_logger(self._application).bind(step=self._node.name, task=self._task)
        return logger

    @property
    def clock(self) -> StreamClock:
        assert isinstance(self._node, Step)
        return self._clocks.of(self._node)

    @property
    def sends_old(self) -> bool:
        return _wants_old(self._within, self._node)

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
            raise StreamsError(f"step {self._node.name!r} has no global table {name!r}")
        return self._lookups[name]

    def at_slice_end(self, call: Callable[[], None]) -> None:
        self._at(TurnKind.SLICE_END, call)

    def at_commit(self, call: Callable[[], None]) -> None:
        self._at(TurnKind.COMMIT, call)

    def _at(self, kind: TurnKind, call: Callable[[], None]) -> None:
        call = self._times.measured(self._node.name, call)
        self._hooks.add(self._within.nodes.index(self._node), kind, call)

    def at_close(self, call: Callable[[], None]) -> None:
        self._hooks.closers.append((self._node.name, call))

    def close_idle_after(self, milliseconds: int, horizon: int) -> None:
        self._hooks.idle.append((milliseconds, horizon, self.clock))

    def schedule(self, every: int, on: TimeKind, call: Callable[[int], None]) -> Cancel:
        if every <= 0:
            raise TopologyError(
                f"step {self._node.name!r} schedules a call every {every} ms: the minimum is 1 ms"
            )
        call = self._times.measured(self._node.name, call)
        if on == "wall_clock":
            schedule = Schedule(self._node.name, every, call, self._wall_clock() + every, None)
        else:
            clock = self.clock
            # After a restart, stream time is the restored one.
            due = clock.time - clock.time % every + every if clock.time >= 0 else None
            schedule = Schedule(self._node.name, every, call, due, clock)
            self._hooks.add(self._within.nodes.index(self._node), TurnKind.STREAM_TIME, schedule.follow)
        self._hooks.schedules.append(schedule)
        return schedule.cancel

    @property
    def wall_clock(self) -> Callable[[], int]:
        return self._wall_clock

    def follow_slices(self, follower: FollowsSlices) -> None:
        self._hooks.followers.append(follower)

    def in_background(self, work: BackgroundWork) -> None:
        self._hooks.background.append(work)
        self.follow_slices(work)

    @property
    def inline(self) -> bool:
        return self._inline

    def late(self, records: int, *, kept: int = 0) -> None:
        self.account.late(records, kept, self._node.operator.late_child)
        self._counts.late[self._node.name] += records

    def timed_changes(self, store: str) -> TimedChanges:
        return self._timed_changes.setdefault(store, TimedChanges())

    def derive(
        self,
        store: str | None,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        changed_by: Callable[[Rows], Sequence[Trace | None]] | None = None,
        lineage: Sequence[Ancestry | None] | None = None,
    ) -> Batch[Any, Any]:
        definition = next((item for item in self._within.stores if item.name == store), None)
        step = self._node.name
        topic = changelog_topic(self._application, definition) if definition else step
        # A timer's records do not come from an input record, even if it runs on stream time.
        made_at = self._outbox.last_read() if definition else None
        origin = SyntheticBatch(
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
            _lineage=lineage,
        )
        return Batch(origin, values, keys=keys, timestamps=timestamps)


def guard_of(node: Node, runtime: Runtime, failed: Failed, resumed: Callable[[int], None]) -> Guard:
    """The guard that runs the node's user code under its policy."""
    code = node.operator.code
    describe = f"step {node.name!r}" + ("" if code is None else f" ({written_at(code)})")
    # Only steps check for awaitables: the results of serdes are typed.
    plain = isinstance(node, Step)
    return Guard(node.name, node.policy, runtime, failed, describe, plain=plain, resumed=resumed)


def _wants_old(subtopology: Subtopology, node: Node) -> bool:
    """Whether the changes that ``node`` forwards must have the old values too."""
    for child in subtopology.children(node.name):
        operator = child.operator
        if operator.needs_old or (operator.passes_changes and _wants_old(subtopology, child)):
            return True
    return False


def _window(value: Any) -> tuple[int, int] | None:
    """The window of a result, or ``None``."""
    return (value.start, value.end) if isinstance(value, Windowed) else None


def _payload(value: Any) -> bytes | None:
    """The dead letter's payload for a value from a store; for a change of a table, the new value."""
    if isinstance(value, Change):
        value = value.new
    if value is None or isinstance(value, bytes):
        return value
    return msgspec.json.encode(value, enc_hook=repr)
