"""What flows between steps of tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from streams.operators import fan_out

if TYPE_CHECKING:
    from streams.operators import Binding, Children, Forward
    from streams.records import Batch


class Change(NamedTuple):
    """A change to the value of one key; ``None`` where there is none. ``old`` is told if a step asks for it."""

    new: Any
    old: Any


@dataclass(frozen=True, slots=True)
class ToStream:
    """Turns changes into records with the new values: a deletion is a tombstone."""

    kind: ClassVar[str] = "to_stream"
    terminal: ClassVar[bool] = False
    stamps: ClassVar[bool] = False

    @property
    def code(self) -> object:
        return None

    def bind(self, step: Binding, children: Children) -> Forward:  # noqa: ARG002 - nothing of the step is needed
        forward = fan_out(children)

        def run(batch: Batch[Any, Any]) -> None:
            forward(batch.with_values([new for new, _ in batch.values]))

        return run


@dataclass(frozen=True, slots=True)
class View:
    """How the value that a table has for a key is found: in a store, then through functions in order.

    Each function comes with its kind: ``result`` and ``map`` replace the value, ``filter`` takes it away where
    it is false.
    """

    store: str
    functions: tuple[tuple[str, Any], ...]

    def then(self, kind: str, function: Any) -> View:
        """The view with one more function."""
        return View(self.store, (*self.functions, (kind, function)))
