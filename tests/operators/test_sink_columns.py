"""What a sink writes in place of what records have: partitions, headers and event times the program chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams import App, Json, Record, Text, dead_letter, fail, skip
from streams.errors import ProcessingError, TopologyError
from streams.partitioning import partition_for
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from streams import Headers


def driver_of(*, partitions: int = 4, **options: Any) -> TopologyDriver:
    app = App("sinks", dead_letter_limit=1.0)
    app.stream("in", key=Text(), value=Json()).to("out", name="out", **options)
    return TopologyDriver(app, partitions=partitions)


def test_without_a_choice_keys_decide_and_records_are_written_as_they_are():
    driver = driver_of()
    driver.send("in", 1, key="a", timestamp=5, headers=[("h", b"")])
    assert driver.read("out") == [Record("a", 1, 5, [("h", b"")], "out", partition_for(b"a", 4), 0)]


def test_a_partition_for_all_or_by_the_record():
    driver = driver_of(partition=3)
    driver.send_all("in", [Record("a", 1, 0), Record(None, 2, 0)])
    assert [record.partition for record in driver.read("out")] == [3, 3]
    driver = driver_of(partition=lambda record: record.value % 4)
    driver.send_all("in", [Record("a", value, 0) for value in range(6)], partition=0)
    assert [record.partition for record in driver.read("out")] == [0, 1, 2, 3, 0, 1]


def test_headers_for_all_or_by_the_record():
    driver = driver_of(headers=[("app", b"sinks"), ("none", None)])
    driver.send("in", 1, key="a", headers=[("h", b"")])
    driver.send("in", 2, key="a")
    assert [record.headers for record in driver.read("out")] == [[("app", b"sinks"), ("none", None)]] * 2

    def added(record: Record[str, int]) -> Headers | None:
        return [*(record.headers or []), ("key", record.key.encode())] if record.value else None

    driver = driver_of(headers=added)
    driver.send_all(
        "in", [Record("a", 1, 0, [("h", b"")]), Record("b", 2, 0), Record("c", 0, 0, [("h", b"")])]
    )
    assert [record.headers for record in driver.read("out")] == [
        [("h", b""), ("key", b"a")],
        [("key", b"b")],
        None,
    ]


def test_an_event_time_by_the_record_is_that_of_the_output_alone():
    app = App("sinks")
    stream = app.stream("in", key=Text(), value=Json())
    stream.to("moved", timestamp=lambda record: record.timestamp + record.value)
    stream.to("same")
    driver = TopologyDriver(app)
    driver.send("in", 7, key="a", timestamp=5)
    assert [record.timestamp for record in driver.read("moved")] == [12]
    assert [record.timestamp for record in driver.read("same")] == [5]


def test_functions_see_the_record_with_its_decoded_key_and_value():
    seen: list[Record[str, Any]] = []

    def partition(record: Record[str, Any]) -> int:
        seen.append(record)
        return 0

    driver = driver_of(partition=partition)
    driver.send("in", {"n": 1}, key="a", timestamp=5, headers=[("h", b"")])
    assert seen == [Record("a", {"n": 1}, 5, [("h", b"")], "in", partition_for(b"a", 4), 0)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"partition": lambda record: record.value},
            "topic out has no partition 4: it has 4, counted from 0",
        ),
        ({"partition": lambda record: 1 // 0 if record.value == 4 else 0}, "division"),
        (
            {"partition": lambda record: -1 if record.value == 4 else 0},
            "a partition is a whole number from 0",
        ),
        ({"partition": lambda record: None if record.value == 4 else 0}, "a partition is a whole number"),
        ({"headers": lambda record: 5 if record.value == 4 else None}, "headers must be a list of pairs"),
        ({"headers": lambda record: [("a", "b")] if record.value == 4 else []}, "a header is a pair"),
        ({"timestamp": lambda record: 3 - record.value}, "an event time is a whole number"),
    ],
)
def test_a_choice_that_cannot_be_written_fails_at_its_record_with_the_policy(options, why):
    records = [Record("k", value, 3) for value in (0, 4, 1)]
    driver = driver_of(on_error=dead_letter, **options)
    driver.send_all("in", records)
    assert driver.values("out") == [0, 1]
    (letter,) = driver.dead_letters()
    assert letter.value == b"4"
    assert any(why.encode() in (value or b"") for _, value in letter.headers or [])
    driver = driver_of(on_error=skip, **options)
    driver.send_all("in", records)
    assert driver.values("out") == [0, 1]
    assert driver.skipped() == {"out": 1}
    with pytest.raises(ProcessingError, match=rf"(?s)step 'out'.*offset 1.*{why}"):
        driver_of(on_error=fail, **options).send_all("in", records)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"partition": -1}, r"partition=: a partition is a whole number from 0, got -1"),
        ({"partition": True}, r"partition=: a partition is a whole number from 0, got True"),
        ({"partition": "1"}, r"partition=: a partition is a whole number from 0, got '1'"),
        ({"headers": {"a": b""}}, r"headers=: headers must be a list of pairs"),
        ({"headers": [("a", "b")]}, r"headers=: a header is a pair"),
        ({"timestamp": 5}, r"timestamp= takes a function of the record, got 5"),
    ],
)
def test_a_choice_that_can_be_none_is_refused_as_the_program_is_described(options, why):
    with pytest.raises(TopologyError, match=f"step 'out': {why}"):
        driver_of(**options)


def test_an_async_function_is_refused():
    async def later(record: Record[str, Any]) -> int:
        return 0

    choices: list[dict[str, Any]] = [{"partition": later}, {"headers": later}, {"timestamp": later}]
    for options in choices:
        with pytest.raises(TopologyError, match="async"):
            driver_of(**options)


def test_a_topic_that_is_chosen_and_a_table_take_the_same():
    app = App("sinks")
    app.stream("in", key=Text(), value=Json(int)).to(
        lambda value: f"out-{value % 2}", partition=lambda record: record.value % 3, headers=[("h", b"")]
    )
    app.table("table", key=Text(), value=Json(int)).to(
        "changes", partition=2, headers=lambda record: [("key", record.key.encode())]
    )
    driver = TopologyDriver(app, partitions=3)
    driver.send_all("in", [Record("k", value, 0) for value in range(5)])
    assert [record.partition for record in driver.read("out-0")] == [0, 2, 1]
    assert [record.partition for record in driver.read("out-1")] == [1, 0]
    driver.send("table", 1, key="a")
    driver.send("table", None, key="a")
    changes = driver.read("changes")
    assert [(record.value, record.partition, record.headers) for record in changes] == [
        (1, 2, [("key", b"a")]),
        (None, 2, [("key", b"a")]),
    ]


def test_what_the_app_reads_again_comes_from_the_partition_that_was_chosen():
    app = App("sinks")
    app.stream("in", key=Text(), value=Json(int)).to("between", partition=lambda record: record.value)
    seen: list[tuple[int, int]] = []
    app.stream("between", key=Text(), value=Json(int)).peek_records(
        lambda record: seen.append((record.value, record.partition))
    )
    driver = TopologyDriver(app, partitions=3)
    driver.send_all("in", [Record("k", value, 0) for value in (2, 0, 1)])
    assert sorted(seen) == [(0, 0), (1, 1), (2, 2)]


def spoilt(content: Any, good: bool) -> Any:
    """Itself, or what no serde writes."""
    return content if good else object()


@given(
    st.lists(st.tuples(st.integers(-1, 5), st.booleans(), st.booleans()), min_size=1, max_size=12), st.data()
)
def test_each_row_has_its_own_partition_whatever_fails_beside_it(rows, data):
    """Partitions chosen, keys and values that cannot be written among them, and batches cut anywhere."""
    app = App("sinks", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json(list))
    stream.map_records(
        lambda record: record.with_(
            key=spoilt(record.key, record.value[1]),
            value=spoilt(record.value, record.value[2]),
            headers=[("partition", b"%d" % record.value[0])],
        )
    ).to(
        "out",
        key=Text(),
        value=Json(),
        partition=lambda record: int((record.headers or [])[0][1] or b""),
        on_error=dead_letter,
    )
    driver = TopologyDriver(app, partitions=4)
    at = 0
    while at < len(rows):
        size = data.draw(st.integers(1, len(rows) - at))
        driver.send_all("in", [Record("k", list(row), 0) for row in rows[at : at + size]])
        at += size
    good = [list(row) for row in rows if 0 <= row[0] < 4 and row[1] and row[2]]
    assert [(record.value, record.partition) for record in driver.read("out")] == [
        (row, row[0]) for row in good
    ]
    assert len(driver.dead_letters()) == len(rows) - len(good)
