"""Snapshots that do not finish, and those that are taken again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.connectors.debezium import Debezium
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.captured import Captured

SMALL_BATCHES = {"max.batch.size": "10", "max.queue.size": "20"}


def half(source: Captured, rows: int) -> None:
    """Commit about half of a snapshot, and lose what was read beyond it."""
    source.until(lambda: len(source.changes) >= rows)
    wait_until(source.read, what="a batch to lose")
    source.kill()


def test_a_snapshot_that_did_not_finish_leaves_no_row_that_is_gone(db, capture):
    db.execute("create table t(id int primary key, v text)")
    db.execute("insert into t select g, 'old' from generate_series(1, 100) g")
    source = capture(properties=SMALL_BATCHES)
    half(source, 50)
    assert set(source.operations()) == {"r"}
    db.execute("delete from t where id <= 10")
    db.execute("update t set v = 'new' where id = 11")
    source.streaming()
    source.sweep()
    assert source.table() == {i: {"id": i, "v": "new" if i == 11 else "old"} for i in range(11, 101)}
    # A row that was read before comes again only if it is another one.
    assert source.operations().count("r") == 100
    assert source.operations().count("u") == 1
    assert source.operations().count("d") == 10


def test_changes_while_it_was_killed_in_the_snapshot_are_not_lost(db, capture):
    db.execute("create table t(id int primary key, v text)")
    db.execute("insert into t select g, 'old' from generate_series(1, 60) g")
    source = capture(properties=SMALL_BATCHES)
    half(source, 30)
    source.open()
    db.execute("update t set v = 'new' where id % 2 = 0")
    db.execute("delete from t where id = 3")
    source.until(lambda: sum(row["v"] == "new" for row in source.table().values()) == 30)
    source.sweep()
    wait_until(lambda: source.read() is None, what="all changes")
    source.kill()
    source.until(lambda: 3 not in source.table())
    assert source.table() == {i: {"id": i, "v": "old" if i % 2 else "new"} for i in range(1, 61) if i != 3}


def test_another_snapshot_brings_what_is_different_and_deletes_what_is_gone(database, db, capture):
    db.execute("create table t(id int primary key, v text)")
    db.execute("insert into t values (1, 'a'), (2, 'b'), (3, 'c')")
    source = capture()
    source.streaming()
    source.kill()
    db.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where database = current_database()"
    )
    db.execute("delete from t where id = 1")
    db.execute("update t set v = 'x' where id = 2")
    source.use(Debezium.postgres(database, ["t"], snapshot="2"))
    source.until(lambda: source.operations() == ["r", "r", "r", "u", "d"])
    assert source.table() == {2: {"id": 2, "v": "x"}, 3: {"id": 3, "v": "c"}}
    db.execute("insert into t values (4, 'd')")
    source.count(6)
    assert source.operations()[5:] == ["c"]


def test_a_table_that_is_added_is_read_completely(database, db, capture):
    db.execute("create table t(id int primary key)")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t values (1)")
    db.execute("insert into u values (1), (2)")
    source = capture("t")
    source.streaming()
    source.kill()
    db.execute("insert into t values (2)")
    source.use(Debezium.postgres(database, ["t", "u"]))
    source.until(lambda: len(source.table("u")) == 2 and len(source.table("t")) == 2)
    db.execute("insert into u values (3)")
    source.until(lambda: len(source.table("u")) == 3)
    assert source.operations("t") == ["r", "c"], "its changes are not interrupted"


def test_many_rows_that_are_gone_are_deleted_bit_by_bit(db, capture):
    db.execute("create table t(id int primary key)")
    db.execute("insert into t select generate_series(1, 5000)")
    source = capture()
    source.streaming()
    assert len(source.table()) == 5000
    db.execute("truncate t")
    db.execute("insert into t values (4999)")
    source.until(lambda: source.operations()[-1] == "c" or "c" in source.operations())
    for _ in range(20):
        source.sweep()
    assert source.table() == {4999: {"id": 4999}}
    assert source.operations().count("d") == 5000


def test_a_table_that_is_left_out_later_keeps_its_rows_downstream(database, db, capture):
    db.execute("create table t(id int primary key)")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t values (1)")
    db.execute("insert into u values (1), (2)")
    source = capture("t", "u")
    source.streaming()
    source.kill()
    db.execute("delete from t")
    source.use(Debezium.postgres(database, ["t"]))
    source.until(lambda: source.table() == {})
    source.sweep()
    assert source.table("u") == {1: {"id": 1}, 2: {"id": 2}}
