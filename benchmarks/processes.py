"""Starts the systems' processes, and makes sure that all of them end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP_SECONDS = 20.0
BLOCK_BYTES = 512
"""The unit of ``st_blocks``, on every operating system."""

# A separate process, which survives a SIGKILL of this one: it kills the peer unless it reads a line first.
_WATCHER = """
import os, signal, sys
if not sys.stdin.readline():
    try:
        os.kill(int(sys.argv[1]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class PeerFailed(Exception):
    """A system's process ended early; the message has its last output."""


class Peer:
    """A process that runs until the context is left, in its own folder, which is then removed."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self._folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=log.parent))
        # This library's settings in the environment would override those of the benchmark.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("STREAMS_", "Quix__"))
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(self.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def state_bytes(self) -> int:
        """Current disk usage of its state in bytes."""
        total = 0
        for folder, _, names in os.walk(self._folder / "state"):
            for name in names:
                # Stores may remove files at any time.
                with contextlib.suppress(FileNotFoundError):
                    total += Path(folder, name).stat().st_blocks * BLOCK_BYTES
        return total

    def check(self) -> None:
        """Raise ``PeerFailed`` if the process has ended."""
        code = self._process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()
            raise PeerFailed("\n".join([f"ended with exit code {code}:", *lines[-15:]]))

    def wait(self, timeout: float) -> None:
        """Wait until the process has ended by itself. Raises ``PeerFailed`` unless its exit code is 0."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"still runs after {timeout:.0f} s") from None
        if code:
            self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watcher.communicate(b"over\n")
        shutil.rmtree(self._folder, ignore_errors=True)
