"""The graph as data: what is refused, how it is cut, and how it is shown."""

from __future__ import annotations

import json
import re

import pytest

from streams import App, Json, Text, retry, skip
from streams.errors import ConfigurationError, TopologyError


def test_an_app_without_a_stream_is_refused():
    with pytest.raises(TopologyError, match="no stream"):
        _ = App("test").topology


@pytest.mark.parametrize("step", ["map", "filter", "key_by", "flat_map", "map_batch"])
def test_a_dead_end_is_named(step):
    app = App("test")
    getattr(app.stream("in"), step)(len, name="lost")
    with pytest.raises(TopologyError, match=r"'lost' is a dead end.*\n.*\.to\(topic\)"):
        _ = app.topology


def test_a_source_that_nobody_reads_is_a_dead_end():
    app = App("test")
    app.stream("in")
    with pytest.raises(TopologyError, match="'in' is a dead end"):
        _ = app.topology


def test_a_branch_that_nobody_uses_is_a_dead_end():
    app = App("test")
    app.stream("in").branch({"a": bool}, otherwise="b")["a"].to("out")
    with pytest.raises(TopologyError, match=r"'branch-a\.b' is a dead end"):
        _ = app.topology


def test_two_steps_of_one_name_are_refused_at_once():
    app = App("test")
    app.stream("in").map(len, name="same")
    with pytest.raises(TopologyError, match="two steps are named 'same'"):
        app.stream("other").map(len, name="same")


def test_a_topic_read_twice_is_refused():
    app = App("test")
    app.stream("in").to("out")
    app.stream("in").to("other")
    with pytest.raises(TopologyError, match="'in' is read by 2 streams"):
        _ = app.topology


def test_merging_a_stream_with_itself_is_refused():
    stream = App("test").stream("in")
    with pytest.raises(TopologyError, match="merged with itself"):
        stream.merge(stream)


@pytest.mark.parametrize("wrong", [{}, {"a": None}])
def test_a_branch_without_predicates_and_a_retry_without_tries_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        App("test").stream("in").branch({}) if not wrong else retry(0)


def test_a_name_that_cannot_be_part_of_a_topic_is_refused():
    with pytest.raises(ConfigurationError, match="cannot name an app"):
        App("my app")


def test_generated_names_come_from_the_functions_and_stay_unique():
    app = App("test")
    stream = app.stream("in").map(abs).map(abs).filter(lambda value: value)
    stream.to("out")
    assert [node.name for node in app.topology.nodes] == ["in", "map-abs", "map-abs-2", "filter", "to-out"]


def test_unconnected_parts_are_subtopologies_and_merging_connects():
    app = App("test")
    app.stream("a").to("x")
    app.stream("b").merge(app.stream("c")).to("y")
    parts = [[node.name for node in part.nodes] for part in app.topology.subtopologies]
    assert parts == [["a", "to-x"], ["b", "c", "merge", "to-y"]]


def shop() -> App:
    app = App("shop")
    orders = app.stream("orders", key=Text(), value=Json())
    orders.filter(bool, name="paid", on_error=skip).to("paid-orders")
    app.stream(re.compile("log-.*"), value=Text()).map(len, on_error=retry(3, then=skip)).to(str)
    return app


def test_the_text_shows_every_step_what_follows_and_its_policy():
    assert shop().topology.describe().splitlines() == [
        "Subtopology 0",
        "  source orders: orders (key Text, value Json)",
        "           --> paid",
        "           on error: dead_letter",
        "  step   paid: filter bool",
        "           --> to-paid-orders",
        "           on error: skip",
        "  sink   to-paid-orders: paid-orders (key Text, value Json)",
        "           on error: fail",
        "Subtopology 1",
        "  source log-.*: /log-.*/ (key Bytes, value Text)",
        "           --> map-len",
        "           on error: dead_letter",
        "  step   map-len: map len",
        "           --> to-str",
        "           on error: retry(3), then skip",
        "  sink   to-str: topic by str (key Bytes, value Json)",
        "           on error: fail",
    ]


def test_the_drawing_has_every_node_and_edge():
    lines = shop().topology.describe("mermaid").splitlines()
    assert lines[0] == "flowchart TD"
    assert '    n1["paid<br/>filter bool"]' in lines
    assert [line.strip() for line in lines if "-->" in line] == [
        "n0 --> n1",
        "n1 --> n2",
        "n3 --> n4",
        "n4 --> n5",
    ]


def test_the_json_can_be_read_by_programs():
    first, second = json.loads(shop().topology.describe("json"))["subtopologies"]
    assert first["nodes"][1] == {
        "name": "paid",
        "role": "step",
        "parents": ["orders"],
        "on_error": {"action": "skip", "retries": 0},
        "operator": "filter",
        "code": "bool",
    }
    assert second["nodes"][0]["topics"] == ["/log-.*/"]
    assert second["nodes"][2]["topic"] is None
