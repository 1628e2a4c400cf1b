"""How long each broker has held back this process's clients because of quotas."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from streams.broker.throttling import Throttled

LONGEST_SECONDS: Final = 10.0
"""A broker may ask for minutes. Long before, the client gives the connection up, and learns from the next one
whether the quota still holds."""

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import ThrottleEvent

    from streams.broker.throttling import Role


@dataclass(slots=True)
class _Hold:
    """The time for which one broker holds back the clients of one kind."""

    seconds: float = 0.0
    """Up to ``until``."""
    until: float = -float("inf")


class ThrottleTimes:
    """Adds up the answers that say for how long a client has to wait. ``clock`` returns seconds.

    Clients call it in the threads in which they are used; any thread may read it. Several clients that are
    held back at the same time count once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._holds: dict[tuple[Role, str], _Hold] = {}

    def callback(
        self, role: Role, then: Callable[[ThrottleEvent], object] | None = None
    ) -> Callable[[ThrottleEvent], None]:
        """The ``throttle_cb`` of a client; ``then`` is that of the program."""
        return partial(self._note, role, then)

    def _note(self, role: Role, then: Callable[[ThrottleEvent], object] | None, event: ThrottleEvent) -> None:
        # A connection to a broker that is not known yet (-1) carries no records.
        if event.broker_id >= 0:
            self._hold(role, str(event.broker_id), min(event.throttle_time, LONGEST_SECONDS))
        if then is not None:
            then(event)

    def _hold(self, role: Role, broker: str, seconds: float) -> None:
        now = self._clock()
        with self._lock:
            hold = self._holds.setdefault((role, broker), _Hold())
            until = max(hold.until, now + seconds)
            hold.seconds += until - max(hold.until, now)
            hold.until = until

    def read(self) -> list[Throttled]:
        """For how long clients were held back up to now."""
        now = self._clock()
        with self._lock:
            return [
                Throttled(role, broker, hold.seconds - max(0.0, hold.until - now))
                for (role, broker), hold in self._holds.items()
            ]
