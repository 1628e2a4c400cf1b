"""A snapshot of a large table: ``make bench ONLY=sync-snapshot``.

A worker captures a table that has ``RECORDS`` rows (1,000,000) from a local Postgres into a topic of a local
Kafka, exactly once. Printed are rows a second from the first row in the topic to the last, rows a second of
the worker's CPU time, and its largest resident memory until a tenth of the rows, half of them, and all.
Java's heap is part of it, which grows to its limit of 512 MB and is then collected.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from rich.table import Table

from benchmarks.data_sync import FOLDER, TABLE, console, count, start_worker, wait
from benchmarks.measure import ProcessMeter
from streams.broker.kafka import KafkaBroker
from streams.devstack.kafka import LocalKafka
from streams.devstack.postgres import LocalPostgres
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path("build/bench-sync-snapshot.json")
PATIENCE = 1800.0
PARTS = {"a tenth of the rows": 0.1, "half of the rows": 0.5, "all rows": 1.0}


def main() -> int:
    rows = int(os.environ.get("RECORDS") or "1000000")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with (
        LocalPostgres.create() as server,
        LocalKafka.start(FOLDER / "kafka", heap_mb=512) as kafka,
    ):
        dsn = server.dsn()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLE)
            connection.execute(
                "insert into items select g, 'name of ' || g, g / 100.0, repeat('x', 60) "
                "from generate_series(1::bigint, %s::bigint) g",
                [rows],
            )
        result = snapshot(dsn, kafka, rows)
    table = Table(title=f"Snapshot of {rows:,} rows")
    for column in ("figure", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    table.add_row("rows/s", f"{result['rows_per_second']:,.0f}")
    table.add_row("rows per CPU-second of the worker", f"{result['rows_per_cpu_second']:,.0f}")
    for part in PARTS:
        table.add_row(f"peak memory of the worker, {part}", f"{result[f'peak_rss_mb, {part}']:,.0f} MB")
    console.print(table)
    RESULTS.write_text(json.dumps({"rows": rows, **result}, indent=2) + "\n")
    console.print(f"The same figures as data: {RESULTS}")
    return 0


def snapshot(dsn: str, kafka: LocalKafka, rows: int) -> dict[str, float]:
    name = f"bench-{time.time_ns()}"
    worker = start_worker(kafka, BENCH_NAME=name, BENCH_SOURCE=dsn)
    admin = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers}).admin()
    places = [TopicPartition(f"{name}.public.items", number) for number in range(4)]
    try:
        meter = ProcessMeter(worker.pid)
        wait(lambda: places[0].topic in admin.topics(), worker, "the topic")

        def reached(number: int) -> Callable[[], bool]:
            def check() -> bool:
                meter.watch_memory()
                return count(admin, places) >= number

            return check

        wait(reached(1), worker, "the first rows", 0.05)
        begun, cpu, first = time.perf_counter(), meter.cpu_seconds(), count(admin, places)
        peaks = {}
        for part, share in PARTS.items():
            # Markers of transactions are counted too: all rows are there but for a few.
            wait(reached(int(rows * share)), worker, part, 0.05, PATIENCE)
            peaks[f"peak_rss_mb, {part}"] = meter.peak_rss_mb
        seconds, cpu = time.perf_counter() - begun, meter.cpu_seconds() - cpu
        return {
            "rows_per_second": (rows - first) / seconds,
            "rows_per_cpu_second": (rows - first) / cpu,
            **peaks,
        }
    finally:
        worker.kill()
        worker.wait()
        admin.close()


if __name__ == "__main__":
    sys.exit(main())
