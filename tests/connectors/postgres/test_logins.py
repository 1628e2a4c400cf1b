"""Servers that refuse the user, the password or the database: an error at the start, an outage later."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest

from streams.connectors.debezium import Debezium
from streams.connectors.postgres import PostgresSink, PostgresTable
from streams.connectors.postgres.polling import PollingQuery
from streams.connectors.sink import SinkContext
from streams.connectors.source import SourceContext
from streams.devstack.postgres import LocalPostgres
from streams.errors import ConnectorError, SinkUnavailable, SourceUnavailable
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTEXT = SinkContext(application="app", name="sink", worker="w", lock_timeout=5.0)
PASSWORD = "correct"


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalPostgres]:
    """A server that asks every user but its own for a password."""
    with LocalPostgres.create() as server:
        (server.folder / "data" / "pg_hba.conf").write_text(
            "host all postgres all trust\nhost secret all all reject\nhost all all all scram-sha-256\n"
        )
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("select pg_reload_conf()")
            connection.execute(f"create role writer login password '{PASSWORD}'")
            connection.execute("create table t (id int primary key, v text)")
            connection.execute("grant all on t to writer; grant all on schema public to writer")
            for database in ("closed", "secret"):
                connection.execute(f"create database {database}".encode())
            connection.execute("revoke connect on database closed from public")
        wait_until(lambda: not may_connect(dsn(server, password="wrong")), what="the new rules")
        yield server


def may_connect(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError:
        return False
    return True


def dsn(
    server: LocalPostgres, *, user: str = "writer", password: str = PASSWORD, database: str = "postgres"
) -> str:
    return f"host=127.0.0.1 port={server.port} user={user} password='{password}' dbname={database}"


REFUSED = {
    "another password": ({"password": "wrong"}, "28P01"),
    "no password": ({"password": ""}, "28P01"),
    "no such user": ({"user": "nobody"}, "28P01"),
    "no such database": ({"user": "postgres", "database": "none"}, "3D000"),
    "no right to connect": ({"database": "closed"}, "42501"),
    "no rule": ({"database": "secret"}, "28000"),
}

STARTS: dict[str, Callable[[str], object]] = {
    "sink": lambda conninfo: PostgresSink(conninfo, "t").check(CONTEXT),
    "polling": lambda conninfo: PollingQuery(conninfo, "select id from t", order_by="id").check("app", "q"),
    "debezium": lambda conninfo: Debezium.postgres(conninfo, ["public.t"]).check("app", "d"),
    "comparison": lambda conninfo: PostgresTable(dsn=conninfo, table="t").open(),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_login_is_an_error_at_the_start(guarded, start, kind):
    options, code = REFUSED[kind]
    with pytest.raises(ConnectorError) as caught:
        STARTS[start](dsn(guarded, **options))
    assert caught.value.exit_code == 14
    if start in {"sink", "polling"}:
        assert f"SQLSTATE {code}" in caught.value.message
        assert "check the user, the password and the database" in str(caught.value)
    assert "wrong" not in str(caught.value)


def change_password(server: LocalPostgres, password: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"alter role writer password '{password}'".encode())


def test_a_password_that_is_changed_later_is_waited_out(guarded):
    sink = PostgresSink(dsn(guarded), "t", positions_table=f"p{uuid.uuid4().hex[:8]}")
    polling = PollingQuery(dsn(guarded), "select id from t", order_by="id")
    sink.check(CONTEXT)
    polling.check("app", "q")
    change_password(guarded, "another")
    try:
        with pytest.raises(SinkUnavailable, match="28P01"):
            sink.open(CONTEXT)
        with pytest.raises(SourceUnavailable, match="28P01"):
            polling.open(SourceContext(application="app", name="q", task=0, position=b""))
    finally:
        change_password(guarded, PASSWORD)
    sink.open(CONTEXT).close()


def test_a_server_that_starts_is_waited_for(guarded):
    guarded.stop()
    try:
        with pytest.raises(SinkUnavailable):
            PostgresSink(dsn(guarded), "t").check(CONTEXT)
    finally:
        guarded.start()
    PostgresSink(dsn(guarded), "t").check(CONTEXT)
