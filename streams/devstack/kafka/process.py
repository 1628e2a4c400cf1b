"""A server's process: a child of this process, or detached from it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from streams.devstack.kafka.java import java_environment
from streams.process.identity import ProcessIdentity

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from streams.process.identity import ProcessStatus


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A node's process. If it is a child of this process, ``status`` also reaps it."""

    identity: ProcessIdentity
    child: subprocess.Popen[bytes] | None = None

    @classmethod
    def owned(cls, command: list[str], folder: Path, log_file: Path) -> Self:
        """Start a program in ``folder``, its output appended to ``log_file``, as a child of this one."""
        # A new session, so that Ctrl-C only reaches this program, which then stops the nodes.
        with log_file.open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=java_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return cls(ProcessIdentity.of(child.pid), child)

    @classmethod
    def detached(cls, command: list[str], folder: Path, log_file: Path) -> Self:
        """Start a program as ``owned`` does, but through a shell that exits, so that it is not a child."""
        pid = subprocess.run(
            ["/bin/sh", "-c", '"$@" >>"$0" 2>&1 & echo $!', str(log_file), *command],
            cwd=folder,
            env=java_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            check=True,
        ).stdout
        return cls(ProcessIdentity.of(int(pid)))

    def status(self) -> ProcessStatus | None:
        """The status of the process, ``None`` once it has ended."""
        status = self.identity.status()
        if status is None and self.child is not None:
            self.child.wait()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process has not ended."""
        if self.status() is not None:
            self.identity.signal(number)


def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Return whether ``condition`` became true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
