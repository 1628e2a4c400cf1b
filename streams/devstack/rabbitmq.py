"""A real RabbitMQ on this machine, for development and tests: no Docker, and no service of the system.

The programs are those of the package ``rabbitmq-server``; node, folder and ports are the server's own. It
listens on 127.0.0.1 only, where every user of this machine may connect as ``guest``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from streams.devstack.kafka.folders import last_lines
from streams.devstack.kafka.ports import PortTaken, free_ports, require_free
from streams.devstack.local_server import LocalServer
from streams.devstack.rabbitmq_programs import find_programs
from streams.devstack.server_state import ServerState
from streams.errors import LocalRabbitMQError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from io import BufferedWriter

_SETTINGS: Final = {
    "log.console": "true",
    "log.console.level": "warning",
    "log.file": "false",
    "vm_memory_high_watermark.absolute": "1GB",
    "disk_free_limit.absolute": "50MB",
}

# The server's distribution and its name service stay on loopback, and idle schedulers sleep.
_ERLANG: Final = (
    "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false "
    "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
)

END_SECONDS: Final = 10.0
"""How long the end of a killed server may take."""

_GREETING: Final = b"AMQP\x00\x00\x09\x01"


class _PortsTaken(LocalRabbitMQError):
    """Another program uses one of the ports; others may work."""


class LocalRabbitMQ(LocalServer):
    """A RabbitMQ server. Create it with :meth:`create`."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        settings: Mapping[str, str],
        plugins: Sequence[str],
        erlang_arguments: str,
        *,
        temporary: bool,
    ) -> None:
        super().__init__(folder, temporary=temporary)
        self.port, self._distribution_port, self._names_port = ports
        self.log_file = folder / "rabbitmq.log"
        self._programs = find_programs()
        self._settings = settings
        self._plugins = plugins
        self._erlang_arguments = erlang_arguments
        self._names: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str:
        """Why no server can be started on this machine; empty if one can."""
        try:
            find_programs()
        except LocalRabbitMQError as error:
            return error.message
        return ""

    @classmethod
    def create(
        cls,
        folder: str | Path | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, object] | None = None,
        plugins: Sequence[str] = (),
        erlang_arguments: str = "",
        timeout: float = 90.0,
    ) -> Self:
        """Start a server with a folder of its own.

        ``folder`` keeps the data; if it has some already, that is used. Without it, a temporary folder is
        deleted at the end. Without ``port`` a free one is chosen. ``settings`` are the server's (as in
        ``rabbitmq.conf``), ``plugins`` the names of those to be enabled, ``erlang_arguments`` more words for
        the virtual machine.

        :raises LocalRabbitMQError: there is no package, or the server was not ready in ``timeout`` seconds.
        """
        find_programs()
        temporary = folder is None
        place = Path(tempfile.mkdtemp(prefix="streams-rabbitmq-") if folder is None else folder).resolve()
        chosen = {**_SETTINGS, **{name: str(value) for name, value in (settings or {}).items()}}
        made = cls(place, cls._ports(port), chosen, plugins, erlang_arguments, temporary=temporary)
        try:
            while True:
                try:
                    made.start(timeout=timeout)
                except _PortsTaken:
                    # Another program took one after it was chosen.
                    if port is not None:
                        raise
                    made.port, made._distribution_port, made._names_port = cls._ports(None)
                else:
                    return made
        except BaseException:
            made.close()
            raise

    @staticmethod
    def _ports(port: int | None) -> list[int]:
        """Of clients, of other nodes, and of the nodes' name service."""
        return free_ports(3) if port is None else [port, *free_ports(2, [port])]

    def url(self, virtual_host: str = "%2F", *, user: str = "guest", password: str = "guest") -> str:  # noqa: S107 - RabbitMQ's default, on loopback only
        """The URL of a virtual host; parts with special characters are given quoted."""
        return f"amqp://{user}:{password}@{HOST}:{self.port}/{virtual_host}"

    def start(self, *, timeout: float = 90.0) -> None:
        """Start the stopped server again, with the same data and port. Returns once it accepts connections.

        :raises LocalRabbitMQError: a port is in use, or the server was not ready in ``timeout`` seconds.
        """
        if self.pid is not None:
            return
        if self._process is not None:
            self.kill()
        deadline = time.monotonic() + timeout
        self._require_ports()
        self._write_files()
        # The log of this start only: why it failed is read from it.
        with self.log_file.open("wb") as log:
            self._names = self._popen([str(self._programs.epmd)], log)
            self._watcher.watch([-self._names.pid])
            self._wait(self._names_answer, deadline)
            self._process = self._popen([str(self._programs.scripts / "rabbitmq-server")], log)
        self._watcher.watch([-self._names.pid, -self._process.pid])
        self._wait(self._answers, deadline)
        self._enter(ServerState.RUNNING)

    def stop(self, *, timeout: float = 30.0) -> None:
        """Stop the server. One that takes longer than ``timeout`` seconds is killed."""
        if (process := self._process) is not None and process.poll() is None:
            self._signal(process, signal.SIGTERM)
            if self._state is ServerState.PAUSED:
                self._signal(process, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill the server (SIGKILL), like a crash; its data is kept."""
        for process in (self._process, self._names):
            if process is not None:
                self._signal(process, signal.SIGKILL)
                process.wait()
        # The virtual machine is no child of this process: its end shows in its ports.
        deadline = time.monotonic() + END_SECONDS
        while self._process is not None and not self._ports_are_free() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._names = None
        self._ended()

    def restart(self, *, timeout: float = 90.0) -> None:
        """Stop the server and start it again."""
        self.stop()
        self.start(timeout=timeout)

    def control(self, *words: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl`` with these words, and return what it prints. Takes a second or two.

        :raises LocalRabbitMQError: the command failed.
        """
        command = [str(self._programs.scripts / "rabbitmqctl"), "--quiet", *words]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise LocalRabbitMQError(
                f"rabbitmqctl {words[0]} failed:\n{last_lines(done.stdout + done.stderr)}"
            )
        return done.stdout

    def _signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        # To the group: the script's process may have ended before its virtual machine.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    def _environment(self) -> dict[str, str]:
        """Everything that the server's scripts would read from the system's configuration."""
        folder = self.folder
        return {
            "PATH": f"{self._programs.erlang}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._names_port),
            # The data belong to this name, whatever the port; the name service knows this node alone.
            "RABBITMQ_NODENAME": "streams@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_ERLANG} {self._erlang_arguments}".strip(),
        }

    def _write_files(self) -> None:
        for name in ("home", "data", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        settings = {"listeners.tcp.1": f"{HOST}:{self.port}", **self._settings}
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "rabbitmq.conf").write_text(lines, encoding="utf-8")
        plugins = ", ".join(self._plugins)
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n", encoding="utf-8")

    def _popen(self, command: list[str], log: BufferedWriter) -> subprocess.Popen[bytes]:
        # A new session, so that Ctrl-C only reaches this program, which then stops the server.
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _ports_are_free(self) -> bool:
        try:
            self._require_ports()
        except LocalRabbitMQError:
            return False
        return True

    def _require_ports(self) -> None:
        try:
            for port in (self.port, self._distribution_port, self._names_port):
                require_free(port)
        except PortTaken as error:
            raise _PortsTaken(
                error.message, hint="end that program, or start without a port: free ones are then chosen"
            ) from error

    def _wait(self, ready: Callable[[], bool], deadline: float) -> None:
        """Wait until a part answers; kills everything and raises if it ends or takes too long."""
        while not ready():
            ended = any(each is not None and each.poll() is not None for each in (self._names, self._process))
            if ended or time.monotonic() > deadline:
                self.kill()
                log_end = last_lines(self.log_file.read_text(encoding="utf-8", errors="replace"))
                kind = _PortsTaken if "eaddrinuse" in log_end else LocalRabbitMQError
                what = "ended while it was starting" if ended else "is not ready in time"
                raise kind(
                    f"RabbitMQ on port {self.port} {what}:\n{log_end}",
                    hint=f"the complete log is in {self.log_file}",
                )
            time.sleep(0.05)

    def _names_answer(self) -> bool:
        try:
            socket.create_connection((HOST, self._names_port), 1.0).close()
        except OSError:
            return False
        return True

    def _answers(self) -> bool:
        """Whether the server begins AMQP's handshake."""
        try:
            with socket.create_connection((HOST, self.port), 1.0) as probe:
                probe.sendall(_GREETING)
                return probe.recv(1) == b"\x01"
        except OSError:
            return False
