"""A blue/green pair whose rows go to Postgres: each once and in order, whatever is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streams.connectors.postgres import PostgresSink
from tests.support.pair import Chaos
from tests.support.target_pair import TargetPair

if TYPE_CHECKING:
    from streams.connectors.sink import SinkConnector
    from tests.support.postgres_target import PostgresTarget


class Tables:
    def __init__(self, target: PostgresTarget) -> None:
        self._target = target
        for table in ("orders", "blue", "green"):
            target.sql(f"create table {table} (place bigserial primary key, key text, n int)")

    def sink(self, table: str) -> SinkConnector:
        return PostgresSink(self._target.dsn, table, mode="append")

    def rows(self, table: str) -> list[tuple[str, int]]:
        return self._target.sql(f"select key, n from {table} order by place")


@pytest.mark.parametrize("same", [True, False], ids=["the same table", "tables of their own"])
def test_rows_continue_in_the_other_app_and_back(target: PostgresTarget, same: bool):
    TargetPair(Tables(target), same=same).there_and_back()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("same", [True, False], ids=["the same table", "tables of their own"])
def test_rows_under_kills_at_any_moment(target: PostgresTarget, same: bool, seed: int):
    Chaos(TargetPair(Tables(target), same=same), seed, workers=1 + seed % 2).run(7)
