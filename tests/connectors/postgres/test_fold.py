"""The table is the fold of the records, however they are cut into transactions."""

from __future__ import annotations

import itertools
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from tests.support.postgres_target import PostgresTarget

BAD = "too long for the column"

TABLES = {
    "plain, among other keys": "create table t (id int primary key, v varchar(9), w text default 'new')",
    "plain": "create table t (id int primary key, v varchar(9), w text default 'new')",
    "another unique index": (
        "create table t (id int primary key, v varchar(9), w text default 'new', n serial unique)"
    ),
    "a required column": (
        "create table t (id int primary key, v varchar(9) not null, w text default 'new', "
        "check (v <> 'never'))"
    ),
    "not sorted as in Python": (
        "create table t (id numeric primary key, v varchar(9), w text default 'new', check (v is not null))"
    ),
}

operations = st.lists(
    st.tuples(
        st.sampled_from([1, 2]),
        st.sampled_from(
            [None, {"v": "a", "w": "x"}, {"v": "b", "w": "y"}, {"v": "c"}, {"w": "z"}, {"v": BAD, "w": "q"}]
        ),
        st.sampled_from(["same transaction", "same transaction", "commit", "restart"]),
    ),
    max_size=12,
)


def fold(log: list[tuple[int, Any]], *, required: bool) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The rows as one record after the other leaves them, and the numbers of those that are refused."""
    rows: dict[int, dict[str, Any]] = {}
    refused = []
    for number, (key, value) in enumerate(log):
        if value is None:
            rows.pop(key, None)
            continue
        row = {**rows.get(key, {"v": None, "w": "new"}), **value}
        if row["v"] == BAD or (required and row["v"] is None):
            refused.append(number)
        else:
            rows[key] = row
    return [(key, row["v"], row["w"]) for key, row in sorted(rows.items())], refused


@pytest.fixture(scope="module")
def shared(module_database):
    with PostgresTarget(module_database, f"s{uuid.uuid4().hex[:8]}").closing() as target:
        yield target


@pytest.mark.parametrize("kind", TABLES)
@given(log=operations)
@example(log=[(1, {"v": "a", "w": "x"}, "same transaction"), (1, None, "same transaction")])
@settings(max_examples=10)
def test_the_table_is_the_fold(shared, kind, log):
    shared.sql("drop table if exists t")
    shared.sql(TABLES[kind])
    spelled = itertools.cycle([Decimal(1), Decimal("1.0"), "1.00"])
    feed = shared.feed()
    refused: list[int] = []
    batch: list[tuple[Any, Any]] = []

    others = [(1_000 + number, {"v": "o"}) for number in range(60)] if "among" in kind else []
    left_out = 0

    def flush() -> None:
        nonlocal left_out
        start = feed.position - left_out
        refused.extend(start + row for row in feed.put(*batch, *others))
        left_out += len(others)
        batch.clear()

    for key, value, then in log:
        batch.append((key * Decimal(str(next(spelled))) if "sorted" in kind else key, value))
        if then != "same transaction":
            flush()
        if then == "restart":
            feed.close()
            feed.open()
    flush()
    feed.close()
    rows, expected = fold([(key, value) for key, value, _ in log], required="check" in TABLES[kind])
    assert shared.sql("select id, v, w from t where id < 1000 order by id") == rows
    assert refused == expected


def test_a_hot_key_is_written_once_and_its_bad_rows_are_still_refused(target):
    target.sql("create table t (id int primary key, v varchar(9) check (v <> 'never'))")
    feed = target.feed()
    records: list[tuple[int, Any]] = [(1, {"v": str(number)}) for number in range(3_000)]
    assert feed.put(*records) == {}
    assert target.sql("select id, v, xmin = xmax from t") == [(1, "2999", False)]
    records[7] = (1, {"v": BAD})
    records[2_000] = (1, {"v": "never"})
    refused = feed.put(*records)
    assert {row: str(error).split(":")[0] for row, error in refused.items()} == {
        7: "SQLSTATE 22001",
        2_000: "SQLSTATE 23514",
    }
    assert target.sql("select * from t") == [(1, "2999")]


def test_a_trigger_sees_every_state(target):
    target.sql("create table t (id int primary key, v text)")
    target.sql("create table seen (v text)")
    target.sql(
        "create function note() returns trigger language plpgsql as "
        "$$ begin insert into seen values (coalesce(new.v, 'gone')); return null; end $$"
    )
    target.sql(
        "create trigger note after insert or update or delete on t for each row execute function note()"
    )
    feed = target.feed()
    feed.put((1, {"v": "a"}), (1, {"v": "b"}), (1, None), (1, {"v": "c"}))
    assert target.sql("select v from seen") == [("a",), ("b",), ("gone",), ("c",)]


def test_rows_that_swap_unique_values_are_applied_in_order(target):
    target.sql("create table t (id int primary key, u int unique)")
    feed = target.feed()
    assert feed.put((1, {"u": 1}), (2, {"u": 2})) == {}
    assert (
        feed.put((2, {"u": 3}), (1, {"u": 2}), (2, {"u": 1}), (5, {"u": 3}), (5, None), (4, {"u": 3})) == {}
    )
    assert target.sql("select * from t order by id") == [(1, 2), (2, 1), (4, 3)]
    refused = feed.put((6, {"u": 2}), (7, {"u": 9}), (1, {"u": 6}), (6, {"u": 2}))
    assert list(refused) == [0]
    assert "23505" in str(refused[0])
    assert target.sql("select * from t order by id") == [(1, 6), (2, 1), (4, 3), (6, 2), (7, 9)]


def test_keys_that_only_the_server_takes_for_equal(target):
    target.sql("create table t (id char(5) primary key, v text)")
    feed = target.feed()
    assert (
        feed.put(("a", {"v": "1"}), ("a ", {"v": "2"}), ("b", {"v": "1"}), ("b  ", None), ("c", {"v": "1"}))
        == {}
    )
    assert target.sql("select id, v from t order by id") == [("a    ", "2"), ("c    ", "1")]


def test_keys_of_several_columns_and_of_uuids(target):
    target.sql("create table t (a uuid, b text, v int, primary key (a, b))")
    feed = target.feed()
    one = uuid.uuid4()
    feed.put(
        ({"a": one, "b": "x"}, {"v": 1}),
        ({"b": "x", "a": one}, {"v": 2}),
        ({"a": one, "b": "y"}, {"v": 3}),
        ({"a": str(one).upper(), "b": "y"}, None),
    )
    assert target.sql("select * from t") == [(one, "x", 2)]
    feed.put(({"a": str(one).upper(), "b": "x"}, {"v": 4}), ({"a": str(one), "b": "x"}, {"v": 5}))
    assert target.sql("select * from t") == [(one, "x", 5)]
