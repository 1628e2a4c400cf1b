"""Mistakes in the program are errors where it is written, with what to write instead."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from streams import (
    App,
    ConfigurationError,
    ErrorPolicy,
    JoinWindow,
    Json,
    Record,
    Stream,
    StreamsError,
    Text,
    TopologyError,
    count,
    minutes,
    retry,
    total,
)
from streams.testing import TopologyDriver

if TYPE_CHECKING:
    from collections.abc import Callable


def stream(app: App, topic: str = "in") -> Stream[str, Any]:
    return app.stream(topic, key=Text(), value=Json())


def first(one: Any, other: Any) -> Any:
    return one or other


# Without their types: programs of these kinds do not type-check.
untyped: Any = lambda item: item  # noqa: E731 - a value, to be passed where its type does not fit


def advance_by_a_number(app: App) -> None:
    stream(app).to("out")
    TopologyDriver(app).advance(untyped(5))


DECLARED: dict[str, tuple[Callable[[App], object], str]] = {
    "no function": (lambda app: stream(app).map(untyped("path")), "needs a function, got 'path'"),
    "no predicate": (lambda app: stream(app).filter(untyped(True)), "needs a function, got True"),
    "no event time": (
        lambda app: stream(app).map(str, timestamp=untyped("time")),
        "needs a function, got 'time'",
    ),
    "no event time of a source": (
        lambda app: app.stream("in", timestamp=untyped("time")),
        "needs a function, got 'time'",
    ),
    "no topic": (lambda app: stream(app).to(untyped(5)), "takes a topic's name"),
    "an aggregate not called": (
        lambda app: stream(app).group_by_key().aggregate("n", hits=untyped(count)),
        r"got hits=count\n  hint: call it: count\(",
    ),
    "one aggregate not called": (
        lambda app: stream(app).group_by_key().aggregate("n", untyped(total)),
        r"got total\n  hint: call it: total\(",
    ),
    "a function as aggregate": (
        lambda app: stream(app).group_by_key().aggregate("n", hits=untyped(first)),
        r"custom\(…\).*reduce\(store, first\)",
    ),
    "a number as aggregate": (
        lambda app: stream(app).group_by_key().aggregate("n", hits=untyped(5)),
        "got hits=5",
    ),
    "a label as field": (
        lambda app: stream(app).group_by_key().aggregate("n", hits=count(), name=untyped("label")),
        "keywords are fields",
    ),
    "a function as store": (
        lambda app: stream(app).group_by_key().reduce(untyped(first), untyped("n")).to("out"),
        "cannot name a store",
    ),
    "a number as store": (
        lambda app: stream(app).group_by_key().count(untyped(5)).to("out"),
        "5 cannot name a store",
    ),
    "a table merged": (
        lambda app: stream(app).merge(untyped(app.table("table", key=Text()))),
        r"merged with streams, got Table\n  hint: .*to_stream",
    ),
    "a table as global table": (
        lambda app: stream(app).join_global(untyped(app.table("table", key=Text())), str, first),
        r"app.global_table, got Table\n  hint: .*stream.join\(table",
    ),
    "a stream as foreign table": (
        lambda app: app.table("table", key=Text()).join_foreign_key(
            untyped(stream(app)), str, first, store="joined"
        ),
        "joined: a table joins a table, got Stream",
    ),
    "two windows of a join": (
        lambda app: stream(app).join(
            stream(app, "other"),
            first,
            within=minutes(1),
            window=JoinWindow(after=minutes(2)),
            store="joined",
        ),
        "both define",
    ),
    "an old name of a table": (
        lambda app: untyped(app).table("table", name="prices"),
        r"app.table\('table', store='prices'\)",
    ),
    "an old name of a global table": (
        lambda app: untyped(app).global_table("table", name="prices"),
        r"app.global_table\('table', store='prices'\)",
    ),
    "retries that are no number": (lambda _: retry(untyped("3")), "whole number of times, got '3'"),
    "half a retry": (lambda _: retry(untyped(2.5)), "whole number of times, got 2.5"),
    "retries that are a truth": (lambda _: retry(True), "whole number of times, got True"),
    "retry, then what": (lambda _: retry(3, then=untyped("skip")), "then takes a policy, got 'skip'"),
    "an unknown action": (lambda _: ErrorPolicy(untyped("drop")), "fail, dead_letter, skip, got 'drop'"),
    "a number to advance by": (
        advance_by_a_number,
        "the time to advance by must be a duration, got 5",
    ),
}


def build(app: App, declare: Callable[[App], object]) -> object:
    declare(app)
    return app.topology


@pytest.mark.parametrize("mistake", DECLARED)
def test_a_mistake_is_an_error_where_it_is_written(mistake: str):
    declare, message = DECLARED[mistake]
    app = App("mistaken")
    with pytest.raises(StreamsError, match=message):
        build(app, declare)


def test_the_mistakes_are_errors_of_the_topology_or_of_arguments():
    with pytest.raises(TopologyError):
        stream(App("mistaken")).map(untyped("path"))
    with pytest.raises(ConfigurationError):
        retry(3, then=untyped("skip"))


UNFIT: dict[str, tuple[Callable[[Stream[str, Any]], object], str]] = {
    "map_records": (
        lambda stream: stream.map_records(untyped(lambda record: record if record.value else None)).to("out"),
        "the function of map_records must return records, got NoneType",
    ),
    "flat_map": (
        lambda stream: stream.flat_map(untyped(lambda value: [value] if value else None)).to("out"),
        "must return a list, generator or other iterable, empty for no record, got None",
    ),
    "flat_map_records": (
        lambda stream: stream.flat_map_records(untyped(lambda r: [r] if r.value else r)).to("out"),
        "must return a list, generator or other iterable",
    ),
    "flat_map_records, values": (
        lambda stream: stream.flat_map_records(untyped(lambda r: [r if r.value else r.value])).to("out"),
        "the function of flat_map_records must return records, got int",
    ),
    "to": (
        lambda stream: stream.to(untyped(lambda value: "out" if value else None)),
        "the function must return the name of a topic, got None",
    ),
}


@pytest.mark.parametrize("step", UNFIT)
def test_a_result_of_a_type_that_the_step_cannot_use_fails_alone_and_says_what_is_needed(step: str):
    declare, message = UNFIT[step]
    app = App("mistaken", dead_letter_limit=1.0)
    declare(stream(app))
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", value, 0) for value in (1, 0, 2)])
    assert [record.value for record in driver.read("out", value=Json())] == [1, 2]
    (letter,) = driver.dead_letters()
    assert letter.value == b"0"
    assert any(message.encode() in (value or b"") for _, value in letter.headers or [])


def test_a_key_of_bytes_is_advised_the_serde_of_bytes():
    app = App("mistaken")
    stream(app).key_by(untyped(lambda _: b"key")).to("out")
    with pytest.raises(TopologyError, match=r"key=Bytes\(\)"):
        TopologyDriver(app).send("in", 1, key="a")


def test_the_wait_of_a_policy_stays_a_duration():
    assert retry(2, backoff=minutes(1), longest_backoff=minutes(2)).backoff == timedelta(minutes=1)
