"""``streams source``: changes of tables in topics, on a real Postgres and a real Kafka."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from typer.testing import CliRunner

from streams.broker.reading import read_to_end
from streams.cli.main import cli
from streams.errors import ConfigurationError
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker

URL = "postgresql://shop@localhost/shop"


@contextlib.contextmanager
def capturing(folder: Path, servers: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command, which must end with exit code 0 when it is asked to stop."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams", "source", *arguments],
            env=os.environ
            | {"STREAMS_BOOTSTRAP_SERVERS": servers, "STREAMS_STATE_DIR": str(folder / "state")},
            stdout=log,
            stderr=log,
            text=True,
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (folder / "log").read_text()
        finally:
            process.kill()
            process.wait()


def changes(kafka: KafkaBroker, topic: str) -> list[tuple[str, dict[str, Any] | None]]:
    with contextlib.closing(kafka.admin()) as admin:
        if topic not in admin.topics():
            return []
    events = [
        json.loads(value)
        for fetched in read_to_end(kafka, [topic])
        for value in fetched.values()
        if value is not None
    ]
    return [(event["op"], event["after"]) for event in events]


@pytest.mark.kafka
def test_rows_and_changes_are_captured_once_over_a_restart(
    tmp_path, kafka, kafka_bootstrap, prefix, database
):
    topics = [f"{prefix}.public.customers", f"{prefix}.public.orders"]
    arguments = [database, "--tables=public.customers, public.orders", f"--prefix={prefix}"]
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("create table customers(id integer primary key, name text)")
        db.execute("create table orders(id integer primary key)")
        db.execute("insert into customers values (1, 'Ann')")
        with capturing(tmp_path, kafka_bootstrap, *arguments, "--partitions=1", "--workers=2"):
            wait_until(lambda: changes(kafka, topics[0]), 120, what="the snapshot")
            db.execute("update customers set name = 'Anne'")
            wait_until(lambda: len(changes(kafka, topics[0])) == 2, what="the change")
        db.execute("delete from customers")
        db.execute("insert into orders values (5)")
        with capturing(tmp_path, kafka_bootstrap, *arguments):
            wait_until(lambda: changes(kafka, topics[1]), 120, what="the order")
        assert changes(kafka, topics[0]) == [
            ("r", {"id": 1, "name": "Ann"}),
            ("u", {"id": 1, "name": "Anne"}),
            ("d", None),
        ]
        assert changes(kafka, topics[1]) == [("c", {"id": 5})]
        # A default is in no log.
        db.execute("alter table orders add column state text default 'new'")
        again = [*arguments, "--table-snapshot=orders=2026-11-30"]
        with capturing(tmp_path, kafka_bootstrap, *again):
            wait_until(lambda: len(changes(kafka, topics[1])) == 2, 120, what="the order again")
        assert changes(kafka, topics[1])[1] == ("u", {"id": 5, "state": "new"})
        assert len(changes(kafka, topics[0])) == 3
        db.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = current_database()"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([URL, "--tables=", "--prefix=shop"], "tables= needs a list of names"),
        ([URL, "--tables=a", "--prefix=my shop"], "--prefix 'my shop' cannot begin the names of topics"),
        ([URL, "--tables=a", "--prefix=shop", "--table-snapshot=a"], "'a' has no text for the table"),
        ([URL, "--tables=a", "--prefix=shop", "--table-snapshot=b=2"], "names public.b, which tables= does"),
        (["mysql://shop", "--tables=a", "--prefix=shop"], "cannot be read"),
    ],
)
def test_what_cannot_be_captured_is_refused(arguments, message):
    result = CliRunner().invoke(cli, ["source", *arguments])
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)
