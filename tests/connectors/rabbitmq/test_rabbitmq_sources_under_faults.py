"""Queues at random failures of workers, connections and commits: with ids, each message arrives once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Text
from streams.connectors.rabbitmq import RabbitMQQueue
from streams.errors import SourceUnavailable, TransactionAborted
from tests.support.cluster import AppCluster
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streams.connectors.source import SourceBatch, SourceContext, SourceHealth, SourceReader
    from streams.runtime.worker import Worker
    from tests.support.rabbitmq import Program


class FaultyQueue(RabbitMQQueue[str]):
    """Readers whose connections end and whose confirmations are lost, as with a process that ends then."""

    __slots__ = ("chance", "dead", "deaf", "faults", "readers")

    chance: random.Random
    dead: set[threading.Thread]
    deaf: bool
    faults: bool
    readers: list[SourceReader]

    def open(self, context: SourceContext) -> SourceReader:  # type: ignore[override]  # a reader around its own
        self.require_alive()
        reader = FaultyReader(super().open(context), self)
        self.readers.append(reader)
        return reader

    def require_alive(self) -> None:
        """End the thread of a worker whose process has ended."""
        if threading.current_thread() in self.dead:
            raise RuntimeError("the process has ended")


class FaultyReader:
    def __init__(self, reader: SourceReader, source: Any) -> None:
        self.reader = reader
        self.source = source

    def read(self, timeout: float) -> SourceBatch | None:
        self.source.require_alive()
        if self.source.faults and self.source.chance.random() < 0.05:
            raise SourceUnavailable("the connection ends")
        return self.reader.read(min(timeout, 0.05))

    def confirm(self, position: bytes) -> None:
        if not self.source.deaf:
            self.reader.confirm(position)

    def health(self) -> SourceHealth:
        return self.reader.health()

    def close(self) -> None:
        self.reader.close()


def faulty(url: str, queue: str, chance: random.Random, **options: Any) -> FaultyQueue:
    source = FaultyQueue(url, queue, max_records=chance.randint(1, 12), prefetch=60, **options)
    for name, value in (
        ("chance", chance),
        ("faults", True),
        ("deaf", False),
        ("readers", []),
        ("dead", set()),
    ):
        object.__setattr__(source, name, value)
    return source


class Run:
    """Messages that are numbered, and workers that fail."""

    def __init__(self, program: Program, source: FaultyQueue, chance: random.Random, *, ids: bool) -> None:
        self.program, self.source, self.chance, self.ids = program, source, chance, ids
        app = App("copy", commit_interval=0.05)
        app.source(source, store="in").to("out", value=Text())
        self.site = AppCluster(app)
        self.worker: Worker = self.site.worker()
        self.count = 0

    def put(self, count: int) -> None:
        numbers = range(self.count, self.count + count)
        ids = [f"id-{number}" for number in numbers] if self.ids else None
        self.program.put(self.source.queue, map(str, numbers), ids=ids)
        self.count += count

    def crash(self, *, committing: bool = False) -> None:
        """The process ends, maybe after a commit that it has not acknowledged yet."""
        object.__setattr__(self.source, "deaf", True)
        before = len(self.out())
        if committing:
            self.site.run(self.worker, until=lambda: len(self.out()) > before)
        for _ in range(self.chance.randint(0, 20)):
            self.worker.run_once()
        self.source.dead.update(
            thread for thread in threading.enumerate() if thread.name.startswith("streams-source-")
        )
        self.site.freeze(self.worker)
        for reader in self.source.readers:
            reader.close()
        self.source.readers.clear()
        object.__setattr__(self.source, "deaf", False)
        self.worker = self.site.worker()

    def abort_next(self) -> None:
        """The broker aborts the next transaction."""

        def before(step: str) -> None:
            if step == "commit.before":
                self.site.broker.before = None
                raise TransactionAborted("the broker aborts")

        self.site.broker.before = before

    def out(self) -> list[str]:
        return [value.decode() for value in self.site.payloads("out")]

    def finish(self) -> Counter[str]:
        object.__setattr__(self.source, "faults", False)
        self.site.broker.before = None
        self.site.run(self.worker, until=lambda: len(set(self.out())) == self.count, seconds=60)
        for _ in range(5):
            self.worker.run_once()
        self.worker.close()
        wait_until(lambda: self.program.count(self.source.queue) == 0, what="that all is acknowledged")
        return Counter(self.out())


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("seed", range(4))
def test_messages_with_ids_are_in_kafka_once_whatever_fails(server, program, kind, seed):
    chance = random.Random(seed)
    queue = program.queue(f"faults-{kind}-{seed}", **{"x-queue-type": kind})
    run = Run(program, faulty(server.url(), queue, chance), chance, ids=True)
    for _ in range(25):
        match chance.randrange(6):
            case 0 | 1:
                run.put(chance.randint(1, 30))
            case 2 | 3:
                for _ in range(chance.randint(1, 20)):
                    run.worker.run_once()
            case 4:
                run.abort_next()
            case 5:
                run.crash()
    run.put(20)
    run.crash(committing=True)
    assert run.finish() == Counter(str(number) for number in range(run.count))
    # Otherwise nothing was delivered again.
    assert sum(run.source.dropped.values())


@pytest.mark.parametrize("seed", range(2))
def test_messages_without_ids_are_in_kafka_at_least_once(server, program, seed):
    chance = random.Random(seed)
    queue = program.queue(f"repeated-{seed}")
    run = Run(program, faulty(server.url(), queue, chance), chance, ids=False)
    run.put(60)
    run.crash(committing=True)
    run.put(10)
    found = run.finish()
    assert set(found) == {str(number) for number in range(run.count)}
    assert sum(found.values()) > run.count
