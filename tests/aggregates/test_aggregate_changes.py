"""Changes of the program and their effect on stored aggregates."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Json, Session, Sliding, Text, Tumbling
from streams.aggregates import (
    Aggregate,
    Combined,
    collect,
    count,
    custom,
    first,
    latest,
    maximum,
    minimum,
    most_frequent,
    top,
    total,
)
from streams.broker import GroupSettings
from streams.broker.reading import read_to_end
from streams.durations import milliseconds
from streams.errors import StateError
from streams.events import Event
from streams.records import Output, TopicPartition
from streams.state.changelog import SCHEMA_KEY, TIME_KEY
from streams.state.evolution import compare, kept, new_aggregates, reading
from streams.state.memory import MemoryDatabases
from streams.testing import TopologyDriver
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from streams.state.definition import StoreDefinition

WINDOWS = [
    None,
    Tumbling(seconds=1000),
    Session(gap=milliseconds(10_000)),
    Sliding(difference=milliseconds(10_000)),
]


def selling(window: Any = None, **fields: Any) -> App:
    app = App("sales")
    grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
    if window is None:
        grouped.aggregate("s", **fields).to("out", value=Json())
    else:
        results = grouped.window(window).aggregate("s", **fields).updates(tombstones=True)
        results.map(lambda windowed: windowed.value).to("out", value=Json())
    return app


def after(driver: TopologyDriver, app: App, value: Any, *, key: str = "k") -> Any:
    """The result for one more value, in a program that was changed."""
    driver.restart(app)
    driver.send("in", value, key=key, timestamp=driver.clock)
    driver.clock += 1
    # Of sliding windows, the one that has all events.
    return max((result for result in driver.values("out") if result is not None), key=lambda each: each["n"])


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_aggregates_may_be_reordered_added_and_removed(window):
    driver = TopologyDriver(selling(window, n=count(), worth=total()))
    assert after(driver, selling(window, n=count(), worth=total()), 5) == {"n": 1, "worth": 5}
    assert after(driver, selling(window, worth=total(), n=count()), 6) == {"worth": 11, "n": 2}
    added = selling(window, most=maximum(), worth=total(), last=latest(), n=count())
    assert after(driver, added, 4) == {"most": 4, "worth": 15, "last": 4, "n": 3}
    assert after(driver, selling(window, n=count(), most=maximum()), 9) == {"n": 4, "most": 9}


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_an_aggregate_that_comes_back_begins_again(window):
    both, one = {"n": count(), "worth": total()}, {"n": count()}
    driver = TopologyDriver(selling(window, **both))
    after(driver, selling(window, **both), 100)
    after(driver, selling(window, **both), 200, key="quiet")
    assert after(driver, selling(window, **one), 1) == {"n": 2}
    # Neither rewritten nor older entries have the removed aggregate's values.
    assert after(driver, selling(window, **both), 10) == {"n": 3, "worth": 10}
    assert after(driver, selling(window, **both), 20, key="quiet") == {"n": 2, "worth": 20}
    assert after(driver, selling(window, **one), 1, key="quiet") == {"n": 3}
    assert after(driver, selling(window, **both), 7, key="quiet") == {"n": 4, "worth": 7}
    assert after(driver, selling(window, **both), 7, key="quiet") == {"n": 5, "worth": 14}


def test_aggregates_within_others_come_and_go_too():
    def nested(**inner: Any) -> App:
        return selling(n=count(), inner=Combined(inner))

    driver = TopologyDriver(nested(sum=total()))
    assert after(driver, nested(sum=total()), 5) == {"n": 1, "inner": {"sum": 5}}
    assert after(driver, nested(most=maximum(), sum=total()), 3) == {"n": 2, "inner": {"most": 3, "sum": 8}}
    assert after(driver, nested(most=maximum()), 4) == {"n": 3, "inner": {"most": 4}}
    assert after(driver, nested(sum=total(), most=maximum()), 1) == {"n": 4, "inner": {"sum": 1, "most": 4}}


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"worth": maximum()}, "aggregate 'worth': was total(), is maximum()"),
        ({"n": count(), "worth": total("price")}, "aggregate 'worth': was total(), is total('price')"),
        ({"n": collect(limit=3), "worth": total()}, "aggregate 'n': was count(), is collect(limit=3)"),
        ({"n": Combined({"n": count()})}, "aggregate 'n': was count(), is several aggregates by name"),
    ],
)
def test_another_kind_under_the_same_name_is_refused_with_what_to_do(window, fields, says):
    driver = TopologyDriver(selling(window, n=count(), worth=total()))
    after(driver, selling(window, n=count(), worth=total()), 5)
    with pytest.raises(StateError) as caught:
        after(driver, selling(window, **fields), 5)
    assert says in str(caught.value)
    assert "another name" in str(caught.value.hint)
    assert caught.value.exit_code == 8
    # Nothing was changed: the program before continues.
    assert after(driver, selling(window, n=count(), worth=total()), 5) == {"n": 2, "worth": 10}


def test_a_kind_that_an_earlier_program_had_under_the_name_is_refused_too():
    driver = TopologyDriver(selling(n=count(), worth=total()))
    after(driver, selling(n=count(), worth=total()), 5)
    after(driver, selling(n=count()), 5)
    with pytest.raises(StateError, match="'worth': was total"):
        after(driver, selling(n=count(), worth=maximum()), 5)


def test_one_aggregate_and_several_are_not_the_same():
    app = App("sales")
    app.stream("in", key=Text(), value=Json()).group_by_key().aggregate("s", total()).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send("in", 1, key="k", timestamp=1)
    with pytest.raises(StateError, match="was total\\(\\), is several aggregates"):
        after(driver, selling(worth=total()), 1)


class Priced(msgspec.Struct):
    price: Decimal


class Named(msgspec.Struct):
    price: Decimal
    name: str = "none"


class Counted(msgspec.Struct):
    price: int


def keeping(kind: Any, **fields: Any) -> App:
    app = App("sales")
    stream = app.stream("in", key=Text(), value=Json(kind))
    stream.group_by_key().aggregate("s", **fields).to("out", value=Json())
    return app


def test_the_type_of_kept_values_may_change_as_that_of_a_store():
    driver = TopologyDriver(keeping(Priced, first=first(), least=minimum("price")))
    driver.send("in", Priced(Decimal("1.10")), key="k", timestamp=1)
    driver.restart(keeping(Named, first=first(), least=minimum("price")))
    driver.send("in", Named(Decimal("2.00"), "x"), key="k", timestamp=2)
    assert driver.values("out")[-1] == {"first": {"price": "1.10", "name": "none"}, "least": "1.10"}
    driver.restart(keeping(Counted, first=first()))
    with pytest.raises(StateError, match="aggregate 'first' field 'price'"):
        driver.send("in", Counted(2), key="k", timestamp=3)


class Cluster(MemoryCluster):
    """One input topic and workers, one after the other, each with its state from the changelog alone."""

    def __init__(self) -> None:
        super().__init__({"in": 1, "out": 1})
        self.sent = 0

    def produce(self, topic: str, keys: list[bytes | None], values: list[bytes | None], time: int) -> None:
        self.write(Output(topic, keys, values, [time] * len(values), partition=0))

    def send(self, value: Any, time: int) -> None:
        self.produce("in", [b"k"], [msgspec.json.encode(value)], time)
        self.sent += 1

    def topics(self, app: App) -> dict[str, int]:
        return self.prepare(app, create_outputs=False)

    def run(self, app: App) -> list[Any]:
        """Let a new worker process what was sent: its log."""
        worker = self.make_worker(
            app,
            "slot",
            partitions=self.topics(app),
            databases=MemoryDatabases(),
            wall_clock=self.clock.milliseconds,
        )
        with capture_logs() as logs:
            worker.start()
            for _ in range(400):
                worker.run_once()
                if self.admin.committed_offsets(app.name).get(TopicPartition("in", 0)) == self.sent:
                    break
            else:
                pytest.fail("the input is not committed")
            worker.close()
        return logs

    def results(self) -> list[Any]:
        return [msgspec.json.decode(value) for value in self.payloads("out") if value]


def test_a_worker_says_which_aggregate_begins_and_when():
    cluster = Cluster()
    cluster.send(5, 1_000)
    assert not begun(cluster.run(selling(n=count())))
    cluster.send(6, 2_000)
    (event,) = begun(cluster.run(selling(worth=total(), n=count())))
    assert (event["store"], event["task"], event["aggregates"]) == ("s", "0_0", ["worth"])
    assert event["offsets"] == {"in-0": 1}
    assert 1_000_000 < event["since"] < round(cluster.clock.now * 1000)
    assert event["log_level"] == "warning"
    cluster.send(7, 3_000)
    assert not begun(cluster.run(selling(n=count(), worth=total())))
    assert cluster.results() == [{"n": 1}, {"worth": 6, "n": 2}, {"n": 3, "worth": 13}]
    # It is in the changelog from then on.
    schemas = [
        json.loads(value)
        for fetched in read_to_end(cluster.broker, ["sales-s-changelog"])
        for key, value in zip(fetched.keys(), fetched.values(), strict=True)
        if key == SCHEMA_KEY and value is not None
    ]
    assert [schema.get("began") for schema in schemas][:2] == [None, {"worth": [event["since"]]}]


def begun(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == Event.AGGREGATE_BEGINS_EMPTY]


# State of earlier versions: fields by position, values without types and positions.


class Sale(msgspec.Struct):
    price: float
    name: str


SALES = [Sale(1.5, "a"), Sale(2.0, "b"), Sale(0.5, "b")]

DESCRIBED = (
    "combined(n=count(), worth=total('price'), last=latest('name'), begin=first(), all=collect('name', "
    "limit=None), often=most_frequent('name', n=2, capacity=1000), top=top('price', n=2), "
    "low=minimum('price'))"
)
FIELDS = (
    "98039200cb401000000000000091a1629182a57072696365cb3ff8000000000000a46e616d65a16193a161a162a1629500a16101"
    "a1620292cb4000000000000000cb3ff8000000000000cb3fe0000000000000"
)
PANES = (
    "920293920098019200cb3ff800000000000091a1619182a57072696365cb3ff8000000000000a46e616d65a16191a1619300a161"
    "0191cb3ff8000000000000cb3ff8000000000000920198019200cb400000000000000091a1629182a57072696365cb4000000000"
    "000000a46e616d65a16291a1629300a1620191cb4000000000000000cb4000000000000000920298019200cb3fe0000000000000"
    "91a1629182a57072696365cb3fe0000000000000a46e616d65a16291a1629300a1620191cb3fe0000000000000cb3fe000000000"
    "0000"
)
REDUCED = "c4187b227072696365223a302e352c226e616d65223a2262227d"
STORED: list[tuple[Any, str, str, Any, str]] = [
    (None, "aggregate {}", "timed accumulator", DESCRIBED, f"92{FIELDS}02"),
    (Tumbling(seconds=1), "tumbling 1000 ms, aggregate {}", "accumulator", DESCRIBED, FIELDS),
    (Session(gap=milliseconds(5)), "session 5 ms, aggregate {}", "sessions", DESCRIBED, f"91930002{FIELDS}"),
    (Sliding(difference=milliseconds(5)), "sliding 5 ms, aggregate {}", "panes", DESCRIBED, PANES),
]
"""Windows, and of each purpose, what stood around accumulators, their description and the bytes."""


def all_kinds() -> dict[str, Any]:
    return {
        "low": minimum("price"),
        "n": count(),
        "all": collect("name"),
        "new": maximum("price"),
        "worth": total("price"),
        "often": most_frequent(2, "name"),
        "begin": first(),
        "last": latest("name"),
        "top": top(2, "price"),
    }


def store_of(app: App) -> StoreDefinition:
    (store,) = [store for part in app.topology.subtopologies for store in part.stores if store.name == "s"]
    return store


@pytest.mark.parametrize(("window", "purpose", "around", "described", "stored"), STORED, ids=str)
def test_accumulators_of_earlier_versions_are_read_by_their_positions(
    window, purpose, around, described, stored
):
    app = App("sales")
    grouped = app.stream("in", key=Text(), value=Json(Sale)).group_by_key()
    (grouped if window is None else grouped.window(window)).aggregate("s", **all_kinds())
    definition = store_of(app)
    schema = json.dumps({"purpose": purpose.format(described), "key": "Text", "value": {around: described}})
    assert compare(schema, definition.schema).relation == "compatible"
    assert new_aggregates(schema, definition.schema) == ["new"]
    now = kept(schema, definition.schema, 7)
    assert compare(now, definition.schema).relation == "same"
    assert kept(now, definition.schema, 8) == now
    serde = reading(definition, now)
    (accumulator,) = serde.deserialize([bytes.fromhex(stored)])
    (again,) = serde.deserialize(list(serde.serialize([accumulator])))
    assert again == accumulator
    assert definition.view is not None
    shown = definition.view(again)
    results: list[Any] = [shown] if isinstance(shown, msgspec.Struct) else [each["value"] for each in shown]
    result = max(results, key=lambda each: each.n)
    assert (result.n, result.worth, result.last, result.begin) == (3, 4.0, "b", SALES[0])
    assert (result.all, result.often) == (("a", "b", "b"), (("b", 2), ("a", 1)))
    assert (result.top, result.low, result.new) == ((2.0, 1.5), 0.5, None)


def test_single_aggregates_and_reduced_values_of_earlier_versions_are_read():
    kinds: tuple[tuple[Aggregate[Any, Any], str, str, Any], ...] = (
        (latest("name"), "latest('name')", "9291a16202", "b"),
        (custom(lambda: 0, lambda a, _: a + 1, name="a, (b)"), "custom(name='a, (b)')", "920302", 3),
        (first("name"), "first('name')", "9291a16202", "b"),
    )
    for aggregate, described, stored, expected in kinds:
        app = App("sales")
        app.stream("in", key=Text(), value=Json(Sale)).group_by_key().aggregate("s", aggregate)
        definition = store_of(app)
        schema = json.dumps(
            {
                "purpose": f"aggregate {described}",
                "key": "Text",
                "value": {"timed accumulator": described},
            }
        )
        serde = reading(definition, kept(schema, definition.schema))
        assert compare(schema, definition.schema).relation == "compatible"
        (entry,) = serde.deserialize([bytes.fromhex(stored)])
        assert definition.view is not None
        assert definition.view(entry) == expected
    for window, stored in ((None, f"92{REDUCED}02"), (Session(gap=milliseconds(5)), f"91930002{REDUCED}")):
        app = App("sales")
        grouped = app.stream("in", key=Text(), value=Json(Sale)).group_by_key()
        (grouped if window is None else grouped.window(window)).reduce("s", lambda _, value: value)
        definition = store_of(app)
        schema = json.loads(definition.schema)
        schema["purpose"] += " reduce"
        if window is not None:
            schema["value"] = {"sessions": "reduce"}
        assert compare(json.dumps(schema), definition.schema).relation != "incompatible"
        (entry,) = reading(definition, definition.schema).deserialize([bytes.fromhex(stored)])
        assert definition.view is not None
        shown = definition.view(entry)
        assert (shown if window is None else shown[0]["value"]) == SALES[2]


def test_a_worker_continues_with_the_changelog_of_an_earlier_version():
    app = App("sales")
    stream = app.stream("in", key=Text(), value=Json(Sale)).group_by_key()
    stream.aggregate("s", **all_kinds()).to("out", value=Json())
    cluster = Cluster()
    cluster.topics(app)
    schema = {"purpose": f"aggregate {DESCRIBED}", "key": "Text", "value": {"timed accumulator": DESCRIBED}}
    cluster.produce(
        "sales-s-changelog",
        [b"k", TIME_KEY, SCHEMA_KEY],
        [bytes.fromhex(f"92{FIELDS}02"), b"2", json.dumps(schema).encode()],
        0,
    )
    for time, sale in enumerate(SALES):
        cluster.send(sale, time)
    consumer = cluster.broker.consumer(GroupSettings(group="sales"))
    consumer.commit({TopicPartition("in", 0): 3})
    consumer.close()
    cluster.send(Sale(9.0, "c"), 10)
    (event,) = begun(cluster.run(app))
    assert (event["aggregates"], event["offsets"]) == (["new"], {"in-0": 3})
    assert cluster.results() == [
        {
            "low": 0.5,
            "n": 4,
            "all": ["a", "b", "b", "c"],
            "new": 9.0,
            "worth": 13.0,
            "often": [["b", 2], ["a", 1]],
            "begin": {"price": 1.5, "name": "a"},
            "last": "c",
            "top": [9.0, 2.0],
        }
    ]


def test_minimum_of_numbers_cannot_become_one_of_other_values():
    app = App("sales")
    stream = app.stream("in", key=Text(), value=Json(Sale)).group_by_key()
    stream.aggregate("s", low=minimum("name"))
    schema = {
        "purpose": "aggregate",
        "key": "Text",
        "value": {"timed accumulator": {"combined": {"low": "minimum('name')"}}},
    }
    verdict = compare(json.dumps(schema), store_of(app).schema)
    assert verdict.relation == "incompatible"
    assert "its values were numbers" in verdict.differences[0]
