"""The workloads, and how each is measured."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from confluent_kafka import Consumer, TopicPartition as ClientPartition

from benchmarks.data import (
    CHUNK_RECORDS,
    FLUSH_SECONDS,
    PARTITIONS,
    Input,
    generate_chunks,
    generate_small_chunks,
    generate_teams,
    make_topic,
    write_input,
)
from benchmarks.decoding import Decoding
from benchmarks.jobs import COUNT_KEYS, COUNT_WINDOWS, JOIN, JSON, Job
from benchmarks.measure import (
    MeasurementFailed,
    ProcessMeter,
    Result,
    Sample,
    check_output,
    measure_restore,
    measured_window,
    percentile,
    watch,
)
from benchmarks.processes import Peer
from benchmarks.systems import (
    ALL,
    JAVA,
    PEERS,
    QUIX,
    RAW_CLIENT,
    THIS_RUNTIME,
    WITH_LINEAGE,
    WITH_TRACING,
    System,
)
from streams.broker import BEGINNING, GroupSettings
from streams.broker.kafka import KafkaBroker
from streams.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from benchmarks.data import Chunk
    from streams.records import TopicPartition

START_SECONDS = 60.0


@dataclass
class Bench:
    """Shared by all measurements. ``records`` is the number of measured records, ``folder`` is for logs."""

    servers: str
    folder: Path
    records: int
    report: Callable[[str], None]
    prefix: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:6]}")
    """The prefix of all topics and groups."""

    warm: set[str] = field(default_factory=set)
    """The guarantees with which the broker has been warmed up."""

    _runs: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def broker(self) -> KafkaBroker:
        return KafkaBroker({"bootstrap.servers": self.servers})

    @cached_property
    def requests(self) -> Input:
        """Access-log records, written on first use, after twice as many for the warm-up.

        The last fifth is a separate part, for systems that would take minutes for all of them.
        """
        brief = max(self.records // CHUNK_RECORDS // 5, 1) * CHUNK_RECORDS
        sizes = [2 * self.records, self.records - brief, brief]
        return self._write("requests", generate_chunks(sum(sizes)), sizes, (JSON, COUNT_WINDOWS, JOIN))

    @cached_property
    def small_records(self) -> Input:
        """Small records, with as many keys as measured records: each key once for the warm-up, then once
        more.
        """
        sizes = [self.records, self.records]
        return self._write("small-records", generate_small_chunks(self.records), sizes, (COUNT_KEYS,))

    @cached_property
    def teams(self) -> str:
        """The topic of the table for joins with access-log records."""
        name = f"{self.prefix}-teams"
        make_topic(self.broker, name)
        teams = generate_teams()
        producer = self.broker.producer()
        producer.produce(Output(name, teams.keys, teams.values, teams.timestamps))
        producer.flush(FLUSH_SECONDS)
        producer.close()
        return name

    def _write(self, name: str, chunks: Iterator[Chunk], sizes: Sequence[int], jobs: Sequence[Job]) -> Input:
        self.report(f"Writing {sum(sizes):,} {name.replace('-', ' ')} …")
        begun = time.monotonic()
        source = Input(f"{self.prefix}-{name}")
        write_input(self.broker, source, chunks, sizes, {job.name: job.expected for job in jobs})
        self.report(f"Wrote them in {time.monotonic() - begun:.0f} s")
        return source

    @contextlib.contextmanager
    def group(self, work: Work, system: System) -> Iterator[str]:
        """A new name for the group of a system.

        When the context is left, all topics with this name are deleted, changelogs too: with its input, a
        workload needs gigabytes of disk.
        """
        name = f"{self.prefix}-{next(self._runs)}-{_slug(work, system)}"
        try:
            yield name
        finally:
            self._delete_topics(name)

    def topic(self, name: str) -> str:
        """Create a topic with this name."""
        make_topic(self.broker, name)
        return name

    def log(self, work: Work, system: System) -> Path:
        """The file for the system's log."""
        return self.folder / f"{_slug(work, system)}.log"

    def close(self) -> None:
        """Delete the created topics."""
        self._delete_topics(self.prefix)

    def _delete_topics(self, part: str) -> None:
        admin = self.broker.admin()
        admin.delete_topics([topic for topic in admin.topics() if part in topic])
        admin.close()


def _slug(work: Work, system: System) -> str:
    return f"{work.name}-{system.name}".replace(" ", "-").lower()


class Work(Protocol):
    """A workload, equal for all of its systems."""

    @property
    def name(self) -> str: ...

    @property
    def rounds(self) -> int:
        """How many times each system runs it; the median counts."""

    @property
    def systems(self) -> Collection[str]:
        """The names of the systems that run it."""

    def warm_up(self, bench: Bench, system: System) -> None:
        """Warm up the broker, a Java program, with some system: the first system would otherwise be slower.

        Raises as ``measure`` does.
        """

    def measure(self, bench: Bench, system: System) -> Result:
        """Run and measure the system. Raises ``MeasurementFailed`` or ``PeerFailed``."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """A job on an input, at full speed. Its output is verified by the input's tallies."""

    name: str
    job: Job
    guarantee: str = "exactly_once"
    systems: Collection[str] = ALL
    rounds: int = 3
    """Several rounds, as other programs share the machine and may disturb one of a few seconds."""

    commit_seconds: float = 0.1
    """Kafka Streams' default under exactly-once, for all systems: rarer commits would be an advantage."""

    source: Callable[[Bench], Input] = attrgetter("requests")
    table: Callable[[Bench], str] | None = None
    """The topic of the table of a join."""

    all_warm_up: bool = False
    """Whether all systems get the warm-up part, as it builds the state for the measured records."""

    brief: Collection[str] = ()
    """Systems that get only the input's last part."""

    def warm_up(self, bench: Bench, system: System) -> None:
        if self.guarantee in bench.warm:
            return
        bench.warm.add(self.guarantee)
        # Any job warms up the broker, and this one needs no state.
        json = Throughput(self.name, JSON, self.guarantee)
        with bench.group(json, system) as group:
            json.run(bench, system, group, 0)

    def measure(self, bench: Bench, system: System) -> Result:
        first = 0 if system.warms_up or self.all_warm_up else 2 if system.name in self.brief else 1
        with bench.group(self, system) as group:
            run = self.run(bench, system, group, first)
        window = measured_window(run.samples, self.source(bench), first)
        return Result(
            work=self.name,
            system=system.name,
            records=window.records,
            records_per_second=window.records / window.seconds,
            records_per_cpu_second=window.records / window.cpu_seconds,
            peak_rss_mb=run.peak_rss_mb,
            state_mb=run.state_bytes / 1024**2 if self.job.stateful else None,
        )

    def run(self, bench: Bench, system: System, group: str, first: int) -> Run:
        """Run the job from the part ``first`` of the input, and verify its output."""
        source = self.source(bench)
        output = bench.topic(f"{group}-output")
        _commit_start(bench.broker, group, source.parts[first].starts)
        with Peer(self.command(bench, system, group, output), bench.log(self, system)) as peer:
            meter = ProcessMeter(peer.pid)
            samples = watch(bench.broker, peer, group, source, meter)
            state_bytes = peer.state_bytes()
        check_output(bench.broker, output, self.job, source.tally(self.job.name, first))
        return Run(samples, meter.peak_rss_mb, state_bytes)

    def command(self, bench: Bench, system: System, group: str, output: str) -> list[str]:
        """The command that starts the system."""
        tables = [] if self.table is None else [self.table(bench)]
        topics = [self.source(bench).topic, output]
        interval = str(self.commit_seconds)
        return [
            *system.command,
            self.job.name,
            self.guarantee,
            bench.servers,
            *topics,
            group,
            interval,
            *tables,
        ]


class Run(NamedTuple):
    """The samples of a peer during a job."""

    samples: list[Sample]
    peak_rss_mb: float
    state_bytes: int


def _commit_start(broker: KafkaBroker, group: str, starts: dict[TopicPartition, int]) -> None:
    """Commit the group's start offsets."""
    consumer = broker.consumer(GroupSettings(group=group, protocol="classic"))
    try:
        consumer.assign(dict.fromkeys(starts, BEGINNING))
        consumer.commit(starts)
    finally:
        consumer.close()


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore of the state that ``build`` left in a changelog, in a new process with an empty folder.

    There is no other work: all input is committed. Java is cold, as it is in a real restore.
    """

    name: str
    build: Throughput
    rounds: int = 1

    @property
    def systems(self) -> Collection[str]:
        return self.build.systems

    def warm_up(self, bench: Bench, system: System) -> None:
        self.build.warm_up(bench, system)

    def measure(self, bench: Bench, system: System) -> Result:
        with bench.group(self, system) as group:
            self.build.run(bench, system, group, 0)
            # The folder with the state belonged to the first process and was removed with it.
            command = self.build.command(bench, system, group, f"{group}-output")
            with Peer(command, bench.log(self, system)) as peer:
                meter = ProcessMeter(peer.pid)
                restored = measure_restore(peer, PARTITIONS, meter)
                state_bytes = peer.state_bytes()
        keys = bench.records
        if restored.records < keys:
            raise MeasurementFailed(f"restored {restored.records:,} records of {keys:,} keys or more")
        return Result(
            work=self.name,
            system=system.name,
            records=restored.records,
            records_per_second=restored.records / restored.seconds,
            records_per_cpu_second=restored.records / restored.cpu_seconds,
            peak_rss_mb=meter.peak_rss_mb,
            state_mb=state_bytes / 1024**2,
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """The latency from sending a record to the arrival of its copy at a ``read_committed`` reader.

    Measuring begins ``warm_up_seconds`` after sending, and takes ``seconds``.
    """

    name: str
    systems: Collection[str] = ALL
    rounds: int = 3
    commit_seconds: float = 0.01
    """Equal for all systems. A commit takes some milliseconds: with less, they would do little else."""

    rate: int = 1000
    """Records per second."""

    warm_up_seconds: float = 4.0
    seconds: float = 12.0

    def warm_up(self, bench: Bench, system: System) -> None:
        # As many transactions as possible, as the broker's code for transactions has to be warmed up.
        replace(self, commit_seconds=0.001).measure(bench, system)

    def measure(self, bench: Bench, system: System) -> Result:
        log = bench.log(self, system)
        sender_log = log.with_suffix(".sender.log")
        with contextlib.ExitStack() as stack:
            group = stack.enter_context(bench.group(self, system))
            source = bench.topic(f"{group}-input")
            output = bench.topic(f"{group}-output")
            arguments = [bench.servers, source, output, group, str(self.commit_seconds)]
            command = [*system.command, "copy", "exactly_once", *arguments]
            peer = stack.enter_context(Peer(command, log))
            consumer = _reader(bench.servers, output)
            stack.callback(consumer.close)
            sender = [sys.executable, str(PEERS / "steady_sender.py"), bench.servers, source, str(self.rate)]
            # The first record shows that the system is running: the steady rate begins after that.
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
    """A plain ``read_committed`` client, independent of this library."""
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


_COUNT_KEYS = Throughput(
    "count 1M keys",
    COUNT_KEYS,
    systems=(THIS_RUNTIME, JAVA),
    rounds=1,
    commit_seconds=1.0,
    source=attrgetter("small_records"),
    all_warm_up=True,
)

WORKS: tuple[Work, ...] = (
    Throughput("json eos", JSON),
    Throughput("json", JSON, guarantee="at_least_once"),
    # The raw client has no state, so it is not part of the following workloads.
    Throughput(
        "count eos",
        COUNT_WINDOWS,
        systems=(THIS_RUNTIME, JAVA, QUIX),
        commit_seconds=1.0,
        brief=(QUIX,),
    ),
    _COUNT_KEYS,
    Throughput(
        "join",
        JOIN,
        systems=(THIS_RUNTIME, JAVA),
        rounds=2,
        commit_seconds=1.0,
        table=attrgetter("teams"),
    ),
    Restore("restore", build=_COUNT_KEYS),
    Decoding("avro, own schema", "own"),
    Decoding("avro, earlier schema", "earlier"),
    # What settings cost, with nothing that other systems have.
    Throughput("lineage json eos", JSON, systems=(THIS_RUNTIME, WITH_LINEAGE)),
    Throughput(
        "lineage count eos",
        COUNT_WINDOWS,
        systems=(THIS_RUNTIME, WITH_LINEAGE),
        commit_seconds=1.0,
    ),
    Throughput("tracing json eos", JSON, systems=(THIS_RUNTIME, WITH_TRACING)),
    Throughput(
        "tracing count eos",
        COUNT_WINDOWS,
        systems=(THIS_RUNTIME, WITH_TRACING),
        commit_seconds=1.0,
    ),
    Latency("latency 1k"),
    Latency("latency 10k", systems=(THIS_RUNTIME, RAW_CLIENT, JAVA), rate=10_000),
)
