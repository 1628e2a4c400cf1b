"""The works: what each system is given to do, and how its result is found."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import Consumer, TopicPartition as ClientPartition

from benchmarks.data import PARTITIONS, Input, Tally, write_input
from benchmarks.measure import (
    MeasurementFailed,
    ProcessMeter,
    Result,
    check_output,
    measure_throughput,
    percentile,
)
from benchmarks.processes import Peer
from benchmarks.systems import PEERS, System
from streams.broker import BEGINNING, GroupSettings, NewTopic
from streams.broker.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_SECONDS = 60.0


@dataclass
class Bench:
    """What all measurements share. ``records`` is how many are measured, ``folder`` where logs go."""

    servers: str
    folder: Path
    records: int
    report: Callable[[str], None]
    prefix: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:6]}")
    """Begins the names of all topics and groups."""

    _runs: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def broker(self) -> KafkaBroker:
        return KafkaBroker({"bootstrap.servers": self.servers})

    @cached_property
    def source(self) -> Input:
        """The input of all throughput works, written when the first of them asks."""
        total = 0
        begun = time.monotonic()

        def count(records: int) -> None:
            nonlocal total
            total += records

        self.report(f"Writing {self.records:,} records, and before them twice as many to warm up …")
        source = write_input(self.broker, f"{self.prefix}-input", self.records, count)
        self.report(f"Wrote {total:,} records in {time.monotonic() - begun:.0f} s")
        return source

    @contextlib.contextmanager
    def topic(self, name: str) -> Iterator[str]:
        """A topic for as long as the context is open: with its input, a work needs gigabytes of disk."""
        admin = self.broker.admin()
        admin.create_topics([NewTopic(name=name, partitions=PARTITIONS, settings={"retention.ms": "-1"})])
        try:
            yield name
        finally:
            admin.delete_topics([name])
            admin.close()

    def name(self, work: Work, system: System) -> str:
        """A new name for the group and the output topic of a system that is given a work."""
        return f"{self.prefix}-{next(self._runs)}-{_slug(work, system)}"

    def log(self, work: Work, system: System) -> Path:
        """Where what the system says goes."""
        return self.folder / f"{_slug(work, system)}.log"

    def close(self) -> None:
        """Delete the topics that were made, those that a system made for itself too."""
        admin = self.broker.admin()
        admin.delete_topics([topic for topic in admin.topics() if topic.startswith(self.prefix)])
        admin.close()


def _slug(work: Work, system: System) -> str:
    return f"{work.name}-{system.name}".replace(" ", "-").lower()


class Work(Protocol):
    """Something to do, the same for all systems that are given it."""

    @property
    def name(self) -> str: ...

    @property
    def rounds(self) -> int:
        """How many times each system does it; the middle one of its results counts."""

    def warm_up(self, bench: Bench, system: System) -> None:
        """Let some system do it for the broker's sake, a Java program: who came first would meet a slow one.

        Raises as ``measure`` does.
        """

    def measure(self, bench: Bench, system: System) -> Result:
        """Let the system do it. Raises ``MeasurementFailed`` or ``PeerFailed``."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """A job on the common input, as fast as it goes.

    Its output is right when it holds what the input's tallies count.
    """

    name: str
    job: str
    guarantee: str
    rounds: int = 3
    """Other programs share the machine: one round of a few seconds may meet any of them."""

    commit_seconds: float = 0.1
    """Kafka Streams' default where exactly-once. The same for all: nobody gains by committing more rarely."""

    def warm_up(self, bench: Bench, system: System) -> None:
        self.measure(bench, replace(system, warms_up=True))

    def measure(self, bench: Bench, system: System) -> Result:
        source = bench.source
        group = bench.name(self, system)
        if not system.warms_up:
            _commit_start(bench.broker, group, source)
        with bench.topic(f"{group}-output") as output:
            arguments = [bench.servers, source.topic, output, group, str(self.commit_seconds)]
            command = [*system.command, self.job, self.guarantee, *arguments]
            with Peer(command, bench.log(self, system)) as peer:
                window, peak_rss_mb = measure_throughput(bench.broker, peer, group, source)
            parts = [source.measured, *([source.warm_up] if system.warms_up else [])]
            expected = Tally(sum(part.records for part in parts), sum(part.timestamps for part in parts))
            check_output(bench.broker, output, expected)
        return Result(
            work=self.name,
            system=system.name,
            records=window.records,
            records_per_second=window.records / window.seconds,
            records_per_cpu_second=window.records / window.cpu_seconds,
            peak_rss_mb=peak_rss_mb,
        )


def _commit_start(broker: KafkaBroker, group: str, source: Input) -> None:
    """Let the group begin where the measured records do."""
    consumer = broker.consumer(GroupSettings(group=group, protocol="classic"))
    try:
        consumer.assign(dict.fromkeys(source.starts, BEGINNING))
        consumer.commit(source.starts)
    finally:
        consumer.close()


@dataclass(frozen=True, slots=True)
class Latency:
    """From the sending of a record to the arrival of its copy at a reader that sees only what is committed.

    Measuring begins ``warm_up_seconds`` after sending does, and goes on for ``seconds``.
    """

    name: str
    rounds: int = 1
    commit_seconds: float = 0.01
    """The same for all. A commit takes some milliseconds: with less, they would do little else."""

    rate: int = 1000
    """Records a second."""

    warm_up_seconds: float = 5.0
    seconds: float = 20.0

    def warm_up(self, bench: Bench, system: System) -> None:
        # As many transactions as the broker can do: the code that runs for each is what has to get warm.
        replace(self, commit_seconds=0.001).measure(bench, system)

    def measure(self, bench: Bench, system: System) -> Result:
        group = bench.name(self, system)
        log = bench.log(self, system)
        sender_log = log.with_suffix(".sender.log")
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(bench.topic(f"{group}-input"))
            output = stack.enter_context(bench.topic(f"{group}-output"))
            arguments = [bench.servers, source, output, group, str(self.commit_seconds)]
            command = [*system.command, "copy", "exactly_once", *arguments]
            peer = stack.enter_context(Peer(command, log))
            consumer = _reader(bench.servers, output)
            stack.callback(consumer.close)
            sender = [sys.executable, str(PEERS / "steady_sender.py"), bench.servers, source, str(self.rate)]
            # One record shows that the system is at work: the rate begins after that.
            with Peer([*sender, "1"], sender_log) as first:
                first.wait(START_SECONDS)
            _receive(consumer, 1, peer)
            count = int(self.rate * (self.warm_up_seconds + self.seconds))
            sending = stack.enter_context(Peer([*sender, str(count)], sender_log))
            times, peak_rss_mb = _receive(consumer, count, peer)
            sending.wait(START_SECONDS)
        begin = min(sent for sent, _ in times) + self.warm_up_seconds * 1e9
        latencies = [(arrived - sent) / 1e6 for sent, arrived in times if sent >= begin]
        return Result(
            work=self.name,
            system=system.name,
            records=len(latencies),
            peak_rss_mb=peak_rss_mb,
            p50_ms=percentile(latencies, 50),
            p99_ms=percentile(latencies, 99),
        )


def _reader(servers: str, topic: str) -> Consumer:
    """A plain client that sees only what is committed, and is not slowed by anything of this runtime."""
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"{topic}-reader", "isolation.level": "read_committed"}
    )
    consumer.assign([ClientPartition(topic, number, 0) for number in range(PARTITIONS)])
    return consumer


def _receive(consumer: Consumer, count: int, peer: Peer) -> tuple[list[tuple[int, int]], float]:
    """When each of the next ``count`` records was sent and arrived, in nanoseconds; the peer's peak MB."""
    times: list[tuple[int, int]] = []
    meter = ProcessMeter(peer.pid)
    deadline = time.monotonic() + START_SECONDS
    while len(times) < count:
        message = consumer.poll(0.1)
        arrived = time.monotonic_ns()
        if message is not None and message.error() is None:
            times.append((int(message.value() or b""), arrived))
            deadline = time.monotonic() + START_SECONDS
        elif time.monotonic() > deadline:
            raise MeasurementFailed(
                f"{len(times):,} of {count:,} records arrived, then none for {START_SECONDS:.0f} s; "
                f"see {peer.log}"
            )
        if len(times) % 1000 == 0:
            peer.check()
            meter.watch_memory()
    return times, meter.peak_rss_mb


WORKS: tuple[Work, ...] = (
    Throughput("json eos", job="json", guarantee="exactly_once"),
    Throughput("json", job="json", guarantee="at_least_once"),
    Latency("latency"),
)
