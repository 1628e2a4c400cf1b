"""Patterns as input: what they match, and the app's own topics, which they never read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings, strategies as st

from streams import App, Bytes, Json, Text, dead_letter, fail, skip
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import ProcessingError, TopicError, TopologyError
from streams.events import Event
from streams.records import Output
from streams.runtime.cleanup import TOPICS_SECONDS
from streams.runtime.topics import input_partitions
from streams.testing import TopologyDriver
from tests.support.clock import Clock
from tests.support.cluster import MemoryCluster
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from streams.runtime.worker import Worker


def named(*names: str) -> dict[str, Any]:
    admin = MemoryBroker().admin()
    admin.create_topics([NewTopic(name=name, partitions=1) for name in names])
    return admin.topics()


def test_a_pattern_that_matches_the_dead_letters_makes_one_dead_letter_of_one_record():
    app = App("orders")
    app.stream(re.compile(r"orders.*"), value=Json()).peek(print)
    driver = TopologyDriver(app)
    driver.send_bytes("orders-eu", b"not json")
    assert len(driver.dead_letters()) == 1


def test_a_dead_letter_topic_of_another_name_is_the_apps_own_too():
    app = App("orders", dead_letter_topic="orders-rubbish")
    app.stream(re.compile(r"orders.*"), value=Json()).peek(print)
    driver = TopologyDriver(app)
    driver.send_bytes("orders-eu", b"not json")
    assert len(driver.dead_letters()) == 1


def test_an_output_that_the_pattern_matches_is_not_read_again():
    app = App("orders")
    app.stream(re.compile(r".*"), value=Text()).map(str.upper).to("orders-out")
    driver = TopologyDriver(app)
    driver.send("orders-in", "a")
    assert driver.values("orders-out") == ["A"]


def test_own_topics_are_those_that_exist_for_the_app_by_name():
    app = App("orders", dead_letter_topic="orders-rubbish")
    prices = app.table("prices", key=Text(), value=Text())
    stream = app.stream(re.compile(r".*(orders|trades|replicas).*"), key=Text(), value=Text())
    stream.group_by(len, store="lengths", key=Json()).count("per-length")
    articles = app.table("articles", key=Text(), value=Text())
    prices.join_foreign_key(articles, str, lambda price, _: price, store="fk", result=Text())
    stream.to("orders-out", value=Text())
    own = [
        "orders-out",
        "orders-rubbish",
        "orders-dead-letters",
        "orders-replicas",
        "orders-lengths-repartition",
        "orders-per-length-changelog",
        # Of stores and groupings of another version of the program.
        "orders-removed-changelog",
        "orders-removed-repartition",
        *app.topology.repartitions,
        "__orders",
    ]
    others = [
        "orders",
        "orders-eu",
        "orders-eu-dead-letters",
        "orders-changelog",
        "trades-orders-x-changelog",
        "replicas",
    ]
    topology = app.topology
    found = input_partitions(topology, named("prices", "articles", *own, *others))
    assert set(found) == {"prices", "articles", *others, *topology.repartitions}
    for name in others:
        assert topology.source_of(name)[1].name == ".*(orders|trades|replicas).*"
    # Each internal topic is read by the one subtopology that names it.
    for topic in topology.repartitions:
        assert sum(subtopology.reads(topic) for subtopology in topology.subtopologies) == 1


def test_to_read_an_own_topic_it_is_named():
    app = App("orders")
    stream = app.stream(re.compile(r"orders-.*"), value=Text(), on_error=skip)
    stream.to("orders-out")
    app.stream("orders-out", value=Text()).map(len).to("lengths", value=Json())
    driver = TopologyDriver(app)
    driver.send("orders-eu", "abc")
    assert driver.values("lengths") == [3]
    app = App("orders")
    app.stream(re.compile(r"orders-.*")).to("orders-out")
    with pytest.raises(TopologyError, match="one of the app's own topics, which patterns exclude"):
        TopologyDriver(app).send("orders-out", "abc")


@pytest.mark.parametrize("policy", [dead_letter, skip, None])
def test_a_function_cannot_name_an_output_that_a_pattern_of_the_app_reads(policy):
    app = App("orders")
    app.stream(re.compile("orders-.*"), value=Text()).to(
        lambda value: f"orders-{value}", on_error=policy or fail
    )
    driver = TopologyDriver(app)
    if policy is None:
        with pytest.raises(ProcessingError, match="read its own output: topic 'orders-eu' is matched"):
            driver.send("orders-in", "eu")
        return
    driver.send("orders-in", "eu")
    assert driver.topics == (["orders-dead-letters"] if policy is dead_letter else [])
    app = App("orders")
    app.stream(re.compile("orders-.*"), value=Text()).to(lambda value: f"regional-{value}")
    driver = TopologyDriver(app)
    driver.send("orders-in", "eu")
    assert driver.values("regional-eu") == [b"eu"]


def test_a_pattern_of_bytes_is_refused():
    with pytest.raises(TopologyError, match="a pattern of bytes matches no topic"):
        App("orders").stream(re.compile(b"orders"))  # type: ignore[arg-type]  # a program without types


NAMES = st.text(st.sampled_from("aAbB1-_."), min_size=1, max_size=6)
PIECES = st.one_of(
    st.sampled_from(
        ["a", "A", "b", r"\.", "[ab]", r"\d", r"\w", "-", "_", "(a|b)", "(?:A)", "b*", "1+", " "]
    ),
    st.sampled_from([".", "$", "^", r"\b", "(?!a)", "(?<=a)", "x?"]),
)
PATTERNS = st.lists(st.lists(PIECES, max_size=4).map("".join), min_size=1, max_size=3).map("|".join)
FLAGS = st.sets(st.sampled_from([re.IGNORECASE, re.VERBOSE, re.MULTILINE, re.DOTALL, re.ASCII]))


@settings(max_examples=60)
@given(PATTERNS, FLAGS, st.sets(NAMES, min_size=1, max_size=8))
@example("a|ab", set(), {"a", "ab", "abc"})
@example("A", {re.IGNORECASE}, {"a", "A"})
def test_exactly_the_topics_that_python_matches_are_subscribed_to(text, flags, names):
    pattern = re.compile(text, sum(flags))
    app = App("app")
    app.stream(pattern, value=Bytes()).to("results", value=Bytes())
    place = Place(app)
    place.create(*names, "results")
    worker = place.worker()
    for _ in range(5):
        worker.run_once()
    wanted = {name for name in names if re.fullmatch(text, name, sum(flags)) and not name.startswith("__")}
    assert {partition.topic for partition in worker.progress} == wanted
    worker.close()


class Place(MemoryCluster):
    """Workers of an app on a broker in memory, whose clock advances when they poll."""

    def __init__(self, app: App) -> None:
        super().__init__({}, Clock(tick=0.0))
        self.app = app

    def worker(self) -> Worker:
        worker = self.make_worker(self.app, "slot", partitions=self.prepare(self.app, create_outputs=True))
        worker.start()
        return worker

    def create(self, *names: str, partitions: int = 1) -> None:
        self.admin.create_topics([NewTopic(name=name, partitions=partitions) for name in names])

    def send(self, topic: str, *values: bytes) -> None:
        self.write(Output(topic, values, values, [1_000] * len(values)))

    def values(self, topic: str) -> list[bytes | None]:
        return [value for _, value in self.rows(topic)]


def run(worker: Worker, rounds: int = 40) -> None:
    for _ in range(rounds):
        worker.run_once()


def test_a_worker_with_a_pattern_over_everything_comes_to_rest():
    app = App("orders")
    stream = app.stream(re.compile(r".*"), key=Text(), value=Json())
    stream.group_by(str, store="by", key=Text()).count("counts").to("orders-counts")
    place = Place(app)
    place.create("orders-eu")
    with capture_logs() as logs:
        worker = place.worker()
        place.send("orders-eu", b"1", b"not json", b"2")
        run(worker)
        worker.close()
        worker = place.worker()
    assert len(place.values("orders-dead-letters")) == 1
    assert len(place.values("orders-counts")) == 2
    (event,) = [entry for entry in logs if entry["event"] == Event.OWN_TOPICS_LEFT_OUT]
    assert event["topics"] == [
        "orders-by-repartition",
        "orders-counts",
        "orders-counts-changelog",
        "orders-dead-letters",
    ]
    run(worker)
    assert {item.topic for item in worker.progress} == {"orders-eu", "orders-by-repartition"}
    worker.close()


def counting() -> App:
    app = App("orders")
    app.stream(re.compile(r"orders-\w+"), key=Text(), value=Text()).group_by_key().count("counts").to(
        "orders-counts"
    )
    return app


def test_a_topic_that_a_store_begins_to_read_later_is_counted_with_the_others():
    place = Place(counting())
    place.create("orders-eu", partitions=2)
    worker = place.worker()
    place.send("orders-eu", b"a", b"b", b"a")
    run(worker)
    place.create("orders-us", partitions=2)
    place.send("orders-us", b"a", b"c")
    run(worker)
    place.send("orders-eu", b"a")
    place.send("orders-us", b"c")
    run(worker)
    place.admin.delete_topics(["orders-us"])
    place.send("orders-eu", b"a")
    run(worker)
    # The deletion of a topic has to be confirmed by a second check.
    for _ in range(2):
        place.clock.advance(TOPICS_SECONDS)
        run(worker)
    worker.close()
    counts = {key: int(value or b"") for key, value in place.rows("orders-counts")}
    assert counts == {b"a": 5, b"b": 1, b"c": 2}


def test_a_topic_with_other_partitions_than_the_store_ends_the_worker():
    place = Place(counting())
    place.create("orders-eu", partitions=2)
    worker = place.worker()
    run(worker)
    place.create("orders-us", partitions=3)
    with pytest.raises(TopicError, match="same number of partitions: orders-eu has 2, orders-us has 3"):
        run(worker)


def test_a_store_cannot_begin_before_its_pattern_matches_a_topic():
    with pytest.raises(
        TopicError, match=r"no topic is matched by /orders-\\w\+/, so the partition count of store 'counts'"
    ):
        Place(counting()).worker()


def test_a_new_topic_that_two_sources_would_read_ends_the_worker_by_name():
    app = App("orders")
    app.stream(re.compile("orders-.*"), name="all").to("out")
    app.stream(re.compile(".*-eu"), name="european").to("europe")
    place = Place(app)
    place.create("orders-us")
    worker = place.worker()
    run(worker)
    place.create("orders-eu")
    with pytest.raises(
        TopologyError, match="'orders-eu' must belong to exactly one source, but it matches: all"
    ):
        run(worker)
