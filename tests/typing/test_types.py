"""The types that checkers infer in a program: checked by mypy and pyright in ``make check``, run by
pytest.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Union, assert_type

import msgspec

from streams import (
    App,
    Batch,
    Context,
    GlobalTable,
    JoinWindow,
    Json,
    Record,
    Session,
    Stream,
    Table,
    Text,
    Tumbling,
    Windowed,
    collect,
    count,
    custom,
    distinct,
    first,
    latest,
    maximum,
    mean,
    minimum,
    most_frequent,
    quantile,
    top,
    total,
    variance,
)
from streams.config import Settings, SettingsArguments
from streams.durations import milliseconds


class Hit(msgspec.Struct):
    path: str
    size: int
    status: int
    millis: float


class Page(msgspec.Struct):
    title: str


@dataclass
class Seen:
    hit: Hit
    page: Page | None


app = App("typing", commit_interval=0.5, guarantee="at_least_once", client={"linger.ms": 5})
hits = app.stream("hits", key=Text(), value=Json(Hit))
pages = app.table("pages", key=Text(), value=Json(Page))


def test_settings_are_complete_in_the_constructor():
    hints = typing.get_type_hints(Settings, include_extras=True)
    settings = {name: _members(hint) for name, hint in hints.items()}
    arguments = {name: _members(hint) for name, hint in typing.get_type_hints(SettingsArguments).items()}
    assert arguments == settings


def _members(kind: Any) -> list[Any]:
    """The alternatives of an annotation, without bounds, which are checked as the app is made."""
    if typing.get_origin(kind) is Annotated:
        return _members(typing.get_args(kind)[0])
    if typing.get_origin(kind) in {Union, types.UnionType}:
        return [member for argument in typing.get_args(kind) for member in _members(argument)]
    return [kind]


def test_a_source_has_the_types_of_its_serdes():
    assert_type(app.stream("a"), Stream[bytes, Any])
    assert_type(app.stream("b", value=Json(Hit)), Stream[bytes, Hit])
    assert_type(app.stream("c", key=Text()), Stream[str, Any])
    assert_type(hits, Stream[str, Hit])
    assert_type(app.table("d"), Table[bytes, Any])
    assert_type(app.table("e", value=Json(Hit)), Table[bytes, Hit])
    assert_type(app.table("f", key=Text()), Table[str, Any])
    assert_type(pages, Table[str, Page])
    assert_type(app.global_table("g"), GlobalTable[bytes, Any])
    assert_type(app.global_table("h", value=Json(Hit)), GlobalTable[bytes, Hit])
    assert_type(app.global_table("i", key=Text()), GlobalTable[str, Any])
    assert_type(app.global_table("j", key=Text(), value=Json(Hit)), GlobalTable[str, Hit])
    app.stream("k", value=Json(Hit), timestamp=lambda hit: hit.size)
    app.table("l", value=Json(Hit), timestamp=lambda hit: hit.size)


def test_who_asks_for_tombstones_sees_none_and_nobody_else():
    changed = app.stream("m", key=Text(), value=Json(Hit), tombstones=True)
    assert_type(changed, Stream[str, Hit | None])
    assert_type(app.stream("n", key=Text(), value=Json(Hit), tombstones=False), Stream[str, Hit])
    assert_type(app.stream("o", value=Json(Hit), tombstones=True), Stream[bytes, Hit | None])
    assert_type(app.stream("p", key=Text(), tombstones=True), Stream[str, Any])
    app.stream("q", value=Json(Hit), timestamp=lambda hit: hit.size, tombstones=True)
    assert_type(changed.map(lambda hit: None if hit is None else hit.path), Stream[str, str | None])
    assert_type(changed.to_table("changed"), Table[str, Hit])
    assert_type(hits.to_table("kept"), Table[str, Hit])
    assert_type(app.stream("r", key=Text()).to_table("any"), Table[str, Any])
    assert_type(pages.to_stream(), Stream[str, Page])
    assert_type(pages.to_stream(tombstones=True), Stream[str, Page | None])
    changed.to("hits-again", value=Json(Hit))
    changed.to(lambda hit: "gone" if hit is None else hit.path)
    pages.to("pages-again", value=Json(Page))
    pages.to(lambda page: "gone" if page is None else page.title, name="routed")


def test_steps_know_the_values_of_a_stream():
    assert_type(hits.filter(lambda hit: assert_type(hit.path, str) != "/"), Stream[str, Hit])
    assert_type(hits.map(lambda hit: hit.size), Stream[str, int])
    assert_type(hits.flat_map(lambda hit: hit.path.split("/")), Stream[str, str])
    assert_type(hits.peek(lambda hit: len(hit.path)), Stream[str, Hit])
    assert_type(hits.key_by(lambda hit: hit.path), Stream[str, Hit])
    assert_type(hits.key_by(lambda hit: hit.status, key=Json(int)), Stream[int, Hit])
    branches = hits.branch({"slow": lambda hit: hit.millis > 1000}, otherwise="fast")
    assert_type(branches["slow"], Stream[str, Hit])
    assert_type(hits.merge(branches["fast"]), Stream[str, Hit])
    hits.to(lambda hit: f"hits-{assert_type(hit.status, int)}")
    hits.to(
        "placed",
        partition=lambda record: assert_type(record.value.status, int) % 3,
        headers=lambda record: [("key", assert_type(record.key, str).encode())],
        timestamp=lambda record: record.timestamp + 1,
    )
    hits.to("marked", partition=1, headers=[("by", b"typing"), ("no", None)])


def test_steps_know_the_records_of_a_stream():
    assert_type(hits.map_records(lambda record: record.with_(value=record.value.path)), Stream[str, str])
    assert_type(hits.map_records(lambda record: record), Stream[str, Hit])
    moved = hits.map_records(lambda record: record.with_(key=record.value.status), key=Json(int))
    assert_type(moved, Stream[int, Hit])
    parts = hits.flat_map_records(
        lambda record: [record.with_(value=part) for part in record.value.path.split("/")]
    )
    assert_type(parts, Stream[str, str])
    assert_type(hits.filter_records(lambda record: assert_type(record.key, str) != ""), Stream[str, Hit])
    assert_type(hits.peek_records(lambda record: assert_type(record.value, Hit).path), Stream[str, Hit])


def test_steps_that_keep_the_key_keep_its_type():
    sizes = hits.map_records(lambda record: record.with_(value=record.value.size), keeps_key=True)
    assert_type(sizes, Stream[str, int])
    twice = hits.flat_map_records(lambda record: [record.with_(value=record.value.size)] * 2, keeps_key=True)
    assert_type(twice, Stream[str, int])
    assert_type(hits.map_batch(sizes_of, keeps_key=True), Stream[str, int])
    assert_type(hits.map_batch(sizes_of), Stream[Any, Any])
    assert_type(hits.process(PassOn, keeps_key=True), Stream[str, Any])
    assert_type(hits.process(PassOn), Stream[Any, Any])


def sizes_of(batch: Batch[str, Hit]) -> Batch[str, int]:
    return batch.with_values([hit.size for hit in batch.values])


class PassOn:
    def process(self, record: Record[str, Hit], context: Context) -> None:
        context.forward(record)


def test_a_record_made_of_another_has_the_types_of_what_was_replaced():
    record = Record("key", Hit("/", 1, 200, 0.5), 0)
    assert_type(record.with_(value=3), Record[str, int])
    assert_type(record.with_(key=3), Record[int, Hit])
    assert_type(record.with_(key=3, value=None, timestamp=5), Record[int, None])
    assert_type(record.with_(timestamp=5, headers=None), Record[str, Hit])


async def title(hit: Hit) -> Page:
    return Page(hit.path)


def test_a_coroutine_function_gives_what_it_returns():
    assert_type(hits.map_async(title), Stream[str, Page])


def test_joins_know_the_values_of_both_sides():
    assert_type(hits.join(pages, lambda hit, page: hit.path + page.title), Stream[str, str])
    assert_type(hits.left_join(pages, Seen), Stream[str, Seen])
    other = app.stream("clicks", key=Text(), value=Json(Page))
    window = JoinWindow(before=milliseconds(5), after=milliseconds(5))
    joined = hits.join(
        other, lambda hit, page: hit.path + page.title, window=window, store="both", grace=milliseconds(5)
    )
    assert_type(joined.map(len), Stream[str, int])
    assert_type(joined.late(), Stream[str, Any])
    outer = hits.outer_join(
        other,
        lambda hit, page: (hit and hit.path, page and page.title),
        within=milliseconds(5),
        store="either",
    )
    assert_type(outer.late(), Stream[str, Any])
    teams = app.global_table("teams", key=Json(int), value=Json(Page))
    assert_type(
        hits.join_global(teams, lambda hit: hit.status, lambda hit, team: team.title), Stream[str, str]
    )
    titles = pages.map(lambda page: page.title)
    assert_type(titles, Table[str, str])
    assert_type(pages.map(lambda page: page.title or None), Table[str, str])
    assert_type(titles.join(pages, lambda name, page: name + page.title), Table[str, str])


def test_groups_have_the_key_that_the_function_makes():
    assert_type(hits.group_by(lambda hit: hit.path).count("by-path"), Table[str, int])
    by_status = hits.group_by(lambda hit: hit.status, key=Json(int))
    assert_type(by_status.count("by-status"), Table[int, int])
    larger = hits.group_by_key().reduce("largest", lambda one, other: max(one, other, key=size))
    assert_type(larger, Table[str, Hit])
    titles = pages.group_by(lambda page: page.title)
    assert_type(titles.aggregate("by-title", count()), Table[str, int])


def size(hit: Hit) -> int:
    return hit.size


def test_an_aggregate_gives_a_table_of_its_results():
    groups = hits.group_by_key()
    assert_type(groups.aggregate("n", count()), Table[str, int])
    assert_type(groups.aggregate("kinds", distinct("path")), Table[str, int])
    assert_type(groups.aggregate("bytes", total("size")), Table[str, Any])
    assert_type(groups.aggregate("bytes-of", total(lambda hit: hit.size)), Table[str, int])
    assert_type(groups.aggregate("mean", mean(lambda hit: hit.millis)), Table[str, Any])
    assert_type(groups.aggregate("smallest", minimum(lambda hit: hit.size)), Table[str, int | None])
    assert_type(groups.aggregate("longest", maximum("path", type=str)), Table[str, str | None])
    assert_type(groups.aggregate("largest", top(3, lambda hit: hit.size)), Table[str, tuple[int, ...]])
    assert_type(groups.aggregate("first", first(lambda hit: hit.path)), Table[str, str | None])
    assert_type(groups.aggregate("last", latest(type=Hit)), Table[str, Hit | None])
    assert_type(groups.aggregate("paths", collect(lambda hit: hit.path)), Table[str, tuple[str, ...]])
    often = most_frequent(3, "path", type=str)
    assert_type(groups.aggregate("often", often), Table[str, tuple[tuple[str, int], ...]])


def test_an_aggregate_of_the_programs_own_knows_values_and_accumulators():
    groups = hits.group_by_key()
    assert_type(groups.aggregate("joined", custom(lambda: "", joined_with, name="joined")), Table[str, str])
    inline = groups.aggregate("inline", custom(int, lambda so_far, hit: so_far + hit.size, name="sizes"))
    assert_type(inline, Table[str, int])
    lengths = groups.aggregate(
        "lengths", custom(int, lambda so_far, hit: so_far + len(hit.path), name="lengths", result=str)
    )
    assert_type(lengths, Table[str, str])


def joined_with(so_far: str, hit: Hit) -> str:
    return so_far if hit.path in so_far else so_far + hit.path


def test_several_aggregates_may_be_named():
    per_path = hits.group_by(lambda hit: hit.path)
    table = per_path.aggregate(
        "traffic",
        hits=count(),
        bytes=total("size"),
        slowest=maximum(lambda hit: hit.millis),
        median=quantile(0.5, lambda hit: hit.millis),
        spread=variance(lambda hit: hit.millis),
    )
    assert_type(table, Table[str, Any])


def test_windows_give_windowed_results():
    minutes = hits.group_by_key().window(Tumbling(size=milliseconds(60_000)))
    counted = minutes.count("per-minute")
    assert_type(counted.final(), Stream[str, Windowed[str, int]])
    assert_type(counted.updates(), Stream[str, Windowed[str, int]])
    assert_type(counted.late(), Stream[str, Any])
    assert_type(counted.final().map(lambda window: window.value), Stream[str, int])
    visits = hits.group_by_key().window(Session(gap=milliseconds(60_000))).aggregate("visits", count())
    assert_type(visits.final(), Stream[str, Windowed[str, int]])
    assert_type(visits.updates(), Stream[str, Windowed[str, int]])
    assert_type(visits.updates(tombstones=True), Stream[str, Windowed[str, int | None]])
