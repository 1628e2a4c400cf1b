"""Dead letters and errors name the input record, also through internal topics, stores and windows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from streams import (
    App,
    Bytes,
    Hopping,
    Json,
    ProcessingError,
    Record,
    Session,
    Sliding,
    Text,
    Tumbling,
    custom,
    dead_letter,
    fail,
    seconds,
    total,
)
from streams.durations import milliseconds
from streams.testing import TopologyDriver


def boom(value: Any) -> Any:
    raise ValueError("made to fail")


def new_app() -> App:
    return App("shop", dead_letter_limit=1.0)


def orders(app: App) -> Any:
    return app.stream("orders", key=Text(), value=Json())


def order(user: str, **more: Any) -> dict[str, Any]:
    return {"user": user, **more}


def by_user(stream: Any, **options: Any) -> Any:
    return stream.group_by(lambda value: value["user"], store="by-user", value=Json(), **options)


class Letter:
    """A dead letter, as an operator looks at it."""

    def __init__(self, record: Record[Any, Any]) -> None:
        headers = dict(record.headers or ())
        self.key, self.value, self.timestamp = record.key, record.value, record.timestamp
        self.headers = [header for header in record.headers or () if not header[0].startswith("__streams")]
        self.about = {
            name.removeprefix("__streams.errors."): (value or b"").decode()
            for name, value in headers.items()
            if name.startswith("__streams.errors.")
        }

    @property
    def place(self) -> tuple[str, int, int]:
        return self.about["topic"], int(self.about["partition"]), int(self.about["offset"])


def letters(driver: TopologyDriver) -> list[Letter]:
    return [Letter(record) for record in driver.dead_letters()]


def test_an_error_downstream_of_a_repartition_topic_names_the_input_record():
    app = new_app()
    stream = orders(app).key_by(lambda value: value["user"]).repartition("by-user", value=Json())
    stream.map(lambda value: boom(value) if value["bad"] else value, on_error=dead_letter).to("out")
    driver = TopologyDriver(app, partitions=3)
    raw = b' {"user": "ann",  "bad": true} '
    driver.send("orders", order("bob", bad=False), key="k0", timestamp=5, partition=2)
    driver.send_bytes("orders", raw, key=b"k1", timestamp=7, headers=[("trace", b"42")], partition=2)
    (letter,) = letters(driver)
    assert letter.place == ("orders", 2, 1)
    assert (letter.key, letter.value, letter.timestamp) == (b"k1", raw, 7)
    assert letter.headers == [("trace", b"42")]
    assert letter.about["timestamp"] == "7"
    assert letter.about["via"].startswith("shop-by-user-repartition-")
    assert "payload" not in letter.about
    (out,) = driver.read("out")
    assert out.value == order("bob", bad=False)


def test_users_code_and_outputs_see_nothing_of_it():
    seen: list[Any] = []

    class Looking:
        def process(self, record, context):
            seen.append((record.value, record.headers))
            context.forward(record)

    app = new_app()
    stream = orders(app).key_by(lambda value: value["user"]).repartition("by-user", value=Json())
    stream.process(Looking).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send("orders", order("ann"), key="k", headers=[("own", b"1"), ("own", None)])
    driver.send("orders", order("bob"), key="k")
    assert seen == [(order("ann"), [("own", b"1"), ("own", None)]), (order("bob"), None)]
    assert [record.headers for record in driver.read("out")] == [[("own", b"1"), ("own", None)], None]
    assert [record.value for record in driver.read("shop-by-user-repartition")] == [
        order("ann"),
        order("bob"),
    ]


def test_an_error_names_the_input_record_and_how_it_came():
    app = new_app()
    orders(app).key_by(lambda value: value["user"]).repartition("by-user", value=Json()).map(
        boom, name="work", on_error=fail
    ).to("out")
    driver = TopologyDriver(app, partitions=2)
    with pytest.raises(
        ProcessingError,
        match=r"step 'work'.* failed on orders-1 offset 0 \(through shop-by-user-repartition-\d offset 0\), "
        r"key b'ann', value b'\{\"user\":\"ann\"\}'",
    ):
        driver.send("orders", order("ann"), key="k", partition=1)


def test_records_without_an_origin_stay_readable_and_are_their_own():
    app = new_app()
    stream = orders(app).key_by(lambda value: value["user"]).repartition("by-user", value=Json())
    stream.map(lambda value: boom(value) if value.get("bad") else value, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    internal = "shop-by-user-repartition"
    driver.send_bytes(internal, b'{"user":"ann"}', key=b"ann")
    driver.send_bytes(internal, b'{"bad":1}', key=b"ann")
    driver.send("orders", order("bob"))
    driver.send_bytes(internal, None, key=b"ann")
    assert driver.values("out") == [order("ann"), order("bob")]
    first, second = letters(driver)
    assert first.place == (internal, 0, 1)
    assert first.value == b'{"bad":1}'
    assert second.place == (internal, 0, 3)
    assert second.value is None


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=40), st.just(b"\xffso\x01"), st.just(b"\xffso\x02"))))
def test_any_bytes_come_through_an_internal_topic_as_they_were(values):
    app = new_app()
    stream = app.stream("in", value=Bytes(), tombstones=True)
    stream.repartition("r").to("out", value=Bytes())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(b"k", value, 0) for value in values])
    assert driver.values("out") == values


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=60).map(lambda end: b"\xffso\x01" + end) | st.binary(max_size=30), min_size=1)
)
def test_whatever_others_write_to_an_internal_topic_is_a_value_or_a_dead_letter(values):
    app = new_app()
    app.stream("in", value=Bytes()).repartition("r", value=Bytes()).map(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    for value in values:
        driver.send_bytes("shop-r-repartition", value, key=b"k")
    driver.send("in", b"sent", key=b"k")
    assert len(driver.dead_letters()) == len(values) + 1


def test_origins_go_through_several_internal_topics():
    app = new_app()
    first = orders(app).key_by(lambda value: value["user"]).repartition("one", value=Json())
    second = first.key_by(lambda value: value["item"]).repartition("two", value=Json())
    second.filter(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app, partitions=4)
    for number in range(6):
        driver.send("orders", order(f"u{number}", item=f"i{number}"), key="k", partition=number % 2)
    assert sorted(letter.place for letter in letters(driver)) == [
        ("orders", partition, offset) for partition in (0, 1) for offset in (0, 1, 2)
    ]


def test_undecodable_keys_and_bad_groups_downstream_of_an_internal_topic():
    app = new_app()
    by_user(orders(app)).aggregate("sum", total("amount"), on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    driver.send("orders", order("ann", amount=1), key="k")
    driver.send("orders", order("ann", amount="x"), key="k2")
    (letter,) = letters(driver)
    assert (letter.place, letter.key) == (("orders", 0, 1), b"k2")
    assert json.loads(letter.value) == order("ann", amount="x")


# --- results of several records


def test_a_result_names_the_last_record_that_changed_it():
    app = new_app()
    by_user(orders(app)).count("n").to_stream().map(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app, partitions=2)
    users = ["ann", "bob", "ann", "cid", "bob", "bob"]
    driver.send_all("orders", [Record("k", order(user), 0) for user in users], partition=1)
    found = {letter.key: letter for letter in letters(driver)}
    assert {json.loads(key): letter.place for key, letter in found.items()} == {
        user: ("orders", 1, max(at for at, one in enumerate(users) if one == user)) for user in set(users)
    }
    assert found[b'"ann"'].value == b"2"
    assert found[b'"ann"'].about["payload"] == "a result of step 'n', last changed by orders-1 offset 2"
    driver.send("orders", order("cid"), key="k", partition=0)
    (letter,) = letters(driver)
    assert (letter.place, letter.value) == (("orders", 0, 0), b"2")


def test_an_error_about_a_result_names_its_last_record_too():
    app = new_app()
    orders(app).group_by_key().count("n").to_stream().map(boom, on_error=fail).to("out")
    with pytest.raises(
        ProcessingError,
        match=r"failed on a result of step 'n', last changed by orders-0 offset 1, key b'\"k\"', value b'2'",
    ):
        TopologyDriver(app).send_all("orders", [Record("k", order("ann"), 0), Record("k", order("ann"), 0)])


def test_a_table_that_is_grouped_passes_the_origin_on():
    app = new_app()
    table = orders(app).to_table("latest", value=Json())
    counts = table.group_by(lambda value: value["user"], value=Json(), store="by-user").count("n")
    counts.to_stream().map(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    driver.send("orders", order("ann"), key="k1")
    driver.send("orders", order("bob"), key="k1")
    assert [(letter.key, letter.place) for letter in letters(driver)] == [
        (b'"ann"', ("orders", 0, 0)),
        (b'"ann"', ("orders", 0, 1)),
        (b'"bob"', ("orders", 0, 1)),
    ]


def test_a_result_that_goes_through_an_internal_topic_names_its_last_record():
    app = new_app()
    counts = orders(app).group_by_key().count("n")
    stream = counts.to_stream().map(lambda n: {"n": n}).key_by(lambda value: "all")
    stream.repartition("all", value=Json()).filter(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app, partitions=2)
    driver.send_all("orders", [Record("a", order("x"), 0), Record("a", order("x"), 0)], partition=1)
    (letter,) = letters(driver)
    assert letter.place == ("orders", 1, 1)
    assert letter.value == b'{"n":2}'
    assert letter.about["payload"].startswith("a result, last changed by orders-1 offset 1")


@pytest.mark.parametrize("taken", ["updates", "final"])
@pytest.mark.parametrize("record_wise", [False, True])
@pytest.mark.parametrize(
    "window", [Tumbling(seconds=10), Hopping(size=seconds(10), advance=seconds(5)), Session(seconds=10)]
)
def test_the_result_of_a_window_names_the_last_record_in_it(window, record_wise, taken):
    app = new_app()
    summed = custom(int, lambda n, v: n + v, merge=lambda a, b: a + b, of="amount", name="s")
    grouped = by_user(orders(app)).window(window)
    results = grouped.aggregate("w", summed if record_wise else total("amount"))
    getattr(results, taken)().filter(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    sent = [("ann", 1), ("bob", 2), ("ann", 3), ("ann", 31), ("bob", 33), ("ann", 70)]
    for user, time in sent:
        driver.send("orders", order(user, amount=1), key="k", timestamp=1000 * time)
    driver.send("orders", order("end", amount=1), key="k", timestamp=600_000)
    checked = 0
    for letter in letters(driver):
        result = json.loads(letter.value)
        if result["key"] == "end" or result["value"] is None:
            continue
        inside = [
            at
            for at, (user, time) in enumerate(sent)
            if user == result["key"] and result["start"] <= 1000 * time <= result["end"]
        ]
        if taken == "final":
            assert letter.place == ("orders", 0, inside[-1])
        else:
            assert letter.place[0] == "orders"
            assert letter.place[2] in inside
        checked += 1
    assert checked >= 5


def test_a_sliding_window_names_a_record_in_it():
    app = new_app()
    results = orders(app).group_by_key().window(Sliding(seconds=5)).count("w")
    results.final().filter(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    for time in (1, 2, 60):
        driver.send("orders", order("x"), key="k", timestamp=1000 * time)
    found = [(json.loads(letter.value)["end"], letter.place[2]) for letter in letters(driver)]
    assert (2_000, 1) in found
    assert all(offset in {0, 1} for _, offset in found)


def test_a_window_whose_records_are_forgotten_names_the_one_that_closed_it():
    app = new_app()
    orders(app).group_by_key().window(Tumbling(seconds=10)).count("w").final().filter(
        boom, on_error=dead_letter
    ).to("out")
    driver = TopologyDriver(app)
    driver.send("orders", order("x"), key="k", timestamp=0)
    driver.restart()
    driver.send("orders", order("x"), key="other", timestamp=1000 * 20)
    (letter,) = letters(driver)
    assert letter.place == ("orders", 0, 1)
    assert letter.about["payload"] == "a result of step 'w', made at orders-0 offset 1"


def test_an_error_in_a_window_that_closes_while_idle_mentions_it():
    app = new_app()
    results = orders(app).group_by_key().window(Tumbling(seconds=10), close_idle_after=seconds(5)).count("w")
    results.final().filter(boom, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    driver.send("orders", order("x"), key="k", timestamp=0)
    driver.restart()
    driver.send("orders", order("x"), key="k", timestamp=1000 * 10)
    driver.dead_letters()
    driver.advance(seconds(60))
    (letter,) = letters(driver)
    assert letter.place == ("orders", 0, 1)


@pytest.mark.parametrize("on", ["stream_time", "wall_clock"])
def test_a_timer_s_record_has_no_input_record_and_names_its_step(on):
    class Ticking:
        def open(self, context):
            context.schedule(milliseconds(1000), lambda now: context.forward(Record("tick", now, now)), on=on)

        def process(self, record, context): ...

    def run(policy: Any) -> TopologyDriver:
        app = new_app()
        orders(app).process(Ticking, name="ticking").map(boom, on_error=policy, name="work").to("out")
        driver = TopologyDriver(app)
        driver.send("orders", order("x"), key="k", timestamp=500)
        driver.send("orders", order("x"), key="k", timestamp=1500)
        driver.advance(milliseconds(1000))
        return driver

    (letter,) = letters(run(dead_letter))
    assert letter.place == ("ticking", 0, -1)
    assert letter.about["payload"] == "a record of a timer of step 'ticking', made by no input record"
    assert letter.key == b'"tick"'
    with pytest.raises(
        ProcessingError, match=r"step 'work'.* failed on a record of a timer of step 'ticking', made by"
    ):
        run(fail)


# --- joins


def test_joins_name_the_record_that_was_joined():
    app = new_app()
    prices = app.table("prices", key=Text(), value=Json())
    keyed = orders(app).key_by(lambda value: value["item"])
    keyed.join(prices, lambda value, price: boom(value), store="priced", value=Json()).to("out")
    driver = TopologyDriver(app, partitions=2)
    driver.send("prices", 3, key="pen")
    driver.send("orders", order("x", item="none"), key="k", partition=1)
    driver.send("orders", order("x", item="pen"), key="k", partition=1)
    (letter,) = letters(driver)
    assert (letter.place, letter.key) == (("orders", 1, 1), b"k")
    assert json.loads(letter.value) == order("x", item="pen")


def test_a_join_of_streams_names_the_later_record():
    app = new_app()
    left = orders(app).key_by(lambda value: value["item"])
    right = app.stream("payments", key=Text(), value=Json()).key_by(lambda value: value["item"])
    left.join(
        right,
        lambda one, other: boom(one),
        within=milliseconds(5),
        store="paid",
        value=Json(),
        other_value=Json(),
    ).to("out")
    driver = TopologyDriver(app)
    driver.send("orders", order("x", item="pen"), key="k", timestamp=1)
    driver.send("payments", {"item": "pen"}, key="p", timestamp=2)
    (letter,) = letters(driver)
    assert (letter.place, letter.key) == (("payments", 0, 0), b"p")


def test_a_record_that_finds_no_partner_is_named_itself():
    app = new_app()
    left = orders(app).key_by(lambda value: value["item"])
    left.left_join(
        app.stream("payments", key=Text(), value=Json()),
        lambda one, other: boom(one),
        within=milliseconds(5),
        store="paid",
        value=Json(),
        other_value=Json(),
    ).to("out")
    driver = TopologyDriver(app)
    for time in (1, 2, 3):
        driver.send("orders", order("x", item=f"pen {time}"), key="k", timestamp=time)
    driver.send("orders", order("x", item="pen 1"), key="k", timestamp=1_000)
    driver.send("payments", {}, key="other", timestamp=1_000)
    driver.send("orders", order("x", item="pen 1"), key="k", timestamp=2_000)
    driver.send("payments", {}, key="other", timestamp=2_000)
    found = {letter.place[2]: letter for letter in letters(driver)}
    assert {0, 1, 2} <= found.keys()
    assert {letter.place[0] for letter in found.values()} == {"orders"}
    assert found[1].key == b'"pen 2"'
    assert found[1].about["payload"].endswith("last changed by orders-0 offset 1")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_join_by_foreign_key_names_the_record_that_changed(side):
    app = new_app()
    items = app.table("items", key=Text(), value=Json())
    table = orders(app).to_table("open", value=Json())
    table.join_foreign_key(
        items, lambda value: value["item"], lambda value, item: boom(value), store="f", result=Json()
    ).to("out")
    driver = TopologyDriver(app, partitions=2)
    if side == "left":
        driver.send("items", {"name": "Pen"}, key="pen")
        driver.send("orders", order("x", item="pen"), key="k", partition=0)
    else:
        driver.send("orders", order("x", item="pen"), key="k", partition=0)
        driver.send("items", {"name": "Pencil"}, key="other")
        driver.send("items", {"name": "Pen"}, key="pen")
    (letter,) = letters(driver)
    if side == "left":
        assert (letter.place, letter.key) == (("orders", 0, 0), b"k")
    else:
        assert letter.place[0] == "items"
        assert json.loads(letter.value) == {"name": "Pen"}
