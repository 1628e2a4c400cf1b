"""Stop requests by signal, which a command polls."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """The signal that requested a stop, if any; true once one has been received."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.received is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record SIGTERM, SIGINT and SIGHUP instead of ending; the same signal again ends the process.

    Ignored signals, e.g. under ``nohup``, stay ignored.
    """
    stop = StopRequest()

    def note(number: int, _frame: object) -> None:
        stop.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)

    caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
