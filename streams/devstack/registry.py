"""A real schema registry on this machine: Apicurio, with Confluent's interface."""

from __future__ import annotations

import hashlib
import logging
import shutil
import signal
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streams.devstack.kafka.folders import cache_folder, last_lines, locked
from streams.devstack.kafka.java import find_java
from streams.devstack.kafka.ports import free_ports
from streams.devstack.kafka.process import ServerProcess, until
from streams.devstack.kafka.report import silent
from streams.errors import LocalKafkaError
from streams.local_cluster import HOST

if TYPE_CHECKING:
    from types import TracebackType

    from streams.devstack.kafka.report import Report

VERSION = "3.3.3"
_ARCHIVE_SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
_READY_SECONDS = 180.0
"""It is ready after five seconds, or on a very busy machine after some minutes."""


class LocalRegistry:
    """A schema registry that keeps its schemas in memory, so it is empty after each start.

    Its global compatibility level is BACKWARD, as in other registries; Apicurio's own default is NONE. ::

        with LocalRegistry.start(folder) as registry:
            app = App("orders", schema_registry_url=registry.url)

    It listens on the loopback address only, and takes about 300 MB of memory. ``stop`` and ``start_again``
    keep its port.
    """

    def __init__(self, folder: Path, home: Path, heap_mb: int, ports: tuple[int, int]) -> None:
        self._folder = folder
        self._home = home
        self._heap_mb = heap_mb
        self._ports = ports
        self._process: ServerProcess | None = None
        self.log_file = folder / "registry.log"
        self.url = f"http://{HOST}:{ports[0]}/apis/ccompat/v7"

    @classmethod
    def start(cls, folder: Path, *, heap_mb: int = 192, report: Report = silent) -> Self:
        """Download it if necessary (159 MB, once), start it, and return when it is ready.

        Its log is written into ``folder``. Raises ``LocalKafkaError`` if it cannot be downloaded or started.
        """
        home = installed_registry(report)
        folder.mkdir(parents=True, exist_ok=True)
        first, second = free_ports(2, set())
        registry = cls(folder, home, heap_mb, (first, second))
        registry.start_again()
        return registry

    def start_again(self) -> None:
        """Start the stopped registry, empty, at the same address."""
        java, _ = find_java()
        port, management_port = self._ports
        options = {
            "quarkus.http.host": HOST,
            "quarkus.http.port": port,
            # Its health checks have a port of their own, which would be open to the network.
            "quarkus.management.host": HOST,
            "quarkus.management.port": management_port,
            "apicurio.datasource.jdbc.initial-size": 2,
            "apicurio.datasource.jdbc.min-size": 2,
            "java.util.logging.manager": "org.jboss.logmanager.LogManager",
        }
        command = [
            str(java),
            f"-Xmx{self._heap_mb}m",
            "-XX:MaxMetaspaceSize=192m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            *(f"-D{name}={value}" for name, value in options.items()),
            "-jar",
            str(self._home / "quarkus-run.jar"),
        ]
        process = self._process = ServerProcess.owned(command, self._folder, self.log_file)
        until(lambda: process.status() is None or self._answers(), _READY_SECONDS)
        if process.status() is None or not self._answers():
            self.stop()
            log = last_lines(self.log_file.read_text(encoding="utf-8", errors="replace"))
            raise LocalKafkaError(
                f"the schema registry is not ready after {_READY_SECONDS:.0f} s, or ended:\n{log}",
                hint=f"the complete log is in {self.log_file}",
            )
        self._request("config", b'{"compatibility": "BACKWARD"}')

    def stop(self) -> None:
        """End it; its schemas are lost."""
        process, self._process = self._process, None
        if process is None:
            return
        process.signal(signal.SIGTERM)
        if not until(lambda: process.status() is None, 10):
            process.signal(signal.SIGKILL)
            until(lambda: process.status() is None, 10)

    @property
    def pid(self) -> int | None:
        """The process id, ``None`` while it is stopped."""
        process = self._process
        return None if process is None or process.status() is None else process.identity.pid

    def pause(self) -> None:
        """Freeze it (SIGSTOP): requests get no answer."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it (SIGCONT)."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            self._request("subjects")
        except (OSError, urllib.error.HTTPError):
            return False
        return True

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - its own address on this machine
            f"{self.url}/{path}",
            data=body,
            method="GET" if body is None else "PUT",
            headers={"Content-Type": "application/json"},
        )
        # Proxies of the environment are not for this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=5) as answer:
            content: bytes = answer.read()
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def installed_registry(report: Report = silent) -> Path:
    """The folder of the unpacked registry, downloaded once. Raises ``LocalKafkaError``."""
    home = cache_folder().with_name(f"apicurio-registry-{VERSION}")
    app = home / "app"
    with locked(home / "lock", report, "Waiting for another process that downloads the schema registry …"):
        if not (app / "quarkus-run.jar").exists():
            _install(home, app, report)
    return app


def _install(home: Path, app: Path, report: Report) -> None:
    archive = _download(home / "maven", report)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _ARCHIVE_SHA256:
        archive.unlink()
        raise LocalKafkaError(
            f"{archive.name} has the SHA-256 {digest}, {_ARCHIVE_SHA256} is pinned",
            hint="it is not the published file, or incomplete: start again; a proxy may be answering instead "
            "of the repository",
        )
    unpacked = home / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    unpacked.replace(app)
    shutil.rmtree(home / "maven", ignore_errors=True)


def _download(repository: Path, report: Report) -> Path:
    try:
        import jgo.config  # noqa: PLC0415  # an extra: only local servers need it
        import jgo.maven  # noqa: PLC0415
    except ImportError as error:
        raise LocalKafkaError(
            f"a local schema registry needs the package jgo, which downloads it: {error}",
            hint="pip install 'streams[broker]'",
        ) from error
    report(f"Downloading the Apicurio schema registry {VERSION} (159 MB, once) …")
    mirrors = jgo.config.GlobalSettings.load().repositories or None
    logging.getLogger("jgo").setLevel(logging.CRITICAL)
    try:
        context = jgo.maven.MavenContext(repo_cache=repository, remote_repos=mirrors)
        project = context.project("io.apicurio", "apicurio-registry-app")
        return Path(project.at_version(VERSION).artifact("all", "tar.gz").resolve())
    except (OSError, RuntimeError) as error:
        raise LocalKafkaError(
            f"the Apicurio schema registry {VERSION} could not be downloaded: {error}",
            hint="check the network, which is needed once. To use a mirror, set it under [repositories] in "
            "jgo's configuration file",
        ) from error
