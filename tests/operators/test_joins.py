"""Joins against brute force over the whole input."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings, strategies as st

from streams import (
    App,
    JoinWindow,
    Json,
    Record,
    Stream,
    Table,
    Text,
    TopologyError,
    fail,
    skip,
    total,
)
from streams.durations import milliseconds
from streams.errors import TopicError
from streams.testing import TopologyDriver
from tests.support.cluster import MemoryCluster
from tests.support.joined import Window, arrivals, promised

KEYS = "abc"


class Operation(NamedTuple):
    """A record on its way to a topic; ``value`` ``None`` is a tombstone."""

    topic: str
    key: str | None
    value: Any
    time: int


class Joined(NamedTuple):
    key: Any
    value: Any
    time: int


def operations(*topics: str, keys: Any = KEYS, values: Any = None, size: int = 25) -> Any:
    return st.lists(
        st.builds(
            Operation,
            st.sampled_from(topics),
            st.sampled_from(keys),
            st.sampled_from([None, 1, 2, 3] if values is None else values),
            st.integers(0, 30),
        ),
        max_size=size,
    )


cuts = st.lists(st.sampled_from(["on", "cut"]), min_size=25, max_size=25) | st.lists(
    st.sampled_from(["on", "on", "cut", "restart"]), min_size=25, max_size=25
)
"""What happens in front of each operation: nothing, a new batch, or a restart."""


def send(driver: TopologyDriver, found: list[Operation], cut: list[str]) -> None:
    """In batches of one topic each."""
    run: list[Operation] = []

    def flush() -> None:
        if run:
            driver.send_all(run[0].topic, [Record(item.key, item.value, item.time) for item in run])
            run.clear()

    for operation, what in zip(found, cut, strict=False):
        if run and (what != "on" or run[0].topic != operation.topic):
            flush()
        if what == "restart":
            driver.restart()
        run.append(operation)
    flush()


def read(driver: TopologyDriver, topic: str = "out") -> list[Joined]:
    return [Joined(record.key, record.value, record.timestamp) for record in driver.read(topic)]


def replayed(records: list[Joined]) -> dict[Any, Any]:
    """What changes amount to; each deletion must have had something to delete."""
    values: dict[Any, Any] = {}
    for record in records:
        if record.value is None:
            assert record.key in values
            del values[record.key]
        else:
            values[record.key] = record.value
    return values


def pair(left: Any, right: Any) -> list[Any]:
    return [left, right]


def stream_of(app: App, topic: str) -> Stream[str, Any]:
    return app.stream(topic, key=Text(), value=Json(), tombstones=True)


def table_of(app: App, topic: str) -> Table[str, Any]:
    return app.table(topic, key=Text(), value=Json())


# --- a stream and a table


@given(operations("s", "t", keys=[*KEYS, None]), cuts, st.booleans())
def test_each_record_is_joined_with_what_the_table_has_when_it_comes(found, cut, left):
    app = App("shop")
    stream, table = stream_of(app, "s"), table_of(app, "t")
    (stream.left_join(table, pair) if left else stream.join(table, pair)).to("out")
    driver = TopologyDriver(app)
    send(driver, found, cut)
    values: dict[Any, Any] = {}
    expected, refused = [], 0
    for topic, key, value, time in found:
        if (key is None and (topic == "t" or not left)) or (topic == "s" and value is None):
            refused += 1
        elif topic == "t":
            values[key] = value
        elif left or values.get(key) is not None:
            expected.append(Joined(key, [value, values.get(key)], time))
    assert read(driver) == expected
    assert len(driver.dead_letters()) == refused


def test_the_policy_applies_to_a_record_on_which_the_function_fails():
    app = App("shop")
    stream, table = stream_of(app, "s"), table_of(app, "t")
    stream.join(table, lambda one, two: one // two, on_error=skip).to("out")
    driver = TopologyDriver(app)
    driver.send_all("t", [Record("a", 0, 0), Record("b", 2, 0)])
    driver.send_all("s", [Record("a", 4, 0), Record("b", 4, 0)])
    assert driver.values("out") == [2]
    assert driver.skipped() == {"join": 1}


def test_a_rekeyed_stream_is_joined_through_a_repartition_topic_of_a_name():
    app = App("shop")
    table = table_of(app, "users")
    clicks = stream_of(app, "clicks").key_by(lambda value: value["user"])
    with pytest.raises(TopologyError, match="needs a name"):
        clicks.join(table, pair)
    clicks.join(table, pair, store="clicked").to("out")
    assert set(app.topology.repartitions) == {"shop-clicked-repartition"}
    driver = TopologyDriver(app, partitions=3)
    for user in KEYS:
        driver.send("users", user.upper(), key=user, timestamp=0)
        driver.send("clicks", {"user": user}, key="page", timestamp=1)
    assert sorted(driver.values("out"), key=str) == [[{"user": user}, user.upper()] for user in KEYS]


def test_a_repartitioned_stream_must_say_how_values_are_written():
    app = App("shop")
    mapped = app.stream("s", key=Text(), value=Text()).map(lambda value: value).key_by(str)
    with pytest.raises(TopologyError, match="type of the values is not known"):
        mapped.join(table_of(app, "t"), pair, store="j")
    mapped.join(table_of(app, "u"), pair, store="k", value=Json()).to("out")


def test_keys_written_differently_are_never_joined():
    app = App("shop")
    with pytest.raises(TopologyError, match="keys are Bytes on one side and Text on the other"):
        app.stream("s").join(table_of(app, "t"), pair)  # type: ignore[arg-type]  # what is to be refused
    with pytest.raises(TopologyError, match="keys are Text on one side and Json on the other"):
        table_of(app, "u").join(app.table("v", key=Json(), value=Json()), pair)


def test_a_table_is_joined_without_a_window_and_a_stream_with_one():
    app = App("shop")
    stream, table = stream_of(app, "s"), table_of(app, "t")
    with pytest.raises(TopologyError, match="joins a table without a window"):
        stream.join(table, pair, within=milliseconds(5))  # type: ignore[call-overload]  # what is to be refused
    with pytest.raises(TopologyError, match="needs within= or window=, got neither"):
        stream.join(stream, pair, store="j")
    with pytest.raises(TopologyError, match="both define the window"):
        stream.join(
            stream, pair, store="j", within=milliseconds(5), window=JoinWindow(before=milliseconds(3))
        )
    with pytest.raises(TopologyError, match="need a name"):
        stream.join(stream, pair, within=milliseconds(5))
    with pytest.raises(TopologyError, match="grace must be 0 ms or more"):
        stream.join(stream, pair, store="j", within=milliseconds(5), grace=timedelta(milliseconds=-1))
    with pytest.raises(TopologyError, match="join windows, after"):
        JoinWindow(after=timedelta(milliseconds=-1))


@pytest.mark.parametrize("joining", ["table", "stream", "tables", "global"])
def test_topics_joined_must_have_equally_many_partitions(joining):
    app = App("shop")
    if joining == "table":
        stream_of(app, "one").join(table_of(app, "two"), pair).to("out")
    elif joining == "stream":
        stream_of(app, "one").join(stream_of(app, "two"), pair, within=milliseconds(1), store="j").to("out")
    elif joining == "tables":
        table_of(app, "one").join(table_of(app, "two"), pair).to("out")
    else:
        stream_of(app, "one").join_global(app.global_table("two", key=Text()), str, pair).to("out")
    cluster = MemoryCluster({"one": 2, "two": 3})
    if joining == "global":
        assert cluster.prepare(app, create_outputs=True) == {"one": 2}
        return
    with pytest.raises(TopicError, match="same number of partitions: one has 2, two has 3"):
        cluster.prepare(app, create_outputs=True)


def test_a_repartitioned_stream_gets_as_many_partitions_as_the_table():
    app = App("shop")
    rekeyed = stream_of(app, "one").key_by(str)
    rekeyed.join(table_of(app, "two"), pair, store="j").to("out")
    partitions = MemoryCluster({"one": 2, "two": 3}).prepare(app, create_outputs=True)
    assert partitions == {"one": 2, "two": 3, "shop-j-repartition": 3}


# --- two tables


def joined_tables(how: str, one: dict[Any, Any], two: dict[Any, Any]) -> dict[Any, Any]:
    keys = {"inner": one.keys() & two.keys(), "left": one.keys(), "outer": one.keys() | two.keys()}[how]
    return {key: [one.get(key), two.get(key)] for key in keys}


def sum_of(value: Any) -> int:
    return sum(part or 0 for part in value)


hows = st.sampled_from(["inner", "left", "outer"])


def join_tables(
    how: str, one: Table[Any, Any], two: Table[Any, Any], function: Any = pair
) -> Table[Any, Any]:
    join = {"inner": one.join, "left": one.left_join, "outer": one.outer_join}[how]
    result: Table[Any, Any] = join(two, function)
    return result


@given(operations("t", "u"), cuts, hows)
def test_joined_tables_change_with_either_of_both(found, cut, how):
    app = App("shop")
    joined = join_tables(how, table_of(app, "t"), table_of(app, "u"))
    joined.to("out")
    joined.group_by(lambda _: "all", value=Json()).aggregate("sum", total(sum_of)).to("sum-out")
    driver = TopologyDriver(app)
    send(driver, found, cut)
    tables: dict[str, dict[Any, Any]] = {"t": {}, "u": {}}
    for operation in found:
        tables[operation.topic][operation.key] = operation.value
    one, two = ({key: value for key, value in table.items() if value} for table in tables.values())
    expected = joined_tables(how, one, two)
    changes = read(driver)
    assert replayed(changes) == expected
    sums = driver.values("sum-out")
    assert (sums[-1] if sums else 0) == sum(map(sum_of, expected.values()))


def test_a_joined_change_has_the_later_event_time_and_deletions_take_it_back():
    app = App("shop")
    table_of(app, "t").left_join(table_of(app, "u"), pair).to("out")
    driver = TopologyDriver(app)
    driver.send("u", 1, key="a", timestamp=9)
    driver.send("t", 2, key="a", timestamp=5)
    driver.send("u", None, key="a", timestamp=11)
    driver.send("t", None, key="a", timestamp=7)
    driver.send("t", None, key="a", timestamp=8)
    assert read(driver) == [
        Joined("a", [2, 1], 9),
        Joined("a", [2, None], 11),
        Joined("a", None, 7),
    ]


def test_a_join_of_joined_tables_has_the_latest_event_time_of_all():
    app = App("shop")
    joined = table_of(app, "t").join(table_of(app, "u"), pair)
    table_of(app, "v").join(joined, pair).to("out")
    driver = TopologyDriver(app)
    for topic, time in [("t", 3), ("u", 9), ("v", 5)]:
        driver.send(topic, topic, key="a", timestamp=time)
    assert read(driver) == [Joined("a", ["v", ["t", "u"]], 9)]


def test_a_result_is_deleted_when_the_function_fails_on_a_new_value():
    app = App("shop")
    table_of(app, "t").join(table_of(app, "u"), lambda one, two: one // two, on_error=skip).to("out")
    driver = TopologyDriver(app)
    for topic, value in [("t", 6), ("u", 2), ("u", 0), ("t", 8), ("u", 1)]:
        driver.send(topic, value, key="a")
    assert driver.values("out") == [3, None, 8]


@given(operations("t"), cuts, hows, st.booleans())
@example([Operation("t", "a", 1, 0), Operation("t", "a", 2, 0)], ["on"] * 25, "inner", False)
def test_a_table_joined_with_itself_forwards_the_right_old_values(found, cut, how, mapped_first):
    app = App("shop")
    table = table_of(app, "t")
    other = table.filter(lambda value: value > 1).map(lambda value: value * 10)
    one, two = (other, table) if mapped_first else (table, other)
    joined = join_tables(how, one, two, lambda left, right: [(left or 0) * (right or 1)])
    joined.group_by(lambda _: "all", value=Json()).aggregate("sum", total(sum_of)).to("sum-out")
    joined.to("out")
    driver = TopologyDriver(app)
    send(driver, found, cut)
    values = {operation.key: operation.value for operation in found}
    plain = {key: value for key, value in values.items() if value}
    mapped = {key: value * 10 for key, value in plain.items() if value > 1}
    sides = (mapped, plain) if mapped_first else (plain, mapped)
    expected = {
        key: [(left or 0) * (right or 1)] for key, (left, right) in joined_tables(how, *sides).items()
    }
    assert replayed(read(driver)) == expected
    sums = driver.values("sum-out")
    assert (sums[-1] if sums else 0) == sum(map(sum_of, expected.values()))


@given(operations("s", "t", values=[1, 2, 3, 5]), cuts, hows)
def test_aggregates_are_joined_with_their_forwarded_values(found, cut, how):
    app = App("shop")
    grouped = stream_of(app, "s").group_by_key()
    counts = grouped.count("counts")
    sums = grouped.aggregate("sums", total())
    joined = join_tables(how, join_tables(how, counts, sums), table_of(app, "t"))
    joined.to("out")

    def weighed(both: list[Any]) -> int:
        # One of two aggregates forwards first, so some changes are only in its values.
        counted, added = both[0] or [0, 0]
        return (counted or 0) * 100 + (added or 0) + (both[1] or 0)

    flat = joined.map(weighed)
    flat.group_by(lambda _: "all", value=Json()).aggregate("sum", total()).to("sum-out")
    driver = TopologyDriver(app)
    send(driver, found, cut)
    seen = {key: [item.value for item in found if item[:2] == ("s", key)] for key in KEYS}
    both = {key: [len(values), sum(values)] for key, values in seen.items() if values}
    table = {item.key: item.value for item in found if item.topic == "t"}
    expected = joined_tables(how, both, table)
    assert replayed(read(driver)) == expected
    told = driver.values("sum-out")
    assert (told[-1] if told else 0) == sum(map(weighed, expected.values()))


# --- two streams


windows = st.builds(Window, st.integers(0, 6), st.integers(0, 6), st.integers(0, 5))
END = 1_000


def join_streams(
    how: str, left: Stream[Any, Any], right: Stream[Any, Any], window: Window
) -> Stream[Any, Any]:
    join: Any = {"inner": left.join, "left": left.left_join, "outer": left.outer_join}[how]
    result: Stream[Any, Any] = join(
        right,
        pair,
        window=JoinWindow(before=milliseconds(window.before), after=milliseconds(window.after)),
        grace=milliseconds(window.grace),
        store="joined",
    )
    return result


def outcome(driver: TopologyDriver) -> Counter[Any]:
    return Counter((key, tuple(value), time) for key, value, time in read(driver) if key != "end")


@given(operations("left", "right"), cuts, hows, windows)
@example(
    # The record at 91 can no longer match once 93 was seen, though a match arriving then is not late itself.
    [
        Operation("right", "a", 1, 91),
        Operation("left", "b", 1, 93),
        Operation("left", "a", 1, 85),
        Operation("right", "a", 2, 95),
    ],
    ["cut"] * 25,
    "outer",
    Window(0, 10, 0),
)
@settings(max_examples=150)
def test_streams_are_joined_in_their_window(found, cut, how, window):
    app = App("shop")
    join_streams(how, stream_of(app, "left"), stream_of(app, "right"), window).to("out")
    driver = TopologyDriver(app)
    send(driver, found, cut)
    late_before = sum(driver.late().values())
    driver.restart()
    driver.send("right", 0, key="end", timestamp=END)
    driver.send("left", 0, key="end", timestamp=2 * END)
    expected, late = promised(arrivals(found), how, window)
    assert outcome(driver) == expected
    if "restart" not in cut[: len(found)]:
        assert late_before == len(late)
    driver.send("left", 0, key="end", timestamp=3 * END)
    assert not outcome(driver)
    assert {key for _, key in driver.store("joined-left")} <= {"end"}
    assert {key for _, key in driver.store("joined-right")} <= {"end"}


@given(
    operations("s", keys=[*KEYS, None]),
    st.lists(st.booleans(), min_size=25, max_size=25),
    cuts,
    hows,
    windows,
)
@settings(max_examples=150)
def test_branches_of_one_topic_are_joined_alike_however_it_is_cut_into_batches(
    found, lefts, cut, how, window
):
    sided = [
        Operation("left" if left else "right", *operation[1:])
        for operation, left in zip(found, lefts, strict=False)
    ]
    app = App("shop")
    stream = stream_of(app, "s")
    left = stream.filter(lambda value: value[0] == "left").map(lambda value: value[1])
    right = stream.filter(lambda value: value[0] == "right").map(lambda value: value[1])
    join: Any = {"inner": left.join, "left": left.left_join, "outer": left.outer_join}[how]
    joined = join(
        right,
        pair,
        window=JoinWindow(before=milliseconds(window.before), after=milliseconds(window.after)),
        grace=milliseconds(window.grace),
        store="joined",
        value=Json(),
        other_value=Json(),
    )
    joined.to("out")
    driver = TopologyDriver(app)
    send(driver, [Operation("s", key, [side, value], time) for side, key, value, time in sided], cut)
    driver.send("s", ["none", 0], key="end", timestamp=END)
    expected, late = promised(arrivals(sided), how, window)
    assert outcome(driver) == expected
    if "restart" not in cut[: len(found)]:
        assert sum(driver.late().values()) == len(late)
    if how == "outer":
        assert len(driver.dead_letters()) == sum(operation.value is None for operation in sided)


def test_each_record_of_a_stream_joined_with_itself_matches_itself_once():
    app = App("shop")
    stream = stream_of(app, "s")
    stream.join(stream, pair, within=milliseconds(5), store="j").to("out")
    driver = TopologyDriver(app)
    driver.send_all("s", [Record("a", 1, 0), Record("a", 2, 3), Record("a", 3, 9)])
    assert sorted(driver.values("out")) == [[1, 1], [1, 2], [2, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize("timed_first", [False, True])
def test_a_stream_is_joined_with_a_part_of_it_at_other_times(timed_first):
    app = App("shop")
    stream = stream_of(app, "s")

    def timed() -> Stream[str, int]:
        odd = stream.filter(lambda value: value % 2)
        return odd.map(lambda value: value, timestamp=lambda value: value * 10)

    first = timed() if timed_first else None
    plain = stream.map(lambda value: value)
    plain.join(
        first or timed(),
        pair,
        within=milliseconds(1),
        grace=milliseconds(1_000),
        store="j",
        value=Json(),
        other_value=Json(),
    ).to("out")
    driver = TopologyDriver(app)
    driver.send_all("s", [Record("a", number, number) for number in range(60)])
    assert sorted(driver.values("out")) == [
        [time, number]
        for time in range(60)
        for number in range(60)
        if abs(time - 10 * number) <= 1 and number % 2
    ]


def test_an_unmatched_record_is_forwarded_once_it_can_no_longer_match():
    app = App("shop")
    left, right = stream_of(app, "left"), stream_of(app, "right")
    left.left_join(right, pair, within=milliseconds(10), grace=milliseconds(5), store="j").to("out")
    driver = TopologyDriver(app)
    driver.send("left", 1, key="a", timestamp=100)
    driver.send("left", 2, key="a", timestamp=115)
    assert read(driver) == []
    driver.send("right", 3, key="a", timestamp=109)
    assert read(driver) == [Joined("a", [1, 3], 109), Joined("a", [2, 3], 115)]
    driver.send("left", 4, key="b", timestamp=115)
    driver.restart()
    driver.send("right", 0, key="c", timestamp=200)
    assert read(driver) == [Joined("b", [4, None], 115)]
    driver.send("left", 5, key="c", timestamp=175)
    assert driver.late() == {}
    driver.send("left", 6, key="c", timestamp=174)
    assert driver.late() == {"j-left": 1}
    driver.send("right", 0, key="c", timestamp=1000)
    assert read(driver) == [Joined("c", [5, None], 175)]
    driver.send("right", 0, key="c", timestamp=2000)
    assert read(driver) == []


def test_records_without_a_key_are_forwarded_unmatched_by_left_and_outer_joins():
    app = App("shop")
    left, right = stream_of(app, "left"), stream_of(app, "right")
    left.left_join(right, pair, within=milliseconds(10), store="j").to("out")
    driver = TopologyDriver(app)
    driver.send("left", 1, timestamp=0)
    driver.send("right", 2, timestamp=0)
    driver.send("left", None, key="a", timestamp=0)
    assert read(driver) == [Joined(None, [1, None], 0)]
    assert [record.value for record in driver.dead_letters()] == [b"2", None]


def test_rekeyed_streams_are_joined_through_repartition_topics():
    app = App("shop")
    left = stream_of(app, "left").key_by(lambda value: value["id"])
    right = stream_of(app, "right").key_by(lambda value: value["for"])
    left.join(right, pair, window=JoinWindow(after=milliseconds(10)), store="paid").to("out")
    assert set(app.topology.repartitions) == {"shop-paid-left-repartition", "shop-paid-right-repartition"}
    driver = TopologyDriver(app, partitions=3)
    for number in range(6):
        driver.send("left", {"id": str(number)}, key="x", timestamp=number)
        driver.send("right", {"for": str(number)}, key="y", timestamp=number + 10)
    assert len(driver.values("out")) == 6


def test_the_policy_applies_to_the_record_of_a_value_that_cannot_be_stored():
    app = App("shop")
    left = stream_of(app, "left").map(lambda value: object() if value == 1 else value)
    left.join(stream_of(app, "right"), pair, within=milliseconds(5), store="j", value=Json()).to("out")
    driver = TopologyDriver(app)
    driver.send_all("left", [Record("a", 1, 0), Record("a", 2, 0)])
    driver.send("right", 3, key="a", timestamp=0)
    assert driver.values("out") == [[2, 3]]
    assert len(driver.dead_letters()) == 1


def test_buffered_records_are_forwarded_when_the_input_is_idle():
    app = App("shop")
    left, right = stream_of(app, "left"), stream_of(app, "right")
    left.left_join(right, pair, within=milliseconds(10), close_idle_after=milliseconds(1_000), store="j").to(
        "out"
    )
    driver = TopologyDriver(app)
    driver.send("left", 1, key="a", timestamp=100)
    driver.advance(milliseconds(500))
    assert read(driver) == []
    driver.advance(milliseconds(5_000))
    assert read(driver) == [Joined("a", [1, None], 100)]


def test_windows_downstream_of_a_join_use_the_joined_records_times():
    app = App("shop")
    left, right = stream_of(app, "left"), stream_of(app, "right")
    joined = left.join(right, lambda one, two: one + two, within=milliseconds(10), store="j")
    joined.to_table("kept", value=Json()).to("out")
    driver = TopologyDriver(app)
    driver.send("left", 1, key="a", timestamp=5)
    driver.send("right", 1, key="a", timestamp=3)
    assert driver.store("kept") == {"a": (2, 5)}


# --- tables by a foreign key


orders = st.fixed_dictionaries(
    {"customer": st.sampled_from(["x", "y", "z", None]), "amount": st.integers(0, 3)}
)
foreign = st.lists(
    st.one_of(
        st.builds(
            Operation, st.just("orders"), st.sampled_from("123"), st.none() | orders, st.integers(0, 20)
        ),
        st.builds(
            Operation,
            st.just("customers"),
            st.sampled_from("xyz"),
            st.none() | st.integers(1, 5),
            st.integers(0, 20),
        ),
    ),
    max_size=25,
)


@given(foreign, cuts, st.booleans(), st.integers(1, 3))
@settings(max_examples=150)
def test_a_join_by_foreign_key_is_the_relational_one(found, cut, left, partitions):
    app = App("shop")
    joined = table_of(app, "orders").join_foreign_key(
        table_of(app, "customers"),
        lambda order: order["customer"],
        lambda order, customer: [order["amount"], customer],
        store="priced",
        left=left,
        result=Json(),
    )
    joined.to("out")
    joined.group_by(lambda _: "all").aggregate("sum", total(sum_of)).to("sum-out")
    driver = TopologyDriver(app, partitions=partitions)
    tables: dict[str, dict[Any, Any]] = {"orders": {}, "customers": {}}
    for operation in found:
        tables[operation.topic][operation.key] = operation.value
    send(driver, found, cut)
    expected = {
        key: [order["amount"], tables["customers"].get(order["customer"])]
        for key, order in tables["orders"].items()
        if order is not None and (left or tables["customers"].get(order["customer"]) is not None)
    }
    assert replayed(read(driver)) == expected
    sums = driver.values("sum-out")
    assert (sums[-1] if sums else 0) == sum(map(sum_of, expected.values()))
    assert not driver.dead_letters()
    if "restart" in cut[: len(found)]:
        # Tasks that nothing has come for since show no stores.
        return
    assert {key: value for key, (value, _) in driver.store("priced").items()} == expected
    assert set(driver.store("priced-subscriptions")) == {
        (order["customer"].encode(), key.encode())
        for key, order in tables["orders"].items()
        if order is not None and order["customer"] is not None
    }


def test_a_change_of_the_other_table_reaches_all_that_refer_to_it():
    app = App("shop")
    table_of(app, "orders").join_foreign_key(
        table_of(app, "customers"), lambda order: order["of"], pair, store="priced", result=Json()
    ).to("out")
    driver = TopologyDriver(app, partitions=4)
    for number in range(10):
        driver.send("orders", {"of": "x" if number < 7 else "xy"}, key=str(number), timestamp=number)
    assert read(driver) == []
    driver.send("customers", 5, key="x", timestamp=3)
    changes = read(driver)
    assert sorted((key, time) for key, _, time in changes) == [
        (str(number), max(3, number)) for number in range(7)
    ]
    driver.send("orders", {"of": "x"}, key="10", timestamp=1)
    assert read(driver) == [Joined("10", [{"of": "x"}, 5], 3)]
    driver.send("customers", None, key="x", timestamp=20)
    assert {change.value for change in read(driver)} == {None}
    assert driver.store("priced") == {}


def test_an_answer_to_an_earlier_value_is_dropped():
    app = App("shop")
    table_of(app, "orders").join_foreign_key(
        table_of(app, "customers"), lambda order: order["of"], pair, store="priced", result=Json()
    ).to("out")
    driver = TopologyDriver(app)
    driver.send("customers", 1, key="x")
    driver.send("customers", 2, key="y")
    # Both changes are in the table before the first answer comes.
    driver.send_all("orders", [Record("1", {"of": "x"}, 0), Record("1", {"of": "y"}, 0)])
    assert [change.value for change in read(driver)] == [[{"of": "y"}, 2]]


def test_the_policy_applies_to_a_foreign_key_that_fails_and_its_value_is_deleted():
    app = App("shop")
    table_of(app, "orders").join_foreign_key(
        table_of(app, "customers"), lambda order: order["of"], pair, store="priced", result=Json(), left=True
    ).to("out")
    driver = TopologyDriver(app)
    driver.send("orders", {"of": "x"}, key="1")
    driver.send("orders", {}, key="1")
    assert [change.value for change in read(driver)] == [[{"of": "x"}, None], None]
    assert len(driver.dead_letters()) == 1


def test_a_join_by_foreign_key_must_know_how_values_are_written():
    app = App("shop")
    plain: Any = table_of(app, "t")
    mapped: Any = app.table("u", key=Text(), value=Text()).map(lambda value: value)
    with pytest.raises(TopologyError, match="'j' keeps results"):
        plain.join_foreign_key(plain, str, pair, store="j")
    with pytest.raises(TopologyError, match="'j' compares values"):
        mapped.join_foreign_key(plain, str, pair, store="j", result=Json())
    with pytest.raises(TopologyError, match="'j' sends values of the other table"):
        plain.join_foreign_key(mapped, str, pair, store="j", result=Json())


# --- global tables


@given(operations("s", "g", values=[None, "a", "b", "c"]), cuts, st.booleans())
def test_a_global_table_is_joined_by_any_key(found, cut, left):
    app = App("shop")
    table = app.global_table("g", key=Text(), value=Json())
    stream = stream_of(app, "s")
    join: Any = stream.left_join_global if left else stream.join_global
    join(table, lambda value: None if value == "c" else value, pair).to("out")
    driver = TopologyDriver(app, partitions=2)
    values: dict[Any, Any] = {}
    expected: Counter[Any] = Counter()
    refused = 0
    for topic, key, value, time in found:
        if topic == "g":
            values[key] = value
        elif value is None or (value == "c" and not left):
            refused += 1
        else:
            other = values.get(value) if value != "c" else None
            if left or other is not None:
                expected[key, (value, other), time] += 1
    send(driver, found, cut)
    assert outcome(driver) == expected
    assert len(driver.dead_letters()) == refused
    assert driver.store("g") == {key: value for key, value in values.items() if value is not None}


def test_the_policy_applies_to_a_key_that_cannot_be_looked_up():
    app = App("shop")
    table = app.global_table("g", key=Text(), value=Json())
    stream_of(app, "s").join_global(table, lambda value: value, pair).to("out")
    driver = TopologyDriver(app)
    driver.send("g", 1, key="a")
    driver.send_all("s", [Record("k", value, 0) for value in ("a", 5, ["a"], "b")])
    assert driver.values("out") == [["a", 1]]
    assert len(driver.dead_letters()) == 2


def test_a_global_table_outlives_a_restart_with_a_changed_app():
    def shop(text: str) -> App:
        app = App("j")
        table = app.global_table("g", key=Text(), value=Json())
        app.stream("in", value=Json()).join_global(table, str, lambda value, found: [text, value, found]).to(
            "out"
        )
        return app

    driver = TopologyDriver(shop("before"))
    driver.send("g", "one", key="1")
    driver.send("in", 1)
    driver.restart(shop("after"))
    driver.send("in", 1)
    assert [record.value for record in driver.read("out")] == [["before", 1, "one"], ["after", 1, "one"]]


def test_a_global_table_needs_a_distinct_name():
    app = App("shop")
    app.table("t", key=Text()).to("out")
    app.global_table("g", key=Text(), store="t")
    with pytest.raises(TopologyError, match="'t' cannot name a global table"):
        _ = app.topology


def test_a_description_names_the_global_tables():
    app = App("shop")
    table = app.global_table("g", key=Text(), value=Json(), store="prices")
    stream_of(app, "s").join_global(table, str, pair).to("out")
    assert "Global table prices: g (key Text, value Json)" in app.topology.describe()
    assert '"global_tables"' in app.topology.describe("json")


def test_a_missing_global_topic_is_found_before_the_start():
    app = App("shop")
    table = app.global_table("g", key=Text())
    stream_of(app, "s").join_global(table, str, pair, on_error=fail).to("out")
    with pytest.raises(TopicError, match="input topics do not exist: g"):
        MemoryCluster({"s": 1}).prepare(app, create_outputs=True)
