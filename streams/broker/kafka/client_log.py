"""librdkafka's log lines without repetitions: it reports each failed attempt to connect, for instance."""

from __future__ import annotations

import re
import time
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REPEAT_SECONDS: Final = 10.0
"""Lines of one kind are written at most this often."""

MOST_KINDS: Final = 1000
"""So many kinds are remembered; then all are forgotten, as texts may hold anything."""

# Which client, connection, attempt or offset a line is about makes no kind of its own.
_PARTICULARS = re.compile(r"\[[^\]]*#[^\]]*\]|\[thrd:[^\]]*\]|\d+|, identical error\(s\) suppressed")


class ClientLog:
    """Lets the first line of each kind through, then one every ``REPEAT_SECONDS`` with how many came since.

    Lines are of one kind that differ in numbers, clients and threads alone. Safe from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._kinds: dict[str, tuple[float, int]] = {}
        """Of each kind, when a line was last let through and how many have come since."""

    def admit(self, text: str) -> str | None:
        """The line to write for ``text``; ``None`` where it only repeats what was written a moment ago."""
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
