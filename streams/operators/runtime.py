"""What the steps of a task ask of whatever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.coroutines.event_loop import Calls
    from streams.origin import Origin
    from streams.records import Record


class Runtime(Protocol):
    """The time, what to do while user code is slow or waits, and input records once more.

    Where the open slice must be given up meanwhile, ``Interrupted`` is raised.
    """

    def wall_clock(self) -> int:
        """Milliseconds since the epoch."""

    def stopwatch(self) -> float:
        """Seconds since some moment: how long user code takes is measured with it."""

    def keep_alive(self) -> None:
        """Serve the group if it is due. Raises ``Interrupted``."""

    def wait(self, seconds: float, step: str, error: Exception) -> None:
        """Let time pass while serving the group, as ``step`` failed. Raises ``Interrupted``."""

    def attend(self, calls: Calls) -> None:
        """Wait until calls of an async function have ended, serving the group. Raises ``Interrupted``."""

    def originals(self, origins: Collection[Origin]) -> Mapping[Origin, Record[bytes | None, bytes | None]]:
        """The input records at these places, without those that cannot be read any more."""
