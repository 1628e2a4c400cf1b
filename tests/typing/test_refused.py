"""Programs that type checkers reject, with the error marked at its line; most fail at run time too.

An unnecessary mark is an error for both checkers in ``make check``.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from streams import (
    App,
    Hopping,
    JoinWindow,
    Json,
    Stream,
    Text,
    TopologyError,
    Tumbling,
    count,
    first,
    minutes,
    retry,
    total,
)
from streams.durations import milliseconds
from streams.errors import ConfigurationError
from streams.policy import dead_letter
from streams.testing import TopologyDriver


class Hit(msgspec.Struct):
    path: str
    size: int
    status: int


@dataclass
class Page:
    title: str


@pytest.fixture
def app() -> App:
    return App("refused")


@pytest.fixture
def hits(app: App) -> Stream[str, Hit]:
    return app.stream("hits", key=Text(), value=Json(Hit))


def path(hit: Hit) -> str:
    return hit.path


def status(hit: Hit) -> int:
    return hit.status


def both(hit: Hit, page: Page) -> str:
    return hit.path + page.title


def test_what_is_no_setting(app: App):
    with pytest.raises(ConfigurationError, match=r"did you mean commit_interval\?"):
        App("x", comit_interval=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigurationError, match="guarantee='maybe'"):
        App("x", guarantee="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_field_that_values_do_not_have(hits: Stream[str, Hit]):
    hits.map(lambda hit: hit.sise)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    groups = hits.group_by_key()
    groups.aggregate("a", first(lambda hit: hit.pth))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_record_of_other_types(hits: Stream[str, Hit]):
    hits.map_records(lambda record: record.with_(value=record.value.sise))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    hits.map_records(lambda record: record.value)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    hits.map_records(lambda record: record.with_(key=1), keeps_key=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TopologyError, match="leave out one of the two"):
        hits.map_records(lambda record: record, key=Text(), keeps_key=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def test_an_aggregate_of_other_values(hits: Stream[str, Hit]):
    def title(page: Page) -> str:
        return page.title

    groups = hits.group_by_key()
    groups.aggregate("a", first(title))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    groups.aggregate("b", n=count(), title=first(title))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_sum_of_what_is_no_number(hits: Stream[str, Hit]):
    groups = hits.group_by_key()
    groups.aggregate("a", total(path))  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_keys_that_are_no_text_without_key(hits: Stream[str, Hit]):
    hits.group_by(lambda hit: hit.status)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    hits.key_by(lambda hit: hit.status)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    hits.group_by(path, key=Json(int))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    advice = r"-status: status makes keys of type int, .*\n.*key=Json\(int\)"
    with pytest.raises(TopologyError, match=f"group_by{advice}"):
        hits.group_by(status)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=f"key_by{advice}"):
        hits.key_by(status)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    table = hits.to_table("hits")
    with pytest.raises(TopologyError, match=f"group_by{advice}"):
        table.group_by(status)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_keys_of_a_lambda_that_are_no_text_stop_the_app_before_anything_is_a_dead_letter(app: App):
    hits = app.stream("hits", key=Text(), value=Json(Hit), on_error=dead_letter)
    grouped = hits.group_by(lambda hit: hit.status, on_error=dead_letter)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    grouped.count("by-status").to("out")
    driver = TopologyDriver(app)
    with pytest.raises(TopologyError, match=r"(?s)step 'group_by'.*type int, 200.*key=Json\(int\)"):
        driver.send("hits", Hit("/", 1, 200))
    assert driver.dead_letters() == []


def test_options_of_another_kind_of_join(app: App, hits: Stream[str, Hit]):
    pages = app.table("pages", key=Text(), value=Json(Page))
    with pytest.raises(TopologyError, match=r"without a window, .*; got grace=5"):
        hits.join(pages, both, grace=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=r"without a window, .*; got close_idle_after=5"):
        hits.join(pages, both, close_idle_after=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=r"without a window, .*; got other_value=Json"):
        hits.join(pages, both, other_value=Json(Page))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=r"without a window, .*; got window=JoinWindow"):
        hits.join(pages, both, window=JoinWindow(before=milliseconds(1), after=milliseconds(1)))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def test_bare_numbers_for_durations(app: App, hits: Stream[str, Hit]):
    pages = app.stream("pages", key=Text(), value=Json(Page))
    advice = r"must be a duration, got .*\n.*minutes\(5\), or timedelta\(minutes=5\)"
    with pytest.raises(TopologyError, match=f"within {advice}"):
        hits.join(pages, both, within=300_000, store="pairs")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=f"grace {advice}"):
        hits.join(pages, both, within=minutes(5), grace=5, store="pairs")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=f"size: {advice}"):
        Tumbling(60_000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=f"advance: {advice}"):
        Hopping(size=minutes(5), advance=60_000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match=f"close_idle_after {advice}"):
        hits.group_by_key().window(Tumbling(minutes=1), close_idle_after=30)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match=f"backoff {advice}"):
        retry(3, backoff=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_labels_where_the_name_of_a_store_is_needed(app: App, hits: Stream[str, Hit]):
    with pytest.raises(TopologyError, match="store= names its store"):
        app.table("pages", name="pages")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="store"):
        hits.group_by_key().count(name="counts")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_joins_of_what_cannot_be_joined(app: App, hits: Stream[str, Hit]):
    pages = app.global_table("pages", key=Text(), value=Json(Page))
    with pytest.raises(TopologyError, match=r"joins a stream or a table, got GlobalTable\n.*join_global"):
        hits.join(pages, both)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    table = app.table("other", key=Text(), value=Json(Hit))
    with pytest.raises(TopologyError, match="a table joins a table, got Stream"):
        table.join(hits, lambda one, other: (one, other))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_function_that_does_not_expect_a_tombstone(app: App, hits: Stream[str, Hit]):
    changed = app.stream("changed", key=Text(), value=Json(Hit), tombstones=True)
    changed.map(path)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    changed.map(lambda hit: hit.path)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    hits.to_table("kept").to(path)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_keys_of_two_types(app: App, hits: Stream[str, Hit]):
    numbered = app.stream("numbered", key=Json(int), value=Json(Hit))
    with pytest.raises(TopologyError, match=r"merge: keys are Text .* and Json\(int\) on the other"):
        hits.merge(numbered)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pages = app.table("pages", key=Json(int), value=Json(Page))
    with pytest.raises(TopologyError, match=r"pages: keys are Text .* and Json\(int\) on the other"):
        hits.join(pages, both, name="pages")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_streams_of_two_types_of_values(app: App, hits: Stream[str, Hit]):
    hits.merge(app.stream("pages", key=Text(), value=Json(Page)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
