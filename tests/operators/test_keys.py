"""Keys are equal when their bytes are, whatever Python's equality, the batches and the restarts."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams import App, JoinWindow, Json, Session, Sliding, Text, Tumbling, key_value_store
from streams.aggregates import custom
from streams.durations import milliseconds
from streams.errors import TopologyError
from streams.policy import dead_letter, skip
from streams.records import Record
from streams.serde import Bytes
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams import Aggregate
    from streams.dsl.stream import Stream
    from streams.serde import Serde

# As this library writes them, so that the same bytes can be read as bytes and as JSON.
WRITTEN = [
    *(b"1", b"1.0", b"true", b'"1"', b"0", b"0.0", b"-0.0", b"false", b"[1]", b"[1.0]", b"[true]", b"[]"),
    *(b'{"a":1}', b'{"a":1.0}', b'{"a":1,"b":2}', b'{"b":2,"a":1}', b'[["x",200]]', b"1e300", b'""'),
]

sent = st.lists(
    st.tuples(st.sampled_from(WRITTEN), st.integers(0, 40), st.booleans()), min_size=1, max_size=14
)
cuts = st.lists(st.sampled_from([1, 2, 5, "restart"]), max_size=6)


class Counting:
    """A processor that counts by key in a store of its own."""

    def open(self, context: Any) -> None:
        self._counts = context.store("counted")

    def process(self, record: Record[Any, Any], context: Any) -> None:
        counted = (self._counts.get(record.key) or 0) + 1
        self._counts.put(record.key, counted)
        assert self._counts.get_many([record.key]) == [counted]
        assert len(list(self._counts.scan(record.key))) >= 1
        record.value = counted
        context.forward(record)


def count(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    return stream.group_by_key().count("by").to_stream()


def count_repartitioned(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    repartitioned = stream.map_batch(lambda batch: batch).repartition("again", value=Json())
    return repartitioned.group_by_key().count("by").to_stream()


def reduce(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    return stream.group_by_key().reduce("by", lambda one, other: one + other).to_stream()


def windows(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    counted = stream.group_by_key().window(Tumbling(size=milliseconds(10))).count("by")
    both = counted.updates().merge(counted.final())
    return both.map(lambda window: [window.start, window.value]).merge(counted.late())


def sessions(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    counted = stream.group_by_key().window(Session(gap=milliseconds(5))).count("by")
    return counted.final().map(lambda window: [window.start, window.end, window.value]).merge(counted.late())


def sliding(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    counted = stream.group_by_key().window(Sliding(difference=milliseconds(5))).count("by")
    return counted.updates().map(lambda window: [window.start, window.value]).merge(counted.late())


def record_wise(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    counting: Aggregate[int, int] = custom(int, lambda total, value: total + value, name="sum")
    return (
        stream.group_by_key()
        .window(Tumbling(size=milliseconds(10)))
        .aggregate("by", counting)
        .updates()
        .map(lambda it: it.value)
    )


def table(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    return stream.to_table("by").map(lambda value: value + 1).filter(lambda value: value % 3).to_stream()


def regrouped(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    kept = stream.to_table("kept")
    return kept.group_by(lambda value: value % 2, key=Json(int)).count("by").to_stream()


def table_join(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    small, large = stream.filter(lambda value: value < 20), stream.filter(lambda value: value >= 15)
    joined = small.to_table("small").outer_join(large.to_table("large"), lambda one, other: [one, other])
    return joined.to_stream()


def stream_table_join(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    kept = stream.filter(lambda value: value < 20).to_table("kept")
    return stream.left_join(kept, lambda value, other: [value, other])


def stream_join(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    other = stream.filter(lambda value: value % 2)
    window = JoinWindow(before=milliseconds(5), after=milliseconds(5))
    return stream.join(other, lambda one, two: [one, two], window=window, grace=milliseconds(100), store="by")


def process(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    return stream.process(Counting, stores=[key_value_store("counted", key=key)])


def process_expiring(stream: Stream[Any, Any], key: Serde[Any]) -> Stream[Any, Any]:
    return stream.process(Counting, stores=[key_value_store("counted", key=key, ttl=milliseconds(9))])


TOPOLOGIES = [
    *(count, count_repartitioned, reduce, windows, sessions, sliding, record_wise, table, regrouped),
    *(table_join, stream_table_join, stream_join, process, process_expiring),
]


def outputs(
    topology: Callable[..., Stream[Any, Any]], key: Serde[Any], records: list[Any], cut: list[Any]
) -> list[Any]:
    app = App("keys")
    stream = app.stream("in", key=key, value=Json(int), on_error=skip)
    topology(stream, key).to("out", value=Json())
    driver = TopologyDriver(app)
    waiting = list(records)
    for size in [*cut, len(records) + 1]:
        if size == "restart":
            driver.restart()
            continue
        part, waiting = waiting[:size], waiting[size:]
        (*names,) = key.deserialize([name for name, _, _ in part])
        columns = zip(names, part, strict=True)
        driver.send_all("in", [Record(name, value, time) for name, (_, value, time) in columns], partition=0)
    return [
        (record.key, record.value, record.timestamp)
        for record in driver.read("out", key=Bytes(), value=Json())
    ]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda function: function.__name__)
@given(records=sent, cut=cuts)
@settings(max_examples=25)
def test_json_keys_are_distinguished_by_their_bytes(topology, records, cut):
    # The times ascend slowly, so that windows close.
    timed = [(key, value, at * 2 + later) for at, (key, value, later) in enumerate(records)]
    assert outputs(topology, Json(), timed, cut) == outputs(topology, Bytes(), timed, cut)


def counted(app: App, *batches: list[Any], restart: bool) -> list[tuple[Any, Any]]:
    driver = TopologyDriver(app)
    for batch in batches:
        driver.send_all("in", [Record(None, value, 0) for value in batch])
        if restart:
            driver.restart()
    assert not driver.dead_letters()
    return [(record.key, record.value) for record in driver.read("out")]


def error_of(letter: Record[Any, Any]) -> str:
    message = dict(letter.headers or [])["__streams.errors.message"]
    assert message is not None
    return message.decode()


hits = st.lists(st.tuples(st.sampled_from(["/", "/a"]), st.sampled_from([200, 404, True, 1])), max_size=10)


@pytest.mark.parametrize("key", [Json(), Json(tuple[str, int | bool]), Json(list)], ids=lambda key: key.name)
@given(values=hits, size=st.integers(1, 5), restart=st.booleans())
def test_grouping_by_a_tuple_counts_across_batches_and_restarts(key, values, size, restart):
    app = App("keys")
    grouped = app.stream("in", value=Json()).group_by(lambda hit: (hit[0], hit[1]), key=key, store="by")
    grouped.count("counts").to("out")
    batches = [values[at : at + size] for at in range(0, len(values), size)]
    last = {repr(list(name)): number for name, number in counted(app, *batches, restart=restart)}
    expected: dict[str, int] = {}
    for path, status in values:
        expected[repr([path, status])] = expected.get(repr([path, status]), 0) + 1
    assert last == expected


class Place(msgspec.Struct):
    """Neither frozen nor hashable."""

    city: str
    number: float


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (Json(Place), [Place("a", 1.0), Place("a", 1), Place("b", 1.0)]),
        (
            Json(dt.datetime),
            [
                dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
                dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
            ],
        ),
        (Json(Decimal), [Decimal("1.0"), Decimal("1.00"), Decimal(1)]),
        (Json(float), [0.0, -0.0, 1.0]),
        (Json(frozenset[str]), [frozenset({"a", "b", "c"}), frozenset({"c", "b", "a"}), frozenset()]),
        (Json(dict[str, int]), [{"a": 1}, {"a": 2}, {"a": 1, "b": 2}]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_keys_of_any_type_are_grouped_by_what_is_written(key, values):
    app = App("keys")
    stream = app.stream("in", value=Json(int)).group_by(lambda at: values[at], key=key, store="by")
    stream.count("counts").to("out")
    driver = TopologyDriver(app)
    # As they are written once they were read.
    written = list(key.serialize(list(key.deserialize(list(key.serialize(values))))))
    for _ in range(2):
        driver.restart()
        driver.send_all("in", [Record(None, at, 0) for at in range(len(values))])
    assert not driver.dead_letters()
    last = {record.key: record.value for record in driver.read("out", key=Bytes())}
    assert last == {encoded: 2 * written.count(encoded) for encoded in written}
    assert sorted(number for _, (number, _) in driver.entries("counts")) == sorted(last.values())


# --- errors and their messages


@pytest.mark.parametrize("made_by", ["group_by", "key_by", "group_by of a table"])
def test_the_error_for_a_number_as_key_names_a_serde_and_the_step(made_by):
    app = App("keys")
    stream: Stream[Any, Any] = app.stream("in", value=Json())
    if made_by == "group_by":
        stream.group_by(lambda user: user["id"], store="by").count("counts").to("out")
    elif made_by == "key_by":
        stream.key_by(lambda user: user["id"]).to("out")
    else:
        stream.to_table("t").group_by(lambda user: user["id"]).count("counts").to("out")
    with pytest.raises(TopologyError) as raised:
        TopologyDriver(app).send("in", {"id": 7}, key=b"k")
    message = str(raised.value)
    assert "key=Json(int)" in message
    assert "test_keys.py" in message
    assert "in-0 offset 0" in message


@pytest.mark.parametrize(
    ("key", "says"),
    [(("/", 200), "Json(tuple[str, int])"), (2.5, "Json(float)"), (Place("a", 1), "Json(Place)")],
)
def test_the_type_to_write_is_that_of_the_key(key, says):
    app = App("keys")
    app.stream("in", value=Json()).group_by(lambda _: key, store="by").count("counts").to("out")
    with pytest.raises(TopologyError, match="key=") as raised:
        TopologyDriver(app).send("in", 1)
    assert says in str(raised.value)


def test_one_record_of_another_type_among_text_is_a_dead_letter():
    app = App("keys")
    stream = app.stream("in", value=Json()).group_by(lambda user: user["id"], store="by")
    stream.count("counts").to("out")
    driver = TopologyDriver(app)
    driver.send("in", {"id": "a"})
    driver.send("in", {"id": 7})
    driver.send_all("in", [Record(None, {"id": 8}, 0), Record(None, {"id": "a"}, 0)])
    letters = driver.dead_letters()
    assert [letter.value for letter in letters] == [b'{"id":7}', b'{"id":8}']
    assert "Json(int)" in error_of(letters[0])
    assert driver.store("counts") == {"a": (2, 0)}


def test_with_an_explicit_text_serde_the_first_number_as_key_is_a_dead_letter():
    app = App("keys")
    stream = app.stream("in", value=Json()).group_by(lambda user: user, key=Text(), store="by")
    stream.count("counts").to("out")
    driver = TopologyDriver(app)
    driver.send("in", 7)
    assert len(driver.dead_letters()) == 1


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        (Json(int), True),
        (Json(int), 1.0),
        (Json(int), "1"),
        (Json(), float("nan")),
        (Json(), ["a", float("inf")]),
        (Json(tuple[str, int]), ("a", "b")),
        (Text(), "\ud800"),
        (Bytes(), bytearray(b"x")),
    ],
)
def test_the_policy_of_the_grouping_applies_to_a_key_that_cannot_be_read_back(key, bad):
    app = App("keys")
    for policy, topic in ((dead_letter, "a"), (skip, "b")):
        grouped = app.stream(topic, value=Json()).group_by(
            lambda _: bad, key=key, store=topic, on_error=policy
        )
        grouped.count(f"counts-{topic}").to("out")
    driver = TopologyDriver(app)
    driver.send("a", 1)
    driver.send("b", 1)
    assert driver.values("out") == []
    assert [letter.value for letter in driver.dead_letters()] == [b"1"]
    assert sum(driver.skipped().values()) == 1


def test_escapes_and_white_space_do_not_make_another_key():
    app = App("keys")
    app.stream("in", key=Json(), value=Json()).group_by_key().count("counts").to("out")
    driver = TopologyDriver(app)
    for key in (b'"a"', b'"\\u0061"', b' "a"', b'{"a": 1}', b'{"a":1}'):
        driver.send_bytes("in", b"1", key=key, partition=0)
    last = {record.key: record.value for record in driver.read("out", key=Bytes())}
    assert last == {b'"a"': 3, b'{"a":1}': 2}


def test_a_global_table_tells_keys_apart_by_their_bytes():
    app = App("keys")
    names = app.global_table("names", key=Json(), value=Json())
    app.stream("in", value=Json()).left_join_global(names, lambda key: key, lambda key, name: [key, name]).to(
        "out"
    )
    driver = TopologyDriver(app)
    for key, name in ((1, "one"), (1.0, "float"), (True, "yes"), ([1], "list")):
        driver.send("names", name, key=key)
    driver.send_all("in", [Record(None, key, 0) for key in (True, 1, 1.0, [1], [1.0])])
    found = [name for _, name in driver.values("out")]
    assert found == ["yes", "one", "float", "list", None]
    with pytest.raises(ValueError, match="entries"):
        driver.store("names")
    assert len(driver.entries("names")) == 4


def test_a_foreign_key_that_changes_only_on_the_wire_changes_its_subscription():
    app = App("keys")
    left, right = app.table("left", key=Text(), value=Json()), app.table("right", key=Json(), value=Json())
    left.join_foreign_key(
        right, lambda value: value["at"], lambda value, other: other, store="both", result=Json()
    ).to("out")
    driver = TopologyDriver(app)
    for key, name in ((1, "one"), (1.0, "float"), (True, "yes")):
        driver.send("right", name, key=key)
    for at in (1, 1.0, True):
        driver.send("left", {"at": at}, key="k")
    assert driver.values("out") == ["one", "float", "yes"]
    driver.send("right", "changed", key=1)
    assert driver.values("out") == []
    driver.send("right", "new", key=True)
    assert driver.values("out") == ["new"]


def test_what_is_forwarded_for_a_tuple_is_what_is_read_for_it_live_and_restored():
    app = App("keys")
    stream = app.stream("in", key=Json(), value=Json())
    stream.group_by_key().count("counts").to_stream().process(Shown).to("out", key=Text(), value=Json())
    driver = TopologyDriver(app)
    for _ in range(2):
        driver.send("in", 1, key=("a", 1))
        driver.restart()
    assert driver.values("out") == ["list", "list"]


class Shown:
    def process(self, record: Record[Any, Any], context: Any) -> None:
        record.key, record.value = "k", type(record.key).__name__
        context.forward(record)


class Putting:
    """Puts the entries in the value, and forwards the resulting content of the store."""

    def open(self, context: Any) -> None:
        self._store = context.store("kept")

    def process(self, record: Record[Any, Any], context: Any) -> None:
        self._store.put(KEYS[record.value], record.value)
        record.value = [list(entry) for entry in self._store.scan()]
        context.forward(record)


KEYS: list[Any] = [1, 1.0, True, "1", [1], (1,), {"a": 1}, None, float("nan"), "\ud800"]


def test_a_processor_may_put_keys_that_are_no_dictionary_keys():
    app = App("keys")
    stream = app.stream("in", value=Json(), on_error=skip)
    store = key_value_store("kept", key=Json(), value=Json())
    stream.process(Putting, stores=[store], on_error=dead_letter).to("out", value=Json())
    live, restarted = TopologyDriver(app), TopologyDriver(app)
    for at in range(len(KEYS)):
        for driver in (live, restarted):
            driver.send("in", at)
        restarted.restart()
    for driver in (live, restarted):
        assert driver.values("out")[-1] == [
            ["1", 3],
            [1, 0],
            [1.0, 1],
            [[1], 5],
            [True, 2],
            [{"a": 1}, 6],
        ]
        assert [letter.value for letter in driver.dead_letters()] == [b"7", b"8", b"9"]


@pytest.mark.parametrize(("key", "bad"), [(Text(), 7), (Json(int), True), (Json(int), 1.0), (Text(), None)])
def test_the_error_for_an_invalid_key_names_the_processor_s_store(key, bad):
    class Put:
        def process(self, record: Record[Any, Any], context: Any) -> None:
            del record
            context.store("kept").put(bad, 1)

    app = App("keys")
    app.stream("in", value=Json()).process(
        Put, stores=[key_value_store("kept", key=key)], on_error=dead_letter
    )
    driver = TopologyDriver(app)
    driver.send("in", 1)
    (letter,) = driver.dead_letters()
    assert "store 'kept' cannot use the key" in error_of(letter)
    assert driver.entries("kept") == []
