"""How many rows a second are compared: ``python -m benchmarks.comparison``.

Two databases of one local Postgres have the same rows, with an integer, a decimal, a text and a time; then
the copy in SQLite is compared too. Beside it psycopg reads both tables in the order of their keys and
compares the rows in Python, which is what a program without checksums does. Each figure is the middle one of
three runs. The environment variable ``ROWS`` is the number of rows.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from rich.console import Console
from rich.table import Table

from streams import seconds
from streams.connectors.comparison import compare
from streams.connectors.postgres import PostgresTable
from streams.connectors.sqlite import SqliteTable
from streams.devstack.postgres import LocalPostgres

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path("build/comparison.json")
RUNS = 3
CHUNK = 10_000

TABLE = "create table orders(id int primary key, amount numeric(10,2), customer text, placed timestamptz)"
ROWS = (
    "insert into orders select g, g * 1.10, 'customer ' || g, "
    "'2026-01-01 00:00+00'::timestamptz + g * interval '1 s' from generate_series(1, {count}) g"
)


class Databases(NamedTuple):
    source: str
    target: str
    file: Path


def fill(server: LocalPostgres, file: Path, count: int) -> Databases:
    """The same rows in two databases and a file."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for name in ("source", "target"):
            connection.execute(f"create database {name}".encode())
    for name in ("source", "target"):
        with psycopg.connect(server.dsn(name), autocommit=True) as connection:
            connection.execute(TABLE.encode())
            connection.execute(ROWS.format(count=count).encode())
            connection.execute("vacuum analyze orders")
    with psycopg.connect(server.dsn("source")) as connection, closing(sqlite3.connect(file)) as copy, copy:
        connection.execute("set timezone = 'UTC'")
        copy.execute("create table orders(id integer primary key, amount text, customer text, placed text)")
        with connection.cursor("rows") as cursor:
            cursor.execute("select id, amount::text, customer, placed::text from orders")
            while chunk := cursor.fetchmany(CHUNK):
                copy.executemany("insert into orders values (?, ?, ?, ?)", chunk)
    return Databases(server.dsn("source"), server.dsn("target"), file)


def compare_postgres(databases: Databases) -> bool:
    return compare(
        PostgresTable(dsn=databases.source, table="orders"),
        PostgresTable(dsn=databases.target, table="orders"),
        key=["id"],
    ).equal


def compare_sqlite(databases: Databases) -> bool:
    return compare(
        PostgresTable(dsn=databases.source, table="orders"),
        SqliteTable(path=databases.file, table="orders"),
        key=["id"],
    ).equal


def compare_changed(databases: Databases) -> bool:
    """One row in a thousand differs: all are found, and decided at once."""
    comparison = compare(
        PostgresTable(dsn=databases.source, table="orders"),
        PostgresTable(
            dsn=databases.target,
            table="orders",
            expressions={"customer": "case when id % 1000 = 0 then '' else customer end"},
        ),
        key=["id"],
        settle=seconds(0),
        limit=1_000_000,
    )
    return len(comparison.differences) == comparison.source_rows // 1000


def compare_all_rows(databases: Databases) -> bool:
    """Read both tables completely, by server-side cursors."""
    query = b"select id, amount, customer, placed from orders order by id"
    with (
        psycopg.connect(databases.source) as one,
        psycopg.connect(databases.target) as other,
        one.cursor("ours") as ours,
        other.cursor("theirs") as theirs,
    ):
        ours.execute(query)
        theirs.execute(query)
        while chunk := ours.fetchmany(CHUNK):
            if chunk != theirs.fetchmany(CHUNK):
                return False
        return not theirs.fetchmany(1)


WORKS: dict[str, Callable[[Databases], bool]] = {
    "Postgres and Postgres, equal": compare_postgres,
    "Postgres and Postgres, one row in 1,000 differs": compare_changed,
    "Postgres and SQLite, equal": compare_sqlite,
    "Postgres and Postgres, all rows read by psycopg": compare_all_rows,
}


def main() -> int:
    console = Console(width=110)
    count = int(os.environ.get("ROWS", "1000000"))
    results = []
    table = Table("tables", "rows/s", "rows per client CPU-second")
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalPostgres.create(settings={"shared_buffers": "256MB", "max_wal_size": "2GB"}) as server,
    ):
        databases = fill(server, Path(folder) / "copy.db", count)
        for name, work in WORKS.items():
            rates, cpu_rates = [], []
            for _ in range(RUNS):
                begun, cpu_begun = time.perf_counter(), time.process_time()
                if not work(databases):
                    raise AssertionError(f"{name}: the result is wrong")
                rates.append(count / (time.perf_counter() - begun))
                cpu_rates.append(count / max(time.process_time() - cpu_begun, 0.001))
            figures = {
                "rows_per_second": statistics.median(rates),
                "rows_per_cpu_second": statistics.median(cpu_rates),
            }
            results.append({"tables": name, **figures})
            table.add_row(name, *(f"{figure:,.0f}" for figure in figures.values()))
    console.print(table)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
