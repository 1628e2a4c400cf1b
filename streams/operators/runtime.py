"""The interface of the runtime for the steps of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.coroutines.event_loop import Calls
    from streams.origin import Origin
    from streams.records import Record


class Runtime(Protocol):
    """Clocks, waiting while the group is served, and reading input records again.

    ``Interrupted`` is raised if the open slice must be abandoned meanwhile.
    """

    @property
    def inline(self) -> bool:
        """Whether background work must run in the thread that runs the steps: in tests and simulations."""

    def wall_clock(self) -> int:
        """Milliseconds since the epoch."""

    def stopwatch(self) -> float:
        """Seconds of a monotonic clock, to measure how long user code takes."""

    def keep_alive(self) -> None:
        """Serve the consumer group if it is due. Raises ``Interrupted``."""

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Wait while serving the group, before ``step`` is retried. Raises ``Interrupted``."""

    def attend(self, calls: Calls) -> None:
        """Wait until calls of an async function have ended, serving the group. Raises ``Interrupted``."""

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        """Read the input records at these places; those that no longer exist are missing in the result."""
