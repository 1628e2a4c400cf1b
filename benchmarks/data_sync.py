"""Capture and end-to-end latency of data sync: ``make bench ONLY=sync``.

Capture: events of inserts in transactions of 100 rows, from a local Postgres to a topic of a local Kafka,
exactly once; beside it Debezium alone, whose events go nowhere. Each run has a process of its own, as Java
compiles while it runs and a second run would be twice as fast. Latency: from the COMMIT
of a row in one Postgres to the COMMIT that makes it visible in another, by the servers' own commit
timestamps, at 1,000 rows a second. The environment variable ``RECORDS`` is the number of captured events.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from rich.console import Console
from rich.table import Table

from streams.broker.kafka import KafkaBroker
from streams.connectors.debezium import Debezium
from streams.connectors.source import SourceContext
from streams.devstack.kafka import LocalKafka
from streams.devstack.postgres import LocalPostgres
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path("build/bench-sync").absolute()
RESULTS = Path("build/bench-sync.json")
ROOT = Path(__file__).parents[1]
RUNS = 3
TABLE = "create table items (id bigint primary key, name text not null, amount numeric(12, 2), note text)"
RATE = 1_000
LATENCY_SECONDS = 20

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> int:
    events = int(os.environ.get("RECORDS") or "100000")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    settings = {"track_commit_timestamp": "on"}
    with (
        LocalPostgres.create(settings=settings) as source,
        LocalPostgres.create(settings=settings) as target,
        LocalKafka.start(FOLDER / "kafka", heap_mb=512) as kafka,
    ):
        alone, ours = [], []
        for number in range(RUNS):
            alone.append(capture(source, f"alone{number}", events, lambda dsn: drain_apart(dsn, events)))
            ours.append(capture(source, f"ours{number}", events, lambda dsn: to_topic(dsn, kafka, events)))
            console.print(f"[dim]capture: alone {alone[-1]:,.0f} events/s, to a topic {ours[-1]:,.0f}[/]")
        latency = measure_latency(source, target, kafka)
    result = {
        "events": events,
        "debezium_alone_events_per_second": statistics.median(alone),
        "captured_events_per_second": statistics.median(ours),
        "share": statistics.median(ours) / statistics.median(alone),
        "latency_rows": len(latency),
        "latency_p50_ms": percentile(latency, 50),
        "latency_p99_ms": percentile(latency, 99),
    }
    table = Table(title="Data sync")
    for column in ("figure", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    table.add_row("Debezium alone, events/s", f"{result['debezium_alone_events_per_second']:,.0f}")
    table.add_row("captured into a topic, events/s", f"{result['captured_events_per_second']:,.0f}")
    table.add_row("share of Debezium alone", f"{result['share']:.2f}")
    table.add_row(f"COMMIT to visible at {RATE:,} rows/s, p50", f"{result['latency_p50_ms']:.0f} ms")
    table.add_row(f"COMMIT to visible at {RATE:,} rows/s, p99", f"{result['latency_p99_ms']:.0f} ms")
    console.print(table)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"The same figures as data: {RESULTS}")
    return 0


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def capture(server: LocalPostgres, name: str, events: int, run: Callable[[str], float]) -> float:
    """Events a second, in a database of its own. ``run`` returns the seconds from its first event on."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    dsn = server.dsn(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
    seconds = run(dsn)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(active_pid) from pg_replication_slots where active")
        deadline = time.monotonic() + 30
        while True:
            try:
                connection.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
            except psycopg.errors.ObjectInUse:
                assert time.monotonic() < deadline, "the slot stays in use"
                time.sleep(0.2)
            else:
                break
        connection.execute(f"drop database {name} with (force)".encode())
    return events / seconds


def insert(dsn: str, events: int) -> None:
    """All rows, in transactions of 100."""
    with psycopg.connect(dsn) as connection:
        for first in range(1, events + 1, 100):
            connection.execute(
                "insert into items select g, 'name of ' || g, g / 100.0, repeat('x', 60) "
                "from generate_series(%s::bigint, %s::bigint) g",
                [first, min(first + 99, events)],
            )
            connection.commit()


def drain_apart(dsn: str, events: int) -> float:
    """``drain`` in a process of its own."""
    program = f"from benchmarks.data_sync import drain; print(drain({dsn!r}, {events}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def drain(dsn: str, events: int) -> float:
    """Debezium alone: its batches are taken and forgotten."""
    connector = Debezium.postgres(dsn, ["public.items"])
    connector.check("bench", "alone")
    reader: Any = connector.open(SourceContext(application="bench", name="alone", task=0, position=b""))
    try:
        while not slot_exists(dsn):
            reader.read(0.2)
        # The empty table's snapshot is over when a first row arrives as a change.
        insert_one(dsn, -1)
        while (batch := reader.read(1.0)) is None or not any(
            b'"op":"c"' in value for value in batch.records.values()
        ):
            pass
        insert(dsn, events)
        engine = reader._engine  # noqa: SLF001 - Debezium without what the reader does with its events
        begun, seen = time.perf_counter(), 0
        while seen < events:
            delivery = engine.poll(5.0)
            assert delivery is not None, f"only {seen:,} events arrived"
            seen += sum(b'"op":"c"' in value for value in delivery.values)
            engine.confirm(delivery.receipt)
        return time.perf_counter() - begun
    finally:
        reader.close()


def slot_exists(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select 1 from pg_replication_slots where active").fetchone()
    return found is not None


def insert_one(dsn: str, number: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("insert into items values (%s, 'first', 0, '')", [number])


def to_topic(dsn: str, kafka: LocalKafka, events: int) -> float:
    """A worker that captures into a topic; all rows are written before it captures, as for Debezium alone."""
    name = f"bench-{time.time_ns()}"
    worker = start_worker(kafka, BENCH_NAME=name, BENCH_SOURCE=dsn)
    admin = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers}).admin()
    places = [TopicPartition(f"{name}.public.items", number) for number in range(4)]
    try:
        wait(lambda: places[0].topic in admin.topics() and slot_exists(dsn), worker, "the slot")
        insert_one(dsn, -1)
        wait(lambda: sum(admin.end_offsets(places).values()) > 0, worker, "the first change")
        # Frozen, so that all events wait for it.
        before = count(admin, places)
        worker.send_signal(19)
        insert(dsn, events)
        worker.send_signal(18)
        begun = time.perf_counter()
        wait(lambda: count(admin, places) - before >= events, worker, "all events", 0.05)
        return time.perf_counter() - begun
    finally:
        worker.kill()
        worker.wait()
        admin.close()


def count(admin: Any, places: list[TopicPartition]) -> int:
    """The offsets of the topic: records, and a marker for each transaction and partition."""
    return int(sum(admin.end_offsets(places).values()))


def start_worker(kafka: LocalKafka, **environment: str) -> subprocess.Popen[bytes]:
    with (FOLDER / "workers.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "streams", "run", "benchmarks.peers.sync_app:app"],
            cwd=ROOT,
            env={
                **os.environ,
                "STREAMS_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "STREAMS_STATE_DIR": str(FOLDER / "state"),
                **environment,
            },
            stdout=log,
            stderr=log,
        )


def wait(
    condition: Callable[[], object],
    worker: subprocess.Popen[bytes],
    what: str,
    every: float = 0.2,
    patience: float = 300.0,
) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert worker.poll() is None, f"the worker ended: {FOLDER / 'workers.log'}"
        assert time.monotonic() < deadline, f"no {what} after {patience:.0f} s"
        time.sleep(every)


def measure_latency(source: LocalPostgres, target: LocalPostgres, kafka: LocalKafka) -> list[float]:
    """Milliseconds from the commit of each row to the commit that makes it visible in the target."""
    for server in (source, target):
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create database latency")
    dsns = [server.dsn("latency") for server in (source, target)]
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLE)
    worker = start_worker(kafka, BENCH_NAME="bench-latency", BENCH_SOURCE=dsns[0], BENCH_TARGET=dsns[1])
    try:
        with (
            psycopg.connect(dsns[0], autocommit=True) as connection,
            psycopg.connect(dsns[1], autocommit=True) as reader,
        ):
            connection.execute("insert into items values (0, 'first', 0, '')")
            wait(
                lambda: reader.execute("select 1 from items where id = 0").fetchone(), worker, "the first row"
            )
            total = RATE * LATENCY_SECONDS
            begun = time.perf_counter()
            for number in range(1, total + 1):
                connection.execute(
                    "insert into items values (%s, 'name', 1.5, %s)", [number, "x" * 60], prepare=True
                )
                ahead = begun + number / RATE - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
            wait(
                lambda: reader.execute("select count(*) from items").fetchone() == (total + 1,),
                worker,
                "all rows",
            )
            query = "select id, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 from items"
            sent: dict[int, float] = dict(connection.execute(query).fetchall())
            seen: dict[int, float] = dict(reader.execute(query).fetchall())
        # The first seconds warm up.
        return [(seen[number] - sent[number]) * 1000 for number in range(RATE * 5, total + 1)]
    finally:
        worker.kill()
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
