"""Workers as processes on the real broker, and their results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.errors import BrokerUnreachable, Retriable
from streams.monitoring.lag import measure_lag
from streams.records import Output, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent


class WorkerProcess:
    """One ``streams run`` of an app."""

    def __init__(self, app: str, log: Path, environment: dict[str, str], arguments: Sequence[str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams", "run", app, *arguments],
                cwd=HERE,
                env=environment,
                stdout=file,
                stderr=file,
            )

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The log lines so far with one of these event names, in order."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] in names]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def wait(self, timeout: float = 60.0) -> int:
        return self.process.wait(timeout)


class Copy:
    """The copying app with its own topics: starts workers, sends input, reads output."""

    name = "copy"
    """The name of the app's module, and of its environment variables."""

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        self.servers = servers
        self.prefix = prefix
        self.group = f"{prefix}-{self.name}"
        self.input = f"{prefix}-in"
        self.output = f"{prefix}-out"
        self.dead_letters = f"{self.group}-dead-letters"
        self.broker = KafkaBroker({"bootstrap.servers": servers})
        self._admin = self.broker.admin()
        self.environment: dict[str, str] = {}
        self._folder = folder
        self._workers: list[WorkerProcess] = []

    def create_topics(self, partitions: int = 4) -> None:
        self._admin.create_topics(
            [
                NewTopic(name=name, partitions=partitions, settings={"retention.ms": "-1"})
                for name in (self.input, self.output)
            ]
        )

    def start(self, *arguments: str, **settings: object) -> WorkerProcess:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STREAMS_SET")},
            f"{self.name.upper()}_PREFIX": self.prefix,
            "STREAMS_BOOTSTRAP_SERVERS": self.servers,
            "STREAMS_STATE_DIR": str(self.state),
            "STREAMS_LOG_FORMAT": "json",
            **{f"STREAMS_{name.upper()}": str(value) for name, value in settings.items()},
            **self.environment,
        }
        log = self._folder / f"worker-{len(self._workers)}.log"
        worker = WorkerProcess(f"{self.name}_app:app", log, environment, arguments)
        self._workers.append(worker)
        return worker

    @property
    def state(self) -> Path:
        """The folder of the workers' own files."""
        return self._folder / "state"

    def produce(self, values: Sequence[str], *, keyed: bool = True) -> None:
        producer = self.broker.producer()
        encoded = [value.encode() for value in values]
        producer.produce(
            Output(self.input, encoded if keyed else [None] * len(encoded), encoded, [-1] * len(encoded))
        )
        producer.flush(30)
        producer.close()

    def outputs(self, topic: str | None = None) -> Counter[str]:
        """How often each value is in the committed output, when no transaction is open any more."""
        name = topic or self.output
        self.wait_until_settled(name)
        return self.outputs_now(name)

    def outputs_now(self, topic: str | None = None) -> Counter[str]:
        """As ``outputs``, without what an open transaction hides."""
        name = topic or self.output
        return Counter(
            value.decode()
            for fetched in read_to_end(self.broker, [name])
            for value in fetched.values()
            if value is not None
        )

    def wait_until_settled(self, name: str) -> None:
        partitions = [TopicPartition(name, number) for number in range(self._admin.topics()[name].partitions)]
        # A killed worker's open transaction hides later commits until it times out.
        self.wait_for(
            lambda: (
                self._admin.end_offsets(partitions, "read_committed")
                == self._admin.end_offsets(partitions, "read_uncommitted")
            ),
            30,
            "no transaction is left open",
        )

    def lag(self) -> int:
        return sum(item.lag for item in measure_lag(self._admin, self.group, self.consumed()))

    def consumed(self) -> list[str]:
        """The topics that the app reads."""
        return [self.input]

    def wait_until_consumed(self, timeout: float = 90.0) -> None:
        def behind() -> list[str]:
            try:
                # Records of a transaction whose markers are still to be written are not consumed either.
                found = measure_lag(self._admin, self.group, self.consumed(), "read_uncommitted")
            except (Retriable, BrokerUnreachable) as error:
                # Retry while the broker is busy with other tests' topics.
                return [f"not known: {error}"]
            return [f"{item.partition} by {item.lag}" for item in found if item.lag]

        self.wait_for(lambda: not behind(), timeout, "all input consumed", behind)

    def wait_for(
        self,
        condition: Callable[[], object],
        timeout: float,
        what: str,
        state: Callable[[], object] = lambda: "",
    ) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(worker.log.read_text()[-3000:] for worker in self._workers)
                pytest.fail(f"not within {timeout} s: {what} {state()}; the workers' logs:\n{logs}")
            time.sleep(0.05)

    def end(self) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.kill()
        self._admin.close()


class Count(Copy):
    """The counting app: its input has keys, and its counts go through a repartition topic."""

    name = "count"

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        super().__init__(servers, prefix, folder)
        self.final = f"{prefix}-final"
        self._admin.create_topics(
            [
                NewTopic(name=name, partitions=4, settings={"retention.ms": "-1"})
                for name in (self.input, self.output, self.final)
            ]
        )

    def lag(self) -> int:
        try:
            return sum(
                item.lag for item in measure_lag(self._admin, self.group, self.consumed(), "read_uncommitted")
            )
        except Retriable:
            # A topic that the app has just created may have no leader yet.
            return 1

    def consumed(self) -> list[str]:
        internal = f"{self.group}-counts-repartition"
        return [self.input, *([internal] if internal in self._admin.topics() else [])]

    def send(self, records: Sequence[tuple[str, int]]) -> None:
        """Send records with these keys and event times, as values too."""
        producer = self.broker.producer()
        keys = [key.encode() for key, _ in records]
        producer.produce(Output(self.input, keys, keys, [time for _, time in records]))
        producer.flush(30)
        producer.close()

    def read(self, topic: str) -> list[tuple[str, Any]]:
        """Keys and values, read committed, in each partition's order."""
        self.wait_until_settled(topic)
        return [
            (key.decode(), json.loads(value))
            for fetched in read_to_end(self.broker, [topic])
            for key, value in zip(fetched.keys(), fetched.values(), strict=True)
            if key is not None and value is not None
        ]


@pytest.fixture
def count(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Count]:
    made = Count(kafka_bootstrap, prefix, tmp_path)
    yield made
    made.end()


@pytest.fixture
def make_copy(prefix: str, tmp_path: Path) -> Iterator[Callable[[str], Copy]]:
    made: list[Copy] = []

    def make(servers: str) -> Copy:
        copy = Copy(servers, prefix, tmp_path)
        made.append(copy)
        return copy

    yield make
    for copy in made:
        copy.end()


@pytest.fixture
def copy(make_copy: Callable[[str], Copy], kafka_bootstrap: str) -> Copy:
    copy = make_copy(kafka_bootstrap)
    copy.create_topics()
    return copy
