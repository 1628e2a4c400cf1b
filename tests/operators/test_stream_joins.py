"""Joins of two streams against their definition: disorder, duplicates, batches, failing slices, restarts."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from streams import App, JoinWindow, Json, Record, Text, TopologyError, fail, minutes
from streams.durations import milliseconds
from streams.errors import ProcessingError
from streams.partitioning import partition_for
from streams.testing import TopologyDriver
from tests.support.joined import Result, Window, arrivals, check_definition, promised

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.dsl.stream import JoinedStream


def pair(left: Any, right: Any) -> list[Any]:
    return [left, right]


class Sent(NamedTuple):
    """A record on its way to the topic of its side."""

    side: str
    key: str
    time: int


class Step(NamedTuple):
    """Records sent together. Before that, the slice may fail once, or all tasks may end and begin again."""

    records: Sequence[tuple[int, Sent]]
    fails: bool = False
    restarts: bool = False


class Results(NamedTuple):
    """What came out, in order: pairs, records alone, and the numbers of late records."""

    pairs: list[tuple[Any, Any, int]]
    alone: list[tuple[Any, Any, int]]
    late: list[int]

    def counted(self) -> Counter[Any]:
        return Counter((key, tuple(both), time) for key, both, time in [*self.pairs, *self.alone])


class Bench:
    """An app with one join of the topics ``left`` and ``right``; values are the records' numbers."""

    def __init__(self, how: str, window: Window, partitions: int = 1) -> None:
        app = App("bench")
        left = app.stream("left", key=Text(), value=Json(), tombstones=True)
        right = app.stream("right", key=Text(), value=Json(), tombstones=True)
        join: Any = {"inner": left.join, "left": left.left_join, "outer": left.outer_join}[how]
        joined: JoinedStream[str, Any] = join(
            right,
            pair,
            window=JoinWindow(before=milliseconds(window.before), after=milliseconds(window.after)),
            grace=milliseconds(window.grace),
            store="ab",
        )
        joined.to("out")
        joined.late().to("late")
        # They come after the join: what a failing slice has done there is to be undone.
        left.peek(self._explode, on_error=fail)
        right.peek(self._explode, on_error=fail)
        self.failing = False
        self.driver = TopologyDriver(app, partitions=partitions)

    def _explode(self, _value: Any) -> None:
        if self.failing:
            raise RuntimeError("the slice fails")

    def run(self, steps: Iterable[Step]) -> Results:
        found = Results([], [], [])
        for step in steps:
            if step.restarts:
                self.driver.restart()
            topic = step.records[0][1].side
            records = [Record(sent.key, number, sent.time) for number, sent in step.records]
            if step.fails:
                self.failing = True
                with pytest.raises(ProcessingError, match="the slice fails"):
                    self.driver.send_all(topic, records)
                self.failing = False
            self.driver.send_all(topic, records)
            for record in self.driver.read("out"):
                results = found.alone if None in record.value else found.pairs
                results.append((record.key, record.value, record.timestamp))
            found.late.extend(self.driver.values("late"))
        return found


@st.composite
def inputs(draw: st.DrawFn) -> list[Sent]:
    """Two interleaved streams that go ahead by and large, with disorder of 1 ms to far too late."""
    moves = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["left", "right"]),
                st.sampled_from("abc"[: draw(st.integers(1, 3))]),
                st.one_of(st.integers(0, 2), st.integers(0, 20)),
                st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 40)),
                st.integers(1, 2),
            ),
            min_size=1,
            max_size=30,
        )
    )
    ahead, found = 100, []
    for side, key, further, behind, times in moves:
        ahead += further
        found += [Sent(side, key, max(0, ahead - behind))] * times
    return found


windows = st.builds(
    Window,
    st.one_of(st.just(0), st.integers(0, 8)),
    st.one_of(st.just(0), st.integers(0, 8)),
    st.one_of(st.just(0), st.integers(0, 10)),
)
hows = st.sampled_from(["inner", "left", "outer"])


@st.composite
def steps_of(draw: st.DrawFn, found: list[Sent]) -> list[Step]:
    """The records in that order, cut into batches of one topic each."""
    steps: list[Step] = []
    for number, sent in enumerate(found):
        on = draw(st.integers(0, 2)) and steps and steps[-1].records[0][1].side == sent.side
        if on:
            steps[-1] = steps[-1]._replace(records=[*steps[-1].records, (number, sent)])
        else:
            fails, restarts = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
            steps.append(Step([(number, sent)], fails == 0, restarts == 0))
    return steps


END = 10_000


def ending(records: Sequence[Sent], partitions: int) -> list[Step]:
    """Records of a key of their own that let everything leave, in each partition."""
    keys = [f"end-{number}" for number in range(100)]
    by_partition = {partition_for(key.encode(), partitions): key for key in keys}
    return [
        Step([(len(records), Sent("right", key, END)), (len(records), Sent("right", key, 2 * END))])
        for key in by_partition.values()
    ]


@given(st.data(), inputs(), hows, windows, st.integers(1, 2))
@settings(max_examples=150)
def test_a_join_is_that_of_the_definition(data, found, how, window, partitions):
    bench = Bench(how, window, partitions)
    results = bench.run([*data.draw(steps_of(found)), *ending(found, partitions)])
    numbers = [number for number in results.late if number < len(found)]
    counted = Counter(
        {result: count for result, count in results.counted().items() if not result[0].startswith("end")}
    )
    expected: Counter[Result] = Counter()
    late: set[int] = set()
    for partition in range(partitions):
        own = [
            # A tombstone in place of what goes to another partition.
            (
                *sent[:2],
                number if partition_for(sent.key.encode(), partitions) == partition else None,
                sent.time,
            )
            for number, sent in enumerate(found)
        ]
        came = arrivals(record for record in own if record[2] is not None)
        came = [each._replace(number=each.value) for each in came]
        mine = {each.number for each in came}
        check_definition(
            came,
            how,
            window,
            Counter({result: n for result, n in counted.items() if mine & set(result[1])}),
            Counter(number for number in numbers if number in mine),
        )
        promise = promised(came, how, window)
        expected += promise.results
        late |= promise.late
    assert counted == expected
    assert sorted(numbers) == sorted(late)
    # Nothing is kept of what has left.
    for store in ["ab-left", "ab-right", *([] if how == "inner" else ["ab-unmatched"])]:
        assert all(start > END for start, _ in bench.driver.store(store))


@given(st.data(), inputs(), hows, windows)
def test_results_and_their_order_do_not_depend_on_batches_failures_and_restarts(data, found, how, window):
    one_by_one = [Step([(number, sent)]) for number, sent in enumerate(found)]
    last = ending(found, 1)
    expected = Bench(how, window).run([*one_by_one, *last])
    assert Bench(how, window).run([*data.draw(steps_of(found)), *last]) == expected
    assert [time for *_, time in expected.alone] == sorted(time for *_, time in expected.alone)


@given(st.data(), inputs(), windows)
def test_pairs_are_the_same_whether_records_leave_alone_or_not(data, found, window):
    steps = data.draw(steps_of(found))
    inner, left, outer = (Bench(how, window).run(steps) for how in ("inner", "left", "outer"))
    assert inner.pairs == left.pairs == outer.pairs
    assert inner.late == left.late == outer.late


@given(inputs(), hows, windows)
def test_late_records_are_counted(found, how, window):
    bench = Bench(how, window)
    late = bench.run([Step([(number, sent)]) for number, sent in enumerate(found)]).late
    counts = Counter(f"ab-{found[number].side}" for number in late)
    assert bench.driver.late() == counts


def test_an_order_joins_its_payment_though_another_order_came_first():
    app = App("shop")
    payments = app.stream("payments", key=Text(), value=Json())
    orders = app.stream("orders", key=Text(), value=Json())
    payments.join(orders, pair, window=JoinWindow(before=milliseconds(0), after=minutes(5)), store="ab").to(
        "out"
    )
    driver = TopologyDriver(app)
    driver.send("payments", "payment", key="k", timestamp=1000)
    driver.send("orders", "other", key="m", timestamp=1001)
    driver.send("orders", "order", key="k", timestamp=1000)
    assert driver.values("out") == [["payment", "order"]]
    assert driver.late() == {}


def disordered(count: int, apart: int, disorder: int, seed: int) -> list[Sent]:
    """As many pairs a millisecond after another, partners at most ``apart`` ms apart, in disordered order."""
    generator = random.Random(seed)
    records = []
    for number in range(count):
        time = 1_700_000_000_000 + number
        for side in ("left", "right"):
            each = Sent(side, f"key-{number}", time + (side == "right") * generator.randint(0, apart))
            records.append((each.time + generator.uniform(0, disorder), each))
    return [sent for _, sent in sorted(records, key=lambda item: item[0])]


def in_batches(records: list[Sent], seed: int) -> list[Step]:
    generator = random.Random(seed)
    steps: list[Step] = []
    for item in enumerate(records):
        if steps and steps[-1].records[0][1].side == item[1].side and generator.random() < 0.9:
            steps[-1] = Step([*steps[-1].records, item])
        else:
            steps.append(Step([item]))
    return steps


@pytest.mark.parametrize("how", ["inner", "left", "outer"])
@pytest.mark.parametrize(
    ("count", "apart", "disorder", "window"),
    [
        (2_000, 2, 2, Window(0, 300_000)),
        (200, 1, 10, Window(0, 300_000)),
        (200, 1, 10, Window(20, 20)),
        (200, 1, 10, Window(0, 1, 10)),
    ],
)
def test_disorder_of_milliseconds_loses_no_pair(how, count, apart, disorder, window):
    bench = Bench(how, window)
    records = disordered(count, apart, disorder, seed=1)
    results = bench.run(in_batches(records, seed=2))
    assert len(results.pairs) == count
    assert results.alone == []
    assert bench.driver.late() == {}


@pytest.mark.parametrize("window", [Window(0, 1000, 0), Window(1000, 0, 0), Window(300, 200, 50)])
def test_each_unmatched_record_is_forwarded_by_its_own_event_time(window):
    bench = Bench("outer", window)
    lasts = window.before + window.after + window.grace
    bench.driver.send_all("left", [Record(f"left-{time}", 1, time) for time in range(0, 5000, 100)])
    bench.driver.send_all("right", [Record(f"right-{time}", 1, time) for time in range(50, 5000, 100)])
    bench.driver.read("out")

    def left_at(now: int) -> list[tuple[str, int]]:
        bench.driver.send("left", 2, key="clock", timestamp=now)
        return [
            (record.key, record.timestamp) for record in bench.driver.read("out") if record.key != "clock"
        ]

    for time in range(4950 - lasts, 5000, 50):
        assert left_at(time + lasts) == []
        assert left_at(time + lasts + 1) == [(f"{'right' if time % 100 else 'left'}-{time}", time)]


def test_a_partner_joins_at_the_last_moment_and_is_late_after_it():
    window = Window(0, 100, 10)
    for now, joins in ((1110, True), (1111, False)):
        bench = Bench("left", window)
        bench.driver.send("left", 1, key="k", timestamp=1000)
        bench.driver.send("right", 2, key="clock", timestamp=now)
        bench.driver.send("right", 3, key="k", timestamp=1050)
        assert bench.driver.values("out") == ([[1, 3]] if joins else [[1, None]])
        # It is late for its partner, and may still have others.
        assert bench.driver.values("late") == ([] if joins else [3])
        bench.driver.send("left", 4, key="k", timestamp=1020)
        assert bench.driver.values("out") == [[4, 3]]


def test_late_records_of_both_sides_come_as_they_were():
    app = App("shop")
    left = app.stream("left", key=Text(), value=Json())
    right = app.stream("right", key=Text(), value=Text())
    joined = left.join(right, pair, within=milliseconds(10), store="j")
    joined.late().to("late", value=Json())
    assert joined.late() is joined.late()
    joined.to("out")
    driver = TopologyDriver(app)
    driver.send("left", 1, key="clock", timestamp=1000)
    driver.send("left", {"a": 1}, key="k", timestamp=979, headers=[("h", b"x")])
    driver.send("right", "text", key="k", timestamp=979)
    driver.send("right", "text", key="k", timestamp=980)
    late = driver.read("late")
    assert [(record.key, record.value, record.timestamp) for record in late] == [
        ("k", {"a": 1}, 979),
        ("k", "text", 979),
    ]
    assert late[0].headers == [("h", b"x")]
    assert driver.late() == {"j-left": 1, "j-right": 1}


def test_a_partner_is_given_as_its_serde_writes_it_before_and_after_a_restart():
    for restarts in (False, True):
        app = App("shop")
        left = app.stream("left", key=Text(), value=Json()).map(lambda value: (value, "left"))
        right = app.stream("right", key=Text(), value=Json())
        left.join(
            right, lambda one, two: type(one).__name__, within=milliseconds(10), store="j", value=Json()
        ).to("out")
        driver = TopologyDriver(app)
        driver.send("left", 1, key="k", timestamp=0)
        if restarts:
            driver.restart()
        driver.send("right", 2, key="k", timestamp=0)
        assert driver.values("out") == ["list"]


class CountingText(Text):
    """Text that counts what is read from it."""

    def __init__(self) -> None:
        self.read = 0

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[str]:
        self.read += len(payloads)
        return super().deserialize(payloads)


def test_what_waits_costs_nothing_until_it_leaves():
    app, keys = App("shop"), CountingText()
    left = app.stream("left", key=keys, value=Json())
    left.left_join(
        app.stream("right", key=keys, value=Json()), pair, within=milliseconds(10_000), store="j"
    ).to("out")
    driver = TopologyDriver(app)
    driver.send_all("left", [Record(f"k-{number}", number, number) for number in range(1000)])
    driver.send("right", 0, key="clock", timestamp=20_001)
    assert driver.values("out") == [[0, None]]
    keys.read = 0
    for time in range(200):
        driver.send("right", 0, key="clock", timestamp=20_002 + time)
    assert len(driver.values("out")) == 200
    # Read are each record that is sent, each that leaves, and what was written.
    assert keys.read == 3 * 200


def test_a_join_of_streams_is_not_that_with_a_table():
    app = App("shop")
    stream, table = app.stream("s", key=Text(), value=Json()), app.table("t", key=Text(), value=Json())
    with pytest.raises(TopologyError, match="not as an outer join"):
        stream.outer_join(table, pair)  # type: ignore[arg-type]  # what is to be refused
    assert not hasattr(stream.join(table, pair), "late")
