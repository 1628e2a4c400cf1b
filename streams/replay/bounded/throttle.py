"""Limits how fast a replay reads, in records and bytes a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streams.records import total_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.records import Fetched


class Throttle:
    """Waits after records were read, so that on average no more than the limits are read.

    ``records`` and ``bytes_`` (keys and values, as they are stored) are limits a second, of this process.
    """

    def __init__(
        self,
        records: float | None = None,
        bytes_: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._records = records
        self._bytes = bytes_
        self._clock = clock
        self._pause = pause
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
            now = self._clock()
            self._free_at = max(self._free_at, now) + seconds
            self._pause(self._free_at - now)
