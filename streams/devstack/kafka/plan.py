"""The plan of a cluster: the caller's arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streams.devstack.kafka.security import Security


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of nodes, their folder, and how they are started. ``port`` is the first node's."""

    folder: Path
    nodes: int = 1
    heap_mb: int = 512
    port: int | None = None
    properties: Mapping[str, object] = field(default_factory=dict)
    timeout: float = 60.0
    security: Security | None = None
    detached: bool = False
    java_options: Sequence[str] = ()

    @property
    def requested_ports(self) -> list[int]:
        """The ports for clients that the caller chose, if any."""
        return list(range(self.port, self.port + self.nodes)) if self.port is not None else []
