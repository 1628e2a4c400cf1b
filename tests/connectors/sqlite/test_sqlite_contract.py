from __future__ import annotations

import sqlite3

import pytest

from streams.connectors.sqlite import SqliteSink
from streams.testing.sinks import KeyedRefusingSinkContract, RefusingSinkContract

COLUMNS = {"id": "INTEGER", "text": "TEXT"}


class _Target:
    @pytest.fixture(autouse=True)
    def target(self, tmp_path):
        self.path = tmp_path / "target.db"

    def rows(self):
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute("SELECT id, text FROM t").fetchall()
        finally:
            connection.close()

    def refused_value(self, number):
        return {"id": number, "text": b"bytes in a column of text"}


class TestSqliteByKey(_Target, KeyedRefusingSinkContract):
    def connector(self):
        return SqliteSink(self.path, table="t", key="id", row_type=COLUMNS)


class TestSqliteAppended(_Target, RefusingSinkContract):
    def connector(self):
        return SqliteSink(self.path, table="t", mode="append", row_type=COLUMNS)
