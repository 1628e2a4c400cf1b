"""``make demo-console``: an app with traffic, a slow step, dead letters and jobs, in the console."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apps.workers import WorkerFailed, Workers
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import development_broker
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKERS: Final = 2
PARTITIONS: Final = 4
BUILD: Final = Path("build")
STATE: Final = BUILD / "demo-console-state"
CONSOLE_LOG: Final = BUILD / "demo-console.log"
APPLICATION: Final = "apps.orders.app:app"
LOOK_SECONDS: Final = 0.5
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0


class DemoFailed(Exception):
    """The demonstration failed; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C; the exit code is 0 if everything has stopped as it should."""
    parser = argparse.ArgumentParser(prog="make demo-console", description=__doc__)
    parser.add_argument("--port", type=int, default=8090, help="of the console; 0 chooses a free one")
    parser.add_argument("--rate", type=int, default=150, help="orders a second")
    parser.add_argument("--rush", type=int, default=1200, help="orders a second during a rush")
    options = parser.parse_args(arguments)
    logging.getLogger("streams").addHandler(logging.NullHandler())
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopped.set())
    BUILD.mkdir(exist_ok=True)
    try:
        with ExitStack() as stack:
            _run(stack, stopped, options.port, options.rate, options.rush)
    except (StreamsError, DemoFailed, WorkerFailed) as error:
        _say(f"The demo failed: {error}")
        return error.exit_code if isinstance(error, StreamsError) else 1
    _say("Stopped.")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the output itself


def _run(stack: ExitStack, stopped: threading.Event, port: int, rate: int, rush: int) -> None:
    servers = stack.enter_context(development_broker(_say))
    # The user's cluster may contain an earlier run, so every run has its own names there.
    prefix = f"demo-{uuid.uuid4().hex[:6]}-" if "KAFKA_BOOTSTRAP_SERVERS" in os.environ else ""
    os.environ |= {
        "ORDERS_PREFIX": prefix,
        "STREAMS_BOOTSTRAP_SERVERS": servers,
        "STREAMS_STATE_DIR": str(STATE.resolve()),
        "STREAMS_CREATE_TOPICS": "true",
        "STREAMS_HTTP_PORT": "0",
    }
    # Imported late: the modules name their topics when they are imported, which the environment decides.
    from apps.orders.app import ORDERS  # noqa: PLC0415 - as above
    from apps.orders.traffic import Traffic  # noqa: PLC0415 - as above

    shutil.rmtree(STATE, ignore_errors=True)
    stack.callback(shutil.rmtree, STATE, ignore_errors=True)
    broker = KafkaBroker({"bootstrap.servers": servers})
    admin = broker.admin()
    try:
        admin.create_topics([NewTopic(name=ORDERS, partitions=PARTITIONS)])
    finally:
        admin.close()
    workers = stack.enter_context(Workers(APPLICATION, WORKERS, os.environ, BUILD, "demo-console-worker"))
    traffic = Traffic(broker, rate, rush)
    stack.callback(traffic.stop)
    console = _Console(port)
    stack.callback(console.stop)
    console.start()
    traffic.start()
    address = console.address(stopped)
    if address is not None:
        _say(
            f"\nThe console is at {address}\n"
            f"  {rate} orders a second; each three minutes a rush of {rush} a second, which the step `check` "
            "cannot follow.\n"
            "  A few orders in a thousand become dead letters, large ones send a receipt by a job.\n"
            "Ctrl-C stops everything."
        )
    while not stopped.wait(LOOK_SECONDS):
        workers.require()
        console.require()
    _say("Stopping …")


class _Console:
    """The process of ``streams console``."""

    def __init__(self, port: int) -> None:
        self._command = (sys.executable, "-m", "streams", "console", APPLICATION, "--port", str(port))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Ctrl-C is for the demonstration, which stops it."""
        with CONSOLE_LOG.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "--no-discover"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def address(self, stopped: threading.Event) -> str | None:
        """Where it is, once it serves; ``None`` if the demonstration was stopped before."""
        for _ in range(int(START_SECONDS / LOOK_SECONDS)):
            for line in CONSOLE_LOG.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("The console is at "):
                    return line.removeprefix("The console is at ")
            self.require()
            if stopped.wait(LOOK_SECONDS):
                return None
        raise DemoFailed(f"the console does not start: see {CONSOLE_LOG}")

    def require(self) -> None:
        """Raise ``DemoFailed`` if it has ended by itself."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise DemoFailed(f"the console has ended with exit code {code}: see {CONSOLE_LOG}")

    def stop(self) -> None:
        """Stop it, by force if it takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    sys.exit(main())
