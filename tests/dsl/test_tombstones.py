"""A function typed for ``V`` never receives ``None``: tombstones are forwarded only on request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams import App, Json, Record, Session, Text, Tumbling, Windowed, fail, latest, milliseconds, skip
from streams.errors import ProcessingError
from streams.testing import TopologyDriver


class Order(msgspec.Struct):
    item: str
    amount: int


def orders_app(**options: Any) -> tuple[App, Any]:
    app = App("shop", dead_letter_limit=1.0)
    return app, app.stream("orders", key=Text(), value=Json(Order), **options)


def test_a_tombstone_of_a_stream_becomes_a_dead_letter_with_a_hint():
    app, orders = orders_app()
    orders.map(lambda order: order.amount).to("amounts")
    driver = TopologyDriver(app)
    driver.send_all("orders", [Record("a", Order("lamp", 1), 0), Record("b", None, 1)])
    driver.send("orders", Order("lamp", 3), key="c")
    assert driver.values("amounts") == [1, 3]
    (letter,) = driver.dead_letters()
    assert (letter.key, letter.value, letter.timestamp) == (b"b", None, 1)
    headers = dict(letter.headers or ())
    assert headers["__streams.errors.step"] == b"orders"
    assert headers["__streams.errors.offset"] == b"1"
    message = headers["__streams.errors.message"] or b""
    assert message.startswith(b"a tombstone: the value is null")
    assert b"tombstones=True" in message


def test_the_source_s_policy_is_for_its_tombstones():
    app, orders = orders_app(on_error=skip)
    orders.to("out")
    driver = TopologyDriver(app)
    driver.send("orders", None, key="a")
    assert driver.skipped() == {"orders": 1}
    app, orders = orders_app(on_error=fail)
    orders.to("out")
    with pytest.raises(ProcessingError, match=r"orders-0 offset 0, .*value null: .*a tombstone"):
        TopologyDriver(app).send("orders", None, key="a")


def test_a_stream_with_tombstones_forwards_them_through_internal_topics_too():
    app, orders = orders_app(tombstones=True)
    orders.repartition("again").map(lambda order: order and order.amount).to("out")
    driver = TopologyDriver(app)
    driver.send_all("orders", [Record("a", Order("lamp", 1), 0), Record("a", None, 1)])
    assert [(record.key, record.value) for record in driver.read("out")] == [("a", 1), ("a", None)]


@given(st.lists(st.sampled_from([None, b"", b"no json", b'{"item":"a","amount":1}']), max_size=30))
def test_tombstones_and_what_cannot_be_read_fail_alone_wherever_they_are(values):
    app, orders = orders_app(on_error=skip)
    orders.to("out")
    driver = TopologyDriver(app)
    for value in values:
        driver.send_bytes("orders", value)
    alone = len(driver.values("out")), sum(driver.skipped().values())
    readable = sum(value is not None and value.startswith(b"{") for value in values)
    assert alone == (readable, len(values) - readable)


def test_an_event_time_is_never_taken_from_a_tombstone():
    app, orders = orders_app(tombstones=True, timestamp=lambda order: order.amount)
    orders.to("out")
    driver = TopologyDriver(app)
    driver.send_all("orders", [Record("a", Order("lamp", 7), 1), Record("a", None, 2)])
    assert [record.timestamp for record in driver.read("out")] == [7, 2]
    app, orders = orders_app(timestamp=lambda order: order.amount)
    orders.to("out")
    driver = TopologyDriver(app)
    driver.send_all("orders", [Record("a", Order("lamp", 7), 1), Record("a", None, 2)])
    assert [record.timestamp for record in driver.read("out")] == [7]
    (letter,) = driver.dead_letters()
    assert b"a tombstone" in (dict(letter.headers or ())["__streams.errors.message"] or b"")


def test_a_table_s_stream_has_deletions_only_on_request():
    app = App("shop")
    table = app.table("prices", key=Text(), value=Json(int))
    table.to_stream().map(lambda price: price + 1).to("changed")
    table.to_stream(tombstones=True).map(lambda price: [price]).to("all")
    table.to("compacted")
    table.to(lambda price: "gone" if price is None else "there", name="routed")
    driver = TopologyDriver(app)
    driver.send_all("prices", [Record("a", 1, 0), Record("b", 5, 0), Record("a", None, 1)])
    driver.send("prices", None, key="b")
    assert driver.values("changed") == [2, 6]
    assert driver.values("all") == [[1], [5], [None], [None]]
    assert driver.values("compacted") == [1, 5, None, None]
    assert driver.values("gone") == [None, None]
    assert len(driver.read("there")) == 2


def test_a_deletion_reaches_a_table_that_is_made_of_another_s_stream():
    app = App("shop")
    table = app.table("prices", key=Text(), value=Json(int))
    table.map(lambda price: {"price": price}).to_stream(tombstones=True).to_table("kept")
    driver = TopologyDriver(app)
    driver.send_all("prices", [Record("a", 1, 0), Record("b", 5, 0)])
    driver.send("prices", None, key="a")
    assert {key: value for key, (value, _) in driver.store("kept").items()} == {"b": {"price": 5}}


def test_updates_of_sessions_retract_replaced_windows_only_on_request():
    def results(*, tombstones: bool) -> list[Any]:
        app, orders = orders_app()
        sessions = orders.group_by_key().window(Session(gap=milliseconds(10))).count("sessions")
        sessions.updates(tombstones=tombstones).to("out")
        driver = TopologyDriver(app)
        driver.send("orders", Order("lamp", 1), key="a", timestamp=0)
        driver.send("orders", Order("lamp", 1), key="a", timestamp=5)
        return driver.values("out")

    assert results(tombstones=False) == [Windowed("a", 0, 0, 1), Windowed("a", 0, 5, 2)]
    assert results(tombstones=True) == [
        Windowed("a", 0, 0, 1),
        Windowed("a", 0, 0, None),
        Windowed("a", 0, 5, 2),
    ]


def test_a_result_that_is_none_is_an_update_like_others():
    app = App("shop")
    stream = app.stream("in", key=Text(), value=Json())
    sessions = stream.group_by_key().window(Session(gap=milliseconds(10))).aggregate("last", latest("text"))
    sessions.updates().to("out")
    driver = TopologyDriver(app)
    driver.send("in", {"text": None}, key="a", timestamp=0)
    assert driver.values("out") == [Windowed("a", 0, 0, None)]


def test_both_kinds_of_updates_of_one_window_may_be_used():
    app, orders = orders_app()
    windows = orders.group_by_key().window(Tumbling(size=milliseconds(10))).count("windows")
    windows.updates().to("one")
    windows.updates(tombstones=True).to("two")
    sessions = orders.group_by_key().window(Session(gap=milliseconds(10))).count("sessions")
    sessions.updates().to("three")
    sessions.updates(tombstones=True).to("four")
    driver = TopologyDriver(app)
    for time in (0, 5):
        driver.send("orders", Order("lamp", 1), key="a", timestamp=time)
    assert driver.values("one") == driver.values("two") == [Windowed("a", 0, 10, 1), Windowed("a", 0, 10, 2)]
    assert (len(driver.values("three")), len(driver.values("four"))) == (2, 3)


def test_a_function_s_own_none_is_written_as_a_tombstone():
    app, orders = orders_app()
    orders.map(lambda order: order.amount or None).to("out")
    driver = TopologyDriver(app)
    driver.send_all("orders", [Record("a", Order("lamp", 0), 0), Record("a", Order("lamp", 2), 0)])
    assert driver.values("out") == [None, 2]
