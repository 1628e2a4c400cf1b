"""Lineage in bounded runs, comparisons and simulations, of values with the prefix of a schema registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Avro, Record, Text, Tumbling, seconds
from streams.lineage import HEADER
from streams.simulation import RangeSimulator, Simulator
from streams.simulation.pool import explain
from streams.simulation.run import InputRecord
from streams.testing import TopologyDriver, replay, shadow

if TYPE_CHECKING:
    from pathlib import Path

    from streams.serde import Serde


class Order(msgspec.Struct):
    buyer: str
    amount: int


class Total(msgspec.Struct):
    buyer: str
    orders: int


SCHEMAS = {
    "Order": [{"name": "buyer", "type": "string"}, {"name": "amount", "type": "long"}],
    "Total": [{"name": "buyer", "type": "string"}, {"name": "orders", "type": "long"}],
}
TOPICS = ("paid", "recent", "pairs", "divided")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (name, fields) in enumerate(SCHEMAS.items(), 1):
        text = json.dumps({"type": "record", "name": f"shop.{name}", "fields": fields})
        (tmp_path / f"shop.{name}.{number}.avsc").write_text(text)
    return tmp_path


def shop(folder: Path, name: str = "shop", *, lineage: bool = True, least: int = 3) -> App:
    app = App(name, lineage=lineage)
    value = Avro(folder / "shop.Order.1.avsc", Order)
    orders = app.stream("orders", key=Text(), value=value)
    returns = app.stream("returns", key=Text(), value=value)
    orders.filter(lambda order: order.amount >= least).to("paid", value=value)
    by_buyer = orders.group_by(lambda order: order.buyer, store="by-buyer", value=value)
    by_buyer.window(Tumbling(seconds(10))).count("recent").final().map_records(
        lambda record: record.with_(value=Total(record.key, record.value.value))
    ).to("recent", value=Avro(folder / "shop.Total.2.avsc", Total))
    orders.join(
        returns,
        lambda one, other: Order(one.buyer, one.amount + other.amount),
        within=seconds(5),
        store="met",
        value=value,
        other_value=value,
    ).to("pairs", value=value)
    orders.map(lambda order: Order(order.buyer, 10 // order.amount), name="divide").to("divided", value=value)
    return app


ORDERS = [Record(f"k{n % 3}", Order(f"b{n % 2}", n % 5), 1_000 * n) for n in range(40)]
RETURNS = [Record(f"k{n % 3}", Order(f"b{n % 2}", 1), 4_000 * n) for n in range(10)]
INPUT = {"orders": ORDERS, "returns": RETURNS}


def marks(records: list[Record[Any, Any]]) -> list[Any]:
    found = [
        (record.key, record.value, record.timestamp, dict(record.headers or []).get(HEADER))
        for record in records
    ]
    return sorted(found, key=repr)


def test_a_replay_names_the_inputs_that_a_worker_names(folder: Path):
    results = replay(shop(folder), INPUT)
    with TopologyDriver(shop(folder), check_dead_letters=False) as driver:
        merged = [("orders", record) for record in ORDERS] + [("returns", record) for record in RETURNS]
        for topic, record in sorted(merged, key=lambda item: item[1].timestamp):
            driver.send(topic, record.value, key=record.key, timestamp=record.timestamp)
        for topic in TOPICS:
            live = marks(driver.read(topic))
            assert live
            assert all(mark is not None and mark.startswith(b"shop ") for *_, mark in live)
            assert marks(results.read(topic)) == live
        live_letters = driver.dead_letters()
    assert [letter.value for letter in results.dead_letters()] == [letter.value for letter in live_letters]
    assert (live_letters[0].value or b"")[:1] == b"\0"


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_range_names_inputs_by_their_own_offsets_also_from_before_it(folder: Path, partitions: int):
    everything = replay(shop(folder), INPUT, partitions=partitions)
    part = replay(shop(folder), INPUT, begin=15_000, end=33_000, partitions=partitions)
    for topic in TOPICS:
        known = marks(everything.read(topic))
        found = marks(part.read(topic))
        assert found
        # A window of which the rest was before the range has it from the warm-up.
        assert [mark for mark in found if mark not in known] == []
    again = replay(shop(folder), INPUT, begin=15_000, end=33_000, partitions=partitions)
    assert [again.read(topic) for topic in TOPICS] == [part.read(topic) for topic in TOPICS]


def test_lineage_is_not_compared(folder: Path):
    """It begins with the program's name, and is there or not without a change of a result."""
    assert shadow(shop(folder, "shop-2"), shop(folder), INPUT).equal
    assert shadow(shop(folder, "shop-2"), shop(folder, lineage=False), INPUT).equal
    diff = shadow(shop(folder, "shop-2", least=4), shop(folder), INPUT)
    assert {topic.topic: dict(topic.kinds) for topic in diff.topics if topic.differences} == {
        "paid": {"missing": sum(order.value.amount == 3 for order in ORDERS)}
    }


def encoded(records: list[Record[str, Order]], serde: Serde[Any]) -> list[InputRecord]:
    values = serde.serialize([record.value for record in records])
    return [
        InputRecord(record.key.encode(), value, record.timestamp)
        for record, value in zip(records, values, strict=True)
    ]


def test_lineage_is_the_same_under_faults_resets_and_kills(folder: Path):
    value = Avro(folder / "shop.Order.1.avsc", Order)
    inputs = {topic: encoded(records, value) for topic, records in INPUT.items()}
    for simulator in (
        Simulator(shop(folder), inputs),
        Simulator(shop(folder), inputs, reset=True),
        RangeSimulator(shop(folder), inputs, begin=15_000, end=33_000, partitions=2),
    ):
        headers = {
            place[0]: [dict(found.headers).get(HEADER) for found in records]
            for place, records in simulator.expected.items()
        }
        assert all(all(headers[topic]) and headers[topic] for topic in TOPICS if topic in headers)
        assert set(TOPICS) <= set(headers)
        *_, report = simulator.run(range(12))
        assert [line for difference in report.differences for line in explain(difference)] == []
