"""``make demo-sync``: a shop's database synchronised while it is used, while workers and servers fail."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from apps.data_sync.equality import TABLES, checks, dump, require_views, same_dumps, schema_check
from apps.data_sync.markers import Markers
from apps.data_sync.report import Report, show
from apps.data_sync.traffic import EVOLUTION, Traffic, write
from apps.workers import WorkerFailed, Workers
from streams.broker import NewTopic
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.devstack.development import development_broker
from streams.devstack.postgres import LocalPostgres
from streams.errors import StreamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKERS = 2
STALL_SECONDS = 120.0
"""After this time without a change in the warehouse, the demonstration fails."""
QUIET_SECONDS = 3.0
"""How long latencies are measured when all is caught up."""
SNAPSHOT_SHARE = 10
"""One operation of so many comes before the workers start: the snapshot contains it."""
BUILD = Path("build")
STATE = BUILD / "demo-sync-state"
ORDERS_FILE = BUILD / "demo-sync-orders.db"
SCHEMAS = BUILD / "demo-sync-schemas"
REPORT = BUILD / "demo-sync-report.json"

# A killed worker's partitions move after this time.
QUICK_GROUPS = {
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.session.timeout.ms": "6000",
}

console = Console()


class DemoFailed(Exception):
    """The demonstration failed; the message says where and why."""


class _Event(NamedTuple):
    """Something that happens when a share of the operations is done."""

    share: float
    happen: Callable[[], str]
    """Returns what happened, in words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 only if source and targets are equal."""
    parser = argparse.ArgumentParser(prog="make demo-sync", description=__doc__)
    parser.add_argument("--operations", type=int, default=100_000, help="inserts, updates and deletes")
    parser.add_argument("--seed", type=int, default=1, help="of the generated traffic")
    options = parser.parse_args(arguments)
    if options.operations < 100:
        parser.error("--operations must be 100 or more")
    # Hide the client's messages about a broker that is still starting.
    logging.getLogger("streams").addHandler(logging.NullHandler())
    # SIGTERM becomes an exception, so that the workers and the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    BUILD.mkdir(exist_ok=True)
    try:
        with ExitStack() as stack:
            report = _Demo(stack, options.operations, options.seed).run()
    except (StreamsError, DemoFailed, WorkerFailed, psycopg.Error) as error:
        console.print("[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code if isinstance(error, StreamsError) else 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    show(report, console)
    REPORT.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    console.print(f"The same figures as data: {REPORT}")
    return 1 if report.problems else 0


def _say(text: str) -> None:
    console.print(f"[dim]{text}[/]", highlight=False)


class _Demo:
    """The servers, the workers, and what happens to them."""

    def __init__(self, stack: ExitStack, operations: int, seed: int) -> None:
        self._stack = stack
        self._operations = operations
        self._seed = seed
        self._traffic = Traffic(seed)
        self._seconds: dict[str, float] = {}
        self._survived: list[str] = []
        begun = time.monotonic()
        _say("Starting two Postgres servers …")
        self._shop = stack.enter_context(LocalPostgres.create())
        self._warehouse = stack.enter_context(LocalPostgres.create())
        servers = stack.enter_context(development_broker(_say, properties=QUICK_GROUPS))
        # The user's cluster may contain an earlier run, so every run has its own names.
        self._prefix = f"demo-{uuid.uuid4().hex[:6]}-"
        os.environ |= {
            "DATA_SYNC_PREFIX": self._prefix,
            "SHOP_URL": self._shop.dsn(),
            "WAREHOUSE_URL": self._warehouse.dsn(),
            "ORDERS_FILE": str(ORDERS_FILE),
            "SCHEMAS": str(SCHEMAS),
            "STREAMS_BOOTSTRAP_SERVERS": servers,
            "STREAMS_STATE_DIR": str(STATE),
            # A killed worker's partitions and open transaction are free after these times.
            "STREAMS_SESSION_TIMEOUT": "6",
            "STREAMS_TRANSACTION_TIMEOUT": "6",
        }
        # The versions of schemas are compared in the folder.
        os.environ.pop("STREAMS_SCHEMA_REGISTRY_URL", None)
        self._broker = KafkaBroker({"bootstrap.servers": servers})
        shutil.rmtree(STATE, ignore_errors=True)
        stack.callback(shutil.rmtree, STATE, ignore_errors=True)
        shutil.rmtree(SCHEMAS, ignore_errors=True)
        for end in ("", "-wal", "-shm"):
            ORDERS_FILE.with_name(ORDERS_FILE.name + end).unlink(missing_ok=True)
        self._workers = Workers("apps.data_sync.app:app", WORKERS, os.environ, BUILD, "demo-sync-worker")
        self._markers = Markers(self._shop.dsn(), self._warehouse.dsn())
        stack.callback(self._markers.stop)
        self._seconds["start the servers"] = time.monotonic() - begun

    def run(self) -> Report:
        """Run everything, and compare."""
        # Imported late: the module names its topics when it is imported, which the environment decides.
        from apps.data_sync import app as data_sync  # noqa: PLC0415 - as above

        self._create_tables()
        self._broker.admin().create_topics(
            [
                NewTopic(
                    name=data_sync.ORDER_DOCUMENTS,
                    partitions=data_sync.PARTITIONS,
                    settings={"cleanup.policy": "compact"},
                )
            ]
        )
        before = max(100, self._operations // SNAPSHOT_SHARE)
        _say(f"The shop has {before:,} operations behind it before the first worker starts …")
        connection = self._connect()
        done = transactions = 0
        while done < before:
            statements = self._traffic.transaction(before - done)
            write(connection, statements)
            done += len(statements)
            transactions += 1
        connection.close()
        with self._workers:
            self._markers.start()
            begun = time.monotonic()
            self._wait_for(
                "the snapshot is in the warehouse", lambda: dump(*self._targets("customers"))[0] > 0
            )
            self._seconds["start the workers"] = time.monotonic() - begun
            transactions += self._write_traffic()
            self._catch_up()
            self._markers.phase = "when caught up"
            time.sleep(QUIET_SECONDS)
            self._markers.stop()
            self._wait_for("the last changes are in the warehouse", self._same)
        _say("Comparing the shop with all targets …")
        begun = time.monotonic()
        found, differences = checks(
            self._shop.dsn(), self._warehouse.dsn(), ORDERS_FILE, self._broker, data_sync.ORDER_DOCUMENTS
        )
        found += [
            schema_check(SCHEMAS, table, versions)
            for table, versions in (("customers", 2), ("orders", 1), ("order_lines", 2))
        ]
        self._seconds["compare"] = time.monotonic() - begun
        changes, dead_letters = self._counts(
            [data_sync.CUSTOMERS, data_sync.ORDERS, data_sync.ORDER_LINES], data_sync.app.dead_letter_topic
        )
        return Report(
            seed=self._seed,
            operations=self._operations + before,
            transactions=transactions,
            rows={table: dump(*self._targets(table))[0] for table in TABLES},
            changes=changes,
            dead_letters=dead_letters,
            seconds=self._seconds,
            latencies=dict(self._markers.latencies),
            survived=self._survived,
            checks=found,
            differences=differences,
        )

    def _create_tables(self) -> None:
        for server, name in ((self._shop, "shop.sql"), (self._warehouse, "warehouse.sql")):
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(Path(__file__).with_name(name).read_bytes())

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self._shop.dsn(), autocommit=True)

    def _targets(self, table: str) -> tuple[str, str, str]:
        return self._warehouse.dsn(), table, table

    def _write_traffic(self) -> int:
        """Write the operations, and let things happen meanwhile. Returns the number of transactions."""
        events = [
            _Event(0.2, self._kill_a_worker),
            _Event(0.4, self._change_tables),
            _Event(0.6, self._crash_the_shop),
        ]
        self._markers.phase = "under load"
        begun = time.monotonic()
        done = transactions = 0
        connection = self._connect()
        with _progress() as progress:
            task = progress.add_task("write", total=self._operations, note="")
            while done < self._operations:
                if events and done >= events[0].share * self._operations:
                    connection.close()
                    happened = events.pop(0).happen()
                    self._survived.append(happened)
                    progress.console.print(f"[yellow]{happened}[/]", highlight=False)
                    connection = self._connect()
                statements = self._traffic.transaction(self._operations - done)
                write(connection, statements)
                done += len(statements)
                transactions += 1
                self._workers.require()
                rate = done / (time.monotonic() - begun)
                progress.update(task, completed=done, note=f"{rate:>9,.0f} operations/s")
        connection.close()
        self._seconds["write"] = time.monotonic() - begun
        return transactions

    def _kill_a_worker(self) -> str:
        number = self._workers.holder(f"{self._prefix}data-sync-shop-source-0")
        self._workers.kill(number)
        self._workers.start(number)
        return f"kill -9 of worker {number}, which captured the shop's changes; another one was started"

    def _change_tables(self) -> str:
        with self._connect() as connection:
            for statement in EVOLUTION:
                connection.execute(statement.encode())
        self._traffic.evolved = True
        return f"a column added, and one widened: {'; '.join(EVOLUTION)}"

    def _crash_the_shop(self) -> str:
        self._shop.restart("immediate")
        return "a crash of the shop's Postgres, which recovered from its log"

    def _catch_up(self) -> None:
        # Otherwise a marker would always be on its way.
        self._markers.phase = None
        require_views(self._shop.dsn())
        begun = time.monotonic()
        self._wait_for("all changes are in the warehouse", self._same)
        self._seconds["catch up"] = time.monotonic() - begun

    def _same(self) -> bool:
        return same_dumps(self._shop.dsn(), self._warehouse.dsn())

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        with _progress() as progress:
            task = progress.add_task("wait", total=None, note=f"until {what}")
            seen: object = None
            moved = time.monotonic()
            begun = time.monotonic()
            while not condition():
                self._workers.require()
                now = time.monotonic()
                # Comparing takes the time that the workers need: it is done half of the time at most.
                time.sleep(max(0.1, now - begun))
                begun = time.monotonic()
                if (written := self._written()) != seen:
                    seen, moved = written, begun
                elif begun - moved > STALL_SECONDS:
                    raise DemoFailed(
                        f"the warehouse has not changed for {STALL_SECONDS:.0f} s, but not yet: {what}; "
                        f"see {BUILD}/demo-sync-worker-*.log"
                    )
                progress.update(task, completed=self._rows(), note=f"rows, until {what}")

    def _written(self) -> object:
        """How far the warehouse's log is."""
        with psycopg.connect(self._warehouse.dsn()) as warehouse:
            return warehouse.execute("select pg_current_wal_lsn()").fetchone()

    def _rows(self) -> int:
        with psycopg.connect(self._warehouse.dsn()) as warehouse:
            found = warehouse.execute(
                "select (select count(*) from customers) + (select count(*) from order_view)"
            ).fetchone()
        return 0 if found is None else int(found[0])

    def _counts(self, topics: list[str], dead_letter_topic: str) -> tuple[int, int]:
        """The numbers of change events and of dead letters."""
        changes = sum(
            sum(value is not None for value in fetched.values())
            for fetched in read_to_end(self._broker, topics)
        )
        dead_letters = sum(len(fetched) for fetched in read_to_end(self._broker, [dead_letter_topic]))
        return changes, dead_letters


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>9,}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
