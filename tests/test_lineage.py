"""Lineage: the headers that name the input records of results, through every kind of step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from streams import (
    App,
    Batch,
    Context,
    Hopping,
    Json,
    Record,
    Session,
    Sliding,
    Text,
    Tumbling,
    collect,
    custom,
    maximum,
    seconds,
    total,
)
from streams.lineage import HEADER, Lineage, NamedLineage, combined, header_text, read_text, several_text
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.records import Headers

NUMBERS = Json(dict[str, int])


def lineages(driver: TopologyDriver, topic: str) -> list[str]:
    """The lineage of each record of a topic, without the app's name, which must be there; each has one."""
    found: list[str] = []
    for record in driver.read(topic):
        values = [value for name, value in record.headers or () if name == HEADER]
        assert len(values) == 1, record
        application, _, text = (values[0] or b"").decode().partition(" ")
        assert application == "app"
        found.append(text)
    return found


def numbers(app: App, topic: str = "in") -> Any:
    return app.stream(topic, key=Text(), value=NUMBERS)


def fed(app: App, *rows: tuple[str, int, int], topic: str = "in") -> TopologyDriver:
    """A driver that was sent records with these keys, numbers and times in seconds, one at a time."""
    driver = TopologyDriver(app)
    send(driver, *rows, topic=topic)
    return driver


def send(driver: TopologyDriver, *rows: tuple[str, int, int], topic: str = "in") -> None:
    for key, number, time in rows:
        driver.send(topic, {"n": number}, key=key, timestamp=time * 1000)


ROWS = [("a", 1, 1), ("b", 2, 2), ("a", 3, 3), ("a", 4, 12), ("b", 5, 30)]


def test_results_of_one_record_name_it():
    app = App("app", lineage=True)
    stream = numbers(app)
    stream.map(lambda v: v).to("mapped")
    stream.filter(lambda v: v["n"] % 2 == 0).to("filtered")
    stream.flat_map(lambda v: [v] * v["n"]).to("split")
    routes = stream.branch({"few": lambda v: v["n"] < 3}, otherwise="many")
    routes["few"].to("small")
    routes["few"].merge(routes["many"]).to("merged")
    stream.key_by(lambda v: str(v["n"])).repartition(store="again").to("repartitioned")
    stream.to(lambda v: f"chosen-{v['n'] % 2}", value=NUMBERS)
    stream.map_records(lambda record: record.with_(headers=[("own", b"1")])).to("headers")
    driver = fed(app, *ROWS)
    everything = [f"in:0:{offset}" for offset in range(5)]
    assert lineages(driver, "mapped") == everything
    assert lineages(driver, "filtered") == ["in:0:1", "in:0:3"]
    assert lineages(driver, "split") == [f"in:0:{at}" for at, row in enumerate(ROWS) for _ in range(row[1])]
    assert lineages(driver, "small") == everything[:2]
    assert lineages(driver, "merged") == everything
    assert lineages(driver, "repartitioned") == everything
    assert lineages(driver, "chosen-0") == ["in:0:1", "in:0:3"]
    assert [record.headers for record in driver.read("headers")] == [
        [("own", b"1"), (HEADER, f"app in:0:{offset}".encode())] for offset in range(5)
    ]


def test_records_of_a_repartition_topic_have_no_header_for_one_input_record():
    app = App("app", lineage=True)
    numbers(app).key_by(lambda v: str(v["n"])).repartition(store="again").to("out")
    driver = fed(app, *ROWS)
    assert [record.headers for record in driver.read("app-again-repartition")] == [None] * 5


def test_other_headers_pass_through_a_repartition_topic_and_those_of_another_app_do_not():
    app = App("app", lineage=True)
    numbers(app).key_by(lambda v: str(v["n"])).repartition(store="again").to("out")
    driver = TopologyDriver(app)
    foreign = (HEADER, b"other x:0:1")
    rows: list[Headers | None] = [[foreign, ("own", b"1")], [foreign], None]
    for at, headers in enumerate(rows):
        driver.send_all("in", [Record("a", {"n": at}, at, headers), Record("a", {"n": at}, at)])
    assert [record.headers for record in driver.read("app-again-repartition")] == [
        [("own", b"1")],
        *[None] * 5,
    ]
    assert [record.headers for record in driver.read("out")] == [
        [("own", b"1"), (HEADER, b"app in:0:0")],
        *([(HEADER, f"app in:0:{offset}".encode())] for offset in range(1, 6)),
    ]


def test_without_the_setting_nothing_has_a_header():
    app = App("app")
    stream = numbers(app)
    stream.to("copy")
    stream.group_by_key().count("counts").to("counts")
    stream.group_by_key().window(Tumbling(seconds(10))).count("w").final().to("final")
    driver = fed(app, *ROWS)
    assert all(record.headers is None for topic in driver.topics for record in driver.read(topic))


def test_a_header_of_another_app_is_replaced():
    app = App("app", lineage=True)
    numbers(app).to("out")
    driver = TopologyDriver(app)
    driver.send("in", {"n": 1}, key="a", headers=[(HEADER, b"other x:0:1"), ("own", None)])
    assert [record.headers for record in driver.read("out")] == [[("own", None), (HEADER, b"app in:0:0")]]


A_ALL = "in:0:0@1000 in:0:3@12000 3"
AGGREGATES: dict[str, Callable[[Any], Any]] = {
    "count": lambda g: g.count("s"),
    "aggregate": lambda g: g.aggregate("s", total("n")),
    "ordered": lambda g: g.aggregate("s", collect()),
    "combined": lambda g: g.aggregate("s", sum=total("n"), values=collect("n"), top=maximum("n")),
    "user": lambda g: g.aggregate("s", custom(list, lambda known, v: [*known, v["n"]], name="kept")),
    "reduce": lambda g: g.reduce("s", lambda one, other: {"n": one["n"] + other["n"]}),
}


@pytest.mark.parametrize("kind", AGGREGATES)
def test_aggregates_name_first_last_and_number(kind):
    def program(*, lineage: bool) -> App:
        app = App("app", lineage=lineage)
        AGGREGATES[kind](numbers(app).group_by_key()).to("out", value=Json())
        return app

    driver, plain = fed(program(lineage=True), *ROWS), fed(program(lineage=False), *ROWS)
    assert driver.store("s") == plain.store("s")
    assert lineages(driver, "out") == [
        "in:0:0",
        "in:0:1",
        "in:0:0@1000 in:0:2@3000 2",
        A_ALL,
        "in:0:1@2000 in:0:4@30000 2",
    ]
    assert [(r.key, r.value) for r in plain.read("out")]
    # After a restore, results are those without one.
    driver.restart()
    send(driver, ("a", 6, 31))
    assert lineages(driver, "out") == ["in:0:0@1000 in:0:5@31000 4"]


def test_first_and_last_are_in_the_order_of_event_times_and_not_of_arrival():
    app = App("app", lineage=True)
    numbers(app).group_by_key().count("s").to("out")
    driver = fed(app, ("a", 1, 20), ("a", 1, 10), ("a", 1, 15))
    assert lineages(driver, "out")[-1] == "in:0:1@10000 in:0:0@20000 3"


def test_windows_of_every_kind():
    app = App("app", lineage=True)
    grouped = numbers(app).group_by_key()
    tumbling = grouped.window(Tumbling(seconds(10))).count("tumbling")
    tumbling.updates().to("updates")
    tumbling.final().to("tumbling")
    grouped.window(Hopping(size=seconds(10), advance=seconds(5))).count("hopping").final().to("hopping")
    grouped.window(Session(gap=seconds(5))).aggregate("sessions", total("n")).final().to("sessions")
    grouped.window(Sliding(difference=seconds(5))).count("sliding").final().to("sliding")
    driver = fed(app, *ROWS, ("z", 1, 100))
    both = "in:0:0@1000 in:0:2@3000 2"
    assert lineages(driver, "updates") == ["in:0:0", "in:0:1", both, "in:0:3", "in:0:4", "in:0:5"]
    assert sorted(lineages(driver, "tumbling")) == sorted([both, "in:0:1", "in:0:3", "in:0:4"])
    assert sorted(lineages(driver, "hopping")) == sorted(
        [both, "in:0:1", "in:0:3", "in:0:3", "in:0:4", "in:0:4"]
    )
    assert sorted(lineages(driver, "sessions")) == sorted([both, "in:0:1", "in:0:3", "in:0:4"])
    assert both in lineages(driver, "sliding")


def test_sessions_that_merge_have_the_records_of_both():
    app = App("app", lineage=True)
    sessions = numbers(app).group_by_key().window(Session(gap=seconds(5)), grace=seconds(60)).count("s")
    sessions.updates(tombstones=True).to("updates", value=Json())
    sessions.final().to("final")
    driver = fed(app, ("a", 1, 10), ("a", 1, 18), ("a", 1, 14))
    assert lineages(driver, "updates")[-1] == "in:0:0@10000 in:0:1@18000 3"
    driver.restart()
    send(driver, ("a", 1, 200))
    assert lineages(driver, "final") == ["in:0:0@10000 in:0:1@18000 3"]


def test_results_of_results_have_the_input_records_of_all():
    app = App("app", lineage=True)
    windows = numbers(app).group_by_key().window(Tumbling(seconds(10))).count("w").final()
    everything = windows.map(lambda window: window.value).group_by(
        lambda _: "all", store="all", value=Json(int)
    )
    everything.aggregate("sum", total()).to("out")
    driver = fed(app, *ROWS)
    # Final results of the first windows, then of the second; the count of a closed window is exact.
    assert lineages(driver, "out")[-1] == "in:0:0@1000 in:0:3@12000 4"
    assert {record.headers is not None for record in driver.read("app-all-repartition")} == {True}


def test_a_tables_groups_name_the_records_that_changed_them():
    app = App("app", lineage=True)
    table = app.table("in", key=Text(), value=NUMBERS, store="t")
    table.group_by(lambda v: str(v["n"] % 2), store="g", value=NUMBERS).count("s").to("out", value=Json())
    table.to("table", value=NUMBERS)
    driver = fed(app, ("a", 1, 1), ("b", 3, 2), ("a", 2, 3))
    assert lineages(driver, "table") == ["in:0:0", "in:0:1", "in:0:2"]
    odd, even = "in:0:0@1000 in:0:2@3000 3", "in:0:2"
    assert sorted(lineages(driver, "out")[-2:]) == sorted([odd, even])


@pytest.mark.parametrize("restarts", [False, True])
def test_pairs_have_the_records_of_both_sides(restarts):
    app = App("app", lineage=True)
    left, right = numbers(app, "left"), numbers(app, "right")
    left.outer_join(right, lambda one, other: {"l": one, "r": other}, within=seconds(5), store="pairs").map(
        lambda v: v
    ).map_records(lambda record: record).to("out", value=Json())
    driver = fed(app, ("a", 1, 10), topic="left")
    if restarts:
        driver.restart()
    send(driver, ("a", 2, 12), topic="right")
    assert lineages(driver, "out") == ["left:0:0@10000 right:0:0@12000 2"]
    send(driver, ("b", 2, 13), topic="right")
    if restarts:
        driver.restart()
    send(driver, ("c", 2, 100), topic="left")
    send(driver, ("c", 2, 100), topic="right")
    assert lineages(driver, "out")[0] == "right:0:1"


def test_a_join_with_a_table_names_the_streams_record():
    app = App("app", lineage=True)
    table = app.table("table", key=Text(), value=NUMBERS, store="t")
    numbers(app).join(table, lambda one, other: one | {"t": other["n"]}).to("out", value=Json())
    driver = fed(app, ("a", 1, 1), topic="table")
    send(driver, ("a", 2, 2))
    assert lineages(driver, "out") == ["in:0:0"]


def test_async_functions_and_joins_of_tables_name_the_record_that_they_process():
    async def slowly(value: dict[str, int]) -> dict[str, int]:
        return value

    app = App("app", lineage=True)
    numbers(app).map_async(slowly).to("async")
    left = app.table("left", key=Text(), value=NUMBERS, store="l")
    right = app.table("right", key=Text(), value=NUMBERS, store="r")
    left.join(right, lambda one, other: [one, other]).to("tables", value=Json())
    left.join_foreign_key(
        right,
        lambda value: str(value["n"]),
        lambda one, other: {"one": one["n"], "other": other["n"]},
        store="fk",
    ).to("foreign", value=Json())
    driver = fed(app, *ROWS)
    assert lineages(driver, "async") == [f"in:0:{offset}" for offset in range(5)]
    send(driver, ("7", 7, 1), topic="left")
    send(driver, ("7", 8, 2), topic="right")
    assert lineages(driver, "tables") == ["right:0:0"]
    assert lineages(driver, "foreign") == ["right:0:0"]
    send(driver, ("8", 7, 3), topic="left")
    assert lineages(driver, "foreign") == ["left:0:1"]


class Forward:
    def process(self, record: Record[str, Any], context: Context) -> None:
        context.forward(record)


class ForwardBatch:
    def process_batch(self, batch: Batch[str, Any], context: Context) -> None:
        context.forward(batch)


@pytest.mark.parametrize("processor", [Forward, ForwardBatch])
def test_each_pair_of_a_record_with_several_keeps_its_own_lineage_in_steps_downstream(processor):
    app = App("app", lineage=True)
    pairs = numbers(app, "left").join(
        numbers(app, "right"), lambda one, other: [one["n"], other["n"]], within=seconds(5), store="pairs"
    )
    pairs.flat_map_records(lambda record: [record, record]).to("split", value=Json())
    pairs.map_records(lambda record: record).to("mapped", value=Json())
    pairs.process(processor).to("processed", key=Text(), value=Json())
    driver = fed(app, ("a", 1, 10), ("a", 2, 11), ("a", 3, 12), topic="right")
    send(driver, ("a", 9, 13), topic="left")
    expected = [f"right:0:{at}@{10 + at}000 left:0:0@13000 2" for at in range(3)]
    assert lineages(driver, "mapped") == expected
    assert lineages(driver, "processed") == expected
    assert lineages(driver, "split") == [text for text in expected for _ in range(2)]


def test_a_grouped_result_of_a_join_has_the_records_of_both_sides():
    app = App("app", lineage=True)
    pairs = numbers(app, "left").join(
        numbers(app, "right"), lambda one, other: one["n"] + other["n"], within=seconds(5), store="pairs"
    )
    pairs.group_by(lambda _: "all", store="all", value=Json(int)).aggregate("sum", total()).to(
        "out", value=Json()
    )
    driver = fed(app, ("a", 1, 10), ("b", 1, 11), topic="left")
    send(driver, ("a", 2, 12), ("b", 2, 13), topic="right")
    assert lineages(driver, "out") == [
        "left:0:0@10000 right:0:0@12000 2",
        "left:0:0@10000 right:0:1@13000 4",
    ]


class Keep:
    """Forwards each record, and what it kept of the one before, on a timer."""

    def open(self, context: Context) -> None:
        self.context = context
        self.kept: list[Record[str, Any]] = []
        context.schedule(seconds(10), self.tick, on="stream_time")

    def process(self, record: Record[str, Any], context: Context) -> None:
        self.kept.append(record)
        context.forward(record)

    def tick(self, now: int) -> None:
        for record in self.kept[:1]:
            self.context.forward(record.with_(value={"kept": record.value["n"]}))
        self.context.forward(Record("timer", {"now": now}, now))


def test_processors_name_the_record_that_they_forward_and_timers_none():
    app = App("app", lineage=True)
    numbers(app).process(Keep).to("out", key=Text(), value=Json())
    driver = fed(app, ("a", 1, 1), ("a", 2, 5), ("a", 3, 11))
    texts = {str(record.value): dict(record.headers or ())[HEADER] for record in driver.read("out")}
    assert texts["{'n': 2}"] == b"app in:0:1"
    assert texts["{'kept': 1}"] == b"app in:0:0"
    assert texts["{'now': 11000}"] == b"app - - 0+"


def test_the_setting_may_be_switched_at_any_start():
    def program(*, lineage: bool) -> App:
        app = App("app", lineage=lineage)
        stream = numbers(app)
        stream.group_by_key().count("counts").to("counts")
        stream.group_by_key().window(Session(gap=seconds(50))).aggregate("s", collect("n")).updates().to("s")
        stream.join(
            numbers(app, "right"), lambda one, other: [one, other], within=seconds(50), store="pairs"
        ).to("pairs", value=Json())
        return app

    driver = fed(program(lineage=False), ("a", 1, 1), ("b", 1, 1))
    driver.restart(program(lineage=True))
    driver.read("counts")
    driver.read("s")
    send(driver, ("a", 2, 2), ("c", 3, 3))
    one = "in:0:2@2000 in:0:2@2000 1+"
    assert lineages(driver, "counts") == [one, "in:0:3"]
    assert lineages(driver, "s") == [one, "in:0:3"]
    send(driver, ("a", 7, 4), ("c", 7, 4), topic="right")
    assert lineages(driver, "pairs") == [
        "right:0:0@4000 right:0:0@4000 1+",
        "in:0:2@2000 right:0:0@4000 2",
        "in:0:3@3000 right:0:1@4000 2",
    ]
    driver.restart(program(lineage=False))
    send(driver, ("a", 4, 5), ("b", 4, 5))
    assert driver.store("counts") == {"a": (3, 5000), "b": (2, 5000), "c": (1, 3000)}
    assert [(r.value, r.headers) for r in driver.read("counts")] == [(3, None), (2, None)]
    assert [r.value.value for r in driver.read("s")] == [[1, 2, 4], [1, 4]]
    assert [r.headers for r in driver.read("pairs")] == [None]
    # What was processed meanwhile is not known, and the number does not claim to be complete.
    driver.restart(program(lineage=True))
    send(driver, ("a", 5, 6), ("c", 5, 6))
    assert lineages(driver, "counts") == ["in:0:6@6000 in:0:6@6000 1+", "in:0:3@3000 in:0:7@6000 2"]


def test_a_dead_letter_of_a_result_names_its_records():
    def fails(_: Any) -> Any:
        raise ValueError("no")

    app = App("app", lineage=True)
    numbers(app).group_by_key().count("s").to_stream().map(fails).to("out")
    driver = TopologyDriver(app, check_dead_letters=False)
    send(driver, ("a", 1, 1), ("a", 1, 2))
    one, two = (dict(record.headers or ()) for record in driver.dead_letters())
    assert "__streams.errors.lineage" not in one
    assert two["__streams.errors.lineage"] == b"app in:0:0@1000 in:0:1@2000 2"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 40)), max_size=30),
    st.integers(1, 30),
    st.booleans(),
)
def test_first_last_and_number_are_those_of_a_group_s_records_in_any_order(rows, size, several):
    app = App("app", lineage=True)
    stream = numbers(app)
    # Rows of one input record have equal places, and are counted each.
    grouped = (stream.flat_map(lambda v: [v, v]) if several else stream).group_by_key()
    window = grouped.window(Tumbling(seconds(10)), grace=seconds(100))
    window.count("counts").updates().to("counts")
    window.aggregate("sums", total("n")).updates().to("sums")
    window.aggregate("lists", collect("n")).updates().to("lists")
    grouped.count("keys").to("keys")
    driver = TopologyDriver(app)
    records = [Record(key, {"n": number}, time * 1000) for key, number, time in rows]
    for at in range(0, len(records), size):
        driver.send_all("in", records[at : at + size])
        for topic in ("counts", "sums", "lists", "keys"):
            for record in driver.read(topic):
                read = read_text(dict(record.headers or ())[HEADER])
                assert read is not None
                start, end = (0, 10**9) if topic == "keys" else (record.value.start, record.value.end)
                own = [
                    (sent.timestamp, "in", 0, offset)
                    for offset, sent in enumerate(records[: at + size])
                    if sent.key == record.key and start <= sent.timestamp < end
                ]
                found = read.lineage
                assert found.first is not None
                assert found.last is not None
                assert (found.first[1:], found.last[1:]) == (min(own)[1:], max(own)[1:])
                assert found.records == len(own) * (2 if several else 1)
                assert found.complete


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 60)), max_size=30),
    st.integers(1, 5),
)
def test_counts_are_those_of_the_results_however_input_is_divided(rows, size):
    app = App("app", lineage=True)
    grouped = numbers(app).group_by_key()
    grouped.window(Tumbling(seconds(10)), grace=seconds(100)).count("w").updates().to("w")
    grouped.window(Session(gap=seconds(4)), grace=seconds(100)).count("s").updates().to("s")
    grouped.window(Sliding(difference=seconds(4)), grace=seconds(100)).count("d").updates().to("d")
    driver = TopologyDriver(app)
    records = [Record(key, {"n": number}, time * 1000) for key, number, time in rows]
    for at in range(0, len(records), size):
        driver.send_all("in", records[at : at + size])
        if at % 2:
            driver.restart()
    for topic in ("w", "s", "d"):
        for record in driver.read(topic):
            read = read_text(dict(record.headers or ())[HEADER])
            assert read is not None
            first, last = read.lineage.first, read.lineage.last
            assert read.lineage.complete
            assert read.lineage.records == record.value.value
            assert first is not None
            assert last is not None
            ends = [records[place[3]] for place in (first, last)]
            assert {end.key for end in ends} == {record.key}
            own = [
                end.timestamp
                for end in records[: max(first[3], last[3]) + size]
                if end.key == record.key and record.value.start <= end.timestamp <= record.value.end
            ]
            assert ends[0].timestamp >= min(own)
            assert ends[0].timestamp <= ends[1].timestamp


PLACES = st.tuples(
    st.integers(-1, 1 << 62), st.text(min_size=1).filter(str.isprintable), st.integers(0, 99), st.integers(0)
)


@given(PLACES, PLACES, st.integers(2), st.booleans())
def test_headers_are_read_as_they_were_written(first, last, records, complete):
    lineage = Lineage(first, last, records, complete)
    assert read_text(several_text("app", lineage)) == NamedLineage("app", lineage)
    single = (-1, *first[1:])
    assert read_text(header_text("app", first)) == NamedLineage("app", Lineage(single, single, 1))
    assert combined([first, last]).records == 2


@pytest.mark.parametrize(
    "text",
    [None, b"", b"app", b"app x", b"app in:0", b"app in:0:x", b"app in:0:1 -", b"app - in:0:1@1 3", b"\xff"],
)
def test_what_is_no_lineage_is_not_read(text):
    assert read_text(text) is None
