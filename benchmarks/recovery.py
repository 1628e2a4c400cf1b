"""How long tasks are interrupted when workers leave and join: ``make bench-recovery``.

*Killed*: two workers count a million keys each, and one is killed. The group assigns its partition to the
other one when its session ends; the time from then to the first result is measured, with a standby replica on
the other worker and with a full restore.

*Newcomer*: two workers share 64 partitions with a million keys in all, and a third one joins. The longest
time without a result is measured, for the partitions that move and for those that stay.

*Many partitions*: one worker, which begins with a soft limit of 1024 open files, has 500 tasks with stores.
Measured are the time from its start until all input is processed, with an empty disk and again with the
resulting disk, the time of a stop, and the process's resources.

The environment variable ``KEYS`` is the number of keys, ``ONLY`` selects one of ``killed newcomer many``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psutil
from rich.console import Console
from rich.table import Table

from streams import App, Bytes, Json
from streams.broker import GroupSettings, NewTopic
from streams.broker.kafka import KafkaBroker
from streams.devstack.kafka import LocalKafka
from streams.monitoring.lag import measure_lag
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker import Producer

FOLDER = Path("build/recovery").absolute()
RESULTS = Path("build/recovery.json")
SESSION_SECONDS = 6
PATIENCE_SECONDS = 120.0
CHUNK = 50_000

WIDE = 64
MANY = 500
KEYS_OF_EACH = 200
USUAL_OPEN_FILES = 1024
PROBE_SECONDS = 0.05

app = App(os.environ.get("RECOVERY_APP", "recovery"))
app.stream(os.environ.get("RECOVERY_INPUT", "in"), key=Bytes(), value=Bytes()).group_by_key().count(
    "counts"
).to(f"{app.name}-out", value=Json())

console = Console(width=None if sys.stdout.isatty() else 110)


class Recovery(NamedTuple):
    """One measurement; seconds."""

    standby_replicas: int
    keys: int
    session: float
    """From the kill until the other worker was assigned the partition."""
    first_result: float
    """From then until the first result of the partition was readable."""
    restored: int
    """Changelog records that had to be read meanwhile."""


class Newcomer(NamedTuple):
    """One measurement; partitions, and the longest time in seconds without a result of one of them."""

    partitions: int
    keys: int
    stayed: int
    longest_of_stayed: float
    moved: int
    longest_of_moved: float
    longest_probe: float
    """The longest round of the measuring loop: shorter interruptions are not visible."""


class ManyPartitions(NamedTuple):
    """One worker with a task and a store for each of many partitions; seconds, megabytes."""

    disk: str
    partitions: int
    caught_up: float
    """From the process's start until everything in the input is processed and committed."""
    stopped: float
    memory_mb: float
    threads: int
    open_files: int


def main() -> int:
    """Measure, then print and write the figures."""
    keys, only = int(os.environ.get("KEYS", "1000000")), os.environ.get("ONLY", "")
    shutil.rmtree(FOLDER, ignore_errors=True)
    with ExitStack() as stack:
        kafka = LocalKafka.start(
            FOLDER / "kafka",
            heap_mb=1024,
            properties={
                "group.consumer.heartbeat.interval.ms": "500",
                "group.consumer.session.timeout.ms": str(SESSION_SECONDS * 1000),
                "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            },
        )
        stack.callback(shutil.rmtree, FOLDER, ignore_errors=True)
        stack.callback(kafka.stop)
        broker, servers = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers}), kafka.bootstrap_servers
        figures: dict[str, Any] = {}
        if only in ("", "killed"):
            _fill(broker, "killed-in", 2, keys)
            results = [_kill(broker, servers, keys, standbys) for standbys in (0, 1)]
            _show_killed(results)
            figures["killed"] = [result._asdict() for result in results]
        if only in ("", "newcomer"):
            _fill(broker, "newcomer-in", WIDE, keys // WIDE)
            newcomer = _newcomer(broker, servers, keys)
            _show_newcomer(newcomer)
            figures["newcomer"] = newcomer._asdict()
        if only in ("", "many"):
            many = _many_partitions(broker, servers)
            _show_many(many)
            figures["many_partitions"] = [result._asdict() for result in many]
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _show_killed(results: Sequence[Recovery]) -> None:
    table = Table(
        *(
            "standby_replicas",
            "keys of the task",
            "session over after",
            "then first result after",
            "restored",
        ),
        title="A worker is killed",
    )
    for result in results:
        table.add_row(
            str(result.standby_replicas),
            f"{result.keys:,}",
            f"{result.session:.1f} s",
            f"{result.first_result:.2f} s",
            f"{result.restored:,}",
        )
    console.print(table)


def _show_newcomer(newcomer: Newcomer) -> None:
    table = Table("partitions", "", "longest time without a result", title="A worker joins")
    table.add_row(str(newcomer.stayed), "stay", f"{newcomer.longest_of_stayed:.2f} s")
    table.add_row(str(newcomer.moved), "move", f"{newcomer.longest_of_moved:.2f} s")
    table.caption = f"longest round of the measuring loop: {newcomer.longest_probe:.2f} s"
    console.print(table)


def _show_many(results: Sequence[ManyPartitions]) -> None:
    table = Table(
        *("disk", "tasks", "caught up after", "stopped after", "memory", "threads", "open files"),
        title="One worker with many partitions",
    )
    for result in results:
        table.add_row(
            result.disk,
            str(result.partitions),
            f"{result.caught_up:.1f} s",
            f"{result.stopped:.1f} s",
            f"{result.memory_mb:,.0f} MB",
            str(result.threads),
            f"{result.open_files:,}",
        )
    console.print(table)


def _fill(broker: KafkaBroker, topic: str, partitions: int, keys: int) -> None:
    """Create an input topic with that many keys in each partition."""
    broker.admin().create_topics([NewTopic(name=topic, partitions=partitions)])
    producer = broker.producer()
    for partition in range(partitions):
        for start in range(0, keys, CHUNK):
            numbers = range(start, min(start + CHUNK, keys))
            _send(producer, topic, partition, numbers)
    producer.flush(60)
    producer.close()


def _send(producer: Producer, topic: str, partition: int, numbers: Sequence[int]) -> None:
    keys = [b"%d-%d" % (partition, number) for number in numbers]
    producer.produce(Output(topic, keys, [b"x"] * len(keys), [-1] * len(keys), partition=partition))


def _kill(broker: KafkaBroker, servers: str, keys: int, standbys: int) -> Recovery:
    name = f"killed-{standbys}"
    broker.admin().create_topics([NewTopic(name=f"{name}-out", partitions=2)])
    folder = FOLDER / name
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_Worker(folder / str(number), servers, name, "killed-in", standbys))
            for number in range(2)
        ]
        _wait(lambda: [len(worker.held) for worker in workers] == [1, 1])
        _wait(lambda: _caught_up(broker, name, "killed-in"))
        if standbys:
            _wait(lambda: all(worker.logged("standby ready") for worker in workers))
        victim, survivor = workers
        (held,) = victim.held
        partition = TopicPartition(f"{name}-out", held)
        reader = broker.consumer(GroupSettings(group=f"{name}-reader", protocol="classic"))
        reader.assign({partition: broker.admin().end_offsets([partition])[partition]})
        producer = broker.producer()
        seen = len(survivor.logged("partitions assigned"))
        restored = len(survivor.logged("restored"))
        victim.process.kill()
        killed = time.time()
        for number in range(10_000_000):
            _send(producer, "killed-in", held, [number % keys])
            producer.flush(10)
            if reader.poll(1000, 0.02).fetched:
                break
            if time.time() - killed > PATIENCE_SECONDS:
                raise RuntimeError(f"no result within {PATIENCE_SECONDS:.0f} s: see {survivor.log}")
        done = time.time()
        assigned = next(log for log in survivor.logged("partitions assigned")[seen:] if log["partitions"])[
            "time"
        ]
        again = survivor.logged("restored")[restored:]
        producer.close()
        reader.close()
    return Recovery(
        standbys, keys, assigned - killed, done - assigned, sum(int(log["records"]) for log in again)
    )


def _newcomer(broker: KafkaBroker, servers: str, keys: int) -> Newcomer:
    name = "newcomer"
    broker.admin().create_topics([NewTopic(name=f"{name}-out", partitions=WIDE)])
    outputs = [TopicPartition(f"{name}-out", number) for number in range(WIDE)]
    with ExitStack() as stack:

        def start(number: int) -> _Worker:
            return stack.enter_context(_Worker(FOLDER / name / str(number), servers, name, f"{name}-in", 0))

        old = [start(number) for number in range(2)]
        _wait(lambda: [len(worker.held) for worker in old] == [WIDE // 2, WIDE // 2])
        _wait(lambda: _caught_up(broker, name, f"{name}-in"))
        before = [worker.held for worker in old]
        reader = broker.consumer(GroupSettings(group=f"{name}-reader", protocol="classic"))
        reader.assign(broker.admin().end_offsets(outputs))
        producer = broker.producer()
        last = dict.fromkeys(range(WIDE), time.monotonic())
        longest = dict.fromkeys(range(WIDE), 0.0)
        new: _Worker | None = None
        begun = settled = time.monotonic()
        number = 0
        # Some seconds before the newcomer joins, and some seconds after it has begun to process.
        longest_probe, round_ = 0.0, begun
        while time.monotonic() - settled < 3 or new is None:
            number += 1
            longest_probe, round_ = max(longest_probe, time.monotonic() - round_), time.monotonic()
            for partition in range(WIDE):
                _send(producer, f"{name}-in", partition, [number])
            producer.flush(10)
            for fetched in reader.poll(10_000, PROBE_SECONDS).fetched:
                now = time.monotonic()
                longest[fetched.partition] = max(longest[fetched.partition], now - last[fetched.partition])
                last[fetched.partition] = now
            if new is None:
                settled = time.monotonic()
                if settled - begun > 3:
                    longest, longest_probe = dict.fromkeys(longest, 0.0), 0.0
                    new = start(2)
            elif len(new.held) < WIDE // 3 or len(new.logged("restored")) < WIDE // 3:
                settled = time.monotonic()
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise RuntimeError(f"no balance within {PATIENCE_SECONDS:.0f} s: see {new and new.log}")
        stayed = {
            partition for worker, had in zip(old, before, strict=True) for partition in worker.held & had
        }
        producer.close()
        reader.close()
    moved = longest.keys() - stayed
    return Newcomer(
        WIDE,
        keys,
        len(stayed),
        max(longest[partition] for partition in stayed),
        len(moved),
        max(longest[partition] for partition in moved),
        longest_probe,
    )


def _many_partitions(broker: KafkaBroker, servers: str) -> list[ManyPartitions]:
    name = "many"
    broker.admin().create_topics([NewTopic(name=f"{name}-out", partitions=MANY)])
    results = []
    for disk in ("empty", "as left by the first run"):
        if disk == "empty":
            _fill(broker, f"{name}-in", MANY, KEYS_OF_EACH)
        else:
            producer = broker.producer()
            for partition in range(MANY):
                _send(producer, f"{name}-in", partition, range(KEYS_OF_EACH))
            producer.flush(60)
            producer.close()
        begun = time.monotonic()
        with _Worker(FOLDER / name, servers, name, f"{name}-in", 0) as worker:
            process = psutil.Process(worker.process.pid)
            # The default of most systems; it may be raised.
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            process.rlimit(psutil.RLIMIT_NOFILE, (USUAL_OPEN_FILES, hard))
            _wait(lambda worker=worker: worker.alive and len(worker.held) == MANY)  # type: ignore[misc]  # mypy infers no type for a lambda's default
            _wait(lambda worker=worker: worker.alive and _caught_up(broker, name, f"{name}-in"))  # type: ignore[misc]  # as above
            caught_up = time.monotonic() - begun
            memory, threads = process.memory_info().rss / 1e6, process.num_threads()
            files = process.num_fds()
            begun = time.monotonic()
            worker.process.terminate()
            code = worker.process.wait(120)
            if code:
                raise RuntimeError(f"the worker ended with exit code {code}: see {worker.log}")
        stopped = time.monotonic() - begun
        results.append(ManyPartitions(disk, MANY, caught_up, stopped, memory, threads, files))
    return results


def _caught_up(broker: KafkaBroker, group: str, topic: str) -> bool:
    admin = broker.admin()
    try:
        return not sum(item.lag for item in measure_lag(admin, group, [topic]))
    finally:
        admin.close()


class _Worker:
    """A worker process and its log."""

    def __init__(self, folder: Path, servers: str, name: str, topic: str, standbys: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "benchmarks.recovery:app"],
                stdout=file,
                stderr=file,
                env=os.environ
                | {
                    "RECOVERY_APP": name,
                    "RECOVERY_INPUT": topic,
                    "STREAMS_BOOTSTRAP_SERVERS": servers,
                    "STREAMS_STATE_DIR": str(folder),
                    "STREAMS_WORKER_ID": folder.name,
                    "STREAMS_LOG_FORMAT": "json",
                    "STREAMS_STANDBY_REPLICAS": str(standbys),
                    "STREAMS_TRANSACTION_TIMEOUT": str(SESSION_SECONDS / 2),
                },
            )

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's entries of that name; ``time`` in seconds since the epoch."""
        found = []
        for line in self.log.read_text().splitlines():
            if f'"{event}"' in line:
                entry = json.loads(line)
                entry["time"] = datetime.fromisoformat(entry["timestamp"]).timestamp()
                found.append(entry)
        return found

    @property
    def alive(self) -> bool:
        """True while the process runs.

        Raises ``RuntimeError`` when it has ended, as waiting would be in vain.
        """
        if code := self.process.poll():
            raise RuntimeError(f"the worker ended with exit code {code}: see {self.log}")
        return True

    @property
    def held(self) -> set[int]:
        """The partition numbers of the input that it owns."""
        held: set[int] = set()
        for line in self.log.read_text().splitlines():
            entry = json.loads(line) if '"partitions ' in line else {}
            numbers = {int(name.rpartition("-")[2]) for name in entry.get("partitions", ())}
            if entry.get("event") == "partitions assigned":
                held |= numbers
            elif entry:
                held -= numbers
        return held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def _wait(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise RuntimeError("the workers did not become ready: see their logs")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
