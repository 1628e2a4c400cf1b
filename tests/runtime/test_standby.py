"""Standby replicas on the memory broker: their placement, and failovers to them."""

from __future__ import annotations

import random
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams import App, Json, Text
from streams.broker import Polled
from streams.broker.memory import MemoryConsumer
from streams.events import Event
from streams.runtime.standby import assigned_range, predicted_partitions
from streams.state.memory import MemoryDatabases
from tests.runtime.test_worker_state import PARTITIONS, SIZE, Cluster, Sent, counting
from tests.support.cluster import Broker
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping

    from streams.broker import GroupSettings
    from streams.records import TopicPartition
    from streams.runtime.worker import Worker

KEYS = [f"key {number}" for number in range(12)]


@given(st.integers(1, 12), st.integers(0, 64))
def test_ranges_share_all_partitions_out_in_order(members, partitions):
    ranges = [assigned_range(position, members, partitions) for position in range(members)]
    assert [number for each in ranges for number in each] == list(range(partitions))
    sizes = [len(each) for each in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@given(st.data(), st.integers(1, 7), st.integers(0, 20), st.integers(0, 4))
def test_predicted_partitions_are_those_that_any_failures_bring(data, members, partitions, failures):
    position = data.draw(st.integers(0, members - 1))
    others = [other for other in range(members) if other != position]
    expected: set[int] = set()
    for count in range(1, failures + 1):
        for gone in combinations(others, count):
            left = [member for member in range(members) if member not in gone]
            expected.update(assigned_range(left.index(position), len(left), partitions))
    assert predicted_partitions(position, members, partitions, failures) == expected


class Crew:
    """Workers that know each other, and may die."""

    def __init__(self, app: App, cluster: Callable[[App], Cluster] = Cluster) -> None:
        self.cluster = cluster(app)
        self.alive: dict[int, Worker] = {}
        self.databases: dict[int, MemoryDatabases] = {}
        self._random = random.Random(7)
        self._time = 0

    def start(self, slot: int) -> Worker:
        databases = self.databases[slot] = MemoryDatabases()
        self.alive[slot] = self.cluster.worker(databases, slot=slot, members=self.members)
        return self.alive[slot]

    def members(self) -> list[str]:
        return [worker.member for worker in self.alive.values() if worker.member is not None]

    def kill(self, slot: int) -> None:
        self.cluster.freeze(self.alive.pop(slot))

    def send(self, count: int) -> None:
        records = []
        for _ in range(count):
            number = self._random.randrange(len(KEYS))
            self._time += self._random.randrange(30)
            letter = self._random.choice("abcdefgh")
            records.append(Sent("in", number % PARTITIONS, KEYS[number], letter, self._time))
        self.cluster.send(*records)

    def settle(self) -> None:
        """Run until all input is committed and all replicas are up to date."""
        self.until(lambda: self.cluster.lag() == 0)
        self.until(self._quiet)

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(4_000):
            if condition():
                return
            for worker in self.alive.values():
                worker.run_once()
            self.cluster.clock.advance(0.02)
        pytest.fail(f"{[(sorted(w.progress), w.standby_lag) for w in self.alive.values()]}")

    def _quiet(self) -> bool:
        workers = self.alive.values()
        copied = set().union(*(worker.standby_lag for worker in workers))
        everything = set().union(*(worker.held for worker in workers))
        stateful = {
            task for task in everything if self.cluster.app.topology.subtopologies[task.subtopology].stores
        }
        return (
            all(worker.ready for worker in workers)
            and not any(lag for worker in workers for lag in worker.standby_lag.values())
            and (len(workers) == 1 or copied == stateful)
        )


def restored(logs: Iterable[MutableMapping[str, Any]]) -> int:
    return sum(log["records"] for log in logs if log["event"] == Event.RESTORED)


def test_a_task_continues_from_its_copy():
    crew = Crew(counting(standby_replicas=1))
    crew.start(0)
    survivor = crew.start(1)
    crew.send(400)
    crew.settle()
    assert survivor.standby_lag.keys() == crew.alive[0].held
    crew.kill(0)
    crew.send(100)
    with capture_logs() as logs:
        crew.settle()
    # Transaction markers in each changelog may be left to read, but no entries of the stores.
    assert restored(logs) <= 2 * 3 * PARTITIONS
    assert survivor.standby_lag == {}
    crew.cluster.check()
    survivor.close()


class RemoteConsumer(MemoryConsumer):
    """As over a network: records come after the first poll of an assignment, and ends are as last fetched."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._requested = False
        self._ends: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        super().assign(positions)
        self._requested = False

    def poll(self, max_records: int, timeout: float) -> Polled:
        if not self._requested:
            self._requested = True
            return Polled([], {})
        self._ends |= super().known_ends(self.assignment())
        return super().poll(max_records, timeout)

    def known_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self._ends[place] for place in partitions if place in self._ends}


class RemoteBroker(Broker):
    def consumer(self, settings: GroupSettings) -> MemoryConsumer:
        if settings.group.endswith("-standby"):
            return RemoteConsumer(self._cluster, settings)
        return super().consumer(settings)


class RemoteCluster(Cluster):
    def make_broker(self, **options: Any) -> Broker:
        return RemoteBroker(**options)


def test_a_copy_that_begins_again_is_ready_when_it_has_read_what_was_missing():
    crew = Crew(counting(standby_replicas=1), RemoteCluster)
    crew.start(0)
    crew.start(1)
    with capture_logs() as logs:
        for _ in range(3):
            crew.send(200)
            crew.settle()
            crew.start(2)
            crew.send(200)
            crew.settle()
            crew.kill(2)
    missing: dict[str, int] = {}
    for log in logs:
        if log["event"] == Event.STANDBY_STARTED:
            missing[log["task"]] = log["records"]
        elif log["event"] == Event.STANDBY_READY:
            assert log["records"] >= missing[log["task"]]
    assert any(missing.values())


def test_without_copies_everything_is_restored():
    crew = Crew(counting())
    crew.start(0)
    crew.start(1)
    crew.send(400)
    crew.until(lambda: crew.cluster.lag() == 0)
    crew.kill(0)
    with capture_logs() as logs:
        crew.until(lambda: len(crew.alive[1].held) == 3 * PARTITIONS and crew.alive[1].ready)
    assert restored(logs) > 40


@pytest.mark.parametrize("seed", range(12))
def test_results_are_right_whoever_dies(seed):
    choose = random.Random(seed)
    crew = Crew(counting(standby_replicas=choose.choice([1, 2])))
    for slot in range(3):
        crew.start(slot)
    for _ in range(6):
        crew.send(choose.randrange(100))
        rounds = choose.randrange(60)
        for _ in range(rounds):
            for worker in list(crew.alive.values()):
                worker.run_once()
        if choose.random() < 0.3:
            crew.settle()
        slot = choose.choice(sorted(crew.alive))
        crew.kill(slot)
        if choose.random() < 0.7 or not crew.alive:
            crew.start(slot if choose.random() < 0.5 else 10 + len(crew.cluster.sent))
    crew.send(50)
    crew.settle()
    crew.cluster.check()
    for worker in crew.alive.values():
        worker.close()


def test_a_copy_of_a_table_does_not_go_beyond_what_was_processed():
    """It would skip changes as already known although they were never forwarded."""
    app = App("shop", standby_replicas=1, commit_interval=0.05)
    table = app.table("in", key=Text(), value=Text(), store="prices")
    table.group_by(lambda value: value[0], value=Text()).count("by-letter").to_stream().to(
        "letters", value=Json()
    )
    crew = Crew(app)
    crew.start(0)
    survivor = crew.start(1)
    crew.send(300)
    crew.settle()
    crew.send(50)
    # Written and not processed: the other worker gets no input, and only updates its replicas.
    consumer = crew.cluster.consumer_of(survivor)
    poll = consumer.poll
    consumer.poll = lambda *_: Polled([], {})
    for _ in range(200):
        survivor.run_once()
        crew.cluster.clock.advance(0.05)
    consumer.poll = poll
    crew.kill(0)
    with capture_logs() as logs:
        crew.settle()
    assert Event.STATE_REBUILT not in [log["event"] for log in logs]
    latest = {(sent.partition, sent.key): sent.letter for sent in crew.cluster.sent}
    counts = {letter: list(latest.values()).count(letter) for letter in "abcdefgh"}
    found = dict(crew.cluster.read("letters"))
    assert {letter: found.get(letter, 0) for letter in counts} == counts


def test_expired_windows_are_deleted_from_replicas_too(monkeypatch):
    monkeypatch.setattr("streams.runtime.restore.SHORTEST_RETENTION", 0)
    crew = Crew(counting(standby_replicas=1))
    crew.start(0)
    survivor = crew.start(1)
    for _ in range(10):
        crew.send(60)
        crew.settle()
    oldest = min(sent.time for sent in crew.cluster.sent[-60:])
    subtopologies = crew.cluster.app.topology.subtopologies
    copies = [
        task.partition
        for task in survivor.standby_lag
        if "windows" in [store.name for store in subtopologies[task.subtopology].stores]
    ]
    # Its databases keep their content after it.
    survivor.close()
    databases = crew.databases[1]
    starts = [
        int.from_bytes(key[:8], "big")
        for partition in copies
        for key, _ in databases.open(["windows"], partition).store("windows").scan()
    ]
    assert starts
    assert min(starts) >= oldest - 3 * SIZE
