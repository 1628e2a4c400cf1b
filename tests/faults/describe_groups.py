"""Tests whether ``DescribeConsumerGroups`` crashes the process when the coordinator dies or hangs meanwhile.

Members of KIP-848 groups send this request (``kafka.assignment_check``), so it must not. A separate
process sends it, so that a crash is visible. Each round makes sure that requests are in flight during the
fault: the coordinator is frozen first, then requested, then killed or left frozen, then requested again.

``python -m tests.faults.describe_groups`` runs ``ROUNDS`` (10) rounds of each kind, or of those whose names
contain ``ONLY``, with ``ASKS`` (50) requests each, and writes ``build/describe-groups.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.kafka.assignment_check import ANSWER_SECONDS
from streams.devstack.kafka import LocalKafka
from tests.conftest import QUICK_GROUPS

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = "described"
TOPIC = "described-input"
PATIENCE_SECONDS = 60.0
ANSWER_PATIENCE_SECONDS = 8.0


@dataclass(frozen=True)
class Kind:
    """A fault of the group's coordinator; ``timeout`` (seconds) is the time-out of a request."""

    name: str
    timeout: float
    frozen: float
    """How long (seconds) it is frozen after the requests were sent."""
    killed: bool = False
    """Whether it is killed then; otherwise it resumes."""
    away: float = 0.0
    """How long (seconds) it stays down after it was killed."""
    everybody: bool = False
    """Whether the fault affects all brokers."""
    socket_timeout: float = 60.0
    """The client's time-out for a network request: 60 s is its default."""
    dropped: bool = False
    """Whether the client is closed while its requests are in flight."""


KINDS = (
    Kind("1 s to answer, coordinator killed, away for 3 s", timeout=1, frozen=0.3, killed=True, away=3),
    Kind("1 s to answer, coordinator frozen for 5 s", timeout=1, frozen=5, socket_timeout=2),
    Kind("10 s to answer, coordinator killed, back at once", timeout=10, frozen=0.3, killed=True),
    Kind("10 s to answer, all brokers away for 12 s", 10, 0.3, killed=True, away=12, everybody=True),
    Kind("1 h to answer, coordinator killed, away for 3 s", ANSWER_SECONDS, 0.3, killed=True, away=3),
    Kind(
        "1 h to answer, all brokers away for 12 s", ANSWER_SECONDS, 0.3, killed=True, away=12, everybody=True
    ),
    Kind("1 h to answer, coordinator frozen for 5 s", ANSWER_SECONDS, 5, socket_timeout=2),
    Kind("1 h to answer, all brokers frozen for 5 s", ANSWER_SECONDS, 5, socket_timeout=2, everybody=True),
    Kind("released while asked, coordinator killed", ANSWER_SECONDS, 0.3, killed=True, away=1, dropped=True),
    Kind("released while asked, all brokers frozen", ANSWER_SECONDS, 5, everybody=True, dropped=True),
)
"""Time-outs of less than an hour crash the requesting process, with librdkafka 2.16; see
``ANSWER_SECONDS``.
"""


@dataclass
class Figures:
    """The results of all rounds of one kind."""

    rounds: int = 0
    asked: int = 0
    deaths: int = 0
    """How often the coordinator was killed while requests were in flight."""
    answers: Counter[str] = field(default_factory=Counter)
    """The results of the requests, by the client's error name."""
    aborts: list[int] = field(default_factory=list)
    """Exit codes of processes that ended by themselves: negative ones are signals."""
    last_words: list[str] = field(default_factory=list)
    """The last line of output of each of those."""

    def as_json(self) -> dict[str, Any]:
        """The figures by name."""
        return vars(self) | {"last_words": sorted(set(self.last_words))}


class Asker:
    """A process that is a member of the group and describes it."""

    def __init__(self, servers: str, socket_timeout: float, log: Path) -> None:
        self.socket_timeout = socket_timeout
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.describe_groups", servers, str(socket_timeout)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self._read()

    def ask(self, count: int, timeout: float) -> None:
        self._write({"ask": count, "timeout": timeout})
        self._read()

    def drop(self) -> None:
        self._write({"drop": True})
        self._read()

    def collect(self) -> Counter[str]:
        self._write({"collect": True})
        return Counter(json.loads(self._read() or "{}"))

    def ended(self) -> int | None:
        return self.process.poll()

    def last_words(self) -> str:
        return (self._log.read_text(errors="replace").strip().splitlines() or [""])[-1]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        # Closes the pipes too.
        self.process.communicate()

    def _write(self, command: dict[str, Any]) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(command) + "\n")
            pipe.flush()
        except BrokenPipeError:
            self.process.wait()

    def _read(self) -> str:
        pipe = self.process.stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            self.process.wait()
        return line


class Experiment:
    """Rounds of one kind after the other, on one cluster."""

    def __init__(self, kafka: LocalKafka, folder: Path) -> None:
        self._kafka = kafka
        self._nodes = [kafka.node(status.number) for status in kafka.status()]
        self._folder = folder
        broker = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers})
        admin = broker.admin()
        admin.create_topics([NewTopic(name=TOPIC, partitions=3)])
        admin.close()
        self._client = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        self._askers = 0

    def play(self, kind: Kind, rounds: int, asks: int, until: float = float("inf")) -> Figures:
        """Run that many rounds, but begin none after ``until`` (seconds of the monotonic clock)."""
        figures = Figures()
        asker = self._asker(kind)
        for _ in range(rounds):
            if time.monotonic() > until:
                break
            nodes = self._nodes if kind.everybody else [self._coordinator()]
            for node in nodes:
                node.pause()
            # Half of the requests are in flight when the fault occurs, half are sent during it.
            asker.ask(asks // 2, kind.timeout)
            time.sleep(kind.frozen / 2)
            if kind.killed:
                for node in nodes:
                    node.kill()
            asker.ask(asks - asks // 2, kind.timeout)
            time.sleep(kind.away or kind.frozen / 2)
            figures.rounds += 1
            figures.asked += asks
            figures.deaths += kind.killed
            if kind.dropped:
                asker.drop()
            if not kind.killed:
                for node in nodes:
                    node.resume()
            else:
                for node in nodes:
                    node.start(wait=False)
                self._kafka.wait()
            # An answer shows that the client is connected to the coordinator again, which may be loading.
            deadline = time.monotonic() + PATIENCE_SECONDS
            answered = False
            while not answered and asker.ended() is None and time.monotonic() < deadline:
                asker.ask(1, ANSWER_SECONDS)
                figures.asked += 1
                answers = asker.collect()
                figures.answers.update(answers)
                answered = answers["answered"] > 0
            ended = asker.ended()
            if ended is not None:
                figures.aborts.append(ended)
                figures.last_words.append(asker.last_words())
                asker.end()
                asker = self._asker(kind)
        asker.end()
        return figures

    def _asker(self, kind: Kind) -> Asker:
        self._askers += 1
        log = self._folder / f"asker-{self._askers}.log"
        return Asker(self._kafka.bootstrap_servers, kind.socket_timeout, log)

    def _coordinator(self) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            partitions = self._client.list_topics("__consumer_offsets", timeout=20).topics
            parts = partitions["__consumer_offsets"].partitions
            leader = parts[abs(_java_hash(GROUP)) % len(parts)].leader if parts else -1
            if leader > 0:
                return self._kafka.node(leader)
            assert time.monotonic() < deadline, "the group has no coordinator"
            time.sleep(0.1)


def _java_hash(text: str) -> int:
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return value - (1 << 32) if value & (1 << 31) else value


def ask_and_answer(servers: str, socket_timeout: float, commands: IO[str]) -> None:
    """The requesting process: executes the commands on standard input."""
    settings: dict[str, str | int | float | bool] = {
        "bootstrap.servers": servers,
        "socket.timeout.ms": round(socket_timeout * 1000),
        "log_level": 3,
    }
    client = AdminClient(settings)
    member = Consumer(
        {"bootstrap.servers": servers, "group.id": GROUP, "group.protocol": "consumer", "log_level": 3}
    )
    member.subscribe([TOPIC])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not member.assignment() and time.monotonic() < deadline:
        member.poll(0.1)
    # After a first request, the client knows the coordinator and is connected to it.
    client.describe_consumer_groups([GROUP], request_timeout=10)[GROUP].exception()
    say("ready")
    waiting: list[Any] = []
    patience = ANSWER_PATIENCE_SECONDS
    for line in commands:
        command = json.loads(line)
        if "ask" in command:
            waiting += [
                client.describe_consumer_groups([GROUP], request_timeout=command["timeout"])[GROUP]
                for _ in range(command["ask"])
            ]
            say("asked")
            continue
        if "drop" in command:
            waiting.clear()
            clients, client = [client], AdminClient(settings)
            threading.Thread(target=clients.clear, daemon=True).start()
            # The new client must get an answer, however long the coordinator takes to come back.
            patience = PATIENCE_SECONDS
            say("dropped")
            continue
        ends: Counter[str] = Counter()
        # A client whose coordinator was down may never get an answer, but it must not crash the process.
        give_up = time.monotonic() + patience
        patience = ANSWER_PATIENCE_SECONDS
        for future in waiting:
            while not future.done() and time.monotonic() < give_up:
                member.poll(0.05)
            if not future.done():
                ends["no answer"] += 1
                continue
            error = future.exception()
            ends["answered" if error is None else _name(error)] += 1
        waiting.clear()
        say(json.dumps(ends))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _name(error: BaseException) -> str:
    return str(error.args[0].name()) if isinstance(error, KafkaException) else type(error).__name__


def run(rounds: int, asks: int, minutes: float, kinds: Sequence[Kind] = KINDS) -> dict[str, Figures]:
    """All kinds on a cluster of three brokers."""
    until = time.monotonic() + 60 * minutes
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalKafka.start(Path(folder) / "kafka", nodes=3, heap_mb=256, properties=QUICK_GROUPS) as kafka,
    ):
        experiment = Experiment(kafka, Path(folder))
        for kind in kinds:
            found[kind.name] = experiment.play(kind, rounds, asks, until)
            say(f"{kind.name}: {json.dumps(found[kind.name].as_json())}")
    return found


def main() -> int:
    if len(sys.argv) == 3:
        ask_and_answer(sys.argv[1], float(sys.argv[2]), sys.stdin)
        return 0
    found = run(
        int(os.environ.get("ROUNDS") or "10"),
        int(os.environ.get("ASKS") or "50"),
        float(os.environ.get("MINUTES") or "12"),
        [kind for kind in KINDS if (os.environ.get("ONLY") or "") in kind.name],
    )
    results = Path("build/describe-groups.json")
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({name: figures.as_json() for name, figures in found.items()}, indent=2))
    return 1 if any(figures.aborts for figures in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
