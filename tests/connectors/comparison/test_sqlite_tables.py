from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from streams import ConfigurationError, seconds
from streams.connectors.comparison import compare
from streams.connectors.postgres import PostgresTable
from streams.connectors.sqlite import SqliteTable
from streams.errors import ConnectorError, ConnectorUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streams.connectors.comparison.result import Comparison

NOW = seconds(0)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "target.db"


@pytest.fixture
def compared(source, file):
    def run(*, key=("id",), expressions=None, **options):
        return compare(
            PostgresTable(dsn=source.dsn, table="t", expressions=expressions or {}),
            SqliteTable(path=file, table="t"),
            key=key,
            settle=NOW,
            **options,
        )

    return run


def fill(file: Path, *statements: str, rows: Sequence[tuple[object, ...]] = ()) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"insert into t values ({marks})", rows)


def differing(comparison: Comparison) -> set[tuple[str, ...]]:
    return {
        (item.kind, *item.key.values(), *(column.column for column in item.columns))
        for item in comparison.differences
    }


def test_exact_decimals_and_other_values_as_text(source, file, compared):
    source.run("""
        create table t(id int primary key, n numeric, f float8, r real, ok boolean, at timestamptz,
                       local timestamp, day date, j jsonb, b bytea, u uuid, c char(4), v text);
        insert into t values
          (1, 12345678901234567890.123456789000, 0.1, 0.1, true, '2026-07-01 12:00:00.500+02',
           '2026-07-01 12:00', '2026-07-01', '{"bb": [1.10, null, true, "ä\\n"], "a": {}}', '\\x00ff',
           'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ab', 'NULL'),
          (2, 'NaN', 'NaN', 'Infinity', false, 'infinity',
           '-infinity', '0044-03-15 BC', '1e3', '', null, '', ''),
          (3, 1.10, '-0', 1e-40, null, '0044-03-15 12:00:00+00 BC',
           null, '20000-01-01', '"x"', null, null, null, null)
    """)
    columns = (
        "n text, f real, r real, ok integer, at text, local text, day text, j text, b blob, u text, c, v"
    )
    fill(file, f"create table t(id integer primary key, {columns})", rows=[
        (1, "12345678901234567890.123456789", 0.1, 0.1, 1, "2026-07-01T10:00:00.5Z",
         "2026-07-01T12:00:00", "2026-07-01", '{"a":{},"bb":[1.10,null,true,"\\u00e4\\n"]}', b"\x00\xff",
         "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "ab  ", "NULL"),
        (2, "NaN", "NaN", float("inf"), 0, "infinity",
         "-infinity", "0044-03-15 BC", "1000", b"", None, "", ""),
        (3, "1.1", 0.0, 1e-40, None, "0044-03-15 12:00:00+00 BC",
         None, "20000-01-01", '"x"', None, None, None, None),
    ])  # fmt: skip
    comparison = compared()
    assert not comparison.differences, list(map(str, comparison.differences))
    assert comparison.equal
    fill(file, "update t set n = '1.11', v = '' where id = 3", "update t set ok = 1, b = null where id = 2")
    assert differing(compared()) == {("different", "3", "n", "v"), ("different", "2", "ok", "b")}


def test_exactly_compared_numbers_keep_their_zeros(source, file, compared):
    source.run("create table t(id int primary key, n numeric); insert into t values (1, 1.10)")
    fill(file, "create table t(id integer primary key, n text)", rows=[(1, "1.1")])
    assert compared().equal
    assert differing(compared(exact=True)) == {("different", "1", "n")}
    fill(file, "update t set n = '1.10'")
    assert compared(exact=True).equal


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("int", "integer primary key"),
        ("text", "text primary key"),
        ("uuid", "text primary key"),
        ("numeric", "text primary key"),
        ("timestamptz", "text primary key"),
    ],
)
def test_keys_of_many_rows(source, file, compared, ours, theirs):
    made = {
        "int": "g",
        "text": "chr(65 + g % 60) || g",
        "uuid": "md5(g::text)::uuid",
        "numeric": "g * 1.10",
        "timestamptz": "'2026-01-01 00:00+00'::timestamptz + g * interval '1.5 s'",
    }[ours]
    source.run(
        f"create table t(id {ours} primary key, v int);"
        f"insert into t select {made}, g from generate_series(1, 5000) g"
    )
    with psycopg.connect(source.dsn) as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute("set datestyle = 'ISO'")
        rows = connection.execute(b"select id::text, v from t").fetchall()
    written = [(key.replace(" ", "T") if ours == "timestamptz" else key, v) for key, v in rows]
    fill(file, f"create table t(id {theirs}, v integer)", rows=written)
    assert compared(rows_per_query=1000).equal
    fill(file, "delete from t where v = 77", "update t set v = -1 where v in (1, 2500, 5000)")
    found = compared(rows_per_query=1000).differences
    assert sorted(item.kind for item in found) == ["different", "different", "different", "missing"]


@pytest.mark.parametrize("index", ["(a, b)", "(a)", "(b, a)", "(a, b collate nocase)", "(a) where a > 5"])
def test_any_index_or_none_gives_the_same(source, file, compared, index):
    source.run(
        "create table t(a int, b text, v int, primary key(a, b));"
        "insert into t select g % 20, chr(65 + g % 50) || g, g from generate_series(1, 3000) g"
    )
    rows = [(g % 20, f"{chr(65 + g % 50)}{g}", g) for g in range(1, 3001)]
    fill(file, "create table t(a integer, b text, v integer)", f"create index i on t {index}", rows=rows)
    assert compared(key=("a", "b"), rows_per_query=100).equal
    fill(file, "delete from t where v = 60", "update t set v = 0 where v in (1, 3000)")
    assert differing(compared(key=("a", "b"), rows_per_query=100)) == {
        ("different", "0", "A3000", "v"), ("different", "1", "B1", "v"), ("missing", "0", "K60")
    }  # fmt: skip


def test_composite_keys_and_duplicates(source, file, compared):
    source.run(
        "create table t(a text, b int, v text, primary key(a, b));"
        "insert into t values ('a-B',1,'x'),('A_b',1,'y'),('ä',2,'z')"
    )
    fill(file, "create table t(a text, b integer, v text)", rows=[
        ("a-B", 1, "x"), ("A_b", 1, "y"), ("A_b", 1, "y"), ("ä", 2, "Z"), ("ghost", 0, None)
    ])  # fmt: skip
    assert differing(compared(key=("a", "b"))) == {
        ("duplicate", "A_b", "1"), ("different", "ä", "2", "v"), ("extra", "ghost", "0")
    }  # fmt: skip


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.sampled_from(["'", "\\", "NULL", "E'", ","]),
    max_size=8,
)
DOUBLES = st.lists(st.floats(), max_size=8)
SINGLES = st.lists(st.floats(width=32), max_size=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, doubles=DOUBLES, singles=SINGLES)
def test_every_text_and_float_is_equal_to_itself(source, file, compared, texts, doubles, singles):
    source.run("drop table if exists t; create table t(id int primary key, v text, f float8, r real)")
    fill(file, "drop table if exists t", "create table t(id integer primary key, v text, f, r)")
    rows: list[tuple[int, str | None, float | None, float | None]] = [
        *((number, text, None, None) for number, text in enumerate(texts)),
        *((100 + number, None, value, None) for number, value in enumerate(doubles)),
        *((200 + number, None, None, value) for number, value in enumerate(singles)),
    ]
    with psycopg.connect(source.dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany("insert into t values (%s, %s, %s, %s)", rows)
    # SQLite stores NaN as null.
    fill(file, rows=[tuple("NaN" if value != value else value for value in row) for row in rows])  # noqa: PLR0124 - NaN
    comparison = compared()
    assert not comparison.differences, list(map(str, comparison.differences))


def test_a_number_that_single_precision_rounds_is_another_one(source, file, compared):
    source.run("create table t(id int primary key, r real); insert into t values (1, 0.1)")
    nearest = struct.unpack("f", struct.pack("f", 0.1))[0]
    fill(file, "create table t(id integer primary key, r real)", rows=[(1, nearest)])
    assert compared().equal
    fill(file, "update t set r = 0.1001")
    assert differing(compared()) == {("different", "1", "r")}


def test_a_file_or_table_that_does_not_exist(source, file, compared, tmp_path):
    source.run("create table t(id int primary key)")
    with pytest.raises(ConnectorError, match="there is no such file"):
        compared()
    assert not file.exists()
    fill(file, "create table other(id integer)")
    with pytest.raises(ConnectorError, match="there is no table t in"):
        compared()


def test_a_locked_database_is_unavailable(source, file):
    source.run("create table t(id int primary key)")
    fill(file, "create table t(id integer primary key)")
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("begin exclusive")
        with pytest.raises(ConnectorUnavailable, match="locked"):
            compare(
                PostgresTable(dsn=source.dsn, table="t"),
                SqliteTable(path=file, table="t", lock_timeout=seconds(0.05)),
                key=["id"],
            )


def test_sqlite_has_no_positions_to_wait_for(file):
    fill(
        file, "create table t(id integer primary key)", "create table u(id integer primary key)", rows=[(1,)]
    )
    with pytest.raises(ConfigurationError, match="has no log with positions"):
        compare(
            SqliteTable(path=file, table="t"),
            SqliteTable(path=file, table="u"),
            key=["id"],
            caught_up=lambda _: True,
        )
