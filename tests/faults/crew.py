"""Worker processes of the app under test, their faults and restarts, and their logs and disks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from rocksdict import AccessType, Options, Rdict

from streams.events import Event
from streams.state.changelog import SavedCheckpoint
from tests.faults import verdicts

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from tests.faults.verdicts import Verdict

Worker: TypeAlias = "subprocess.Popen[bytes]"

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 10.0
"""The longest duration of a graceful stop."""

START_SECONDS = 60.0
MOST_ENDS = 12
"""A run is abandoned after this many unexpected exits."""


class Crew:
    """A fixed number of workers, restarted when they end by themselves, as by an orchestrator.

    ``settings`` are the app's, as environment variables; ``folder`` has the logs, ``state`` the workers' own
    files. Unexpected exits are violations, except with the codes of ``expected``.
    """

    def __init__(
        self, folder: Path, name: str, group: str, settings: Mapping[str, str], verdict: Verdict
    ) -> None:
        self._folder = folder
        self._name = name
        self._group = group
        self._settings = dict(settings)
        self._verdict = verdict
        self.version: dict[str, str] = {}
        """Settings of every worker started from now on, in addition to temporary ones."""
        self.members: list[Worker] = []
        self.expected: set[int] = set()
        self.events: Counter[str] = Counter()
        self._logs: dict[int, Path] = {}
        self._paths: list[Path] = []
        self._ended: list[Worker] = []
        self._started: list[Worker] = []
        self._unexpected = 0
        self._checkpoints: dict[Path, tuple[int, dict[str, int]]] = {}
        """The checkpoints of closed databases at the last check, and the number of rebuilds until then."""

    @property
    def state(self) -> Path:
        """The folder of the workers' own files."""
        return Path(self._settings["STREAMS_STATE_DIR"]) / self._group

    def start(self, **environment: str) -> Worker:
        log = self._folder / f"{self._name}-{len(self._paths)}.log"
        self._paths.append(log)
        with log.open("wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "tests.faults.fault_app:app"],
                cwd=ROOT,
                env={**os.environ, **self._settings, **self.version, **environment},
                stdout=file,
                stderr=file,
            )
        self._logs[worker.pid] = log
        self._started.append(worker)
        return worker

    def fill(self, places: int) -> None:
        self.members = [self.start() for _ in range(places)]

    def replace(self, place: int, **environment: str) -> Worker:
        """Start a new worker in place of one that ended."""
        self.members[place] = worker = self.start(**environment)
        return worker

    def log_of(self, worker: Worker) -> str:
        return self._logs[worker.pid].read_text(errors="replace")

    def last_log(self, code: int) -> str:
        """The log of the worker that ended last with an exit code; empty if none did."""
        ended = [worker for worker in self._ended if worker.returncode == code]
        return self.log_of(ended[-1]) if ended else ""

    def kill(self, worker: Worker) -> None:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
        self.look_at_checkpoints()

    def stop(self, worker: Worker) -> None:
        """Send SIGTERM. A worker must stop within ten seconds, with exit code 0."""
        # Earlier, no signal handler is installed yet.
        self.wait_for_log(worker, '"worker started"')
        if worker.poll() is not None:
            return
        begun = time.monotonic()
        worker.terminate()
        try:
            code = worker.wait(3 * STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            worker.kill()
            worker.wait()
        took = time.monotonic() - begun
        if '"worker failed"' in self.log_of(worker):
            # It was already ending, for a reason that is checked elsewhere.
            return
        self._verdict.checked["M"] += 1
        if code != 0 or took > STOP_SECONDS + 1:
            self._verdict.add(
                "M", f"a worker took {took:.1f} s to stop, exit code {code}: {self._logs[worker.pid]}"
            )
        self.look_at_checkpoints()

    def wait_for_log(self, worker: Worker, text: str, seconds: float = START_SECONDS) -> bool:
        """Whether a worker logged a text before it ended, or within that time."""
        deadline = time.monotonic() + seconds
        while text not in self.log_of(worker):
            if worker.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def revive(self) -> None:
        """Restart workers that ended by themselves."""
        for place, worker in enumerate(self.members):
            code = worker.poll()
            if code is None:
                continue
            self.events[f"ended by itself with {code}"] += 1
            self._ended.append(worker)
            self._verdict.checked["L"] += 1
            if code not in self.expected:
                last = self.log_of(worker)[-600:]
                self._verdict.add(
                    "L", f"a worker ended by itself with {code}: {self._logs[worker.pid]}: …{last}"
                )
                self._unexpected += 1
                if self._unexpected > MOST_ENDS:
                    raise AssertionError(f"workers end repeatedly, the last one with {code}:\n{last}")
            self.look_at_checkpoints()
            self.replace(place)

    def clear(self) -> None:
        """End all running workers, whatever their state."""
        for worker in self._started:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
                worker.wait()

    # --- disks

    def databases(self) -> list[Path]:
        """The folders of tasks' databases that no running worker uses."""
        return sorted(
            place
            for slot in self.state.glob("*.slot")
            if not _locked(slot)
            for place in (self.state / slot.stem / "state").glob("*/*")
            if "damaged" not in place.name
        )

    def lose_disks(self) -> None:
        for place in self.databases():
            shutil.rmtree(place, ignore_errors=True)
            self._checkpoints.pop(place, None)

    def damage_disks(self, choose: random.Random) -> str:
        """Damage the databases that no worker has open, each in the same way, which is returned."""
        how = choose.choice(["manifest cut", "manifest flipped", "table flipped", "log cut"])
        for place in self.databases():
            self._checkpoints.pop(place, None)
            if how == "manifest cut":
                for path in place.glob("MANIFEST-*"):
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            elif how == "log cut":
                for path in place.glob("*.log"):
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                for path in place.glob("*.sst" if how == "table flipped" else "MANIFEST-*"):
                    content = bytearray(path.read_bytes())
                    content[choose.randrange(len(content))] ^= 0xFF
                    path.write_bytes(content)
        self.events[f"disk damaged: {how}"] += 1
        return how

    def look_at_checkpoints(self) -> None:
        """Compare the closed databases with the last check."""
        rebuilt = self._count_rebuilds()
        for place in self.databases():
            found = _checkpoints_of(place)
            if found is None:
                continue
            # The checkpoint of a store that was emptied for a rebuild is -1 or starts again: the log says so,
            # possibly while a worker had it open.
            now = {store: offset for store, offset in found.items() if offset >= 0}
            rebuilt_before, before = self._checkpoints.get(place, (rebuilt, {}))
            if rebuilt == rebuilt_before:
                verdicts.checkpoints(self._verdict, str(place), before, now)
            self._checkpoints[place] = rebuilt, now

    def _count_rebuilds(self) -> int:
        return sum(
            path.read_text(errors="replace").count(word)
            for path in self._paths
            for word in ('"state rebuilt"', '"state damaged"')
        )

    def count_events(self) -> Counter[str]:
        """The number of log events of all workers, by name, without those of the client library."""
        events = Counter(self.events)
        known = {*Event, "producer queue full"}
        for path in self._paths:
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{") and (event := json.loads(line)["event"]) in known:
                    events[event] += 1
        return events


def in_state(worker: Worker, state: str) -> bool:
    """Whether a process is in a state of the kernel: ``T`` is stopped."""
    try:
        return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == state
    except FileNotFoundError:
        return False


def until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _locked(path: Path) -> bool:
    """Whether a process holds a lock on the file."""
    stat = path.stat()
    wanted = stat.st_dev, stat.st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        major, minor, inode = line.split()[5 if "->" not in line else 6].split(":")
        if (os.makedev(int(major, 16), int(minor, 16)), int(inode)) == wanted:
            return True
    return False


def _checkpoints_of(place: Path) -> dict[str, int] | None:
    """The changelog offsets in a closed database; ``None`` if it cannot be read."""
    found = {}
    try:
        database = Rdict(str(place), Options(raw_mode=True), access_type=AccessType.read_only())
        try:
            for name, value in database.items():
                if name == b"\0columns":
                    # Metadata of the database itself.
                    continue
                assert isinstance(name, bytes)
                assert isinstance(value, bytes)
                found[name.decode()] = msgspec.json.decode(value, type=SavedCheckpoint).offset
        finally:
            database.close()
    except Exception:  # noqa: BLE001 - the library raises nothing more precise
        return None
    return found
