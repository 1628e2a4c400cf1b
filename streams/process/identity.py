"""Identify a process by its id and start time, so that a reused id is not mistaken for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """The status of a process. ``started`` distinguishes it from a later process with the same id."""

    started: str
    state: str
    resident_mb: int


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process id and the start of that process; another program may read both from a file."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """The identity of the process that has this id now."""
        status = _status(pid)
        return cls(pid, status.started if status else "")

    def status(self) -> ProcessStatus | None:
        """The status of the process, ``None`` once it has ended."""
        status = _status(self.pid)
        return status if status is not None and status.started == self.started else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process has not ended."""
        if self.status() is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _status(pid: int) -> ProcessStatus | None:
    """The status of the process ``pid``, ``None`` if there is none."""
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the program's name in brackets, with any characters: start after it.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        resident_mb = int(fields[21]) * os.sysconf("SC_PAGESIZE") // 1024**2
        # The first thread of a killed program may be a zombie while others still hold files and ports.
        ended = fields[0] == "Z" and int(fields[17]) <= 1
        status = ProcessStatus(f"{boot} {fields[19]}", fields[0], resident_mb)
    else:
        ps = ["/bin/ps", "-o", "stat=,rss=,lstart=", "-p", str(pid)]
        words = subprocess.run(ps, capture_output=True, text=True, check=False).stdout.split(maxsplit=2)
        if not words:
            return None
        ended = words[0].startswith("Z")
        status = ProcessStatus(words[2].strip(), words[0][0], int(words[1]) // 1024)
    return None if ended else status
