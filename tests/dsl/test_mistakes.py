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
    ProcessingError,
    Record,
    Stream,
    StreamsError,
    Text,
    TopologyError,
    count,
    dead_letter,
    minutes,
    retry,
    skip,
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
        "both say how far apart",
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
        lambda app: stream(app).to("out") or TopologyDriver(app).advance(untyped(5)),
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
        lambda stream: stream.map_records(untyped(lambda record: record.value)).to("out"),
        "map_records needs records from its function, got int",
    ),
    "flat_map": (
        lambda stream: stream.flat_map(untyped(lambda value: value)).to("out"),
        "iterable is needed",
    ),
    "flat_map, nothing": (lambda stream: stream.flat_map(untyped(lambda _: None)).to("out"), "got None"),
    "flat_map_records": (
        lambda stream: stream.flat_map_records(untyped(lambda record: record)).to("out"),
        "iterable is needed",
    ),
    "flat_map_records, values": (
        lambda stream: stream.flat_map_records(untyped(lambda record: [record.value])).to("out"),
        "flat_map_records needs records from its function, got int",
    ),
    "to": (lambda stream: stream.to(untyped(lambda value: value)), "a topic's name is needed, got 1"),
}


@pytest.mark.parametrize("step", UNFIT)
@pytest.mark.parametrize("policy", [dead_letter, skip, retry(3, then=dead_letter)], ids=str)
def test_a_first_result_of_a_type_that_the_step_cannot_use_stops_the_app(step: str, policy: ErrorPolicy):
    declare, message = UNFIT[step]
    app = App("mistaken", on_error=policy)
    declare(stream(app))
    driver = TopologyDriver(app)
    with pytest.raises(ProcessingError, match=rf"in-0 offset 0.*{message}.*\n  hint: mend the program"):
        driver.send_all("in", [Record("a", 1, 0), Record("a", 1, 0)])
    assert not driver.dead_letters()


def test_a_later_result_of_such_a_type_fails_alone():
    app = App("mistaken")
    stream(app).flat_map(untyped(lambda value: [value] if value else None)).to("out")
    driver = TopologyDriver(app)
    driver.send_all("in", [Record("a", value, 0) for value in (1, 0, 2)])
    assert driver.values("out") == [1, 2]
    assert [letter.value for letter in driver.dead_letters()] == [b"0"]


def test_a_key_of_bytes_is_advised_the_serde_of_bytes():
    app = App("mistaken")
    stream(app).key_by(untyped(lambda _: b"key")).to("out")
    with pytest.raises(TopologyError, match=r"key=Bytes\(\)"):
        TopologyDriver(app).send("in", 1, key="a")


def test_the_wait_of_a_policy_stays_a_duration():
    assert retry(2, backoff=minutes(1), longest_backoff=minutes(2)).backoff == timedelta(minutes=1)
