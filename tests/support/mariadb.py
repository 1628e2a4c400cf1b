"""A real MariaDB server on this machine, from the system's package, and Debezium's connector for it."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from streams.devstack.kafka.folders import cache_folder, last_lines, locked
from streams.devstack.kafka.ports import free_ports
from streams.devstack.kafka.process import ServerProcess, until
from streams.devstack.kafka.report import silent
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from types import TracebackType

VERSION = "3.5.0.Final"
"""Of Debezium: MariaDB's connector is not in the package that the extra installs."""
COORDINATES = (
    *(
        f"io.debezium:debezium-{name}:{VERSION}"
        for name in ("api", "embedded", "connector-mariadb", "storage-file")
    ),
    "org.slf4j:slf4j-api:2.0.17",
    "org.apache.logging.log4j:log4j-slf4j2-impl:2.25.2",
    "org.apache.logging.log4j:log4j-core:2.25.2",
)
DIGEST = "9202092e0863d00e13b3c3dd7531647d83b4dc766ae898b406ed86d6078a2528"
"""Of the names and SHA-256 of all jars."""

SERVER = "mariadbd"
INSTALL = "mariadb-install-db"
CLIENT = "mariadb"


def programs() -> dict[str, str] | None:
    """The paths of the server's programs, ``None`` where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = {name: shutil.which(name, path=path) for name in (SERVER, INSTALL, CLIENT)}
    return {name: place for name, place in found.items() if place} if all(found.values()) else None


def required_jars() -> Path:
    """The jars of ``connector_jars``; the test is skipped where they or the server's programs are missing."""
    if programs() is None:
        pytest.skip("MariaDB is not installed (Debian's package mariadb-server)")
    try:
        return connector_jars()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"Debezium's jars for MariaDB cannot be downloaded: {error}")


def connector_jars() -> Path:
    """The folder of Debezium's jars for MariaDB, downloaded once (45 MB).

    Raises ``OSError`` or ``RuntimeError`` if they cannot be downloaded, or are not those that were published.
    """
    home = cache_folder() / f"debezium-{VERSION}"
    folder = home / "jars"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock", silent, ""):
        if folder.exists():
            return folder
        jars = _downloaded(home / "maven")
        lines = sorted(f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}" for jar in jars)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if digest != DIGEST:
            shutil.rmtree(home / "maven")
            raise OSError(f"Debezium's jars have the digest {digest}, and not {DIGEST}")
        staged = home / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        for jar in jars:
            shutil.copy(jar, staged)
        staged.rename(folder)
    return folder


def _downloaded(cache: Path) -> list[Path]:
    import jgo.config  # noqa: PLC0415 - of the extra broker
    import jgo.maven  # noqa: PLC0415

    logger = logging.getLogger("jgo")
    logger.setLevel(logging.CRITICAL)
    repositories = jgo.config.GlobalSettings.load().repositories or None
    context = jgo.maven.MavenContext(repo_cache=cache, remote_repos=repositories)
    named, others = context.resolver.resolve([context.create_dependency(name) for name in COORDINATES])
    needed: list[Any] = [*named, *(other for other in others if other.scope in {"compile", "runtime"})]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(lambda dependency: Path(dependency.artifact.resolve()), needed))


class LocalMariaDB:
    """A server on the loopback address with a binary log. Its user ``sync`` has the password ``secret``."""

    def __init__(self, folder: Path) -> None:
        found = programs()
        assert found is not None, "MariaDB is not installed"
        self._programs = found
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "mariadb.log"
        self._socket = folder / "socket"
        self.port = free_ports(1)[0]
        self._process: ServerProcess | None = None
        subprocess.run(
            [
                found[INSTALL],
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._as_root(),
            ],
            check=True,
            capture_output=True,
        )
        self.start()
        self.sql(
            "create user sync@'%' identified by 'secret';"
            "grant select, reload, show databases, replication slave, replication client, lock tables,"
            " slave monitor, binlog monitor on *.* to sync@'%'"
        )

    @staticmethod
    def _as_root() -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def start(self) -> None:
        self._process = process = ServerProcess.owned(
            [
                self._programs[SERVER],
                "--no-defaults",
                f"--datadir={self._data}",
                f"--socket={self._socket}",
                f"--bind-address={HOST}",
                f"--port={self.port}",
                "--log-bin=log",
                "--binlog-format=ROW",
                "--server-id=1",
                "--skip-name-resolve",
                "--innodb-buffer-pool-size=32M",
                "--innodb-flush-log-at-trx-commit=0",
                *self._as_root(),
            ],
            self._folder,
            self._log,
        )
        until(lambda: process.status() is None or self._answers(), 60)
        if not self._answers():
            raise OSError(f"MariaDB did not start:\n{last_lines(self._log.read_text(errors='replace'))}")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.signal(number)
            until(lambda: process.status() is None, 30)

    def _answers(self) -> bool:
        try:
            self.sql("select 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def sql(self, statements: str) -> list[list[str]]:
        """Run statements, each in a transaction of its own unless they say otherwise; return their rows."""
        done = subprocess.run(
            [
                self._programs[CLIENT],
                "--no-defaults",
                f"--socket={self._socket}",
                "--user=root",
                "--batch",
                "--skip-column-names",
                "--default-character-set=utf8mb4",
            ],
            input=statements,
            check=True,
            capture_output=True,
            text=True,
        )
        return [line.split("\t") for line in done.stdout.splitlines()]

    def properties(self) -> dict[str, object]:
        """Debezium's properties of a connection to it."""
        return {
            "database.hostname": HOST,
            "database.port": self.port,
            "database.user": "sync",
            "database.password": "secret",
            "database.server.id": 7701,
            "database.ssl.mode": "disable",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
