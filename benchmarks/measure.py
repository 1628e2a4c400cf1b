"""What is measured, and how: everything from outside of the process that does the work."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import psutil

from streams.reading import read_to_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.data import Input, Tally
    from benchmarks.processes import Peer
    from streams.broker import Broker

SAMPLE_SECONDS = 0.025
STALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A system's figures on a work; ``None`` for what does not apply."""

    work: str
    system: str
    records: int
    records_per_second: float | None = None
    records_per_cpu_second: float | None = None
    peak_rss_mb: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


class Sample(NamedTuple):
    """The state of a peer: when, the CPU seconds its process has used, the records its group committed."""

    seconds: float
    cpu_seconds: float
    committed: int


class Window(NamedTuple):
    """What was processed and committed between two samples, and what it took."""

    records: int
    seconds: float
    cpu_seconds: float


class MeasurementFailed(Exception):
    """A system did not do the work; the message says how far it came and why."""


def window(samples: Sequence[Sample], after: int, until: int) -> Window | None:
    """From the first commit past ``after`` records to the first one of ``until``; ``None`` if not seen."""
    first = next((sample for sample in samples if sample.committed > after), None)
    last = next((sample for sample in samples if sample.committed >= until), None)
    if first is None or last is None or first is last:
        return None
    return Window(
        last.committed - first.committed, last.seconds - first.seconds, last.cpu_seconds - first.cpu_seconds
    )


def middle(results: Sequence[Result]) -> Result:
    """The one in the middle by what it measures: records per CPU-second, or else p50."""
    ordered = sorted(results, key=lambda result: result.records_per_cpu_second or result.p50_ms or 0.0)
    return ordered[(len(ordered) - 1) // 2]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that is not exceeded by ``percent`` of them (nearest rank)."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class ProcessMeter:
    """CPU seconds and memory of a process as the operating system counts them, all threads together."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak_rss = 0

    def cpu_seconds(self) -> float:
        """User and system time so far; on Linux in steps of 10 ms."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def watch_memory(self) -> None:
        """Take what is resident now into the peak."""
        # The peak that the system keeps is no use: a child begins with that of its parent.
        self.peak_rss = max(self.peak_rss, self._process.memory_info().rss)

    @property
    def peak_rss_mb(self) -> float:
        return self.peak_rss / 1024**2


def measure_throughput(broker: Broker, peer: Peer, group: str, source: Input) -> tuple[Window, float]:
    """Watch a peer until all the input is committed: the window of the measured records, and peak MB.

    All systems are watched alike, from outside, through what they promise: offsets committed. The window
    opens with the first commit past the warm-up, so that nobody's start, joining of the group or first fetch
    counts, and closes with the commit of the last record. CPU is the whole process's between these two, with
    the client's own threads, garbage collection and compilation. A commit is noticed up to 25 ms late, at
    both ends. No peer needs a hook for this, which would have to be equally cheap in all of them.
    """
    admin = broker.admin()
    meter = ProcessMeter(peer.pid)
    end = source.warm_up_records + source.records
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
    found = window(samples, source.warm_up_records, end)
    if found is None:
        raise MeasurementFailed(
            f"{source.records:,} records are too few: one commit had them all; set RECORDS to more"
        )
    return found, meter.peak_rss_mb


def check_output(broker: Broker, topic: str, expected: Tally) -> None:
    """Raise ``MeasurementFailed`` unless the topic holds, committed, what it must."""
    records = timestamps = 0
    for fetched in read_to_end(broker, [topic]):
        records += len(fetched)
        timestamps += sum(fetched.timestamps())
    if records != expected.records:
        raise MeasurementFailed(f"wrong output: {records:,} records, {expected.records:,} are right")
    if timestamps != expected.timestamps:
        raise MeasurementFailed("wrong output: the records' timestamps are not those of the input")
