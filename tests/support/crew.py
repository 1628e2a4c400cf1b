"""Workers of any app on the in-memory broker, in turns: they stop, die, lose disks, keep standby replicas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.queries.query import Queries
from streams.records import Output, Record
from streams.state.memory import MemoryDatabases
from tests.support.cluster import MemoryCluster, places_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams import App
    from streams.records import Headers
    from streams.runtime.worker import Worker
    from streams.state.store import Databases


@dataclass
class Crew:
    """An app's topics, and its workers by slot."""

    app: App
    inputs: Sequence[str] = ("in",)
    partitions: int = 1
    new_disk: Callable[[], Databases] = MemoryDatabases
    alive: dict[int, Worker] = field(default_factory=dict, init=False)
    disks: dict[int, Databases] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cluster = MemoryCluster(dict.fromkeys(self.inputs, self.partitions))
        self.clock, self.broker, self.admin = self.cluster.clock, self.cluster.broker, self.cluster.admin
        self.counts = self.cluster.prepare(self.app, create_outputs=True)

    def start(self, slot: int = 0) -> Worker:
        """A worker on the slot's disk, which takes its turns from now on."""
        worker = self.alive[slot] = self.worker(slot)
        worker.start()
        return worker

    def worker(self, slot: int = 0) -> Worker:
        """A worker on the slot's disk, not started."""
        databases = self.disks.setdefault(slot, self.new_disk())
        return self.cluster.make_worker(
            self.app,
            f"slot-{slot}",
            partitions=self.counts,
            databases=databases,
            members=self.members,
            wall_clock=self.clock.milliseconds,
        )

    def members(self) -> list[str]:
        return [worker.member for worker in self.alive.values() if worker.member is not None]

    def stop(self, slot: int = 0) -> None:
        self.alive.pop(slot).close()

    def kill(self, slot: int = 0) -> None:
        """Simulate the death of the worker's process: its session ends and its open transaction times out."""
        self.cluster.freeze(self.alive.pop(slot))
        # What was written stays; the dead process holds no files open.
        self.disks[slot].close()

    def lose_disk(self, slot: int = 0) -> None:
        self.disks.pop(slot).close()

    def send(self, topic: str, *records: Record[bytes | None, bytes | None]) -> None:
        """Write records to their own partition, or, without one, to that of the key."""
        outputs = []
        for record in records:
            headers: list[Headers | None] | None = None if record.headers is None else [record.headers]
            partition = record.partition if record.partition >= 0 else None
            outputs.append(
                Output(topic, [record.key], [record.value], [record.timestamp], headers, partition=partition)
            )
        self.cluster.write(*outputs)

    def lag(self) -> int:
        """Records that are not committed, and partitions with a transaction that is open."""
        return self.cluster.uncommitted(self.app.name, self.counts)

    def turn(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            for worker in list(self.alive.values()):
                worker.run_once()

    def until(self, condition: Callable[[], object], rounds: int = 3_000) -> None:
        for _ in range(rounds):
            if condition():
                return
            self.turn()
            self.clock.advance(0.02)
        pytest.fail(f"still not so: {[(sorted(w.progress), w.standby_lag) for w in self.alive.values()]}")

    def settle(self) -> None:
        """Run until all input is committed, and all standby replicas are up to date."""
        self.until(lambda: self.lag() == 0 and self._at_work())
        self.until(lambda: not any(lag for w in self.alive.values() for lag in w.standby_lag.values()))

    def _at_work(self) -> bool:
        places = set(places_of(self.counts))
        workers = self.alive.values()
        return all(w.ready for w in workers) and places == {item for w in workers for item in w.progress}

    def read(self, topic: str) -> list[Record[bytes | None, bytes | None]]:
        """The topic's committed records, partition by partition."""
        return [
            Record(key, value, time, own, fetched.topic, fetched.partition, offset)
            for fetched in read_to_end(self.broker, [topic])
            for key, value, time, own, offset in zip(
                fetched.keys(),
                fetched.values(),
                fetched.timestamps(),
                fetched.headers() or [None] * len(fetched),
                fetched.offsets(),
                strict=True,
            )
        ]

    def latest(self, topic: str) -> dict[bytes | None, bytes | None]:
        """The last value of each key of a topic."""
        return {record.key: record.value for record in self.read(topic)}

    def queries(self, slot: int = 0) -> Queries:
        return Queries(self.app.topology, self.alive[slot], self.counts)

    def compact(self, topic: str) -> None:
        """Compact: keep only the last record of each key, and no tombstones."""
        last = {(record.partition, record.key): record for record in self.read(topic)}
        kept = sorted(
            (record for record in last.values() if record.value is not None),
            key=lambda record: (record.partition, record.offset),
        )
        count = self.admin.topics()[topic].partitions
        self.admin.delete_topics([topic])
        self.admin.create_topics([NewTopic(name=topic, partitions=count)])
        self.send(topic, *kept)
