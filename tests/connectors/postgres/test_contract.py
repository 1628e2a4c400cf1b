"""The contract of sinks, on Postgres: tables that are written by key and ones that are appended to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from streams.connectors.postgres import PostgresSink
from streams.testing.sinks import KeyedRefusingSinkContract, RefusingSinkContract

if TYPE_CHECKING:
    from streams.connectors.sink import SinkWriter


class _OnPostgres:
    declaration = "id int primary key, text varchar(100)"

    @pytest.fixture(autouse=True)
    def target(self, module_database):
        self.dsn = module_database
        with psycopg.connect(module_database) as connection:
            connection.execute("drop table if exists target, streams_positions")
            connection.execute(f"create table target ({self.declaration})".encode())

    def rows(self) -> list[tuple[int, str]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute("select id, text from target").fetchall()

    def refused_value(self, number: int) -> dict[str, object]:
        return {"id": number, "text": "x" * 101}

    def crash(self, writer: SinkWriter) -> None:
        """The server sees the connection end, as the kernel closes those of a dead process."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
        writer.close()


class TestUpserts(_OnPostgres, KeyedRefusingSinkContract):
    def connector(self) -> PostgresSink:
        return PostgresSink(self.dsn, "target", max_rows=2_000)


class TestUpsertsInOrder(TestUpserts):
    """Another unique constraint makes the order of all rows visible."""

    declaration = "id int primary key, text varchar(100), number serial unique"


class TestUpsertsWithKeyInValue(TestUpserts):
    def connector(self) -> PostgresSink:
        return PostgresSink(self.dsn, "target", key=("id",), max_rows=2_000)


class TestAppended(_OnPostgres, RefusingSinkContract):
    declaration = "id int, text varchar(100)"

    def connector(self) -> PostgresSink:
        return PostgresSink(self.dsn, "target", mode="append", max_rows=2_000)
