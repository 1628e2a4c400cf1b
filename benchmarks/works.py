"""The works: what each system is given to do, and how its result is found."""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from dataclasses import dataclass, field
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
from benchmarks.systems import JAVA, PEERS, QUIX, RAW_CLIENT, THIS_RUNTIME, System
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
        """A topic for as long as the context is open."""
        topic = f"{self.prefix}-{name}"
        admin = self.broker.admin()
        admin.create_topics([NewTopic(name=topic, partitions=PARTITIONS, settings={"retention.ms": "-1"})])
        try:
            yield topic
        finally:
            admin.delete_topics([topic])
            admin.close()

    def close(self) -> None:
        """Delete the input."""
        if "source" in self.__dict__:
            self.broker.admin().delete_topics([self.source.topic])


class Work(Protocol):
    """Something to do, the same for all systems that are given it."""

    @property
    def name(self) -> str: ...

    def measure(self, bench: Bench, system: System) -> Result | None:
        """Let the system do it. Returns ``None`` for a system that is not given this work.

        Raises ``MeasurementFailed`` or ``PeerFailed``.
        """


@dataclass(frozen=True, slots=True)
class Throughput:
    """A job on the common input, as fast as it goes.

    ``expected`` tells the output of the job from the tallies of the input that was given.
    """

    name: str
    job: str
    guarantee: str
    commit_seconds: float = 0.1
    """Kafka Streams' default where exactly-once. The same for all: nobody gains by committing more rarely."""

    def measure(self, bench: Bench, system: System) -> Result:
        source = bench.source
        slug = f"{self.name}-{system.name}".replace(" ", "-")
        group = f"{bench.prefix}-{slug}"
        if not system.warms_up:
            _commit_start(bench.broker, group, source)
        with bench.topic(slug) as output:
            arguments = [bench.servers, source.topic, output, group, str(self.commit_seconds)]
            command = [*system.command, self.job, self.guarantee, *arguments]
            with Peer(command, bench.folder / f"{slug}.log") as peer:
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

    ``commit_seconds`` holds, for each system, the time between commits that serves it best at this rate: this
    runtime commits as soon as it has caught up, whatever its interval; the others wait for the interval, and
    a shorter one than here makes them slower.
    """

    name: str
    commit_seconds: dict[str, float]
    rate: int = 1000
    """Records a second."""

    warm_up_seconds: float = 5.0
    seconds: float = 20.0

    def measure(self, bench: Bench, system: System) -> Result | None:
        if system.name not in self.commit_seconds:
            return None
        slug = f"{self.name}-{system.name}".replace(" ", "-")
        group = f"{bench.prefix}-{slug}"
        interval = str(self.commit_seconds[system.name])
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(bench.topic(f"{slug}-input"))
            output = stack.enter_context(bench.topic(slug))
            arguments = [bench.servers, source, output, group, interval]
            command = [*system.command, "copy", "exactly_once", *arguments]
            peer = stack.enter_context(Peer(command, bench.folder / f"{slug}.log"))
            consumer = _reader(bench.servers, output)
            stack.callback(consumer.close)
            sender = [sys.executable, str(PEERS / "steady_sender.py"), bench.servers, source, str(self.rate)]
            # One record shows that the system is at work: the rate begins after that.
            with Peer([*sender, "1"], bench.folder / f"{slug}-sender.log") as first:
                first.wait(START_SECONDS)
            _receive(consumer, 1, peer)
            count = int(self.rate * (self.warm_up_seconds + self.seconds))
            sending = stack.enter_context(Peer([*sender, str(count)], bench.folder / f"{slug}-sender.log"))
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
    Latency("latency", {THIS_RUNTIME: 0.1, RAW_CLIENT: 0.01, JAVA: 0.01, QUIX: 0.01}),
)
