from __future__ import annotations

import datetime as dt
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from streams.connectors.change import Change, ChangeSource, Operation
from streams.connectors.sqlite import SqliteSink
from streams.errors import (
    ConfigurationError,
    ConnectorError,
    SinkFenced,
    SinkMismatch,
    SinkUnavailable,
)
from streams.records import TopicPartition
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows


class Customer(msgspec.Struct):
    id: int
    name: str | None = None
    email: str | msgspec.UnsetType | None = msgspec.UNSET


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shop.db"


@pytest.fixture
def sql(path):
    """Runs statements in the database and returns their rows."""

    def run(*statements: str) -> list[Any]:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            return [row for statement in statements for row in connection.execute(statement)]
        finally:
            connection.close()

    return run


class Written(NamedTuple):
    refused: list[tuple[int, str]]
    position: int


def written(sink, *batches, partition=ORDERS, name="out") -> Written:
    """Write batches, each in one transaction, from the sink's position on."""
    sink.check(context(name))
    writer = sink.open(context(name))
    refused = []
    for batch in batches:
        start = writer.claim({partition: TOPIC_ID})[partition]
        values = [value for _, value in batch]
        rows = sink_rows(values, keys=[key for key, _ in batch], start=start, partition=partition)
        refused += [(row.row, str(row.error)) for row in writer.write([rows])]
        writer.commit()
    position = writer.claim({partition: TOPIC_ID})[partition]
    writer.close()
    return Written(refused, position)


def customers(path: Path, **options: Any) -> SqliteSink:
    return SqliteSink(path, table="customers", key="id", row_type=Customer, **options)


def test_rows_are_written_by_key_and_deleted_by_none(path, sql):
    batch = [(1, Customer(1, "a", "e")), (2, {"id": 2, "name": "b"}), (1, None), (3, Customer(3))]
    assert written(customers(path), batch) == Written([], 4)
    assert sql("SELECT id, name, email FROM customers") == [(2, "b", None), (3, None, None)]


def test_a_field_that_is_missing_stays_and_a_null_is_written(path, sql):
    written(customers(path), [(1, Customer(1, "a", "e"))], [(1, Customer(1, "b"))])
    assert sql("SELECT * FROM customers") == [(1, "b", "e")]
    written(customers(path), [(1, {"id": 1, "email": None})])
    assert sql("SELECT * FROM customers") == [(1, "b", None)]


def test_a_row_that_lacks_a_required_column_updates_an_existing_row_and_is_refused_as_a_new_one(path, sql):
    sql(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT NOT NULL, w TEXT)",
        "INSERT INTO t VALUES (1, 'a', 'b')",
    )
    refused, _ = written(SqliteSink(path, table="t"), [(1, {"id": 1, "w": "c"}), (2, {"id": 2, "w": "c"})])
    assert sql("SELECT * FROM t") == [(1, "a", "c")]
    assert refused == [(1, "NOT NULL constraint failed: t.v (SQLITE_CONSTRAINT_NOTNULL)")]


def test_changes_of_rows_are_applied(path, sql):
    source = ChangeSource(table="customers")

    def change(op: Operation, **rows: Any) -> Change[Any]:
        return Change(op=op, source=source, **rows)

    batch = [
        (1, change("c", after=Customer(1, "a"))),
        (1, change("u", before=Customer(1, "a"), after=Customer(1, "b"))),
        (2, change("r", after={"id": 2, "name": "x"})),
        (2, change("d", before={"id": 2})),
        (2, None),
        (None, change("d", before=Customer(7))),
    ]
    assert written(customers(path), batch).refused == []
    assert sql("SELECT id, name FROM customers") == [(1, "b")]
    truncation = [(None, change("t")), (3, Customer(3, "c"))]
    with pytest.raises(ConnectorError, match=r"was truncated .offset 6 of orders-0"):
        written(customers(path), truncation)
    written(customers(path, on_truncate="ignore"), truncation)
    assert sql("SELECT id, name FROM customers") == [(1, "b"), (3, "c")]
    written(customers(path, on_truncate="delete"), truncation)
    assert sql("SELECT id, name FROM customers") == [(3, "c")]


@dataclass
class Line:
    order_id: int
    line: int
    text: str = ""


class LineKey(msgspec.Struct):
    order_id: int
    line: int


def test_a_key_of_several_columns_comes_from_a_struct_a_mapping_or_a_tuple(path, sql):
    sink = SqliteSink(path, table="lines", key=["order_id", "line"], row_type=Line)
    batch: list[tuple[Any, Any]] = [(None, Line(1, n, "x")) for n in range(5)]
    batch += [(LineKey(1, 0), None), ({"order_id": 1, "line": 1}, None), ((1, 2), None)]
    assert written(sink, batch, [(LineKey(2, 1), {"text": "by key"})]).refused == []
    assert sql("SELECT * FROM lines") == [(1, 3, "x"), (1, 4, "x"), (2, 1, "by key")]


@pytest.mark.parametrize("key", [None, b"1", {"other": 1}, (1, 2), LineKey(1, 2)])
def test_a_deletion_whose_key_is_not_the_table_s_is_refused(path, sql, key):
    refused, position = written(customers(path), [(1, Customer(1, "a"))], [(key, None)])
    assert [row for row, _ in refused] == [0]
    assert position == 2
    assert sql("SELECT id FROM customers") == [(1,)]


def test_text_keys_delete_rows_of_an_integer_column(path, sql):
    written(customers(path), [("1", Customer(1, "a")), ("1", None)])
    assert sql("SELECT * FROM customers") == []


class Renamed(msgspec.Struct, rename="camel"):
    id: int
    full_name: str


def test_structs_have_the_names_of_their_json(path, sql):
    sink = SqliteSink(path, "renamed", key="id", row_type=Renamed)
    assert written(sink, [(1, Renamed(1, "a")), (2, {"id": 2, "fullName": "b"})]).refused == []
    assert sql("SELECT id, fullName FROM renamed") == [(1, "a"), (2, "b")]


def test_only_key_columns_quoted_names_and_generated_columns(path, sql):
    sql(
        'CREATE TABLE "Order Items" ("select" INT, "a-b" TEXT, "x""y" TEXT, '
        'double INT GENERATED ALWAYS AS ("select" * 2), PRIMARY KEY ("select", "a-b"))'
    )
    sink = SqliteSink(path, table="order items")
    keys = [(None, {"SELECT": 1, "a-b": "k"})] * 2
    batch = [*keys, (None, {"select": 1, "a-b": "k", 'x"y': "q", "double": 9})]
    assert written(sink, batch).refused == []
    assert sql('SELECT * FROM "Order Items"') == [(1, "k", "q", 2)]


def test_columns_choose_and_rename_fields(path, sql):
    sink = SqliteSink(
        path,
        table="c",
        key="id",
        row_type={"id": "INTEGER", "title": "TEXT"},
        columns={"id": "id", "name": "title"},
    )
    written(sink, [(1, Customer(1, "a", "secret"))])
    assert sql("SELECT * FROM c") == [(1, "a")]


def test_append_writes_each_value_and_nothing_for_deletions(path, sql):
    sink = SqliteSink(path, table="log", mode="append", row_type={"id": "INTEGER", "name": "TEXT"})
    refused, position = written(sink, [(1, {"id": 1, "name": "a"})] * 3 + [(1, None)], [(1, {})])
    assert position == 5
    assert refused == []
    assert sql("SELECT * FROM log") == [(1, "a")] * 3 + [(None, None)]


def test_bad_rows_are_refused_with_sqlite_s_message_and_the_others_land(path, sql):
    sql(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, name TEXT NOT NULL CHECK (length(name) < 9)) "
        "STRICT",
        "CREATE UNIQUE INDEX names ON t (name)",
    )
    batch: list[tuple[int, Any]] = [(n, {"id": n, "name": f"n{n}", "n": n}) for n in range(1000)]
    bad = {
        10: ({"id": 10, "name": "x" * 300, "n": 1}, "SQLITE_CONSTRAINT_CHECK"),
        20: ({"id": 20, "name": None, "n": 1}, "SQLITE_CONSTRAINT_NOTNULL"),
        30: ({"id": 30, "name": "n30", "n": "text"}, "SQLITE_CONSTRAINT_DATATYPE"),
        40: ({"id": 40, "name": "n5", "n": 1}, "SQLITE_CONSTRAINT_UNIQUE"),
        50: ({"id": 50, "name": "n50", "n": 1 << 63}, "too large"),
        60: ({"id": 60, "name": "\ud800", "n": 1}, "surrogates"),
        70: ({"id": None, "name": "n70", "n": 1}, "key id is null"),
        80: ("no row", "convert values"),
        999: ({"id": 999, "name": "n999", "n": 1.5}, "SQLITE_CONSTRAINT_DATATYPE"),
    }
    for row, (value, _) in bad.items():
        batch[row] = (row, value)
    refused, position = written(SqliteSink(path, table="t"), batch)
    assert position == 1000
    assert [row for row, _ in refused] == sorted(bad)
    for row, error in refused:
        assert bad[row][1] in error
    assert sql("SELECT count(*), sum(n) FROM t") == [(991, sum(range(1000)) - sum(bad))]


def test_states_between_changes_satisfy_another_unique_index(path, sql):
    sql(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)", "INSERT INTO t VALUES (1, 'a'), (2, 'b')"
    )
    swap = [(1, "tmp"), (2, "a"), (1, "b")]
    assert written(SqliteSink(path, table="t"), [(k, {"id": k, "name": v}) for k, v in swap]).refused == []
    assert sql("SELECT * FROM t ORDER BY id") == [(1, "b"), (2, "a")]


EXACT = [
    ("TEXT", Decimal("12345678901234567890.1234567890"), "12345678901234567890.1234567890"),
    ("TEXT", Decimal("1E+2"), "100"),
    ("TEXT", 0.1 + 0.2, "0.30000000000000004"),
    ("TEXT", math.nan, "NaN"),
    ("", math.nan, "NaN"),
    ("REAL", math.inf, math.inf),
    ("REAL", -0.0, 0.0),
    ("REAL", math.nan, "NaN"),
    ("DECIMAL(10,2)", Decimal("1.10"), 1.1),
    ("DECIMAL(10,2)", "NaN", "NaN"),
    ("INTEGER", Decimal("5.00"), 5),
    ("INTEGER", (1 << 63) - 1, (1 << 63) - 1),
    ("BOOLEAN", True, 1),
    ("DATE", dt.date(2026, 3, 1), "2026-03-01"),
    ("", dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC), "2026-03-01T12:00:00Z"),
    ("TEXT", {"a": [1, None]}, '{"a":[1,null]}'),
    ("TEXT", "a\0b", "a\0b"),
    ("TEXT", "infinity", "infinity"),
    ("", "0044-03-15 BC", "0044-03-15 BC"),
    ("BLOB", b"\xff", b"\xff"),
]


@pytest.mark.parametrize(("declared", "value", "expected"), EXACT)
def test_values_are_stored_exactly_or_as_documented(path, sql, declared, value, expected):
    sql(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
    assert written(SqliteSink(path, table="t"), [(1, {"id": 1, "v": value})]).refused == []
    assert repr(sql("SELECT v FROM t")[0][0]) == repr(expected)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("REAL", Decimal("12345678901234567890.123")),
        ("DECIMAL(30,3)", "12345678901234567890.123"),
        ("REAL", (1 << 53) + 1),
        ("INTEGER", 1 << 64),
        ("TEXT", {"a": math.nan}),
        ("TEXT", object()),
    ],
)
def test_a_value_that_sqlite_would_change_is_refused(path, sql, declared, value):
    sql(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
    refused, _ = written(SqliteSink(path, table="t"), [(1, {"id": 1, "v": value}), (2, {"id": 2, "v": None})])
    assert [row for row, _ in refused] == [0]
    assert sql("SELECT id FROM t") == [(2,)]


def test_a_missing_column_stops_with_the_statement_that_adds_it(path):
    with pytest.raises(ConnectorError, match=r'no column "?\'phone') as raised:
        written(customers(path), [(1, {"id": 1, "phone": "1"})])
    assert 'ALTER TABLE "customers" ADD COLUMN "phone"' in str(raised.value)


def test_missing_columns_of_the_row_type_are_an_error_or_added(path, sql):
    sql("CREATE TABLE customers (id INTEGER PRIMARY KEY)")
    with pytest.raises(ConnectorError, match="no column 'name'") as raised:
        customers(path).check(context())
    assert 'ADD COLUMN "name" TEXT' in str(raised.value)
    written(customers(path, alter=True), [(1, Customer(1, "a", "e"))])
    assert sql("SELECT * FROM customers") == [(1, "a", "e")]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TABLE other (id)", "no table 't'"),
        ("CREATE TABLE t (id)", "no primary key"),
        ("CREATE VIEW t AS SELECT 1 AS id", "is a view"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_at_the_start(path, sql, statement, message):
    sql(statement)
    with pytest.raises(ConnectorError, match=message):
        SqliteSink(path, table="t").check(context())


def test_a_key_without_a_unique_index_is_refused_with_the_index_it_needs(path, sql):
    sql("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT)")
    with pytest.raises(ConnectorError) as raised:
        SqliteSink(path, table="t", key=["a", "b"]).check(context())
    hint = raised.value.hint
    assert hint == 'CREATE UNIQUE INDEX "t_a_b" ON "t" ("a", "b")'
    sql(hint)
    SqliteSink(path, table="t", key=["a", "b"]).check(context())


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "merge"},
        {"mode": "append", "key": "id"},
        {"row_type": Customer},
        {"row_type": Customer, "key": "nr"},
        {"row_type": int, "key": "id"},
        {"alter": True},
        {"on_truncate": "cascade"},
    ],
)
def test_options_that_contradict_each_other_are_refused(path, options):
    with pytest.raises(ConfigurationError):
        SqliteSink(path, table="t", **options)


def test_a_database_in_memory_or_in_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigurationError):
        SqliteSink(":memory:", table="t")
    with pytest.raises(ConnectorError, match="not a folder"):
        SqliteSink(tmp_path / "no" / "a.db", table="t").check(context())


def test_a_zombie_is_fenced_and_leaves_nothing(path, sql):
    sink = customers(path)
    sink.check(context())
    zombie, owner = sink.open(context()), sink.open(context())
    assert zombie.claim({ORDERS: TOPIC_ID}) == owner.claim({ORDERS: TOPIC_ID}) == {ORDERS: 0}
    owner.write([sink_rows([Customer(1, "owner")])])
    owner.commit()
    with pytest.raises(SinkFenced, match="orders-0 is not offset 0"):
        zombie.write([sink_rows([Customer(1, "zombie"), Customer(2)])])
    zombie.close()
    owner.close()
    assert sql("SELECT id, name FROM customers") == [(1, "owner")]


def test_a_locked_database_is_unavailable_and_nothing_is_committed(path, sql):
    sink = customers(path)
    sink.check(context())
    writer, other = sink.open(context()), sqlite3.connect(path, isolation_level=None)
    writer.claim({ORDERS: TOPIC_ID})
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SinkUnavailable, match="database is locked"):
        writer.write([sink_rows([Customer(1)])])
    writer.close()
    writer.close()
    again = sink.open(context())
    with pytest.raises(SinkUnavailable):
        again.claim({ORDERS: TOPIC_ID})
    other.execute("COMMIT")
    other.close()
    assert written(sink, [(1, Customer(1))]).position == 1


def test_a_reader_in_the_way_of_the_commit_undoes_it(path, sql):
    sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    sink = SqliteSink(path, table="t")
    sink.check(context())
    writer, other = sink.open(context()), sqlite3.connect(path, isolation_level=None)
    writer.claim({ORDERS: TOPIC_ID})
    other.execute("BEGIN")
    other.execute("SELECT * FROM t").fetchall()
    writer.write([sink_rows([{"id": 1}])])
    with pytest.raises(SinkUnavailable, match="database is locked"):
        writer.commit()
    other.close()
    assert written(sink, []).position == 0
    assert sql("SELECT * FROM t") == []


def test_positions_move_without_rows_and_over_gaps_and_stand_for_each_topic_and_sink(path):
    sink = customers(path)
    sink.check(context())
    other = TopicPartition("orders", 1)
    writer = sink.open(context())
    assert writer.claim({ORDERS: TOPIC_ID, other: TOPIC_ID}) == {ORDERS: 0, other: 0}
    writer.write([sink_rows([], next_offset=500), sink_rows([Customer(1)], next_offset=7, partition=other)])
    writer.commit()
    writer.write([sink_rows([], start=500, next_offset=501)])
    writer.rollback()
    writer.release([other])
    assert writer.claim({ORDERS: TOPIC_ID, other: TOPIC_ID}) == {ORDERS: 500, other: 7}
    writer.close()
    for stranger in (context("other"), context(application="other")):
        opened = sink.open(stranger)
        assert opened.claim({ORDERS: TOPIC_ID}) == {ORDERS: 0}
        opened.close()
    recreated = sink.open(context())
    with pytest.raises(SinkMismatch, match=f"{TOPIC_ID}.*new-id") as raised:
        recreated.claim({ORDERS: "new-id"})
    assert "delete the rows" in str(raised.value)


def test_a_constraint_that_rolls_back_stops_instead_of_losing_the_transaction(path, sql):
    sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT NOT NULL ON CONFLICT ROLLBACK)")
    with pytest.raises(ConnectorError, match="rolls the transaction back"):
        written(SqliteSink(path, table="t"), [(1, {"id": 1, "v": "a"}), (2, {"id": 2, "v": None})])
    assert sql("SELECT * FROM t") == []


def test_wide_rows_and_many_of_them(path, sql):
    names = [f"c{n}" for n in range(300)]
    create = {"id": "INTEGER", **dict.fromkeys(names, "INTEGER")}
    batch = [(k, {"id": k, **dict.fromkeys(names, k)}) for k in range(1000)]
    written(SqliteSink(path, table="wide", key="id", row_type=create), batch)
    assert sql("SELECT count(*), sum(c299) FROM wide") == [(1000, sum(range(1000)))]


STEPS = st.tuples(
    st.integers(1, 2), st.sampled_from(["put 1", "put 2", "partial", "delete", "tombstone", "bad"])
)


@pytest.fixture(scope="module")
def fold_path(tmp_path_factory):
    return tmp_path_factory.mktemp("fold") / "t.db"


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=12), st.lists(st.integers(0, 12), max_size=4), st.data())
def test_the_table_is_the_fold_however_changes_are_cut_into_batches(fold_path, steps, cuts, data):
    sink = SqliteSink(fold_path, table="t", key="id", row_type={"id": "INTEGER", "v": "INTEGER", "w": "TEXT"})
    source = ChangeSource()
    records: list[tuple[int, Any]] = []
    fold: dict[int, tuple[Any, Any]] = {}
    for key, step in steps:
        value: Any = None
        match step:
            case "put 1" | "put 2":
                value = {"id": key, "v": int(step[-1]), "w": step}
                fold[key] = (value["v"], step)
            case "partial":
                value = {"id": key, "w": "p"}
                fold[key] = (fold.get(key, (None, None))[0], "p")
            case "bad":
                value = {"id": key, "v": "bad", "w": None}
            case "delete":
                value = Change(op="d", before={"id": key}, source=source)
                fold.pop(key, None)
            case _:
                fold.pop(key, None)
        records.append((key, value))
    edges = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    batches = [records[start:stop] for start, stop in pairwise(edges)]
    # A restart between two batches.
    pause = data.draw(st.integers(0, len(batches)))
    name = uuid.uuid4().hex
    first = written(sink, *batches[:pause], name=name)
    second = written(sink, *batches[pause:], name=name)
    assert second.position == len(records)
    assert len(first.refused + second.refused) == sum(step == "bad" for _, step in steps)
    connection = sqlite3.connect(fold_path, isolation_level=None)
    table = {key: (v, w) for key, v, w in connection.execute("SELECT id, v, w FROM t")}
    connection.execute("DELETE FROM t")
    connection.close()
    assert table == fold


CRASHING = """
    import os, signal, sys
    from streams.connectors.sqlite import SqliteSink
    from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows

    path, crash = sys.argv[1:]
    sink = SqliteSink(path, table="log", mode="append", row_type={"id": "INTEGER"})
    sink.check(context())
    writer = sink.open(context())
    steps = iter(range(100))

    def step(done=None):
        if next(steps) == int(crash):
            os.kill(os.getpid(), signal.SIGKILL)

    position = writer.claim({ORDERS: TOPIC_ID})[ORDERS]
    while position < 6:
        step()
        writer.write([sink_rows([{"id": position}, {"id": position + 1}], start=position)])
        step()
        writer.commit()
        position += 2
    step()
"""


@pytest.mark.parametrize("crash", [3, 4])
def test_a_worker_killed_between_two_steps_continues_at_the_position_in_the_database(path, sql, crash):
    program = [sys.executable, "-c", textwrap.dedent(CRASHING), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run([*program, str(crash)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([*program, "99"], env=environment, check=True)
    assert sql("SELECT id FROM log ORDER BY rowid") == [(n,) for n in range(6)]
