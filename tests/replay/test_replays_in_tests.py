"""Replays in users' tests: ``streams.testing.replay`` and ``shadow``, without Kafka."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from streams import App, Bytes, Json, Record, Text, TopicPartition, Tumbling, current_replay, seconds
from streams.errors import ConfigurationError, TopicError, TopologyError
from streams.testing import TopologyDriver, replay, shadow
from tests.replay.inputs import memory_broker, readings, send, written
from tests.support.waiting import wait_until

SALES = [Record(f"k{number % 3}", {"n": number, "size": number % 7}, 1_000 * number) for number in range(60)]


def shop(limit: int = 3, **settings: Any) -> App:
    app = App("shop", **settings)
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    sales.filter(lambda sale: sale["size"] > limit).to("big", value=Json())
    by_size = sales.group_by(lambda sale: str(sale["size"]), store="by-size")
    by_size.window(Tumbling(seconds(10))).count("sizes").final().to("sizes")
    sales.map(lambda sale: 10 // sale["size"], name="divide").to("divided", value=Json(int))
    return app


def plain(records: list[Record[Any, Any]]) -> list[Any]:
    return [(record.key, record.value, record.timestamp) for record in records]


def test_a_replay_of_everything_has_the_results_of_the_driver():
    with TopologyDriver(shop(), check_dead_letters=False) as driver:
        for record in SALES:
            driver.send("sales", record.value, key=record.key, timestamp=record.timestamp)
        results = replay(shop(), {"sales": SALES})
        for topic in ("big", "sizes", "divided"):
            live = plain(driver.read(topic))
            assert live
            assert sorted(map(repr, plain(results.read(topic)))) == sorted(map(repr, live))
        letters = [(letter.key, letter.value) for letter in driver.dead_letters()]
    assert [(letter.key, letter.value) for letter in results.dead_letters()] == letters
    assert results.topics == ["big", "divided", "shop-dead-letters", "sizes"]
    assert results.report["records"] == 60
    assert results.report["dead_letters"] == len(letters) > 0
    assert results.values("divided")[:2] == [10, 5]


def test_a_range_has_the_results_of_its_records_with_the_windows_that_began_before_it():
    app = shop()
    complete = replay(app, {"sales": SALES})
    ranges: list[tuple[int | str, int | str]] = [
        (25_000, 40_000),
        ("1970-01-01T00:00:25Z", "1970-01-01T00:00:40Z"),
    ]
    for begin, end in ranges:
        part = replay(app, {"sales": SALES}, begin=begin, end=end)
        times = [record.timestamp for record in part.read("big")]
        assert times == [time for time in range(25_000, 40_000, 1_000) if time // 1_000 % 7 > 3]
        first, *_ = part.read("sizes")
        assert first.value.start == 20_000
        assert plain([first]) == plain([r for r in complete.read("sizes") if r.value.start == 20_000][:1])
    cold = replay(app, {"sales": SALES}, begin=25_000, end=40_000, warmup=seconds(0))
    assert sum(record.value.value for record in cold.read("sizes")) < sum(
        record.value.value for record in part.read("sizes")
    )
    offsets = {TopicPartition("sales", 0): 30}
    rest = replay(app, {"sales": SALES}, begin=offsets)
    assert rest.report["partitions"]["sales-0"]["begin"] == 30
    assert len(rest.values("big")) == sum(sale.value["size"] > 3 for sale in SALES[30:])
    assert replay(app, {"sales": SALES}, begin=30_000, warmup="all").report["records"] == 60


def test_results_do_not_depend_on_the_number_of_partitions_where_they_are_for_each_key():
    one, three = (replay(shop(), {"sales": SALES}, partitions=count) for count in (1, 3))
    assert sorted(map(repr, plain(one.read("big")))) == sorted(map(repr, plain(three.read("big"))))
    assert {record.partition for record in three.read("sizes")} > {0}


def test_partitions_and_headers_of_records_are_kept():
    app = App("copy")
    app.stream("in", value=Text()).to("out")
    records = [Record(None, "x", 5, [("a", b"1")], partition=1), Record(None, "y", 6, partition=2)]
    results = replay(app, {"in": records}, partitions=3)
    assert [(record.value, record.partition) for record in results.read("out")] == [("x", 1), ("y", 2)]
    assert results.read("out")[0].headers == [("a", b"1")]
    assert results.read("out", value=Bytes())[1].value == b"y"


def test_tables_and_lookups_are_read_as_of_the_range():
    app = App("priced")
    prices = app.table("prices", key=Text(), value=Json(int))
    names = app.global_table("names", key=Text(), value=Text())
    sales = app.stream("sales", key=Text(), value=Json(int))
    sales.join(prices, lambda count, price: count * price).join_global(
        names, lambda _: "n", lambda total, name: f"{name} {total}"
    ).to("out", value=Text())
    records: dict[str, list[Record[Any, Any]]] = {
        "prices": [Record("a", 5, 0), Record("a", 7, 20_000)],
        "names": [Record("n", "lamp", 0)],
        "sales": [Record("a", 2, 10_000), Record("a", 2, 30_000)],
    }
    assert replay(app, records).values("out") == ["lamp 10", "lamp 14"]
    assert replay(app, records, begin=15_000).values("out") == ["lamp 14"]


def test_effects_are_left_out_unless_they_are_wanted():
    called: list[Any] = []
    app = App("effects")
    app.stream("in", value=Text()).peek(called.append).map(
        lambda text: f"{text} {current_replay() is not None}"
    ).to("out", value=Text())
    records = {"in": [Record(None, "x", 1)]}
    results = replay(app, records)
    assert results.values("out") == ["x True"]
    assert called == []
    assert results.report["left_out"]
    assert replay(app, records, effects=True).report["left_out"] == []
    assert called == ["x"]
    assert current_replay() is None


def test_input_of_a_broker_that_workers_have_used():
    broker = memory_broker({"sales": 2, "big": 2})
    send(broker, "sales", [(b"k", {"n": number, "size": 5}, 1_000 * number) for number in range(20)])
    stop = threading.Event()
    app = shop(create_topics=True, state_store="memory")
    worker = threading.Thread(target=app.run, kwargs={"broker": broker, "stop": stop})
    worker.start()
    try:
        wait_until(lambda: sum(map(len, written(broker, "big").values())) == 20)
    finally:
        stop.set()
        worker.join()
    before = set(broker.admin().topics())
    assert plain(replay(shop(), broker, end=5_000).read("big")) == [
        ("k", {"n": number, "size": 5}, 1_000 * number) for number in range(5)
    ]
    assert set(broker.admin().topics()) == before


def test_a_changed_program_is_compared_with_the_old_one():
    same = shadow(shop(), shop(), {"sales": SALES})
    assert same.equal
    assert same.noisy_fields == {}
    diff = shadow(shop(limit=4), shop(), {"sales": SALES}, begin=20_000)
    assert not diff.equal
    changed = {topic.topic: dict(topic.kinds) for topic in diff.topics if topic.differences}
    expected = sum(sale.value["size"] == 4 for sale in SALES[20:])
    assert changed == {"big": {"missing": expected}}


def test_fields_that_may_differ_are_left_out():
    def priced(factor: float) -> App:
        app = App("priced")
        app.stream("in", value=Json(float)).map(lambda size: {"price": size * factor, "size": size}).to(
            "out", value=Json()
        )
        return app

    records = {"in": [Record(None, float(number), number) for number in range(1, 20)]}
    assert not shadow(priced(1.1), priced(1.0), records).equal
    assert shadow(priced(1.1), priced(1.0), records, ignore=["price"]).equal
    assert shadow(priced(1.1), priced(1.0), records, relative=0.2).equal
    assert shadow(priced(1.1), priced(1.0), records, absolute=2).equal


def test_a_new_input_topic_may_be_read_by_one_of_the_programs():
    app = shop()
    app.stream("returns", value=Text()).to("returned")
    diff = shadow(app, shop(), {"sales": SALES, "returns": [Record(None, "x", 1)]})
    assert {topic.topic: dict(topic.kinds) for topic in diff.topics if topic.differences} == {
        "returned": {"added": 1}
    }


def test_a_schema_registry_is_not_used():
    app = App("registered", schema_registry_url="http://127.0.0.1:1/")
    app.stream("in", value=Text()).to("out")
    assert replay(app, {"in": [Record(None, "x", 1)]}).values("out") == ["x"]


@pytest.mark.parametrize(
    ("records", "options", "error", "text"),
    [
        ({"salse": SALES}, {}, TopologyError, "does not read topic 'salse'"),
        ({"sales": SALES}, {"begin": "yesterday"}, ConfigurationError, "is not a position"),
        ({"sales": SALES}, {"begin": 9_000, "end": 2_000}, ConfigurationError, "ends before it begins"),
        ({"sales": SALES}, {"end": {TopicPartition("sales", 0): 61}}, TopicError, "sales-0 at 61"),
        ({"sales": SALES}, {"warmup": 5}, TopologyError, "the warm-up must be a duration"),
    ],
)
def test_what_cannot_be_replayed_is_refused(records: Any, options: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=re.escape(text)):
        replay(shop(), records, **options)


def test_a_topic_that_the_app_does_not_write_is_refused():
    with pytest.raises(TopologyError, match="does not write to 'bigg'"):
        replay(shop(), {"sales": SALES}).read("bigg")


def test_a_replay_of_random_input_is_the_same_each_time():
    records = [Record(key.decode(), value, time) for key, value, time in readings(3, 300)]
    one, two = (replay(shop(), {"sales": records}, partitions=3) for _ in range(2))
    for topic in one.topics:
        assert one.read(topic) == two.read(topic)
