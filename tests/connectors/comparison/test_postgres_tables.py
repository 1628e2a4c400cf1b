from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from streams import ConfigurationError, seconds
from streams.connectors.comparison import compare
from streams.connectors.postgres import PostgresTable
from streams.errors import ConnectorError, ConnectorUnavailable

if TYPE_CHECKING:
    from streams.connectors.comparison.result import Comparison

NOW = seconds(0)

ODD = """
create table odd(id int primary key, n numeric, n2 numeric(10,2), m money, f float8, d date, ts timestamp,
                 tz timestamptz, iv interval, b bytea, t time, r real);
insert into odd values
 (1,'NaN','NaN',-1.05,'NaN','infinity','-infinity','infinity','infinity','\\x00ff5c27','23:59:59.5','NaN'),
 (2,'Infinity',1.10,0,'-Infinity','0044-03-15 BC','0044-03-15 12:00 BC','0001-01-01 00:00+00',
  '1 mon -1 day','','24:00','1e-40'),
 (3,12345678901234567890.123456789000,99999999.99,92233720368547758.07,'-0','20000-01-01',
  '1969-12-31 23:59:59.999999','2026-11-01 01:30-04','-00:00:01',null,null,16777217),
 (4,null,null,null,0.1,null,null,null,null,null,null,0.1)
"""

KEYS = """
create table k(id text, n int, v text, primary key(id,n));
insert into k values ('a-B',1,null),('A_b',1,''),('ä',1,'NULL'),('Z',1,'-0'),('a b',1,'1.10')
"""


@pytest.fixture
def both(source, target):
    """Runs statements in both databases."""

    def run(statements):
        for database in (source, target):
            database.run(statements)

    return run


@pytest.fixture
def compared(source, target):
    """Compares tables that have the same name in both databases."""

    def run(table, *, key=("id",), expressions=None, settle=NOW, **options):
        return compare(
            PostgresTable(dsn=source.dsn, table=table, expressions=expressions or {}),
            PostgresTable(dsn=target.dsn, table=table),
            key=key,
            settle=settle,
            **options,
        )

    return run


def found(comparison: Comparison) -> list[tuple[str, ...]]:
    """The differences by kind, with the key's first column."""
    return sorted((item.kind, *item.key.values()) for item in comparison.differences)


@pytest.mark.parametrize("exact", [False, True])
def test_values_that_other_systems_have_not_are_equal_whatever_the_settings(both, compared, exact):
    both(ODD)
    assert compared("odd", exact=exact).equal


def test_a_change_of_any_odd_value_is_found(both, target, compared):
    both(ODD)
    target.run("""
        update odd set iv = '29 days' where id = 2;
        update odd set ts = ts + '1 microsecond', f = 1e-300, b = '' where id = 3;
        update odd set d = '-infinity', n = 0 where id = 1
    """)
    assert {
        item.key["id"]: [column.column for column in item.columns] for item in compared("odd").differences
    } == {
        "1": ["n", "d"],
        "2": ["iv"],
        "3": ["f", "ts", "b"],
    }


def test_each_planted_difference_is_named_and_nothing_else(both, target, compared):
    both(KEYS)
    assert compared("k", key=("id", "n")).equal
    target.run("update k set v = '' where id = 'a-B'")
    target.run("update k set v = case id when 'ä' then '-0' else 'NULL' end where id in ('ä', 'Z')")
    target.run("delete from k where id = 'a b'; insert into k values ('new', 5, 'NULL')")
    comparison = compared("k", key=("id", "n"))
    assert found(comparison) == [
        ("different", "Z", "1"),
        ("different", "a-B", "1"),
        ("different", "ä", "1"),
        ("extra", "new", "5"),
        ("missing", "a b", "1"),
    ]
    assert [str(item) for item in comparison.differences if item.key["id"] == "a-B"] == [
        'different id="a-B", n="1": v is null in the source, "" in the target'
    ]


@pytest.mark.parametrize("rows", [7, 20_000])
def test_differences_at_any_place_of_a_large_table_are_found(both, target, compared, rows):
    size = 300 if rows == 7 else 6_000
    both(
        f"create table big(a int, b text, v int, primary key(a, b));"
        f"insert into big select g % 50, 'k ' || g, g from generate_series(1, {size}) g"
    )
    assert compared("big", key=("a", "b"), rows_per_query=rows).equal
    target.run(f"""
        delete from big where v in (1, 150, {size});
        update big set v = -v where v in (7, 149);
        insert into big values (-1, 'before', 0), (25, 'K 75', 0), (99, 'after', 0)
    """)
    assert found(compared("big", key=("a", "b"), rows_per_query=rows)) == sorted([
        ("different", "49", "k 149"), ("different", "7", "k 7"),
        ("extra", "-1", "before"), ("extra", "25", "K 75"), ("extra", "99", "after"),
        ("missing", "0", "k 150"), ("missing", "1", "k 1"), ("missing", str(size % 50), f"k {size}"),
    ])  # fmt: skip


def test_keys_that_one_database_orders_in_another_way(source, target, compared):
    source.run("create extension citext; create table k(id citext primary key, v text)")
    target.run("create table k(id text primary key, v text)")
    rows = """
        insert into k select kind || g || mark, g from generate_series(1, 800) g,
        (values ('a-B '), ('A_b '), ('ä'), ('Z'), ('_')) as kinds(kind), (values (''), (' ')) as marks(mark)
    """
    for database in (source, target):
        database.run(rows)
    assert compared("k").equal
    target.run("update k set v = 'x' where id = 'ä17'; update k set id = 'z9' where id = 'Z9'")
    assert found(compared("k")) == [("different", "ä17"), ("extra", "z9"), ("missing", "Z9")]


def test_duplicates_where_no_index_forbids_them(source, target, compared):
    source.run(
        "create table d(id int primary key, v text); insert into d values (1,'a'),(2,'b'),(3,'c'),(4,'d')"
    )
    target.run("create table d(id int, v text)")
    # Rows that would cancel each other if their hashes were combined by XOR.
    target.run("insert into d values (1,'a'),(2,'b'),(3,'c'),(3,'c'),(3,'c'),(4,'d'),(4,'x'),(9,'y'),(9,'y')")
    comparison = compared("d")
    assert found(comparison) == [("duplicate", "3"), ("duplicate", "4"), ("extra", "9")]
    counts = {item.key["id"]: (item.source_rows, item.target_rows) for item in comparison.differences}
    assert counts == {"3": (1, 3), "4": (1, 2), "9": (0, 2)}
    assert 'duplicate id="3": 1 in the source, 3 in the target' in map(str, comparison.differences)


def test_many_rows_under_one_key(source, target, compared):
    source.run("create table d(id int primary key, v text); insert into d values (1,'a'),(2,'b')")
    target.run("create table d(id int, v text); create index on d(id); insert into d values (2,'b')")
    target.run("insert into d select 1, 'a' from generate_series(1, 5000)")
    assert found(compared("d", rows_per_query=100)) == [("duplicate", "1")]


def test_numbers_are_compared_by_value_unless_exactly(source, target, compared):
    source.run(
        "create table n(id numeric primary key, n numeric, f float8);"
        "insert into n values (1.0,1.10,'-0'),(2,0,1)"
    )
    target.run(
        "create table n(id numeric primary key, n numeric, f float8);"
        "insert into n values (1,1.1,0),(2.00,0.00,1)"
    )
    assert compared("n").equal
    assert {item.key["id"] for item in compared("n", exact=True).differences} == {"1", "1.0", "2", "2.00"}


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "other"),
    [
        ("int", "numeric(12,2)", "5", "6"),
        ("bigint", "float8", "1000000000000000", "1"),
        ("real", "float8", "0.1", "0.11"),
        ("char(4)", "text", "'ab'", "' ab'"),
        ("varchar(9)", "text", "'ab '", "'ab'"),
        ("timestamptz", "timestamp", "'2026-07-01 12:00:00.5+00'", "'2026-07-01 12:00'"),
        ("date", "timestamp", "'2026-07-01'", "'2026-07-01 00:00:01'"),
        ("json", "jsonb", """'{"b": [1.10, null], "a":"\\u00e4"}'""", "'{}'"),
        ("inet", "text", "'10.0.0.1'", "'10.0.0.1/32'"),
        ("uuid", "text", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
        ("boolean", "text", "'true'", "'t'"),
        ("numeric[]", "numeric[]", "'{1.10,NULL,NaN}'", "'{1.10,NaN}'"),
        ("text[]", "text[]", """'{a,"b c","",NULL,"NULL"}'""", """'{a,"b c","",NULL,NULL}'"""),
        ("int4range", "int4range", "'(1,5]'", "'[1,5]'"),
        ("bit(3)", "text", "'101'", "'100'"),
        ("mood", "text", "'ok'", "'OK'"),
        ("positive", "bigint", "7", "8"),
    ],
)
def test_types_that_mean_the_same(source, target, both, compared, ours, theirs, value, other):
    both("create type mood as enum ('ok'); create domain positive as int check (value > 0)")
    source.run(f"create table t(id int primary key, v {ours}); insert into t values (1, {value}), (2, null)")
    target.run(
        f"create table t(id int primary key, v {theirs}); insert into t values (1, {value}), (2, null)"
    )
    assert compared("t").equal
    target.run(f"update t set v = {other} where id = 1")
    assert found(compared("t")) == [("different", "1")]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("uuid", "('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('00000000-0000-0000-0000-000000000000')"),
        ("timestamptz", "('infinity'), ('0044-03-15 00:00+00 BC'), ('2026-07-01 12:00+05'), ('-infinity')"),
        ("numeric", "('NaN'), (1.50), (-0.001), (1e30), ('-Infinity')"),
        ("float8", "('NaN'), (0.1), ('-0'), (1e300), ('-Infinity')"),
        ("date", "('0044-03-15 BC'), ('20000-01-01'), ('infinity')"),
        ("char(5)", "('b'), ('a '), ('B')"),
        ("boolean", "(true), (false)"),
        ("bytea", "('\\xff'), (''), ('\\x00')"),
        ("mood", "('sad'), ('ok')"),
        ("inet", "('10.0.0.1'), ('10.0.0.0/8'), ('::1')"),
        ("text", """('it''s'), ('"'), ('\\'), ('E''\\'''), ('a,b'), ('NULL'), (''), ('%s %'), (E'\\n')"""),
    ],
)
def test_keys_of_every_type(both, target, compared, kind, values):
    both("create type mood as enum ('sad', 'ok')")
    both(f"create table t(id {kind} primary key, v int)")
    both(f"insert into t select id::{kind}, 1 from (values {values}) as v(id)")
    assert compared("t", rows_per_query=1).equal
    target.run("update t set v = 2")
    comparison = compared("t", rows_per_query=1)
    assert {(item.kind, *(column.column for column in item.columns)) for item in comparison.differences} == {
        ("different", "v")
    }
    assert len(comparison.differences) == comparison.source_rows


def test_a_transformed_copy_is_compared_with_the_transformation(source, target, compared):
    source.run("create table c(id int primary key, mail text, secret text, note text)")
    source.run("insert into c values (1, ' Ann@Example.com', 'x', '50%'), (2, 'bob@example.com ', 'y', '%s')")
    target.run("create table c(id int primary key, mail text, secret text)")
    target.run("insert into c values (1, 'ann@example.com', 'x'), (2, 'BOB@example.com', 'z')")
    comparison = compared("c", expressions={"mail": "lower(trim(mail))"}, masked=["secret"])
    assert comparison.not_compared == ("note",)
    (difference,) = comparison.differences
    assert [(item.column, item.source, item.target) for item in difference.columns] == [
        ("mail", "bob@example.com", "BOB@example.com"),
        ("secret", "***", "***"),
    ]
    assert compared("c", columns=["secret"]).differences[0].columns[0].source == "y"


def test_a_long_value_is_shortened_but_compared_to_its_end(both, target, compared):
    both("create table l(id int primary key, v text); insert into l values (1, repeat('x', 100000))")
    target.run("update l set v = v || 'y'")
    (difference,) = compared("l").differences
    assert difference.columns[0].source == "x" * 200 + "…"
    assert difference.columns[0].target == "x" * 200 + "…"


def test_names_that_need_quotes_and_tables_of_many_columns(both, target, compared):
    columns = ", ".join(f'"c {number}" int default {number}' for number in range(120))
    both(
        f'create table "Order ""Items%"("select" int primary key, {columns});'
        'insert into "Order ""Items%" values (1)'
    )
    assert compared('Order "Items%', key=["select"]).equal
    target.run('update "Order ""Items%" set "c 119" = null')
    assert [item.column for item in compared('Order "Items%', key=["select"]).differences[0].columns] == [
        "c 119"
    ]


def test_a_view_and_a_partitioned_table(source, target, compared):
    source.run("create table p(id int, v text) partition by range (id)")
    source.run("create table p1 partition of p for values from (0) to (10)")
    source.run("insert into p values (1, 'a'), (2, 'b')")
    target.run("create table base(id int, v text); insert into base values (1, 'a'), (3, 'c')")
    target.run("create view p as select * from base")
    assert found(compared("p")) == [("extra", "3"), ("missing", "2")]


def test_the_comparison_stops_at_the_limit(both, target, compared):
    both("create table t(id int primary key); insert into t select generate_series(1, 3000)")
    target.run("truncate t")
    comparison = compared("t", limit=10)
    assert len(comparison.differences) == 10
    assert not comparison.complete
    assert str(comparison).startswith("stopped after 10 differences")


def test_progress_is_reported(both, compared):
    both("create table t(id int primary key); insert into t select generate_series(1, 3000)")
    seen: list[int] = []
    assert compared("t", rows_per_query=1000, progress=seen.append).source_rows == 3000
    assert seen == [1000, 2000, 3000, 3000]


def test_a_key_with_null_is_refused(both, compared):
    both("create table t(id int, v int); insert into t values (null, 1)")
    with pytest.raises(ConnectorError, match=r"rows whose key \(id\) is null"):
        compared("t")


def test_columns_and_tables_that_do_not_exist_are_named(source, target, compared):
    source.run("create table t(id int primary key)")
    target.run("create table t(id int primary key, synced_at timestamp)")
    with pytest.raises(ConfigurationError, match="has no column 'synced_at'"):
        compared("t")
    assert compared("t", columns=["id"]).equal
    with pytest.raises(ConfigurationError, match="key column 'id' cannot be masked"):
        compared("t", masked=["id"])
    with pytest.raises(ConnectorError, match=r"there is no table nothing\.here"):
        compared("nothing.here")
    with pytest.raises(ConnectorError, match='column "nonsense" does not exist'):
        compared("t", expressions={"synced_at": "nonsense"})


def test_an_expression_cannot_write(both, compared):
    both("create table t(id int primary key, v bigint); create sequence s; insert into t values (1, 1)")
    with pytest.raises(ConnectorError, match="read-only transaction"):
        compared("t", expressions={"v": "nextval('s')"})


def test_a_query_ends_after_its_time_limit(source, target):
    for database in (source, target):
        database.run("create table t(id int primary key, v text); insert into t values (1, '')")
    slow = PostgresTable(
        dsn=source.dsn, table="t", expressions={"v": "pg_sleep(60)::text"}, query_timeout=seconds(0.2)
    )
    with pytest.raises(ConnectorUnavailable, match="statement timeout"):
        compare(slow, PostgresTable(dsn=target.dsn, table="t"), key=["id"])


def test_a_database_that_does_not_answer(target):
    target.run("create table t(id int primary key)")
    away = PostgresTable(dsn="postgresql://ann:secret@127.0.0.1:1/x", table="t")
    assert "secret" not in repr(away)
    with pytest.raises(ConnectorUnavailable, match="cannot be compared") as error:
        compare(away, PostgresTable(dsn=target.dsn, table="t"), key=["id"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "index",
    [
        "(a, b)",
        "(a)",
        '(a, b collate "C")',
        "(a, b desc)",
        "(b)",
        "(a) where a > 5",
        "using hash (a)",
        "(a, (b || ''))",
    ],
)
def test_any_index_or_none_gives_the_same(source, target, both, compared, index):
    # Citext has an order of its own, so only the first column can be read by an index of both.
    both("create extension citext")
    both("create table t(a int, b citext, v int)")
    both("insert into t select g % 20, chr(65 + g % 50) || g, g from generate_series(1, 3000) g")
    target.run("alter table t alter b type text")
    both(f"create index on t {index}")
    assert compared("t", key=("a", "b"), rows_per_query=100).equal
    target.run("delete from t where v = 60; update t set v = 0 where v in (1, 3000)")
    assert found(compared("t", key=("a", "b"), rows_per_query=100)) == [
        ("different", "0", "A3000"),
        ("different", "1", "B1"),
        ("missing", "0", "K60"),
    ]


def test_a_range_is_read_by_the_index(source, target, both, compared):
    both(
        "create table t(id text primary key, v int);"
        "insert into t select 'k' || g, g from generate_series(1, 20000) g; analyze t"
    )
    compared("t", rows_per_query=1000)
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        connection.execute("select pg_stat_force_next_flush()")
        scans = connection.execute(
            "select seq_tup_read from pg_stat_user_tables where relname = 't'"
        ).fetchone()
    assert scans == (0,)
