"""The measurements, all from outside of the measured process."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import psutil

from streams.broker.reading import read_to_end
from streams.events import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.data import Input, Tally
    from benchmarks.jobs import Job
    from benchmarks.processes import Peer
    from streams.broker import Broker

SAMPLE_SECONDS = 0.025
STALL_SECONDS = 60.0
RESTORE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A system's figures for a workload; ``None`` where a figure does not apply."""

    work: str
    system: str
    records: int
    records_per_second: float | None = None
    records_per_cpu_second: float | None = None
    peak_rss_mb: float | None = None
    state_mb: float | None = None
    """Disk usage at the end."""

    p50_ms: float | None = None
    p99_ms: float | None = None


class Sample(NamedTuple):
    """A sample of a peer: the time, the CPU seconds used, the records that its group has committed."""

    seconds: float
    cpu_seconds: float
    committed: int


class Window(NamedTuple):
    """The records processed and committed between two samples, and their cost."""

    records: int
    seconds: float
    cpu_seconds: float


class MeasurementFailed(Exception):
    """A system did not complete a workload; the message says how far it came and why."""


def window(samples: Sequence[Sample], after: int, until: int) -> Window | None:
    """The window from the first commit past ``after`` records to the first one of ``until``.

    ``None`` if it was not observed, or is too short for a measurable CPU time.
    """
    first = next((sample for sample in samples if sample.committed > after), None)
    last = next((sample for sample in samples if sample.committed >= until), None)
    if first is None or last is None or first.cpu_seconds == last.cpu_seconds:
        return None
    return Window(
        last.committed - first.committed, last.seconds - first.seconds, last.cpu_seconds - first.cpu_seconds
    )


def middle(results: Sequence[Result]) -> Result:
    """The median result by records per CPU-second, or else by p50."""
    ordered = sorted(results, key=lambda result: result.records_per_cpu_second or result.p50_ms or 0.0)
    return ordered[(len(ordered) - 1) // 2]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that is not exceeded by ``percent`` of them (nearest rank)."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class ProcessMeter:
    """CPU seconds and memory of a process as counted by the operating system, all threads together."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak_rss = 0

    def cpu_seconds(self) -> float:
        """User and system time so far; on Linux in steps of 10 ms."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def watch_memory(self) -> None:
        """Update the peak with the current resident memory."""
        # The operating system's own peak is not usable: a child begins with that of its parent.
        self.peak_rss = max(self.peak_rss, self._process.memory_info().rss)

    @property
    def peak_rss_mb(self) -> float:
        return self.peak_rss / 1024**2


class Restoration(NamedTuple):
    """The restores in a log: the tasks that began, and the records of those that ended."""

    started: set[str]
    restored: dict[str, int]


class _LogEntry(msgspec.Struct):
    event: str
    task: str = ""
    records: int = 0


_LOG_ENTRY = msgspec.json.Decoder(_LogEntry)


def read_restoration(log: str) -> Restoration:
    """The restores in JSON log lines; other and incomplete lines are skipped."""
    found = Restoration(set(), {})
    for line in log.splitlines():
        try:
            entry = _LOG_ENTRY.decode(line)
        except msgspec.DecodeError:
            continue
        if entry.event == Event.RESTORE_STARTED:
            found.started.add(entry.task)
        elif entry.event == Event.RESTORED:
            found.restored[entry.task] = entry.records
    return found


def watch(broker: Broker, peer: Peer, group: str, source: Input, meter: ProcessMeter) -> list[Sample]:
    """Sample a peer every 25 ms until all input is committed."""
    admin = broker.admin()
    end = source.records_before(len(source.parts))
    samples: list[Sample] = []
    progressed = time.monotonic()
    try:
        while not samples or samples[-1].committed < end:
            time.sleep(SAMPLE_SECONDS)
            peer.check()
            meter.watch_memory()
            committed = sum(
                offset
                for partition, offset in admin.committed_offsets(group).items()
                if partition.topic == source.topic
            )
            now = time.monotonic()
            if not samples or committed > samples[-1].committed:
                progressed = now
            elif now - progressed > STALL_SECONDS:
                raise MeasurementFailed(
                    f"no progress for {STALL_SECONDS:.0f} s with {committed:,} of {end:,} records committed; "
                    f"see {peer.log}"
                )
            samples.append(Sample(now, meter.cpu_seconds(), committed))
    finally:
        admin.close()
    return samples


def measured_window(samples: Sequence[Sample], source: Input, first: int) -> Window:
    """The window of the measured records, for a peer that began with the part ``first`` of the input.

    All systems are measured in the same way, from outside, by their committed offsets. The window opens with
    the first commit past the warm-up, so that starting, joining the group and the first fetch do not count,
    and closes with the commit of the last record. CPU time is that of the complete process between these two,
    including the client's own threads, garbage collection and compilation. A commit is noticed up to 25 ms
    late, at both ends. No peer needs a hook for this, which would have to be equally cheap in all of them.
    """
    before = source.records_before(max(first, 1))
    end = source.records_before(len(source.parts))
    found = window(samples, before, end)
    if found is None:
        raise MeasurementFailed(
            f"{end - before:,} records are too few, as one or two commits include them all; raise RECORDS"
        )
    return found


def measure_restore(peer: Peer, tasks: int, meter: ProcessMeter) -> Window:
    """The cost for a peer from the logged start of restoring to its end, for that many tasks."""
    deadline = time.monotonic() + RESTORE_SECONDS
    begun: tuple[float, float] | None = None
    while True:
        time.sleep(SAMPLE_SECONDS)
        peer.check()
        meter.watch_memory()
        found = read_restoration(peer.log.read_text(errors="replace"))
        now, cpu_seconds = time.monotonic(), meter.cpu_seconds()
        if len(found.restored) >= tasks:
            break
        if begun is None and found.started:
            begun = now, cpu_seconds
        if now > deadline:
            raise MeasurementFailed(
                f"{len(found.restored)} of {tasks} tasks restored in {RESTORE_SECONDS:.0f} s; see {peer.log}"
            )
    if begun is None or begun[1] == cpu_seconds:
        raise MeasurementFailed(f"{sum(found.restored.values()):,} records are too few; raise RECORDS")
    return Window(sum(found.restored.values()), now - begun[0], cpu_seconds - begun[1])


def check_output(broker: Broker, topic: str, job: Job, expected: Tally) -> None:
    """Raise ``MeasurementFailed`` unless the committed records of the topic are the job's right output."""
    try:
        found = job.found(read_to_end(broker, [topic]))
    except msgspec.DecodeError as error:
        raise MeasurementFailed(f"wrong output: {error}") from error
    if found.records != expected.records:
        raise MeasurementFailed(
            f"wrong output: it accounts for {found.records:,} records, expected {expected.records:,}"
        )
    if found.checksum != expected.checksum:
        raise MeasurementFailed("wrong output: it accounts for other records than the input's")
