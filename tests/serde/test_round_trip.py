"""Round trips: values that a serde keeps are the same after a restart; others are refused at once."""

from __future__ import annotations

import datetime as dt
import json
import math
import tempfile
import uuid
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams import App, Json, Text, Tumbling, count, custom, key_value_store, total
from streams.durations import milliseconds
from streams.policy import dead_letter
from streams.records import Record
from streams.serde import Avro, Bytes
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from streams import Aggregate
    from streams.serde import Serde


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Line(msgspec.Struct, tag=True):
    amount: float


class Note(msgspec.Struct, tag=True):
    text: str


class Everything(msgspec.Struct):
    number: int = 0
    ratio: float = 0.0
    price: Decimal = Decimal(0)
    at: dt.datetime | None = None
    day: dt.date = dt.date(2026, 1, 1)
    time: dt.time = dt.time(0)
    lasts: dt.timedelta = dt.timedelta(0)
    id: uuid.UUID = uuid.UUID(int=0)
    raw: bytes = b""
    color: Color = Color.RED
    pair: tuple[int, str] = (0, "")
    names: frozenset[str] = frozenset()
    by_number: dict[int, str] = {}
    parts: list[Line | Note] = []
    anything: Any = None


finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), finite, st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
everything = st.builds(
    Everything,
    number=st.integers(-(2**80), 2**80),
    ratio=finite,
    price=st.decimals(allow_nan=False, allow_infinity=False),
    at=st.one_of(st.none(), st.datetimes(), st.datetimes(timezones=st.just(dt.UTC))),
    day=st.dates(),
    time=st.times(),
    lasts=st.timedeltas(min_value=dt.timedelta(days=-9999), max_value=dt.timedelta(days=9999)),
    id=st.uuids(),
    raw=st.binary(max_size=4),
    color=st.sampled_from(Color),
    pair=st.tuples(st.integers(), st.text(max_size=2)),
    names=st.frozensets(st.text(max_size=2), max_size=1),
    by_number=st.dictionaries(st.integers(-9, 9), st.text(max_size=2), max_size=2),
    parts=st.lists(st.one_of(st.builds(Line, finite), st.builds(Note, st.text(max_size=2))), max_size=2),
    anything=plain,
)
ILL_TYPED: list[Any] = [
    msgspec.structs.replace(Everything(), **{name: value})
    for name, value in (("names", {"a"}), ("pair", [1, "a"]), ("number", "7"), ("price", 1))
]
# What some serde has no way to keep.
odd = st.sampled_from(
    [
        *(math.nan, math.inf, [1, {"a": math.nan}], {"a": {1, 2}}, {1: 2}, (1, 2), [(1, 2)], "\ud800", b"x"),
        *(bytearray(b"x"), memoryview(b"x"), Decimal("1.0"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        *(uuid.UUID(int=1), Color.RED, Line(1.0), object(), 7, "text", Everything(ratio=math.nan)),
        *(Everything(ratio=True), Everything(anything=Color.RED), [Everything()]),
        *(*ILL_TYPED, {"name": "a", "kind": 5}),
    ]
)

AVRO = {
    "type": "record",
    "name": "Top",
    "fields": [
        {"name": "name", "type": "string"},
        {"name": "kind", "type": ["null", {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}, "string"]},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "single", "type": "float"},
        {"name": "more", "type": {"type": "map", "values": ["long", "double"]}},
    ],
}
avro = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3),
        "kind": st.sampled_from([None, "a", "z"]),
        "price": st.decimals(-999_999, 999_999, places=2),
        "at": st.datetimes(timezones=st.just(dt.UTC), min_value=dt.datetime(1900, 1, 1)),  # noqa: DTZ001 - as st wants it
        "single": st.floats(-1e30, 1e30),
        "more": st.dictionaries(st.text(max_size=2), st.one_of(st.integers(-9, 9), st.floats()), max_size=2),
    }
)
odd_avro = st.one_of(
    odd,
    st.builds(
        lambda value, change: value | change,
        avro,
        st.sampled_from(
            [{"extra": 1}, {"price": Decimal("0.001")}, {"price": 1.5}, {"kind": 5}, {"name": None}]
        ),
    ),
)

KEPT: dict[str, tuple[Any, Any, Any]] = {
    "Json": (Json(), plain, odd),
    "Json(Everything)": (Json(Everything), everything, odd),
    "Json(list)": (Json(list[Line | Note]), st.lists(st.builds(Line, finite), max_size=2), odd),
    "Text": (Text(), st.text(), odd),
    "Bytes": (Bytes(), st.binary(), odd),
    "Avro": (None, avro, odd_avro),
}


class Keep:
    """Puts each value into a store, and forwards what the store then has."""

    def open(self, context: Any) -> None:
        self._store = context.store("kept")

    def process(self, record: Record[Any, Any], context: Any) -> None:
        self._store.put(record.key, record.value)
        record.value = repr(self._store.get(record.key))
        context.forward(record)


class Show:
    def process(self, record: Record[Any, Any], context: Any) -> None:
        record.value = repr(record.value)
        context.forward(record)


def close(one: Any, other: Any) -> bool:
    """Whether they are equal, except for tuples and precision beyond the schema's."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-40) or (
            math.isnan(one) and math.isnan(other)
        )
    if isinstance(one, dt.datetime) and isinstance(other, dt.datetime):
        return abs(one - other) < dt.timedelta(milliseconds=1)
    return bool(one == other)


def check(serde: Serde[Any], values: list[Any], *, may_refuse: bool) -> None:
    app = App("keep")
    source = app.stream("in", value=Json(int)).map(lambda at: None if at < 0 else values[at])
    source.to_table("table", value=serde).to_stream().process(Show).to("from-table", value=Json())
    source.repartition("again", value=serde, on_error=dead_letter).process(Show).to("moved", value=Json())
    store = key_value_store("kept", key=Bytes(), value=serde)
    source.process(Keep, stores=[store], on_error=dead_letter).to("put", value=Json())
    driver = TopologyDriver(app)
    for at in range(len(values)):
        driver.send("in", at, key=b"%d" % at)
    live = {name: dict(driver.entries(name)) for name in ("table", "kept")}
    shown = {
        topic: {record.key: record.value for record in driver.read(topic)}
        for topic in ("from-table", "moved", "put")
    }
    driver.restart()
    # A deletion of what is not there opens the stores again.
    driver.send("in", -1, key=b"none")
    restored = {name: dict(driver.entries(name)) for name in ("table", "kept")}
    assert repr(restored) == repr(live)
    refused = {dict(letter.headers or [])["__streams.errors.offset"] for letter in driver.dead_letters()}
    for at, value in enumerate(values):
        key = b"%d" % at
        if value is None:
            continue
        if key not in live["table"]:
            assert may_refuse, f"{value!r} was refused"
            # Each way of keeping it refuses it, by its record.
            assert key in refused
            assert key not in live["kept"]
            assert not any(key in found for found in shown.values())
            continue
        (kept, _), put = live["table"][key], live["kept"][key]
        assert close(value, kept), f"{value!r} came back as {kept!r}"
        assert {found[key] for found in shown.values()} == {repr(kept)} == {repr(put)}


@pytest.mark.parametrize("name", KEPT)
@given(data=st.data())
@settings(max_examples=25)
def test_values_are_kept_or_refused_where_they_are_written(name, data):
    serde, good, bad = KEPT[name]
    with tempfile.TemporaryDirectory() as folder:
        if serde is None:
            path = Path(folder) / "Top.avsc"
            path.write_text(json.dumps(AVRO))
            serde = Avro(path)
        check(serde, data.draw(st.lists(good, min_size=1, max_size=4)), may_refuse=False)
        check(serde, data.draw(st.lists(st.one_of(good, bad), min_size=1, max_size=4)), may_refuse=True)


# --- by example


class Stat(msgspec.Struct):
    mean: float


def error_of(letter: Record[Any, Any]) -> str:
    message = dict(letter.headers or [])["__streams.errors.message"]
    assert message is not None
    return message.decode()


def test_nan_in_a_table_is_a_dead_letter_and_the_table_stays_readable():
    app = App("keep")
    orders, means = app.stream("orders", value=Json()), app.stream("means", value=Json())
    table = means.map(lambda value: Stat(math.nan if value is None else value / 2)).to_table(
        "latest", value=Json(Stat)
    )
    orders.join(table, lambda order, stat: [order, stat.mean]).to("out")
    driver = TopologyDriver(app)
    driver.send("means", 3, key=b"k")
    driver.send_bytes("means", b"null", key=b"k")
    (letter,) = driver.dead_letters()
    assert "JSON cannot represent nan at .mean" in error_of(letter)
    driver.restart()
    driver.send("orders", 1, key=b"k")
    assert driver.values("out") == [[1, 1.5]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sink_refuses_what_json_has_no_words_for(bad):
    app = App("keep")
    stream = app.stream("in", value=Json()).map(lambda value: {"a": [None, bad if value else 1.5]})
    stream.to("out", on_error=dead_letter)
    stream.map(lambda value: Stat(float(value["a"][1] or 0))).to(
        "typed", value=Json(Stat), on_error=dead_letter
    )
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, bad, 0) for bad in (0, 1, 0)])
    assert driver.values("out") == [{"a": [None, 1.5]}] * 2
    assert driver.values("typed") == [Stat(1.5)] * 2
    assert [error_of(letter).split(":")[0] for letter in driver.dead_letters()] == [
        f"JSON cannot represent {bad} at .a[1]",
        f"JSON cannot represent {bad} at .mean",
    ]


def test_what_a_reduction_makes_is_refused_by_the_record_that_made_it():
    app = App("keep")
    stream = app.stream("in", value=Json())
    reduced = stream.group_by_key().reduce(
        "sums", lambda one, other: one / other if other else math.nan, on_error=dead_letter
    )
    reduced.to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(b"k", value, 0) for value in (8, 2, 0, 2)])
    assert driver.values("out") == [2.0]
    (letter,) = driver.dead_letters()
    assert letter.value == b"0"


def test_what_an_aggregate_of_the_users_makes_is_refused_by_the_record_that_made_it():
    app = App("keep")
    made: Aggregate[Any, Any] = custom(
        int, lambda total, value: total + value if value else object(), name="odd"
    )
    app.stream("in", value=Json()).group_by_key().aggregate("sums", made, on_error=dead_letter).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(b"k", value, 0) for value in (8, 2, 0, 2)])
    assert driver.values("out") == [12]
    (letter,) = driver.dead_letters()
    assert letter.value == b"0"


def test_json_that_nests_too_deeply_is_a_dead_letter():
    app = App("keep")
    app.stream("in", value=Json()).to("out")
    driver = TopologyDriver(app)
    for payload in (b"[" * 1_000_000, b'{"a":' * 200_000, b"1" * 1_000_000, b"1e999999999", b"[1]"):
        driver.send_bytes("in", payload)
    assert driver.values("out") == [[1]]
    assert len(driver.dead_letters()) == 4


def test_what_a_window_gives_may_change_tasks():
    app = App("keep")
    stream = app.stream("in", key=Text(), value=Json(int))
    windows = (
        stream.group_by_key().window(Tumbling(size=milliseconds(10))).aggregate("w", sum=total(), n=count())
    )
    moved = windows.updates().group_by(lambda window: str(window.value.n), store="by")
    moved.count("counts").to("out")
    driver = TopologyDriver(app)
    driver.send("in", 1, key="a", timestamp=1)
    assert not driver.dead_letters()
    assert driver.values("out") == [1]


class Flat(msgspec.Struct, rename="camel"):
    first_ratio: float | None = None
    second_ratio: float = 0.0
    note: str | None = None


@given(
    st.lists(st.builds(Flat, st.one_of(st.none(), st.floats()), st.floats(), st.sampled_from([None, "null"])))
)
@settings(max_examples=50)
def test_a_column_of_structs_is_refused_at_the_first_that_is_not_finite(values):
    good = [math.isfinite(value.first_ratio or 0) and math.isfinite(value.second_ratio) for value in values]
    first = good.index(False) if False in good else len(values)
    results = iter(Json(Flat).serialize(values))
    payloads = [next(results) for _ in range(first)]
    assert list(Json(Flat).deserialize(payloads)) == values[:first]
    if first < len(values):
        with pytest.raises(ValueError, match=r"at \.(firstRatio|secondRatio)"):
            next(results)
