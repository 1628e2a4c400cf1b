"""Sinks encode batches as rows, for one topic each."""

from __future__ import annotations

from typing import Any

from streams import App, Json, Record, Text, skip
from streams.testing import TopologyDriver


def test_headers_and_event_times_go_with_encoded_keys_and_values():
    app = App("sink")
    app.stream("in", key=Text(), value=Json()).to("out", key=Text(), value=Json())
    with TopologyDriver(app) as driver:
        driver.send_all("in", [Record("k", {"n": 1}, 5, [("h", b"x")]), Record("l", [2], 6)])
        found = [
            (record.key, record.value, record.timestamp, record.headers) for record in driver.read("out")
        ]
        assert found == [("k", {"n": 1}, 5, [("h", b"x")]), ("l", [2], 6, None)]


def test_a_function_sends_each_record_of_a_batch_to_its_topic_in_order():
    app = App("sink")
    app.stream("in", key=Text(), value=Json()).to(lambda value: f"out-{value % 2}", key=Text(), value=Json())
    with TopologyDriver(app) as driver:
        driver.send_all("in", [Record("k", number, 0) for number in range(6)])
        assert [record.value for record in driver.read("out-0", value=Json())] == [0, 2, 4]
        assert [record.value for record in driver.read("out-1", value=Json())] == [1, 3, 5]


def test_a_value_that_cannot_be_written_gets_the_policy_and_the_others_are_written():
    app = App("sink")

    def odd_is_no_json(value: int) -> Any:
        return object() if value % 2 else value

    stream = app.stream("in", key=Text(), value=Json())
    stream.map(odd_is_no_json).to("out", key=Text(), value=Json(), on_error=skip)
    with TopologyDriver(app) as driver:
        driver.send_all("in", [Record("k", number, 0) for number in range(5)])
        assert driver.values("out") == [0, 2, 4]
        assert sum(driver.skipped().values()) == 2


def test_a_topic_name_that_is_no_text_fails_for_its_record():
    app = App("sink")
    topics: dict[int, Any] = {0: "out", 1: None, 2: "", 3: "no name"}
    stream = app.stream("in", key=Text(), value=Json())
    stream.to(lambda value: topics[value], key=Text(), value=Json(), on_error=skip)
    with TopologyDriver(app) as driver:
        driver.send_all("in", [Record("k", number, 0) for number in topics])
        assert driver.topics == ["out"]
        assert sum(driver.skipped().values()) == 3
