"""Rows that the server refuses are refused alone, with its message; every other row is written."""

from __future__ import annotations

from typing import Any

import pytest

from streams import App, Json, Text
from streams.connectors.postgres import PostgresSink
from tests.support.retrying import Retrying


def codes(refused: dict[int, Exception]) -> dict[int, str]:
    """The SQLSTATE of each refused row."""
    return {row: str(error).partition(":")[0].removeprefix("SQLSTATE ") for row, error in refused.items()}


@pytest.mark.parametrize("mode", ["upsert", "append"])
def test_three_bad_rows_in_a_thousand(target, mode):
    target.sql("create table t (id int primary key, v varchar(100) not null, j jsonb)")
    feed = target.feed(mode=mode)
    records: list[tuple[int, dict[str, Any]]] = [
        (number, {"id": number, "v": f"row {number}", "j": '{"a": 1}'}) for number in range(1_000)
    ]
    records[10][1]["v"] = "x" * 300
    records[500][1]["v"] = None
    records[700][1]["j"] = '{"k": "\\u0000"}'
    records[998][1]["v"] = "a\udc80b"
    records[999][1]["v"] = "a\0b"
    refused = feed.put(*records)
    assert codes(refused) == {
        10: "22001",
        500: "23502",
        700: "22P05",
        998: "the text has a lone surrogate, which UTF-8 cannot hold",
        999: "text of Postgres cannot contain a NUL character (0x00)",
    }
    assert "column v" in str(refused[500])
    assert feed.claim() == 1_000
    assert target.sql("select count(*), count(distinct id) from t") == [(995, 995)]


def test_rows_without_a_key_or_of_another_kind(target):
    target.sql("create table t (id int primary key, v text)")
    feed = target.feed()
    refused = feed.put(
        (None, {"v": "a"}),
        ({"other": 1}, {"v": "a"}),
        ({"id": None}, {"v": "a"}),
        ("no number", {"v": "a"}),
        (5, "text"),
        (6, {"v": "good"}),
        (None, None),
        (7, {1: "a"}),
    )
    assert sorted(refused) == [0, 1, 2, 3, 4, 6, 7]
    assert "the key needs the columns id" in str(refused[1])
    assert "22P02" in str(refused[3])
    assert "a str has no columns" in str(refused[4])
    assert target.sql("select * from t") == [(6, "good")]


def test_foreign_keys(target):
    target.sql("create table parent (id int primary key)")
    target.sql("insert into parent values (1)")
    target.sql("create table t (id int primary key, parent int references parent)")
    feed = target.feed()
    refused = feed.put((1, {"parent": 1}), (2, {"parent": 7}), (3, {"parent": None}), (1, {"parent": 8}))
    assert codes(refused) == {1: "23503", 3: "23503"}
    assert target.sql("select * from t order by id") == [(1, 1), (3, None)]
    parents = target.feed("parent")
    assert codes(parents.put((5, {}), (1, None), (6, {}))) == {1: "23503"}
    assert target.sql("select id from parent order by id") == [(1,), (5,), (6,)]


def test_constraints_that_are_checked_at_the_end_of_the_transaction(target):
    target.sql(
        "create table t (id int primary key, next int references t deferrable initially deferred, "
        "v varchar(3))"
    )
    feed = target.feed()
    assert feed.put((1, {"next": 2}), (2, {"next": 1})) == {}
    assert codes(feed.put((3, {"next": 4}), (9, {"v": "long"}), (4, {"next": 3}))) == {1: "22001"}
    refused = feed.put((5, {"next": 99}), (6, {"next": 5}), (7, {"next": 1}))
    assert codes(refused) == {0: "23503", 1: "23503"}
    assert target.sql("select id from t order by id") == [(1,), (2,), (3,), (4,), (7,)]


def test_what_a_trigger_raises_is_the_rows_error(target):
    target.sql("create table t (id int primary key, v text)")
    target.sql(
        "create function judge() returns trigger language plpgsql as $$ begin "
        "if new.v = 'bad' then raise exception 'not this one'; end if; return new; end $$"
    )
    target.sql("create trigger judge before insert or update on t for each row execute function judge()")
    feed = target.feed()
    refused = feed.put((1, {"v": "a"}), (2, {"v": "bad"}), (3, {"v": "c"}))
    assert codes(refused) == {1: "P0001"}
    assert "not this one" in str(refused[1])
    assert target.sql("select id from t order by id") == [(1,), (3,)]


def test_text_that_no_index_can_hold(target):
    target.sql("create table t (id int primary key, v text)")
    target.sql("create index on t (v)")
    feed = target.feed()
    # Incompressible, as the server compresses what it indexes.
    big = target.sql("select string_agg(md5(g::text), '') from generate_series(1, 400) g")[0][0]
    assert codes(feed.put((1, {"v": big}), (1, {"v": "a"}), (2, {"v": "b"}))) == {0: "54000"}
    assert target.sql("select * from t order by id") == [(1, "a"), (2, "b")]


def test_all_rows_are_bad(target):
    target.sql("create table t (id int primary key, v int)")
    feed = target.feed()
    assert len(feed.put(*((number, {"v": "x"}) for number in range(200)))) == 200
    assert target.sql("select count(*) from t") == [(0,)]
    assert feed.claim() == 200


def test_refused_rows_that_are_retried_are_written_beside_the_positions(target):
    target.sql("create table t (id text primary key, cents int check (cents >= 0))")
    app = App("bank", dead_letter_limit=1.0)
    rows = app.stream("in", key=Text(), value=Json(dict[str, object]))
    rows.sink(PostgresSink(target.dsn, "t", key=("id",)), name="rows")
    site = Retrying(app)
    worker = site.worker()
    site.send([f'{{"id":"{key}","cents":{cents}}}' for key, cents in (("a", -1), ("b", 2), ("c", -30))])
    site.run(worker, until=lambda: len(site.selected()) == 2)
    position = target.sql("select sum(next_offset) from streams_positions")
    target.sql("alter table t drop constraint t_cents_check, add check (cents > -10)")
    site.retry()

    def done() -> bool:
        site.clock.advance(0.05)
        return not site.selected(states=["waiting"])

    site.run(worker, until=done)
    worker.close()
    assert target.sql("select id, cents from t order by id") == [("a", -1), ("b", 2)]
    assert target.sql("select sum(next_offset) from streams_positions") == position
    assert sorted((str(row.state), row.history.tries) for row in site.selected()) == [
        ("open", 2),
        ("retried", 2),
    ]
