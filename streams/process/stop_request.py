"""A stop that a signal asks a command for, and that the command sees when it looks."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Which signal has asked for a stop, if one has."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.received is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGINT and SIGHUP instead of ending; a second one of a kind ends the process.

    Signals that are ignored, as under ``nohup``, stay so.
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
