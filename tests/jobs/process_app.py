"""An app on a broker in memory whose jobs run in processes: those import this module."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams import App, seconds
from streams.broker.memory import MemoryBroker
from streams.jobs.current import current_job, current_jobs
from streams.jobs.retry import Retry, RetryLater

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.broker import Broker

BROKER = MemoryBroker()


class MemoryApp(App):
    def broker(self, *, client_id: str | None = None) -> Broker:
        return BROKER


app = MemoryApp(
    "processes",
    job_concurrency=2,
    job_partitions=1,
    state_store="memory",
    shutdown_timeout=6,
    state_dir=str(Path(tempfile.gettempdir()) / f"streams-tests-{os.getuid()}"),
)


class Refused(Exception):
    """An exception that can be neither pickled nor made without arguments."""

    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(reason)
        self.code = code
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.code})"


@app.resource
@contextmanager
def connection() -> Iterator[str]:
    yield "open"


@app.job(executor="process")
def where(number: int) -> dict[str, Any]:
    job = current_job()
    return {
        "number": number,
        "pid": os.getpid(),
        "id": job.id,
        "attempt": job.attempt,
        "key": job.idempotency_key,
        "command": Path("/proc/self/cmdline").read_bytes().split(b"\0")[2].decode()[:20],
        "stdin": os.read(0, 1) == b"",
        "session": os.getsid(0) == os.getpid(),
    }


@app.job(executor="process", retry=Retry(3, backoff=seconds(0), on=(Refused,)))
def refuses(kind: str) -> int:
    attempt = current_job().attempt
    if attempt < 3 or kind == "value":
        if kind == "value":
            raise ValueError("wrong")
        raise Refused("not now", code=attempt)
    return attempt


@app.job(executor="process", retry=Retry(2, backoff=seconds(0)))
def dies(how: str) -> int:
    if current_job().attempt == 2:
        return os.getpid()
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.Signals[how])
    return 0


@app.job(executor="process", timeout=seconds(1))
def hangs(started: str) -> None:
    # It starts a program of its own, and lets no other thread run.
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(started).write_text(f"{os.getpid()} {grandchild.pid}")
    re.match(r"(a+)+$", "a" * 64 + "b")


@app.job(executor="process")
def later() -> str:
    marker = Path(tempfile.gettempdir()) / current_job().idempotency_key
    if not marker.exists():
        marker.touch()
        raise RetryLater(after=seconds(1))
    marker.unlink()
    return f"attempt {current_job().attempt}"


@app.job(executor="process")
def uses_resource() -> str:
    return connection.get()


@app.job(executor="process")
def waits(folder: str, seconds_to_wait: float) -> str:
    job = current_job()
    job.report(f"waiting in {os.getpid()}")
    Path(folder, "begun").write_text(str(os.getpid()))
    deadline = time.monotonic() + seconds_to_wait
    while time.monotonic() < deadline and not Path(folder, "go").exists():
        job.check_cancelled()
        time.sleep(0.01)
    return "done"


@app.job(executor="process", batch=3, within=seconds(1))
def together(numbers: list[int]) -> list[str | Exception]:
    count = len(current_jobs())
    return [ValueError(f"{number} is odd") if number % 2 else f"{number} of {count}" for number in numbers]
