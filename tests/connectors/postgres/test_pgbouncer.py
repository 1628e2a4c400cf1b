"""The sink through PgBouncer, where another session may serve each transaction and none keeps anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from streams.connectors.debezium import Debezium
from streams.connectors.postgres import PostgresSink
from streams.connectors.sink import SinkContext
from streams.errors import ConnectorError, SinkUnavailable
from streams.testing.sinks import KeyedRefusingSinkContract
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_target import PostgresTarget
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streams.connectors.sink import SinkWriter
    from streams.devstack.postgres import LocalPostgres


CONTEXT = SinkContext(application="app", name="sink", worker="w", lock_timeout=5.0)


@pytest.fixture(scope="module")
def pooled(postgres: LocalPostgres, module_database: str) -> Iterator[str]:
    """The dsn of the module's database through the pooler."""
    # What a session has is discarded after each transaction, as if the next one had another session.
    with pgbouncer(postgres, server_reset_query="DISCARD ALL", server_reset_query_always="1") as port:
        yield psycopg.conninfo.make_conninfo(module_database, port=port)


def test_nothing_of_a_session_is_left_for_the_next_transaction(pooled):
    with psycopg.connect(pooled, autocommit=True) as connection:
        connection.execute("set work_mem = '77MB'")
        assert connection.execute("show work_mem").fetchone() != ("77MB",)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            # Prepared by one transaction, executed in the next.
            connection.execute("select 1", prepare=True)


class TestThroughPgBouncer(KeyedRefusingSinkContract):
    @pytest.fixture(autouse=True)
    def target(self, module_database: str, pooled: str) -> None:
        self.direct, self.dsn = module_database, pooled
        with psycopg.connect(self.direct) as connection:
            connection.execute("drop table if exists target, streams_positions")
            connection.execute("create table target (id int primary key, text varchar(100))")

    def connector(self) -> PostgresSink:
        return PostgresSink(self.dsn, "target", max_rows=2_000)

    def rows(self) -> list[tuple[int, str]]:
        with psycopg.connect(self.direct) as connection:
            return connection.execute("select id, text from target").fetchall()

    def refused_value(self, number: int) -> dict[str, object]:
        return {"id": number, "text": "x" * 101}

    def crash(self, writer: SinkWriter) -> None:
        with psycopg.connect(self.direct, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
        writer.close()


@pytest.fixture
def both(module_database: str, pooled: str, request: pytest.FixtureRequest) -> Iterator[PostgresTarget]:
    """Direct access to a schema, which the sinks of ``feed_through`` write to through the pooler."""
    with PostgresTarget(module_database, request.node.name.lower()[:40]).closing() as target:
        yield target


def schema_of(target: PostgresTarget) -> str:
    return str(target.sql("select current_schema()")[0][0])


def test_repeated_statements_stages_and_new_columns(both, pooled):
    both.sql("create table t (id int primary key, v varchar(9))")
    schema = schema_of(both)
    feed = both.feed(f"{schema}.t", dsn=pooled, alter=True, positions_table=f"{schema}.positions")
    for number in range(5):
        # Two states of a key: the first one is tried in a temporary table.
        assert feed.put((1, {"v": "a"}), (1, {"v": str(number)}), (2, {"v": "b"}), (2, None)) == {}
    assert feed.put((3, {"v": "c", "w": 1})) == {}
    assert list(feed.put((4, {"v": "far too long"}), (5, {"v": "d"}))) == [0]
    assert both.sql("select id, v, w from t order by id") == [(1, "4", None), (3, "c", 1), (5, "d", None)]


def test_two_sinks_that_share_sessions(both, pooled):
    """Neither's settings and locks are the other's, and a transaction keeps its session until its commit."""
    both.sql("create table t (id int primary key, v text)")
    schema = schema_of(both)
    feeds = [
        both.feed(f"{schema}.t", dsn=pooled, name=str(number), positions_table=f"{schema}.positions")
        for number in range(2)
    ]
    for number in range(10):
        for which, feed in enumerate(feeds):
            assert feed.write([(2 * number + which, {"v": "x"})]) == {}
        for feed in feeds:
            feed.commit()
    assert both.sql("select count(*) from t") == [(20,)]
    with psycopg.connect(pooled, autocommit=True) as connection:
        assert connection.execute("show lock_timeout").fetchone() == ("0",)
        assert connection.execute("show statement_timeout").fetchone() == ("0",)


def test_a_server_that_ends_behind_the_pooler(both, pooled):
    both.sql("create table t (id int, v text)")
    schema = schema_of(both)
    feed = both.feed(f"{schema}.t", dsn=pooled, mode="append", positions_table=f"{schema}.positions")
    feed.put((0, {"id": 0}))
    feed.write([(1, {"id": 1})])
    ended = both.sql(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where state = 'idle in transaction'"
    )
    assert ended == [(True,)]
    with pytest.raises(SinkUnavailable):
        feed.commit()
    feed.close()

    def open_again() -> bool:
        try:
            feed.open()
        except SinkUnavailable:
            return False
        return True

    wait_until(open_again, what="the pooler's next session")
    assert feed.position == 1
    feed.put((1, {"id": 1}))
    assert both.sql("select id from t order by id") == [(0,), (1,)]


def test_what_cannot_pass_is_refused_at_the_start(postgres, module_database, pooled):
    with psycopg.connect(module_database) as connection:
        connection.execute("create table if not exists passed (id int primary key)")
    with pytest.raises(ConnectorError, match=r"(?s)startup parameter: options.*ALTER ROLE"):
        PostgresSink(f"{pooled} options='-c search_path=a'", "passed").check(CONTEXT)
    with pytest.raises(ConnectorError, match="startup parameter: options"):
        Debezium.postgres(pooled, ["public.passed"]).check("app", "d")
    with pgbouncer(postgres, mode="statement") as port:
        dsn = psycopg.conninfo.make_conninfo(module_database, port=port)
        with pytest.raises(ConnectorError, match="pool_mode = transaction"):
            PostgresSink(dsn, "passed").check(CONTEXT)
