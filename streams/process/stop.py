"""Stops by signal: heard whatever the main thread is doing, and over within a given time."""

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
"""How long a start may take to end once a signal has come, in a process that ends with it anyway."""

MARGIN_SECONDS = 1.0
"""So long before its time is over, a stop is ended: writing out the log takes time too."""

CHECK_SECONDS = 0.1


class _Stopped(BaseException):
    """A signal came before there was anything to finish.

    Not an ``Exception``, so that what is interrupted does not take it for an error of its own.
    """


class Phase(Enum):
    """How far the program is.

    ::

        STARTING ──> RUNNING ──> LEFT
            └─────────────────────^
    """

    STARTING = "starting"
    """A signal interrupts what the main thread does in ``call``."""
    RUNNING = "running"
    """A signal asks what runs to stop."""
    LEFT = "left"

    def may_become(self, other: Phase) -> bool:
        """Whether there is a way from here to there in one step."""
        return other is Phase.LEFT or (self is Phase.STARTING and other is Phase.RUNNING)


class StopSignals:
    """What SIGTERM and SIGINT do while it is entered. In other threads than the main one, it does nothing.

    When it is left, what these signals did before is back, and so is ``set_wakeup_fd``; numbers of other
    signals are passed on to that file meanwhile.

    Python calls signal handlers in the main thread alone, between two of its instructions: not while a
    library waits for a broker there. The signals' numbers are therefore read from a pipe by a thread of its
    own (``signal.set_wakeup_fd``), which also ends the process when the stop takes longer than ``seconds``:
    with exit code 0 where nothing is lost by that, else with that of ``NotCommitted``. Before anything is
    ``running``, that is after ``start_seconds``. ``end_process`` is called with the code.
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
            # None is what C code has set, which Python cannot set again.
            if handler is not None:
                signal.signal(number, handler)  # type: ignore[arg-type]  # as signal.signal returned it
        self._left.set()
        # The end of the file ends the thread.
        os.close(self._writer)

    def call(self, work: Callable[[], object]) -> bool:
        """Do some work, which a signal interrupts until it is ``running``. Returns whether one did."""
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

        ``unfinished`` tells whether ending the process now would leave something undone. Where the stop is
        not ``limited``, it may take any time.
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
        # Called by Python in the main thread, as soon as that comes to it.
        self._received = True
        if self._interruptible:
            # Once: it must not interrupt how the first interruption is dealt with.
            self._interruptible = False
            raise _Stopped

    def _listen(self) -> None:
        """Read the signals' numbers, in a thread of its own."""
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
        # What hangs may hold the log's lock.
        said = threading.Thread(target=self._say, args=(code,), name="streams-last-words", daemon=True)
        said.start()
        said.join(MARGIN_SECONDS / 2)
        flush_output()
        self._end_process(code)

    def _say(self, code: int) -> None:
        get_logger().error(Event.STOP_OVERDUE, code=code, stack=format_stacks(self._main))


def _nothing() -> None:
    return


def _never() -> bool:
    return False
