"""What a source refuses before anything is created or changed on the server."""

from __future__ import annotations

import psycopg
import pytest

from streams.connectors.debezium import Debezium
from streams.connectors.source import SourceContext
from streams.devstack.postgres import LocalPostgres
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable


def refused(database: str, *tables: str, publication: str | None = None) -> str:
    with pytest.raises(ConnectorError) as caught:
        Debezium.postgres(database, tables or ("t",), publication=publication).check("refused", "src")
    return str(caught.value)


@pytest.mark.parametrize(
    ("statement", "reason", "advice"),
    [
        ("create table other(id int primary key)", "there is no table public.t", ""),
        ("create table t(id int)", "public.t has no primary key", "ADD PRIMARY KEY"),
        ("create unlogged table t(id int primary key)", "public.t is an unlogged table", "SET LOGGED"),
        ("create view t as select 1 id", "public.t is a view", ""),
        ("create materialized view t as select 1 id", "public.t is a materialized view", ""),
        (
            "create table t(id int primary key); alter table t replica identity nothing",
            "public.t has REPLICA IDENTITY NOTHING",
            "REPLICA IDENTITY DEFAULT",
        ),
        (
            "create table t(id int primary key deferrable)",
            "the primary key of public.t is deferrable",
            "NOT DEFERRABLE",
        ),
        (
            (
                "create table t(id int primary key deferrable initially deferred);"
                " alter table t replica identity full"
            ),
            "the primary key of public.t is deferrable",
            "NOT DEFERRABLE",
        ),
        (
            (
                "create table t(id int primary key, code int unique not null);"
                " alter table t replica identity using index t_code_key"
            ),
            "public.t has another REPLICA IDENTITY than its primary key",
            "REPLICA IDENTITY DEFAULT",
        ),
        (
            (
                "create table t(id int primary key) partition by range (id);"
                " create table early partition of t for values from (0) to (9);"
                " create table late partition of t for values from (9) to (99);"
                " alter table late replica identity nothing"
            ),
            "public.late has REPLICA IDENTITY NOTHING",
            "ALTER TABLE public.late REPLICA IDENTITY DEFAULT",
        ),
        (
            (
                "create table t(id int primary key, v numeric[]) partition by range (id);"
                " create table early partition of t for values from (0) to (9);"
                " alter table t replica identity full"
            ),
            "a large one could not be told from NULL",
            "ALTER TABLE public.early REPLICA IDENTITY FULL",
        ),
        (
            (
                "create table t(id int primary key) partition by range (id);"
                " create unlogged table early partition of t for values from (0) to (9)"
            ),
            "public.early is an unlogged table",
            "ALTER TABLE public.early SET LOGGED",
        ),
        (
            (
                "create table t(id int not null) partition by range (id);"
                " create foreign data wrapper elsewhere; create server other foreign data wrapper elsewhere;"
                " create foreign table early partition of t for values from (0) to (9) server other"
            ),
            "public.early is a foreign table",
            "",
        ),
        (
            "create type pair as (a int, b int); create table t(id int primary key, v pair)",
            "column v of public.t has the type public.pair",
            "leave the table out",
        ),
        (
            "create table t(id int primary key, v interval[])",
            "column v of public.t has the type interval[]",
            "",
        ),
        ("create table t(id int primary key, v int4multirange)", "has the type int4multirange", ""),
        ("create table t(id int primary key, v name)", "column v of public.t has the type name", ""),
        (
            "create domain d as box; create table t(id int primary key, v d)",
            "column v of public.t has the",
            "",
        ),
        (
            "create table t(id int primary key, v numeric[])",
            "a large one could not be told from NULL",
            "REPLICA IDENTITY FULL",
        ),
    ],
)
def test_a_table_whose_changes_would_be_lost_is_refused(database, db, statement, reason, advice):
    db.execute(statement)
    message = refused(database)
    assert reason in message
    assert advice in message
    assert db.execute("select 1 from pg_publication").fetchall() == []


def test_publishing_a_table_without_a_key_does_not_break_the_application(database, db):
    db.execute("create table log(msg text)")
    db.execute("insert into log values ('x')")
    refused(database, "log")
    db.execute("delete from log")


def test_all_types_that_arrive_completely_are_accepted(database, db):
    db.execute("create type mood as enum('ok')")
    db.execute("create domain positive as int check (value > 0)")
    db.execute(
        "create table t(id int primary key, a mood, b positive, c varchar(3), d numeric(10,2), e int[],"
        " f text[], g uuid, h inet, i jsonb, j timestamptz, k int4range, l bit(3), m char(2), n bytea,"
        " o interval check (isfinite(o)))"
    )
    finite = "'Infinity' > all ({0}) and '-Infinity' < all ({0})"
    db.execute(
        f"create table u(id int primary key, v numeric[] check ({finite.format('v')}), w mood[])".encode()
    )
    db.execute("alter table u replica identity full")
    db.execute(
        f"create table v(id int primary key, w numeric[] check ({finite.format('w')}))"
        " partition by range (id)".encode()
    )
    db.execute("create table early partition of v for values from (0) to (9)")
    db.execute("alter table early replica identity full")
    db.execute("create table x(id int primary key)")
    db.execute("alter table x replica identity using index x_pkey")
    Debezium.postgres(database, ["t", "u", "v", "x"]).check("accepted", "src")


def test_a_publication_that_leaves_something_out_is_refused(database, db):
    db.execute("create table t(id int primary key)")
    db.execute("create table u(id int primary key)")
    message = refused(database, publication="pub")
    assert "there is no publication pub" in message
    assert 'CREATE PUBLICATION "pub" FOR TABLE "public"."t"' in message
    db.execute(
        "create publication pub for table t with (publish = 'insert', publish_via_partition_root = true)"
    )
    assert "leaves out kinds of changes" in refused(database, publication="pub")
    db.execute("alter publication pub set (publish = 'insert, update, delete, truncate')")
    assert "the publication pub has no public.u" in refused(database, "t", "u", publication="pub")
    Debezium.postgres(database, ["t"], publication="pub").check("accepted", "src")


@pytest.mark.parametrize("date", ["0044-03-15 BC", "1582-10-10"])
def test_dates_that_a_snapshot_would_shift_are_refused(database, db, date):
    db.execute("create table t(id int primary key, d date)")
    db.execute("insert into t values (1, %s)", (date,))
    source = Debezium.postgres(database, ["t"])
    with pytest.raises(ConnectorError, match=r"column d of public\.t has dates that a snapshot would read"):
        source.open(SourceContext(application="refused", name="src", task=0, position=b""))


def test_tables_whose_topics_would_be_one_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"Order Items and public\.Order_Items would have the same topic"
    ):
        Debezium.postgres("", ["public.Order Items", "public.Order_Items"])


@pytest.mark.parametrize("tables", [[], "t"])
def test_tables_are_a_list(tables):
    with pytest.raises(ConfigurationError, match="needs a list of names"):
        Debezium.postgres("", tables)


def test_passwords_are_not_shown(postgres):
    source = Debezium.postgres(f"postgresql://postgres:hush@127.0.0.1:{postgres.port}/none", ["t"])
    assert "hush" not in repr(source)
    with pytest.raises(ConnectorError, match='database "none" does not exist') as caught:
        source.check("app", "src")
    assert "hush" not in str(caught.value)


def test_a_connection_string_that_cannot_be_read_is_not_shown():
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        Debezium.postgres("postgresql://u:hush@[", ["t"]).check("app", "src")
    assert "hush" not in str(caught.value)


def test_a_server_that_does_not_answer_may_come_back():
    with pytest.raises(SourceUnavailable, match="Postgres does not answer"):
        Debezium.postgres("postgresql://postgres@127.0.0.1:1/postgres", ["t"]).check("app", "src")


def test_a_user_who_may_not_replicate_is_refused(postgres, database, db):
    db.execute("create table t(id int primary key)")
    db.execute("drop role if exists reader")
    db.execute("create role reader login")
    message = refused(f"{database} user=reader")
    assert "the user reader may not replicate" in message
    assert 'ALTER ROLE "reader" REPLICATION' in message
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("drop role reader")


def test_a_server_whose_log_cannot_be_decoded_is_refused():
    with LocalPostgres.create(settings={"wal_level": "replica", "max_wal_senders": 1}) as server:
        assert "wal_level is replica, and must be logical" in refused(server.dsn())
