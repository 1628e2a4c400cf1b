"""Operators: what a step of a topology does, as plain data.

An operator is a frozen value. It is bound once for each task: ``bind`` returns a function that processes
batches, a closure over the steps downstream, so that nothing is looked up or dispatched per batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from streams.records import Batch

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from structlog.stdlib import BoundLogger

    from streams.eventtime.clock import StreamClock
    from streams.lineage import Ancestry
    from streams.operators.background import BackgroundWork
    from streams.operators.guard import Guard
    from streams.operators.origins import TimedChanges
    from streams.operators.processor import Cancel, TimeKind
    from streams.operators.uncommitted import FollowsSlices
    from streams.records import Fetched, Output, Rows, Trace
    from streams.state.buffered import KeyValueState, WindowState
    from streams.state.definition import StoreDefinition

Forward: TypeAlias = Callable[[Batch[Any, Any]], None]
"""Forwards a batch of at least one row to the next step."""

Receive: TypeAlias = "Callable[[Fetched], None]"
"""Processes fetched records in a topology, from its source on."""

Children: TypeAlias = Mapping[str, Forward]
"""The steps downstream, by name, in the order in which they were declared."""


class NodeOperator(ABC):
    """The properties of what a node of a topology does. Defaults are those of most operators.

    Subclasses are frozen dataclasses. A field with one of these names needs a default: otherwise the property
    of this class would become its default.
    """

    __slots__ = ()

    terminal: ClassVar[bool] = False
    """Whether a step may be the last of a topology, because it has side effects."""

    awaits: ClassVar[bool] = False
    """Whether ``code`` is an async function."""

    makes_processors: ClassVar[bool] = False
    """Whether ``code`` creates a processor for each task."""

    needs_old: ClassVar[bool] = False
    """Whether it needs the old values of a table's changes."""

    passes_changes: ClassVar[bool] = False
    """Whether it forwards a table's changes unchanged: with old values if a step downstream needs them."""

    forwards_at_commits: ClassVar[bool] = False
    """Whether its output depends on when commits are made."""

    order_depends_on_slices: ClassVar[bool] = False
    """Whether the order of its output depends on how the input is divided into slices."""

    one_to_one: ClassVar[bool] = False
    """Whether it forwards at most one row for each row that it is given."""

    splits: ClassVar[bool] = False
    """Whether it forwards each record to one of the steps downstream, and not to each of them."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The operator's name in descriptions and in generated step names."""

    @property
    def stamps(self) -> bool:
        """Whether it assigns event times to the records it forwards, so that there is a new stream time."""
        return False

    @property
    def code(self) -> object:
        """The user's function or class, for errors and generated names; ``None`` without one."""
        return None

    @property
    def least_slice(self) -> int:
        """The minimum number of records that a slice should have."""
        return 1

    @property
    def late_child(self) -> str | None:
        """The step downstream that receives late records, if the program has one."""
        return None

    @property
    def close_idle_after(self) -> int | None:
        """Milliseconds without a record after which its clock follows the wall clock; ``None``: never."""
        return None

    @property
    def idle_reach(self) -> int:
        """Milliseconds after ``close_idle_after`` by which all that it holds is closed."""
        return 0

    def forwards_at_commits_to(self, child: str) -> bool:  # noqa: ARG002 - for those whose children differ
        """``forwards_at_commits``, for one of the steps downstream."""
        return self.forwards_at_commits


class Operator(NodeOperator):
    """What a step or a sink does with its input batches."""

    __slots__ = ()

    @abstractmethod
    def bind(self, step: Binding, children: Children) -> Forward:
        """Bind the operator to one task: return the function that processes batches."""


class Refusals(Protocol):
    """Rows that the broker has rejected, which are skipped when they are processed again."""

    def __bool__(self) -> bool:
        """Whether there are any."""

    def meet(self, place: Hashable) -> Exception | None:
        """Why the row at that place (``RowOwner.place``) was rejected; ``None`` if it was not."""


class Account(Protocol):
    """What a step declares of the records that it does not simply forward.

    The ledger compares that with what enters and leaves the step: records that neither leave it nor are
    declared are missing. Terms are counted where they happen, by the length of what is handled there, and
    never computed from each other. Failures and late records are counted by the guard and by ``late``.
    """

    def filtered(self, records: int) -> None:
        """Records that are not forwarded, as the program wants it."""

    def held(self, records: int) -> None:
        """Records that a store, or a queue in a store, has taken in."""

    def stored(self, batch: Batch[Any, Any]) -> None:
        """As ``held``, in place of a step downstream."""

    def replaced(self, records: int) -> None:
        """Records in whose place the step forwards those that it has made of them."""

    def made(self, records: int, child: str | None = None) -> None:
        """Records that the step has made, for each step downstream, or for one."""

    def resumed(self, records: int) -> None:
        """Failures that take no record away: it goes on as a deletion, or is counted elsewhere."""

    def ended(self, batch: Batch[Any, Any]) -> None:
        """Records that end in the step, in place of a step downstream."""


class Binding(Protocol):
    """The task's interface for the operator of one node.

    The first part is for sources and sinks, the rest for steps; all have a guard.
    """

    @property
    def guard(self) -> Guard:
        """Runs the node's user code under its error policy."""

    @property
    def account(self) -> Account:
        """What becomes of the node's records."""

    def reading(self, fetched: Fetched, payloads: Sequence[bytes | None]) -> None:
        """Note what the open slice reads, and count the bytes of its values."""

    def decoded(self, seconds: float) -> None:
        """Count how much of the slice's time was decoding."""

    def sent_before(self, topic: str, batch: Batch[Any, Any]) -> Sequence[Batch[Any, Any]]:
        """The earlier batches of the slice that this sink wrote to the topic."""

    @property
    def refused(self) -> Refusals:
        """The worker's refused rows; the same object for as long as the task lives."""

    def emit(self, output: Output) -> None:
        """Hand encoded rows to the task, to be written once the slice is complete."""

    def deliver(self, batch: Batch[Any, Any]) -> None:
        """Hand rows for a sink connector to the task, to be written at the next commit."""

    @property
    def subtopology(self) -> int: ...

    @property
    def partition(self) -> int: ...

    @property
    def log(self) -> BoundLogger:
        """The logger for the user's code, with the app, the step and the task."""

    @property
    def clock(self) -> StreamClock:
        """Stream time of the records that reach the step; the task tracks it once it is requested."""

    @property
    def sends_old(self) -> bool:
        """Whether a step downstream of a table step needs the old value of each change."""

    def state(self, name: str) -> KeyValueState[Any, Any]:
        """A plain store that the step owns or uses."""

    def windows(self, name: str) -> WindowState[Any, Any]:
        """A windowed store that the step owns or uses."""

    def definition(self, name: str) -> StoreDefinition:
        """The definition of a store that the step owns or uses."""

    def lookup(self, name: str) -> Callable[[Sequence[Any]], list[Any]]:
        """Reads a global table: the values of several keys, ``None`` where there is none."""

    def at_slice_end(self, call: Callable[[], None]) -> None:
        """Call ``call`` at the end of each slice, upstream steps first, e.g. to close windows.

        It is called too when stream time has advanced without a record.
        """

    def at_commit(self, call: Callable[[], None]) -> None:
        """Call ``call`` before each commit, upstream steps first, to forward changes since the last one."""

    def at_close(self, call: Callable[[], None]) -> None:
        """Call ``call`` once when the task ends, for whatever reason, in the reverse order of binding."""

    def close_idle_after(self, milliseconds: int, horizon: int) -> None:
        """Let the step's clock follow the wall clock after ``milliseconds`` without a record.

        It stops ``horizon`` milliseconds after the last record, when all that the step holds is closed.
        """

    def schedule(self, every: int, on: TimeKind, call: Callable[[int], None]) -> Cancel:
        """Call ``call(time)`` each time stream time or the wall clock advances by ``every`` milliseconds."""

    @property
    def wall_clock(self) -> Callable[[], int]:
        """Returns the time in milliseconds since the epoch."""

    def follow_slices(self, follower: FollowsSlices) -> None:
        """Tell ``follower`` which slices of the task are complete, committed or undone."""

    def in_background(self, work: BackgroundWork) -> None:
        """Register work of the step that continues outside of the worker's thread."""

    @property
    def inline(self) -> bool:
        """Whether such work must run in the task's own thread: in tests and simulations."""

    def late(self, records: int, *, kept: int = 0) -> None:
        """Count records that were too late for the step; it has taken in ``kept`` of them all the same."""

    def timed_changes(self, store: str) -> TimedChanges:
        """The input records of a store's entries, shared by all steps of the task that use the store."""

    def derive(
        self,
        store: str | None,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        changed_by: Callable[[Rows], Sequence[Trace | None]] | None = None,
        lineage: Sequence[Ancestry | None] | None = None,
    ) -> Batch[Any, Any]:
        """A batch of records that come from a store, or from a timer, instead of from the input.

        ``changed_by`` returns the input records that last changed rows, as far as known, for error messages.
        It is called within the slice or the commit, if at all. ``lineage`` is what each row is made of, with
        the setting of that name.
        """


def fan_out(children: Children) -> Forward:
    """A function that forwards a batch to every child in turn."""
    targets = tuple(children.values())
    if len(targets) == 1:
        return targets[0]

    def forward(batch: Batch[Any, Any]) -> None:
        for target in targets:
            target(batch)

    return forward
