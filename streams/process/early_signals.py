"""Handle signals that arrive while the command is still importing modules.

The imports take about a second, and the kernel ignores unhandled signals of a container's process 1. So this
module imports nothing from the project and no library.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class EarlySignals:
    """SIGTERM and SIGINT end the process at once until ``forget``: no work has started yet.

    The exit code is 0 for ``a_worker``, which stops gracefully on a signal, else 128 + the signal's number.
    """

    def __init__(self, *, a_worker: bool) -> None:
        self._a_worker = a_worker
        self._before = [(number, signal.getsignal(number)) for number in SIGNALS]
        for number, handler in self._before:
            # Signals that are ignored, e.g. by a shell for its background jobs, stay ignored.
            if handler != signal.SIG_IGN:
                signal.signal(number, self._end)

    def forget(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before:
            signal.signal(number, handler)

    def _end(self, number: int, _frame: object) -> NoReturn:
        os._exit(0 if self._a_worker else 128 + number)
