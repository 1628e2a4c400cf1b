"""Run several workers of one app as processes: start them, restart those that die, stop them together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.errors import (
    AccessDenied,
    ConfigurationError,
    ConnectorError,
    DeadLetterLimitExceeded,
    NotCommitted,
    OffsetOutOfRange,
    ProcessingError,
    StateError,
    WorkersFailed,
)
from streams.events import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

# A new process would fail again in the same way, on the same input, rights or state.
FINAL_CODES = {
    error.exit_code
    for error in (
        ConfigurationError,
        ProcessingError,
        DeadLetterLimitExceeded,
        AccessDenied,
        OffsetOutOfRange,
        StateError,
        ConnectorError,
    )
}

RESTARTS = 5
RESTART_WINDOW_SECONDS = 60.0
"""If a worker dies more than ``RESTARTS`` times within this time, the supervisor stops."""

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 15.0


@dataclass(slots=True)
class _Seat:
    """One worker process and its history; ``starts`` are times on the monotonic clock."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)
    start_at: float = 0.0


class Supervisor:
    """Keeps ``workers`` processes of one command running.

    ``--supervised-by FD`` is appended to the command: the reading end of a pipe that closes when this process
    ends, for whatever reason, so that no worker outlives it. ``stop_timeout`` is in seconds.
    """

    def __init__(self, command: Sequence[str], workers: int, *, stop_timeout: float = 15.0) -> None:
        self._command = list(command)
        self._seats = [_Seat(number) for number in range(workers)]
        self._stop_timeout = stop_timeout
        self._stop = threading.Event()
        self._log = get_logger()
        self._alive_end, self._held_end = os.pipe()

    def request_stop(self) -> None:
        """Stop all workers gracefully. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> int:
        """Run until stopped, and return the exit code: 0, or that of a worker with a final failure.

        If a worker did not stop successfully, it is that worker's exit code, or that of ``NotCommitted`` if
        it had to be killed. Raises ``WorkersFailed`` if a worker dies too often.
        """
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._log.info(Event.SUPERVISOR_STARTED, workers=len(self._seats))
        ended, stopped = None, 0
        try:
            while not self._stop.is_set() and ended is None:
                ended = self._check_workers()
                if ended is None:
                    self._stop.wait(0.05)
        finally:
            stopped = self._stop_all()
            os.close(self._held_end)
            os.close(self._alive_end)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return stopped if ended is None else ended

    def _on_signal(self, number: int, _frame: object) -> None:
        self._log.info(Event.STOP_REQUESTED, signal=signal.Signals(number).name)
        self.request_stop()

    def _check_workers(self) -> int | None:
        """Start workers that should run; the exit code of a worker that failed finally, else ``None``."""
        now = time.monotonic()
        for seat in self._seats:
            if seat.process is None:
                if now >= seat.start_at:
                    self._start(seat, now)
                continue
            code = seat.process.poll()
            if code is None:
                continue
            pid, seat.process = seat.process.pid, None
            if code in FINAL_CODES:
                self._log.error(Event.PROCESS_EXITED, worker=seat.number, pid=pid, code=code)
                return code
            self._schedule(seat, pid, code, now)
        return None

    def _start(self, seat: _Seat, now: float) -> None:
        seat.process = subprocess.Popen(
            [*self._command, "--supervised-by", str(self._alive_end)],
            pass_fds=(self._alive_end,),
            # Ctrl-C goes to the terminal's whole process group; only the supervisor forwards it, once.
            start_new_session=True,
        )
        seat.starts.append(now)
        self._log.info(Event.PROCESS_STARTED, worker=seat.number, pid=seat.process.pid)

    def _schedule(self, seat: _Seat, pid: int, code: int, now: float) -> None:
        seat.starts = [start for start in seat.starts if now - start < RESTART_WINDOW_SECONDS]
        if len(seat.starts) > RESTARTS:
            raise WorkersFailed(
                f"worker {seat.number} died {len(seat.starts)} times within {RESTART_WINDOW_SECONDS:.0f} s, "
                f"last with exit code {code}",
                hint="its log lines above have the cause; docs/command-line.md lists the exit codes",
            )
        delay = min(FIRST_BACKOFF_SECONDS * 2 ** max(0, len(seat.starts) - 1), LONGEST_BACKOFF_SECONDS)
        seat.start_at = now + delay
        self._log.error(
            Event.PROCESS_EXITED, worker=seat.number, pid=pid, code=code, restarted_in_seconds=delay
        )

    def _stop_all(self) -> int:
        """Stop all workers, and return 0, or the exit code of the first that did not stop successfully."""
        running = [seat.process for seat in self._seats if seat.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._stop_timeout
        first = 0
        for process in running:
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            # A process that has not installed its signal handlers yet has not processed anything.
            good = code in (0, -signal.SIGTERM)
            level = self._log.info if good else self._log.error
            level(Event.PROCESS_EXITED, pid=process.pid, code=code)
            if not good:
                first = first or (code if code > 0 else NotCommitted.exit_code)
        return first


def follow_supervisor(descriptor: int) -> None:
    """Stop this process gracefully when the supervisor, which holds the pipe's other end, has ended."""

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="streams-supervised", daemon=True).start()
