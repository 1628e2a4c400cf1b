"""Built-in processors: what a step of a topology does, as plain data.

An operator is a frozen value. For each task it is bound once: ``bind`` closes over the steps that follow and
returns the function that takes batches, so that nothing is looked up or dispatched while records flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from streams.records import Batch

if TYPE_CHECKING:
    from streams.guard import Guard

Forward: TypeAlias = Callable[[Batch[Any, Any]], None]
"""Takes a batch of at least one row to the next step."""

Children: TypeAlias = Mapping[str, Forward]
"""The steps that follow, by name, in the order they were declared."""


class Operator(Protocol):
    """What a step does with its batches."""

    kind: ClassVar[str]
    """The operator's name in descriptions and in generated step names."""

    terminal: ClassVar[bool]
    """Whether a step may end a topology: it has an effect of its own."""

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


def fan_out(children: Children) -> Forward:
    """One function that hands a batch to every child in turn."""
    targets = tuple(children.values())
    if len(targets) == 1:
        return targets[0]

    def forward(batch: Batch[Any, Any]) -> None:
        for target in targets:
            target(batch)

    return forward
