from __future__ import annotations

import itertools
import threading
import time
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest

from streams.connectors.postgres.polling import PollingQuery
from streams.durations import milliseconds, seconds
from streams.errors import ConfigurationError, ConnectorError, SourceUnavailable
from tests.support.source_reading import Reading
from tests.support.waiting import wait_until

NUMBERS = itertools.count()


@pytest.fixture
def sql(module_database):
    """A connection on which each statement is a transaction, and a new table's name for ``{t}``."""
    table = f"t{next(NUMBERS)}"
    with psycopg.connect(module_database, autocommit=True) as connection:

        def run(statement: str) -> list[tuple[object, ...]]:
            cursor = connection.execute(statement.replace("{t}", table).encode())
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def polling(sql, module_database):
    """Makes polling sources of the table; rows appear at once, as no test waits before it writes."""
    [(table,)] = sql("select '{t}'")

    def make(query="select * from {t}", kind=None, **options):
        settings = {"order_by": "id", "interval": milliseconds(1), "lag": milliseconds(0), **options}
        return PollingQuery(module_database, query.replace("{t}", table), kind, **settings)

    return make


class Row(msgspec.Struct):
    id: int
    n: Decimal | None = None


def ids(values: list[dict[str, Any]]) -> list[int]:
    return [value["id"] for value in values]


def test_new_rows_are_read_in_order_and_a_restart_continues(sql, polling):
    sql("create table {t} (id bigserial primary key, v text)")
    with Reading(polling(key_columns="id")) as reading:
        sql("insert into {t} (v) values ('a'), (null)")
        assert reading.until(2) == [{"id": 1, "v": "a"}, {"id": 2, "v": None}]
        sql("insert into {t} (v) values ('c')")
        wait_until(lambda: reading.step(commit=False), what="a batch")
        reading.restart()
        assert ids(reading.until(3)) == [1, 2, 3]
        reading.restart()
        sql("insert into {t} (v) values ('d')")
        batch = reading.reader.read(60)
        assert batch is not None
        assert list(batch.records.keys()) == [b'{"id":4}']
        assert list(batch.records.values()) == [b'{"id":4,"v":"d"}']


def test_changed_rows_are_read_again_by_the_time_of_the_change(sql, polling):
    sql("create table {t} (id int primary key, v int, at timestamptz default now())")
    with Reading(polling(order_by=("at", "id"))) as reading:
        sql("insert into {t} select g, 0 from generate_series(1, 3) g")
        reading.until(3)
        sql("update {t} set v = 1, at = now() where id = 2")
        reading.until(4)
        # Neither is over; and a row without a time is never seen.
        sql("insert into {t} values (7, 0, 'infinity'), (8, 0, now() + interval '1 day'), (9, 0, null)")
        sql("update {t} set v = 2, at = now() where id = 1")
        assert [(row["id"], row["v"]) for row in reading.until(5)] == [(1, 0), (2, 0), (3, 0), (2, 1), (1, 2)]


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_rows_of_a_transaction_that_commits_later_are_not_passed_over(sql, polling, module_database, outcome):
    sql("create table {t} (id bigserial primary key)")
    [(table,)] = sql("select '{t}'")
    with Reading(polling()) as reading, psycopg.connect(module_database) as slow:
        slow.execute(f"insert into {table} default values".encode())
        sql("insert into {t} default values")
        wait_until(
            lambda: reading.reader.read(0) or reading.reader.health().metrics["waiting_seconds"] > 0.3,
            what="a wait for the transaction",
        )
        assert reading.values == []
        slow.execute(outcome.encode())
        sql("insert into {t} default values")
        expected = [1, 2, 3] if outcome == "commit" else [2, 3]
        assert ids(reading.until(len(expected))) == expected


def test_a_row_is_read_after_the_lag(sql, polling):
    sql("create table {t} (id bigserial primary key)")
    with Reading(polling(lag=seconds(0.5))) as reading:
        begun = time.monotonic()
        sql("insert into {t} default values")
        reading.until(1)
        assert time.monotonic() - begun >= 0.5


def test_many_rows_come_in_pages_also_with_equal_times(sql, polling):
    sql("create table {t} (id int primary key, at timestamptz)")
    sql(
        "insert into {t} select g, timestamptz '2026-01-01' + (g / 700) * interval '1 s' "
        "from generate_series(1, 3500) g"
    )
    with Reading(polling(order_by=["at", "id"], max_rows=1000)) as reading:
        reading.until(2000)
        reading.restart()
        assert ids(reading.until(3500)) == list(range(1, 3501))


def test_columns_that_are_not_unique_stop_the_source(sql, polling):
    sql("create table {t} (id int)")
    sql("insert into {t} values (1), (2), (2), (3)")
    with (
        Reading(polling(max_rows=2)) as reading,
        pytest.raises(ConnectorError, match="two rows have the same id: 2") as raised,
    ):
        reading.until(4)
    assert "add the columns of the key" in str(raised.value)


def test_odd_values_are_read_as_the_server_writes_them(sql, polling):
    sql(
        "create table {t} (id int primary key, n numeric, m money, f float8, d date, ts timestamp, "
        "tz timestamptz, iv interval, na numeric[], b bytea, j jsonb, inet inet)"
    )
    sql(
        """insert into {t} values
        (1, 'NaN', -1.05, 'NaN', 'infinity', '-infinity', 'infinity', '1 mon -1 day', '{1.10,NaN}',
            '\\xff', null, null),
        (2, 12345678901234567890.1234567890, 0, '-0', '0044-03-15 BC', '0044-03-15 12:00 BC',
            '0001-01-01 00:00+00', null, null, null, '{"k": [1.10, null]}', '10.0.0.0/8'),
        (3, 1.10, 92233720368547758.07, 'Infinity', '20000-01-01', '1969-12-31 23:59:59.999999',
            '2026-11-01 01:30-04', '-00:00:01', null, null, null, null)"""
    )
    with Reading(polling()) as reading:
        first, second, third = reading.until(3)
    assert [row["n"] for row in (first, second, third)] == ["NaN", "12345678901234567890.1234567890", "1.10"]
    assert (first["f"], first["d"], first["ts"], first["tz"]) == ("NaN", "infinity", "-infinity", "infinity")
    assert (first["iv"], first["na"], first["b"]) == ("1 mon -1 days", ["1.10", "NaN"], "\\xff")
    assert (second["d"], second["ts"]) == ("0044-03-15 BC", "0044-03-15T12:00:00 BC")
    assert (second["tz"], second["inet"]) == ("0001-01-01T00:00:00+00:00", "10.0.0.0/8")
    assert third["m"].endswith("92,233,720,368,547,758.07")
    assert third["tz"] == "2026-11-01T05:30:00+00:00"
    with Reading(polling("select id, n from {t} where id > 1", Row)) as reading:
        assert reading.until(2) == [
            Row(2, Decimal("12345678901234567890.1234567890")),
            Row(3, Decimal("1.10")),
        ]


def test_a_query_may_have_any_names_patterns_and_comments(sql, polling):
    sql('create table {t} ("Id %s" int, "a""b" text, "select" text)')
    sql("insert into {t} values (1, 'x%', 'y'), (2, 'z', 'y'), (3, 'x%', null)")
    query = 'select * from {t} where "a""b" like \'x%\' -- all of them; 100%'
    with Reading(polling(query, order_by="Id %s", key_columns=["Id %s", "select"])) as reading:
        expected = [{"Id %s": 1, 'a"b': "x%", "select": "y"}, {"Id %s": 3, 'a"b': "x%", "select": None}]
        assert reading.until(2) == expected


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("select 1 as id", {"order_by": ("id", "at")}, "no column 'at': it has id"),
        ("select 1 as id", {"key_columns": "key"}, "no column 'key'"),
        ("selec 1 as id", {}, "42601"),
        ("select * from no_such_table", {}, "42P01"),
    ],
)
def test_a_query_that_does_not_fit_is_refused_at_the_start(polling, query, options, message):
    with pytest.raises(ConnectorError, match=message):
        polling(query, **options).check("shop", "in")


@pytest.mark.parametrize(
    "options",
    [{"order_by": ()}, {"interval": milliseconds(0)}, {"max_rows": 0}, {"query": "select 1 as id;"}],
)
def test_options_that_mean_nothing_are_refused(polling, options):
    with pytest.raises(ConfigurationError):
        polling(**options)


def test_a_password_is_not_shown():
    polling = PollingQuery("host=127.0.0.1 password=secret", "select 1 as id", order_by="id")
    assert "secret" not in repr(polling)
    with pytest.raises(ConfigurationError) as raised:
        PollingQuery("secret nonsense", "select 1 as id", order_by="id")
    assert "secret" not in str(raised.value)


def test_a_position_of_other_columns_is_refused(sql, polling):
    sql("create table {t} (id int, at timestamptz default now())")
    sql("insert into {t} values (1)")
    with Reading(polling()) as reading:
        reading.until(1)
        reading.source = polling(order_by=("at", "id"))
        with pytest.raises(ConnectorError, match="ordered by id, not at, id"):
            reading.restart()


def test_a_connection_that_ends_is_unavailable_and_a_new_one_continues(sql, polling):
    sql("create table {t} (id bigserial primary key)")
    with Reading(polling()) as reading:
        sql("insert into {t} default values")
        reading.until(1)
        sql(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        with pytest.raises(SourceUnavailable):
            reading.reader.read(60)
        sql("insert into {t} default values")
        reading.restart()
        assert ids(reading.until(2)) == [1, 2]


def test_closing_ends_a_long_query(polling):
    reader = Reading(polling("select g as id, pg_sleep(60)::text as s from generate_series(1, 2) g")).reader
    timer = threading.Timer(0.2, reader.close)
    timer.start()
    begun = time.monotonic()
    assert reader.read(60) is None
    assert time.monotonic() - begun < 30
    timer.join()
