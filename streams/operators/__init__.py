"""Built-in processors: what a step of a topology does, as plain data.

An operator is a frozen value. For each task it is bound once: ``bind`` closes over the steps that follow and
returns the function that takes batches, so that nothing is looked up or dispatched while records flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from streams.records import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.stdlib import BoundLogger

    from streams.eventtime.clock import StreamClock
    from streams.operators.guard import Guard
    from streams.operators.origins import TimedChanges
    from streams.operators.processor import Cancel, TimeKind
    from streams.records import Rows, Trace
    from streams.state.buffered import KeyValueState, WindowState
    from streams.state.definition import StoreDefinition

Forward: TypeAlias = Callable[[Batch[Any, Any]], None]
"""Takes a batch of at least one row to the next step."""

Children: TypeAlias = Mapping[str, Forward]
"""The steps that follow, by name, in the order they were declared."""


class Operator(Protocol):
    """What a step does with its batches."""

    @property
    def kind(self) -> str:
        """The operator's name in descriptions and in generated step names."""

    terminal: ClassVar[bool]
    """Whether a step may end a topology: it has an effect of its own."""

    @property
    def stamps(self) -> bool:
        """Whether the records it forwards have event times of their own, so that stream time begins anew."""

    @property
    def code(self) -> object:
        """The user's function or class, to name it in errors and generated names; ``None`` without one."""

    def bind(self, step: Binding, children: Children) -> Forward:
        """The operator at work in one task."""


class Binding(Protocol):
    """The task's side of a step, which operators are bound to."""

    @property
    def guard(self) -> Guard:
        """Runs the step's user code under its error policy."""

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
