"""Tables against plain dictionaries: the final value of each key, and the changes before it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams import App, Json, Record, Table, Text, TopologyError, custom, fail, skip, total
from streams.aggregates import latest, mean
from streams.operators.table import TableEntries
from streams.records import FetchedLists
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams import Aggregate

KEYS = "abcd"


class Operation(NamedTuple):
    """A record on its way to a topic; ``value`` ``None`` deletes."""

    topic: str
    key: str | None
    value: Any
    time: int


def operations(*topics: str, values: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    one = st.builds(
        Operation,
        st.sampled_from(topics),
        st.sampled_from(KEYS),
        st.none() | (st.integers(-3, 3) if values is None else values),
        st.integers(0, 20),
    )
    return st.lists(one, max_size=25)


cuts = st.lists(st.sampled_from(["on", "cut", "restart"]), min_size=25, max_size=25)
"""What happens in front of each operation: nothing, a new batch, or a restart."""


def batches(found: list[Operation], cut: list[str]) -> Iterator[tuple[bool, list[Operation]]]:
    """The operations in runs of one topic, each with whether a restart comes before it."""
    run: list[Operation] = []
    restart = False
    for operation, what in zip(found, cut, strict=False):
        if run and (what != "on" or run[0].topic != operation.topic):
            yield restart, run
            run, restart = [], False
        restart = restart or what == "restart"
        run.append(operation)
    if run:
        yield restart, run


def send(driver: TopologyDriver, found: list[Operation], cut: list[str]) -> None:
    for restart, run in batches(found, cut):
        if restart:
            driver.restart()
        driver.send_all(run[0].topic, [Record(item.key, item.value, item.time) for item in run])


def latest_values(found: list[Operation], topic: str = "t") -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for operation in found:
        if operation.topic == topic:
            values[operation.key] = operation.value
    return {key: value for key, value in values.items() if value is not None}


def replayed(records: list[Record[Any, Any]]) -> dict[Any, Any]:
    """What changes amount to; each deletion must have had something to delete."""
    values: dict[Any, Any] = {}
    for record in records:
        if record.value is None:
            assert record.key in values
            del values[record.key]
        else:
            values[record.key] = record.value
    return values


def table_app() -> tuple[App, Table[str, Any]]:
    app = App("shop")
    return app, app.table("t", key=Text(), value=Json())


def test_a_table_keeps_the_latest_value_of_each_key_whatever_the_event_times():
    app, table = table_app()
    table.to_stream(tombstones=True).to("out")
    driver = TopologyDriver(app)
    driver.send("t", 1, key="a", timestamp=50)
    driver.send("t", 2, key="a", timestamp=10)
    driver.send("t", None, key="b", timestamp=60)
    assert driver.store("t") == {"a": (2, 10)}
    assert [(record.key, record.value, record.timestamp) for record in driver.read("out")] == [
        ("a", 1, 50),
        ("a", 2, 10),
        ("b", None, 60),
    ]
    driver.restart()
    driver.send("t", None, key="a", timestamp=5)
    assert driver.store("t") == {}


def test_records_without_a_key_become_dead_letters():
    app, table = table_app()
    table.to("out")
    driver = TopologyDriver(app)
    driver.send_all("t", [Record(None, 1, 0), Record("a", 2, 0)])
    assert driver.values("out") == [2]
    assert [record.value for record in driver.dead_letters()] == [b"1"]


def test_a_value_that_cannot_be_decoded_leaves_the_one_before():
    app, table = table_app()
    table.to("out")
    driver = TopologyDriver(app)
    driver.send("t", 1, key="a")
    driver.send_bytes("t", b"{", key=b"a")
    assert driver.store("t") == {"a": (1, 0)}
    assert len(driver.dead_letters()) == 1


def test_a_deletion_keeps_its_records_time_where_values_have_theirs():
    app = App("shop")
    table = app.table("t", key=Text(), value=Json(), timestamp=lambda value: value["at"], store="named")
    table.to("out")
    driver = TopologyDriver(app)
    driver.send_all("t", [Record("a", {"at": 7}, 99), Record("a", None, 98), Record("b", {}, 97)])
    assert [(record.value, record.timestamp) for record in driver.read("out")] == [({"at": 7}, 7), (None, 98)]
    assert driver.store("named") == {}
    assert len(driver.dead_letters()) == 1


payloads = st.sampled_from([b"1", b" 1", b"2", b"{", b"null", None])
raw = st.tuples(st.sampled_from([b'"a"', b' "a"', b'"b"', b"7", b"[1]", b"{", b"null", None]), payloads)


@given(st.lists(raw, max_size=12), st.booleans())
def test_a_store_restored_from_the_topic_is_the_one_that_processing_makes(records, stamped):
    def time_of(value: Any) -> int:
        return value if value > 1 else -1

    timestamp = time_of if stamped else None
    app = App("shop")
    app.table("t", key=Json(), value=Json(), timestamp=timestamp).to("out")
    driver = TopologyDriver(app)
    for number, (key, value) in enumerate(records):
        driver.send_bytes("t", value, key=key, timestamp=number, partition=0)
    read = TableEntries(Json(), Json(), timestamp)
    restored: dict[bytes, bytes | None] = {}
    for first, part in ((0, records[:5]), (5, records[5:])):
        if part:
            numbers = range(first, first + len(part))
            columns = [key for key, _ in part], [value for _, value in part], numbers, numbers
            restored |= read(FetchedLists("t", 0, *columns)).entries
    kept = [
        (msgspec.json.decode(key), (msgspec.json.decode(value[8:]), int.from_bytes(value[:8], "big")))
        for key, value in sorted(restored.items())
        if value is not None
    ]
    assert kept == driver.entries("t")


@given(operations("t"), cuts)
def test_a_filtered_and_mapped_table_has_what_passes(found, cut):
    app, table = table_app()
    table.filter(lambda value: value > 0).map(lambda value: None if value == 2 else value * 10).to("out")
    table.map(lambda value: value * 10).filter(lambda value: value > 0).to("other")
    driver = TopologyDriver(app)
    send(driver, found, cut)
    expected = {key: value * 10 for key, value in latest_values(found).items() if value > 0}
    assert replayed(driver.read("other")) == expected
    outs: dict[Any, Any] = {}
    for record in driver.read("out"):
        outs[record.key] = record.value
    assert {key: value for key, value in outs.items() if value is not None} == {
        key: value for key, value in expected.items() if value != 20
    }


def test_a_value_that_a_function_fails_on_counts_as_deleted():
    app, table = table_app()
    table.map(lambda value: 6 // value, on_error=skip).to("mapped")
    table.filter(lambda value: 6 // value > 2, on_error=skip).to("filtered")
    driver = TopologyDriver(app)
    driver.send_all("t", [Record("a", 1, 0), Record("a", 0, 0), Record("a", 2, 0)])
    assert driver.values("mapped") == [6, None, 3]
    assert driver.values("filtered") == [1, None, 2]
    assert sum(driver.skipped().values()) == 2


def grouping(value: int) -> str:
    return "even" if value % 2 == 0 else "odd"


@given(operations("t"), cuts, st.integers(1, 3))
def test_groups_of_a_table_follow_its_values(found, cut, partitions):
    app, table = table_app()
    groups = table.group_by(grouping, store="groups")
    groups.count("count").to("count-out")
    groups.aggregate("sum", total()).to("sum-out")
    groups.reduce("reduced", lambda one, other: one + other, lambda one, other: one - other, value=Json()).to(
        "reduced-out"
    )
    listed: Aggregate[Any, Any] = custom(
        list,
        lambda kept, value: [*kept, value],
        remove=lambda kept, value: [item for at, item in enumerate(kept) if at != kept.index(value)],
        result=sorted,
        name="listed",
    )
    groups.aggregate("listed", listed).to("listed-out")
    driver = TopologyDriver(app, partitions=partitions)
    send(driver, found, cut)
    expected: dict[str, list[int]] = defaultdict(list)
    for operation in found:
        if operation.value is not None:
            expected[grouping(operation.value)] = []
    for value in latest_values(found).values():
        expected[grouping(value)].append(value)

    def outcome(topic: str) -> dict[Any, Any]:
        return {record.key: record.value for record in driver.read(topic)}

    # A group that appears and disappears within one batch may never be forwarded.
    counts = outcome("count-out")
    assert {key: count for key, count in counts.items() if count} == {
        key: len(values) for key, values in expected.items() if values
    }
    sums = outcome("sum-out")
    assert {key: sums[key] for key in sums if counts[key]} == {
        key: sum(values) for key, values in expected.items() if values
    }
    reduced = outcome("reduced-out")
    assert {key: reduced[key] for key in reduced if counts[key]} == {
        key: sum(values) for key, values in expected.items() if values
    }
    assert {key: values for key, values in outcome("listed-out").items() if values} == {
        key: sorted(values) for key, values in expected.items() if values
    }
    assert not driver.dead_letters()


def test_a_value_moves_from_its_old_group_to_the_new_one():
    app, table = table_app()
    table.group_by(lambda value: value["city"]).count("cities").to("out")
    driver = TopologyDriver(app)
    driver.send("t", {"city": "Rome"}, key="a", timestamp=1)
    driver.send("t", {"city": "Rome"}, key="b", timestamp=2)
    driver.send("t", {"city": "Oslo"}, key="a", timestamp=3)
    driver.send("t", None, key="b", timestamp=4)
    assert [(record.key, record.value, record.timestamp) for record in driver.read("out")] == [
        ("Rome", 1, 1),
        ("Rome", 2, 2),
        ("Rome", 1, 3),
        ("Oslo", 1, 3),
        ("Rome", 0, 4),
    ]


def test_the_policy_applies_to_values_without_a_group_and_they_leave_their_old_group():
    app, table = table_app()
    table.group_by(lambda value: value.get("city")).count("cities").to("out")
    driver = TopologyDriver(app)
    driver.send("t", {"city": "Rome"}, key="a")
    driver.send("t", {}, key="a")
    driver.send("t", 5, key="a")
    driver.send("t", {"city": "Rome"}, key="a")
    assert driver.values("out") == [1, 0, 1]
    assert len(driver.dead_letters()) == 2


def test_a_reduction_deletes_a_group_that_nothing_is_left_of():
    app, table = table_app()
    table.group_by(lambda value: "all").reduce(
        "sum", lambda one, other: one + other, lambda one, other: one - other or None, value=Json()
    ).to("out")
    driver = TopologyDriver(app)
    driver.send("t", 5, key="a", timestamp=3)
    driver.send("t", None, key="a", timestamp=4)
    assert [(record.value, record.timestamp) for record in driver.read("out")] == [(5, 3), (None, 4)]
    assert driver.store("sum") == {}


@pytest.mark.parametrize("aggregate", [latest(), custom(int, int.__add__, name="sum")])
def test_an_aggregate_that_cannot_take_values_out_again_is_refused(aggregate):
    _, table = table_app()
    with pytest.raises(TopologyError, match=r"'best': .* cannot subtract a value"):
        table.group_by(str).aggregate("best", aggregate)


def test_counts_of_counts_are_right_after_every_change():
    app = App("shop")
    counts = app.stream("s", key=Text(), value=Json()).group_by_key().count("counts")
    counts.group_by(str, value=Json()).count("of-counts").to("out")
    driver = TopologyDriver(app, partitions=2)
    seen: dict[str, int] = defaultdict(int)
    for key in "abacabadabacaba":
        driver.send("s", 0, key=key)
        seen[key] += 1
        found = {key: value[0] for key, value in driver.store("of-counts").items() if value[0]}
        expected: dict[str, int] = defaultdict(int)
        for number in seen.values():
            expected[str(number)] += 1
        assert found == expected


def lookups(app: App, table: Table[str, Any], driver_of: Callable[[App], TopologyDriver]) -> TopologyDriver:
    app.stream("probe", key=Text(), value=Json()).left_join(table, lambda _, value: [value]).to("found")
    return driver_of(app)


def asked(driver: TopologyDriver) -> dict[str, Any]:
    driver.send_all("probe", [Record(key, 0, 0) for key in KEYS])
    return {record.key: record.value[0] for record in driver.read("found") if record.value[0] is not None}


@given(operations("t", "u"), cuts)
@settings(max_examples=50)
def test_a_read_of_a_table_returns_the_value_of_its_changes(found, cut):
    app, table = table_app()
    other = app.table("u", key=Text(), value=Json()).map(lambda value: 60 // value, on_error=skip)
    joined = table.outer_join(other, lambda one, two: [one, two]).filter(lambda pair: pair[0] != 2)
    mapped = joined.map(lambda pair: {"pair": pair})
    mapped.to("changes")
    driver = lookups(app, mapped, TopologyDriver)
    send(driver, found, cut)
    assert asked(driver) == replayed(driver.read("changes"))


def test_a_stream_becomes_a_table_with_a_changelog():
    app = App("shop")
    stream = app.stream("s", key=Text(), value=Json(), tombstones=True)
    stream.map(lambda value: value and value + 1).to_table("kept", value=Json(int)).to("out")
    driver = TopologyDriver(app)
    driver.send_all("s", [Record("a", 1, 0), Record("b", 2, 1), Record("a", 4, 2), Record(None, 1, 2)])
    assert driver.store("kept") == {"a": (5, 2), "b": (3, 1)}
    (store,) = app.topology.subtopologies[0].stores
    assert store.source_topic is None
    assert len(driver.dead_letters()) == 1
    driver.restart()
    driver.send("s", None, key="a", timestamp=3)
    assert driver.store("kept") == {"b": (3, 1)}


def test_the_policy_applies_to_the_record_of_a_value_that_cannot_be_stored():
    app = App("shop")
    stream = app.stream("s", key=Text(), value=Json())
    stream.map(lambda value: object() if value == 1 else value).to_table("kept", value=Json()).to("out")
    driver = TopologyDriver(app)
    driver.send_all("s", [Record("a", 1, 0), Record("b", 2, 1)])
    assert driver.values("out") == [2]
    assert len(driver.dead_letters()) == 1


def test_a_rekeyed_stream_becomes_a_table_through_a_repartition_topic():
    app = App("shop")
    stream = app.stream("s", key=Text(), value=Json()).key_by(lambda value: value["user"])
    stream.to_table("users").group_by(lambda _: "all").aggregate("ages", mean("age")).to("out")
    driver = TopologyDriver(app, partitions=3)
    for user, age in [("a", 10), ("b", 20), ("a", 30)]:
        driver.send("s", {"user": user, "age": age}, key=str(age))
    assert "shop-users-repartition" in app.topology.repartitions
    assert driver.values("out") == [10, 15, 25]


def test_a_table_needs_to_know_how_values_are_written():
    app = App("shop")
    stream = app.stream("s", key=Text(), value=Text()).map(lambda value: value)
    with pytest.raises(TopologyError, match="'kept' keeps values"):
        stream.to_table("kept")
    with pytest.raises(TopologyError, match="the records of 'c' go through the repartition topic"):
        app.table("t", value=Text()).map(lambda value: value).group_by(lambda value: value).count("c")


def test_a_table_without_readers_is_no_dead_end():
    app, _ = table_app()
    driver = TopologyDriver(app)
    driver.send("t", 1, key="a")
    assert driver.store("t") == {"a": (1, 0)}


def test_a_failing_function_stops_the_app_with_policy_fail():
    app, table = table_app()
    table.map(lambda value: 1 // value, on_error=fail).to("out", on_error=fail)
    driver = TopologyDriver(app)
    with pytest.raises(Exception, match="division"):
        driver.send("t", 0, key="a")
