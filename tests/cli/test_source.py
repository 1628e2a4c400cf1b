"""``streams source``: changes of tables in topics, on a real Postgres, a real MariaDB and a real Kafka."""

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
from streams.connectors.debezium import jvm
from streams.errors import ConfigurationError
from tests.support.mariadb import LocalMariaDB, required_jars
from tests.support.mongodb import StandInMongoDB
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


@pytest.mark.kafka
def test_another_database_is_captured_by_the_properties_in_a_file(
    tmp_path, kafka, kafka_bootstrap, prefix, monkeypatch
):
    jars = required_jars()
    topic = f"{prefix}.shop.customers"
    monkeypatch.setenv("SHOP_PASSWORD", "secret")
    with LocalMariaDB(tmp_path) as server:
        server.sql("create database shop; create table shop.customers(id int primary key, name text)")
        server.sql("insert into shop.customers values (1, 'Ann')")
        given = {**server.properties(), "database.password": "${env:SHOP_PASSWORD}"}
        file = tmp_path / "shop.properties"
        file.write_text("# The shop\n" + "".join(f"{name} = {value}\n" for name, value in given.items()))
        arguments = ["mariadb", "--tables=shop.customers", f"--prefix={prefix}", "--partitions=1"]
        arguments += [f"--properties={file}", f"--jars={jars}"]
        with capturing(tmp_path, kafka_bootstrap, *arguments, "--workers=2"):
            wait_until(lambda: changes(kafka, topic), 120, what="the snapshot")
        server.sql("insert into shop.customers values (2, 'Bob'); delete from shop.customers where id = 1")
        with capturing(tmp_path, kafka_bootstrap, *arguments):
            wait_until(lambda: len(changes(kafka, topic)) == 3, 120, what="the changes")
    assert changes(kafka, topic) == [
        ("r", {"id": 1, "name": "Ann"}),
        ("c", {"id": 2, "name": "Bob"}),
        ("d", None),
    ]


@pytest.mark.kafka
def test_collections_of_mongodb_are_captured(tmp_path, kafka, kafka_bootstrap, prefix):
    """Of a stand-in for the server, which speaks its protocol."""
    jvm.start()
    topic = f"{prefix}.shop.orders"
    with StandInMongoDB() as server:
        server.create("shop.orders")
        server.put("shop.orders", '{"_id": 1, "at": {"$date": "2026-11-30T01:02:03Z"}}')
        file = tmp_path / "shop.properties"
        file.write_text("".join(f"{name} = {value}\n" for name, value in server.properties().items()))
        arguments = ["mongodb", "--tables=shop.orders", f"--prefix={prefix}", f"--properties={file}"]
        with capturing(tmp_path, kafka_bootstrap, *arguments, "--partitions=1"):
            wait_until(lambda: changes(kafka, topic), 120, what="the snapshot")
            server.put("shop.orders", '{"_id": 2}')
            wait_until(lambda: len(changes(kafka, topic)) == 2, 120, what="the change")
            server.delete("shop.orders", "1")
            wait_until(lambda: len(changes(kafka, topic)) == 3, 120, what="the deletion")
    assert changes(kafka, topic) == [
        ("r", {"_id": 1, "at": {"$date": "2026-11-30T01:02:03Z"}}),
        ("c", {"_id": 2}),
        ("d", None),
    ]


OPTIONS = ["--tables=shop.a", "--prefix=shop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([URL, "--tables=", "--prefix=shop"], "tables= needs a list of names"),
        ([URL, "--tables=a", "--prefix=my shop"], "--prefix 'my shop' cannot begin the names of topics"),
        (["host", *OPTIONS], "'host' is no system that can be captured"),
        (["cassandra", *OPTIONS], "'cassandra' is no system that can be captured"),
        (["mongodb", *OPTIONS], "mongodb needs --properties FILE"),
        (["mongodb", *OPTIONS, "--properties=good"], "the properties snapshot.mode are set by the source"),
        (["mongodb", *OPTIONS, "--table-snapshot=shop.a=2"], "--table-snapshot is not for mongodb"),
        (["mysql://shop", *OPTIONS], "'mysql' is captured without a URL"),
        (["postgres", *OPTIONS], "'postgres' says no database"),
        (["postgres://[", *OPTIONS], "cannot be read"),
        (["mysql", *OPTIONS], "mysql needs --properties FILE"),
        (["mysql", *OPTIONS, "--properties=f", "--slot=s"], "--slot is not for mysql"),
        ([URL, *OPTIONS, "--properties=f"], "--properties is not for Postgres"),
        (["mysql", *OPTIONS, "--properties=missing"], "missing cannot be read: No such file"),
        (["mysql", *OPTIONS, "--properties=good"], "the properties snapshot.mode are set by the source"),
        (["mariadb", *OPTIONS, "--properties=empty"], "Debezium.mariadb needs jars="),
        (["mysql", *OPTIONS, "--properties=bad"], "bad, line 3: oops is no property: write NAME=VALUE"),
        (["sqlserver", *OPTIONS, "--properties=empty"], "needs one database"),
        ([URL, "--tables=a", "--prefix=shop", "--table-snapshot=a"], "'a' has no text for the table"),
        ([URL, "--tables=a", "--prefix=shop", "--table-snapshot=b=2"], "names public.b, which tables= does"),
        (["mysql", *OPTIONS, "--table-snapshot=shop.a=2"], "--table-snapshot is not for mysql"),
    ],
)
def test_what_cannot_be_captured_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty": "", "good": "snapshot.mode: never", "bad": "a=1\n# b\n  oops\n"}.items():
        (tmp_path / name).write_text(text)
    result = CliRunner().invoke(cli, ["source", *arguments])
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)
