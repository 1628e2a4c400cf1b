"""Built-in processors: what a step of a topology does, as plain data.

An operator is a frozen value. For each task it is bound once: ``bind`` closes over the steps that follow and
returns the function that takes batches, so that nothing is looked up or dispatched while records flow.
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
    from streams.operators.guard import Guard
    from streams.operators.origins import TimedChanges
    from streams.operators.processor import Cancel, TimeKind
    from streams.records import Fetched, Output, Rows, Trace
    from streams.state.buffered import KeyValueState, WindowState
    from streams.state.definition import StoreDefinition

Forward: TypeAlias = Callable[[Batch[Any, Any]], None]
"""Takes a batch of at least one row to the next step."""

Receive: TypeAlias = "Callable[[Fetched], None]"
"""Takes records as the broker delivered them into a topology."""

Children: TypeAlias = Mapping[str, Forward]
"""The steps that follow, by name, in the order they were declared."""


class NodeOperator(ABC):
    """What any node of a topology says about what it does. Defaults are those of most operators.

    Subclasses are frozen dataclasses. None has a field of these names without a default of its own: that
    would be the property here.
    """

    __slots__ = ()

    terminal: ClassVar[bool] = False
    """Whether a step may end a topology: it has an effect of its own."""

    awaits: ClassVar[bool] = False
    """Whether ``code`` is an async function."""

    makes_processors: ClassVar[bool] = False
    """Whether ``code`` makes a processor, for each task."""

    needs_old: ClassVar[bool] = False
    """Whether the changes of a table that reach it must have the old values too."""

    passes_changes: ClassVar[bool] = False
    """Whether it forwards changes of a table as it gets them: with old values if a later step needs these."""

    forwards_at_commits: ClassVar[bool] = False
    """Whether what it forwards depends on when commits are made."""

    order_depends_on_slices: ClassVar[bool] = False
    """Whether the order in which it forwards depends on how the input is cut into slices."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The operator's name in descriptions and in generated step names."""

    @property
    def stamps(self) -> bool:
        """Whether the records it forwards have event times of their own, so that stream time begins anew."""
        return False

    @property
    def code(self) -> object:
        """The user's function or class, to name it in errors and generated names; ``None`` without one."""
        return None

    @property
    def least_slice(self) -> int:
        """How many records a slice should have at least."""
        return 1

    @property
    def close_idle_after(self) -> int | None:
        """After how many milliseconds without a record its clock follows the wall clock; ``None``: never."""
        return None

    @property
    def idle_reach(self) -> int:
        """So many milliseconds after ``close_idle_after`` at the latest, all that it holds is closed."""
        return 0

    def forwards_at_commits_to(self, child: str) -> bool:  # noqa: ARG002 - for those whose children differ
        """``forwards_at_commits``, for one of the steps that follow."""
        return self.forwards_at_commits


class Operator(NodeOperator):
    """What a step or a sink does with its batches."""

    __slots__ = ()

    @abstractmethod
    def bind(self, step: Binding, children: Children) -> Forward:
        """The operator at work in one task."""


class Refusals(Protocol):
    """Rows that the broker has refused, to be met again."""

    def __bool__(self) -> bool:
        """Whether there are any."""

    def meet(self, place: Hashable) -> Exception | None:
        """Why the row at that place (``RowOwner.place``) was refused, if it was."""


class Binding(Protocol):
    """The task's side of a node, which operators are bound to.

    The first part is for sources and sinks, the rest for steps; all have a guard.
    """

    @property
    def guard(self) -> Guard:
        """Runs the node's user code under its error policy."""

    def reading(self, fetched: Fetched, payloads: Sequence[bytes | None]) -> None:
        """Note what the slice that is open reads, and count the bytes of its values."""

    def decoded(self, seconds: float) -> None:
        """Count what of the slice's time went into decoding."""

    def sent_before(self, topic: str, batch: Batch[Any, Any]) -> Sequence[Batch[Any, Any]]:
        """The batches that the slice has brought this sink for the topic before this one."""

    @property
    def refused(self) -> Refusals:
        """The worker's refused rows; the same object for as long as the task lives."""

    def emit(self, output: Output) -> None:
        """Leave encoded rows with the task, to be written once the slice is through."""

    @property
    def subtopology(self) -> int: ...

    @property
    def partition(self) -> int: ...

    @property
    def log(self) -> BoundLogger:
        """For log lines of the program's own, with the app, the step and the task."""

    @property
    def clock(self) -> StreamClock:
        """Stream time of the records that reach the step; asking for it makes the task keep it."""

    @property
    def sends_old(self) -> bool:
        """Whether a step that follows a table step needs the old value of each change."""

    def state(self, name: str) -> KeyValueState[Any, Any]:
        """A plain store that the step owns or uses."""

    def windows(self, name: str) -> WindowState[Any, Any]:
        """A windowed store that the step owns or uses."""

    def definition(self, name: str) -> StoreDefinition:
        """What the topology says about a store that the step owns or uses."""

    def lookup(self, name: str) -> Callable[[Sequence[Any]], list[Any]]:
        """Reads a global table: the values of several keys, ``None`` where there is none."""

    def at_slice_end(self, call: Callable[[], None]) -> None:
        """Call it when all records of a slice have been through, steps before later ones: to close windows.

        Also when stream time moved without a record.
        """

    def at_commit(self, call: Callable[[], None]) -> None:
        """Call it before each commit, steps before later ones: to forward what changed since the last."""

    def at_close(self, call: Callable[[], None]) -> None:
        """Call it once, when the task ends for whatever reason: steps in reverse of the order of binding."""

    def close_idle_after(self, milliseconds: int, horizon: int) -> None:
        """Let the step's clock follow the wall clock after so long without a record.

        ``horizon`` (milliseconds) behind the last record, all that the step holds is closed: so far it goes.
        """

    def schedule(self, every: int, on: TimeKind, call: Callable[[int], None]) -> Cancel:
        """Call it with the time whenever ``every`` milliseconds of stream time or wall clock have passed."""

    def late(self, records: int) -> None:
        """Count records that came too late for what the step computes."""

    def timed_changes(self, store: str) -> TimedChanges:
        """The input records of what waits in a store, for all steps of the task that use the store."""

    def derive(
        self,
        store: str | None,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        changed_by: Callable[[Rows], Sequence[Trace | None]] | None = None,
    ) -> Batch[Any, Any]:
        """A batch of records that come from a store, or from a timer, instead of from the input.

        ``changed_by`` finds the input records that last changed rows, as far as known: what an error names.
        It is called within the slice, or the commit, if at all.
        """


def fan_out(children: Children) -> Forward:
    """One function that hands a batch to every child in turn."""
    targets = tuple(children.values())
    if len(targets) == 1:
        return targets[0]

    def forward(batch: Batch[Any, Any]) -> None:
        for target in targets:
            target(batch)

    return forward
