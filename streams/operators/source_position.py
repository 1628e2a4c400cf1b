"""The step that owns the position of a source connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from streams.operators import Operator, fan_out

if TYPE_CHECKING:
    from streams.operators import Binding, Children, Forward

POSITION = b"position"
"""The key of the position in its store."""


@dataclass(frozen=True, slots=True)
class SourcePosition(Operator):
    """Forwards batches unchanged. Its store has the position, which the task puts with each batch."""

    kind: ClassVar[str] = "position"
    terminal: ClassVar[bool] = True

    store: str

    def bind(self, step: Binding, children: Children) -> Forward:
        _ = step.clock  # the changelog of each store has a stream time
        return fan_out(children)
