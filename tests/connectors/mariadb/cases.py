"""Run by ``test_mariadb`` in a process whose Java runtime has the jars for MariaDB."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App
from streams.broker.reading import read_to_end
from streams.connectors.change_json import ChangeJson
from streams.connectors.debezium import Debezium, jvm
from streams.errors import ConnectorError, SourceUnavailable, TopicError
from tests.support.captured import Captured
from tests.support.mariadb import LocalMariaDB, connector_jars
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def java() -> Path:
    folder = connector_jars()
    jvm.start(folder)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMariaDB]:
    with LocalMariaDB(tmp_path_factory.mktemp("mariadb")) as started:
        yield started


@pytest.fixture
def database(server: LocalMariaDB) -> str:
    """A database of the test's own, with its table ``t``."""
    name = f"d{uuid.uuid4().hex[:8]}"
    server.sql(f"create database {name}; create table {name}.t(id int primary key, v varchar(40))")
    server.sql(f"insert into {name}.t values (1, 'a'), (2, 'b')")
    return name


@pytest.fixture
def make(server: LocalMariaDB, database: str, java: Path) -> Callable[..., Debezium]:
    def source(*tables: str, snapshot: str = "", **properties: object) -> Debezium:
        given = {name.replace("_", "."): value for name, value in properties.items()}
        names = [f"{database}.{table}" for table in tables or ("t",)]
        return Debezium.mariadb({**server.properties(), **given}, names, snapshot=snapshot, jars=java)

    return source


@pytest.fixture
def capture(make: Callable[..., Debezium]) -> Iterator[Callable[..., Captured]]:
    opened = []

    def begin(*tables: str, **options: Any) -> Captured:
        captured = Captured(make(*tables, **options))
        opened.append(captured)
        return captured

    yield begin
    for captured in opened:
        captured.close()


def rows(server: LocalMariaDB, database: str) -> dict[int, str]:
    return {int(key): value for key, value in server.sql(f"select id, v from {database}.t")}


def refusal(captured: Captured) -> str:
    with pytest.raises(ConnectorError) as caught:
        captured.until(lambda: False, deadline=30)
    return str(caught.value)


@pytest.mark.parametrize("batch", [1, 3, 2048])
def test_each_change_is_captured_once_wherever_the_reader_is_killed(server, database, capture, batch):
    chance = random.Random(batch)
    captured = capture(max_batch_size=batch, max_queue_size=batch + 1)
    captured.streaming()
    expected = ["r", "r"]
    free = 100
    for _ in range(12):
        statements = ["begin"]
        for _ in range(chance.randint(1, 4)):
            kind = chance.choice(["insert", "update", "move", "delete"])
            present = sorted(rows(server, database)) if len(statements) == 1 else []
            if kind == "insert" or not present:
                count = chance.randint(1, 5)
                values = ", ".join(f"({free + number}, 'v{free}')" for number in range(count))
                statements.append(f"insert into {database}.t values {values}")
                expected += ["c"] * count
                free += count
            elif kind == "update":
                statements.append(f"update {database}.t set v = concat('u', {free})")
                expected += ["u"] * len(present)
                free += 1
            elif kind == "move":
                statements.append(f"update {database}.t set id = {free} where id = {present[0]}")
                expected += ["d", "c"]
                free += 1
            else:
                statements.append(f"delete from {database}.t where id = {present[-1]}")
                expected += ["d"]
        server.sql("; ".join([*statements, "commit"]))
        # Some of what is read is lost before it is committed, some is committed and the rest is not read.
        for _ in range(chance.randint(0, 3)):
            read = captured.read()
            if read is None:
                continue
            if chance.random() < 0.75:
                captured.commit(read, confirm=chance.random() < 0.5)
            else:
                captured.kill()
                break
    captured.kill()
    captured.until(lambda: len(captured.changes) >= len(expected))
    assert captured.operations() == expected
    assert {key: row["v"] for key, row in captured.table().items()} == rows(server, database)


def test_a_snapshot_that_is_killed_begins_again_and_leaves_no_ghosts(server, database, capture):
    server.sql(f"use {database}; insert into t select seq, 'old' from seq_10_to_3000")
    captured = capture(max_batch_size=100, max_queue_size=200)
    captured.until(lambda: len(captured.changes) > 500)
    captured.kill()
    server.sql(f"delete from {database}.t where id < 30; update {database}.t set v = 'new' where id = 40")
    captured.streaming()
    captured.sweep()
    captured.until(lambda: captured.sweep() is None and set(captured.table()) == set(range(30, 3001)))
    assert captured.table()[40]["v"] == "new"


VALUES = {
    "id": ("bigint unsigned primary key", "18446744073709551615", 18446744073709551615),
    "amount": ("decimal(20,6)", "-12345678901234.123456", "-12345678901234.123456"),
    "ratio": ("double", "1e300", 1e300),
    "day": ("date", "'1000-01-01'", "1000-01-01"),
    "span": ("time(6)", "'-838:59:58.5'", "-838:59:58.500000"),
    "at": ("timestamp(6) null", "'2026-11-30 01:02:03.123456'", "2026-11-30T01:02:03.123456Z"),
    "here": ("datetime(6)", "'9999-12-31 23:59:59.999999'", "9999-12-31T23:59:59.999999"),
    "moment": ("datetime", "'1969-12-31 23:59:59'", "1969-12-31T23:59:59"),
    "year": ("year", "2026", 2026),
    "fixed": ("binary(4)", "'ab'", "\\x61620000"),
    "raw": ("blob", "'xyz'", "\\x78797a"),
    "bits": ("bit(5)", "b'10110'", "10110"),
    "bit": ("bit(1)", "b'1'", True),
    "yes": ("boolean", "true", 1),
    "kind": ("enum('a','b')", "'b'", "b"),
    "several": ("set('x','y')", "'x,y'", "x,y"),
    "document": ("json", "'{\"a\": [1, 2]}'", '{"a": [1, 2]}'),
    "words": ("text character set utf8mb4", "'ü€😀'", "ü€😀"),
    "large": ("bigint unsigned default 7", "9223372036854775808", 9223372036854775808),
    "null_not_default": ("int default 7", "null", None),
    "odd `name`": ("int", "5", 5),
}


def test_values_arrive_as_the_server_writes_them_from_the_log_and_from_a_snapshot(server, database, capture):
    columns = ", ".join(f"`{name.replace('`', '``')}` {kind}" for name, (kind, _, _) in VALUES.items())
    server.sql(f"set time_zone = '+00:00'; create table {database}.odd({columns})")
    captured = capture("odd")
    captured.streaming()
    server.sql(
        f"set time_zone = '+00:00'; insert into {database}.odd values "
        f"({', '.join(value for _, value, _ in VALUES.values())})"
    )
    captured.count(1)
    captured.kill()
    expected = {name: value for name, (_, _, value) in VALUES.items()}
    assert captured.changes[0].after == expected
    assert captured.keys_seen == [{"id": expected["id"]}]
    again = capture("odd", snapshot="again")
    again.count(1)
    assert again.changes[0].after == expected


def test_columns_that_change_while_nothing_reads_are_those_of_their_time(server, database, capture):
    server.sql(f"create table {database}.e(id int primary key, a varchar(9), b varchar(9))")
    captured = capture("e")
    captured.streaming()
    captured.kill()
    server.sql(
        f"use {database}; insert into e values (1, 'A', 'B'); alter table e drop column a;"
        "alter table e add column c varchar(9) default 'C'; insert into e(id, b, c) values (2, 'b2', 'c2');"
        "alter table e rename column b to bb; update e set bb = 'b3' where id = 1"
    )
    captured.until(lambda: len(captured.changes) >= 3)
    assert [change.after for change in captured.changes] == [
        {"id": 1, "a": "A", "b": "B"},
        {"id": 2, "b": "b2", "c": "c2"},
        {"id": 1, "bb": "b3", "c": "C"},
    ]


def test_what_was_altered_is_known_to_the_next_reader(server, database, capture):
    captured = capture()
    captured.streaming()
    server.sql(
        f"alter table {database}.t add column n int first; insert into {database}.t values (7, 3, 'c')"
    )
    captured.count(3)
    captured.kill()
    server.sql(f"insert into {database}.t values (8, 4, 'd')")
    captured.count(4)
    assert captured.changes[-1].after == {"n": 8, "id": 4, "v": "d"}


def test_truncate_and_drop_delete_each_row(server, database, capture):
    captured = capture()
    captured.streaming()
    server.sql(f"truncate table {database}.t; insert into {database}.t values (3, 'c')")
    captured.until(lambda: list(captured.table()) == [3])
    server.sql(f"use {database}; drop table t; create table t(k int primary key); insert into t values (9)")
    captured.until(lambda: list(captured.table()) == [9])
    assert Counter(captured.operations()) == {"r": 2, "d": 3, "c": 2}


def test_a_table_that_is_renamed_or_replaced_ends_the_source_and_a_new_snapshot_continues(
    server, database, make, capture
):
    captured = capture()
    captured.streaming()
    server.sql(
        f"use {database}; create table n(id int primary key, v varchar(40), w int);"
        "insert into n values (2, 'b', 1), (3, 'c', 1); rename table t to o, n to t"
    )
    message = refusal(captured)
    assert f"{database}.t was renamed, or replaced by renaming" in message
    assert "give the source src another snapshot=" in message
    captured.kill()
    captured.use(make(snapshot="replaced"))
    captured.until(lambda: captured.sweep() is None and set(captured.table()) == {2, 3})
    assert captured.table()[2] == {"id": 2, "v": "b", "w": 1}
    server.sql(f"rename table {database}.t to {database}.gone")
    assert "was renamed" in refusal(captured)


def test_renaming_something_else_is_no_reason_to_stop(server, database, capture):
    captured = capture()
    captured.streaming()
    server.sql(
        f"use {database}; create table z(id int primary key); rename table z to zz;"
        "alter table t rename column v to vv; insert into t values (3, 'c')"
    )
    captured.count(3)
    assert captured.changes[-1].after == {"id": 3, "vv": "c"}


@pytest.mark.parametrize(
    ("statement", "table", "said"),
    [
        ("create table k(id int)", "k", "k has no primary key"),
        ("select 1", "missing", "there is no table"),
    ],
)
def test_tables_that_cannot_be_captured_are_refused(server, database, capture, statement, table, said):
    server.sql(f"use {database}; {statement}")
    assert said in refusal(capture("t", table))


def test_another_key_is_refused(server, database, capture):
    captured = capture()
    captured.streaming()
    server.sql(f"alter table {database}.t drop primary key, add primary key (v, id)")
    assert "has another key, (v, id) instead of (id)" in refusal(captured)


def test_a_server_that_crashes_is_read_again_when_it_is_back(server, database, capture):
    captured = capture()
    captured.streaming()
    server.kill()
    with pytest.raises(SourceUnavailable):
        captured.until(lambda: False, deadline=60)
    captured.kill()
    server.start()
    server.sql(f"insert into {database}.t values (3, 'c')")
    captured.until(lambda: 3 in captured.table(), reopen=True)
    assert captured.operations() == ["r", "r", "c"]
    health = captured.open().health()
    assert health.problem == ""
    assert health.metrics["lag_seconds"] >= 0


def test_a_log_that_was_removed_ends_the_source_and_a_new_snapshot_continues(server, database, make, capture):
    captured = capture()
    captured.streaming()
    captured.kill()
    server.sql(f"delete from {database}.t where id = 1; flush binary logs; flush binary logs")
    last = server.sql("show master status")[0][0]

    def purged() -> bool:
        # A log that the killed reader's connection still reads is kept.
        server.sql(f"purge binary logs to '{last}'")
        return [name for name, *_ in server.sql("show binary logs")] == [last]

    wait_until(purged, what="the logs to be removed")
    assert "give the source src another snapshot=" in refusal(captured)
    captured.kill()
    captured.use(make(snapshot="again"))
    captured.until(lambda: captured.sweep() is None and set(captured.table()) == {2})
    assert captured.operations() == ["r", "r", "d"]


def test_what_the_server_refuses_is_said_before_the_worker_runs(make):
    with pytest.raises(ConnectorError, match="Access denied") as caught:
        make(database_password="wrong").check("captured", "src")
    assert "wrong" not in str(caught.value)
    with pytest.raises(SourceUnavailable, match="mariadb does not answer"):
        make(database_port=1).check("captured", "src")


def test_properties_that_debezium_does_not_know_are_refused_before_the_worker_runs(make):
    with pytest.raises(ConnectorError, match=r"mariadb has no properties snapshot\.fetch\.sise") as caught:
        make(snapshot_fetch_sise=5).check("captured", "src")
    assert caught.value.hint == "did you mean snapshot.fetch.size?"
    known = {"snapshot_fetch_size": 5, "driver_connectTimeout": 5000, "converters": "a", "a_type": "x.Y"}
    make(**known).check("captured", "src")


@pytest.mark.kafka
def test_an_app_continues_where_it_was_with_the_columns_of_then(server, database, make, kafka, prefix):
    def run(until: Callable[[], bool]) -> None:
        app = App(prefix, create_topics=True)
        app.source(make()).to_change_topics(prefix, partitions=1)
        stop = threading.Event()
        worker = threading.Thread(target=app.run, kwargs={"broker": kafka, "stop": stop})
        worker.start()
        try:
            wait_until(until, what="the changes")
        finally:
            stop.set()
            worker.join(60)

    def captured() -> list[Any]:
        try:
            fetched = list(read_to_end(kafka, [f"{prefix}.{database}.t"]))
        except TopicError:
            return []
        values = [value for part in fetched for value in part.values() if value is not None]
        return [change.after for change in ChangeJson().deserialize(values)]

    run(lambda: len(captured()) == 2)
    server.sql(
        f"alter table {database}.t add column n int first; insert into {database}.t values (7, 3, 'c')"
    )
    run(lambda: len(captured()) == 3)
    server.sql(f"insert into {database}.t values (8, 4, 'd')")
    run(lambda: len(captured()) == 4)
    assert captured()[2:] == [{"n": 7, "id": 3, "v": "c"}, {"n": 8, "id": 4, "v": "d"}]
