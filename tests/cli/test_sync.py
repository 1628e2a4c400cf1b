"""``streams sync``: its output and exit codes."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing

import psycopg
import pytest
from typer.testing import CliRunner, Result

from streams.cli.main import cli
from streams.errors import ConfigurationError

TABLE = "create table customer(id integer primary key, email text, balance text)"


@pytest.fixture
def tables(tmp_path):
    """Two SQLite databases with the same rows, the options that name them, and how the target is changed."""
    for name in ("source", "target"):
        with closing(sqlite3.connect(tmp_path / name)) as connection, connection:
            connection.execute(TABLE)
            connection.execute("insert into customer values (1, 'ann@example.com', '1.10'), (2, null, '7')")

    def change(statement):
        with closing(sqlite3.connect(tmp_path / "target")) as connection, connection:
            connection.execute(statement)

    options = [
        *("--source", f"sqlite:{tmp_path / 'source'}", "--source-table", "customer"),
        *("--target", f"sqlite:{tmp_path / 'target'}", "--key", "id", "--settle", "0"),
    ]
    return options, change


def verify(options: list[str], *more: str) -> Result:
    return CliRunner().invoke(cli, ["sync", "verify", *options, *more])


def test_equal_tables_end_with_0(tables):
    options, _ = tables
    result = verify(options)
    assert result.exit_code == 0
    assert result.stdout.startswith("equal: 2 rows of customer in ")


def test_each_difference_is_a_line_and_ends_with_1(tables):
    options, change = tables
    change("update customer set email = '' where id = 2")
    change("insert into customer values (3, 'ghost', '0')")
    result = verify(options)
    assert result.exit_code == 1
    first, second, summary = result.stdout.splitlines()
    assert first == 'different id="2": email is null in the source, "" in the target'
    assert second == 'extra id="3"'
    assert summary.startswith("2 differences: 2 rows of customer")


def test_json_has_a_line_for_each_difference_and_a_summary(tables):
    options, change = tables
    change("update customer set balance = '1.2' where id = 1")
    difference, summary = map(json.loads, verify(options, "--json").stdout.splitlines())
    assert difference == {
        "kind": "different",
        "key": {"id": "1"},
        "columns": {"balance": {"source": "1.10", "target": "1.2"}},
        "source_rows": 1,
        "target_rows": 1,
    }
    assert summary["equal"] is False
    assert summary["differences"] == 1
    assert summary["source_rows"] == summary["target_rows"] == 2


def test_a_transformed_copy_and_masked_values(tables):
    options, change = tables
    change("update customer set email = upper(email)")
    assert verify(options, "--map", "email=upper(email)").exit_code == 0
    assert verify(options, "--column", "balance").exit_code == 0
    result = verify(options, "--mask", "email")
    assert result.exit_code == 1
    assert "ann@example.com" not in result.stdout.lower()


def test_the_columns_of_the_source_that_the_target_lacks_are_named(tables):
    options, change = tables
    change("alter table customer drop column balance")
    result = verify(options)
    assert result.exit_code == 0
    assert "not compared: balance" in result.stderr


def test_a_target_of_another_system(tables, database):
    options, change = tables
    change("delete from customer where id = 2")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table client(id int primary key, email varchar(40), balance numeric)")
        connection.execute("insert into client values (1, 'ann@example.com', 1.1), (2, null, 7)")
    postgres = ["--source", database, "--source-table", "public.client", "--target-table", "customer"]
    result = verify([*postgres, *options[4:]])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == 'missing id="2"'


def test_rows_that_change_all_the_time_end_with_3(tables, tmp_path):
    options, change = tables
    change("update customer set email = 'behind' where id = 1")
    # A source whose row is another one whenever it is read.
    changing = ["--map", "email=random()"]
    result = verify(options, *changing, "--settle", "0.1", "--patience", "0.2")
    assert result.exception is not None
    assert "2 rows changed too often to be compared" in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 3


def test_a_missing_driver_is_named(tables, monkeypatch):
    options, _ = tables
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [name for name in sys.modules if name.startswith("streams.connectors.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    result = verify(["--source", "postgresql://127.0.0.1/x", "--source-table", "t", *options[4:]])
    assert isinstance(result.exception, ConfigurationError)
    assert "pip install 'streams[postgres]'" in str(result.exception)
