"""One run of the fault suite: workers and brokers that are disturbed while records flow, by a seeded plan."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.errors import BrokerError
from streams.records import Output, TopicPartition
from tests.faults.verdicts import GRACE, WINDOW, Sent, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.localkafka import LocalKafka

Fault: TypeAlias = Literal[
    "worker killed",
    "worker stopped",
    "worker frozen beyond its session",
    "worker frozen for a moment",
    "worker killed and its disk lost",
    "worker killed and its disk damaged",
    "worker killed at a step of a commit",
    "worker joins and leaves",
    "all workers redeployed one by one",
    "broker killed",
    "broker paused",
    "broker restarted",
]

WORKER_FAULTS: tuple[Fault, ...] = (
    "worker killed",
    "worker stopped",
    "worker frozen beyond its session",
    "worker frozen for a moment",
    "worker killed and its disk lost",
    "worker killed and its disk damaged",
    "worker killed at a step of a commit",
    "worker joins and leaves",
    "all workers redeployed one by one",
)
BROKER_FAULTS: tuple[Fault, ...] = ("broker killed", "broker paused", "broker restarted")

STEPS = [
    f"{call} {number} {moment}"
    for call in ("begin", "produce", "send_offsets", "commit")
    for number in (2, 5)
    for moment in ("before", "after")
]

SESSION_SECONDS = 6
PARTITIONS = 6
KEYS = 200
GROUPS = 31
WORKERS = 3
STOP_SECONDS = 10.0
SETTLE_SECONDS = 120.0
TRANSACTION_SECONDS = 10.0
HERE = Path(__file__).parent


@dataclass(slots=True)
class Outcome:
    """What a run did, and what came of it."""

    seed: int
    guarantee: str
    protocol: str
    faults: Counter[str] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from each fault until everything sent before it was processed and committed."""
    sent: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    events: Counter[str] = field(default_factory=Counter)


class Campaign:
    """Runs workers, sends readings and injects faults for some time, then judges."""

    def __init__(
        self,
        kafka: LocalKafka,
        folder: Path,
        seed: int,
        *,
        guarantee: str = "exactly_once",
        protocol: str = "consumer",
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._kafka = kafka
        self._folder = folder
        self._report = report
        self._choose = random.Random(seed)
        self._prefix = f"faults-{seed}-{guarantee.replace('_', '-')}-{protocol}"
        self._group = f"{self._prefix}-app"
        self._broker = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers})
        self._admin = self._broker.admin()
        self._workers: list[subprocess.Popen[bytes] | None] = []
        self._logs: list[Path] = []
        self._log_of: dict[int, Path] = {}
        self._sent = Sent()
        self._time = 1_000_000
        self.outcome = Outcome(seed, guarantee, protocol)

    @property
    def input(self) -> str:
        return f"{self._prefix}-readings"

    def run(self, seconds: float, faults: tuple[Fault, ...]) -> Outcome:
        """Disturb for so many seconds, each time by one of ``faults``, then settle and judge."""
        replicas = len(self._kafka.status())
        self._admin.create_topics(
            [
                NewTopic(
                    name=self.input,
                    partitions=PARTITIONS,
                    settings={"retention.ms": "-1"},
                    replication_factor=replicas,
                )
            ]
        )
        try:
            self._workers = [self._start() for _ in range(WORKERS)]
            producer = self._broker.producer()
            self._send(producer, 2_000)
            self._until(lambda: self._lag() == 0, SETTLE_SECONDS, "the first readings are processed")
            plan: list[Fault] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                # Every kind once before any comes again.
                plan = plan or self._choose.sample(faults, len(faults))
                fault = plan.pop()
                self._send(producer, self._choose.randrange(500, 3_000))
                begun = time.monotonic()
                self._report(f"seed {self.outcome.seed}: {fault}")
                self._inject(fault, producer)
                self.outcome.faults[fault] += 1
                targets: dict[TopicPartition, int] = self._insist(
                    lambda: self._admin.end_offsets(self._inputs())
                )
                reached = partial(self._reached, targets)
                self._until(reached, SETTLE_SECONDS, f"recovered from: {fault}")
                self.outcome.recovery.setdefault(fault, []).append(time.monotonic() - begun)
            # The last windows close when later readings come, one for each partition at least.
            self._time += 10 * (WINDOW + GRACE)
            self._send(producer, 3_000)
            producer.close()
            self._until(lambda: self._lag() == 0, SETTLE_SECONDS, "all readings are processed")
            for worker in self._workers:
                self._stop(worker)
        finally:
            for worker in self._workers:
                if worker is not None and worker.poll() is None:
                    worker.send_signal(signal.SIGCONT)
                    worker.kill()
                    worker.wait()
        self._until(self._no_open_transaction, SETTLE_SECONDS, "no transaction is left open")
        outcome = self.outcome
        outcome.sent = self._sent.records
        outcome.verdict.violations += (
            found := judge(
                self._broker,
                self._prefix,
                self._sent,
                GROUPS,
                exactly_once=outcome.guarantee == "exactly_once",
            )
        ).violations
        outcome.verdict.records, outcome.verdict.repeated = found.records, found.repeated
        outcome.events = self._events()
        self._admin.close()
        return outcome

    # --- faults

    def _inject(self, fault: Fault, producer: Any) -> None:
        number = self._choose.randrange(len(self._workers))
        worker = self._workers[number]
        assert worker is not None
        if fault == "worker killed":
            self._kill(number)
            self._workers[number] = self._start()
        elif fault == "worker stopped":
            self._stop(worker)
            self._workers[number] = self._start()
        elif fault.startswith("worker frozen"):
            worker.send_signal(signal.SIGSTOP)
            beyond = fault == "worker frozen beyond its session"
            self._keep_sending(producer, SESSION_SECONDS + 4 if beyond else 1.5)
            worker.send_signal(signal.SIGCONT)
        elif fault.startswith("worker killed and its disk"):
            self._kill(number)
            self._spoil_disk(lose=fault.endswith("lost"))
            self._workers[number] = self._start()
        elif fault == "worker killed at a step of a commit":
            self._stop(worker)
            self._workers[number] = doomed = self._start(FAULT_STEP=self._choose.choice(STEPS))
            deadline = time.monotonic() + 40
            while doomed.poll() is None and time.monotonic() < deadline:
                self._keep_sending(producer, 0.2)
            self._kill(number)
            self._workers[number] = self._start()
        elif fault == "worker joins and leaves":
            another = self._start()
            self._keep_sending(producer, 3)
            self._stop(another)
        elif fault == "all workers redeployed one by one":
            for place, old in enumerate(self._workers):
                self._stop(old)
                self._workers[place] = self._start()
                self._keep_sending(producer, 1)
        else:
            node = self._kafka.node(1 + self._choose.randrange(len(self._kafka.status())))
            if fault == "broker killed":
                node.kill()
                self._keep_sending(producer, 3)
                node.start()
            elif fault == "broker paused":
                node.pause()
                self._keep_sending(producer, 4)
                node.resume()
            else:
                node.stop()
                node.start()

    def _kill(self, number: int) -> None:
        worker = self._workers[number]
        if worker is not None and worker.poll() is None:
            worker.kill()
            worker.wait()

    def _stop(self, worker: subprocess.Popen[bytes] | None) -> None:
        """SIGTERM. A worker takes at most ten seconds over it, and says that it went well."""
        if worker is None:
            return
        # Before it has got so far, there is nobody yet who could be asked.
        log = self._log_of[worker.pid]
        self._until(
            lambda: worker.poll() is not None or '"worker started"' in log.read_text(),
            3 * STOP_SECONDS,
            "a worker has started",
        )
        begun = time.monotonic()
        worker.terminate()
        try:
            code = worker.wait(3 * STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        took = time.monotonic() - begun
        if code != 0 or took > STOP_SECONDS + 1:
            self.outcome.verdict.violations.append(f"a worker took {took:.1f} s to stop, exit code {code}")

    def _spoil_disk(self, *, lose: bool) -> None:
        """Remove, or overwrite a part of, the state of every place whose worker is not running."""
        state = self._folder / "state" / self._group
        for files in sorted(state.glob("*/state/*/*")):
            if lose and self._choose.random() < 0.5:
                shutil.rmtree(files, ignore_errors=True) if not _in_use(files) else None
            elif not lose and not _in_use(files):
                for path in files.glob("MANIFEST-*"):
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    # --- the workers and the group

    def _start(self, **environment: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{self._prefix}-{len(self._logs)}.log"
        self._logs.append(log)
        settings = {
            "FAULT_PREFIX": self._prefix,
            "STREAMS_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "STREAMS_STATE_DIR": str(self._folder / "state"),
            "STREAMS_LOG_FORMAT": "json",
            "STREAMS_GUARANTEE": self.outcome.guarantee,
            "STREAMS_GROUP_PROTOCOL": self.outcome.protocol,
            "STREAMS_SESSION_TIMEOUT": str(SESSION_SECONDS),
            "STREAMS_COMMIT_INTERVAL": "0.5",
            "STREAMS_TRANSACTION_TIMEOUT": str(TRANSACTION_SECONDS),
        }
        with log.open("wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "fault_app:app"],
                cwd=HERE,
                env={**os.environ, **settings, **environment},
                stdout=file,
                stderr=file,
            )
        self._log_of[worker.pid] = log
        return worker

    def _revive(self) -> None:
        """As an orchestrator does: a worker that ended by itself is started again."""
        for number, worker in enumerate(self._workers):
            if worker is not None and worker.poll() is not None:
                self.outcome.events[f"ended by itself with {worker.returncode}"] += 1
                self._workers[number] = self._start()

    def _send(self, producer: Any, count: int) -> None:
        keys, values, times = [], [], []
        for _ in range(count):
            key = f"key {self._choose.randrange(KEYS)}"
            amount = self._choose.randrange(1_000_000)
            self._time += 1
            amounts = self._sent.amounts[key]
            amounts.append(amount)
            self._sent.times[key].append(self._time)
            keys.append(key.encode())
            values.append(json.dumps({"number": len(amounts), "amount": amount}).encode())
            times.append(self._time)
        producer.produce(Output(self.input, keys, values, times))
        self._insist(lambda: producer.flush(60))

    def _keep_sending(self, producer: Any, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._send(producer, self._choose.randrange(50, 400))
            time.sleep(0.05)

    def _inputs(self) -> list[TopicPartition]:
        return [TopicPartition(self.input, number) for number in range(PARTITIONS)]

    def _reached(self, targets: dict[TopicPartition, int]) -> bool:
        committed = self._admin.committed_offsets(self._group)
        return all(committed.get(partition, 0) >= end for partition, end in targets.items())

    def _lag(self) -> int:
        topics = self._admin.topics()
        places = [
            TopicPartition(name, number)
            for name in (self.input, f"{self._group}-by-amount-repartition")
            if name in topics
            for number in range(topics[name].partitions)
        ]
        committed = self._admin.committed_offsets(self._group)
        ends = self._admin.end_offsets(places, "read_uncommitted")
        # Behind the last record there may be a transaction's marker.
        return sum(max(0, ends[place] - committed.get(place, 0) - 1) for place in places)

    def _no_open_transaction(self) -> bool:
        topics = self._admin.topics()
        places = [
            TopicPartition(name, number)
            for name, topic in topics.items()
            if name.startswith(self._prefix)
            for number in range(topic.partitions)
        ]
        uncommitted = self._admin.end_offsets(places, "read_uncommitted")
        return self._admin.end_offsets(places, "read_committed") == uncommitted

    def _insist(self, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return call()
            except BrokerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not self._insist(condition):
            self._revive()
            if time.monotonic() > deadline:
                last = "\n".join(log.read_text()[-2_000:] for log in self._logs[-WORKERS:])
                raise AssertionError(
                    f"seed {self.outcome.seed}: not within {timeout:.0f} s: {what}; faults so far: "
                    f"{dict(self.outcome.faults)}; the last logs:\n{last}"
                )
            time.sleep(0.05)

    def _events(self) -> Counter[str]:
        events = Counter(self.outcome.events)
        for log in self._logs:
            for line in log.read_text().splitlines():
                if line.startswith("{"):
                    events[json.loads(line)["event"]] += 1
        return events


def _in_use(folder: Path) -> bool:
    """Whether a process has the database open: only those of workers that are gone are touched."""
    locks = {(stat.st_dev, stat.st_ino) for lock in folder.glob("LOCK") if (stat := lock.stat())}
    held = set()
    for line in Path("/proc/locks").read_text().splitlines():
        major, minor, inode = line.split()[5].split(":")
        held.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return bool(locks & held)
