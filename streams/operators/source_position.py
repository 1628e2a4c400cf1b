"""The step that owns the position of a source connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from streams.operators import Operator, fan_out

if TYPE_CHECKING:
    from streams.operators import Binding, Children, Forward

POSITION = b"position"
"""The key of the position in its store."""
STATE = b"state"
"""The key of the source's own state there."""


@dataclass(frozen=True, slots=True)
class SourcePosition(Operator):
    """Forwards batches unchanged. The task puts the position and the source's state into its store."""

    kind: ClassVar[str] = "position"
    terminal: ClassVar[bool] = True

    store: str

    def bind(self, step: Binding, children: Children) -> Forward:
        _ = step.clock  # the changelog of each store has a stream time
        return fan_out(children) if children else step.account.ended
