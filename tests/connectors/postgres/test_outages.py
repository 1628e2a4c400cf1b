"""Connections that end in a commit, servers that hang or refuse for now, writers that wait for each other."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams.durations import milliseconds, seconds
from streams.errors import ConnectorError, SinkFenced, SinkOutcomeUnknown, SinkUnavailable
from tests.support.tcp_proxy import CuttingProxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.postgres_target import Feed, PostgresTarget

COMMIT = b"Q\0\0\0\x0bcommit\0"


def record(number: int) -> tuple[Any, Any]:
    return number, {"id": number, "v": str(number)}


@pytest.fixture
def appended(target: PostgresTarget) -> PostgresTarget:
    """A table without a key: an upsert would hide what is written twice."""
    target.sql("create table t (id int, v text)")
    return target


def ids(target: PostgresTarget) -> list[int]:
    return [number for (number,) in target.sql("select id from t order by id")]


def finish(feed: Feed, end: int) -> None:
    """Be the next owner: continue at the sink's position, whatever it is."""
    feed.close()
    feed.open()
    if feed.position < end:
        feed.put(*map(record, range(feed.position, end)))


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_that_ends_in_the_commit(appended, postgres, cut):
    with CuttingProxy(("127.0.0.1", postgres.port), COMMIT) as proxy:
        dsn = f"{appended.dsn} port={proxy.port} sslmode=disable gssencmode=disable"
        feed = appended.feed(mode="append", dsn=dsn)
        feed.put(record(0))
        feed.write([record(1), record(2)])
        proxy.cut = cut
        with pytest.raises(SinkOutcomeUnknown):
            feed.commit()
        proxy.cut = None
        feed.close()
        feed.open()
        assert feed.position == (3 if cut == "after" else 1)
        finish(feed, 5)
        feed.close()
    assert ids(appended) == [0, 1, 2, 3, 4]


def test_the_server_ends_in_the_middle_of_a_transaction(appended, postgres):
    feed = appended.feed(mode="append")
    feed.put(record(0))
    feed.write([record(1)])
    postgres.restart("immediate")
    with pytest.raises(SinkOutcomeUnknown):
        feed.commit()
    finish(feed, 3)
    feed.write([record(3)])
    feed.commit()
    postgres.stop("immediate")
    with pytest.raises(SinkUnavailable):
        feed.write([record(4)])
    with pytest.raises(SinkUnavailable, match="opening"):
        feed.open()
    postgres.start()
    finish(feed, 5)
    appended.connection.close()
    appended.connection = psycopg.connect(appended.dsn, autocommit=True)
    assert ids(appended) == [0, 1, 2, 3, 4]


def commit_until(ended: threading.Event, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not ended.is_set():
            connection.execute("create table something ()")
            connection.execute("drop table something")


def test_a_commit_that_hangs_and_happens_after_all(appended):
    feed = appended.feed(mode="append", lock_timeout=0.5)
    feed.put(record(0))
    feed.write([record(1), record(2)])
    appended.sql("alter system set synchronous_standby_names = 'nobody'")
    appended.sql("select pg_reload_conf()")
    # The server knows of it once a commit of another session waits.
    ended = threading.Event()
    committing = threading.Thread(target=commit_until, args=(ended, appended.dsn))
    committing.start()
    try:
        wait_until(lambda: appended.sql("select 1 from pg_stat_activity where wait_event = 'SyncRep'"))
        with pytest.raises(SinkOutcomeUnknown):
            feed.commit()
        feed.close()
        # Its locks are held until it is decided: a position that is read now would be too early.
        with pytest.raises(SinkUnavailable, match="55P03"):
            feed.open()
        feed.close()
    finally:
        appended.sql("alter system reset synchronous_standby_names")
        appended.sql("select pg_reload_conf()")
        ended.set()
        committing.join(20)
    wait_until(lambda: len(ids(appended)) == 3)
    finish(feed, 4)
    assert ids(appended) == [0, 1, 2, 3]


def test_the_lock_of_an_owner_that_hangs_is_released(appended):
    frozen = appended.feed(mode="append", name="one", lock_timeout=1.0)
    frozen.write([record(0)])
    owner = appended.feed(mode="append", name="one", lock_timeout=10.0)
    owner.put(record(0), record(1))
    with pytest.raises(SinkUnavailable):
        frozen.commit()
    with pytest.raises(SinkUnavailable):
        frozen.write([record(0)])
    frozen.close()
    assert ids(appended) == [0, 1]


def test_a_server_that_is_frozen_in_a_commit_does_not_hold_the_worker(appended):
    feed = appended.feed(mode="append", lock_timeout=0.5)
    feed.put(record(0))
    feed.write([record(1)])
    ((pid,),) = appended.sql("select pid from pg_stat_activity where state = 'idle in transaction'")
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(SinkOutcomeUnknown, match="no answer"):
            feed.commit()
    finally:
        os.kill(pid, signal.SIGCONT)
    finish(feed, 3)
    assert ids(appended) == [0, 1, 2]


def test_a_statement_that_takes_too_long_is_repeated(appended):
    feed = appended.feed(mode="append", statement_timeout=milliseconds(200))
    feed.put(record(0))
    appended.sql(
        "create function hang() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(60); return new; end $$"
    )
    appended.sql("create trigger hang before insert on t for each row execute function hang()")
    with pytest.raises(SinkUnavailable, match="57014"):
        feed.write([record(1)])
    appended.sql("drop trigger hang on t")
    finish(feed, 2)
    assert ids(appended) == [0, 1]


def test_writers_that_wait_for_each_other(target):
    target.sql("create table t (id int primary key, v text)")
    target.sql("insert into t values (1, ''), (2, '')")
    feed = target.feed()
    with psycopg.connect(target.dsn) as other:
        other.execute("set deadlock_timeout = '10s'")
        other.execute("update t set v = 'other' where id = 2")
        errors: list[BaseException] = []

        def write() -> None:
            try:
                feed.write([record(1), record(2)])
            except SinkUnavailable as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        wait_until(
            lambda: target.sql("select 1 from pg_stat_activity where wait_event_type = 'Lock'"), what="a wait"
        )
        other.execute("update t set v = 'other' where id = 1")
        thread.join(30)
    assert "40P01" in str(errors[0])
    assert feed.put(record(1), record(2)) == {}
    assert target.sql("select * from t order by id") == [(1, "1"), (2, "2")]


def test_refusals_that_pass_are_no_dead_letters(target):
    target.sql("create table t (id int primary key, v text)")
    (database,) = target.sql("select current_database()")[0]
    feed = target.feed()
    feed.put(record(1))
    target.sql(f"alter database {database} set default_transaction_read_only = on")
    feed.close()
    with pytest.raises(SinkUnavailable, match="25006"):
        feed.open()
    feed.close()
    target.sql(f"alter database {database} reset default_transaction_read_only")
    feed.open()
    target.sql(f"alter database {database} connection limit 0")
    target.sql("create role small login")
    with pytest.raises(SinkUnavailable, match="too many connections"):
        target.feed(dsn=target.dsn.replace("user=postgres", "user=small"))
    target.sql(f"alter database {database} connection limit -1")
    with pytest.raises(ConnectorError, match=r"(?s)3F000.*USAGE"):
        target.feed(dsn=target.dsn.replace("user=postgres", "user=small"))
    target.sql("drop role small")
    feed.put(record(2))
    with psycopg.connect(target.dsn) as other:
        other.execute("select * from t where id = 2 for update")
        feed.close()
        hurried = target.feed(name="sink 0", lock_timeout=0.2)
        with pytest.raises(SinkUnavailable, match="55P03"):
            hurried.write([record(2)])
    hurried.put((2, None))
    assert ids(target) == [1]


def test_rows_that_the_server_swallows_are_no_error(target):
    target.sql("create table t (id int primary key, v text)")
    target.sql("create function swallow() returns trigger language plpgsql as $$ begin return null; end $$")
    target.sql(
        "create trigger swallow before insert on t for each row when (new.id = 2) execute function swallow()"
    )
    target.sql("create rule nothing as on delete to t do instead nothing")
    feed = target.feed()
    assert feed.put(record(1), record(2), record(3), (1, None)) == {}
    assert ids(target) == [1, 3]


def test_a_transaction_leaves_no_state_of_the_session(target):
    """As where PgBouncer gives each transaction another session."""
    target.sql("create table t (id int primary key, v text)")
    feed = target.feed(statement_timeout=seconds(33))
    feed.put(*map(record, [1, 1, 2, 3]))
    assert feed.put(*map(record, [1, 1, 2, 3])) == {}
    (pid,) = target.sql(
        "select pid from pg_stat_activity where query = 'commit' and pid <> pg_backend_pid()"
    )[0]
    assert target.sql("select count(*) from pg_class where relpersistence = 't'") == [(0,)]
    assert target.sql(f"select count(*) from pg_locks where pid = {pid} and locktype <> 'virtualxid'") == [
        (0,)
    ]
    # A session of whatever settings serves the next transaction.
    target.sql(f"select pg_terminate_backend({pid}, 5000)")
    with pytest.raises(SinkUnavailable):
        feed.write([record(4)])


def test_two_zombies_and_their_successor(appended):
    feeds = [appended.feed(mode="append", name="same") for _ in range(3)]
    feeds[1].put(record(0))
    for zombie in (feeds[0], feeds[2]):
        with pytest.raises(SinkFenced, match="another worker"):
            zombie.write([record(0)])
        zombie.close()
    feeds[1].put(record(1))
    assert ids(appended) == [0, 1]
