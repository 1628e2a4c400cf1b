"""What processors forward: as it was when it was forwarded, traced to the right input, in linear time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Json, Record, Text, Tumbling, dead_letter, key_value_store
from streams.durations import milliseconds
from streams.errors import TopologyError
from streams.operators.snapshot import snapshot
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.operators.processor import Context
    from streams.records import Batch


class Reading(msgspec.Struct):
    n: int
    tags: list[str]


@dataclass
class Sale:
    n: int


def driver_of(processor: Callable[[], Any], value: Any = None) -> TopologyDriver:
    app = App("forward", dead_letter_limit=1.0)
    app.stream("in", key=Text(), value=value or Json()).process(processor).to("out", key=Text(), value=Json())
    return TopologyDriver(app)


def in_batches(cuts: list[int], processor: Callable[[], Any], values: list[Any]) -> list[Any]:
    """What comes out for these values, sent in batches of these sizes."""
    driver = driver_of(processor)
    at = 0
    for size in cuts:
        part = values[at : at + size]
        driver.send_all("in", [Record("k", value, at + row) for row, value in enumerate(part)])
        at += size
    return driver.values("out")


def test_one_record_changed_and_forwarded_twice_is_two_records():
    class Twice:
        def process(self, record: Record[Any, Any], context: Context) -> None:
            record.headers = []
            for number in range(2):
                record.key = f"key-{number}"
                record.value = number
                record.timestamp = 10 * number
                record.headers.append((f"header-{number}", b"%d" % number))
                context.forward(record)
            record.value = "after"
            record.headers.clear()

    driver = driver_of(Twice)
    driver.send("in", "x", key="k")
    out = driver.read("out")
    assert [(record.key, record.value, record.timestamp, record.headers) for record in out] == [
        ("key-0", 0, 0, [("header-0", b"0")]),
        ("key-1", 1, 10, [("header-0", b"0"), ("header-1", b"1")]),
    ]


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: {"n": 0, "in": {"deep": [0]}}, lambda value, n: value["in"]["deep"].append(n)),
        (lambda: [0], lambda value, n: value.append(n)),
        (lambda: ([0],), lambda value, n: value[0].append(n)),
        (lambda: Reading(0, []), lambda value, n: value.tags.append(str(n))),
        (lambda: Reading(0, []), lambda value, n: setattr(value, "n", n)),
        (lambda: Sale(0), lambda value, n: setattr(value, "n", n)),
    ],
)
@pytest.mark.parametrize("cuts", [[3], [1, 1, 1], [2, 1]])
def test_a_value_that_is_changed_after_it_was_forwarded_stays_as_it_was(make, change, cuts):
    class Keeping:
        def open(self, context: Context) -> None:
            self.value = make()

        def process(self, record: Record[Any, Any], context: Context) -> None:
            change(self.value, record.value)
            context.forward(replace(record, value=self.value))

    expected = []
    value = make()
    for number in (1, 2, 3):
        change(value, number)
        expected.append(msgspec.to_builtins(value))
    assert in_batches(cuts, Keeping, [1, 2, 3]) == msgspec.json.decode(msgspec.json.encode(expected))


def test_the_input_s_headers_stay_as_they_were():
    class Adding:
        def process(self, record: Record[Any, Any], context: Context) -> None:
            if record.headers is not None:
                record.headers.append(("added", b""))
            context.forward(record)

    app = App("headers")
    stream = app.stream("in", key=Text(), value=Json())
    stream.process(Adding).to("changed", value=Json())
    stream.to("same")
    driver = TopologyDriver(app)
    driver.send("in", 1, key="k", headers=[("h", b"1")])
    assert driver.read("same")[0].headers == [("h", b"1")]
    assert driver.read("changed")[0].headers == [("h", b"1"), ("added", b"")]


def test_columns_that_are_filled_again_after_they_were_forwarded_stay_as_they_were():
    class Reusing:
        def open(self, context: Context) -> None:
            self.values: list[Any] = []

        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            for number in range(2):
                self.values[:] = [f"{value}-{number}" for value in batch.values]
                context.forward(batch.with_values(self.values))
            self.values.clear()

    assert in_batches([2, 1], Reusing, ["a", "b", "c"]) == ["a-0", "b-0", "a-1", "b-1", "c-0", "c-1"]


def test_a_batch_that_fails_is_begun_again_with_its_values_as_they_were():
    class Changing:
        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            for row, value in enumerate(batch.values):
                if value == 3:
                    raise ValueError("three")
                batch.values[row] = value * 10  # type: ignore[index]  # a list, and the batch is this call's own
            context.forward(batch)

    app = App("forward", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json())
    stream.process(Changing, on_error=dead_letter).to("out", value=Json())
    stream.to("same")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 0) for value in (1, 2, 3, 4)])
    assert driver.values("out") == [10, 20, 40]
    assert driver.values("same") == [1, 2, 3, 4]
    assert [letter.value for letter in driver.dead_letters()] == [b"3"]


def test_map_batch_may_fill_one_list_again_and_again():
    values: list[Any] = []

    def doubled(batch: Batch[Any, Any]) -> Batch[Any, Any]:
        if "bad" in batch.values and len(batch) > 1:
            raise ValueError("bad")
        values[:] = [2 * value for value in batch.values]
        return batch.with_values(values)

    app = App("columns")
    app.stream("in", key=Text(), value=Json()).map_batch(doubled, on_error=dead_letter).to(
        "out", value=Json()
    )
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 0) for value in ("a", "bad", "c")])
    assert driver.values("out") == ["aa", "badbad", "cc"]


def test_flat_map_may_give_one_object_again_and_again():
    given: list[Any] = []

    def same_list(value: int) -> list[int]:
        given[:] = range(value)
        return given

    def same_value(value: int) -> Iterator[dict[str, int]]:
        out: dict[str, int] = {}
        for number in range(value):
            out["n"] = number
            yield out

    app = App("expand")
    stream = app.stream("in", key=Text(), value=Json())
    stream.flat_map(same_list).to("lists", value=Json())
    stream.flat_map(same_value).to("values", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 0) for value in (2, 3)])
    assert driver.values("lists") == [0, 1, 0, 1, 2]
    assert driver.values("values") == [{"n": n} for n in (0, 1, 0, 1, 2)]


def test_forwarding_outside_of_a_call_is_refused():
    class Eager:
        def open(self, context: Context) -> None:
            context.forward(Record("k", 1, 0))

        def process(self, record: Record[Any, Any], context: Context) -> None:
            """Never reached."""

    with pytest.raises(TopologyError, match="not in open"):
        driver_of(Eager).send("in", 1, key="k")


# What a store has


class Keeping:
    """Modifies values that it has put and got, and forwards the content of the store."""

    def open(self, context: Context) -> None:
        self.store = context.store("kept")

    def process(self, record: Record[Any, Any], context: Context) -> None:
        found = self.store.get("k") or {"seen": []}
        context.forward(replace(record, value=found))
        found["seen"].append(record.value)
        if record.value == "unput":
            return
        self.store.put("k", found)
        found["seen"].append("after")
        for _, value in self.store.scan():
            value["seen"].append("scanned")
        if record.value == "bad":
            self.store.get("k")["seen"].append("bad")
            raise ValueError("bad")


@pytest.mark.parametrize("ttl", [None, milliseconds(1_000)])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_store_is_changed_by_what_is_put_and_by_nothing_else(ttl, restarts):
    app = App("kept", dead_letter_limit=1.0)
    store = key_value_store("kept", ttl=ttl)
    stream = app.stream("in", key=Text(), value=Json())
    stream.process(Keeping, stores=[store], on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    for value in ("a", "unput", "bad", "b", "c"):
        driver.send("in", value, key="k", timestamp=1)
        if restarts:
            driver.restart()
    assert [value["seen"] for value in driver.values("out")] == [[], ["a"], ["a"], ["a", "b"]]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_batch_processor_s_store_is_changed_by_what_is_put_and_by_nothing_else(restarts):
    class KeepingMany:
        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            store = context.store("kept")
            keys = sorted(set(batch.keys))
            found = {key: value or [] for key, value in zip(keys, store.get_many(keys), strict=True)}
            store.put_many(found)
            for key, value in zip(batch.keys, batch.values, strict=True):
                found[key].append(value)
            context.forward(batch.with_values(store.get_many(batch.keys)))
            store.put_many(found)
            found.clear()

    app = App("kept")
    stream = app.stream("in", key=Text(), value=Json())
    stream.process(KeepingMany, stores=[key_value_store("kept")]).to("out", value=Json())
    driver = TopologyDriver(app)
    for values in (("a", "b"), ("c",)):
        driver.send_all("in", [Record("k", value, 0) for value in values])
        if restarts:
            driver.restart()
    assert driver.values("out") == [[], [], ["a", "b"]]


# Which input a record came from


class EachRecord:
    """Forwards its batch's records one by one, the last first."""

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        for record in reversed(list(batch.records())):
            context.forward(replace(record, value=record.value))


class SomeRecords:
    """Forwards the records of a selection, each twice."""

    def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
        rows = [row for row in range(len(batch)) if row % 2 or len(batch) == 1]
        for record in batch.select(rows).records():
            context.forward(record)
            context.forward(record)


def refuse_odd(value: Any) -> Any:
    number = value.value if hasattr(value, "value") else value
    if number % 2:
        raise ValueError(f"odd: {number}")
    return number


def test_a_dead_letter_of_a_batch_s_record_is_that_record():
    app = App("blame", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json()).process(EachRecord)
    stream.map(refuse_odd, on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(f"k{n}", n, n) for n in range(6)])
    assert driver.values("out") == [4, 2, 0]
    letters = [(letter.key, dict(letter.headers or [])) for letter in driver.dead_letters()]
    assert [(key, headers["__streams.errors.offset"]) for key, headers in letters] == [
        (b"k5", b"5"),
        (b"k3", b"3"),
        (b"k1", b"1"),
    ]


def test_rows_that_were_expanded_and_selected_know_their_records():
    app = App("blame", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json()).flat_map(lambda value: [value, value + 1])
    stream.process(SomeRecords).map(refuse_odd, on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", n, n) for n in (0, 1, 2)])
    # Every second of the rows 0, 1, 1, 2, 2, 3 is forwarded twice: 1 of record 0, 2 of 1, 3 of 2.
    assert driver.values("out") == [2, 2]
    assert [letter.value for letter in driver.dead_letters()] == [b"0", b"0", b"2", b"2"]


def test_a_dead_letter_downstream_of_a_window_has_the_record_of_its_result():
    app = App("blame", dead_letter_limit=1.0)
    grouped = app.stream("in", key=Text(), value=Json()).group_by_key()
    counts = grouped.window(Tumbling(seconds=1)).count("counts")
    results = counts.updates().process(EachRecord).map(refuse_odd, on_error=dead_letter)
    results.to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(key, 0, n) for n, key in enumerate(["a", "b", "b", "c", "d", "d"])])
    assert sorted(driver.values("out")) == [2, 2]
    letters = driver.dead_letters()
    # Derived from state: there are no original bytes, so keys are shown as JSON.
    assert sorted(letter.key or b"" for letter in letters) == [b'"a"', b'"c"']
    for letter in letters:
        assert letter.key is not None
        assert letter.value is not None
        assert letter.key in letter.value


def test_a_record_of_an_earlier_batch_cannot_be_taken_for_one_of_this():
    class Holding:
        held: Any = None

        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            if self.held is not None:
                context.forward(self.held)
            self.held = next(iter(batch.records()))

    app = App("blame", dead_letter_limit=1.0)
    counts = app.stream("in", key=Text(), value=Json()).group_by_key().count("counts")
    counts.to_stream().process(Holding, on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send("in", 0, key="a")
    driver.send("in", 0, key="b")
    (letter,) = driver.dead_letters()
    assert letter.key == b'"b"'
    assert b"not in the batch" in (dict(letter.headers or [])["__streams.errors.message"] or b"")


@pytest.mark.parametrize("on", ["stream_time", "wall_clock"])
def test_a_record_that_a_timer_forwards_later_is_still_the_input_s(on):
    class Buffering:
        def open(self, context: Context) -> None:
            self.kept: list[Record[Any, Any]] = []
            self.context = context
            context.schedule(milliseconds(100), self.flush, on=on)

        def process(self, record: Record[Any, Any], context: Context) -> None:
            self.kept.append(record)

        def flush(self, now: int) -> None:
            for record in self.kept:
                self.context.forward(replace(record, value=record.value + 100))
            self.context.forward(Record("made", 1, now))
            self.kept.clear()

    app = App("buffer", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json()).process(Buffering)
    stream.map(refuse_odd, on_error=dead_letter).to("out", value=Json())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(f"k{n}", n, n) for n in range(4)])
    driver.send("in", 4, key="k4", timestamp=250)
    driver.advance(milliseconds(150))
    letters = [dict(letter.headers or []) for letter in driver.dead_letters()]
    found = [(letter["__streams.errors.topic"], letter["__streams.errors.offset"]) for letter in letters]
    assert found == [(b"in", b"1"), (b"in", b"3"), (b"process-Buffering", b"-1")]


def test_forwarding_each_record_of_a_batch_takes_linear_time():
    class Same:
        def process_batch(self, batch: Batch[Any, Any], context: Context) -> None:
            for record in batch.records():
                # Without the row that ``replace`` would keep, and found by its offset.
                context.forward(Record(record.key, record.value, record.timestamp, offset=record.offset))

    def seconds(records: int) -> float:
        driver = driver_of(Same)
        batch = [Record("k", n, n) for n in range(records)]
        begun = time.process_time()
        driver.send_all("in", batch)
        return time.process_time() - begun

    seconds(100)
    few, many = min(seconds(2_000) for _ in range(3)), min(seconds(20_000) for _ in range(2))
    # Ten times as many; a search for each record would make it a hundred times as long.
    assert many < 40 * few


class Plain:
    def __init__(self) -> None:
        self.items = [1]


def test_a_snapshot_is_equal_and_shares_nothing_that_can_change():
    value = {
        "list": [1, [2]],
        "set": {1},
        "tuple": (1, [2]),
        "reading": Reading(1, ["a"]),
        "money": Decimal("1.0"),
    }
    copied = snapshot(value)
    assert copied == value
    for name in ("list", "set", "tuple", "reading"):
        assert copied[name] is not value[name]
    assert copied["list"][1] is not value["list"][1]  # type: ignore[index]
    assert copied["reading"].tags is not value["reading"].tags  # type: ignore[attr-defined]
    fixed = (1, "a", Decimal("1.0"), frozenset({1}))
    assert snapshot(fixed) is fixed
    plain = Plain()
    assert snapshot(plain).items is not plain.items
    generator = (number for number in range(2))
    assert snapshot(generator) is generator
