"""Sources decode fetched records."""

from __future__ import annotations

from streams import App, Json, Text
from streams.testing import TopologyDriver


def test_keys_and_values_are_decoded_and_nulls_stay_nulls():
    app = App("source")
    app.stream("in", key=Text(), value=Json()).to("out", key=Text(), value=Json())
    with TopologyDriver(app) as driver:
        driver.send_bytes("in", b'{"n": 1}', key=b"k", timestamp=5)
        driver.send_bytes("in", b"[2]", timestamp=6)
        found = [(record.key, record.value, record.timestamp) for record in driver.read("out")]
        assert found == [("k", {"n": 1}, 5), (None, [2], 6)]


def test_a_key_or_a_value_that_cannot_be_decoded_fails_alone():
    app = App("source", dead_letter_limit=1.0)
    app.stream("in", key=Text(), value=Json()).to("out", key=Text(), value=Json())
    with TopologyDriver(app) as driver:
        driver.send_bytes("in", b"1", key=b"\xff")
        driver.send_bytes("in", b"{", key=b"k")
        driver.send_bytes("in", b"3", key=b"k")
        assert [letter.value for letter in driver.dead_letters()] == [b"1", b"{"]
        assert driver.values("out") == [3]


def test_event_times_are_extracted_from_values_by_a_function():
    app = App("source", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json(), timestamp=lambda value: value["at"])
    stream.to("out", key=Text(), value=Json())
    with TopologyDriver(app) as driver:
        for at in (7, "seven", -1, 9):
            driver.send("in", {"at": at}, key="k", timestamp=1)
        assert [record.timestamp for record in driver.read("out")] == [7, 9]
        assert len(driver.dead_letters()) == 2


def test_an_internal_topic_has_only_records_that_the_app_could_have_written():
    app = App("source", dead_letter_limit=1.0)
    stream = app.stream("in", key=Text(), value=Json(int)).key_by(str)
    stream.group_by_key().count("counts").to_stream().to("out", key=Text(), value=Json())
    (internal,) = app.topology.repartitions
    with TopologyDriver(app) as driver:
        driver.send_bytes(internal, b"1", key=None)
        driver.send("in", 2, key="k")
        assert len(driver.dead_letters()) == 1
        assert [(record.key, record.value) for record in driver.read("out")] == [("2", 1)]
