"""Workers under even traffic for minutes: their memory, threads and open files must not keep growing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.campaign import WORKERS, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.devstack.kafka import LocalKafka
    from tests.faults.campaign import Outcome

SAMPLE_SECONDS = 5.0
STATE_MEMORY_MB = 16
"""Small, so that RocksDB's caches and buffers are full soon."""

WARM_UP_MINUTES = 12.0
"""Warm-up, in which caches fill and the heap reaches its size; only later samples count."""

MOST_MB_A_MINUTE = 1.0
MOST_NEW_THREADS = 2
MOST_NEW_FILES = 40
"""Tolerance for files, as RocksDB opens and closes files when it flushes and compacts."""


@dataclass(slots=True)
class Usage:
    """The resources of a process, sample by sample."""

    seconds: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def look(self, pid: int, seconds: float) -> None:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        self.seconds.append(seconds)
        self.resident_mb.append(int(status["VmRSS"].split()[0]) / 1024)
        self.threads.append(int(status["Threads"]))
        self.files.append(len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208 - a pseudo file system


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line."""
    mean_time, mean_value = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time - mean_time) ** 2 for time in times)
    both = zip(times, values, strict=True)
    return sum((time - mean_time) * (value - mean_value) for time, value in both) / spread if spread else 0.0


def judge(run: Run, usages: Sequence[Usage]) -> None:
    verdict = run.outcome.verdict
    for number, usage in enumerate(usages):
        first = sum(seconds < WARM_UP_MINUTES * 60 for seconds in usage.seconds)
        minutes = [seconds / 60 for seconds in usage.seconds[first:]]
        growth = slope(minutes, usage.resident_mb[first:])
        threads = max(usage.threads[first:]) - usage.threads[first]
        files = max(usage.files[-3:]) - max(usage.files[first : first + 3])
        verdict.checked["M"] += len(minutes)
        run.report(
            f"worker {number}: from {usage.resident_mb[first]:.0f} to {usage.resident_mb[-1]:.0f} MB "
            f"({growth:+.2f} MB a minute), "
            f"{usage.threads[-1]} threads ({threads:+d}), {usage.files[-1]} files ({files:+d})"
        )
        if growth > MOST_MB_A_MINUTE or threads > MOST_NEW_THREADS or files > MOST_NEW_FILES:
            verdict.add(
                "M",
                f"worker {number} grows: {growth:+.2f} MB a minute, {threads:+d} threads, {files:+d} files",
            )


def soak(
    kafka: LocalKafka,
    folder: Path,
    seed: int,
    minutes: float,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run workers without faults for that many minutes, and verify results and resources."""
    settings = {"STREAMS_STATE_MEMORY_MB": str(STATE_MEMORY_MB)}
    with Run(kafka, folder, seed, name="soak", settings=settings, report=report) as run:
        run.begin(WORKERS)
        usages = [Usage() for _ in run.crew.members]
        begun = sampled = time.monotonic()
        while (now := time.monotonic()) - begun < (WARM_UP_MINUTES + minutes) * 60:
            run.keep_sending(0.5)
            if now - sampled >= SAMPLE_SECONDS:
                sampled = now
                for usage, worker in zip(usages, run.crew.members, strict=True):
                    usage.look(worker.pid, now - begun)
        judge(run, usages)
        run.finish()
        return run.judge()
