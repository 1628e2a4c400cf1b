"""Functions of records: their results for key, value, event time and headers, and which records fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from streams import App, Batch, Json, Record, Text, dead_letter, fail, retry, skip
from streams.errors import ProcessingError, TopologyError
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams import Context, Headers, Stream

Shown = tuple[Any, Any, int, Any]


class Hit(msgspec.Struct):
    path: str
    tags: list[str]


def shown(record: Record[Any, Any]) -> Shown:
    return record.key, record.value, record.timestamp, record.headers


def driver_of(build: Callable[[Stream[str, Any]], Stream[Any, Any]]) -> TopologyDriver:
    app = App("records", dead_letter_limit=1.0)
    build(app.stream("in", key=Text(), value=Json(), tombstones=True)).to("out", key=Json(), value=Json())
    return TopologyDriver(app)


def test_a_function_sees_key_value_time_headers_and_coordinates():
    seen: list[Record[str, Any]] = []
    driver = driver_of(lambda stream: stream.peek_records(seen.append))
    driver.send("in", 1, key="a", timestamp=7, headers=[("h", b"1")])
    driver.send("in", None, key="b", timestamp=8)
    assert seen == [
        Record("a", 1, 7, [("h", b"1")], "in", 0, 0),
        Record("b", None, 8, None, "in", 0, 1),
    ]
    assert [shown(record) for record in driver.read("out")] == [
        ("a", 1, 7, [("h", b"1")]),
        ("b", None, 8, None),
    ]


def test_a_record_may_be_replaced_partly_or_completely():
    driver = driver_of(
        lambda stream: stream.map_records(
            lambda record: record.with_(value=[record.key, record.value], timestamp=record.timestamp + 1)
        ).map_records(
            lambda record: (
                record if record.value[1] else record.with_(key=None, value=None, headers=[("n", None)])
            )
        )
    )
    driver.send("in", 1, key="a", timestamp=7, headers=[("h", b"1")])
    driver.send("in", 0, key="b", timestamp=8)
    assert [shown(record) for record in driver.read("out")] == [
        ("a", ["a", 1], 8, [("h", b"1")]),
        (None, None, 9, [("n", None)]),
    ]


def test_headers_may_be_taken_away_and_added():
    def changed(record: Record[str, Any]) -> Record[str, Any]:
        return record.with_(headers=None) if record.headers else record.with_(headers=[("new", b"")])

    driver = driver_of(lambda stream: stream.map_records(changed))
    driver.send_all("in", [Record("a", 1, 0, [("h", b"1")]), Record("b", 2, 0)])
    assert [record.headers for record in driver.read("out")] == [None, [("new", b"")]]


def test_records_are_kept_by_what_is_in_their_headers():
    driver = driver_of(
        lambda stream: stream.filter_records(lambda record: ("keep", b"1") in (record.headers or []))
    )
    kept: Headers = [("keep", b"1")]
    driver.send_all("in", [Record("a", 1, 0, kept), Record("b", 2, 0), Record("c", 3, 0, kept)])
    assert driver.values("out") == [1, 3]


def test_one_object_that_is_changed_and_given_again_is_several_records():
    def changed(record: Record[str, Any]) -> Iterator[Record[str, Any]]:
        record.headers = []
        record.value = {"n": []}
        for number in range(3):
            record.key = f"{number}"
            record.timestamp = number
            record.value["n"].append(number)
            record.headers.append(("n", b"%d" % number))
            yield record
        record.value["n"].clear()
        record.headers.clear()

    driver = driver_of(lambda stream: stream.flat_map_records(changed))
    driver.send("in", "x", key="k")
    names = [("n", b"0"), ("n", b"1"), ("n", b"2")]
    assert [shown(record) for record in driver.read("out")] == [
        ("0", {"n": [0]}, 0, names[:1]),
        ("1", {"n": [0, 1]}, 1, names[:2]),
        ("2", {"n": [0, 1, 2]}, 2, names),
    ]


def test_an_object_kept_over_calls_is_another_record_each_time():
    kept: Record[str, Any] = Record("k", [], 0, [])

    def counted(record: Record[str, Any]) -> Record[str, Any]:
        kept.value.append(record.value)
        return kept

    driver = driver_of(lambda stream: stream.map_records(counted))
    driver.send_all("in", [Record("a", number, 5) for number in range(3)])
    assert driver.values("out") == [[0], [0, 1], [0, 1, 2]]


def test_a_record_that_a_function_changes_stays_as_it_was_for_other_steps_and_for_a_retry():
    calls: list[Shown] = []

    def changed(record: Record[str, Any]) -> Record[str, Any]:
        calls.append((record.key, record.value, record.timestamp, list(record.headers or [])))
        assert record.headers is not None
        record.key, record.value, record.timestamp = "changed", 2, 99
        record.headers.append(("added", b""))
        if len(calls) == 1:
            raise ValueError("once")
        return record

    app = App("records")
    stream = app.stream("in", key=Text(), value=Json())
    stream.map_records(changed, on_error=retry(1)).to("changed", key=Text(), value=Json())
    stream.to("same")
    driver = TopologyDriver(app)
    driver.send("in", 1, key="k", timestamp=5, headers=[("h", b"1")])
    assert calls == [("k", 1, 5, [("h", b"1")])] * 2
    assert shown(driver.read("same")[0]) == ("k", 1, 5, [("h", b"1")])
    assert shown(driver.read("changed")[0]) == ("changed", 2, 99, [("h", b"1"), ("added", b"")])


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda record: record.value, "the function of map_records must return records, got int"),
        (lambda record: record.with_(timestamp=-1), "an event time is a whole number of milliseconds"),
        (lambda record: record.with_(timestamp=1.5), "an event time is a whole number of milliseconds"),
        (lambda record: record.with_(timestamp=1 << 63), "an event time is a whole number of milliseconds"),
        (lambda record: record.with_(headers={"a": b""}), "headers must be a list of pairs"),
        (lambda record: record.with_(headers=[("a", "b")]), "a header is a pair of a name and bytes"),
        (lambda record: record.with_(headers=[("a", b"", b"")]), "a header is a pair of a name and bytes"),
        (lambda record: record.with_(headers=[("\ud800", b"")]), "surrogates not allowed"),
        (lambda record: 1 // 0, "integer division or modulo by zero"),
    ],
)
def test_an_invalid_record_fails_alone_with_its_coordinates(function, why):
    def sometimes(record: Record[str, Any]) -> Record[str, Any]:
        made: Record[str, Any] = function(record) if record.value == 1 else record
        return made

    driver = driver_of(lambda stream: stream.map_records(sometimes, on_error=dead_letter))
    driver.send_all("in", [Record("k", value, 3) for value in range(3)])
    assert driver.values("out") == [0, 2]
    (letter,) = driver.dead_letters()
    assert letter.value == b"1"
    found = {name: value for name, value in letter.headers or [] if value is not None}
    assert b"1" in found.values()
    assert any(why.encode() in value for value in found.values())

    driver = driver_of(lambda stream: stream.map_records(sometimes, on_error=fail, name="mine"))
    with pytest.raises(ProcessingError, match=r"step 'mine' .* failed on in-0 offset 1"):
        driver.send_all("in", [Record("k", value, 3) for value in range(3)])


def test_a_record_without_a_time_may_be_forwarded_without_one():
    driver = driver_of(lambda stream: stream.map_records(lambda record: record.with_(value=2)))
    driver.send("in", 1, key="k", timestamp=-1)
    assert [record.timestamp for record in driver.read("out")] == [-1]


def test_an_awaitable_is_a_failure_of_its_record():
    async def later(record: Record[str, Any]) -> Record[str, Any]:
        return record

    for build in (
        lambda stream: stream.map_records(lambda r: later(r) if r.value else r),
        lambda stream: stream.map_records(lambda r: r.with_(value=later(r)) if r.value else r),
        lambda stream: stream.filter_records(lambda r: later(r) if r.value else True),
        lambda stream: stream.peek_records(lambda r: later(r) if r.value else None),
        lambda stream: stream.flat_map_records(lambda r: [later(r) if r.value else r]),
    ):
        driver = driver_of(build)
        driver.send_all("in", [Record("k", value, 3) for value in range(2)])
        assert driver.values("out") == [0]
        assert len(driver.dead_letters()) == 1
    with pytest.raises(TopologyError, match="async"):
        driver_of(lambda stream: stream.map_records(later))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_the_step_that_follows_reads_the_values_as_the_function_is_annotated_to_make_them():
    def hit(record: Record[str, Any]) -> Record[str, Hit]:
        return record.with_(value=Hit(record.value, []))

    def hits(record: Record[str, Any]) -> list[Record[str, Hit]]:
        return [hit(record)]

    app = App("records")
    stream = app.stream("in", key=Text(), value=Json())
    stream.map_records(hit).group_by_key().count("one")
    stream.flat_map_records(hits).group_by_key().count("many")
    driver = TopologyDriver(app)
    driver.send("in", "/", key="k")
    assert driver.store("one") == driver.store("many") == {"k": (1, 0)}


def test_changed_keys_are_written_with_the_serde_of_the_step():
    app = App("records")
    stream = app.stream("in", key=Text(), value=Json(int))

    def moved(record: Record[str, int]) -> Record[int, int]:
        return record.with_(key=record.value)

    moved_stream = stream.map_records(moved, key=Json(int))
    moved_stream.repartition("by-number", value=Json(int)).group_by_key().count("numbers")
    assert list(app.topology.repartitions) == ["records-by-number-repartition"]
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", 1, 0), Record("b", 1, 0), Record("c", 2, 0)])
    assert driver.store("numbers") == {1: (2, 0), 2: (1, 0)}


# One input record: what the function does with it.
@dataclass(frozen=True)
class Plan:
    """``makes`` values and headers in turn; raises after ``fails_after`` of them if that is given."""

    makes: tuple[tuple[int, bool], ...]
    fails_after: int | None
    has_headers: bool


plans = st.lists(
    st.builds(
        Plan,
        st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=3).map(tuple),
        st.one_of(st.none(), st.none(), st.integers(0, 3)),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(plans, st.data())
def test_flat_map_records_is_a_loop_over_records_however_batches_are_cut(plan, data):
    def expand(record: Record[str, int]) -> Iterator[Record[str, list[int]]]:
        own = plan[record.value]
        reused: Record[str, list[int]] = record.with_(value=[])
        for number, (value, named) in enumerate(own.makes):
            if number == own.fails_after:
                raise ValueError("made to fail")
            reused.value.append(value)
            reused.key = f"{record.key}-{value}"
            reused.timestamp = record.timestamp + value
            reused.headers = [*(record.headers or []), ("n", b"%d" % value)] if named else record.headers
            yield reused
        if own.fails_after is not None and own.fails_after >= len(own.makes):
            raise ValueError("made to fail at the end")

    inputs: list[tuple[str, int, int, Headers | None]] = [
        (f"k{row}", row, 100 * row, [("h", b"%d" % row)] if own.has_headers else None)
        for row, own in enumerate(plan)
    ]
    expected: list[Shown] = []
    failed: list[int] = []
    for key, row, time, headers in inputs:
        own = plan[row]
        if own.fails_after is not None:
            failed.append(row)
            continue
        for number, (value, named) in enumerate(own.makes):
            values = [made for made, _ in own.makes[: number + 1]]
            added: Headers | None = [*(headers or []), ("n", b"%d" % value)] if named else headers
            expected.append((f"{key}-{value}", values, time + value, added))

    driver = driver_of(lambda stream: stream.flat_map_records(expand, on_error=dead_letter))
    at = 0
    while at < len(inputs):
        size = data.draw(st.integers(1, len(inputs) - at))
        driver.send_all("in", [Record(*columns) for columns in inputs[at : at + size]])
        at += size
    assert [shown(record) for record in driver.read("out")] == expected
    letters = driver.dead_letters()
    assert [int(letter.value) for letter in letters] == failed


def test_what_follows_knows_the_input_record_of_each_row():
    def twice(record: Record[str, Any]) -> list[Record[str, Any]]:
        return [record.with_(value=record.value * 10), record.with_(value=record.value * 10 + 1)]

    def picky(value: int) -> int:
        if value == 21:
            raise ValueError("not this one")
        return value

    driver = driver_of(lambda stream: stream.flat_map_records(twice).map(picky, on_error=dead_letter))
    driver.send_all("in", [Record("k", value, 3) for value in range(4)])
    assert driver.values("out") == [0, 1, 10, 11, 20, 30, 31]
    assert [letter.value for letter in driver.dead_letters()] == [b"2"]


def test_with_returns_a_separate_record():
    record = Record("k", 1, 5, [("h", b"")], "t", 2, 3, (4, 5))
    assert record.with_(value=None) == Record("k", None, 5, [("h", b"")], "t", 2, 3)
    assert record.with_(key=None, value="x") == Record(None, "x", 5, [("h", b"")], "t", 2, 3)
    assert record.with_(timestamp=6, headers=None) == Record("k", 1, 6, None, "t", 2, 3)
    copy = record.with_()
    assert copy == record
    assert copy.source_row == (4, 5)
    assert copy.headers is not None
    copy.headers.append(("more", b""))
    assert record.headers == [("h", b"")]


def test_a_processor_forwards_what_with_has_made():
    class Tens:
        def process(self, record: Record[Any, int], context: Context) -> None:
            context.forward(record.with_(value=record.value * 10))

    class Batches:
        def process_batch(self, batch: Batch[Any, int], context: Context) -> None:
            for record in batch.records():
                context.forward(record.with_(value=record.value + 1, headers=[("b", b"")]))

    def picky(value: int) -> int:
        if value == 11:
            raise ValueError("not this one")
        return value

    driver = driver_of(lambda stream: stream.process(Tens).process(Batches).map(picky, on_error=dead_letter))
    driver.send_all("in", [Record("k", value, 3) for value in range(3)])
    assert [shown(record) for record in driver.read("out")] == [
        ("k", 1, 3, [("b", b"")]),
        ("k", 21, 3, [("b", b"")]),
    ]
    assert [letter.value for letter in driver.dead_letters()] == [b"1"]


def test_records_that_a_predicate_fails_on_are_counted_where_they_are_skipped():
    driver = driver_of(
        lambda stream: stream.filter_records(lambda record: 1 // record.value, on_error=skip, name="some")
    )
    driver.send_all("in", [Record("k", value, 3) for value in (0, 1, 2)])
    assert driver.values("out") == [1]
    assert driver.skipped() == {"some": 1}
