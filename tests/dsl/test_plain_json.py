"""Untyped JSON needs no ``value=``: results of functions are written as JSON, or rejected."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from streams import App, Json, Record, Text, TopologyError
from streams.testing import TopologyDriver


class Order(msgspec.Struct):
    user: str


def untyped(app: App) -> Any:
    return app.stream("in", value=Json())


def named(value: dict[str, Any]) -> dict[str, Any]:
    return {"user": value["user"]}


STEPS: dict[str, Any] = {
    "map": lambda s: s.map(lambda v: {"user": v["user"]}),
    "two maps": lambda s: s.map(lambda v: [v]).map(lambda v: v[0]),
    "annotated, then not": lambda s: s.map(named).map(lambda v: {**v}),
    "flat_map": lambda s: s.flat_map(lambda v: [v]),
    "map_batch": lambda s: s.map_batch(lambda batch: batch),
    "filter": lambda s: s.filter(bool),
    "merge": lambda s: s.map(lambda v: v).merge(s.filter(lambda v: False)),
}


@pytest.mark.parametrize("step", STEPS)
def test_untyped_json_groups_without_a_word_on_how_values_are_written(step):
    app = App("shop")
    STEPS[step](untyped(app)).group_by(lambda v: v["user"]).count("n").to("out")
    driver = TopologyDriver(app, partitions=2)
    driver.send_all("in", [Record(b"k", {"user": user}, 0) for user in "aba"])
    assert {record.key: record.value for record in driver.read("out")} == {"a": 2, "b": 1}
    (sink,) = [sink for sink in app.topology.sinks if sink.repartition is not None]
    assert sink.value.name == "Json"


def test_it_becomes_a_table_is_joined_and_reduced_without_a_word_too():
    app = App("shop")
    values = app.stream("in", key=Text(), value=Json()).map(lambda v: {"n": v})
    table = values.to_table("kept")
    table.map(lambda v: v["n"]).group_by(lambda n: str(n % 2)).count("parity").to("parities")
    values.join(table, lambda one, other: [one, other]).key_by(lambda pair: "all").repartition("again").to(
        "pairs"
    )
    values.group_by_key().reduce("last", lambda _, value: value).to("last")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", 1, 0), Record("b", 2, 0)])
    assert {record.key: record.value for record in driver.read("parities")} == {"0": 1, "1": 1}
    assert len(driver.values("pairs")) == 2
    assert driver.values("last") == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("value", [{1, 2}, {1: "one"}, {"nan": math.nan}, Order("ann"), b"bytes"], ids=repr)
def test_what_json_does_not_keep_is_refused_at_its_record(value):
    app = App("shop")
    untyped(app).map(lambda v: value if v == 1 else v).group_by(lambda v: "all").count("n").to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(b"k", number, 0) for number in (0, 1, 2)])
    assert driver.values("out") == [2]
    assert [letter.value for letter in driver.dead_letters()] == [b"1"]


def test_values_of_typed_streams_still_need_it():
    streams = [
        App("shop").stream("in", value=Json(Order)).map(lambda order: order.user),
        App("shop").stream("in", value=Text()).map(lambda text: {"user": text}),
        App("shop").stream("in", value=Json(Order)).map(lambda order: order).map(lambda order: order),
    ]
    for stream in streams:
        values: Any = stream
        with pytest.raises(TopologyError, match=r"(?s)type of the values is not known.*value=Json\(Type\)"):
            values.group_by(str).count("n")


def length(order: Order) -> int:
    return len(order.user)


def parts(order: Order) -> list[dict[str, float | None]]:
    return [{order.user: None}]


def pair(order: Order) -> tuple[str, int]:
    return order.user, 1


def orders(order: Order) -> dict[str, Order]:
    return {order.user: order}


@pytest.mark.parametrize("function", [length, parts])
def test_an_annotation_of_plain_json_is_enough_whatever_the_stream(function):
    app = App("shop")
    app.stream("in", value=Json(Order)).map(function).group_by(str).count("n").to("out")
    driver = TopologyDriver(app)
    driver.send("in", Order("ann"))
    assert driver.values("out") == [1]


@pytest.mark.parametrize("function", [pair, orders])
def test_an_annotation_of_what_json_would_read_back_as_something_else_is_not(function):
    values: Any = App("shop").stream("in", value=Json()).map(function)
    with pytest.raises(TopologyError, match="type of the values is not known"):
        values.group_by(str).count("n")
