"""Limits how fast a replay reads, in records and bytes a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streams.records import total_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.records import Fetched


LOOK_SECONDS: Final = 0.25


class Throttle:
    """Waits after records were read, so that on average no more than the limits are read.

    ``records`` and ``bytes_`` (keys and values, as they are stored) are limits a second, of this process.
    ``look`` is called every quarter of a second of a wait, which may be minutes long; it raises to end it.
    """

    def __init__(
        self,
        records: float | None = None,
        bytes_: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._records = records
        self._bytes = bytes_
        self._clock = clock
        self._pause = pause
        self._look = look
        self._free_at = -float("inf")
        """When the records read so far are paid for."""

    def spend(self, fetched: Fetched) -> None:
        """Note that records were read, and wait for as long as they take at the limits."""
        seconds = 0.0
        if self._records is not None:
            seconds = len(fetched) / self._records
        if self._bytes is not None:
            size = total_bytes(fetched.keys()) + total_bytes(fetched.values())
            seconds = max(seconds, size / self._bytes)
        if seconds:
            self._free_at = max(self._free_at, self._clock()) + seconds
            while (left := self._free_at - self._clock()) > 0:
                self._pause(min(left, LOOK_SECONDS))
                self._look()
