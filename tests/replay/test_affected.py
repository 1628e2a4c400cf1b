"""Which parts of a program a reset of its topics affects, and what it refuses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text
from streams.connectors.files import JsonLinesSink
from streams.errors import ConfigurationError, TopicError, TopologyError
from streams.replay.affected import Affected, derived_stores, find_affected
from streams.runtime.topics import prepare_topics
from tests.support.cluster import MemoryCluster
from tests.support.connectors import Feed, MemorySource

if TYPE_CHECKING:
    from pathlib import Path


def stream(app: App, *topics: str) -> Any:
    return app.stream(list(topics), key=Text(), value=Text())


def table(app: App, topic: str) -> Any:
    return app.table(topic, key=Text(), value=Text(), store=topic)


def affected(app: App, *topics: str, existing: tuple[str, ...] = ()) -> Affected:
    named = [topic for topic in app.topology.input_topics if isinstance(topic, str)]
    own = {*app.topology.repartitions, *app.topology.source_topics}
    cluster = MemoryCluster(dict.fromkeys([*(t for t in named if t not in own), *existing], 2))
    inputs = prepare_topics(
        app.topology,
        cluster.admin,
        application=app.name,
        dead_letter_topic="dead",
        create_outputs=True,
    )
    return find_affected(app.topology, inputs, app.name, topics)


def test_all_input_topics_are_selected_by_default():
    app = App("app")
    stream(app, "a").group_by_key().count("a").to("out-a")
    stream(app, "b", "c").filter(bool).to("out-b")
    found = affected(app)
    assert found.selected == ("a", "b", "c")
    assert found.subtopologies == (0, 1)
    assert (found.stores, found.changelogs) == (("a",), ("app-a-changelog",))
    assert found.outputs == ("out-a", "out-b")


def test_what_is_downstream_through_repartition_topics_is_affected():
    app = App("app")
    first = stream(app, "a").group_by(str, value=Text()).count("first")
    first.to_stream().map(str).group_by(str, value=Text()).count("second").to("out")
    stream(app, "b").group_by(str, value=Text()).count("other").to("out-b")
    found = affected(app, "a")
    assert found.repartitions == ("app-first-repartition", "app-second-repartition")
    assert found.changelogs == ("app-first-changelog", "app-second-changelog")
    assert found.outputs == ("out",)


def test_topics_of_a_pattern_are_selected_by_their_names():
    app = App("app")
    app.stream(re.compile("shop-.*"), key=Text(), value=Text()).filter(bool).to("out")
    assert affected(app, existing=("shop-1", "shop-2", "else")).selected == ("shop-1", "shop-2")
    assert affected(app, "shop-2", existing=("shop-1", "shop-2", "else")).selected == ("shop-2",)
    with pytest.raises(TopologyError, match="does not read topic 'else'"):
        affected(app, "else", existing=("shop-1", "else"))
    with pytest.raises(TopicError, match="topic shop-3 does not exist"):
        affected(app, "shop-3", existing=("shop-1",))


def test_a_stateless_part_may_be_reset_in_one_of_its_topics():
    app = App("app")
    stream(app, "a", "b").filter(bool).to("out")
    assert affected(app, "a").selected == ("a",)


def test_state_needs_all_of_its_inputs():
    app = App("app")
    stream(app, "a", "b").group_by_key().count("counts").to("out")
    with pytest.raises(
        ConfigurationError, match=r"store counts: made of topic b too.*is not selected"
    ) as error:
        affected(app, "a")
    assert error.value.hint == "select it too: --topic a --topic b"
    assert affected(app, "b", "a").selected == ("b", "a")


def test_state_that_is_fed_through_a_repartition_topic_needs_the_topics_before_it():
    with pytest.raises(ConfigurationError, match=r"store counts: made of topic b too, which is not selected"):
        affected(two_feeding(), "a")
    assert affected(two_feeding()).stores == ("counts",)

    with pytest.raises(ConfigurationError, match="store counts: made of topic b too"):
        affected(merged(), "a")
    assert affected(merged()).stores == ("counts",)


def merged() -> App:
    app = App("app")
    stream(app, "a", "b").group_by(str, value=Text()).count("counts").to("out")
    return app


def two_feeding() -> App:
    app = App("app")
    left = stream(app, "a").key_by(str).repartition("left")
    right = stream(app, "b").key_by(str).repartition("right")
    left.merge(right).group_by_key().count("counts").to("out")
    return app


def test_own_results_that_are_read_again_continue_at_their_end():
    app = App("app")
    stream(app, "a").filter(bool).to("between")
    stream(app, "between").group_by_key().count("counts").to("out")
    found = affected(app)
    assert (found.selected, found.intermediate) == (("a",), ("between",))
    assert found.stores == ("counts",)
    assert found.outputs == ("between", "out")
    assert affected(app, "between").selected == ("between",)
    assert affected(app, "between").intermediate == ()
    with pytest.raises(ConfigurationError, match="topic between is written by the app itself"):
        affected(app, "a", "between")


def test_state_behind_own_results_needs_all_that_they_are_made_of():
    app = App("app")
    stream(app, "a", "b").filter(bool).to("between")
    stream(app, "between").group_by_key().count("counts").to("out")
    assert affected(app).stores == ("counts",)
    with pytest.raises(ConfigurationError, match="store counts: made of topic b too"):
        affected(app, "a")


def test_a_topic_that_is_only_fed_by_itself_is_selected():
    app = App("app")
    stream(app, "loop").filter(bool).to("loop")
    found = affected(app)
    assert (found.selected, found.intermediate) == (("loop",), ())


def test_sinks_keep_their_own_positions(tmp_path: Path):
    app = App("app")
    stream(app, "a").filter(bool).sink(JsonLinesSink(tmp_path / "direct"), store="direct")
    stream(app, "b").group_by_key().count("counts").sink(JsonLinesSink(tmp_path / "behind"), store="behind")
    found = affected(app)
    assert found.selected == ("b",)
    assert found.left_out == {"a": "direct"}
    assert found.sinks == ("behind",)
    assert found.repartitions == ()
    assert "app-behind-sink" not in found.replaced
    with pytest.raises(ConfigurationError, match="a reset of a would have no effect: sink 'direct'") as error:
        affected(app, "a")
    assert error.value.hint == "to fill its target again: streams sync rebuild MODULE:APP direct"


def test_an_app_of_which_only_sinks_read_has_nothing_to_reset(tmp_path: Path):
    app = App("app")
    stream(app, "a").sink(JsonLinesSink(tmp_path / "direct"), store="direct")
    with pytest.raises(ConfigurationError, match="a: its sink 'direct' does"):
        affected(app)


def test_source_connectors_are_not_reset():
    app = App("app")
    app.source(MemorySource(Feed()), store="list").to("copy")
    stream(app, "a").group_by_key().count("counts").to("out")
    found = affected(app)
    assert found.selected == ("a",)
    assert found.changelogs == ("app-counts-changelog",)
    with pytest.raises(ConfigurationError, match="position in its system is in a store"):
        affected(app, "app-list-source")


def test_state_that_is_made_of_a_source_connector_and_a_topic_is_refused():
    app = App("app")
    records = app.source(MemorySource(Feed()), store="list")
    records.merge(app.stream("a", key=Json(), value=Json())).group_by_key().count("counts").to("out")
    with pytest.raises(ConfigurationError, match=r"store counts: made of source connector '.*' too"):
        affected(app)


def test_internal_topics_and_global_tables_are_not_selected():
    app = App("app")
    names = app.global_table("names", key=Text(), value=Text(), store="names")
    stream(app, "a").join_global(names, lambda value: value, lambda a, b: a).group_by(
        str, value=Text()
    ).count("counts").to("out")
    with pytest.raises(ConfigurationError, match="app-counts-repartition is internal"):
        affected(app, "app-counts-repartition", existing=("names",))
    with pytest.raises(ConfigurationError, match="names is a global table"):
        affected(app, "names", existing=("names",))
    assert affected(app, existing=("names",)).selected == ("a",)


def test_stores_that_are_made_of_a_tables_changes():
    app = App("app")
    customers = table(app, "customers")
    customers.group_by(str, value=Text()).count("by-value").to("out-1")
    customers.to_stream().group_by_key().count("changes").to("out-2")
    stream(app, "a").join(customers, lambda a, b: a).group_by(str, value=Text()).count("joined").to("out-3")
    assert derived_stores(app.topology, "customers") == ["by-value"]
    assert derived_stores(app.topology, "a") == []
    found = affected(app)
    assert set(found.stores) == {"customers", "by-value", "changes", "joined"}
    assert "customers" not in found.changelogs
