"""A new program over old input, compared with the old one."""

from __future__ import annotations

import json
import math
import re
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Record, Text, Tumbling
from streams.durations import milliseconds
from streams.replay.bounded.run import RunRequest
from streams.replay.diff import topic as topic_diffs
from streams.replay.diff.fields import Rules, changes
from streams.replay.diff.page import page
from streams.replay.positions import AtTime, Earliest, Latest
from streams.replay.shadow import Program, Shadow, ShadowReport
from tests.replay.inputs import memory_broker, readings, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.broker.memory import MemoryBroker
    from streams.connectors.sink import SinkContext


class NoSink:
    """A sink connector that must not be used."""

    kind = "forbidden"
    target = "elsewhere"
    max_rows = 100

    def check(self, context: SinkContext) -> None:
        raise AssertionError("a shadow run has no effects")

    def open(self, context: SinkContext) -> Any:
        raise AssertionError("a shadow run has no effects")


TICKS = count()


def program(
    name: str = "alerts",
    limits: dict[str, int] | None = None,
    level: str | None = None,
    factor: float = 1.0,
    peeked: Callable[[Any], object] = print,
) -> App:
    app = App(name, state_store="memory")
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))

    def alert(record: Record[str, dict[str, Any]]) -> Record[str, dict[str, Any]]:
        value = {"size": record.value["size"] * factor, "id": next(TICKS)}
        return record.with_(value=value | ({} if level is None else {"level": level}))

    big = sales.filter_records(lambda record: record.value["size"] > (limits or {}).get(record.key, 50))
    alerts = big.map_records(alert)
    alerts.to("alerts", value=Json())
    alerts.sink(NoSink(), store="elsewhere")
    sales.peek(peeked)
    windows = sales.group_by_key().window(Tumbling(seconds=1), grace=milliseconds(500)).count("counts")
    windows.final().to("final", value=Json())
    windows.updates().to("updates", value=Json())
    return app


def filled() -> MemoryBroker:
    broker = memory_broker({"sales": 2})
    send(broker, "sales", readings(1, 2_000))
    return broker


def compare(
    new: App, old: App, broker: MemoryBroker, rules: Rules | None = None, **request: Any
) -> ShadowReport:
    chosen = {"begin": Earliest(), "end": Latest(), **request}
    return Shadow(
        Program(new), Program(old), RunRequest(name="shadow", **chosen), rules=rules or Rules(), broker=broker
    ).run()


def test_only_what_the_new_program_changes_differs():
    broker, peeked = filled(), list[Any]()
    limits = {"k1": 60, "k2": 60, "k3": 60}
    new = program("alerts-2", limits, level="high", factor=1 + 1e-13, peeked=peeked.append)
    before = broker.admin().topics()
    found = compare(new, program(), broker, begin=AtTime(4_000))
    by_name = {topic.topic: topic for topic in found.diff.topics}
    alerts, sink = by_name["alerts"], by_name["sink:elsewhere"]
    input_rows = readings(1, 2_000)
    gone = [row for row in input_rows if row[0].decode() in limits and 50 < row[1]["size"] <= 60]
    # The range begins in each partition with the first record of that time: some before it are later ones.
    assert 0 < alerts.kinds["missing"] < len(gone)
    assert alerts.kinds["changed"] == alerts.new_records
    assert not alerts.kinds["added"]
    assert alerts.changed_fields == {"level": alerts.new_records}
    assert sink.kinds == alerts.kinds
    for name in ("final", "updates"):
        assert by_name[name].equal
        assert not by_name[name].differences
    assert found.diff.noisy_fields == {"alerts": ["id"], "sink:elsewhere": ["id"]}
    assert peeked == []
    assert broker.admin().topics() == before
    assert broker.admin().committed_offsets("alerts") == {}


def test_a_program_against_itself_is_equal():
    found = compare(program("other"), program(), filled())
    assert found.diff.equal
    assert sum(topic.equal for topic in found.diff.topics) > 1_000


def test_changed_windows_are_compared_by_key_and_window():
    broker = filled()
    new = program()
    app = App("alerts", state_store="memory")
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    windows = (
        sales.filter(lambda sale: sale["n"] != 700)
        .group_by_key()
        .window(Tumbling(seconds=1), grace=milliseconds(500))
        .count("counts")
    )
    windows.final().to("final", value=Json())
    windows.updates().to("updates", value=Json())
    found = compare(new, app, broker)
    by_name = {topic.topic: topic for topic in found.diff.topics}
    for name in ("final", "updates"):
        assert by_name[name].kinds == {"changed": 1}
        assert by_name[name].changed_fields == {"value": 1}
        (sample,) = by_name[name].samples
        (change,) = sample.fields
        assert change.new == change.old + 1
    assert re.fullmatch(r"1970-01-01T00:00:0\dZ/1970-01-01T00:00:0\dZ", by_name["updates"].samples[0].when)
    assert by_name["alerts"].kinds["added"] == by_name["alerts"].new_records


def test_records_that_two_runs_of_the_old_program_do_not_share_are_said_to_be_noise():
    runs = count()

    def flaky() -> App:
        app = App("flaky", state_store="memory")
        sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
        sales.filter(lambda _: next(runs) % 7 > 0).to("some", value=Json())
        return app

    found = compare(flaky(), flaky(), filled())
    assert found.diff.noisy_topics == ["some"]


def test_dead_letters_are_compared_whatever_the_programs_are_called():
    def failing(name: str, divisor: int) -> App:
        app = App(name, state_store="memory")
        sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
        sales.map(lambda sale: 1 // (sale["size"] % divisor), name="divide").to("divided", value=Json())
        return app

    same = compare(failing("b", 50), failing("a", 50), filled())
    assert same.diff.equal
    assert {topic.topic for topic in same.diff.topics} == {"divided", "dead letters"}
    found = compare(failing("b", 25), failing("a", 50), filled())
    (letters,) = [topic for topic in found.diff.topics if topic.topic == "dead letters"]
    assert letters.kinds["added"]
    assert not letters.kinds["missing"]


@pytest.mark.parametrize("bucket", [1, 40, 100_000])
def test_the_comparison_does_not_depend_on_how_many_records_are_in_memory(
    monkeypatch: pytest.MonkeyPatch, bucket: int
):
    monkeypatch.setattr(topic_diffs, "BUCKET_ROWS", bucket)
    found = compare(program(limits={"k1": 60}), program(), filled())
    kinds = {topic.topic: dict(topic.kinds) for topic in found.diff.topics}
    assert kinds["alerts"] == {"missing": found.diff.topics[0].old_records - found.diff.topics[0].new_records}
    assert kinds["final"] == kinds["updates"] == {}


@pytest.mark.parametrize(
    ("old", "new", "rules", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-12}, Rules(), []),
        ({"a": 1.0}, {"a": 1.1}, Rules(), ["a"]),
        ({"a": 1.0}, {"a": 1.1}, Rules(absolute=0.2), []),
        ({"a": 100.0}, {"a": 101.0}, Rules(relative=0.02), []),
        ({"a": math.nan}, {"a": math.nan}, Rules(), []),
        ({"a": math.nan}, {"a": 1.0}, Rules(), ["a"]),
        ({"a": 0.0}, {"a": -0.0}, Rules(), []),
        ({"a": 1}, {"a": 1.0}, Rules(), []),
        ({"a": 1}, {"a": True}, Rules(), ["a"]),
        ({"a": 1}, {"a": "1"}, Rules(), ["a"]),
        ({"a": 2**53}, {"a": 2**53 + 1}, Rules(), ["a"]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3, 4]}}, Rules(), ["a.b[]", "a.b[]"]),
        ({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 2}]}}, Rules(), ["a.b[].c"]),
        ({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 2}]}}, Rules(ignore=frozenset({"a.b[].c"})), []),
        ({"a": 1}, {}, Rules(), ["a"]),
        ({}, {"a": None}, Rules(), ["a"]),
        ({"a": 1}, {"b": 1}, Rules(ignore=frozenset({"a", "b"})), []),
        (1, 2, Rules(), ["value"]),
        (None, {"a": 1}, Rules(), ["value"]),
    ],
)
def test_fields_differ_by_the_rules(old: Any, new: Any, rules: Rules, expected: list[str]):
    assert [change.path for change in changes(old, new, rules)] == expected


def test_the_page_needs_nothing_from_outside_and_escapes_what_it_shows():
    app = App("evil", state_store="memory")
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    sales.map(lambda sale: {"<script>alert(1)</script>": sale["n"]}).to("alerts", value=Json())
    found = compare(app, program(), filled())
    text = page(found.diff, title="<new>", facts=[("range", "a & b")])
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<title>&lt;new&gt;</title>" in text
    assert not re.search(r"(src|href|url|@import)\s*[=(:]", text)
    assert "prefers-color-scheme: dark" in text
    json.dumps(found.as_fields())


def test_the_range_is_the_same_for_all_runs_although_more_input_arrives():
    broker = filled()
    old = program()
    times = count()

    def arrives(*_: Any) -> None:
        if next(times) < 2:
            send(broker, "sales", [(b"k1", {"n": 0, "size": 99}, 9_000)])

    found = Shadow(
        Program(program()),
        Program(old),
        RunRequest(name="shadow", begin=Earliest(), end=Latest()),
        rules=Rules(),
        broker=broker,
    ).run(arrives)
    assert found.diff.equal
    assert found.new.counts.records == found.old.counts.records == 2_000
