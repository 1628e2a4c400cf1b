"""Every operator and error policy, through the driver: records in, records out."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest

from streams import App, Bytes, Json, Record, Text, dead_letter, retry, skip
from streams.errors import ProcessingError, TopologyError
from streams.testing import TopologyDriver


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
    with pytest.raises(TopologyError, match="must belong to exactly one source"):
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
    app.stream("in", key=Text(), value=Json(int)).filter(lambda value: value is None or value > 1).to("out")
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
        with pytest.raises(ProcessingError, match=r"forwards to 'nowhere'.*what follows: sink"):
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
    def test_fail_says_what_failed_where_and_on_which_record(self):
        app = App("test")
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
        app = App("test")

        def work(value: str) -> str:
            raise RuntimeError("no")

        app.stream("in", value=Text()).map(work).to("out")
        with pytest.raises(ProcessingError, match=r"work, .*test_stream.py:\d+.*\(.*test_stream.py:\d+\)"):
            run_bytes(app, "a")

    def test_dead_letters_keep_original_bytes_key_headers_and_say_where_they_come_from(self):
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

    def test_what_cannot_be_serialized_meets_the_sinks_policy(self):
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

    def test_skip_counts_and_goes_on(self):
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

        app.stream("in", value=Text()).map(work, on_error=retry(5, backoff=1.0)).to("out", value=Text())
        driver = TopologyDriver(app)
        driver.send_all("in", [Record(None, value, 1) for value in ("a", "flaky", "b")])
        assert driver.values("out") == ["a", "flaky", "b"]
        assert driver.clock == 1_000 + 2_000 + 4_000
        assert calls == {"a": 1, "flaky": 4, "b": 1}

    def test_the_policy_behind_a_retry_applies_when_the_tries_are_used_up(self):
        app = App("test")
        app.stream("in", value=Text()).map(int, on_error=retry(2, backoff=0.5, then=dead_letter)).to("out")
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
