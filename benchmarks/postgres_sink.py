"""How many rows a second the Postgres sink writes: ``python -m benchmarks.postgres_sink``.

The sink's writer alone, without Kafka, into a local Postgres: upserts of random keys into a table that they
half fill, inserts into a table without a key, and one row for each transaction. Beside it psycopg does the
same work with ``executemany``, in transactions of the same size, but keeps no positions. Each figure is the
middle one of three runs. The environment variable ``RECORDS`` is the number of rows of a run.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from rich.console import Console
from rich.table import Table

from streams.connectors.postgres import PostgresSink
from streams.connectors.sink import SinkContext, SinkRows
from streams.devstack.postgres import LocalPostgres
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path("build/postgres-sink.json")
COLUMNS = ("id", "name", "amount", "note", "changed")
RUNS = 3

Row = dict[str, Any]


class Work(NamedTuple):
    """A workload: rows, in transactions of ``size``, into a table with a key or without."""

    name: str
    keyed: bool
    size: int
    share: float
    """The part of ``RECORDS`` that is written."""


WORKS = (
    Work("upserts, 5,000 a transaction", keyed=True, size=5_000, share=1.0),
    Work("upserts, 500 a transaction", keyed=True, size=500, share=0.5),
    Work("upserts of 10 hot keys, 5,000 a transaction", keyed=True, size=5_000, share=1.0),
    Work("appended, 5,000 a transaction", keyed=False, size=5_000, share=1.0),
    Work("upserts, 1 a transaction", keyed=True, size=1, share=0.01),
)


def make_rows(work: Work, count: int, seed: int) -> list[Row]:
    """The same rows for both systems."""
    numbers = random.Random(seed)
    keys = 10 if "hot" in work.name else max(1, count * 2)
    return [
        {
            "id": numbers.randrange(keys),
            "name": f"customer {number}",
            "amount": number * 0.25,
            "note": f'a "quoted" note of row {number}' if number % 10 else None,
            "changed": "2026-01-02 03:04:05+00",
        }
        for number in range(count)
    ]


def write_by_sink(dsn: str, work: Work, rows: Sequence[Row]) -> None:
    """The sink's writer, as a worker calls it."""
    sink = PostgresSink(dsn, "target", mode="upsert" if work.keyed else "append", max_rows=work.size)
    context = SinkContext(application="bench", name="sink", worker="w", lock_timeout=10.0)
    sink.check(context)
    writer = sink.open(context)
    partition = TopicPartition("rows", 0)
    position = writer.claim({partition: "id"})[partition]
    for start in range(0, len(rows), work.size):
        values = rows[start : start + work.size]
        count = len(values)
        batch = SinkRows(
            partition=partition,
            start=position,
            next_offset=position + count,
            keys=[row["id"] for row in values],
            values=values,
            timestamps=[0] * count,
            headers=[None] * count,
            offsets=range(position, position + count),
        )
        if writer.write([batch]):
            raise AssertionError("no row is to be refused")
        writer.commit()
        position = batch.next_offset
    writer.close()


def write_by_psycopg(dsn: str, work: Work, rows: Sequence[Row]) -> None:
    """A plain loop over transactions of the same size."""
    names = ", ".join(COLUMNS)
    insert = f"insert into target ({names}) values ({', '.join(['%s'] * len(COLUMNS))})"
    if work.keyed:
        changes = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])
        insert += f" on conflict (id) do update set {changes}"
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        for start in range(0, len(rows), work.size):
            values = rows[start : start + work.size]
            cursor.executemany(insert.encode(), [tuple(row[name] for name in COLUMNS) for row in values])
            connection.commit()


SYSTEMS: dict[str, Callable[[str, Work, Sequence[Row]], None]] = {
    "this library": write_by_sink,
    "psycopg executemany": write_by_psycopg,
}


def measure(dsn: str, work: Work, system: str, count: int) -> dict[str, float]:
    """Rows a second, and rows for each second of this process's CPU."""
    rates, cpu_rates = [], []
    for run in range(RUNS):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop table if exists target, streams_positions")
            key = " primary key" if work.keyed else ""
            connection.execute(
                f"create table target (id bigint{key}, name text, amount float8, note text, "
                "changed timestamptz)".encode()
            )
        rows = make_rows(work, count, run)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        SYSTEMS[system](dsn, work, rows)
        rates.append(count / (time.perf_counter() - begun))
        cpu_rates.append(count / max(time.process_time() - cpu_begun, 0.001))
        with psycopg.connect(dsn) as connection:
            found = connection.execute("select count(*) from target").fetchone()
        expected = len({row["id"] for row in rows}) if work.keyed else count
        if found != (expected,):
            raise AssertionError(f"{system}, {work.name}: {found} rows instead of {expected}")
    return {"rows_per_second": statistics.median(rates), "rows_per_cpu_second": statistics.median(cpu_rates)}


def main() -> int:
    console = Console(width=110)
    records = int(os.environ.get("RECORDS", "200000"))
    results = []
    table = Table("workload", "system", "rows/s", "rows per client CPU-second")
    with LocalPostgres.create(settings={"shared_buffers": "256MB", "max_wal_size": "2GB"}) as server:
        for work in WORKS:
            for system in SYSTEMS:
                figures = measure(server.dsn(), work, system, max(1, int(records * work.share)))
                results.append({"work": work.name, "system": system, **figures})
                table.add_row(work.name, system, *(f"{figure:,.0f}" for figure in figures.values()))
    console.print(table)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
