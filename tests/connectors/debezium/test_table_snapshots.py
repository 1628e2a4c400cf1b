"""Tables that are read again, or for the first time, while the changes of all tables flow on."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams.connectors.debezium import Debezium, settings, table_chunks
from streams.connectors.postgres.key_ranges import KeyRanges
from streams.errors import ConfigurationError, ConnectorError
from tests.support.captured import DEADLINE
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.connectors.debezium.conftest import Database
    from tests.support.captured import Captured


FIRST_SEED = int(os.environ.get("SEED") or "0")
SEEDS = int(os.environ.get("SEEDS") or "1")
"""How many of random writers; ``make faults`` has more of them."""


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_chunks, "FIRST_CHUNK_ROWS", 20)
    monkeypatch.setattr(table_chunks, "CHUNK_ROWS", 40)
    monkeypatch.setattr(table_chunks, "RETRY_SECONDS", 0.2)
    # The end of a transaction is known by the next heartbeat.
    monkeypatch.setattr(settings, "HEARTBEAT_MS", 250)


def again(source: Captured, database: str, *tables: str, text: str = "2", of: tuple[str, ...] = ()) -> None:
    """Read tables again: all of the source's, unless others are named."""
    source.kill()
    source.use(Debezium.postgres(database, tables, table_snapshots=dict.fromkeys(of or tables, text)))


def remaining(source: Captured) -> float:
    return source.open().health().metrics["snapshot_tables"]


def begin_to_read(source: Captured) -> None:
    """Have the reader's thread begin with the first table, and read no more of the stream."""
    source.until(lambda: b'"begun"' in source.position)
    batch = source.read()
    if batch is not None:
        source.commit(batch)


def finish(source: Captured) -> None:
    """Read until all tables are complete, and everything that follows from it."""
    source.until(lambda: not remaining(source), deadline=120)
    for _ in range(20):
        source.sweep()


def rows(db: Database, table: str = "t") -> dict[Any, Any]:
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return {next(iter(row.values())): row for row in cursor.execute(f"select * from {table}").fetchall()}


@pytest.fixture
def source(db, capture):
    """A captured table of 100 rows, and another one."""
    db.execute("create table t(id int primary key, v text)")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t select g, 'old' from generate_series(1, 100) g")
    captured = capture("t", "u")
    captured.streaming()
    return captured


def lose(db: Database, *statements: str) -> None:
    """Change ``t`` while nothing of it is in the log."""
    db.execute("alter publication captured_src drop table t")
    for statement in statements:
        db.execute(statement)


def test_only_what_is_different_is_sent_and_what_is_gone_is_deleted(database, db, source):
    source.kill()
    lose(
        db,
        "delete from t where id % 10 = 0",
        "update t set v = 'new' where id % 10 = 1",
        "insert into t values (101, 'more')",
    )
    again(source, database, "t", "u", of=("t",))
    finish(source)
    assert source.table() == rows(db)
    assert sorted(source.operations()[100:]) == ["d"] * 10 + ["r"] + ["u"] * 10
    db.execute("update t set v = 'last' where id = 101")
    source.until(lambda: source.table()[101]["v"] == "last")


def test_a_table_that_is_the_same_is_not_sent_again(database, db, source):
    again(source, database, "t", "u")
    finish(source)
    assert source.operations() == ["r"] * 100
    source.kill()
    # The text is known now.
    assert not remaining(source)
    db.execute("insert into u values (1)")
    source.until(lambda: source.table("u"))
    assert source.operations() == ["r"] * 100


def test_changes_of_all_tables_flow_on_while_a_table_cannot_be_read(database, db, source):
    again(source, database, "t", "u", of=("t",))
    source.open()
    with psycopg.connect(database) as other:
        other.execute("lock table t in access exclusive mode")
        db.execute("insert into u values (1), (2)")
        source.until(lambda: len(source.table("u")) == 2)
        assert remaining(source) == 1
        other.execute("update t set v = 'new' where id = 7")
    finish(source)
    assert source.table() == rows(db)
    assert source.operations() == ["r"] * 100 + ["u"]


def test_a_transaction_that_wrote_to_the_table_before_is_waited_for(
    database, db, capture, caplog, monkeypatch
):
    """The publication did not have the table then: what it wrote is in no log."""
    caplog.set_level("INFO", "streams.debezium")
    monkeypatch.setattr(table_chunks, "LOG_EVERY", 0)
    db.execute("create table t(id int primary key, v text)")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t values (1, 'a')")
    source = capture("u")
    source.streaming()
    with psycopg.connect(database) as other:
        other.execute("insert into t values (2, 'b')")
        other.execute("update t set v = 'c' where id = 1")
        source.kill()
        source.use(Debezium.postgres(database, ["t", "u"]))
        db.execute("insert into u values (1)")
        source.until(lambda: "waits for a transaction that has written to it" in caplog.text)
        source.until(lambda: source.table("u"))
    finish(source)
    assert source.table() == rows(db)


def test_what_was_read_before_a_truncate_is_not_handed_over_after_it(
    database, db, capture, caplog, monkeypatch
):
    monkeypatch.setattr(table_chunks, "FIRST_CHUNK_ROWS", 200)
    caplog.set_level("INFO", "streams.debezium")
    small = {"max.batch.size": "10", "max.queue.size": "20"}
    db.execute("create table t(id int primary key, v text)")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t select g, 'old' from generate_series(1, 100) g")
    source = capture("u", properties=small)
    source.streaming()
    source.kill()
    source.use(Debezium.postgres(database, ["t", "u"], properties=small))
    with psycopg.connect(database) as other:
        other.execute("insert into t values (200, 'old')")
        begin_to_read(source)
        db.execute("insert into u select generate_series(1, 500)")
    wait_until(lambda: "read the table public.t: 101 rows" in caplog.text, DEADLINE, what="the rows are read")
    db.execute("truncate t")
    db.execute("insert into t values (7, 'new')")
    finish(source)
    source.until(lambda: 7 in source.table())
    source.sweep()
    assert source.table() == rows(db)
    assert source.operations("u") == ["c"] * 500


def test_a_table_that_is_rewritten_when_a_chunk_begins(database, db, source, monkeypatch):
    """Its transaction is older than the new files of the table, and reads no rows."""
    again(source, database, "t", "u", of=("t",))
    select = KeyRanges.select
    with psycopg.connect(database) as other:

        def altered(self: KeyRanges, *bounds: Any) -> str:
            monkeypatch.setattr(KeyRanges, "select", select)
            other.execute("alter table t alter id type bigint")
            return select(self, *bounds)

        monkeypatch.setattr(KeyRanges, "select", altered)
        begin_to_read(source)
        waiting = """
            select from pg_stat_activity where datname = current_database()
            and wait_event_type = 'Lock' and query ilike '%lock table%'
        """
        wait_until(lambda: db.execute(waiting).fetchall(), what="the chunk waits for its lock")
    finish(source)
    assert source.table() == rows(db)
    assert "d" not in source.operations()


def test_a_table_that_is_truncated_meanwhile_has_only_what_was_written_later(database, db, source):
    source.kill()
    lose(db, "update t set v = 'new'")
    again(source, database, "t", "u", of=("t",))
    source.until(lambda: source.operations().count("u") >= 20)
    db.execute("insert into t values (200, 'before')")
    db.execute("truncate t")
    db.execute("insert into t values (7, 'after'), (201, 'after')")
    finish(source)
    source.until(lambda: 201 in source.table())
    source.sweep()
    assert source.table() == rows(db)
    assert source.operations().count("u") < 100, "it was truncated before all was read"
    # Nothing is left of the deletions that were remembered.
    db.execute("insert into t values (8, 'later')")
    again(source, database, "t", "u", of=("t",), text="3")
    finish(source)
    assert source.table() == rows(db)


def test_a_column_that_is_added_meanwhile(database, db, source):
    source.kill()
    lose(db, "update t set v = 'new'")
    again(source, database, "t", "u", of=("t",))
    source.until(lambda: source.operations().count("u") >= 20)
    db.execute("alter table t add column n int not null default 7")
    db.execute("update t set n = 8 where id in (1, 99)")
    finish(source)
    table = source.table()
    assert {key: row["v"] for key, row in table.items()} == {key: row["v"] for key, row in rows(db).items()}
    assert (table[1]["n"], table[99]["n"]) == (8, 8)
    # A column's default is in no log: reading the table again brings it.
    again(source, database, "t", "u", of=("t",), text="3")
    finish(source)
    assert source.table() == rows(db)


def test_a_column_of_another_type_meanwhile(database, db, source):
    """The table is rewritten: a transaction that began before reads no rows of it."""
    db.execute("alter table t add column n int not null default 7")
    again(source, database, "t", "u", of=("t",))
    source.until(lambda: source.operations().count("u") >= 20)
    db.execute("alter table t alter column n type bigint using n + 1")
    finish(source)
    again(source, database, "t", "u", of=("t",), text="3")
    finish(source)
    assert source.table() == rows(db)
    assert "d" not in source.operations()


def test_a_table_that_is_dropped_meanwhile_ends_the_source(database, db, source):
    again(source, database, "t", "u", of=("t",))
    source.until(lambda: b'"begun"' in source.position)
    db.execute("drop table t")
    with pytest.raises(ConnectorError, match=r"there is no table public\.t"):
        finish(source)


def test_a_table_that_was_created_again_is_read(database, db, source):
    db.execute("insert into u values (1)")
    source.until(lambda: source.table("u"))
    source.kill()
    db.execute("update t set v = 'in the log' where id = 3")
    db.execute("drop table t")
    db.execute("create table t(id int primary key, v text)")
    db.execute("insert into t values (2, 'old'), (3, 'new'), (300, 'new')")
    with pytest.raises(ConnectorError, match="was dropped and created again") as caught:
        source.open()
    assert "table_snapshots={'public.t': …}" in str(caught.value)
    again(source, database, "t", "u", of=("t",))
    finish(source)
    assert source.table() == rows(db)
    assert source.operations("u") == ["c"]
    db.execute("delete from t where id = 2")
    source.until(lambda: 2 not in source.table())


def test_a_table_with_another_key_needs_a_new_snapshot(database, db, source):
    db.execute("alter table t drop constraint t_pkey, add primary key (id, v)")
    source.kill()
    source.use(Debezium.postgres(database, ["t", "u"], table_snapshots={"t": "2"}))
    with pytest.raises(ConnectorError, match="has another key") as caught:
        source.open()
    assert "another snapshot=" in str(caught.value)


def test_a_table_that_the_source_does_not_have_is_refused():
    with pytest.raises(ConfigurationError, match=r"names public\.v, which tables= does not have"):
        Debezium.postgres("postgresql://db1/shop", ["t"], table_snapshots={"v": "2"})


LETTERS = "aAbBäÄzZ-_"


class Writer:
    """Changes a table at random, in transactions that take some time, until it is stopped.

    ``n`` of a row increases with each write of its key, also when its row was deleted before.
    """

    def __init__(self, database: str, seed: int) -> None:
        self._database = database
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        draw = self._random
        with psycopg.connect(self._database) as db:
            number = 1000
            while not self._stopped.wait(draw.random() / 50):
                for _ in range(draw.randint(1, 4)):
                    number += 1
                    a, b = draw.choice(LETTERS), draw.randint(1, 30)
                    kind = draw.random()
                    if kind < 0.35:
                        db.execute("update t set n = %s where a = %s and b = %s", (number, a, b))
                    elif kind < 0.55:
                        db.execute("delete from t where a = %s and b = %s", (a, b))
                    elif kind < 0.75:
                        other = draw.choice(LETTERS)
                        db.execute(
                            "update t set a = %s, n = %s where a = %s and b = %s and not exists"
                            " (select from t where a = %s and b = %s)",
                            (other, number, a, b, other, b),
                        )
                    else:
                        db.execute(
                            "insert into t values (%s, %s, %s, repeat('x', 3000) || %s)"
                            " on conflict (a, b) do update set n = excluded.n",
                            (a, b, number, number),
                        )
                if draw.random() < 0.1:
                    db.rollback()
                else:
                    db.commit()


def final(source: Captured) -> dict[tuple[str, int], dict[str, Any]]:
    """The table of the changes by its complete key; of each key, no change is older than one before."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    newest: dict[tuple[str, int], int] = {}
    for change in source.changes:
        row = change.before if change.op == "d" else change.after
        assert row is not None
        key = (row["a"], row["b"])
        if change.op == "d":
            found.pop(key, None)
        else:
            assert row["n"] >= newest.get(key, 0), f"{key} went back to {row['n']}"
            newest[key] = row["n"]
            found[key] = row
    return found


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
@pytest.mark.parametrize("added", [False, True])
def test_writers_and_readers_that_are_killed(database, db, capture, seed, added):
    """Whatever is written, and wherever a reader is killed, the changes make the table."""
    draw = random.Random(seed)
    db.execute(
        # Its order is its own, and so is the operator: neither that of text nor one in pg_catalog.
        """create extension citext;
        create table t(a citext, b int, n int, body text, primary key (a, b));
        create table u(id int primary key);
        alter table t alter body set storage external"""
    )
    db.execute(
        "insert into t select a, b, 0, repeat('y', 3000) || b"
        " from unnest(string_to_array('a B ä Z - _', ' ')) a, generate_series(1, 30) b"
        " where b % 3 > 0"
    )
    source = capture("u") if added else capture("t", "u")
    source.streaming()
    source.kill()
    if not added:
        lose(db, "update t set n = 1 where b % 4 = 0", "delete from t where b % 5 = 0")
    source.use(Debezium.postgres(database, ["t", "u"], table_snapshots={"t": "2"}))
    source.read()
    writer = Writer(database, seed)
    try:
        readers = 0
        while remaining(source):
            for _ in range(draw.randint(1, 12)):
                batch = source.read()
                if batch is not None:
                    source.commit(batch, confirm=draw.random() < 0.7)
            if readers < 6 and draw.random() < 0.4:
                source.kill()
                readers += 1
    finally:
        writer.stop()
    db.execute("insert into u values (1)")
    source.until(lambda: source.table("u"))
    for _ in range(5):
        source.sweep()
    expected = {
        (a, b): {"a": a, "b": b, "n": n, "body": body}
        for a, b, n, body in db.execute("select a, b, n, body from t").fetchall()
    }
    source.changes = [change for change in source.changes if change.source.table == "t"]
    assert final(source) == expected


def test_a_large_value_that_an_update_leaves_out_before_its_row_is_read(database, db, source):
    """Of a table that is new nothing is known: the change waits for the row."""
    db.execute("create table v(id int primary key, n int, body text)")
    db.execute("alter table v alter body set storage external")
    db.execute("insert into v select g, 0, repeat('y', 9000) || g from generate_series(1, 100) g")
    with psycopg.connect(database) as other:
        other.execute("insert into v values (200, 0, 'x')")
        again(source, database, "t", "u", "v", of=("v",))
        source.until(lambda: b'"begun"' in source.position)
        db.execute("update v set n = 1 where id in (3, 50)")
        db.execute("update v set id = 300 where id = 4")
        db.execute("delete from v where id = 50")
        db.execute("insert into u values (1)")
        source.until(lambda: source.table("u"))
        assert source.table("v") == {}
    finish(source)
    assert source.table("v") == rows(db, "v")
    assert source.operations("v").count("r") + source.operations("v").count("c") == 100


def test_a_partitioned_table_of_which_a_partition_is_truncated(database, db, capture):
    """That is in no log."""
    db.execute("create table t(id int primary key, v text) partition by range (id)")
    db.execute("create table t1 partition of t for values from (0) to (50)")
    db.execute("create table t2 partition of t for values from (50) to (1000)")
    db.execute("insert into t select g, 'old' from generate_series(1, 99) g")
    source = capture()
    source.streaming()
    db.execute("truncate t1")
    db.execute("insert into t values (5, 'new')")
    source.until(lambda: source.table()[5]["v"] == "new")
    assert len(source.table()) == 99
    again(source, database, "t")
    finish(source)
    assert source.table() == rows(db)
    assert source.operations().count("d") == 48


def test_the_list_of_tables_changes_in_the_middle_of_a_transaction(database, db, capture):
    """The publication has them all: the rest of a transaction has events that were not counted before."""
    db.execute("create table t(id int primary key)")
    db.execute("create table u(id int primary key)")
    db.execute("create publication everything for all tables with (publish_via_partition_root = true)")
    options: dict[str, Any] = {
        "publication": "everything",
        "properties": {"max.batch.size": "10", "max.queue.size": "20"},
    }
    source = capture("t", **options)
    source.streaming()
    with db.transaction():
        for number in range(100):
            db.execute("insert into t values (%s)", (number,))
            db.execute("insert into u values (%s)", (number,))
    source.until(lambda: len(source.table()) >= 20)
    source.kill()
    assert len(source.table()) < 100
    source.use(Debezium.postgres(database, ["t", "u"], **options))
    db.execute("delete from u where id = 7")
    source.until(lambda: b'"reading"' in source.position)
    source.kill()
    finish(source)
    assert source.operations("t") == ["c"] * 100
    assert source.table("u") == rows(db, "u")
    with db.transaction():
        for number in range(100, 200):
            db.execute("insert into t values (%s)", (number,))
            db.execute("insert into u values (%s)", (number,))
    source.until(lambda: len(source.table()) >= 120)
    source.kill()
    assert len(source.table()) < 200
    source.use(Debezium.postgres(database, ["t"], **options))
    db.execute("insert into t values (200)")
    source.until(lambda: 200 in source.table())
    assert source.operations("t") == ["c"] * 201


def test_a_table_that_is_taken_out_and_added_again(database, db, source):
    source.kill()
    source.use(Debezium.postgres(database, ["u"]))
    db.execute("insert into u values (1)")
    source.until(lambda: source.table("u"))
    source.kill()
    assert source.operations("t") == ["r"] * 100
    db.execute("delete from t where id = 1")
    db.execute("update t set v = 'new' where id = 2")
    source.use(Debezium.postgres(database, ["u", "t"]))
    source.open()
    finish(source)
    assert source.table() == rows(db)
    assert sorted(source.operations()[100:]) == ["d", "u"]


def test_a_chunk_has_few_rows_where_they_are_large(database, db, source, monkeypatch):
    monkeypatch.setattr(table_chunks, "CHUNK_BYTES", 500_000)
    db.execute("create table v(id int primary key, body text)")
    db.execute("alter table v alter body set storage external")
    db.execute("insert into v select g, repeat('y', 100000) from generate_series(1, 60) g")
    sizes = []
    poll = table_chunks.TableChunks.poll

    def polled(self: table_chunks.TableChunks) -> table_chunks.Chunk | None:
        chunk = poll(self)
        sizes.extend([] if chunk is None else [chunk.size])
        return chunk

    monkeypatch.setattr(table_chunks.TableChunks, "poll", polled)
    source.kill()
    source.use(Debezium.postgres(database, ["t", "u", "v"], properties={"max.batch.size": "5"}))
    source.open()
    finish(source)
    assert source.table("v") == rows(db, "v")
    assert sum(sizes) > 6_000_000
    assert max(sizes) < 4_500_000, "the first one is 20 rows, and later ones are smaller"
    assert max(sizes[1:]) < 1_000_000


def test_a_reading_that_fails_is_tried_again(database, db, source, monkeypatch):
    """Its reason is the health of the source, and the changes of others flow on."""
    monkeypatch.setattr(table_chunks, "FIRST_CHUNK_ROWS", 10)
    monkeypatch.setattr(table_chunks, "CHUNK_ROWS", 10)
    again(source, database, "t", "u", of=("t",))
    source.until(lambda: source.open().health().metrics["snapshot_rows"])
    waiting = """
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and pid <> pg_backend_pid()
    """
    with psycopg.connect(database) as other:
        other.execute("lock table t in access exclusive mode")
        source.until(lambda: db.execute(waiting).fetchall())
        source.until(lambda: "tables cannot be read: " in source.open().health().problem)
        db.execute("insert into u values (1)")
        source.until(lambda: source.table("u"))
    finish(source)
    assert not source.open().health().problem
    assert source.operations() == ["r"] * 100


def test_a_table_that_is_rewritten_when_the_first_snapshot_begins(db, capture):
    """Its transaction is older than the new files of the table, and would read no rows."""
    db.execute("create table t(id int primary key, v int)")
    db.execute("insert into t select g, g from generate_series(1, 100) g")
    source = capture()
    source.open()
    made = "select count(*) from pg_replication_slots where confirmed_flush_lsn is not null"
    while db.execute(made).fetchone() != (1,):
        pass
    db.execute("alter table t alter v type bigint using v + 1")
    source.until(lambda: b'"phase":"stream"' in source.position, reopen=True)
    source.sweep()
    assert {key: row["v"] for key, row in source.table().items()} == {n: n + 1 for n in range(1, 101)}


def test_rows_that_were_read_wait_for_the_changes_that_they_contain(
    database, db, capture, caplog, monkeypatch
):
    """The stream is far behind: a row that is read has what many of its changes still bring."""
    monkeypatch.setattr(table_chunks, "FIRST_CHUNK_ROWS", 200)
    caplog.set_level("INFO", "streams.debezium")
    db.execute("create table t(a int, b int, n int, primary key (a, b))")
    db.execute("create table u(id int primary key)")
    db.execute("insert into t select g, 0, 0 from generate_series(1, 100) g")
    small = {"max.batch.size": "10", "max.queue.size": "20"}
    source = capture("u", properties=small)
    source.streaming()
    source.kill()
    source.use(Debezium.postgres(database, ["t", "u"], properties=small))
    with psycopg.connect(database) as other:
        other.execute("insert into t values (0, 0, 0)")
        begin_to_read(source)
        # The rows that are read first change last.
        for number in range(1, 401):
            db.execute("update t set n = %s where a = 100 - %s %% 100", (number, number))
    wait_until(lambda: "read the table public.t: 101 rows" in caplog.text, DEADLINE, what="the rows are read")
    finish(source)
    db.execute("insert into u values (1)")
    source.until(lambda: source.table("u"))
    source.changes = [change for change in source.changes if change.source.table == "t"]
    assert final(source) == {
        (a, b): {"a": a, "b": b, "n": n} for a, b, n in db.execute("select * from t").fetchall()
    }


def test_a_text_that_is_empty_is_one_as_well(database, source):
    again(source, database, "t", "u", of=("t",), text="2")
    finish(source)
    again(source, database, "t", "u", of=("t",), text="")
    assert remaining(source) == 1
    finish(source)
    again(source, database, "t", "u", of=("t",), text="")
    assert not remaining(source)
