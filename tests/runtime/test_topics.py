"""The rights that an app needs on its topics."""

from __future__ import annotations

import re

from streams import App, Json, Text, Tumbling, days, milliseconds
from streams.events import Event
from streams.runtime.topics import needed_rights
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs


def rights(app: App, *existing: str) -> dict[str, list[str]]:
    return needed_rights(
        app.topology, existing, application=app.name, dead_letter_topic=app.dead_letter_topic
    )


def test_an_app_without_state_reads_writes_and_makes_its_dead_letters():
    app = App("copy")
    app.stream("in", value=Json()).to("out")
    assert rights(app) == {"in": ["READ"], "out": ["WRITE"], "copy-dead-letters": ["CREATE", "WRITE"]}
    assert rights(app, "in", "out", "copy-dead-letters")["copy-dead-letters"] == ["WRITE"]


def test_a_topic_that_is_read_and_written_takes_both_rights():
    app = App("loop")
    app.stream("both").to("both")
    assert rights(app)["both"] == ["READ", "WRITE"]


def test_a_pattern_takes_the_right_to_read_every_topic_that_it_matches():
    app = App("all")
    app.stream(re.compile("in-.*")).to("out")
    assert {topic for topic, wanted in rights(app, "in-1", "in-2", "x").items() if "READ" in wanted} == {
        "in-1",
        "in-2",
    }


def test_internal_topics_are_made_read_written_and_emptied_by_the_app():
    app = App("count")
    app.stream("in", value=Text()).group_by(str, value=Text()).count("words").to("out")
    found = rights(app)
    assert found["count-words-repartition"] == ["CREATE", "READ", "WRITE", "DELETE"]
    assert found["count-words-changelog"] == ["CREATE", "READ", "WRITE", "DESCRIBE_CONFIGS"]


def test_tables_are_read_and_their_settings_looked_at_and_global_tables_are_read():
    app = App("join")
    hits = app.stream("hits", key=Text(), value=Text())
    hits.join(app.table("users", key=Text()), lambda hit, user: [hit, user]).to("out", value=Json())
    hits.join_global(app.global_table("plans"), lambda hit: hit.encode(), lambda hit, _: hit).to(
        "out", value=Text()
    )
    found = rights(app)
    assert found["users"] == ["READ", "DESCRIBE_CONFIGS"]
    assert found["plans"] == ["READ"]


def test_a_changelog_that_was_made_for_windows_that_lasted_less_long_is_warned_of():
    def app(days_kept: int) -> App:
        app = App("kept")
        grouped = app.stream("in", key=Text()).group_by_key()
        grouped.window(Tumbling(minutes=1), keep=days(days_kept)).count("w")
        return app

    cluster = MemoryCluster({"in": 1})
    cluster.prepare(app(1), create_outputs=False)
    with capture_logs() as logs:
        cluster.prepare(app(7), create_outputs=False)
    assert logs == []
    with capture_logs() as logs:
        cluster.prepare(app(30), create_outputs=False)
    (line,) = logs
    assert (line["event"], line["topic"], line["log_level"]) == (
        Event.CHANGELOG_KEPT_TOO_SHORT,
        "kept-w-closed-changelog",
        "warning",
    )
    assert line["retention"] >= days(30 + 7) // milliseconds(1)
