"""Comparisons while the source changes and the target follows."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from streams import milliseconds, seconds
from streams.connectors.comparison import compare
from streams.connectors.postgres import PostgresTable
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LAG = 0.05
TABLE = """
create table account(id int primary key, owner text, balance numeric(12,2));
insert into account select g, 'owner ' || g, g from generate_series(1, 3000) g
"""


class Pipeline:
    """Writes random changes into the source; they reach the target a moment later, in order."""

    def __init__(self, source: str, target: str) -> None:
        self.reached = 0
        self.written = 0
        self.copies = True
        self._source = source
        self._target = target
        self._changes: deque[tuple[float, int, list[tuple[bytes, tuple[object, ...]]]]] = deque()
        self._stop = threading.Event()

    def caught_up(self, position: int) -> bool:
        return self.reached >= position

    def write(self) -> None:
        chance = random.Random(1)
        with psycopg.connect(self._source, autocommit=True) as connection:
            while not self._stop.is_set():
                changes = [self._change(chance) for _ in range(chance.randint(1, 5))]
                with connection.transaction():
                    for statement, values in changes:
                        connection.execute(statement, values)
                lsn = connection.execute(
                    "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
                ).fetchone()
                assert lsn is not None
                self._changes.append((time.monotonic() + LAG, lsn[0], changes))
                self.written += 1
                # Leaves the processor to the comparison.
                self._stop.wait(0.003)

    def copy(self) -> None:
        with psycopg.connect(self._target, autocommit=True) as connection:
            while not self._stop.is_set():
                if not self.copies or not self._changes or self._changes[0][0] > time.monotonic():
                    self._stop.wait(0.002)
                    continue
                _, lsn, changes = self._changes.popleft()
                with connection.transaction():
                    for statement, values in changes:
                        connection.execute(statement, values)
                self.reached = lsn

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.write), threading.Thread(target=self.copy)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: self.written > 20, what="the first changes")
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    @staticmethod
    def _change(chance: random.Random) -> tuple[bytes, tuple[object, ...]]:
        # A few rows are changed all the time.
        key = chance.choice([chance.randint(2, 5), chance.randint(10, 2900), chance.randint(4000, 4050)])
        if key >= 4000:
            return (
                b"insert into account values (%s, 'new', %s) on conflict (id) do update set owner = 'again'",
                (key, chance.randint(1, 9)),
            )
        if key >= 10 and chance.random() < 0.1:
            return b"delete from account where id = %s", (key,)
        return b"update account set balance = balance + 1 where id = %s", (key,)


@pytest.fixture
def pipeline(source, target):
    for database in (source, target):
        database.run(TABLE)
    return Pipeline(source.dsn, target.dsn)


@pytest.fixture
def tables(source, target):
    return PostgresTable(dsn=source.dsn, table="account"), PostgresTable(dsn=target.dsn, table="account")


@pytest.mark.parametrize("by", ["time", "position"])
def test_changes_on_their_way_are_no_differences(pipeline, tables, target, by):
    reread = 0
    caught_up = pipeline.caught_up if by == "position" else None
    with pipeline.running():
        for _ in range(4):
            comparison = compare(
                *tables, key=["id"], settle=milliseconds(700), caught_up=caught_up, rows_per_query=500
            )
            assert not comparison.differences
            reread += comparison.reread_keys
        assert reread
        # Rows that no change touches.
        target.run("update account set owner = null where id = 2950; delete from account where id = 2951")
        target.run("insert into account values (5000, 'ghost', 1)")
        comparison = compare(
            *tables, key=["id"], settle=milliseconds(700), caught_up=caught_up, rows_per_query=500
        )
    assert {(item.kind, item.key["id"]) for item in comparison.differences} == {
        ("different", "2950"),
        ("missing", "2951"),
        ("extra", "5000"),
    }


def test_a_target_that_does_not_follow_leaves_changing_rows_undecided(pipeline, tables):
    pipeline.copies = False
    with pipeline.running():
        comparison = compare(*tables, key=["id"], settle=seconds(0.3), patience=seconds(1))
        by_position = compare(*tables, key=["id"], caught_up=pipeline.caught_up, patience=seconds(1))
    assert not comparison.equal
    assert {key["id"] for key in comparison.unsettled} & {"2", "3", "4", "5"}
    assert not by_position.equal
    assert by_position.unsettled
    assert not by_position.differences
    assert "keys undecided" in str(by_position)
