"""Traces on the memory broker: from results, dead letters and stores' entries to input records."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Hopping, Json, Record, Session, Sliding, Text, Tumbling, collect, seconds
from streams.errors import ConfigurationError, QueryError, TopicError, UnknownStore
from streams.lineage import HEADER
from streams.records import TopicPartition
from streams.replay.trace.entries import trace_entry
from streams.replay.trace.reader import RecordReader
from streams.replay.trace.search import search
from streams.replay.trace.tracer import Tracer
from tests.support.cluster import AppCluster
from tests.support.connectors import Feed, MemorySource
from tests.support.crew import Crew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.replay.trace.node import TraceNode

READING = Json(dict[str, Any])


def fails_on_seven(reading: dict[str, Any]) -> dict[str, Any]:
    if reading["n"] == 7:
        raise ValueError("seven")
    return reading


def program(name: str = "app", *, lineage: bool = True) -> App:
    app = App(name, lineage=lineage, commit_interval=0.05)
    readings = app.stream("in", key=Text(), value=READING)
    readings.filter(lambda v: v["n"] % 2 == 1).map(fails_on_seven).to("odd", value=READING)
    groups = readings.group_by(lambda v: v["team"], store="teams")
    groups.count("counts").to("counts", value=Json())
    groups.window(Tumbling(seconds(10)), keep=seconds(100)).count("tumbling").final().to(
        "final", value=Json()
    )
    groups.window(Hopping(size=seconds(10), advance=seconds(5))).aggregate("hopping", collect("n"))
    groups.window(Session(gap=seconds(5))).count("sessions").updates().to("sessions", value=Json())
    groups.window(Sliding(difference=seconds(5))).count("sliding").updates().to("sliding", value=Json())
    names = app.table("names", key=Text(), value=Text(), store="names")
    readings.join(names, lambda v, name: v | {"name": name}).to("named", value=READING)
    return app


class Stage:
    """An app that has processed records, and traces of it."""

    def __init__(self, app: App, inputs: tuple[str, ...] = ("in", "names")) -> None:
        self.crew = Crew(app, inputs=inputs, partitions=2)
        self.app, self.broker = app, self.crew.broker
        self.crew.start()

    def send(self, topic: str, *records: Record[Any, Any]) -> None:
        self.crew.send(topic, *records)
        self.crew.settle()

    def trace(self, topic: str, partition: int, offset: int, records: int = 0) -> TraceNode:
        with closing(RecordReader(self.broker)) as reader:
            tracer = Tracer(self.app, reader)
            tree = tracer.record(topic, partition, offset)
            if records:
                search(tracer, self.broker, tree, topic, partition, offset, records)
            return tree

    def last(self, topic: str, records: int = 0) -> TraceNode:
        record = self.crew.read(topic)[-1]
        return self.trace(topic, record.partition, record.offset, records)

    def entry(self, store: str, key: str, window: int | None = None) -> TraceNode:
        with closing(RecordReader(self.broker)) as reader:
            return trace_entry(Tracer(self.app, reader), self.broker, store, key, window)


def reading(key: str, number: int, team: str, time: int) -> Record[Any, Any]:
    return Record(key.encode(), b'{"n":%d,"team":"%s"}' % (number, team.encode()), time * 1000)


READINGS = [
    reading("a", 1, "x", 1),
    reading("b", 2, "x", 2),
    reading("a", 3, "y", 3),
    reading("c", 5, "x", 4),
    reading("a", 9, "z", 60),
    reading("b", 9, "z", 60),
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(program())
    stage.send("names", Record(b"a", b"Anna", 0))
    stage.send("in", *READINGS)
    yield stage
    stage.crew.stop()


def leaves(node: TraceNode) -> list[Any]:
    """The values of the input records in a tree."""
    own = [node.record["value"]] if node.kind in ("input", "candidate") else []
    return own + [value for child in node.children for value in leaves(child)]


def everything(node: TraceNode) -> str:
    return "\n".join([*node.lines(), *map(everything, node.children)])


def test_a_result_of_one_record(stage: Stage):
    record = next(item for item in stage.crew.read("odd") if item.value == READINGS[2].value)
    tree = stage.trace("odd", record.partition, record.offset)
    assert tree.kind == "result"
    assert tree.record["value"] == {"n": 3, "team": "y"}
    assert tree.record["key"] == "a"
    assert leaves(tree) == [{"n": 3, "team": "y"}]
    (path,) = tree.children
    assert path.title == "made of 1 record: from in through filter, map-fails_on_seven"
    assert tree.fields()["from"][0]["lineage"]["records"] == 1


def test_an_aggregate_behind_a_repartition_topic(stage: Stage):
    record = next(item for item in reversed(stage.crew.read("counts")) if item.key == b"x")
    tree = stage.trace("counts", record.partition, record.offset)
    assert tree.record["value"] == 3
    assert [value["n"] for value in leaves(tree)] == [1, 5]
    assert "made of 3 records: from in through group_by" in everything(tree)
    assert "from app-teams-repartition through aggregate counts" in everything(tree)


def test_another_worker_continues_the_lineage_without_the_disk_of_the_first(stage: Stage):
    stage.crew.kill()
    stage.crew.lose_disk()
    stage.crew.start()
    stage.send("in", reading("e", 8, "x", 61))
    tree = stage.last("counts")
    assert tree.record["value"] == 4
    assert [value["n"] for value in leaves(tree)] == [1, 8]
    assert "made of 4 records" in everything(tree)


def test_a_record_of_the_repartition_topic_itself(stage: Stage):
    record = stage.crew.read("app-teams-repartition")[0]
    tree = stage.trace(record.topic, record.partition, record.offset)
    assert leaves(tree) == [tree.record["value"]]


@pytest.mark.parametrize(
    ("store", "key", "window", "shown", "made_of"),
    [
        ("counts", "x", None, 3, [1, 5]),
        ("tumbling", "x", 0, 3, [1, 5]),
        ("tumbling-closed", "x", 0, 3, [1, 5]),
        ("hopping", "z", 55_000, [9, 9], [9, 9]),
        ("sessions", "z", None, 2, [9, 9]),
    ],
)
def test_a_stores_entry(
    stage: Stage, store: str, key: str, window: int | None, shown: Any, made_of: list[int]
):
    tree = stage.entry(store, key, window)
    (node,) = tree.children if store == "sessions" else [tree]
    assert node.record["value"] == shown
    assert [value["n"] for value in leaves(tree)] == made_of


def test_all_windows_of_a_key(stage: Stage):
    sliding = stage.entry("sliding", "z")
    assert [node.record["value"] for node in sliding.children] == [2]
    assert [node.children[0].record["lineage"]["records"] for node in sliding.children] == [2]
    stage.send("in", reading("d", 4, "z", 66))
    tree = stage.entry("hopping", "z")
    assert [node.record["start"] for node in tree.children] == [55_000, 60_000, 65_000]


def test_an_entry_of_a_table_is_its_topics_record(stage: Stage):
    tree = stage.entry("names", "a")
    assert leaves(tree) == ["Anna"]


def test_what_a_join_reads_besides_is_said(stage: Stage):
    tree = stage.last("named")
    assert len(leaves(tree)) == 1
    assert "reads table 'names' (topic names), whose entries are not part of the lineage" in everything(tree)


def test_a_dead_letter(stage: Stage):
    stage.send("in", reading("q", 7, "x", 61))
    tree = stage.last("app-dead-letters")
    assert tree.kind == "dead_letter"
    assert tree.record["error"] == "ValueError: seven"
    assert tree.record["value"] == {"n": 7, "team": "x"}
    assert leaves(tree) == [{"n": 7, "team": "x"}]
    with closing(RecordReader(stage.broker)) as reader:
        record = stage.crew.read("app-dead-letters")[-1]
        again = Tracer(stage.app, reader).dead_letter(record.partition, record.offset)
    assert again.fields() == tree.fields()


def test_an_input_record_is_its_own_origin(stage: Stage):
    assert "nothing made it" in everything(stage.trace("in", 0, 0))


def test_an_input_record_that_retention_has_deleted_says_so(stage: Stage):
    record = next(item for item in reversed(stage.crew.read("counts")) if item.key == b"x")
    for number in range(2):
        stage.crew.admin.delete_records({TopicPartition("in", number): 1})
    tree = stage.trace("counts", record.partition, record.offset)
    (path,) = tree.children
    assert "gone" in [child.kind for child in path.children]
    assert (
        "the input record no longer exists: it was deleted (retention); the oldest record has offset 1"
        in (everything(tree))
    )


def test_an_app_that_reads_what_it_writes_is_followed():
    app = App("app", lineage=True, commit_interval=0.05)
    app.stream("in", key=Text(), value=READING).to("between", value=READING)
    app.stream("between", key=Text(), value=READING).to("out", value=READING)
    stage = Stage(app, ("in", "between"))
    stage.send("in", READINGS[0])
    tree = stage.last("out")
    assert leaves(tree) == [{"n": 1, "team": "x"}]
    assert "between-" in everything(tree)


def test_results_of_another_app_upstream_name_it():
    stage = Stage(program(lineage=False))
    stage.send(
        "in", Record(b"a", b'{"n":1,"team":"x"}', 1000, [(HEADER, b"first orders:0:3"), ("own", b"1")])
    )
    tree = stage.last("odd")
    assert "its lineage header is of the app first" in everything(tree)
    assert tree.record["headers"] == {"own": "1"}
    assert leaves(tree) == []
    found = stage.trace("in", stage.crew.read("in")[0].partition, 0)
    assert "it is a result of the app first" in everything(found)


def test_without_lineage_the_topology_answers_and_says_how_to_know_more():
    stage = Stage(program(lineage=False))
    stage.send("in", *READINGS)
    text = everything(stage.last("counts"))
    assert "it names no input records" in text
    assert "App(lineage=True)" in text
    assert "from app-teams-repartition through aggregate counts" in text
    assert "from in through group_by" in text
    assert "it names no input records" in everything(stage.entry("counts", "x"))


def test_a_search_finds_what_gives_the_same_bytes():
    stage = Stage(program(lineage=False))
    stage.send("in", *READINGS, *READINGS[:1], *(reading("k", 2, "x", 70) for _ in range(3)))
    record = next(item for item in stage.crew.read("odd") if item.value == READINGS[2].value)
    tree = stage.trace("odd", record.partition, record.offset, 1_000)
    assert leaves(tree) == [{"n": 3, "team": "y"}]
    assert [child.kind for child in tree.children] == ["candidate"]
    assert "exactly one gives a record with the same bytes" in everything(tree)
    # Two equal input records cannot be told apart, and both are shown.
    record = stage.crew.read("odd")[0]
    assert record.value == READINGS[0].value
    tree = stage.trace("odd", record.partition, record.offset, 1_000)
    assert leaves(tree) == [{"n": 1, "team": "x"}] * 2
    assert "2 give a record with the same bytes" in everything(tree)


def test_a_search_that_finds_nothing_says_so():
    stage = Stage(program(lineage=False))
    stage.send("in", *READINGS)
    stage.send("odd", reading("x", 11, "foreign", 1))
    assert "none gives this record" in everything(stage.last("odd", 1_000))


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("counts", "it comes through the internal topic app-teams-repartition"),
        ("named", "step 'join' has the store 'names'"),
    ],
)
def test_a_search_is_refused_where_a_record_does_not_decide(topic: str, reason: str):
    stage = Stage(program(lineage=False))
    stage.send("names", Record(b"a", b"Anna", 0))
    stage.send("in", *READINGS)
    with pytest.raises(ConfigurationError, match=reason):
        stage.last(topic, 1_000)


def test_a_search_has_no_effects_and_forgives_failing_records():
    app = App("app", commit_interval=0.05)
    seen: list[Any] = []
    stream = app.stream("in", key=Text(), value=READING)
    stream.peek(seen.append).map(fails_on_seven).to("out", value=READING)
    stage = Stage(app, ("in",))
    stage.send("in", *READINGS, reading("q", 7, "x", 61))
    before = len(seen)
    letters = len(stage.crew.read("app-dead-letters"))
    assert leaves(stage.last("out", 1_000))
    assert len(seen) == before
    assert len(stage.crew.read("app-dead-letters")) == letters == 1


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        (("nowhere", 0, 0), ConfigurationError, "app neither writes nor reads the topic nowhere"),
        (("odd", 9, 0), TopicError, "topic odd has no partition 9: it has 2"),
        (("odd", 0, 99), TopicError, "odd-0 has no record at offset 99: the end of what is committed is"),
        (("app-dead-letters", 0, 5), TopicError, "has no record at offset 5"),
    ],
)
def test_places_that_do_not_exist_are_refused(
    stage: Stage, place: tuple[str, int, int], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        stage.trace(*place)


@pytest.mark.parametrize(
    ("store", "key", "window", "error", "message"),
    [
        ("nothing", "x", None, UnknownStore, "has no store 'nothing'"),
        ("counts", "unknown", None, QueryError, "no entry of the key 'unknown'"),
        ("tumbling", "x", 5, QueryError, "the window that starts at 5"),
    ],
)
def test_entries_that_do_not_exist_are_refused(
    stage: Stage, store: str, key: str, window: int | None, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        stage.entry(store, key, window)


def test_keys_of_another_type_are_refused():
    app = App("app", lineage=True, commit_interval=0.05)
    app.stream("in", value=READING).group_by(lambda v: v["n"], key=Json(int), store="n").count("counts")
    stage = Stage(app, ("in",))
    stage.send("in", *READINGS)
    assert stage.entry("counts", "9").record["value"] == 2
    with pytest.raises(QueryError, match="has keys of"):
        stage.entry("counts", "nine")


def test_values_that_cannot_be_decoded_are_shown_raw(stage: Stage):
    stage.send("in", Record(b"\xff", b"\xfe", 61_000))
    tree = stage.last("app-dead-letters")
    assert tree.record["value"] == "fe"
    assert tree.record["key"] == "ff"
    assert any("cannot be decoded" in error for error in tree.record["errors"])


def test_a_result_of_a_source_connector_names_its_record_there():
    feed = Feed(list(range(10)))
    app = App("app", lineage=True)
    app.source(MemorySource(feed), store="feed").to("out")
    site = AppCluster(app)
    worker = site.worker()
    site.run(worker, until=lambda: len(site.payloads("out")) == 10)
    worker.close()
    with closing(RecordReader(site.broker)) as reader:
        tree = Tracer(app, reader).record("out", 0, 3)
    assert "as a source connector (feed) counts them" in everything(tree)
    assert "the record is not in a topic" in everything(tree)
