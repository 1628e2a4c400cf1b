"""Tables that are read again, or for the first time, while the changes of all tables flow on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams.connectors.debezium import Debezium, table_chunks
from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    from tests.connectors.debezium.conftest import Database
    from tests.support.captured import Captured


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_chunks, "FIRST_CHUNK_ROWS", 20)
    monkeypatch.setattr(table_chunks, "CHUNK_ROWS", 40)


def again(source: Captured, database: str, *tables: str, text: str = "2", of: tuple[str, ...] = ()) -> None:
    """Read tables again: all of the source's, unless others are named."""
    source.kill()
    source.use(Debezium.postgres(database, tables, table_snapshots=dict.fromkeys(of or tables, text)))


def remaining(source: Captured) -> float:
    return source.open().health().metrics["snapshot_tables"]


def finish(source: Captured) -> None:
    """Read until all tables are complete, and everything that follows from it."""
    source.until(lambda: not remaining(source))
    for _ in range(20):
        source.sweep()


def rows(db: Database, table: str = "t") -> dict[Any, Any]:
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return {next(iter(row.values())): row for row in cursor.execute(f"select * from {table}").fetchall()}  # type: ignore[arg-type]


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


def test_a_transaction_that_writes_to_the_table_delays_its_reading_alone(database, db, source):
    with psycopg.connect(database) as other:
        other.execute("update t set v = 'new' where id = 7")
        again(source, database, "t", "u", of=("t",))
        db.execute("insert into u values (1), (2)")
        source.until(lambda: len(source.table("u")) == 2)
        assert source.open().health().metrics["snapshot_rows"] == 0
    finish(source)
    assert source.table() == rows(db)


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
