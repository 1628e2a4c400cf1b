"""A blue/green pair whose rows go to a real database: each once and in order, whatever is killed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from streams.connectors.sqlite import SqliteSink
from tests.support.pair import Chaos
from tests.support.target_pair import TargetPair

if TYPE_CHECKING:
    from pathlib import Path

    from streams.connectors.sink import SinkConnector


class SqliteTarget:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "target.db"
        with closing(sqlite3.connect(self.file)) as connection:
            for table in ("orders", "blue", "green"):
                connection.execute(f"create table {table} (place integer primary key, key text, n integer)")

    def sink(self, table: str) -> SinkConnector:
        return SqliteSink(self.file, table, mode="append")

    def rows(self, table: str) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(self.file)) as connection:
            return connection.execute(f"select key, n from {table} order by place").fetchall()


@pytest.mark.parametrize("same", [True, False], ids=["the same table", "tables of their own"])
def test_rows_continue_in_the_other_app_and_back(tmp_path: Path, same: bool):
    pair = TargetPair(SqliteTarget(tmp_path), same=same)
    pair.there_and_back()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("same", [True, False], ids=["the same table", "tables of their own"])
def test_rows_under_kills_at_any_moment(tmp_path: Path, same: bool, seed: int):
    Chaos(TargetPair(SqliteTarget(tmp_path), same=same), seed, workers=1 + seed % 2).run(7)
