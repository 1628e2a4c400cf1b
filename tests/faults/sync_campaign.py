"""Faults of workers, the broker and both databases while a table changes, and its copies afterwards.

The source keeps a history of its own by a trigger. Afterwards, the copies by key must equal the table, and
the history that was appended must have each change exactly once: a row written twice hides in an upsert only.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg

from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.connectors.change_json import ChangeJson
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka
from streams.devstack.postgres import LocalPostgres
from tests.conftest import QUICK_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Worker: TypeAlias = "subprocess.Popen[bytes]"

ROOT = Path(__file__).parents[2]
WORKERS = 2
RECOVERY_SECONDS = 150.0
"""Longest time from the end of a fault until a row that is written then is in all targets."""

FROZEN_SECONDS = 12.0
"""Longer than a session and a transaction: another worker takes over."""

TABLE = (
    "create table items (id bigint primary key, version bigint not null, amount numeric(12, 2), note text)"
)
HISTORY = """
alter table items alter note set storage external;
create table audit (op text, id bigint, version bigint);
create function audited() returns trigger language plpgsql as $$ begin
  if tg_op = 'DELETE' then insert into audit values ('d', old.id, null); return old;
  elsif tg_op = 'INSERT' then insert into audit values ('c', new.id, new.version); return new;
  else insert into audit values ('u', new.id, new.version); return new; end if;
end $$
"""
TRIGGER = (
    "create trigger audited after insert or update or delete on items for each row execute function audited()"
)


@dataclass
class SyncOutcome:
    """What a campaign did and found."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    operations: int = 0
    rows: int = 0
    history: int = 0
    violations: list[str] = field(default_factory=list)


class SyncCampaign:
    """Servers, workers and traffic of one campaign. ``report`` is called with a line for each fault.

    Faults of brokers need several ``nodes``.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        report: Callable[[str], None] = lambda _: None,
        *,
        rows: int = 2_000,
        nodes: int = 3,
    ) -> None:
        self._folder = folder
        self._choose = random.Random(seed)
        self._report = report
        self._snapshot_rows = rows
        self._nodes = nodes
        self.outcome = SyncOutcome(seed)
        self._workers: list[Worker] = []
        self._logs: list[Path] = []
        self._ended = threading.Event()
        self._paused = threading.Lock()
        self._markers = 0

    def run(self, faults: Sequence[str], seconds: float = 0.0) -> SyncOutcome:
        """Inject the faults one after another, in turn for so many seconds, and compare at the end."""
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = {**QUICK_GROUPS, "group.initial.rebalance.delay.ms": "100"}
        with (
            LocalPostgres.create() as self.source,
            LocalPostgres.create() as self.target,
            LocalKafka.start(
                self._folder / "kafka",
                nodes=self._nodes,
                heap_mb=384,
                properties=properties,
                java_options=QUICK_JAVA,
            ) as self.kafka,
        ):
            self._prepare()
            try:
                self._workers = [self._start() for _ in range(WORKERS)]
                self._begin_history()
                writer = threading.Thread(target=self._write)
                writer.start()
                try:
                    self._inject(faults, seconds)
                finally:
                    self._ended.set()
                    writer.join(60)
                self._compare()
                self._stop_workers()
            finally:
                for worker in self._workers:
                    if worker.poll() is None:
                        worker.send_signal(signal.SIGCONT)
                        worker.kill()
                        worker.wait()
        return self.outcome

    # --- the systems

    def _prepare(self) -> None:
        with psycopg.connect(self.source.dsn(), autocommit=True) as connection:
            connection.execute(TABLE)
            connection.execute(HISTORY)
            connection.execute(
                "insert into items select g, 0, g, repeat('x', 3000) "
                f"from generate_series(1, {self._snapshot_rows}) g".encode()
            )
        with psycopg.connect(self.target.dsn(), autocommit=True) as connection:
            connection.execute(TABLE)
            connection.execute("create table history (op text, id bigint, version bigint)")
        self._lite = self._folder / "lite.db"
        with closing(sqlite3.connect(self._lite)) as lite, lite:
            lite.execute(
                "create table items (id integer primary key, version integer, amount text, note text)"
            )

    def _begin_history(self) -> None:
        """Wait until the snapshot is copied; the trigger notes the changes from then on."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        with psycopg.connect(self.target.dsn(), autocommit=True) as target:
            while target.execute("select count(*) from items").fetchone() != (self._snapshot_rows,):
                log = self._logs_of(self._workers[0])[-3000:]
                assert time.monotonic() < deadline, f"no snapshot: {log}"
                time.sleep(0.1)
        with psycopg.connect(self.source.dsn(), autocommit=True) as connection:
            connection.execute(TRIGGER)

    def _start(self) -> Worker:
        log = self._folder / f"worker-{len(self._logs)}.log"
        self._logs.append(log)
        settings = {
            "SYNC_SOURCE": self.source.dsn(),
            "SYNC_TARGET": self.target.dsn(),
            "SYNC_LITE": str(self._lite),
            "STREAMS_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "STREAMS_STATE_DIR": str(self._folder / "state"),
            "STREAMS_SESSION_TIMEOUT": "6",
            "STREAMS_TRANSACTION_TIMEOUT": "6",
            "STREAMS_LOG_FORMAT": "json",
        }
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "tests.faults.sync_app:app"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=file,
                stderr=file,
            )

    def _replace(self, place: int) -> None:
        self._workers[place] = self._start()

    def _revive(self) -> None:
        for place, worker in enumerate(self._workers):
            if worker.poll() is not None:
                log = self._logs_of(worker)
                self.outcome.violations.append(
                    f"a worker ended by itself with {worker.returncode}: …{log[-800:]}"
                )
                if len(self.outcome.violations) > 10:
                    raise AssertionError("workers end again and again")
                self._replace(place)

    def _logs_of(self, worker: Worker) -> str:
        return "".join(path.read_text(errors="replace") for path in self._logs[-WORKERS:])

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                code: int | None = worker.wait(60)
            except subprocess.TimeoutExpired:
                code = None
            if code != 0:
                self.outcome.violations.append(
                    f"a worker stopped with {code}: {self._logs_of(worker)[-800:]}"
                )

    # --- traffic

    def _write(self) -> None:
        choose = random.Random(self.outcome.seed + 1)
        version = 0
        while not self._ended.is_set():
            try:
                with psycopg.connect(self.source.dsn(), connect_timeout=5) as connection:
                    while not self._ended.wait(0.01):
                        version += 1
                        self._transaction(connection, choose, version)
            except psycopg.Error:
                # The server is being restarted: what was not committed did not happen.
                self._ended.wait(0.2)

    def _transaction(self, connection: psycopg.Connection[Any], choose: random.Random, version: int) -> None:
        with connection.transaction():
            for _ in range(choose.choice([1, 1, 1, 5, 40])):
                identifier = choose.randrange(1, self._snapshot_rows * 2)
                kind = choose.random()
                if kind < 0.25:
                    connection.execute("delete from items where id = %s", [identifier])
                elif kind < 0.5:
                    connection.execute(
                        "insert into items values (%s, %s, %s, %s) on conflict (id) do nothing",
                        [identifier, version, version, "y" * choose.choice([10, 3_000])],
                    )
                else:
                    # The large note is not sent again with such an update.
                    connection.execute(
                        "update items set version = %s, amount = amount + 0.01 where id = %s",
                        [version, identifier],
                    )
                self.outcome.operations += 1

    # --- faults

    def _inject(self, faults: Sequence[str], seconds: float) -> None:
        self._wait_until_copied("the start")
        begun, waiting = time.monotonic(), list(faults)
        while waiting or time.monotonic() - begun < seconds:
            if not waiting:
                waiting = list(FAULTS)
                self._choose.shuffle(waiting)
            fault = waiting.pop(0)
            self._report(fault)
            getattr(self, f"_{FAULTS[fault]}")()
            self.outcome.faults[fault] += 1
            self._wait_until_copied(fault)
            self._revive()
            time.sleep(self._choose.uniform(0.2, 2.0))

    def _worker_killed(self) -> None:
        place = self._choose.randrange(WORKERS)
        self._workers[place].kill()
        self._workers[place].wait()
        self._replace(place)

    def _all_workers_killed(self) -> None:
        for worker in self._workers:
            worker.kill()
        for place, worker in enumerate(self._workers):
            worker.wait()
            self._replace(place)

    def _worker_frozen(self) -> None:
        worker = self._choose.choice(self._workers)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        worker.send_signal(signal.SIGCONT)

    def _worker_stopped(self) -> None:
        place = self._choose.randrange(WORKERS)
        self._workers[place].terminate()
        code = self._workers[place].wait(60)
        if code != 0:
            self.outcome.violations.append(f"a worker stopped with exit code {code}")
        self._replace(place)

    def _broker_killed(self) -> None:
        node = self.kafka.node(self._choose.randint(1, self._nodes))
        node.kill()
        time.sleep(self._choose.uniform(0.1, 3))
        node.start()
        self.kafka.wait()

    def _broker_frozen(self) -> None:
        node = self.kafka.node(self._choose.randint(1, 3))
        node.pause()
        time.sleep(self._choose.uniform(2, 8))
        node.resume()

    def _source_restarted(self) -> None:
        self.source.restart(self._choose.choice(["fast", "immediate"]))

    def _target_restarted(self) -> None:
        self.target.restart(self._choose.choice(["fast", "immediate"]))

    def _target_frozen(self) -> None:
        self.target.pause()
        time.sleep(self._choose.uniform(2, 10))
        self.target.resume()

    def _source_frozen(self) -> None:
        self.source.pause()
        time.sleep(self._choose.uniform(2, 10))
        self.source.resume()

    def _connections_cut(self) -> None:
        for server in (self.source, self.target):
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where pid <> pg_backend_pid() and backend_type in ('client backend', 'walsender')"
                )

    def _target_full(self) -> None:
        """No connection is left at the target for a while."""
        held = []
        with suppress(psycopg.OperationalError):
            while True:
                held.append(psycopg.connect(self.target.dsn(), connect_timeout=5))
        time.sleep(self._choose.uniform(1, 4))
        for connection in held:
            connection.close()

    # --- comparing

    def _wait_until_copied(self, after: str) -> None:
        """Write a row, and wait until it is in all targets."""
        self._markers += 1
        marker, begun = -self._markers, time.monotonic()
        deadline = begun + RECOVERY_SECONDS
        written = False
        while time.monotonic() < deadline:
            self._revive()
            with suppress(psycopg.Error, sqlite3.Error):
                if not written:
                    with psycopg.connect(self.source.dsn(), autocommit=True, connect_timeout=5) as source:
                        source.execute("insert into items values (%s, 0, 0, 'marker')", [marker])
                    written = True
                if all(self._has(marker)):
                    self.outcome.recovery.setdefault(after, []).append(time.monotonic() - begun)
                    return
            time.sleep(0.1)
        log = self._logs_of(self._workers[0])[-3000:]
        raise AssertionError(f"after {after}: no copy of a row after {RECOVERY_SECONDS:.0f} s\n{log}")

    def _has(self, marker: int) -> list[bool]:
        with psycopg.connect(self.target.dsn(), connect_timeout=5) as target:
            found = [
                target.execute(f"select 1 from {table} where id = %s".encode(), [marker]).fetchone()
                is not None
                for table in ("items", "history")
            ]
        with closing(sqlite3.connect(self._lite, timeout=10)) as lite:
            return [*found, lite.execute("select 1 from items where id = ?", [marker]).fetchone() is not None]

    def _compare(self) -> None:
        self._wait_until_copied("the end")
        with psycopg.connect(self.source.dsn()) as source:
            rows = source.execute("select id, version, amount::text, note from items order by id").fetchall()
            audit = Counter(source.execute("select op, id, version from audit").fetchall())
        with psycopg.connect(self.target.dsn()) as target:
            copied = target.execute(
                "select id, version, amount::text, note from items order by id"
            ).fetchall()
            history = Counter(target.execute("select op, id, version from history").fetchall())
        with closing(sqlite3.connect(self._lite)) as lite:
            lite_rows = lite.execute("select id, version, amount, note from items order by id").fetchall()
        self.outcome.rows, self.outcome.history = len(rows), audit.total()
        for name, found in (("Postgres", copied), ("SQLite", lite_rows)):
            if found != rows:
                missing = [row[0] for row in set(rows) - set(found)][:5]
                more = [row[0] for row in set(found) - set(rows)][:5]
                self.outcome.violations.append(
                    f"the copy in {name} differs: missing or old {missing}, additional or new {more}"
                )
        for name, counted in (("topic", self._captured()), ("history", history)):
            lost, repeated = audit - counted, counted - audit
            if lost or repeated:
                self.outcome.violations.append(
                    f"the {name} has lost {lost.total()} changes, e.g. {list(lost)[:3]}, and has "
                    f"{repeated.total()} too many, e.g. {list(repeated)[:3]}"
                )

    def _captured(self) -> Counter[tuple[str, int, int | None]]:
        """The changes in the topic."""
        found: Counter[tuple[str, int, int | None]] = Counter()
        read = ChangeJson()
        for fetched in read_to_end(
            KafkaBroker({"bootstrap.servers": self.kafka.bootstrap_servers}), ["shop.public.items"]
        ):
            for change in read.deserialize([value for value in fetched.values() if value is not None]):
                if change.op in {"c", "u", "d"}:
                    row = change.after or change.before or {}
                    found[change.op, row["id"], row["version"] if change.after else None] += 1
        return found


FAULTS = {
    "worker killed": "worker_killed",
    "all workers killed": "all_workers_killed",
    "worker frozen beyond its session": "worker_frozen",
    "worker stopped": "worker_stopped",
    "broker killed": "broker_killed",
    "broker frozen": "broker_frozen",
    "source database restarted": "source_restarted",
    "target database restarted": "target_restarted",
    "source database frozen": "source_frozen",
    "target database frozen": "target_frozen",
    "connections cut": "connections_cut",
    "no connection left at the target": "target_full",
}
"""The faults, and the methods that inject them."""
