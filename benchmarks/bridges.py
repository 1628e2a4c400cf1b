"""Each direction of each bridge, beside a plain loop with the same clients: ``make bench ONLY=bridges``.

The loop reads a batch, produces it with ``acks=all``, waits, and checks that all were written; or consumes,
writes and commits: at least once. The bridge is ``streams run``, with exactly-once results and positions.
Both get the same ``RECORDS`` (500,000) of 100 bytes, for RabbitMQ a fifth of them, in turns, ``RUNS`` (3)
times, and are measured from outside, from a tenth of the records to all: records a second, and for each
second of the CPU time of their process. The ratio is that of the middle run. RabbitMQ is left out where it is
not installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import amqp
import redis
import zmq
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import MeasurementFailed, ProcessMeter
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.kafka import LocalKafka
from streams.devstack.kafka.ports import free_ports
from streams.devstack.rabbitmq import LocalRabbitMQ
from streams.devstack.redis import LocalRedis
from streams.errors import StreamsError
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER: Final = Path("build/bench-bridges").absolute()
RESULTS: Final = Path("build/bench-bridges.json")
ROOT: Final = Path(__file__).parents[1]
PATIENCE: Final = 120.0
LOOK_SECONDS: Final = 0.02
PARTITIONS: Final = 4
SLOW: Final = 5
"""RabbitMQ, some times slower than the others, gets one record of so many."""
VALUE: Final = b"x" * 92
SYSTEMS: Final = {
    "bridge": ("-m", "streams", "run", "benchmarks.peers.bridges_app:app"),
    "plain loop": ("-m", "benchmarks.peers.bridge_loop"),
}

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


class Figures(NamedTuple):
    """Of one run."""

    per_second: float
    per_cpu_second: float


class Bench:
    """The servers, and what is sent to them."""

    def __init__(self, stack: ExitStack, records: int) -> None:
        self._all = self.records = records
        kafka = stack.enter_context(LocalKafka.start(FOLDER / "kafka", heap_mb=512))
        self.servers = kafka.bootstrap_servers
        self.admin = KafkaBroker({"bootstrap.servers": self.servers}).admin()
        stack.callback(self.admin.close)
        self._redis = stack.enter_context(LocalRedis.create("--maxmemory", "1gb"))
        self.client = stack.enter_context(redis.Redis(port=self._redis.port))
        self.missing = LocalRabbitMQ.missing()
        if not self.missing:
            self._rabbitmq = stack.enter_context(LocalRabbitMQ.create())

    def run(self, work: str, system: str) -> Figures:
        """One run with a new topic."""
        self.records = self._all // SLOW if "rabbitmq" in work else self._all
        topic = f"bench-{time.time_ns()}"
        self.admin.create_topics([NewTopic(name=topic, partitions=PARTITIONS)])
        with ExitStack() as stack:
            address, arrived = self._prepare(stack, work, topic)
            return self._measure(work, system, topic, address, arrived)

    def _prepare(self, stack: ExitStack, work: str, topic: str) -> tuple[str, Callable[[], int]]:
        """Send the input; returns the address of the system, and what counts what has arrived."""
        system = next(name for name in ("zeromq", "rabbitmq", "redis") if name in work)
        address = (
            f"tcp://127.0.0.1:{free_ports(1)[0]}"
            if system == "zeromq"
            else self._redis.url
            if system == "redis"
            else self._rabbitmq.url()
        )
        channel = stack.enter_context(channel_of(self._rabbitmq.port)) if system == "rabbitmq" else None
        if work.endswith("→ Kafka"):
            if system == "zeromq":
                stack.enter_context(sending(address, self.records))
            elif channel is not None:
                channel.queue_declare(topic, durable=True, auto_delete=False)
                stack.callback(channel.queue_delete, topic)
                for number in range(self.records):
                    channel.basic_publish(self._message(number), "", topic)
                # Answered once the server has taken what was published before.
                channel.queue_declare(topic, passive=True)
            else:
                self._fill(topic, as_list="list" in work)
            places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            # Transactions leave markers: those that have arrived are counted, and then less.
            return address, lambda: sum(self.admin.end_offsets(places).values())
        producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 20, "batch.size": 500_000})
        for number in range(self.records):
            while True:
                try:
                    producer.produce(topic, VALUE + b"%08d" % number, partition=number % PARTITIONS)
                except BufferError:
                    producer.poll(0.1)
                else:
                    break
        producer.flush()
        if system == "zeromq":
            return address, stack.enter_context(receiving(address))
        if channel is not None:
            name = f"{topic}-out"
            channel.queue_declare(name, durable=True, auto_delete=False)
            stack.callback(channel.queue_delete, name)
            return address, lambda: int(channel.queue_declare(name, passive=True).message_count)
        stack.callback(self.client.delete, f"{topic}-out")
        length = self.client.llen if "list" in work else self.client.xlen
        return address, lambda: int(length(f"{topic}-out"))

    @staticmethod
    def _message(number: int) -> Any:
        return amqp.Message(VALUE + b"%08d" % number, message_id=f"m-{number}", delivery_mode=2)

    def _fill(self, key: str, *, as_list: bool) -> None:
        for start in range(0, self.records, 5_000):
            values = [VALUE + b"%08d" % number for number in range(start, min(start + 5_000, self.records))]
            pipeline = self.client.pipeline(transaction=False)
            if as_list:
                pipeline.rpush(key, *values)
            else:
                for value in values:
                    pipeline.xadd(key, {"value": value})
            pipeline.execute()

    def _measure(
        self, work: str, system: str, topic: str, address: str, arrived: Callable[[], int]
    ) -> Figures:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")},
            "BENCH_WORK": work,
            "BENCH_ADDRESS": address,
            "BENCH_TOPIC": topic,
            "BENCH_SERVERS": self.servers,
            "STREAMS_BOOTSTRAP_SERVERS": self.servers,
            "STREAMS_STATE_DIR": str(FOLDER / "state"),
        }
        log = FOLDER / "peer.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                (sys.executable, *SYSTEMS[system]),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            meter = ProcessMeter(process.pid)
            deadline = time.monotonic() + PATIENCE
            first: tuple[int, float, float] | None = None
            while (count := arrived()) < self.records:
                now = time.perf_counter()
                if first is None and count >= self.records // 10:
                    first = count, now, meter.cpu_seconds()
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MeasurementFailed(
                        f"{work}, {system}: {count:,} of {self.records:,} records have arrived; see {log}"
                    )
                time.sleep(LOOK_SECONDS)
            if first is None:
                raise MeasurementFailed(f"{work}, {system}: too few records to measure; raise RECORDS")
            seconds, cpu = time.perf_counter() - first[1], meter.cpu_seconds() - first[2]
            rest = self.records - first[0]
            return Figures(rest / seconds, rest / max(cpu, 0.01))
        finally:
            process.kill()
            process.wait()
            self.client.delete(topic)


@contextlib.contextmanager
def channel_of(port: int) -> Iterator[Any]:
    """A channel of RabbitMQ."""
    # A server that lets a fast publisher wait takes nothing for longer than the client's own second.
    patient = {socket.TCP_USER_TIMEOUT: 60_000}
    connection = amqp.Connection(
        f"127.0.0.1:{port}", "guest", "guest", login_method="PLAIN", socket_settings=patient
    )
    connection.connect()
    try:
        yield connection.channel()
    finally:
        connection.close()


@contextlib.contextmanager
def sending(address: str, records: int) -> Iterator[None]:
    """A process that pushes the records to whoever connects."""
    program = (
        "import sys, zmq\n"
        "socket = zmq.Context().socket(zmq.PUSH)\n"
        "socket.bind(sys.argv[1])\n"
        f"for number in range({records}): socket.send({VALUE!r} + b'%08d' % number)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, address], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def receiving(address: str) -> Iterator[Callable[[], int]]:
    """Receives in a thread; yields what counts the messages."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    receiver = context.socket(zmq.PULL)
    receiver.linger = 0
    receiver.bind(address)
    counts = [0]

    def receive() -> None:
        try:
            while True:
                receiver.recv()
                counts[0] += 1
        except zmq.ContextTerminated:
            receiver.close()

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield lambda: counts[0]
    finally:
        context.term()
        thread.join()


WORKS: Final = (
    "redis stream → Kafka",
    "redis list → Kafka",
    "zeromq → Kafka",
    "rabbitmq → Kafka",
    "Kafka → redis stream",
    "Kafka → redis list",
    "Kafka → zeromq",
    "Kafka → rabbitmq",
)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    records, runs = int(os.environ.get("RECORDS") or "500000"), int(os.environ.get("RUNS") or "3")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    results: list[dict[str, Any]] = []
    table = Table("work", "system", title=f"Bridges, {records:,} records of 100 bytes", title_justify="left")
    for heading in ("records/s", "records per\nCPU-second", "to the loop,\nper second", "per CPU-second"):
        table.add_column(heading, justify="right")
    try:
        with ExitStack() as stack:
            bench = Bench(stack, records)
            if bench.missing:
                console.print(f"Without RabbitMQ: {bench.missing}")
            for work in WORKS:
                if bench.missing and "rabbitmq" in work:
                    continue
                found: dict[str, list[Figures]] = {system: [] for system in SYSTEMS}
                for _ in range(runs):
                    for system, own in found.items():
                        own.append(bench.run(work, system))
                        console.print(
                            f"[dim]{work}, {system}: {own[-1].per_second:,.0f} records/s, "
                            f"{own[-1].per_cpu_second:,.0f} per CPU-second[/]"
                        )
                _add(table, results, work, found)
    except (MeasurementFailed, StreamsError) as error:
        console.print(f"[bold red]The benchmark failed:[/] {error}")
        return 1
    console.print(table)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"The same figures as data: {RESULTS}")
    return 0


def _add(table: Table, results: list[dict[str, Any]], work: str, found: dict[str, list[Figures]]) -> None:
    pairs = list(zip(*found.values(), strict=True))
    ratios = Figures(
        statistics.median(ours.per_second / loop.per_second for ours, loop in pairs),
        statistics.median(ours.per_cpu_second / loop.per_cpu_second for ours, loop in pairs),
    )
    for system, own in found.items():
        figures = Figures(*map(statistics.median, zip(*own, strict=True)))
        shares = [f"{ratio:.2f}" for ratio in ratios] if system == "bridge" else ["", ""]
        table.add_row(work, system, f"{figures.per_second:,.0f}", f"{figures.per_cpu_second:,.0f}", *shares)
        results.append({"work": work, "system": system, **figures._asdict()})
    results.append({"work": work, "ratio_per_second": ratios[0], "ratio_per_cpu_second": ratios[1]})


if __name__ == "__main__":
    sys.exit(main())
