"""Rebuilding a sink's target from its topics, while the sink goes on."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams import App, Json
from streams.broker import NewTopic
from streams.connectors.postgres import PostgresSink
from streams.connectors.sqlite import SqliteSink
from streams.errors import ConfigurationError, TopicError
from streams.records import Output, TopicPartition
from streams.runtime.rebuild import Rebuild
from tests.support.cluster import MemoryCluster
from tests.support.connectors import Database, MemorySink
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.connectors.sink import SinkConnector

PARTITIONS = 3


class Site(MemoryCluster):
    """A topic, and a worker in a thread that writes it to a table."""

    def __init__(self, connector: SinkConnector, content: Callable[[], list[tuple[Any, ...]]]) -> None:
        super().__init__({}, real_time=True)
        app = App("copy", commit_interval=0.2)
        stream = app.stream("in", key=Json(int), value=Json(dict[str, Any]), tombstones=True)
        # What has a number that ends with 9 never reaches the table.
        stream.filter(lambda row: row is None or row["n"] % 10 != 9).sink(connector, store="rows")
        self.app = app
        self.content = content
        self.sent: dict[int, dict[str, Any]] = {}
        self._stop = threading.Event()
        self.topic("in")

    def topic(self, name: str, **settings: str) -> None:

        self.admin.create_topics([NewTopic(name=name, partitions=PARTITIONS, settings=settings)])

    def start(self) -> None:
        self.counts = self.prepare(self.app, create_outputs=True)
        self.worker = self.make_worker(self.app, "worker", partitions=self.counts)
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    def stop(self) -> None:
        self.worker.request_stop()
        self.thread.join(20)

    def put(self, start: int, stop: int, text: str) -> None:
        rows = {number: {"id": number, "n": number, "text": text} for number in range(start, stop)}
        self.sent |= rows
        keys = [json.dumps(number).encode() for number in rows]
        self.write(Output("in", keys, [json.dumps(row).encode() for row in rows.values()], [0] * len(rows)))

    def remove(self, *numbers: int) -> None:
        for number in numbers:
            del self.sent[number]
        keys = [json.dumps(number).encode() for number in numbers]
        self.write(Output("in", keys, [None] * len(keys), [0] * len(keys)))

    @property
    def expected(self) -> list[tuple[int, int, str]]:
        return sorted((row["id"], row["n"], row["text"]) for row in self.sent.values() if row["n"] % 10 != 9)

    def settle(self) -> None:
        wait_until(lambda: self.content() == self.expected, 20, what="the target has all rows")


class Sqlite:
    def __init__(self, path: Any) -> None:
        self.path = path / "target.db"
        self.run("create table target (id integer primary key, n integer, text text)")
        self.connector = SqliteSink(self.path, table="target", key=("id",))

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=20)) as connection, connection:
            return connection.execute(statement).fetchall()


class Postgres:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.run("create table target (id int primary key, n int, text text)")
        self.connector = PostgresSink(dsn, "target", key=("id",))

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            cursor = connection.execute(statement.encode())
            return [] if cursor.description is None else cursor.fetchall()


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Any) -> Sqlite | Postgres:
    if request.param == "sqlite":
        return Sqlite(tmp_path)
    return Postgres(request.getfixturevalue("database"))


@pytest.fixture
def site(target: Sqlite | Postgres) -> Iterator[Site]:
    site = Site(target.connector, lambda: target.run("select id, n, text from target order by id"))
    site.start()
    yield site
    site.stop()


def rebuild(site: Site) -> Any:
    return Rebuild(site.app.topology, site.broker, application="copy", store="rows").run()


def test_missing_changed_and_additional_rows_are_put_right(site, target):
    site.put(0, 300, "first")
    site.remove(*range(50, 60))
    site.settle()
    target.run("delete from target where id < 5")
    target.run("update target set text = 'wrong' where id between 20 and 22")
    target.run("insert into target values (55, 55, 'ghost'), (1000, 1000, 'ghost')")
    done = rebuild(site)
    site.settle()
    assert (done.counts.added, done.counts.changed, done.counts.deleted) == (5, 3, 2)
    assert done.records >= 310
    tables = target.run(
        "select name from sqlite_master where type = 'table'"
        if isinstance(target, Sqlite)
        else "select table_name from information_schema.tables where table_schema = 'public'"
    )
    assert {name for (name,) in tables} == {"target", "streams_positions"}


def test_the_sink_goes_on_while_its_target_is_rebuilt(site, target):
    site.put(0, 2_000, "first")
    site.settle()
    target.run("delete from target where id % 7 = 0")
    target.run("insert into target values (5000, 5000, 'ghost')")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            site.put(number * 50, number * 50 + 100, f"round {number}")
            site.remove(number * 50)
            stop.wait(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        rebuild(site)
    finally:
        stop.set()
        writer.join()
    site.settle()


def test_topics_that_have_lost_records_are_refused(site):
    site.put(0, 100, "first")
    site.settle()
    site.admin.delete_records({TopicPartition("in", 0): 5})
    with pytest.raises(TopicError, match="in-0 begins at offset 5: records before it were deleted"):
        rebuild(site)
    site.settle()


def test_sinks_that_cannot_be_rebuilt_are_refused():
    app = App("copy")
    app.stream("in", key=Json(int)).sink(MemorySink(Database()), store="rows")
    broker = MemoryCluster({"in": 1}).broker
    with pytest.raises(ConfigurationError, match="its connector has no rebuild"):
        Rebuild(app.topology, broker, application="copy", store="rows")
    with pytest.raises(ConfigurationError, match="no sink with store 'row'"):
        Rebuild(app.topology, broker, application="copy", store="row")
