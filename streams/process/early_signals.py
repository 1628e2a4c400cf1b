"""Signals that come while the command is still being loaded.

Loading takes about a second, and a container's process 1 has no default actions: a signal that nothing
handles is lost there. So this imports nothing of the project and no library.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class EarlySignals:
    """SIGTERM and SIGINT end the process at once until ``forget``: nothing has begun that had to be finished.

    With exit code 0 for ``a_worker``, whose stop that is; else with 128 and the signal's number.
    """

    def __init__(self, *, a_worker: bool) -> None:
        self._a_worker = a_worker
        self._before = [(number, signal.getsignal(number)) for number in SIGNALS]
        for number, handler in self._before:
            # What is ignored, as by a shell for what it runs in the background, stays so.
            if handler != signal.SIG_IGN:
                signal.signal(number, self._end)

    def forget(self) -> None:
        """Let the signals do what they did before."""
        for number, handler in self._before:
            signal.signal(number, handler)

    def _end(self, number: int, _frame: object) -> NoReturn:
        os._exit(0 if self._a_worker else 128 + number)
