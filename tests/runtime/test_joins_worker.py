"""Joins in workers on the memory broker: state is restored, and no pair is lost or repeated."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, JoinWindow, Json, Text, total
from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from streams.durations import milliseconds
from streams.errors import NotCommitted
from streams.partitioning import partition_for
from streams.records import Output, TopicPartition
from streams.runtime.global_tables import GlobalTables
from streams.runtime.restore import OLDEST_CHECKPOINT
from streams.state.memory import MemoryDatabases
from streams.state.rocksdb import RocksDatabases
from tests.support.cluster import MemoryCluster
from tests.support.joined import Window, arrivals, check_definition, promised

if TYPE_CHECKING:
    from pathlib import Path

    from streams.runtime.worker import Worker
    from streams.state.store import Databases

PARTITIONS = 2
INPUTS = ("orders", "customers", "clicks", "left", "right", "prices")


def sum_of(value: list[Any]) -> int:
    return sum(part or 0 for part in value)


def program() -> App:
    app = App("shop", max_poll_records=7, commit_interval=0.05)
    orders = app.table("orders", key=Text(), value=Json())
    customers = app.table("customers", key=Text(), value=Json())
    prices = app.global_table("prices", key=Text(), value=Json())
    joined = orders.join_foreign_key(
        customers,
        lambda order: order["customer"],
        lambda order, customer: [order["amount"], customer],
        store="priced",
        left=True,
        result=Json(),
    )
    joined.to("priced")
    joined.group_by(lambda _: "all").aggregate("sum", total(sum_of)).to("sum")
    pairs = orders.map(lambda order: order["amount"]).outer_join(customers, lambda one, two: [one, two])
    pairs.to("pairs")
    clicks = app.stream("clicks", key=Text(), value=Json())
    clicks.left_join(orders, lambda click, order: [click, order and order["amount"]]).to("clicked")
    clicks.left_join_global(prices, str, lambda click, price: [click, price]).to("costs")
    left = app.stream("left", key=Text(), value=Json())
    right = app.stream("right", key=Text(), value=Json())
    left.outer_join(
        right, lambda one, two: [one, two], within=milliseconds(10), grace=milliseconds(100), store="met"
    ).to("met")
    return app


class Cluster(MemoryCluster):
    """Topics for the program, and workers that are stopped and restarted."""

    def __init__(self, app: App | None = None) -> None:
        super().__init__(dict.fromkeys(INPUTS, PARTITIONS))
        self.deploy(app or program())
        self.workers: list[Worker] = []
        self.made = 0

    def deploy(self, app: App) -> None:
        """Set the program of workers started from now on."""
        self.app = app
        self.partitions = self.prepare(app, dead_letter_topic="d", create_outputs=True)

    def start(self, databases: Databases | None = None) -> Worker:
        worker = self.make_worker(
            self.app,
            f"slot-{self.made}",
            partitions=self.partitions,
            databases=databases if databases is not None else MemoryDatabases(),
            wall_clock=self.clock.milliseconds,
        )
        self.made += 1
        worker.start()
        self.workers.append(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        """Simulate a killed process: its session ends and its open transaction times out."""
        self.freeze(worker)
        self.workers.remove(worker)

    def send(self, topic: str, key: str, value: Any, time: int, partition: int | None = None) -> None:
        payload = None if value is None else msgspec.json.encode(value)
        self.write(Output(topic, [key.encode()], [payload], [time], partition=partition))

    def lag(self) -> int:
        return self.uncommitted("shop", self.partitions)

    def run(self) -> None:
        for _ in range(2_000):
            for worker in self.workers:
                worker.run_once()
            if self.lag() == 0:
                return
        pytest.fail(f"{self.lag()} offsets are not committed")

    def read(self, topic: str) -> list[tuple[str, Any]]:
        return [
            (key.decode(), None if value is None else msgspec.json.decode(value))
            for key, value in self.rows(topic)
            if key is not None
        ]

    def latest(self, topic: str) -> dict[str, Any]:
        return {key: value for key, value in dict(self.read(topic)).items() if value is not None}


def turn_over(cluster: Cluster, generator: random.Random) -> None:
    """Replace a worker, which stops or is killed, by one with an empty disk."""
    chosen = generator.choice(cluster.workers)
    if generator.random() < 0.5:
        cluster.kill(chosen)
    else:
        # A worker that was replaced without noticing has uncommitted work that others process again.
        with suppress(NotCommitted):
            chosen.close()
        cluster.workers.remove(chosen)
    cluster.start()


@pytest.mark.parametrize("seed", range(12))
def test_joins_are_right_whoever_comes_and_goes(seed):
    generator = random.Random(seed)
    cluster = Cluster()
    cluster.start()
    if seed % 2:
        cluster.start()
    orders: dict[str, Any] = {}
    customers: dict[str, Any] = {}
    sides: list[tuple[str, str, int, int]] = []
    for number in range(120):
        # Out of order by less than twice the join window, plus the grace: all pairs are joined.
        time = number * 3 + generator.choice([0, 0, generator.randint(0, 100)])
        kind = generator.choice(["orders", "customers", "left", "right"])
        key = generator.choice("abcdef")
        if kind == "orders":
            customer = generator.choice(["a", "b", "c", None])
            orders[key] = generator.choice([None, {"customer": customer, "amount": number}])
            cluster.send(kind, key, orders[key], time)
        elif kind == "customers":
            customers[key] = generator.choice([None, number])
            cluster.send(kind, key, customers[key], time)
        else:
            sides.append((kind, key, number, time))
            cluster.send(kind, key, number, time)
        for worker in cluster.workers:
            if generator.random() < 0.4:
                worker.run_once()
        if generator.random() < 0.06:
            turn_over(cluster, generator)
    cluster.run()
    for topic in ("left", "right"):
        for partition in range(PARTITIONS):
            cluster.send(topic, "end", 0, 10_000, partition)
    cluster.run()
    turn_over(cluster, generator)
    cluster.run()
    for topic in ("left", "right"):
        for partition in range(PARTITIONS):
            cluster.send(topic, "last", 0, 20_000, partition)
    cluster.run()
    known = {key: value for key, value in orders.items() if value is not None}
    names = {key: value for key, value in customers.items() if value is not None}
    priced = {key: [order["amount"], names.get(order["customer"])] for key, order in known.items()}
    assert cluster.latest("priced") == priced
    assert cluster.latest("sum").get("all", 0) == sum(map(sum_of, priced.values()))
    assert cluster.latest("pairs") == {
        key: [known[key]["amount"] if key in known else None, names.get(key)]
        for key in known.keys() | names.keys()
    }
    pairs: Counter[tuple[str, int | None, int | None]] = Counter(
        (one[1], one[2], two[2])
        for one in sides
        for two in sides
        if one[0] == "left" and two[0] == "right" and one[1] == two[1] and abs(one[3] - two[3]) <= 10
    )
    met = {("left", number) for _, number, _ in pairs} | {("right", number) for _, _, number in pairs}
    for side, key, number, _ in sides:
        if (side, number) not in met:
            pairs[(key, number, None) if side == "left" else (key, None, number)] += 1
    found = Counter((key, one, two) for key, (one, two) in cluster.read("met") if key not in ("end", "last"))
    assert found == pairs


def streams_joined(how: str) -> App:
    app = App("shop", max_poll_records=7, commit_interval=0.05)
    left = app.stream("left", key=Text(), value=Json())
    right = app.stream("right", key=Text(), value=Json())
    join: Any = {"inner": left.join, "left": left.left_join, "outer": left.outer_join}[how]
    joined = join(
        right,
        lambda one, two: [one, two],
        window=JoinWindow(before=milliseconds(5), after=milliseconds(20)),
        store="met",
    )
    joined.to("met")
    joined.late().to("late")
    return app


@pytest.mark.parametrize("how", ["inner", "left", "outer"])
@pytest.mark.parametrize("seed", range(6))
def test_live_and_replayed_joins_are_those_of_the_definition(how, seed):
    """Two partitions of each of two topics, far out of order; workers join and leave, with or without
    disks.
    """
    generator = random.Random(seed)
    window = Window(5, 20)
    cluster = Cluster(streams_joined(how))
    records: list[tuple[str, str, int, int, int]] = []
    for number in range(150):
        side, key = generator.choice(["left", "right"]), generator.choice("abcdef")
        time = max(0, number * 3 - generator.choice([0, 0, generator.randint(0, 150)]))
        records.append((side, key, number, time, partition_for(key.encode(), PARTITIONS)))
    # Each record is processed before the next one is sent, which fixes the order.
    cluster.start()
    for side, key, number, time, partition in records:
        cluster.send(side, key, number, time, partition)
        cluster.run()
        if generator.random() < 0.1:
            turn_over(cluster, generator)
    for partition in range(PARTITIONS):
        cluster.send("left", "end", 1_000, 10_000, partition)
        cluster.run()
    results: Counter[Any] = Counter()
    for fetched in read_to_end(cluster.broker, ["met"]):
        for raw, value, when in zip(fetched.keys(), fetched.values(), fetched.timestamps(), strict=True):
            results[(raw or b"").decode(), tuple(msgspec.json.decode(value or b"")), when] += 1
    late = Counter(number for _, number in cluster.read("late"))
    expected: Counter[Any] = Counter()
    too_late: set[int] = set()
    for partition in range(PARTITIONS):
        came = [
            each._replace(number=each.value)
            for each in arrivals(record[:4] for record in records if record[4] == partition)
        ]
        numbers = {each.number for each in came}
        own = Counter({result: n for result, n in results.items() if numbers & {*result[1]}})
        check_definition(came, how, window, own, Counter({n: late[n] for n in numbers & late.keys()}))
        promise = promised(came, how, window)
        expected += promise.results
        too_late |= promise.late
    assert results == expected
    assert late.keys() == too_late


def test_state_of_a_version_that_did_not_list_unmatched_records_is_read():
    # An inner join keeps the same records, without the list.
    cluster = Cluster(streams_joined("inner"))
    worker = cluster.start()
    for number in range(40):
        cluster.send("left", f"k{number}", number, 1_000 + number, number % PARTITIONS)
    cluster.run()
    worker.close()
    cluster.workers.clear()
    cluster.deploy(streams_joined("left"))
    cluster.start()
    cluster.send("right", "k39", 0, 1_040, 1)
    for partition in range(PARTITIONS):
        cluster.send("left", "clock", 0, 1_046, partition)
    cluster.run()
    # They leave 25 ms after their own time, here as far as 20.
    assert sorted(cluster.read("met"), key=str) == sorted(
        [*((f"k{number}", [number, None]) for number in range(21)), ("k39", [39, 0])], key=str
    )
    turn_over(cluster, random.Random(0))
    for partition in range(PARTITIONS):
        cluster.send("left", "end", 0, 2_000, partition)
    cluster.run()
    alone = Counter(key for key, (_, right) in cluster.read("met") if right is None)
    assert alone == Counter([*(f"k{number}" for number in range(39)), "clock", "clock"])


def test_a_stream_is_joined_with_tables_that_come_back_from_their_topics():
    cluster = Cluster()
    for number in range(20):
        cluster.send("orders", str(number % 10), {"customer": "x", "amount": number}, number)
    for number in range(4):
        cluster.send("prices", str(number), number * 100, 0)
    worker = cluster.start()
    cluster.run()
    cluster.send("orders", "3", None, 30)
    cluster.run()
    worker.close()
    cluster.workers.clear()
    cluster.send("prices", "1", None, 5)
    cluster.start()
    for number in range(12):
        cluster.send("clicks", str(number), number, 100)
    cluster.run()
    assert cluster.latest("clicked") == {
        str(number): [number, number + 10 if number < 10 and number != 3 else None] for number in range(12)
    }
    assert cluster.latest("costs") == {
        str(number): [number, number * 100 if number < 4 and number != 1 else None] for number in range(12)
    }


def test_a_worker_follows_its_global_tables():
    cluster = Cluster()
    worker = cluster.start()
    cluster.run()
    cluster.send("prices", "1", 7, 0)
    for _ in range(5):
        worker.run_once()
    cluster.send("clicks", "k", 1, 0)
    cluster.run()
    assert cluster.latest("costs") == {"k": [1, 7]}


def global_tables(cluster: Cluster, databases: Databases) -> GlobalTables:
    tables = GlobalTables(
        cluster.app.topology.global_tables,
        cluster.broker,
        databases,
        application="shop",
        wall_clock=lambda: round(cluster.clock.now * 1000),
    )
    tables.start(lambda: False)
    return tables


def test_a_global_table_continues_from_its_checkpoint(tmp_path: Path):
    cluster = Cluster()
    for key, value in [("a", 1), ("b", 2), ("a", None)]:
        cluster.send("prices", key, value, 0)
    databases = RocksDatabases(tmp_path, 10_000_000)
    tables = global_tables(cluster, databases)
    assert tables.lookups["prices"](["a", "b", "c"]) == [None, 2, None]
    tables.close()
    partitions = [TopicPartition("prices", number) for number in range(PARTITIONS)]
    # It does not need to read these records again.
    cluster.admin.delete_records(cluster.admin.end_offsets(partitions))
    cluster.send("prices", "c", 3, 0)
    tables = global_tables(cluster, databases)
    assert tables.lookups["prices"](["a", "b", "c"]) == [None, 2, 3]
    tables.close()
    databases.close()


def test_a_global_table_is_read_again_when_its_topic_is_another_one_or_it_was_not_used():
    cluster = Cluster()
    databases = MemoryDatabases()
    cluster.send("prices", "a", 1, 0, 0)
    cluster.send("prices", "a", 2, 0, 0)
    global_tables(cluster, databases).close()
    cluster.admin.delete_topics(["prices"])
    cluster.admin.create_topics([NewTopic(name="prices", partitions=PARTITIONS)])
    cluster.send("prices", "b", 1, 0, 0)
    tables = global_tables(cluster, databases)
    assert tables.lookups["prices"](["a", "b"]) == [None, 1]
    tables.close()
    cluster.admin.delete_records({TopicPartition("prices", 0): 1})
    cluster.clock.advance(OLDEST_CHECKPOINT / 1000 + 1)
    tables = global_tables(cluster, databases)
    assert tables.lookups["prices"](["a", "b"]) == [None, None]
    tables.close()


def test_loading_a_global_table_ends_on_a_stop_request():
    cluster = Cluster()
    cluster.send("prices", "a", 1, 0, 0)
    tables = GlobalTables(
        cluster.app.topology.global_tables, cluster.broker, MemoryDatabases(), application="shop"
    )
    tables.start(lambda: True)
    assert tables.lookups["prices"](["a"]) == [None]
    tables.close()
