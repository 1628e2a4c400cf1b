"""Changes of a real Postgres through Debezium: each once, whatever is killed."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.support.waiting import wait_until

SMALL_BATCHES = {"max.batch.size": "7", "max.queue.size": "20"}


def test_all_rows_come_first_and_then_every_change(db, capture):
    db.execute("create table t(id int primary key, v text)")
    db.execute("insert into t values (1, 'a'), (2, 'b')")
    source = capture()
    source.streaming()
    assert source.operations() == ["r", "r"]
    db.execute("insert into t values (3, 'c')")
    db.execute("update t set v = 'x' where id = 1")
    db.execute("delete from t where id = 2")
    source.count(5)
    assert source.operations()[2:] == ["c", "u", "d"]
    assert source.table() == {1: {"id": 1, "v": "x"}, 3: {"id": 3, "v": "c"}}
    assert source.changes[-1].before == {"id": 2}, "only the key was sent"


def test_an_empty_table_is_a_snapshot_too(db, capture):
    db.execute("create table t(id int primary key)")
    source = capture()
    source.streaming()
    db.execute("insert into t values (1)")
    source.count(1)
    assert source.table() == {1: {"id": 1}}


def test_each_row_of_a_large_transaction_comes_once_wherever_it_is_killed(db, capture):
    db.execute("create table t(id int primary key, v text)")
    source = capture(properties=SMALL_BATCHES)
    source.streaming()
    with db.cursor() as cursor, cursor.copy("copy t from stdin") as rows:
        for number in range(60):
            rows.write_row((number, "x"))
    for _ in range(4):
        # Some batches are committed, one is read and lost.
        reached = len(source.changes) + 8
        source.until(lambda reached=reached: len(source.changes) >= reached)
        wait_until(source.read, what="a batch to lose")
        source.kill()
    source.count(60)
    assert [change.after["id"] for change in source.changes] == list(range(60))


def test_a_transaction_that_began_earlier_and_commits_later_is_not_taken_for_old(database, db, capture):
    db.execute("create table t(id int primary key, v text)")
    source = capture()
    source.streaming()
    with psycopg.connect(database) as early, psycopg.connect(database) as late:
        early.execute("insert into t values (-1, 'early')")
        late.execute("insert into t values (-2, 'late')")
        late.commit()
        source.count(1)
        source.kill()
        early.commit()
    source.count(2)
    assert list(source.table()) == [-2, -1]


def test_rows_of_a_savepoint_that_was_rolled_back_are_in_no_change(db, capture):
    db.execute("create table t(id int primary key)")
    source = capture(properties=SMALL_BATCHES)
    source.streaming()
    with db.transaction():
        db.execute("insert into t select generate_series(1, 50)")
        with db.transaction(force_rollback=True):
            db.execute("insert into t select generate_series(101, 150)")
        db.execute("insert into t select generate_series(51, 55)")
    source.count(20)
    source.kill()
    source.count(55)
    assert [change.after["id"] for change in source.changes] == list(range(1, 56))


def test_the_slot_is_confirmed_only_for_what_is_committed(db, capture):
    db.execute("create table t(id int primary key)")

    def confirmed() -> int:
        rows = db.execute(
            "select confirmed_flush_lsn - '0/0' from pg_replication_slots where slot_name = "
            "'captured_src' and database = current_database()"
        ).fetchone()
        assert rows is not None
        return int(rows[0])

    source = capture()
    source.streaming()
    before = confirmed()
    for number in range(20):
        db.execute("insert into t values (%s)", (number,))
    unconfirmed: list[Any] = []
    end = time.monotonic() + 30
    while sum(len(batch.records) for batch in unconfirmed) < 20 and time.monotonic() < end:
        if (batch := source.read()) is not None:
            unconfirmed.append(batch)
    assert confirmed() == before
    for batch in unconfirmed:
        source.commit(batch)
    wait_until(lambda: confirmed() > before, what="the slot to move")
    assert len(source.changes) == 20


def test_a_change_of_the_key_is_a_deletion_and_a_creation(db, capture):
    db.execute("create table t(id int primary key, v text)")
    db.execute("insert into t values (1, 'a')")
    source = capture()
    source.streaming()
    db.execute("update t set id = 2 where id = 1")
    source.count(3)
    assert source.operations() == ["r", "d", "c"]
    assert source.table() == {2: {"id": 2, "v": "a"}}
    assert source.headers[1:] == [{"__debezium.newkey": b'{"id":2}'}, {"__debezium.oldkey": b'{"id":1}'}]


def test_null_in_a_column_that_has_a_default_is_null(db, capture):
    db.execute("create table t(id int primary key, v text default 'd', n int default 7)")
    db.execute("insert into t values (1, null, null), (2, 'x', 1)")
    source = capture()
    source.streaming()
    db.execute("update t set v = null, n = null where id = 2")
    source.count(3)
    assert source.table() == {1: {"id": 1, "v": None, "n": None}, 2: {"id": 2, "v": None, "n": None}}


def test_truncate_deletes_each_row(db, capture):
    db.execute("create table t(id int primary key)")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t values (1), (2), (3)")
    db.execute("insert into u values (1)")
    source = capture("t", "u")
    source.streaming()
    with db.transaction():
        db.execute("truncate t")
        db.execute("insert into t values (2), (4)")
    source.until(lambda: 4 in source.table())
    source.sweep()
    assert source.table() == {2: {"id": 2}, 4: {"id": 4}}
    # Where Debezium's batch ends after the TRUNCATE, all rows are deleted before the first creation.
    changes = [change for change in source.changes if change.source.table == "t"]
    assert Counter(change.op for change in changes) == {"r": 3, "d": 3, "c": 2}
    of_two = [change.op for change in changes if {"id": 2} in (change.before, change.after)]
    assert of_two == ["r", "d", "c"], "2 is deleted before it is created"
    assert source.table("u") == {1: {"id": 1}}


LARGE_TABLE = """
create table doc(id int primary key, n int, body text, tags int[], names text[], j jsonb, b bytea,
  d numeric);
alter table doc alter body set storage external, alter tags set storage external,
  alter j set storage external, alter b set storage external,
  alter names set storage external, alter d set storage external;
insert into doc select 1, 0, repeat('x', 9000), array_agg(g), array_agg(g::text),
  jsonb_build_object('k', repeat('y', 9000)), decode(repeat('ab', 9000), 'hex'), repeat('7', 9000)::numeric
  from generate_series(1, 4000) g
"""


@pytest.mark.parametrize("identity", ["default", "full"])
def test_large_values_that_an_update_leaves_as_they_were_are_filled_in(db, capture, identity):
    db.execute(LARGE_TABLE)
    db.execute(f"alter table doc replica identity {identity}")
    source = capture("doc")
    source.streaming()
    before = source.table("doc")[1]
    assert before["body"] == "x" * 9000
    db.execute("update doc set n = 1 where id = 1")
    source.count(2)
    source.kill()
    db.execute("update doc set j = null where id = 1")
    source.count(3)
    assert source.changes[1].after == {**before, "n": 1}
    assert source.changes[2].after == {**before, "n": 1, "j": None}


def test_large_values_follow_a_change_of_the_key(db, capture):
    db.execute("create table doc(id int, part int, body text, primary key (id, part))")
    db.execute("alter table doc alter body set storage external")
    db.execute("insert into doc values (1, 1, repeat('x', 9000)), (2, 1, repeat('y', 9000))")
    source = capture("doc")
    source.streaming()
    with db.transaction():
        db.execute("update doc set id = 3 where id = 1")
        db.execute("update doc set part = 2 where id = 3")
        db.execute("update doc set id = 1 where id = 2")
    source.count(8)
    source.kill()
    db.execute("update doc set part = 5 where id = 1")
    source.count(10)
    assert source.table("doc") == {
        3: {"id": 3, "part": 2, "body": "x" * 9000},
        1: {"id": 1, "part": 5, "body": "y" * 9000},
    }


def test_names_are_as_in_the_catalog(db, capture):
    db.execute(
        'create table "Order Items"("select" int primary key, "a-b" text, "a_b" text, "1st" int,'
        ' "Übung" text, "x""y" text, "c,d" text)'
    )
    db.execute("""insert into "Order Items" values (1, 'a', 'b', 2, 'ü', '"', ',')""")
    source = capture("public.Order Items")
    source.streaming()
    db.execute('update "Order Items" set "1st" = 3')
    source.count(2)
    row = {"select": 1, "a-b": "a", "a_b": "b", "1st": 3, "Übung": "ü", 'x"y': '"', "c,d": ","}
    assert source.table("Order Items") == {1: row}


def test_columns_that_change_while_the_source_is_stopped_keep_their_values_apart(db, capture):
    db.execute("create table t(id int primary key, a text, b text)")
    source = capture()
    source.streaming()
    source.kill()
    db.execute("insert into t values (1, 'A', 'B')")
    db.execute("alter table t drop column a")
    db.execute("alter table t add column c text default 'C'")
    db.execute("insert into t(id, b, c) values (2, 'b2', 'c2')")
    db.execute("alter table t rename column b to bb")
    db.execute("update t set bb = 'b3' where id = 1")
    source.count(3)
    assert [change.after for change in source.changes] == [
        {"id": 1, "a": "A", "b": "B"},
        {"id": 2, "b": "b2", "c": "c2"},
        {"id": 1, "bb": "b3", "c": "C"},
    ]


def test_types_that_change_apply_to_the_changes_after_them(db, capture):
    db.execute("create type mood as enum('ok')")
    db.execute("create table t(id int primary key, n numeric(10,2), k int, m mood)")
    db.execute("insert into t values (1, 1.10, 1, 'ok')")
    source = capture()
    source.streaming()
    db.execute("alter table t alter n type numeric(12,4)")
    db.execute("alter table t alter k type bigint")
    db.execute("alter type mood add value 'new'")
    db.execute("insert into t values (2, 1.2345, 3000000000, 'new')")
    source.count(2)
    assert source.changes[0].after == {"id": 1, "n": "1.10", "k": 1, "m": "ok"}
    assert source.changes[1].after == {"id": 2, "n": "1.2345", "k": 3000000000, "m": "new"}


def test_partitions_are_changes_of_their_table_and_computed_columns_are_left_out(db, capture):
    db.execute(
        "create table t(id int primary key, v text, twice int generated always as (id * 2) stored)"
        " partition by range (id)"
    )
    db.execute("create table t1 partition of t for values from (0) to (100)")
    db.execute("create table t2 partition of t for values from (100) to (200)")
    db.execute("insert into t values (1, 'a'), (101, 'b')")
    source = capture()
    source.streaming()
    db.execute("update t set id = 102 where id = 1")
    source.count(4)
    assert source.table() == {101: {"id": 101, "v": "b"}, 102: {"id": 102, "v": "a"}}


def test_a_message_in_the_log_is_no_change(db, capture):
    db.execute("create table t(id int primary key)")
    source = capture()
    source.streaming()
    for transactional in (True, False):
        db.execute("select pg_logical_emit_message(%s, 'x', 'y')", (transactional,))
        db.execute("insert into t values (%s)", (int(transactional),))
    source.count(1)
    source.kill()
    source.count(2)
    assert source.operations() == ["c", "c"]


def test_a_large_value_of_a_row_whose_key_changes_is_kept(db, capture):
    db.execute(LARGE_TABLE)
    source = capture("doc")
    source.streaming()
    before = source.table("doc")[1]
    db.execute("update doc set id = 2 where id = 1")
    source.count(3)
    assert source.table("doc") == {2: {**before, "id": 2}}
