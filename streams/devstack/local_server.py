"""What all servers have in common that are started here: their life, and their end with this process."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Self

from streams.devstack.server_state import ServerState
from streams.devstack.watcher import Watcher

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class LocalServer:
    """A server that ends with this process, for whatever reason.

    As a context manager, it stops the server at the end. ``folder`` has its data, and is deleted with a
    ``temporary`` one.
    """

    def __init__(self, folder: Path, *, temporary: bool) -> None:
        self.folder = folder
        self._temporary = temporary
        self._state = ServerState.STOPPED
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._watcher = Watcher(self._owner)
        atexit.register(self._close_at_exit)

    @property
    def pid(self) -> int | None:
        """The process id of the server, ``None`` while it is stopped."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def stop(self, *, timeout: float = 30.0) -> None:
        """Stop the server (SIGTERM); one that takes longer than ``timeout`` seconds is killed."""
        self._stop(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """Kill the server (SIGKILL), like a crash; its data is kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._ended()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay, and nothing is answered."""
        if self._process is not None and self._state is ServerState.RUNNING:
            self._signal(self._process, signal.SIGSTOP)
            self._enter(ServerState.PAUSED)

    def resume(self) -> None:
        """Continue a paused server (SIGCONT)."""
        if self._process is not None and self._state is ServerState.PAUSED:
            self._signal(self._process, signal.SIGCONT)
            self._enter(ServerState.RUNNING)

    def close(self) -> None:
        """Stop the server, and delete its folder if it is a temporary one. May be called twice."""
        if self._state is ServerState.CLOSED:
            return
        self.stop()
        self._enter(ServerState.CLOSED)
        self._watcher.close()
        atexit.unregister(self._close_at_exit)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self, number: signal.Signals, timeout: float) -> None:
        if (process := self._process) is None:
            return
        self._signal(process, number)
        if self._state is ServerState.PAUSED:
            self._signal(process, signal.SIGCONT)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._ended()

    def _signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send it to the server's process, if it has not ended."""
        process.send_signal(number)

    def _ended(self) -> None:
        self._process = None
        self._watcher.watch([])
        self._enter(ServerState.STOPPED)

    def _enter(self, state: ServerState) -> None:
        self._state = self._state.to(state)

    def _close_at_exit(self) -> None:
        # A forked child has this object too, but the server belongs to the parent.
        if os.getpid() == self._owner:
            self.close()
