"""``make demo-bridges``: messages through every bridge, while each server and a worker are killed once."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from apps.bridges.arrivals import Arrivals, RedisNumbers, TopicNumbers
from apps.bridges.promise import BRIDGES, CALM_SHARE, Account
from apps.bridges.rabbitmq_side import OUT, PASSING, RabbitMQNumbers, RabbitMQTarget, connected
from apps.bridges.report import Report, show
from apps.bridges.senders import (
    KafkaTarget,
    Pace,
    RedisTarget,
    Sender,
    SendFailed,
    ZeroMQProcess,
    ZeroMQTarget,
    redis_client,
)
from apps.workers import WorkerFailed, Workers
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.devstack.kafka.ports import free_ports
from streams.devstack.rabbitmq import LocalRabbitMQ
from streams.devstack.redis import LocalRedis
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from apps.bridges.senders import Target

WORKERS: Final = 2
STALL_SECONDS: Final = 120.0
"""After this time without a message that arrives, the demonstration fails."""
CALM_SECONDS: Final = 8.0
"""So long no partition has moved before messages are sent of which none may be lost."""
LOOK_SECONDS: Final = 0.5
BUILD: Final = Path("build")
STATE: Final = BUILD / "demo-bridges-state"
REPORT: Final = BUILD / "demo-bridges-report.json"

# A killed worker's partitions move after this time.
QUICK_GROUPS: Final = {
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.session.timeout.ms": "6000",
}

console = Console()
if not console.is_terminal:
    # Files and pipes have no width, and 80 columns are too few for the table.
    console = Console(width=110)


class DemoFailed(Exception):
    """The demonstration failed; the message says where and why."""


class _Event(NamedTuple):
    """Something that happens when a share of the messages is sent."""

    share: float
    happen: Callable[[], str]
    """Returns what happened, in words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if every bridge keeps its promise."""
    parser = argparse.ArgumentParser(prog="make demo-bridges", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="how many through each bridge")
    parser.add_argument("--seconds", type=float, default=30.0, help="in what time they are sent")
    options = parser.parse_args(arguments)
    if options.messages < 100:
        parser.error("--messages must be 100 or more")
    # Hide the client's messages about a broker that is killed.
    logging.getLogger("streams").addHandler(logging.NullHandler())
    # SIGTERM becomes an exception, so that the workers and the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    BUILD.mkdir(exist_ok=True)
    try:
        with ExitStack() as stack:
            report = _Demo(stack, options.messages, options.seconds).run()
    except (StreamsError, DemoFailed, SendFailed, WorkerFailed, RedisError) as error:
        console.print("[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code if isinstance(error, StreamsError) else 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    show(report, console)
    REPORT.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    console.print(f"The same figures as data: {REPORT}")
    return 1 if report.problems else 0


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


class _Demo:
    """The servers, the workers, the programs on the other side, and what happens to them."""

    def __init__(self, stack: ExitStack, messages: int, seconds: float) -> None:
        self._stack = stack
        self._messages = messages
        self._send_seconds = seconds
        self._seconds: dict[str, float] = {}
        self._survived: list[str] = []
        self._happened = 0.0
        """When something happened last, in seconds since the epoch."""
        begun = time.monotonic()
        _say("Starting a Valkey and a Kafka …")
        shutil.rmtree(STATE, ignore_errors=True)
        stack.callback(shutil.rmtree, STATE, ignore_errors=True)
        STATE.mkdir(parents=True)
        self._redis = stack.enter_context(LocalRedis.create())
        self._without: dict[str, str] = {}
        self._rabbitmq: LocalRabbitMQ | None = None
        if reason := LocalRabbitMQ.missing():
            self._without["RabbitMQ"] = reason
        else:
            _say("Starting a RabbitMQ …")
            self._rabbitmq = stack.enter_context(LocalRabbitMQ.create())
            connection = connected(self._rabbitmq.port)
            connection.channel().queue_declare(OUT, durable=True, auto_delete=False)
            connection.close()
        self._bridges = [
            bridge for bridge in BRIDGES if bridge.system != "rabbitmq" or self._rabbitmq is not None
        ]
        self._kafka, servers = _kafka(stack)
        # The user's cluster may contain an earlier run, so every run has its own names.
        self._prefix = f"demo-{uuid.uuid4().hex[:6]}-"
        self._addresses = {
            kind: f"tcp://127.0.0.1:{port}"
            for kind, port in zip(("push", "pub", "pull", "sub"), free_ports(4), strict=True)
        }
        environment = {
            **os.environ,
            "BRIDGES_PREFIX": self._prefix,
            "RABBITMQ_URL": "" if self._rabbitmq is None else self._rabbitmq.url(),
            "REDIS_URL": self._redis.url,
            **{f"ZEROMQ_{kind.upper()}": address for kind, address in self._addresses.items()},
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(STATE),
            # A killed worker's partitions and open transaction are free after these times.
            "STREAMS_SESSION_TIMEOUT": "6",
            "STREAMS_TRANSACTION_TIMEOUT": "6",
        }
        self._servers = servers
        self._broker = KafkaBroker({"bootstrap.servers": servers})
        self._broker.admin().create_topics(
            [NewTopic(name=f"{self._prefix}{bridge.name}", partitions=2) for bridge in self._bridges]
        )
        self._workers = Workers("apps.bridges.app:app", WORKERS, environment, BUILD, "demo-bridges-worker")
        self._zeromq: dict[str, ZeroMQProcess] = {}
        self._senders: dict[str, Sender] = {}
        self._seconds["start the servers"] = time.monotonic() - begun

    def run(self) -> Report:
        """Run everything, and compare."""
        topics = {bridge.name: f"{self._prefix}{bridge.name}" for bridge in self._bridges}
        in_topics = TopicNumbers(
            self._broker, {bridge.name: topics[bridge.name] for bridge in self._bridges if bridge.inward}
        )
        self._stack.callback(in_topics.stop)
        in_redis = RedisNumbers(self._redis.port)
        self._stack.callback(in_redis.close)
        files = {f"to-zeromq-{kind}": STATE / kind for kind in ("pull", "sub")}
        in_rabbitmq = None
        if self._rabbitmq is not None:
            in_rabbitmq = RabbitMQNumbers(self._rabbitmq.port, lambda: self._senders["kafka"].sent)
        arrivals = Arrivals(in_topics, in_redis, in_rabbitmq, files)
        with self._workers:
            begun = time.monotonic()
            for kind in ("push", "pub"):
                self._start_process(f"from-zeromq-{kind}", STATE / kind)
            for name, file in files.items():
                self._start_process(name, file)
            self._wait_for_sources()
            self._seconds["start the workers"] = time.monotonic() - begun
            begun = time.monotonic()
            self._send(topics)
            self._follow(arrivals)
            self._seconds["send and receive"] = time.monotonic() - begun
            begun = time.monotonic()
        self._seconds["stop the workers"] = time.monotonic() - begun
        found = arrivals.numbers()
        return Report(
            accounts=[
                Account(bridge, self._senders[self._sender_of(bridge.name)].sent, found.get(bridge.name, []))
                for bridge in self._bridges
            ],
            without=self._without,
            survived=self._survived,
            seconds=self._seconds,
        )

    # --- begin

    def _start_process(self, name: str, file: Path) -> None:
        kind = name.rpartition("-")[2]
        process = self._zeromq[name] = ZeroMQProcess(kind, self._addresses[kind], file)
        # Before it is started: Ctrl-C may come at any time.
        self._stack.callback(process.kill)
        process.start()

    def _wait_for_sources(self) -> None:
        """Until nothing that is sent can be lost."""
        deadline = time.monotonic() + STALL_SECONDS
        while not self._is_calm():
            self._workers.require()
            if time.monotonic() > deadline:
                raise DemoFailed(f"the workers do not start; see {BUILD}/demo-bridges-worker-*.log")
            time.sleep(LOOK_SECONDS)

    def _is_calm(self) -> bool:
        """Whether those that remember nothing are connected, and it is long since anything has happened."""
        settled = self._workers.settled()
        if not settled or time.time() - max(settled, self._happened) < CALM_SECONDS:
            return False
        client: Any = redis_client(self._redis.port)
        with client:
            return bool(dict(client.pubsub_numsub("channel-in"))[b"channel-in"])

    def _send(self, topics: Mapping[str, str]) -> None:
        self._pace = Pace(self._messages, self._send_seconds, self._messages - self._messages // CALM_SHARE)
        if self._rabbitmq is not None:
            self._sender("from-rabbitmq", RabbitMQTarget(self._rabbitmq.port), PASSING)
        for kind in ("stream", "group", "list", "channel"):
            shape = "stream" if kind == "group" else kind
            target = RedisTarget(self._redis.port, shape, f"{kind}-in")
            self._sender(f"from-redis-{kind}", target, RedisError)
        for kind in ("push", "pub"):
            name = f"from-zeromq-{kind}"
            self._sender(name, ZeroMQTarget(self._zeromq[name]), OSError)
        writers = {
            topics[bridge.name]: _json if bridge.name == "to-redis-hashes" else _plain
            for bridge in self._bridges
            if not bridge.inward
        }
        self._sender("kafka", KafkaTarget(self._servers, writers), OSError)

    def _sender(
        self, name: str, target: Target, passing: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        sender = self._senders[name] = Sender(name, target, self._pace, self._messages, passing)
        self._stack.callback(sender.stop)
        sender.start()

    def _sender_of(self, bridge: str) -> str:
        return bridge if bridge in self._senders else "kafka"

    # --- while it goes

    def _follow(self, arrivals: Arrivals) -> None:
        """Wait until all have arrived that can, and let things happen meanwhile."""
        events = [
            _Event(0.15, self._kill_a_worker),
            _Event(0.3, self._kill_redis),
            _Event(0.5, self._kill_zeromq),
            _Event(0.65, self._kill_kafka),
        ]
        if self._rabbitmq is not None:
            events.insert(2, _Event(0.4, self._kill_rabbitmq))
        begun_well = released = False
        seen, moved = 0, time.monotonic()
        with _progress() as progress:
            bars = {
                bridge.name: progress.add_task(bridge.words, total=self._messages, note="")
                for bridge in self._bridges
            }
            while True:
                time.sleep(LOOK_SECONDS)
                self._require()
                found = arrivals.numbers()
                self._show(progress, bars, found)
                now, count = time.monotonic(), sum(map(len, found.values()))
                if count != seen:
                    seen, moved = count, now
                elif now - moved > STALL_SECONDS:
                    missing = self._missing(found, all_of_them=released)
                    raise DemoFailed(
                        f"nothing has arrived for {STALL_SECONDS:.0f} s, not all from {', '.join(missing)}; "
                        f"see {BUILD}/demo-bridges-worker-*.log"
                    )
                sent = min(sender.sent for sender in self._senders.values())
                if not begun_well and not self._have_begun(found):
                    continue
                begun_well = True
                if events and sent >= events[0].share * self._messages:
                    happened = events.pop(0).happen()
                    self._happened = time.time()
                    self._survived.append(happened)
                    progress.console.print(f"[yellow]{happened}[/]", highlight=False)
                    moved = time.monotonic()
                elif not events and not self._missing(found, all_of_them=released):
                    if released:
                        return
                    if self._is_calm():
                        # Nothing fails any more, and everything is connected.
                        self._pace.release()
                        released = True

    def _show(self, progress: Progress, bars: Mapping[str, TaskID], found: Mapping[str, list[int]]) -> None:
        for bridge in self._bridges:
            numbers = found.get(bridge.name, [])
            arrived = len(set(numbers))
            again = len(numbers) - arrived
            note = f"{again:,} again" if again else ""
            progress.update(bars[bridge.name], completed=arrived, note=note)

    def _have_begun(self, found: Mapping[str, list[int]]) -> bool:
        """Whether what was sent while nothing fails has arrived by each bridge."""
        first = range(self._messages // CALM_SHARE)
        return all(set(found.get(bridge.name, ())).issuperset(first) for bridge in self._bridges)

    def _missing(self, found: Mapping[str, list[int]], *, all_of_them: bool) -> list[str]:
        """The bridges from which more has to come; from those that lose some, the last ones of all."""
        enough = self._messages if all_of_them else self._messages - self._messages // CALM_SHARE
        missing: list[str] = []
        for bridge in self._bridges:
            sent = self._senders[self._sender_of(bridge.name)].sent
            last = max(0, sent - 2) if all_of_them else sent
            expected = range(0 if bridge.guarantee.keeps_all else last, sent)
            if sent < enough or not set(found.get(bridge.name, ())).issuperset(expected):
                missing.append(bridge.words)
        return missing

    def _require(self) -> None:
        self._workers.require()
        for sender in self._senders.values():
            sender.require()
        for process in self._zeromq.values():
            process.require()

    def _kill_a_worker(self) -> str:
        number = self._workers.holder(f"{self._prefix}bridges-from-zeromq-push-source-0")
        self._workers.kill(number)
        self._workers.start(number)
        return f"kill -9 of worker {number}, which received from ZeroMQ; another one was started"

    def _kill_redis(self) -> str:
        self._redis.kill()
        self._redis.start()
        return "kill -9 of Valkey, which was started again"

    def _kill_rabbitmq(self) -> str:
        assert self._rabbitmq is not None
        self._rabbitmq.kill()
        self._rabbitmq.start()
        return "kill -9 of RabbitMQ, which was started again"

    def _kill_zeromq(self) -> str:
        for process in self._zeromq.values():
            process.kill_and_start()
        return "kill -9 of the ZeroMQ programs that send and receive, which were started again"

    def _kill_kafka(self) -> str:
        if self._kafka is None:
            return "Kafka was not killed: it is the one that KAFKA_BOOTSTRAP_SERVERS names"
        (node,) = self._kafka.nodes
        node.kill()
        node.start()
        return "kill -9 of Kafka, which was started again"


def _kafka(stack: ExitStack) -> tuple[LocalKafka | None, str]:
    """A Kafka that may be killed, and its address; ``None`` for one that the user names."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if named:
        _say(f"Using the Kafka in KAFKA_BOOTSTRAP_SERVERS: {named}")
        return None, named
    folder = STATE / "kafka"
    kafka = LocalKafka.start(folder, properties=QUICK_GROUPS, java_options=QUICK_JAVA, report=_say)
    stack.callback(kafka.stop)
    return kafka, kafka.bootstrap_servers


def _plain(number: int) -> bytes:
    return b"%d" % number


def _json(number: int) -> bytes:
    return b'{"n":%d}' % number


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>9,}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
