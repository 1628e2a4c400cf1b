"""A watcher process that ends the servers if this process is killed and cannot do so itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Runs in a separate process, which survives a SIGKILL of this one and then ends the servers. Each line that
# it reads has their process ids. It also checks its parent, as a forked child may keep the pipe open.
_PROGRAM = """
import os, select, signal, sys
pids = []
while True:
    if select.select([0], [], [], 1.0)[0]:
        text = os.read(0, 65536)
        if not text:
            break
        pids = [int(word) for word in text.splitlines()[-1].split()]
    elif os.getppid() != int(sys.argv[1]):
        break
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Watcher:
    """Kills the watched processes when the process ``owner`` has ended, even by SIGKILL."""

    def __init__(self, owner: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(owner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pids: Iterable[int]) -> None:
        """Set the processes to kill, in place of the earlier ones."""
        assert self._process.stdin is not None
        line = " ".join(map(str, pids))
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """End the watcher, after the watched processes have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
