"""Suppress repetitions in librdkafka's log, which e.g. has a line for each failed connection attempt."""

from __future__ import annotations

import re
import time
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REPEAT_SECONDS: Final = 10.0
"""The minimum time between two written lines of the same kind."""

MOST_KINDS: Final = 1000
"""The maximum number of kinds that are remembered; at the limit, all are forgotten."""

# Lines that differ only in client, connection, attempt or offset are of the same kind.
_PARTICULARS = re.compile(r"\[[^\]]*#[^\]]*\]|\[thrd:[^\]]*\]|\d+|, identical error\(s\) suppressed")


class ClientLog:
    """Passes the first line of each kind, then one every ``REPEAT_SECONDS`` with the number suppressed.

    Lines that differ only in numbers, clients and threads are of the same kind. It is thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._kinds: dict[str, tuple[float, int]] = {}
        """For each kind, when a line was last written, and how many were suppressed since."""

    def admit(self, text: str) -> str | None:
        """The line to write for ``text``; ``None`` if it is suppressed as a repetition."""
        kind = _PARTICULARS.sub("", text)
        now = self._clock()
        with self._lock:
            if len(self._kinds) > MOST_KINDS:
                self._kinds.clear()
            written, left_out = self._kinds.get(kind, (None, 0))
            if written is not None and now - written < REPEAT_SECONDS:
                self._kinds[kind] = written, left_out + 1
                return None
            self._kinds[kind] = now, 0
        return f"{text} ({left_out} more lines like it)" if left_out else text
