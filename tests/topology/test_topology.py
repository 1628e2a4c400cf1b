"""The graph as data: validation, subtopologies, descriptions."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, strategies as st

from streams import App, Json, Text, dead_letter, fail, retry, skip
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


def test_a_source_that_is_not_read_is_a_dead_end():
    app = App("test")
    app.stream("in")
    with pytest.raises(TopologyError, match="'in' is a dead end"):
        _ = app.topology


def test_a_branch_that_is_not_used_is_a_dead_end():
    app = App("test")
    app.stream("in").branch({"a": bool}, otherwise="b")["a"].to("out")
    with pytest.raises(TopologyError, match=r"'branch-a\.b' is a dead end"):
        _ = app.topology


def test_two_steps_of_one_name_are_refused_at_once():
    app = App("test")
    app.stream("in").map(len, name="same")
    with pytest.raises(TopologyError) as caught:
        app.stream("other").map(len, name="same")
    places = re.findall(r"test_topology\.py:(\d+)", str(caught.value))
    assert "two steps are named 'same': the first at" in str(caught.value)
    assert int(places[1]) == int(places[0]) + 2


def test_a_topic_read_twice_is_refused():
    app = App("test")
    app.stream("in").to("out")
    app.stream("in").to("other")
    with pytest.raises(
        TopologyError, match=r"'in' is read by 2 streams, declared at \S+\.py:\d+ and \S+\.py:\d+\n"
    ):
        _ = app.topology


def test_stores_of_one_name_are_refused_with_both_places():
    app = App("test")
    app.stream("in").group_by_key().count("same")
    app.stream("other").group_by_key().count("same")
    with pytest.raises(
        TopologyError, match=r"'same': the first at \S+topology\.py:\d+, another at \S+\.py:\d+\n"
    ):
        _ = app.topology


@pytest.mark.parametrize("name", ["größe", "a b", "", ".", "..", "x" * 250])
def test_a_topic_that_kafka_does_not_take_is_refused_with_its_place(name):
    reading, writing, looking = App("test"), App("test"), App("test")
    reading.stream(name).to("out")
    writing.stream("in").to(name)
    looking.stream("in").join_global(looking.global_table(name, key=Json(int), store="table"), len, max).to(
        "out"
    )
    for app in (reading, writing, looking):
        with pytest.raises(TopologyError, match=f"{name!r} cannot name a topic"):
            _ = app.topology


def test_a_changelog_topic_whose_name_is_too_long_is_refused():
    app = App("a" * 100)
    app.stream("in").group_by_key().count("s" * 149)
    with pytest.raises(TopologyError, match="it has 260 characters, at most 249 are allowed"):
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
    orders.filter(bool, name="paid", on_error=skip).to("paid-orders", on_error=fail)
    lengths = app.stream(re.compile("log-.*"), value=Text()).map(len, on_error=retry(3, then=skip))
    lengths.to(str, on_error=fail)
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


def test_the_whole_drawing_is_as_a_document_shows_it():
    assert shop().topology.describe("mermaid").split("\n") == [
        "flowchart TD",
        "  subgraph s0[Subtopology 0]",
        '    n0(["orders<br/>orders (key Text, value Json)"])',
        '    n1["paid<br/>filter bool"]',
        '    n2(["to-paid-orders<br/>paid-orders (key Text, value Json)"])',
        "  end",
        "  subgraph s1[Subtopology 1]",
        '    n3(["log-.*<br/>/log-.*/ (key Bytes, value Text)"])',
        '    n4["map-len<br/>map len"]',
        '    n5(["to-str<br/>topic by str (key Bytes, value Json)"])',
        "  end",
        "  n0 --> n1",
        "  n1 --> n2",
        "  n3 --> n4",
        "  n4 --> n5",
    ]


def test_the_json_is_the_whole_graph():
    app = App("small")
    app.stream("in").map(str, name="texts", on_error=retry(2, then=skip)).to(
        "out", value=Text(), on_error=fail
    )
    assert json.loads(app.topology.describe("json")) == {
        "subtopologies": [
            {
                "number": 0,
                "nodes": [
                    {
                        "name": "in",
                        "role": "source",
                        "parents": [],
                        "on_error": {"action": "dead_letter", "retries": 0},
                        "key": "Bytes",
                        "value": "Json",
                        "topics": ["in"],
                    },
                    {
                        "name": "texts",
                        "role": "step",
                        "parents": ["in"],
                        "on_error": {"action": "skip", "retries": 2},
                        "operator": "map",
                        "code": "str",
                    },
                    {
                        "name": "to-out",
                        "role": "sink",
                        "parents": ["texts"],
                        "on_error": {"action": "fail", "retries": 0},
                        "key": "Bytes",
                        "value": "Text",
                        "topic": "out",
                    },
                ],
            }
        ]
    }


def test_a_name_with_quotes_does_not_end_its_label_in_the_drawing():
    app = App("test")
    app.stream("in").map(len, name='the "best" one').to("out")
    assert '    n1["the #quot;best#quot; one<br/>map len"]' in app.topology.describe("mermaid").splitlines()


@pytest.mark.parametrize("topics", [[], ()])
def test_a_stream_of_no_topic_is_refused(topics):
    with pytest.raises(TopologyError, match="at least one topic"):
        App("test").stream(topics)


def test_a_topic_named_twice_in_one_stream_is_refused():
    app = App("test")
    app.stream(["in", "in"]).to("out")
    with pytest.raises(TopologyError, match="'in' is read by 2 streams"):
        _ = app.topology


def test_a_topic_that_two_patterns_match_is_refused_with_both_sources():
    app = App("test")
    app.stream(re.compile("log-.*"), name="logs").to("out")
    app.stream(["log-eu", re.compile("metrics-.*")], name="european").to("other")
    with pytest.raises(
        TopologyError, match="'log-eu' must belong to exactly one source, but it matches: logs, eur"
    ):
        app.topology.source_of("log-eu")
    with pytest.raises(TopologyError, match="it matches no source"):
        app.topology.source_of("traces")
    assert app.topology.source_of("metrics-eu")[1].name == "european"
    assert app.topology.source_of("log-us")[0].number == 0


def test_a_pattern_matches_full_names_only():
    app = App("test")
    app.stream(re.compile("log")).to("out")
    with pytest.raises(TopologyError, match="it matches no source"):
        app.topology.source_of("log-eu")


def test_inputs_and_outputs_are_known_before_running():
    app = App("test")
    stream = app.stream(["a", "b"])
    stream.to("x")
    stream.map(len).to("x", name="again")
    stream.to(str)
    assert app.topology.input_topics == ("a", "b")
    assert app.topology.output_topics == ("x",)


@pytest.mark.parametrize(
    ("policy", "expected"), [(dead_letter, True), (skip, False), (retry(1, then=dead_letter), True)]
)
def test_it_is_known_whether_dead_letters_can_be_written(policy, expected):
    app = App("test", on_error=fail)
    app.stream("in", on_error=skip).map(len, on_error=policy).to("out")
    assert app.topology.writes_dead_letters is expected


def test_steps_of_two_streams_that_meet_late_are_one_subtopology():
    app = App("test")
    first, second, third = (app.stream(name) for name in ("a", "b", "c"))
    second.to("y")
    first.map(len).merge(third.map(len)).to("x")
    parts = [{node.name for node in part.nodes} for part in app.topology.subtopologies]
    assert parts == [{"a", "map-len", "c", "map-len-2", "merge", "to-x"}, {"b", "to-y"}]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_subtopologies_are_the_connected_parts_in_the_order_of_their_first_node(merges):
    app = App("test")
    streams = [app.stream(f"s{number}", name=f"s{number}") for number in range(8)]
    together = [{number} for number in range(8)]
    for number, (left, right) in enumerate(merges):
        if left != right:
            streams[left].merge(streams[right], name=f"m{number}").to(f"o{number}")
            joined = together[left] | together[right]
            for member in joined:
                together[member] = joined
    for number, stream in enumerate(streams):
        stream.to(f"t{number}")
    parts = [{int(source.name[1:]) for source in part.sources} for part in app.topology.subtopologies]
    expected: list[set[int]] = []
    for part in together:
        if part not in expected:
            expected.append(part)
    assert parts == expected
    assert sorted(node.name for part in app.topology.subtopologies for node in part.nodes) == sorted(
        node.name for node in app.topology.nodes
    )
