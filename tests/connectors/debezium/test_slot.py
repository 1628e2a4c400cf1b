"""The replication slot: lost, taken, dropped, cut off; and that it does not hold the server's log back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams.connectors.debezium import Debezium
from streams.connectors.debezium.position import Position
from streams.devstack.postgres import LocalPostgres
from streams.errors import ConnectorError, SourceUnavailable
from tests.support.captured import Captured
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streams.connectors.source import SourceBatch
    from tests.connectors.debezium.conftest import Database


def refusal(source: Captured, seconds: float = 30) -> str:
    """What ends the source, within so many seconds."""
    with pytest.raises(ConnectorError) as caught:
        read_for(source, seconds)
    return str(caught.value)


def read_for(source: Captured, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        source.read()


@pytest.fixture
def source(db, capture):
    db.execute("create table t(id int primary key)")
    db.execute("insert into t values (1), (2)")
    captured = capture()
    captured.streaming()
    return captured


def drop_slot(db: Database) -> None:
    db.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where database = current_database()"
    )


def test_a_slot_that_was_dropped_ends_the_source(db, source):
    source.kill()
    drop_slot(db)
    message = refusal(source)
    assert "the replication slot captured_src does not exist any more" in message
    assert "give the source src another snapshot=" in message


def test_a_slot_that_another_program_read_ends_the_source(db, source):
    source.kill()
    db.execute("insert into t values (3)")
    db.execute("select pg_replication_slot_advance('captured_src', pg_current_wal_lsn())")
    assert "was read by another program up to" in refusal(source)


def test_a_table_that_was_dropped_and_created_again_ends_the_source(db, source):
    db.execute("drop table t")
    db.execute("create table t(id int primary key)")
    assert "public.t was dropped and created again" in refusal(source)
    source.kill()
    assert "public.t was dropped and created again" in refusal(source)


def test_tables_that_are_swapped_end_the_source(db, source):
    db.execute("create table u(id int primary key)")
    with db.transaction():
        db.execute("alter table t rename to old")
        db.execute("alter table u rename to t")
    assert "public.t was dropped and created again, replaced by renaming" in refusal(source)


@pytest.mark.parametrize(
    "statement", ["alter publication captured_src set table u", "drop publication captured_src"]
)
def test_a_table_that_is_taken_out_of_the_publication_ends_the_source(db, source, statement):
    db.execute("create table u(id int primary key)")
    source.kill()
    db.execute(statement)
    assert "the publication captured_src does not have public.t any more" in refusal(source)


def test_another_key_ends_the_source_and_a_new_snapshot_continues(database, db, source):
    db.execute("alter table t add column v int not null default 7")
    db.execute("alter table t drop constraint t_pkey, add primary key (v, id)")
    db.execute("insert into t values (3, 8)")
    assert "or has another key" in refusal(source)
    source.kill()
    source.use(Debezium.postgres(database, ["t"], snapshot="new key"))
    source.until(lambda: source.operations().count("d") == 2)
    assert [change.before for change in source.changes if change.op == "d"] == [{"id": 1}, {"id": 2}]
    assert [change.after for change in source.changes if change.op == "r"][2:] == [
        {"id": 1, "v": 7},
        {"id": 2, "v": 7},
        {"id": 3, "v": 8},
    ]


def test_a_column_that_cannot_be_captured_ends_the_source(db, source):
    db.execute("alter table t add column b box")
    db.execute("insert into t values (3, '(1,1),(2,2)')")
    assert "column b of public.t has the type box" in refusal(source)


def test_a_position_beyond_the_end_of_the_log_is_of_another_timeline(source):
    source.kill()
    position = Position.decode(source.position)
    source.position = Position(**{**vars_of(position), "lsn": 2**50}).encode()
    assert "is beyond the end of the server's log" in refusal(source)


def test_the_position_of_another_cluster_is_refused(source):
    source.kill()
    position = Position.decode(source.position)
    source.position = Position(**{**vars_of(position), "system": "7"}).encode()
    assert "another database cluster" in refusal(source)


def vars_of(position: Position) -> dict[str, Any]:
    return {name: getattr(position, name) for name in position.__struct_fields__}


def test_a_connection_that_is_cut_is_opened_again_at_the_position(db, source):
    db.execute("insert into t values (3)")
    source.count(3)
    db.execute(
        "select pg_terminate_backend(active_pid) from pg_replication_slots"
        " where database = current_database()"
    )
    with pytest.raises(SourceUnavailable, match="Debezium ended"):
        read_for(source, 30)
    assert source.open().health().problem
    source.kill()
    db.execute("insert into t values (9)")
    source.until(lambda: 9 in source.table())
    assert source.open().health().problem == ""


def test_a_reader_that_was_replaced_is_cut_off_by_the_next_snapshot(database, db, source):
    other = Captured(Debezium.postgres(database, ["t"]))
    # The first reader still runs: the second reads all rows again, as it has no position. The first one may
    # be just about to stream, and take the slot that the second one made; it is cut off when that one opens
    # again.
    other.until(lambda: len(other.table()) == 2, reopen=True)
    db.execute("insert into t values (3)")
    other.until(lambda: 3 in other.table(), reopen=True)
    other.close()


def test_a_reader_that_was_replaced_is_cut_off_by_one_that_continues(database, db, source):
    other = Captured(Debezium.postgres(database, ["t"]))
    other.position = source.position
    # The first reader still runs, and would read its slot for ever.
    db.execute("insert into t values (3)")
    other.until(lambda: 3 in other.table(), reopen=True)
    other.close()


def test_a_reader_that_is_closed_at_once_leaves_its_slot_free(db, source):
    active = "select count(*) from pg_replication_slots where database = current_database() and active"
    for number in range(10, 16):
        source.kill()
        source.open()
        source.kill()
        wait_until(lambda: db.execute(active).fetchone() == (0,), 4, what="the slot is free")
        db.execute("insert into t values (%s)", (number,))
    source.until(lambda: 15 in source.table())


def test_a_quiet_table_does_not_hold_the_log_back(database, db, source):
    source.kill()
    source.use(Debezium.postgres(database, ["t"], properties={"heartbeat.interval.ms": "500"}))
    db.execute("create table other as select g, repeat('x', 300) v from generate_series(1, 20000) g")

    def lag() -> float:
        batch: SourceBatch | None = source.read()
        if batch is not None:
            source.commit(batch)
        return float(source.open().health().metrics["lag_bytes"])

    assert lag() > 5_000_000
    wait_until(lambda: lag() < 100_000, what="the slot to follow")
    assert source.operations() == ["r", "r"], "no change comes of a heartbeat"
    assert source.open().health().metrics["retained_bytes"] >= 0


def test_a_lost_slot_ends_the_source_and_a_new_snapshot_continues():
    settings = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "64MB"}
    with (
        LocalPostgres.create(settings=settings) as server,
        psycopg.connect(server.dsn(), autocommit=True) as db,
    ):
        db.execute("create table t(id int primary key)")
        db.execute("insert into t values (1), (2)")
        source = Captured(Debezium.postgres(server.dsn(), ["t"]))
        source.streaming()
        source.kill()
        db.execute("delete from t where id = 1")
        for _ in range(4):
            db.execute("create table junk as select g, repeat('x', 300) v from generate_series(1, 30000) g")
            db.execute("drop table junk")
            db.execute("select pg_switch_wal()")
            db.execute("checkpoint")
        message = refusal(source)
        assert "the replication slot captured_src is lost: wal_removed" in message
        assert "give the source src another snapshot=" in message
        source.use(Debezium.postgres(server.dsn(), ["t"], snapshot="again"))
        source.until(lambda: source.operations() == ["r", "r", "d"])
        assert source.table() == {2: {"id": 2}}
        source.close()
