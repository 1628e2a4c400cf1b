"""A stream into Postgres and SQLite: the outage of one holds back the other nowhere."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from streams import App, Json
from streams.connectors.postgres import PostgresSink
from streams.connectors.sqlite import SqliteSink
from streams.devstack.postgres import LocalPostgres
from streams.records import Output
from tests.support.cluster import AppCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[LocalPostgres]:
    with LocalPostgres.create() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create table log (id int, v text)")
        yield server


class Site(AppCluster):
    """An app that appends a topic's records to a table in each system, which would show a repeated one."""

    def __init__(self, server: LocalPostgres, folder: Path) -> None:
        self.server, self.file = server, folder / "copy.db"
        app = App("copy")
        stream = app.stream("in", key=Json(), value=Json(dict[str, Any]))
        stream.sink(PostgresSink(server.dsn(), "log", mode="append"))
        stream.sink(
            SqliteSink(self.file, "log", mode="append", row_type={"id": "INTEGER", "v": "TEXT"}), store="file"
        )
        super().__init__(app, {"in": 3})

    def produce(self, start: int, stop: int) -> None:
        rows = [b'{"id": %d, "v": "row"}' % number for number in range(start, stop)]
        self.write(Output("in", [b"%d" % number for number in range(start, stop)], rows, [0] * len(rows)))

    def in_sqlite(self) -> list[int]:
        with closing(sqlite3.connect(self.file)) as connection:
            return sorted(number for (number,) in connection.execute("select id from log"))

    def in_postgres(self) -> list[int]:
        with psycopg.connect(self.server.dsn()) as connection:
            return sorted(number for (number,) in connection.execute("select id from log"))


def test_one_system_is_down(server: LocalPostgres, tmp_path: Path) -> None:
    site = Site(server, tmp_path)
    worker = site.worker()
    site.produce(0, 100)
    site.run(worker, until=lambda: len(site.in_sqlite()) == len(site.in_postgres()) == 100)
    server.stop("immediate")
    for start in range(100, 400, 100):
        site.produce(start, start + 100)
        site.run(worker, until=lambda: len(site.in_sqlite()) == start + 100)  # noqa: B023 - called at once
    assert list(worker.problems) == ["postgres-log"]
    # Another worker in the outage continues for SQLite too.
    site.freeze(worker)
    second = site.worker()
    site.produce(400, 500)
    site.run(second, until=lambda: len(site.in_sqlite()) == 500)
    server.start()
    site.produce(500, 600)
    site.run(second, until=lambda: second.ready and len(site.in_postgres()) == 600)
    site.run(second, until=lambda: len(site.in_sqlite()) == 600)
    second.close()
    assert site.in_postgres() == site.in_sqlite() == list(range(600))
