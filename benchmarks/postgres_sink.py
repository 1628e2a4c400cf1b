"""How many rows a second the Postgres sink writes: ``make bench ONLY=sync-sink``.

The sink's writer alone, without Kafka, into a local Postgres: upserts of random keys into a table that they
half fill, inserts into a table without a key, and one row for each transaction. Beside it psycopg does the
same work with ``executemany``, in transactions of the same size, but keeps no positions. The two take turns,
so that a busy minute of the machine affects both. Each figure is the middle one of the runs; on a busy
machine those of CPU seconds say more. The environment variable ``RECORDS`` is the number of rows of a run,
``RUNS`` the number of runs.
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
TICKS = os.sysconf("SC_CLK_TCK")

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


class Figures(NamedTuple):
    """Of one run, or the middle ones of several. All count rows."""

    per_second: float
    per_client_cpu_second: float
    per_server_cpu_second: float


def measure(server: LocalPostgres, work: Work, system: str, count: int, run: int) -> Figures:
    """One run, into a new table."""
    dsn = server.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop table if exists target, streams_positions")
        key = " primary key" if work.keyed else ""
        connection.execute(
            f"create table target (id bigint{key}, name text, amount float8, note text, "
            "changed timestamptz)".encode()
        )
    rows = make_rows(work, count, run)
    of_server, begun, of_client = server_cpu(server), time.perf_counter(), time.process_time()
    SYSTEMS[system](dsn, work, rows)
    seconds, of_client = time.perf_counter() - begun, time.process_time() - of_client
    with psycopg.connect(dsn, autocommit=True) as connection:
        # The CPU time of a session counts once its process has ended.
        while connection.execute(
            "select 1 from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        ).fetchone():
            time.sleep(0.01)
        of_server = server_cpu(server) - of_server
        found = connection.execute("select count(*) from target").fetchone()
    expected = len({row["id"] for row in rows}) if work.keyed else count
    if found != (expected,):
        raise AssertionError(f"{system}, {work.name}: {found} rows instead of {expected}")
    return Figures(*(count / max(figure, 0.001) for figure in (seconds, of_client, of_server)))


def server_cpu(server: LocalPostgres) -> float:
    """The CPU seconds of all processes that the server has had."""
    ticks = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(status.parent.name) == server.pid:
            # With those that have ended.
            ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == server.pid:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def main() -> int:
    console = Console(width=130)
    records, runs = int(os.environ.get("RECORDS") or "200000"), int(os.environ.get("RUNS") or "3")
    results = []
    table = Table("workload", "system", "rows/s", "of psycopg's", "rows per client CPU-s", "per server CPU-s")
    with LocalPostgres.create(settings={"shared_buffers": "256MB", "max_wal_size": "2GB"}) as server:
        for work in WORKS:
            count = max(1, int(records * work.share))
            found: dict[str, list[Figures]] = {system: [] for system in SYSTEMS}
            for run in range(runs):
                for system in SYSTEMS:
                    found[system].append(measure(server, work, system, count, run))
            ratio = statistics.median(
                ours.per_second / theirs.per_second for ours, theirs in zip(*found.values(), strict=True)
            )
            for system, own in found.items():
                figures = Figures(*map(statistics.median, zip(*own, strict=True)))
                results.append({"work": work.name, "system": system, **figures._asdict()})
                share = f"{ratio:.2f}" if system == next(iter(SYSTEMS)) else ""
                table.add_row(
                    work.name,
                    system,
                    f"{figures.per_second:,.0f}",
                    share,
                    f"{figures.per_client_cpu_second:,.0f}",
                    f"{figures.per_server_cpu_second:,.0f}",
                )
    console.print(table)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
