"""Faults of workers and of the broker while jobs are enqueued and executed, and the topics afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from streams import Handle, milliseconds
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.errors import BrokerError, JobPending
from streams.jobs.job_store import stored_jobs
from streams.jobs.record import JobEnd, JobRecord, Release, ends_topic, jobs_topic, releases_topic
from streams.records import Output, TopicPartition
from streams.runtime.letter import PREFIX
from streams.state.changelog import RESERVED
from tests.conftest import QUICK_GROUPS
from tests.faults.jobs_app import Note, Order, make
from tests.faults.jobs_verdicts import (
    Appended,
    Enqueued,
    Frozen,
    History,
    Released,
    judge,
    judge_transactions,
    pair,
)
from tests.faults.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Worker: TypeAlias = "subprocess.Popen[bytes]"

ROOT = Path(__file__).parents[2]
NAME = "shop"
WORKERS = 3
INPUT_PARTITIONS = 2
KEYS = 12
RECOVERY_SECONDS = 150.0
"""Longest time from the end of a fault until a job that is enqueued then has ended."""

FROZEN_SECONDS = 9.0
"""Longer than a session and a transaction: another worker takes over."""

SESSION_SECONDS = 6
BATCH = 5
"""Jobs in a transaction of a program."""

FIRST_OF_PROGRAMS = 1_000_000
"""The numbers from which programs count, so that they differ from those of orders."""


@dataclass
class JobsOutcome:
    """What a campaign did and found."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    jobs: Counter[str] = field(default_factory=Counter)
    """The jobs in the queue, by function."""
    ends: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    verdict: Verdict = field(default_factory=Verdict)


class JobsCampaign:
    """The servers, workers and traffic of one campaign. ``report`` is called with a line for each fault."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        report: Callable[[str], None] = lambda _: None,
        *,
        nodes: int = 3,
        workers: int = WORKERS,
    ) -> None:
        self._folder = folder
        self._choose = random.Random(seed)
        self._report = report
        self._nodes = nodes
        self._places = workers
        self.outcome = JobsOutcome(seed)
        self._workers: list[Worker] = []
        self._logs: dict[int, Path] = {}
        self._ended = threading.Event()
        self._history = History(jobs_topic(NAME))
        self._failures: list[BaseException] = []
        self._pings = 0

    def run(self, faults: Sequence[str], seconds: float = 0.0) -> JobsOutcome:
        """Inject the faults one after another, in turn for so many seconds, and judge at the end."""
        for name in ("notes", "logs", "state"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        properties = {**QUICK_GROUPS, "group.initial.rebalance.delay.ms": "100"}
        with LocalKafka.start(
            self._folder / "kafka",
            nodes=self._nodes,
            heap_mb=384,
            properties=properties,
            java_options=QUICK_JAVA,
        ) as self._kafka:
            self._broker = KafkaBroker({"bootstrap.servers": self._kafka.bootstrap_servers})
            with closing(self._broker.admin()) as admin:
                admin.create_topics([NewTopic(name=f"{NAME}-orders", partitions=INPUT_PARTITIONS)])
            self._jobs = make(NAME, self._kafka.bootstrap_servers)
            try:
                self._workers = [self._start(place) for place in range(self._places)]
                traffic = [
                    threading.Thread(target=self._guarded, args=(work,))
                    for work in (self._write_orders, self._enqueue, self._enqueue_together)
                ]
                for thread in traffic:
                    thread.start()
                try:
                    self._inject(faults, seconds)
                finally:
                    self._ended.set()
                    for thread in traffic:
                        thread.join(60)
                for failure in self._failures:
                    raise failure
                self._wait_until_done()
                for worker in self._workers:
                    self._stop(worker)
                self._judge()
            finally:
                for worker in self._workers:
                    if worker.poll() is None:
                        worker.send_signal(signal.SIGCONT)
                        worker.kill()
                        worker.wait()
        return self.outcome

    # --- the workers

    def _start(self, place: int) -> Worker:
        log = self._folder / "logs" / f"worker-{len(self._logs)}.log"
        settings = {
            "JOBS_APP": NAME,
            "JOBS_NOTES": str(self._folder / "notes"),
            "STREAMS_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "STREAMS_STATE_DIR": str(self._disk(place)),
            # With a folder each, workers would otherwise share a slot, and so a transactional id.
            "STREAMS_WORKER_ID": f"place-{place}",
            "STREAMS_SESSION_TIMEOUT": str(SESSION_SECONDS),
            "STREAMS_TRANSACTION_TIMEOUT": str(SESSION_SECONDS),
            "STREAMS_LOG_FORMAT": "json",
        }
        with log.open("wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "tests.faults.jobs_app:app"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=file,
                stderr=file,
            )
        self._logs[worker.pid] = log
        return worker

    def _disk(self, place: int) -> Path:
        return self._folder / "state" / str(place)

    def _log_of(self, worker: Worker) -> str:
        return self._logs[worker.pid].read_text(errors="replace")

    def _revive(self) -> None:
        for place, worker in enumerate(self._workers):
            if worker.poll() is not None:
                self.outcome.verdict.add(
                    "L",
                    f"a worker ended by itself with {worker.returncode}: {self._logs[worker.pid]}: "
                    f"…{self._log_of(worker)[-800:]}",
                )
                if len(self.outcome.verdict.violations) > 10:
                    raise AssertionError("workers end again and again")
                self._workers[place] = self._start(place)

    def _stop(self, worker: Worker) -> None:
        """Send SIGTERM, once a handler is installed. The worker must end with exit code 0."""
        self._wait_until_started(worker)
        worker.terminate()
        try:
            code: int | None = worker.wait(60)
        except subprocess.TimeoutExpired:
            code = None
            worker.kill()
            worker.wait()
        self.outcome.verdict.checked["M"] += 1
        if code != 0:
            self.outcome.verdict.add("M", f"a worker stopped with {code}: {self._logs[worker.pid]}")

    def _wait_until_started(self, worker: Worker) -> None:
        self._until(lambda: '"worker started"' in self._log_of(worker) or worker.poll() is not None, 60)

    def _kill(self, place: int) -> None:
        self._workers[place].kill()
        self._workers[place].wait()

    # --- traffic

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that runs the campaign
            self._failures.append(failure)
            self._ended.set()

    def _write_orders(self) -> None:
        """About 25 orders a second, each written once: the client repeats what was not acknowledged."""
        choose = random.Random(self.outcome.seed + 1)
        with closing(self._broker.producer()) as producer:
            while not self._ended.wait(0.2):
                keys = [f"k{choose.randrange(KEYS)}" for _ in range(5)]
                numbers = range(self._history.orders, self._history.orders + len(keys))
                values = [
                    msgspec.json.encode(Order(key, number)) for key, number in zip(keys, numbers, strict=True)
                ]
                now = time.time_ns() // 1_000_000
                producer.produce(
                    Output(f"{NAME}-orders", [key.encode() for key in keys], values, [now] * len(keys), None)
                )
                self._history.orders += len(keys)
            producer.flush(120)

    def _enqueue(self) -> None:
        """Single jobs of a program."""
        choose, number = random.Random(self.outcome.seed + 2), FIRST_OF_PROGRAMS
        jobs = self._jobs
        while not self._ended.wait(choose.uniform(0.01, 0.1)):
            number += 1
            with suppress(BrokerError):
                handle: Handle[Any]
                match choose.randrange(3):
                    case 0:
                        handle = jobs.once.using(unique=True).enqueue(choose.choice("abc"))
                    case 1:
                        handle = jobs.fleeting.enqueue(number)
                    case _:
                        handle = jobs.later.using(delay=milliseconds(choose.randrange(1, 6_000))).enqueue(
                            number
                        )
                self._history.acknowledged.append(handle.id)

    def _enqueue_together(self) -> None:
        """Transactions of a program that has a connection of its own."""
        choose, number = random.Random(self.outcome.seed + 3), FIRST_OF_PROGRAMS
        charge = make(NAME, self._kafka.bootstrap_servers).charge
        while not self._ended.wait(choose.uniform(0.1, 0.5)):
            calls = [charge.call(f"k{choose.randrange(KEYS)}", number + place) for place in range(BATCH)]
            number += BATCH
            with suppress(BrokerError):
                self._history.acknowledged += [handle.id for handle in charge.enqueue_many(calls)]

    # --- faults

    def _inject(self, faults: Sequence[str], seconds: float) -> None:
        self._wait_for_a_job("the start")
        begun, waiting = time.monotonic(), list(faults)
        while (waiting or time.monotonic() - begun < seconds) and not self._ended.is_set():
            if not waiting:
                waiting = list(FAULTS)
                self._choose.shuffle(waiting)
            fault = waiting.pop(0)
            self._report(fault)
            getattr(self, f"_{FAULTS[fault]}")()
            self.outcome.faults[fault] += 1
            self._wait_for_a_job(fault)
            self._revive()
            time.sleep(self._choose.uniform(0.2, 2.0))

    def _worker_killed(self) -> None:
        place = self._choose.randrange(self._places)
        self._kill(place)
        self._workers[place] = self._start(place)

    def _all_workers_killed(self) -> None:
        for place in range(self._places):
            self._workers[place].kill()
        for place in range(self._places):
            self._workers[place].wait()
            self._workers[place] = self._start(place)

    def _disk_lost(self) -> None:
        place = self._choose.randrange(self._places)
        self._kill(place)
        shutil.rmtree(self._disk(place), ignore_errors=True)
        self._workers[place] = self._start(place)

    def _all_disks_lost(self) -> None:
        for place in range(self._places):
            self._kill(place)
            shutil.rmtree(self._disk(place), ignore_errors=True)
        for place in range(self._places):
            self._workers[place] = self._start(place)

    def _worker_frozen(self) -> None:
        worker = self._choose.choice(self._workers)
        start = time.time_ns() // 1_000_000
        worker.send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        # Before the signal: what it begins afterwards must not seem to be later.
        stop = time.time_ns() // 1_000_000
        worker.send_signal(signal.SIGCONT)
        self._history.frozen.append(Frozen(worker.pid, start, stop))

    def _worker_stopped(self) -> None:
        place = self._choose.randrange(self._places)
        self._stop(self._workers[place])
        self._workers[place] = self._start(place)

    def _broker_restarted(self) -> None:
        # A worker that finds no broker when it starts ends, as its address may be wrong.
        for worker in self._workers:
            self._wait_until_started(worker)
        node = self._kafka.node(self._choose.randint(1, self._nodes))
        node.kill()
        time.sleep(self._choose.uniform(0.1, 3))
        node.start()
        self._kafka.wait()

    # --- waiting

    def _until(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _wait_for_a_job(self, after: str) -> None:
        """Enqueue a job in each partition, and wait until all have ended."""
        begun = time.monotonic()
        deadline = begun + RECOVERY_SECONDS
        waiting: list[Handle[int]] = []
        partitions: set[str] = set()
        while time.monotonic() < deadline and not self._ended.is_set():
            self._revive()
            with suppress(BrokerError, JobPending):
                if len(partitions) < 2:
                    self._pings += 1
                    handle = self._jobs.ping.using(key=f"p{self._pings}").enqueue(self._pings)
                    self._history.acknowledged.append(handle.id)
                    waiting.append(handle)
                    partitions.add(handle.id.partition("-")[0])
                    continue
                for handle in waiting:
                    handle.result(timeout=milliseconds(500))
                self.outcome.recovery.setdefault(after, []).append(time.monotonic() - begun)
                return
        if self._failures:
            raise self._failures[0]
        logs = "\n".join(self._log_of(worker)[-1500:] for worker in self._workers)
        raise AssertionError(f"after {after}: a job has not ended after {RECOVERY_SECONDS:.0f} s\n{logs}")

    def _wait_until_done(self) -> None:
        """Wait until all is committed and the store is empty, markers of transactions included."""
        left: list[str] = []

        def done() -> bool:
            self._revive()
            left[:] = self._left()
            return not left

        if not self._until(done, RECOVERY_SECONDS):
            self.outcome.verdict.add("C", "; ".join(left))
        self.outcome.verdict.checked["C"] += 1

    def _left(self) -> list[str]:
        """What is not finished, in words."""
        with closing(self._broker.admin()) as admin:
            count = admin.topics()[jobs_topic(NAME)].partitions
            places = [TopicPartition(jobs_topic(NAME), number) for number in range(count)]
            inputs = [TopicPartition(f"{NAME}-orders", number) for number in range(INPUT_PARTITIONS)]
            ends = admin.end_offsets([*places, *inputs], "read_uncommitted")
            committed = admin.committed_offsets(NAME)
        behind = [
            f"{place} is committed up to {committed.get(place, 0)} of {end}"
            for place, end in ends.items()
            if committed.get(place, 0) != end
        ]
        if behind:
            return behind
        entries: dict[tuple[int, bytes], bytes | None] = {}
        for fetched in read_to_end(self._broker, [f"{NAME}-jobs-changelog"]):
            for key, value in zip(fetched.keys(), fetched.values(), strict=True):
                assert key is not None
                if not key.startswith(RESERVED):
                    entries[fetched.partition, key] = value
        kept = list(stored_jobs(entries.items()))
        return [f"the store still has {len(kept)} jobs, e.g. {kept[0]!r}"] if kept else []

    # --- judging

    def _judge(self) -> None:
        history, outcome = self._history, self.outcome
        for partition, offset, _, value in self._read(jobs_topic(NAME)):
            record = msgspec.json.decode(value, type=JobRecord)
            history.jobs.append(Enqueued(f"{partition}-{offset}", offset, partition, record))
        for _, _, time_, value in self._read(ends_topic(NAME)):
            history.ends.append(Appended(msgspec.json.decode(value, type=JobEnd), time_))
        for _, _, time_, value in self._read(releases_topic(NAME)):
            history.releases.append(Released(msgspec.json.decode(value, type=Release), time_))
        history.letters += self._letters()
        history.frozen += self._evicted()
        for path in sorted((self._folder / "notes").iterdir()):
            lines = path.read_bytes().splitlines()
            history.attempts += pair(msgspec.json.decode(line, type=Note) for line in lines)
        judge(outcome.verdict, history)
        judge_transactions(
            outcome.verdict,
            [job for job in history.jobs if job.record.job == "charge"],
            BATCH,
            FIRST_OF_PROGRAMS,
        )
        outcome.jobs.update(job.record.job for job in history.jobs)
        outcome.ends.update(appended.end.ending.value for appended in history.ends)
        outcome.attempts = len(history.attempts)

    def _read(self, topic: str) -> Iterator[tuple[int, int, int, bytes]]:
        """The committed records of a topic: partition, offset, timestamp and value."""
        for fetched in read_to_end(self._broker, [topic]):
            columns = fetched.offsets(), fetched.timestamps(), fetched.values()
            for offset, timestamp, value in zip(*columns, strict=True):
                yield fetched.partition, offset, timestamp, value or b""

    def _evicted(self) -> Iterator[Frozen]:
        """The workers that their group took for dead, as they have logged when they learned of it.

        A broker or a worker that gets no time on a busy machine is as one that was frozen.
        """
        for pid, path in self._logs.items():
            for line in path.read_bytes().splitlines():
                if b'"partitions lost"' in line:
                    logged = datetime.fromisoformat(msgspec.json.decode(line)["timestamp"])
                    at = round(logged.timestamp() * 1000)
                    yield Frozen(pid, at - SESSION_SECONDS * 1000, at)

    def _letters(self) -> Iterator[str]:
        """The ids of the jobs that became dead letters."""
        for fetched in read_to_end(self._broker, [f"{NAME}-dead-letters"]):
            for headers in fetched.headers() or ():
                found = dict(headers or ())
                partition, offset = (found[f"{PREFIX}{name}"] or b"" for name in ("partition", "offset"))
                yield f"{partition.decode()}-{offset.decode()}"


FAULTS = {
    "worker killed": "worker_killed",
    "all workers killed": "all_workers_killed",
    "worker killed and its disk lost": "disk_lost",
    "all workers killed and their disks lost": "all_disks_lost",
    "worker frozen beyond its session": "worker_frozen",
    "worker stopped": "worker_stopped",
    "broker restarted": "broker_restarted",
}
"""The faults, and the methods that inject them."""
