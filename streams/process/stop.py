"""Stops by signal: noticed whatever the main thread is doing, and finished within a given time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from enum import Enum
from typing import TYPE_CHECKING

from streams.errors import NotCommitted
from streams.events import Event, get_logger
from streams.process.stacks import flush_output, format_stacks

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)

START_SECONDS = 2.0
"""How long the start of a worker may take to end after a signal, in the worker's own process."""

MARGIN_SECONDS = 1.0
"""A stop is ended this long before its time is over, because writing the log takes time too."""

CHECK_SECONDS = 0.1


class _Stopped(BaseException):
    """Raised when a signal arrives before there is any work to finish.

    Not an ``Exception``, so that the interrupted code does not handle it as an error.
    """


class Phase(Enum):
    """The phase of the program.

    ::

        STARTING ──> RUNNING ──> LEFT
            └─────────────────────^
    """

    STARTING = "starting"
    """A signal interrupts the main thread in ``call`` by an exception."""
    RUNNING = "running"
    """A signal calls ``stop``."""
    LEFT = "left"

    def may_become(self, other: Phase) -> bool:
        """Whether the transition to ``other`` is allowed."""
        return other is Phase.LEFT or (self is Phase.STARTING and other is Phase.RUNNING)


class StopSignals:
    """Handles SIGTERM and SIGINT while it is entered. In threads other than the main one it does nothing.

    On exit, the previous handlers and the previous ``set_wakeup_fd`` are restored; until then, the numbers of
    other signals are forwarded to that file.

    Python calls signal handlers only in the main thread, between two bytecode instructions, and not while a
    library waits for a broker there. So another thread reads the signals' numbers from a pipe
    (``signal.set_wakeup_fd``). A further thread ends the process if the stop takes longer than ``seconds``:
    with exit code 0 if everything is committed, else with that of ``NotCommitted``. Before ``running`` is
    called, the limit is ``start_seconds``. ``end_process`` is called with the exit code.
    """

    def __init__(
        self,
        seconds: float,
        *,
        start_seconds: float = START_SECONDS,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._seconds = max(seconds - MARGIN_SECONDS, seconds / 2)
        self._start_seconds = min(start_seconds, self._seconds)
        self._end_process = end_process
        self._phase = Phase.STARTING
        self._interruptible = False
        self._received = False
        self._stop: Callable[[], None] = _nothing
        self._unfinished: Callable[[], bool] = _never
        self._limited = True
        self._left = threading.Event()
        self._signalled_at: float | None = None
        self._handlers: list[tuple[int, object]] = []
        self._wakeup_before = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._main = threading.get_ident()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, name="streams-signals", daemon=True)
        self._thread.start()
        for number in SIGNALS:
            self._handlers.append((number, signal.signal(number, self._handle)))
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._become(Phase.LEFT)
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers:
            # None stands for a handler set by C code, which Python cannot restore.
            if handler is not None:
                signal.signal(number, handler)  # type: ignore[arg-type]  # as signal.signal returned it
        self._left.set()
        # Closing the pipe ends the thread that reads it.
        os.close(self._writer)

    def call(self, work: Callable[[], object]) -> bool:
        """Call ``work``, which a signal interrupts until ``running`` is called. Returns whether one did."""
        try:
            try:
                self._interruptible = True
                if self._received:
                    return True
                work()
            finally:
                self._interruptible = False
        except _Stopped:
            return True
        return False

    def running(
        self,
        stop: Callable[[], None],
        unfinished: Callable[[], bool] = lambda: False,
        *,
        limited: bool = True,
    ) -> None:
        """From here on, a signal calls ``stop``, in another thread.

        ``unfinished`` returns whether something processed is not committed. A stop that is not ``limited``
        may take any time.
        """
        self._stop, self._unfinished, self._limited = stop, unfinished, limited
        self._interruptible = False
        self._become(Phase.RUNNING)
        if self._signalled_at is not None:
            stop()

    def _become(self, phase: Phase) -> None:
        assert self._phase.may_become(phase), f"{self._phase.value} to {phase.value}"
        self._phase = phase

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        # Python calls it in the main thread, once that executes bytecode again.
        self._received = True
        if self._interruptible:
            # Only once: a second signal must not interrupt the handling of the first.
            self._interruptible = False
            raise _Stopped

    def _listen(self) -> None:
        """Read the signals' numbers; runs in a separate thread."""
        while number := os.read(self._reader, 1):
            if number[0] not in SIGNALS:
                if self._wakeup_before >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._wakeup_before, number)
                continue
            get_logger().info(Event.STOP_REQUESTED, signal=signal.Signals(number[0]).name)
            first = self._signalled_at is None
            if first:
                self._signalled_at = time.monotonic()
            if self._phase is Phase.RUNNING:
                self._stop()
            if first:
                threading.Thread(target=self._end_late, name="streams-exit", daemon=True).start()
        os.close(self._reader)

    def _end_late(self) -> None:
        """End the process when the time is over."""
        assert self._signalled_at is not None
        while not self._left.wait(CHECK_SECONDS):
            passed = time.monotonic() - self._signalled_at
            if self._phase is Phase.STARTING:
                if passed > self._start_seconds:
                    self._end(0)
                    return
            elif self._limited and passed > self._seconds / 2:
                unfinished = self._unfinished()
                if not unfinished or passed > self._seconds:
                    self._end(NotCommitted.exit_code if unfinished else 0)
                    return

    def _end(self, code: int) -> None:
        # Logged in another thread with a time-out, because the thread that hangs may hold the log's lock.
        report = threading.Thread(target=self._report, args=(code,), name="streams-last-words", daemon=True)
        report.start()
        report.join(MARGIN_SECONDS / 2)
        flush_output()
        self._end_process(code)

    def _report(self, code: int) -> None:
        get_logger().error(Event.STOP_OVERDUE, code=code, stack=format_stacks(self._main))


def _nothing() -> None:
    return


def _never() -> bool:
    return False
