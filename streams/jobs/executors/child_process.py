"""A worker's view of one process that executes jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from streams.jobs.executors.process_messages import FromChild, Setup, ToChild, decode_from_child, encode

_PROGRAM = (
    "import json, sys\n"
    "path = json.loads(sys.argv[1])\n"
    # The program's folder may have a streams.py of its own.
    "sys.path[:] = [sys.argv[2], *path]\n"
    "from streams.jobs.executors.child import main\n"
    "sys.path[:] = path\n"
    "main(int(sys.argv[3]), int(sys.argv[4]))\n"
)

EXIT_SECONDS = 1.0
"""How long a process may take to exit after it has closed its connection, before it is killed."""

_PACKAGE_FOLDER = str(Path(__file__).parents[3])


class ChildProcess:
    """Starts a process for jobs, which ends with this one, whatever ends it. One thread uses it.

    It is a new program, not a fork: a fork would have locks and sockets of librdkafka and RocksDB without
    their threads. It has a session of its own, so that Ctrl-C in a terminal reaches only the worker.
    """

    def __init__(self) -> None:
        self._killed = False
        self._connection, theirs = Pipe()
        alive, self._held = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _PROGRAM,
                    json.dumps(sys.path),
                    _PACKAGE_FOLDER,
                    str(theirs.fileno()),
                    str(alive),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), alive),
                start_new_session=True,
            )
        except BaseException:
            self._connection.close()
            os.close(self._held)
            raise
        finally:
            theirs.close()
            os.close(alive)
        with contextlib.suppress(OSError):
            # If it has ended already, the first order finds that.
            self.send(_setup())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def connection(self) -> Connection[Any, Any]:
        """Readable when a message has arrived, or it has ended."""
        return self._connection

    def send(self, message: ToChild) -> None:
        """Send a message. Raises ``OSError`` if it has ended."""
        self._connection.send_bytes(encode(message))

    def receive(self, seconds: float) -> FromChild | None:
        """The next message; ``None`` if none arrives in time. Raises ``EOFError`` if it has ended."""
        try:
            if not self._connection.poll(seconds):
                return None
            return decode_from_child(self._connection.recv_bytes())
        except OSError as error:
            raise EOFError from error

    def ended(self) -> str:
        """How the process has ended, in words, once its end of the connection is closed."""
        deadline = time.monotonic() + EXIT_SECONDS
        while not self._has_exited() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.kill()
        code = self._process.returncode
        if code >= 0:
            return f"it exited with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = ", e.g. because memory ran out" if -code == signal.SIGKILL else ""
        return f"it was ended by {name}{memory}"

    def kill(self) -> None:
        """End the process, and those that it has started, and wait until it has ended. From any thread."""
        if not self._killed:
            self._killed = True
            # Before its exit code is taken, which frees its id for another process.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _has_exited(self) -> bool:
        """Whether it has ended, without taking its exit code."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def close(self) -> None:
        """End the process and close the connection."""
        self.kill()
        self._connection.close()
        os.close(self._held)


def _setup() -> Setup:
    main: Any = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    path = getattr(main, "__file__", None)
    return Setup(
        sys.argv,
        None if spec is None else spec.name,
        None if spec is not None or path is None else str(Path(path).absolute()),
    )
