"""What a bounded run costs beside a live worker that catches up: ``make bench ONLY=replay``.

Both process the same topic: a count in windows with its updates, and a copy of each record. Measured are the
CPU seconds of complete commands, start and end included, with those of their worker processes: on shared
cores they say more than the time. The live worker counts until it has committed the last record. A run of a
fifth of the topic shows whether memory grows with the range, and one of no records what a command costs by
itself. The environment variable ``RECORDS`` is the number of records, by default five million; ``ROUNDS`` how
often everything runs, of which the middle one counts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.data import CHUNK_RECORDS, Input, Tally, generate_chunks, make_topic, write_input
from benchmarks.jobs import COPY, COUNT_WINDOWS
from benchmarks.measure import MeasurementFailed, check_output
from benchmarks.processes import Peer, PeerFailed
from benchmarks.systems import PEERS
from streams.broker.kafka import KafkaBroker
from streams.devstack.kafka import LocalKafka
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.jobs import Job
    from streams.broker import Broker

FOLDER = Path("build/bench").absolute()
RESULTS = Path("build/bench-replay.json")
SAMPLE_SECONDS = 0.1
STALL_SECONDS = 900.0

console = Console(width=130)


class Cost(NamedTuple):
    """What a command has cost."""

    work: str
    command: str
    records: int
    cpu_seconds: float
    seconds: float
    peak_rss_mb: list[float]
    """Of each process that used more than 20 MB, the first one first."""

    @property
    def per_cpu_second(self) -> float:
        return self.records / self.cpu_seconds


class Variant(NamedTuple):
    """A way to process the topic: a live worker, or a bounded run of ``part`` with some workers."""

    name: str
    workers: int = 0
    """0: live."""
    part: str = "all"


VARIANTS = (
    Variant("live worker"),
    Variant("replay run", 1),
    Variant("replay run, 2 workers", 2),
    Variant("replay run, a fifth", 1, "fifth"),
    Variant("replay run, no records", 1, "none"),
)


class Watch:
    """The peak memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peaks: dict[int, int] = {}

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self._process, *self._process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    rss = process.memory_info().rss
                    self._peaks[process.pid] = max(self._peaks.get(process.pid, 0), rss)

    @property
    def peaks_mb(self) -> list[float]:
        # Python's resource tracker, which is a process too, is no worker.
        return [round(peak / 1024**2, 1) for peak in self._peaks.values() if peak > 20 * 1024**2]


class ReplayBench:
    """Runs the variants on one topic."""

    def __init__(self, servers: str, source: Input, prefix: str) -> None:
        self.servers = servers
        self.broker: Broker = KafkaBroker({"bootstrap.servers": servers})
        self._source = source
        self._prefix = prefix
        self._numbers = itertools.count()

    def measure(self, job: Job, variant: Variant) -> Cost:
        """Run a variant, verify its output and delete its topics. Raises ``MeasurementFailed``."""
        group = f"{self._prefix}-{next(self._numbers)}-{job.name}"
        output = f"{group}-output"
        make_topic(self.broker, output)
        environment = [
            f"PYTHONPATH={PEERS}",
            f"REPLAY_BENCH={job.name} {self.servers} {self._source.topic} {output} {group}",
        ]
        # Without the cache of compiled modules each start would cost two CPU seconds more.
        cached = ["-u", "PYTHONDONTWRITEBYTECODE"]
        streams = ["env", *cached, *environment, sys.executable, "-m", "streams"]
        log = FOLDER / f"replay-{job.name}-{variant.name}.log".replace(" ", "-")
        records, expected = self._expected(job, variant)
        begun, before = time.monotonic(), _children_seconds()
        try:
            if variant.workers:
                peaks = self._bounded(streams, variant, log)
                written = f"{output}-bench"
            else:
                peaks = self._live(streams, group, log)
                written = output
            cost = Cost(
                job.name, variant.name, records, _children_seconds() - before, time.monotonic() - begun, peaks
            )
            check_output(self.broker, written, job, expected)
        finally:
            with contextlib.closing(self.broker.admin()) as admin:
                admin.delete_topics([topic for topic in admin.topics() if topic.startswith(group)])
        return cost

    def _expected(self, job: Job, variant: Variant) -> tuple[int, Tally]:
        parts = {"all": self._source.parts, "fifth": self._source.parts[:1], "none": []}[variant.part]
        tallies = [part.tallies[job.name] for part in parts]
        return sum(part.records for part in parts), sum(tallies, start=Tally())

    def _bounded(self, streams: Sequence[str], variant: Variant, log: Path) -> list[float]:
        ends = FOLDER / "replay-fifth.json"
        named: dict[str, dict[str, int]] = {}
        for place, offset in self._source.parts[1].starts.items():
            named.setdefault(place.topic, {})[str(place.partition)] = offset
        ends.write_text(json.dumps(named))
        begin = "latest" if variant.part == "none" else "earliest"
        command = [*streams, "replay", "run", "replay_app:app", "--from", begin, "--as", "bench"]
        command += ["--workers", str(variant.workers)]
        if variant.part == "fifth":
            command += ["--to", str(ends)]
        with Peer(command, log) as peer:
            watch = Watch(peer.pid)
            deadline = time.monotonic() + STALL_SECONDS
            while _runs(peer.pid):
                watch.look()
                if time.monotonic() > deadline:
                    raise MeasurementFailed(f"still runs after {STALL_SECONDS:.0f} s; see {log}")
                time.sleep(SAMPLE_SECONDS)
            peer.wait(STALL_SECONDS)
        return watch.peaks_mb

    def _live(self, streams: Sequence[str], group: str, log: Path) -> list[float]:
        deadline = time.monotonic() + STALL_SECONDS
        with contextlib.closing(self.broker.admin()) as admin:
            ends = admin.end_offsets(list(self._source.parts[0].starts))
            with Peer([*streams, "run", "replay_app:app"], log) as peer:
                watch = Watch(peer.pid)
                while True:
                    time.sleep(SAMPLE_SECONDS)
                    peer.check()
                    watch.look()
                    committed = admin.committed_offsets(group)
                    if all(committed.get(place, 0) >= end for place, end in ends.items()):
                        break
                    if time.monotonic() > deadline:
                        raise MeasurementFailed(f"not at the end after {STALL_SECONDS:.0f} s; see {log}")
        return watch.peaks_mb


def _runs(pid: int) -> bool:
    """Whether a child process runs; its exit status stays available to ``wait``."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _children_seconds() -> float:
    """The CPU seconds of all processes that have ended and were waited for, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def middle(costs: Sequence[Cost]) -> Cost:
    """The middle one by CPU seconds."""
    return sorted(costs, key=lambda cost: cost.cpu_seconds)[(len(costs) - 1) // 2]


def make_table(costs: Sequence[Cost]) -> Table:
    """The results for people."""
    table = Table("work", "command", "records", "CPU s", "records per CPU-second", "to live", "s", "peak MB")
    live = {cost.work: cost.per_cpu_second for cost in costs if cost.command == VARIANTS[0].name}
    for cost in costs:
        table.add_row(
            cost.work,
            cost.command,
            f"{cost.records:,}",
            f"{cost.cpu_seconds:.1f}",
            f"{cost.per_cpu_second:,.0f}",
            f"{cost.per_cpu_second / live[cost.work]:.2f}" if cost.work in live else "-",
            f"{cost.seconds:.0f}",
            " + ".join(f"{peak:.0f}" for peak in cost.peak_rss_mb),
        )
    return table


def main() -> int:
    """Run everything; the exit code is 0 only if all outputs were right."""
    records = int(os.environ.get("RECORDS", "5000000"))
    rounds = int(os.environ.get("ROUNDS", "1"))
    fifth = max(records // 5 // CHUNK_RECORDS, 1) * CHUNK_RECORDS
    rest = max(-(-(records - fifth) // CHUNK_RECORDS), 1) * CHUNK_RECORDS
    FOLDER.mkdir(parents=True, exist_ok=True)
    prefix = f"bench-{uuid.uuid4().hex[:6]}"
    found: dict[tuple[str, str], list[Cost]] = {}
    try:
        with ExitStack() as stack:
            folder = FOLDER / "kafka-replay"
            kafka = LocalKafka.start(folder, heap_mb=1024, report=console.print)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(kafka.stop)
            broker = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers})
            console.print(f"Writing {fifth + rest:,} records …")
            source = Input(f"{prefix}-requests")
            jobs = (COUNT_WINDOWS, COPY)
            tallies = {job.name: job.expected for job in jobs}
            write_input(broker, source, generate_chunks(fifth + rest), [fifth, rest], tallies)
            bench = ReplayBench(kafka.bootstrap_servers, source, prefix)
            for number, job, variant in itertools.product(range(1, rounds + 1), jobs, VARIANTS):
                cost = bench.measure(job, variant)
                found.setdefault((job.name, variant.name), []).append(cost)
                console.print(
                    f"round {number}: {job.name}, {variant.name}: {cost.cpu_seconds:.2f} CPU s in "
                    f"{cost.seconds:.1f} s, {cost.per_cpu_second:,.0f} records per CPU-second, "
                    f"peak {cost.peak_rss_mb} MB",
                    highlight=False,
                )
    except (MeasurementFailed, PeerFailed, StreamsError) as error:
        console.print(f"The benchmark failed: {error}", highlight=False, markup=False)
        return 1
    costs = [middle(each) for each in found.values()]
    console.print(make_table(costs))
    write_results(costs)
    console.print(f"The same figures as data: {RESULTS}")
    return 0


def write_results(costs: Sequence[Cost]) -> None:
    """Write the results as data."""
    data: list[dict[str, Any]] = [
        cost._asdict() | {"records_per_cpu_second": cost.per_cpu_second} for cost in costs
    ]
    RESULTS.write_text(json.dumps(data, indent=2))
