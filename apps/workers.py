"""An app's worker processes in a demonstration."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

STOP_SECONDS = 60.0


class WorkerFailed(Exception):
    """A worker ended by itself, or not as it should; the message says with what error."""


class Workers:
    """Workers with numbers, each with the log file ``<name>-<number>.log`` in ``folder``.

    ``application`` is what ``streams run`` takes, e.g. ``apps.data_sync.app:app``.
    """

    def __init__(
        self, application: str, count: int, environment: Mapping[str, str], folder: Path, name: str
    ) -> None:
        self._command = (sys.executable, "-m", "streams", "run", application)
        self._count = count
        self._name = name
        self._environment = {**environment, "STREAMS_LOG_FORMAT": "json"}
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for number in range(self._count):
            self._log(number).unlink(missing_ok=True)
            self.start(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        codes = self._stop()
        if error is None and (failed := {number: code for number, code in codes.items() if code}):
            number, code = next(iter(failed.items()))
            raise WorkerFailed(self._reason(number, f"stopped with exit code {code}"))

    def start(self, number: int) -> None:
        """Start the worker with this number, whose log continues."""
        with self._log(number).open("ab") as log:
            self._processes[number] = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, number: int) -> None:
        """End a worker at once (SIGKILL)."""
        self._processes[number].kill()
        self._processes.pop(number).wait()

    def require(self) -> None:
        """Raise ``WorkerFailed`` for a worker that has ended by itself."""
        for number, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise WorkerFailed(self._reason(number, f"ended early, with exit code {code}"))

    def holder(self, partition: str) -> int:
        """The number of the worker that was assigned a partition last; 0 if none was yet."""
        found = [entry for entry in self._assigned() if partition in entry[2]]
        return max(found, key=lambda entry: entry[0])[1] if found else 0

    def settled(self) -> float:
        """When partitions were assigned to a worker last, in seconds since the epoch; 0: never."""
        times = [time for time, _, partitions in self._assigned() if partitions]
        return datetime.fromisoformat(max(times)).timestamp() if times else 0.0

    def _assigned(self) -> Iterator[tuple[str, int, list[str]]]:
        """Times, numbers of workers, and the partitions that they were assigned."""
        for number in range(self._count):
            for line in self._log(number).read_text(encoding="utf-8", errors="replace").splitlines():
                if "partitions assigned" not in line or not line.startswith("{"):
                    continue
                entry = json.loads(line)
                if entry.get("event") == "partitions assigned":
                    yield str(entry["timestamp"]), number, entry["partitions"]

    def _stop(self) -> dict[int, int]:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        codes: dict[int, int] = {}
        for number, process in self._processes.items():
            try:
                codes[number] = process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[number] = process.wait()
        self._processes.clear()
        return codes

    def _log(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number}.log"

    def _reason(self, number: int, what: str) -> str:
        log = self._log(number).read_text(encoding="utf-8", errors="replace").splitlines()
        at = max((place for place, line in enumerate(log) if line.startswith("error:")), default=len(log))
        reason = [line for place, line in enumerate(log[at:]) if place == 0 or line.startswith("  ")]
        return "\n".join([f"worker {number} {what}: see {self._log(number)}", *reason])
