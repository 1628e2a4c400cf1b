"""Every operator and error policy, through the driver: records in, records out."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from streams import App, Bytes, Json, Record, Text, dead_letter, fail, retry, skip
from streams.durations import seconds
from streams.errors import ProcessingError, TopologyError
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams import ErrorPolicy, Stream


def test_map_replaces_values_and_keeps_keys_times_and_headers():
    app = App("test")
    app.stream("in", key=Text(), value=Text()).map(str.upper).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send("in", "a", key="k", timestamp=5, headers=[("h", b"1"), ("h", None)])
    (record,) = driver.read("out")
    assert (record.key, record.value, record.timestamp) == ("k", "A", 5)
    assert record.headers == [("h", b"1"), ("h", None)]


def test_map_takes_the_event_time_from_the_new_value():
    app = App("test")
    app.stream("in", value=Text()).map(int, timestamp=lambda value: value * 10).to("out")
    driver = TopologyDriver(app)
    driver.send("in", "12", timestamp=1)
    assert [record.timestamp for record in driver.read("out")] == [120]


def test_the_source_takes_the_event_time_from_the_value():
    app = App("test")
    app.stream("in", value=Json(int), timestamp=lambda value: value).to("out")
    driver = TopologyDriver(app)
    driver.send("in", 42, timestamp=1)
    assert [record.timestamp for record in driver.read("out")] == [42]


@pytest.mark.parametrize("time", [-1, 1.5, "1", None, True])
def test_an_event_time_that_is_none_is_a_failure_of_its_record_alone(time):
    app = App("test")
    app.stream("in", value=Text()).map(
        str, timestamp=lambda value: time if value == "bad" else 3, on_error=dead_letter
    ).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in ("a", "bad", "b")])
    assert driver.values("out") == ["a", "b"]
    (letter,) = driver.dead_letters()
    assert letter.value == b"bad"


def test_filter_keeps_what_satisfies_the_predicate():
    app = App("test")
    app.stream("in", value=Text()).filter(str.isdigit).to("out")
    assert run_bytes(app, "1", "a", "2") == ["1", "2"]


def run_bytes(app: App, *values: str) -> list[object]:
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in values])
    return driver.values("out")


def test_flat_map_gives_one_record_for_each_value_and_none_for_none():
    app = App("test")
    app.stream("in", key=Text(), value=Text()).flat_map(str.split).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("x", "a b", 1), Record("y", "", 2), Record("z", "c", 3)])
    assert [(r.key, r.value, r.timestamp) for r in driver.read("out")] == [
        ("x", "a", 1),
        ("x", "b", 1),
        ("z", "c", 3),
    ]


def test_a_flat_map_generator_that_raises_midway_loses_only_its_own_record():
    app = App("test")

    def pairs(value: str):
        yield value
        if value == "bad":
            raise ValueError("midway")
        yield value

    app.stream("in", value=Text()).flat_map(pairs, on_error=dead_letter).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in ("a", "bad", "b")])
    assert driver.values("out") == ["a", "a", "b", "b"]
    assert [letter.value for letter in driver.dead_letters()] == [b"bad"]


def test_key_by_replaces_keys():
    app = App("test")
    app.stream("in", value=Text()).key_by(lambda value: value[0]).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(b"old", "apple", 1), Record(b"old", "beet", 1)])
    assert [(record.key, record.value) for record in driver.read("out")] == [("a", "apple"), ("b", "beet")]


def test_map_batch_gets_columns_and_may_select_and_replace_them():
    app = App("test")
    app.stream("in", key=Text(), value=Text()).map_batch(
        lambda batch: batch.select(range(0, len(batch), 2)).with_keys(["even"] * ((len(batch) + 1) // 2))
    ).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("k", value, 1) for value in "abc"])
    assert [(record.key, record.value) for record in driver.read("out")] == [("even", "a"), ("even", "c")]


def test_map_batch_that_fails_is_tried_with_each_record_alone():
    app = App("test")
    app.stream("in", value=Text()).map_batch(
        lambda batch: batch.with_values([1 // int(value) for value in batch.values]), on_error=skip
    ).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in ("1", "0", "1")])
    assert driver.values("out") == [1, 1]
    assert driver.skipped() == {"map_batch": 1}


@pytest.mark.parametrize("otherwise", [None, "rest"])
def test_branch_sends_each_record_to_the_first_branch_that_wants_it(otherwise):
    app = App("test")
    branches = app.stream("in", value=Json(int)).branch(
        {"small": lambda value: value < 10, "even": lambda value: value % 2 == 0}, otherwise=otherwise
    )
    for name, stream in branches.items():
        stream.to(name)
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in (2, 12, 13, 4)])
    assert driver.values("small") == [2, 4]
    assert driver.values("even") == [12]
    assert driver.values("rest") == ([13] if otherwise else [])


def test_merge_joins_streams_and_each_keeps_its_order():
    app = App("test")
    app.stream("in", value=Text()).merge(app.stream("other", value=Text())).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send("in", "a")
    driver.send("other", "b")
    driver.send("in", "c")
    assert driver.values("out") == ["a", "b", "c"]


def test_one_stream_reads_several_topics_and_patterns():
    app = App("test")
    app.stream(["in", re.compile("log-.*")], value=Text()).to("out")
    driver = TopologyDriver(app)
    driver.send("in", "a")
    driver.send("log-eu", "b")
    assert driver.values("out") == ["a", "b"]
    with pytest.raises(TopologyError, match="it matches no source, but must match exactly one"):
        driver.send("my-log-eu", "c")


def test_peek_shows_values_and_may_end_a_stream():
    app = App("test")
    seen: list[str] = []
    app.stream("in", value=Text()).peek(seen.append)
    run_bytes(app, "a", "b")
    assert seen == ["a", "b"]


def test_to_writes_to_the_topic_that_the_value_names():
    app = App("test")
    app.stream("in", value=Text()).to(lambda value: f"out-{value[0]}")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in ("apple", "beet", "ant")])
    assert driver.topics == ["out-a", "out-b"]
    assert driver.values("out-a") == [b"apple", b"ant"]


def test_a_topic_that_is_no_name_is_a_failure_of_its_record():
    app = App("test")
    app.stream("in", value=Text()).to(lambda value: "out" if value == "a" else 7, on_error=dead_letter)  # type: ignore[arg-type,return-value]  # what this test is about
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in ("a", "b")])
    assert driver.values("out") == [b"a"]
    assert len(driver.dead_letters()) == 1


def test_tombstones_and_null_keys_pass_through():
    app = App("test")
    numbers = app.stream("in", key=Text(), value=Json(int), tombstones=True)
    numbers.filter(lambda value: value is None or value > 1).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", None, 1), Record(None, 2, 1), Record("c", 1, 1)])
    assert [(record.key, record.value) for record in driver.read("out")] == [("a", None), (None, 2)]


def test_an_output_that_is_an_input_comes_back():
    app = App("test")
    app.stream("in", value=Text()).map(str.upper).to("middle", value=Text())
    app.stream("middle", value=Text()).map(str.title).to("out", value=Text())
    assert run_bytes(app, "word") == ["Word"]


class TestProcessors:
    def test_a_record_processor_keeps_state_for_its_task_and_forwards_what_it_wants(self):
        class Changes:
            def __init__(self) -> None:
                self.last = None

            def process(self, record, context):
                if record.value != self.last:
                    self.last = record.value
                    context.forward(
                        Record(record.key, record.value * 2, record.timestamp + 1, record.headers)
                    )

        app = App("test")
        app.stream("in", key=Text(), value=Json(int)).process(Changes).to("out")
        driver = TopologyDriver(app)
        driver.send_all("in", [Record("k", value, 1, [("h", b"x")]) for value in (1, 1, 2)])
        assert [(r.key, r.value, r.timestamp, r.headers) for r in driver.read("out")] == [
            ("k", 2, 2, [("h", b"x")]),
            ("k", 4, 2, [("h", b"x")]),
        ]

    def test_what_a_failing_call_forwarded_is_dropped_and_the_others_stay(self):
        class Half:
            def process(self, record, context):
                context.forward(record)
                if record.value == "bad":
                    raise ValueError("after forwarding")

        app = App("test")
        app.stream("in", value=Text()).process(Half, on_error=dead_letter).to("out", value=Text())
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("a", "bad", "b")])
        assert driver.values("out") == ["a", "b"]
        assert [letter.value for letter in driver.dead_letters()] == [b"bad"]

    def test_a_batch_processor_that_fails_is_called_again_with_each_record(self):
        class Sums:
            def process_batch(self, batch, context):
                context.forward(batch.with_values([int(value) for value in batch.values]))

        app = App("test")
        app.stream("in", value=Text()).process(Sums, on_error=skip).to("out")
        assert run_bytes(app, "1", "x", "3") == [1, 3]

    def test_forward_names_the_step_that_gets_it(self):
        class Route:
            def process(self, record, context):
                context.forward(record, to="left" if record.value == "l" else "right")

        app = App("test")
        routed = app.stream("in", value=Text()).process(Route)
        routed.map(str.upper, name="left").to("lefts")
        routed.map(str.upper, name="right").to("rights")
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("l", "r", "l")])
        assert (driver.values("lefts"), driver.values("rights")) == (["L", "L"], ["R"])

    def test_forwarding_to_a_step_that_does_not_follow_is_an_error_that_names_those_that_do(self):
        class Lost:
            def process(self, record, context):
                context.forward(record, to="nowhere")

        app = App("test")
        app.stream("in", value=Text()).process(Lost).to("out", name="sink")
        with pytest.raises(ProcessingError, match=r"forwards to 'nowhere'.*downstream steps: sink"):
            run_bytes(app, "a")

    def test_a_batch_processor_may_forward_single_records_of_its_batch(self):
        class Last:
            def process_batch(self, batch, context):
                *_, last = batch.records()
                context.forward(last)

        app = App("test")
        app.stream("in", value=Text()).process(Last).to("out", value=Text())
        assert run_bytes(app, "a", "b") == ["b"]


class TestPolicies:
    def test_the_error_of_fail_names_the_step_the_line_and_the_record(self):
        app = App("test", on_error=fail)
        app.stream("in", value=Text()).map(int, name="numbers").to("out")
        driver = TopologyDriver(app, partitions=3)
        driver.send("in", "1", key=b"k", partition=2)
        with pytest.raises(ProcessingError) as caught:
            driver.send("in", "one", key=b"k", partition=2)
        for part in (
            "step 'numbers' (int)",
            "in-2 offset 1",
            "key b'k'",
            "value b'one'",
            "ValueError",
            "on_error=",
        ):
            assert part in str(caught.value)

    def test_fail_names_the_line_of_the_users_code(self):
        app = App("test", on_error=fail)

        def work(value: str) -> str:
            raise RuntimeError("no")

        app.stream("in", value=Text()).map(work).to("out")
        with pytest.raises(ProcessingError, match=r"work, .*test_stream.py:\d+.*\(.*test_stream.py:\d+\)"):
            run_bytes(app, "a")

    def test_dead_letters_have_original_bytes_key_headers_and_coordinates(self):
        app = App("test")
        app.stream("in", key=Text(), value=Text()).map(str.upper).map(int, on_error=dead_letter).to("out")
        driver = TopologyDriver(app)
        driver.send("in", "7", key="k")
        driver.send("in", "seven", key="k", timestamp=9, headers=[("trace", b"1")])
        assert driver.values("out") == [7]
        (letter,) = driver.dead_letters()
        assert (letter.key, letter.value, letter.timestamp) == (b"k", b"seven", 9)
        assert dict(letter.headers or ()) == {
            "trace": b"1",
            "__streams.errors.topic": b"in",
            "__streams.errors.partition": b"0",
            "__streams.errors.offset": b"1",
            "__streams.errors.timestamp": b"9",
            "__streams.errors.application": b"test",
            "__streams.errors.step": b"map-int",
            "__streams.errors.exception": b"ValueError",
            "__streams.errors.message": b"invalid literal for int() with base 10: 'SEVEN'",
        }

    def test_what_cannot_be_decoded_becomes_a_dead_letter_by_itself(self):
        class Typed(msgspec.Struct):
            number: int

        app = App("test")
        app.stream("in", key=Text(), value=Json(Typed)).map(lambda value: value.number).to("out")
        driver = TopologyDriver(app)
        driver.send_bytes("in", b'{"number": 1}', key=b"k")
        driver.send_bytes("in", b'{"number": "x"}', key=b"k")
        driver.send_bytes("in", b'{"number": 2}', key=b"\xff")
        driver.send_bytes("in", b"{", key=b"k")
        assert driver.values("out") == [1]
        assert [letter.value for letter in driver.dead_letters()] == [
            b'{"number": "x"}',
            b'{"number": 2}',
            b"{",
        ]

    def test_the_sinks_policy_applies_to_what_cannot_be_serialized(self):
        app = App("test")
        app.stream("in", value=Text()).map(lambda value: value.encode() if value == "a" else value).to(
            "out",
            value=Bytes(),  # type: ignore[arg-type]  # what this test is about
            on_error=dead_letter,
        )
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("a", "b")])
        assert driver.values("out") == [b"a"]
        assert [dict(letter.headers or ())["__streams.errors.step"] for letter in driver.dead_letters()] == [
            b"to-out"
        ]

    def test_skip_counts_and_continues(self):
        app = App("test")
        app.stream("in", value=Text()).map(int, on_error=skip).to("out")
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("1", "x", "2", "y")])
        assert driver.values("out") == [1, 2]
        assert driver.skipped() == {"map-int": 2}

    def test_retry_waits_with_doubling_backoff_and_keeps_the_order(self):
        app = App("test")
        calls: Counter[str] = Counter()

        def work(value: str) -> str:
            calls[value] += 1
            if value == "flaky" and calls[value] < 4:
                raise ConnectionError("not yet")
            return value

        app.stream("in", value=Text()).map(work, on_error=retry(5, backoff=seconds(1.0))).to(
            "out", value=Text()
        )
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("a", "flaky", "b")])
        assert driver.values("out") == ["a", "flaky", "b"]
        assert driver.clock == 1_000 + 2_000 + 4_000
        assert calls == {"a": 1, "flaky": 4, "b": 1}

    def test_the_policy_after_a_retry_applies_when_all_attempts_have_failed(self):
        app = App("test")
        app.stream("in", value=Text()).map(int, on_error=retry(2, backoff=seconds(0.5), then=dead_letter)).to(
            "out"
        )
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("1", "x", "2")])
        assert driver.values("out") == [1, 2]
        assert len(driver.dead_letters()) == 1
        assert driver.clock == 1_500

    def test_every_record_reaches_a_function_exactly_once_when_others_fail(self):
        app = App("test")
        seen: Counter[int] = Counter()

        def work(value: int) -> int:
            seen[value] += 1
            if value % 7 == 0:
                raise ValueError("seventh")
            if value % 11 == 0:
                raise StopIteration
            return value

        app.stream("in", value=Json(int)).map(work, on_error=skip).to("out")
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in range(3_000)])
        assert driver.values("out") == [value for value in range(3_000) if value % 7 and value % 11]
        assert set(seen.values()) == {1}


# --- every place that runs user code, under every policy


class Work:
    """User code that fails on the value ``bad``, the first ``failures`` times, and counts its calls."""

    def __init__(self, failures: float = math.inf, error: type[BaseException] = ValueError) -> None:
        self.calls: Counter[str] = Counter()
        self._failures = failures
        self._error = error

    def __call__(self, value: str) -> str:
        self.calls[value] += 1
        if value == "bad" and self.calls[value] <= self._failures:
            raise self._error("made to fail")
        return value


class Decoding(Text):
    """Text that is read by user code."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def deserialize(self, payloads):
        return (self._work(payload.decode()) for payload in payloads)


class Encoding(Text):
    """Text that is written by user code."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def serialize(self, values):
        return (self._work(value).encode() for value in values)


class Each:
    def __init__(self, work: Work) -> None:
        self._work = work

    def process(self, record, context):
        context.forward(replace(record, value=self._work(record.value)))


class Whole:
    def __init__(self, work: Work) -> None:
        self._work = work

    def process_batch(self, batch, context):
        context.forward(batch.with_values([self._work(value) for value in batch.values]))


# Each makes the rest of an app of a stream of texts: the step that runs the work, then the topic "out".
STEPS: dict[str, Callable[[Stream[str, str], Work, ErrorPolicy], None]] = {
    "map": lambda stream, work, policy: stream.map(work, on_error=policy).to("out", value=Text()),
    "map's timestamp": lambda stream, work, policy: stream.map(
        str, timestamp=lambda value: len(work(value)), on_error=policy
    ).to("out", value=Text()),
    "filter": lambda stream, work, policy: stream.filter(work, on_error=policy).to("out"),
    "flat_map": lambda stream, work, policy: stream.flat_map(
        lambda value: (work(value) for _ in range(1)), on_error=policy
    ).to("out", value=Text()),
    "key_by": lambda stream, work, policy: stream.key_by(work, on_error=policy).to("out"),
    "branch": lambda stream, work, policy: stream.branch({"a": work}, on_error=policy)["a"].to("out"),
    "peek": lambda stream, work, policy: stream.peek(work, on_error=policy).to("out"),
    "process": lambda stream, work, policy: stream.process(lambda: Each(work), on_error=policy).to(
        "out", value=Text()
    ),
    "map_batch": lambda stream, work, policy: stream.map_batch(
        lambda batch: batch.with_values([work(value) for value in batch.values]), on_error=policy
    ).to("out", value=Text()),
    "process_batch": lambda stream, work, policy: stream.process(lambda: Whole(work), on_error=policy).to(
        "out", value=Text()
    ),
    "a sink's topic": lambda stream, work, policy: stream.to(
        lambda value: "out" if work(value) else "", on_error=policy
    ),
    "a sink's value": lambda stream, work, policy: stream.to("out", value=Encoding(work), on_error=policy),
    "a sink's key": lambda stream, work, policy: stream.to("out", key=Encoding(work), on_error=policy),
}
SOURCES: dict[str, Callable[[App, Work, ErrorPolicy], Stream[str, str]]] = {
    "a source's value": lambda app, work, policy: app.stream(
        "in", key=Text(), value=Decoding(work), on_error=policy
    ),
    "a source's key": lambda app, work, policy: app.stream(
        "in", key=Decoding(work), value=Text(), on_error=policy
    ),
    "a source's timestamp": lambda app, work, policy: app.stream(
        "in", key=Text(), value=Text(), timestamp=lambda value: len(work(value)), on_error=policy
    ),
}
PLACES = [*STEPS, *SOURCES]
WHOLE = {"map_batch", "process_batch"}


def driver_with(place: str, work: Work, policy: ErrorPolicy) -> TopologyDriver:
    app = App("test")
    if place in STEPS:
        STEPS[place](app.stream("in", key=Text(), value=Text()), work, policy)
    else:
        SOURCES[place](app, work, policy).to("out", key=Text(), value=Text())
    return TopologyDriver(app)


def send_with_a_bad_one(driver: TopologyDriver) -> None:
    """Five records as one batch, the third of them bad; each one's key is its value."""
    driver.send_all("in", [Record(value, value, 1, [("h", value.encode())]) for value in FIVE])


FIVE = ["a", "b", "bad", "c", "d"]
FOUR = ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", [ValueError, StopIteration])
@pytest.mark.parametrize("place", PLACES)
def test_a_record_that_fails_anywhere_is_left_out_alone(place, error):
    work = Work(error=error)
    driver = driver_with(place, work, skip)
    send_with_a_bad_one(driver)
    written = driver.read("out", key=Text(), value=Text())
    assert [(record.key, record.value) for record in written] == [(value, value) for value in FOUR]
    assert [record.headers for record in written] == [[("h", value.encode())] for value in FOUR]
    assert list(driver.skipped().values()) == [1]
    assert driver.dead_letters() == []


@pytest.mark.parametrize("place", [place for place in PLACES if place not in WHOLE])
def test_each_record_is_shown_to_user_code_once_though_another_one_fails(place):
    work = Work()
    send_with_a_bad_one(driver_with(place, work, skip))
    assert work.calls == Counter(FIVE)


@pytest.mark.parametrize("place", PLACES)
def test_a_record_that_fails_anywhere_becomes_a_dead_letter_as_it_was_read(place):
    driver = driver_with(place, Work(), dead_letter)
    send_with_a_bad_one(driver)
    assert [record.value for record in driver.read("out", value=Text())] == FOUR
    (letter,) = driver.dead_letters()
    assert (letter.key, letter.value, letter.timestamp) == (b"bad", b"bad", 1)
    assert letter.headers is not None
    assert letter.headers[0] == ("h", b"bad")
    coordinates = dict(letter.headers)
    assert coordinates["__streams.errors.topic"] == b"in"
    assert coordinates["__streams.errors.partition"] == b"0"
    assert coordinates["__streams.errors.offset"] == b"2"
    assert coordinates["__streams.errors.exception"] == b"ValueError"
    assert coordinates["__streams.errors.message"] == b"made to fail"


@pytest.mark.parametrize("place", PLACES)
def test_a_record_that_fails_anywhere_stops_the_app_with_its_coordinates_and_writes_nothing(place):
    driver = driver_with(place, Work(), fail)
    with pytest.raises(ProcessingError) as caught:
        send_with_a_bad_one(driver)
    for part in ("in-0 offset 2", "key b'bad'", "value b'bad'", "ValueError: made to fail", __file__):
        assert part in str(caught.value)
    assert driver.topics == []


@pytest.mark.parametrize("place", PLACES)
def test_a_record_that_fails_for_a_while_anywhere_is_written_in_its_place(place):
    # A batch that fails is run record by record before any wait.
    tries = 4 if place in WHOLE else 3
    work = Work(failures=tries)
    driver = driver_with(place, work, retry(5, backoff=seconds(1.0), longest_backoff=seconds(3.0)))
    send_with_a_bad_one(driver)
    assert [record.value for record in driver.read("out", value=Text())] == FIVE
    assert work.calls["bad"] == tries + 1
    assert driver.clock == 1_000 + 2_000 + 3_000


# --- event times


@pytest.mark.parametrize("time", [2**63, 10**30])
def test_an_event_time_that_no_broker_can_store_is_a_failure_of_its_record(time):
    app = App("test")
    app.stream("in", value=Text()).map(
        str, timestamp=lambda value: time if value == "bad" else 3, on_error=dead_letter
    ).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in ("a", "bad", "b")])
    assert driver.values("out") == ["a", "b"]
    assert [letter.value for letter in driver.dead_letters()] == [b"bad"]


@pytest.mark.parametrize("time", [0, 2**62])
def test_the_first_and_very_late_event_times_are_kept(time):
    app = App("test")
    app.stream("in", value=Text()).map(str, timestamp=lambda _: time).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send("in", "a", timestamp=5)
    assert [record.timestamp for record in driver.read("out")] == [time]


def test_a_record_without_a_timestamp_passes_through():
    app = App("test")
    app.stream("in", value=Text()).map(str.upper).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send("in", "a", timestamp=-1)
    assert [(record.value, record.timestamp) for record in driver.read("out")] == [("A", -1)]


def test_a_burst_of_records_without_event_time_costs_a_call_or_two_each():
    calls = 0

    def time_of(value: int) -> int:
        nonlocal calls
        calls += 1
        return 5 if value < 3_000 else -1

    app = App("test")
    app.stream("in", value=Json(int), timestamp=time_of).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in range(3_000)])
    before = calls
    driver.send_all("in", [Record(None, value, 1) for value in range(3_000, 5_000)])
    assert len(driver.dead_letters()) == 2_000
    assert calls - before <= 2 * 2_000


# --- values that are not what they seem


class Ambiguous:
    """As an array: has no truth value."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __bool__(self) -> bool:
        raise ValueError("the truth value of this is ambiguous")


class Ambiguities(Text):
    def serialize(self, values):
        return (value.text.encode() for value in values)


def test_values_without_a_truth_value_can_be_written():
    app = App("test")
    app.stream("in", value=Text()).map(Ambiguous).to("out", value=Ambiguities(), on_error=skip)  # type: ignore[arg-type]  # a text only once it is written
    assert run_bytes(app, "a", "b", "c") == ["a", "b", "c"]


def test_a_verdict_without_a_truth_value_is_a_failure_of_its_record():
    app = App("test")
    app.stream("in", value=Text()).filter(
        lambda value: Ambiguous(value) if value == "bad" else True, on_error=skip
    ).to("out")
    assert run_bytes(app, "a", "bad", "b") == ["a", "b"]


def test_an_error_that_cannot_be_put_into_words_becomes_a_dead_letter_all_the_same():
    class Wordless(Exception):
        def __str__(self) -> str:
            raise TypeError("no words")

    Wordless.__qualname__ = "Wordless"

    def work(value: str) -> str:
        raise Wordless

    app = App("test")
    app.stream("in", value=Text()).map(work, on_error=dead_letter).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send("in", "a")
    (letter,) = driver.dead_letters()
    assert dict(letter.headers or ())["__streams.errors.exception"] == b"Wordless"


def test_a_dead_letter_of_a_tombstone_without_a_key_has_neither():
    def work(value: str | None) -> str:
        raise ValueError("made to fail")

    app = App("test")
    stream = app.stream("in", value=Text(), tombstones=True)
    stream.map(work, on_error=dead_letter).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_bytes("in", None)
    (letter,) = driver.dead_letters()
    assert (letter.key, letter.value) == (None, None)


# --- merging, branching and processors, which combine columns


@pytest.mark.parametrize(
    ("serde", "payload"), [(Text, b"caf\xc3\xa9"), (Bytes, b"\x00\xff"), (Json, b'{"a":1}')]
)
def test_merged_streams_of_one_encoding_are_written_in_it(serde, payload):
    app = App("test")
    app.stream("in", value=serde()).merge(app.stream("other", value=serde())).to("out")
    driver = TopologyDriver(app)
    driver.send_bytes("in", payload)
    driver.send_bytes("other", payload)
    assert [record.value for record in driver.read("out", value=Bytes())] == [payload, payload]


def test_the_otherwise_branch_needs_a_distinct_name():
    # Records of both kinds would be in one branch, and no longer in their order.
    with pytest.raises(TopologyError, match="digits"):
        App("test").stream("in", value=Text()).branch({"digits": str.isdigit}, otherwise="digits")


def test_a_stream_used_twice_gives_its_records_to_both():
    app = App("test")
    stream = app.stream("in", value=Text())
    stream.map(str.upper).to("upper", value=Text())
    stream.map(str.title).to("title", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, "ab", 1), Record(None, "cd", 1)])
    assert driver.values("upper") == ["AB", "CD"]
    assert driver.values("title") == ["Ab", "Cd"]


def test_what_one_of_two_followers_fails_on_still_reaches_the_other():
    app = App("test")
    stream = app.stream("in", value=Text())
    stream.map(int, on_error=dead_letter).to("numbers")
    stream.map(str.upper).to("texts", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, "1", 1), Record(None, "x", 1)])
    assert driver.values("numbers") == [1]
    assert driver.values("texts") == ["1", "X"]
    assert [letter.value for letter in driver.dead_letters()] == [b"x"]


def test_a_processor_may_take_headers_away():
    class Bare:
        def process(self, record, context):
            context.forward(replace(record, headers=None))

    app = App("test")
    app.stream("in", value=Text()).process(Bare).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send("in", "a", headers=[("secret", b"1")])
    assert [record.headers for record in driver.read("out")] == [None]


def test_a_processor_may_give_each_record_other_headers():
    class Marking:
        def process(self, record, context):
            headers = None if record.value == "a" else [("mark", record.value.encode())]
            context.forward(replace(record, headers=headers))

    app = App("test")
    app.stream("in", value=Text()).process(Marking).to("out", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1, [("old", b"")]) for value in ("a", "b")])
    assert [record.headers for record in driver.read("out")] == [None, [("mark", b"b")]]


def test_a_batch_processor_forwards_batches_and_records_in_the_order_of_its_calls():
    class Mixed:
        def process_batch(self, batch, context):
            first, *_, last = batch.records()
            context.forward(last)
            context.forward(batch, to="upper")
            context.forward(first)

    app = App("test")
    processed = app.stream("in", value=Text()).process(Mixed)
    processed.map(str.upper, name="upper").to("out", value=Text())
    processed.to("plain", value=Text())
    driver = TopologyDriver(app)
    driver.send_all("in", [Record(None, value, 1) for value in "abc"])
    assert driver.values("out") == ["C", "A", "B", "C", "A"]
    assert driver.values("plain") == ["c", "a"]


def test_a_batch_processor_may_not_forward_a_record_of_another_batch():
    class Inventing:
        def process_batch(self, batch, context):
            context.forward(Record(None, "new", 1))

    app = App("test", on_error=fail)
    app.stream("in", value=Text()).process(Inventing).to("out", value=Text())
    with pytest.raises(ProcessingError, match=r"offset -1 is not in the batch being processed \(0 to 0\)"):
        run_bytes(app, "a")


def test_a_processor_that_has_neither_method_is_refused_with_its_name():
    class Idle:
        pass

    app = App("test")
    app.stream("in", value=Text()).process(Idle)  # type: ignore[arg-type]  # what this test is about
    with pytest.raises(TopologyError, match=r"process-Idle: Idle has neither process\(record, context\) nor"):
        run_bytes(app, "a")


def test_processors_know_their_step_and_task_and_there_is_one_for_each_partition():
    class Where:
        def __init__(self) -> None:
            self.count = 0

        def process(self, record, context):
            self.count += 1
            place = [context.step, context.subtopology, context.partition, self.count]
            context.forward(replace(record, value=place))

    app = App("test")
    app.stream("unrelated").to("nowhere")
    app.stream("in", value=Text()).process(Where, name="where").to("out")
    driver = TopologyDriver(app, partitions=2)
    for partition in (0, 1, 1):
        driver.send("in", "a", partition=partition)
    assert driver.values("out") == [["where", 1, 0, 1], ["where", 1, 1, 1], ["where", 1, 1, 2]]


@pytest.mark.parametrize("wrong", [None, 7, "text"])
def test_map_batch_that_returns_no_batch_is_a_failure_of_its_records(wrong):
    app = App("test")
    app.stream("in", value=Text()).map_batch(lambda batch: wrong, on_error=skip).to("out")
    assert run_bytes(app, "a", "b") == []


def test_flat_map_of_something_that_is_no_iterable_is_a_failure_of_its_record():
    app = App("test")
    app.stream("in", value=Text()).flat_map(
        lambda value: None if value == "bad" else [value],  # type: ignore[arg-type,return-value]  # what this test is about
        on_error=skip,
    ).to("out", value=Text())
    assert run_bytes(app, "a", "bad", "b") == ["a", "b"]


def test_a_driver_numbers_what_is_written_to_a_topic_whoever_reads_it_meanwhile():
    app = App("test")
    app.stream("in", value=Text()).to("out")
    driver = TopologyDriver(app)
    driver.send("in", "a")
    assert [record.offset for record in driver.read("out")] == [0]
    driver.send("in", "b")
    assert [record.offset for record in driver.read("out")] == [1]


def test_a_driver_sends_equal_keys_to_one_partition_as_java_clients_would():
    app = App("test")
    app.stream("in", key=Text(), value=Text()).to("out")
    driver = TopologyDriver(app, partitions=8)
    driver.send_all("in", [Record(key, key, 1) for key in ("21", "foobar", "21")])
    places = {record.value: record.partition for record in driver.read("out")}
    assert places == {"21": (-973932308 & 0x7FFFFFFF) % 8, "foobar": (-790332482 & 0x7FFFFFFF) % 8}


def test_the_driver_lists_the_topics():
    app = App("test")
    app.stream("orders").to("bills")
    driver = TopologyDriver(app)
    with pytest.raises(
        TopologyError, match=r"the app does not read topic 'nope': .*\n  hint: there are: 'orders'"
    ):
        driver.send("nope", 1)
    with pytest.raises(
        TopologyError, match=r"does not read topic 'order': .*\n  hint: did you mean 'orders'\?"
    ):
        driver.send_bytes("order", b"1")


def test_a_topic_chosen_by_a_function_must_be_one_that_kafka_takes():
    app = App("test")
    app.stream("in", value=Text()).to(lambda name: name, on_error=dead_letter, name="out")
    driver = TopologyDriver(app)
    for name in ("good", "größe", "a b", ".."):
        driver.send("in", name)
    assert driver.values("good") == [b"good"]
    letters = driver.dead_letters()
    assert [letter.value for letter in letters] == ["größe".encode(), b"a b", b".."]
    assert any(b"cannot name a topic: it contains" in text for _, text in letters[0].headers or () if text)
