"""Jobs a second and their latency, beside other task queues: ``make bench ONLY=jobs``.

Each system executes the same jobs in one worker process, with a server on this machine, one after another:
this library on Kafka, exactly once and with results; Celery on Redis and Dramatiq on RabbitMQ, both with
results in Redis, which flushes its log each second. Measured are

* jobs that do nothing, which are in the queue before the worker starts: a second, and for each CPU second of
  the worker and of the server. The first twentieth is not counted. With keys: the same with a thousand keys,
  in order.
* the time from before the call that enqueues a job until it starts, at a steady rate, by the clock of the one
  machine;
* calls that enqueue one after another, each acknowledged, and many at once.

The environment variable ``RECORDS`` is the number of jobs (200,000; the others, which are slower, get a
twentieth), ``RATE`` the steady rate (200 a second), ``SECONDS`` its duration (20). Jobs that a worker may
have taken before the measurement began are not counted, so the figures of this library are lower bounds. Each
result is counted at the end: a missing one fails the benchmark.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import MeasurementFailed, percentile
from benchmarks.processes import Peer, PeerFailed
from benchmarks.systems import PEERS, Missing
from benchmarks.task_queue_systems import (
    CELERY,
    DRAMATIQ,
    OURS,
    OurQueue,
    PeerQueue,
    Queue,
    cpu_seconds,
    peers_python,
    rabbit_server,
    redis_server,
)
from streams.devstack.kafka import LocalKafka
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path("build/bench").absolute()
RESULTS = Path("build/bench-jobs.json")
STALL_SECONDS = 600.0
SAMPLE_SECONDS = 0.05
SKIPPED = 0.05
"""The share of the jobs that is executed before the measurement begins."""

ENQUEUE_SECONDS = 3.0

console = Console(width=130)


@dataclass
class Figures:
    """The figures of one system; ``None``: it has no such thing."""

    system: str
    jobs_per_second: float | None = None
    jobs_per_worker_cpu_second: float | None = None
    jobs_per_cpu_second: float | None = None
    """Of worker and server together."""
    keyed_per_second: float | None = None
    keyed_per_worker_cpu_second: float | None = None
    enqueued_per_second: float | None = None
    enqueued_many_per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    missing: str | None = None
    """Why there are no figures."""


@dataclass
class Throughput:
    """How fast jobs were executed."""

    per_second: float
    per_worker_second: float
    per_cpu_second: float


class TaskQueueBench:
    """Measures one system after another."""

    def __init__(self, jobs: int, rate: float, seconds: float) -> None:
        self._jobs, self._rate, self._seconds = jobs, rate, seconds

    def measure(self, queue: Queue) -> Figures:
        """All figures of a system. Raises ``MeasurementFailed`` and ``PeerFailed``."""
        figures = Figures(queue.name)
        found, filled = self._execute(queue)
        figures.jobs_per_second = found.per_second
        figures.jobs_per_worker_cpu_second = found.per_worker_second
        figures.jobs_per_cpu_second = found.per_cpu_second
        if queue.name == OURS:
            figures.enqueued_many_per_second = filled
            found, _ = self._execute(queue, "keyed")
            figures.keyed_per_second = found.per_second
            figures.keyed_per_worker_cpu_second = found.per_worker_second
        queue.fresh()
        figures.enqueued_per_second = self._enqueue(queue, "single", str(ENQUEUE_SECONDS))
        latencies = self._latencies(queue)
        figures.p50_ms, figures.p99_ms = percentile(latencies, 50), percentile(latencies, 99)
        return figures

    def _execute(self, queue: Queue, *kind: str) -> tuple[Throughput, float]:
        """Execute jobs that are in the queue; also how many a second were enqueued."""
        queue.fresh()
        wanted = self._jobs // queue.slower
        filled = self._enqueue(queue, "many", str(wanted), *kind)
        with self._worker(queue) as peer:
            worker = [psutil.Process(peer.pid)]
            begun = self._sample(queue, worker, peer, wanted, SKIPPED)
            ended = self._sample(queue, worker, peer, wanted, 1.0)
        results = queue.results()
        if results < wanted:
            raise MeasurementFailed(f"{queue.name}: {results:,} results of {wanted:,} jobs")
        jobs = wanted * (ended.share - begun.share) - queue.ahead
        if jobs < wanted / 2:
            raise MeasurementFailed(f"{queue.name}: {wanted:,} jobs are too few to be measured")
        own, server = ended.worker - begun.worker, ended.server - begun.server
        return Throughput(jobs / (ended.time - begun.time), jobs / own, jobs / (own + server)), filled

    def _sample(
        self, queue: Queue, worker: Sequence[psutil.Process], peer: Peer, wanted: int, share: float
    ) -> _Sample:
        """Wait until a share of the jobs is done."""
        deadline = time.monotonic() + STALL_SECONDS
        while (done := queue.done(wanted) / wanted) < share:
            peer.check()
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"{queue.name}: {done:.0%} of the jobs are done; see {peer.log}")
            time.sleep(SAMPLE_SECONDS)
        return _Sample(done, time.monotonic(), cpu_seconds(worker), queue.server_seconds())

    def _latencies(self, queue: Queue) -> list[float]:
        """Milliseconds from enqueueing to start, at a steady rate, after a second of it."""
        queue.fresh()
        file = self._file
        file.unlink(missing_ok=True)
        with self._worker(queue) as peer:
            # The worker has started once it has executed something.
            warm = int(self._rate)
            self._enqueue(queue, "steady", str(self._rate), "1")
            self._wait_for_lines(file, warm, peer)
            file.write_bytes(b"")
            self._enqueue(queue, "steady", str(self._rate), str(self._seconds))
            self._wait_for_lines(file, int(self._rate * self._seconds), peer)
        return [int(line) / 1e6 for line in file.read_text().splitlines()]

    def _wait_for_lines(self, file: Path, lines: int, peer: Peer) -> None:
        deadline = time.monotonic() + STALL_SECONDS
        while not file.exists() or file.read_bytes().count(b"\n") < lines:
            peer.check()
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"not all jobs were executed; see {peer.log}")
            time.sleep(SAMPLE_SECONDS)

    @property
    def _file(self) -> Path:
        return FOLDER / "task-queue-latencies"

    def _environment(self, queue: Queue) -> list[str]:
        variables = {
            **queue.environment(),
            "PYTHONPATH": f"{PEERS}:{PEERS.parents[1]}",
            "TASK_QUEUE_LATENCIES": str(self._file),
            # Celery refuses to run as root without it; harmless elsewhere.
            "C_FORCE_ROOT": "1",
        }
        words = (f"{name}={value}" for name, value in variables.items())
        return ["env", "-u", "PYTHONDONTWRITEBYTECODE", *words]

    def _worker(self, queue: Queue) -> Peer:
        log = FOLDER / f"task-queue-{queue.name}.log".replace(" ", "-")
        return Peer([*self._environment(queue), *queue.worker()], log)

    def _enqueue(self, queue: Queue, *arguments: str) -> float:
        """Run the program that enqueues; how many jobs a second."""
        done = subprocess.run(
            [*self._environment(queue), *queue.client(), *arguments],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MeasurementFailed(f"{queue.name}, {' '.join(arguments)}: {done.stderr.strip()[-800:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        return float(said["jobs"] / said["seconds"])


@dataclass
class _Sample:
    share: float
    time: float
    worker: float
    server: float


def make_table(found: Sequence[Figures]) -> Table:
    """The figures for people, with the ratios of this library to the others."""
    table = Table("figure", *(figures.system for figures in found))
    ours = next((figures for figures in found if figures.system == OURS), None)

    def row(title: str, name: str, unit: str = "{:,.0f}") -> None:
        cells = []
        for figures in found:
            value = getattr(figures, name)
            text = "-" if value is None else unit.format(value)
            mine = None if ours is None or figures is ours else getattr(ours, name)
            if value and mine:
                text += f"  (this library: {mine / value:.1f} times)"
            cells.append(text)
        table.add_row(title, *cells)

    row("jobs/s of a worker", "jobs_per_second")
    row("jobs per CPU second of the worker", "jobs_per_worker_cpu_second")
    row("jobs per CPU second of worker and server", "jobs_per_cpu_second")
    row("jobs/s of 1,000 keys", "keyed_per_second")
    row("jobs per CPU second of the worker, 1,000 keys", "keyed_per_worker_cpu_second")
    row("enqueued/s, one after another", "enqueued_per_second")
    row("enqueued/s, many at once", "enqueued_many_per_second")
    row("enqueue to start, p50 ms", "p50_ms", "{:.1f}")
    row("enqueue to start, p99 ms", "p99_ms", "{:.1f}")
    for figures in found:
        if figures.missing is not None:
            table.caption = f"{figures.system}: {figures.missing}"
    return table


def main() -> int:
    """Measure all systems; the exit code is 0 only if all that are there did all jobs."""
    bench = TaskQueueBench(
        int(os.environ.get("RECORDS") or "200000"),
        float(os.environ.get("RATE") or "200"),
        float(os.environ.get("SECONDS") or "20"),
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    found: list[Figures] = []
    failed = False
    scratch = FOLDER / f"task-queue-{uuid.uuid4().hex[:6]}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        for name in (OURS, CELERY, DRAMATIQ):
            try:
                with ExitStack() as servers:
                    figures = bench.measure(_start(name, scratch / name.replace(" ", "-"), servers))
            except Missing as reason:
                figures = Figures(name, missing=str(reason))
            except (MeasurementFailed, PeerFailed, StreamsError) as error:
                figures, failed = Figures(name, missing=str(error)), True
            found.append(figures)
            console.print(f"{name}: {figures.missing or 'measured'}", highlight=False, markup=False)
    console.print(make_table(found))
    RESULTS.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")
    console.print(f"The same figures as data: {RESULTS}")
    return 1 if failed else 0


def _start(name: str, folder: Path, servers: ExitStack) -> Queue:
    """Start a system's server. Raises ``Missing``."""
    if name == OURS:
        kafka = LocalKafka.start(folder, heap_mb=1024, report=_say)
        servers.callback(kafka.stop)
        return OurQueue(kafka)
    rabbit = servers.enter_context(rabbit_server(folder)) if name == DRAMATIQ else None
    python = peers_python(FOLDER, _say)
    redis = servers.enter_context(redis_server(python, folder / "redis"))
    return PeerQueue(name, python, redis, rabbit)


def _say(text: str) -> None:
    console.print(text, style="dim", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
