"""``name=`` is a label, free to change; ``store=`` names state and internal topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given, strategies as st

from streams import (
    App,
    Json,
    Session,
    Sliding,
    Stream,
    Table,
    Text,
    TopologyError,
    Tumbling,
    count,
    key_value_store,
    minutes,
    seconds,
    total,
)
from streams.state.changelog import changelog_topic
from streams.testing import TopologyDriver

Label: TypeAlias = Callable[[str], str | None]
"""The label of a step of a program; ``None`` for one without."""


class Counting:
    def open(self, context: Any) -> None:
        self.counts = context.store("counted")

    def process(self, record: Any, context: Any) -> None:
        self.counts.put(record.key, (self.counts.get(record.key) or 0) + 1)
        context.forward(record)


def stream(app: App, topic: str = "numbers") -> Stream[str, int]:
    return app.stream(topic, key=Text(), value=Json(int))


def rekeyed(app: App, label: Label, topic: str = "numbers") -> Stream[str, int]:
    return stream(app, topic).key_by(lambda number: str(number % 3), name=label(f"key {topic}"))


def table(app: App) -> Table[str, int]:
    return app.table("prices", key=Text(), value=Json(int), store="prices")


def both(one: Any, other: Any) -> int:
    return (one or 0) + (other or 0)


def absolute(number: int) -> int:
    return abs(number)


def rest(number: int) -> str:
    return str(number % 3)


def windowed(window: Any) -> Callable[[App, Label], Any]:
    def build(app: App, label: Label) -> Any:
        grouped = rekeyed(app, label).group_by_key(name=label("group"))
        counted = grouped.window(window, grace=seconds(5)).count("windows", name=label("window"))
        counted.late().to("late")
        return counted.updates()

    return build


def joined(method: str) -> Callable[[App, Label], Any]:
    def build(app: App, label: Label) -> Any:
        left, right = rekeyed(app, label, "left"), rekeyed(app, label, "right")
        result = getattr(left, method)(
            right, both, within=seconds(5), store="pairs", name=label("join"), value=Json(int)
        )
        result.late().to("late", value=Json())
        return result

    return build


STATEFUL: dict[str, Callable[[App, Label], Any]] = {
    "count": lambda app, label: rekeyed(app, label).group_by_key(name=label("g")).count("n", name=label("c")),
    "count by keyword": lambda app, label: (
        rekeyed(app, label).group_by_key(store="grouped").count(store="n", name=label("c"))
    ),
    "reduce": lambda app, label: (
        stream(app).group_by(rest, store="by-rest", name=label("g")).reduce("r", both, name=label("r"))
    ),
    "aggregate": lambda app, label: (
        stream(app)
        .group_by(rest, store="by-rest", name=label("g"))
        .aggregate("a", n=count(), sum=total(), name=count())
    ),
    "tumbling": windowed(Tumbling(minutes(1))),
    "sliding": windowed(Sliding(minutes(1))),
    "sessions": windowed(Session(minutes(1))),
    "to_table": lambda app, label: rekeyed(app, label).to_table("latest", name=label("t")),
    "repartition": lambda app, label: stream(app).repartition("spread", name=label("r")),
    "process": lambda app, label: rekeyed(app, label).process(
        Counting, stores=[key_value_store("counted", value=Json(int))], store="work", name=label("p")
    ),
    "join": joined("join"),
    "left_join": joined("left_join"),
    "outer_join": joined("outer_join"),
    "join with a table": lambda app, label: rekeyed(app, label).join(
        table(app), both, store="priced", name=label("j")
    ),
    "join of tables": lambda app, label: table(app).join(
        stream(app).to_table("latest", name=label("t")), both, name=label("j")
    ),
    "group_by of a table": lambda app, label: (
        table(app).group_by(rest, store="by-rest", name=label("g")).count("n", name=label("c"))
    ),
    "reduce of a table": lambda app, label: (
        table(app)
        .group_by(rest, store="by-rest", name=label("g"))
        .reduce("r", both, lambda so_far, number: so_far - number, name=label("r"))
    ),
    "join_foreign_key": lambda app, label: table(app).join_foreign_key(
        stream(app).to_table("latest", name=label("t")),
        rest,
        both,
        store="origins",
        name=label("f"),
        result=Json(int),
    ),
}


def beginning(prefix: str) -> Label:
    """Labels that all have this prefix."""
    return lambda step: f"{prefix}{step}"


def build(kind: str, label: Label) -> App:
    app = App("shop")
    STATEFUL[kind](app, label).to("out", value=Json(), name=label("out"))
    return app


def kept(app: App) -> dict[str, Any]:
    """The names of a program's stores and topics."""
    topology = app.topology
    stores = [store for part in topology.subtopologies for store in part.stores]
    return {
        "stores": [(store.name, changelog_topic(app.name, store), store.schema) for store in stores],
        "repartition topics": topology.repartitions,
        "outputs": topology.output_topics,
        "alike in partitions": sorted(
            {tuple(sorted(map(str, part.topics))) for part in topology.copartitions}
        ),
    }


@pytest.mark.parametrize("kind", STATEFUL)
@given(prefix=st.text(min_size=1, max_size=5))
def test_a_label_changes_no_store_no_topic_and_no_schema(kind, prefix):
    plain, labelled = build(kind, lambda step: step), build(kind, beginning(f"{prefix}/"))
    assert kept(labelled) == kept(plain)
    assert kept(plain)["stores"] or kept(plain)["repartition topics"]
    steps = {node.name for node in labelled.topology.nodes}
    assert f"{prefix}/out" in steps
    assert not steps & {"c", "j", "t", "p", "f", "window", "join"}


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_program_without_labels_has_the_same_stores_and_topics(kind):
    def none(_step: str) -> None:
        return None

    assert kept(build(kind, none)) == kept(build(kind, lambda step: step))


@pytest.mark.parametrize("kind", STATEFUL)
def test_steps_that_are_added_upstream_change_no_store_and_no_topic(kind):
    """Generated names of steps are numbered: none of them may name a topic."""
    app = App("shop")
    stream(app, "others").key_by(rest).group_by_key().count("others").to("others-out")
    stream(app, "more").filter(bool).map(absolute).to_table("more", value=Json(int)).group_by(rest).count(
        "more-n"
    ).to("more-out")
    before = {kind: set(map(str, found)) for kind, found in kept(app).items()}
    STATEFUL[kind](app, lambda _: None).to("out", value=Json())
    alone = kept(build(kind, lambda _: None))
    together = {part: set(map(str, found)) - before[part] for part, found in kept(app).items()}
    assert together == {part: set(map(str, found)) for part, found in alone.items()}


@pytest.mark.parametrize("kind", STATEFUL)
def test_programs_with_other_labels_work_the_same_and_continue_with_each_others_state(kind):
    results = []
    for labels in (("one", "one"), ("one", "two")):
        driver = TopologyDriver(build(kind, beginning(labels[0])))
        for half in labels:
            driver.restart(build(kind, beginning(half)))
            topics = [topic for topic in driver_inputs(kind) if topic]
            for number in range(6):
                for topic in topics:
                    driver.send(topic, number, key=rest(number), timestamp=1_000 * number)
        results.append([(record.key, record.value) for record in driver.read("out", value=Json())])
        assert driver.dead_letters() == []
    assert results[0] == results[1] != []


def driver_inputs(kind: str) -> list[str]:
    topology = build(kind, lambda step: step).topology
    return [str(topic) for topic in topology.input_topics if topic not in topology.repartitions]


def test_the_label_is_what_errors_and_descriptions_call_a_step():
    app = App("shop")
    stream(app).group_by(rest, store="by-rest", name="groups").count("n", name="counting").to("out")
    described = app.topology.describe()
    assert "groups: group_by rest" in described
    assert "counting: aggregate" in described
    assert list(app.topology.repartitions) == ["shop-by-rest-repartition"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda app: stream(app).group_by(rest, name="g"), r"group_by.*store='g'\) for <app>-g-repartition"),
        (lambda app: table(app).group_by(rest, name="g"), r"group_by.*store='g'\) for <app>-g-repartition"),
        (
            lambda app: (
                stream(app).key_by(rest).process(Counting, stores=[key_value_store("counted")], name="p")
            ),
            r"process.*store='p'\) for <app>-p-repartition",
        ),
        (lambda app: stream(app).key_by(rest).join(table(app), both, name="j"), r"needs a name.*store=…"),
        (
            lambda app: stream(app).join(stream(app, "other"), both, within=seconds(1), name="j"),
            r"need a name.*store=….*name= is only a label",
        ),
    ],
)
def test_a_label_alone_is_refused_where_it_named_a_topic_or_stores(make, message):
    with pytest.raises(TopologyError, match=f"(?s){message}"):
        make(App("shop"))


def test_two_steps_that_would_share_a_repartition_topic_are_named_with_advice():
    app = App("shop")
    for topic in ("one", "two"):
        rekeyed(app, lambda step: step, topic).repartition("shared").to(f"{topic}-out")
    with pytest.raises(TopologyError, match=r"(?s)2 steps send records through one .*shared.*store="):
        _ = app.topology
