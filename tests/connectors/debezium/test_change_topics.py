"""A table's topic on a real broker: each change with the schema of its version of the table."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from streams import App
from streams.broker.reading import read_to_end
from streams.connectors.change_avro import ChangeAvro, ChangeKeyAvro
from streams.connectors.debezium import Debezium
from streams.errors import TopicError
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker
    from tests.connectors.debezium.conftest import Database


def test_changes_before_and_after_ddl_are_avro_with_their_own_columns(
    kafka: KafkaBroker, prefix: str, database: str, db: Database, tmp_path: Path
):
    db.execute("create type mood as enum('ok')")
    db.execute(
        "create table e(id int primary key, a text, n numeric(10,2), d date default '2020-01-01', m mood,"
        " z timestamptz, p point)"
    )
    db.execute("insert into e values (1, 'A', 1.10, null, 'ok', '2026-11-30 01:00+00', '(1,2)')")
    folder = tmp_path / "schemas"
    app = App(prefix, create_topics=True, state_dir=str(tmp_path / "state"), state_store="memory")
    changes = app.source(Debezium.postgres(database, ["e"]), store="pg")
    key, value = ChangeKeyAvro(schemas=folder), ChangeAvro(schemas=folder)
    changes.to_change_topics(prefix, partitions=1, key=key, value=value)

    def records() -> list[tuple[bytes | None, bytes | None]]:
        try:
            fetched = list(read_to_end(kafka, [f"{prefix}.public.e"]))
        except TopicError:
            return []
        return [pair for part in fetched for pair in zip(part.keys(), part.values(), strict=True)]

    stop = threading.Event()
    worker = threading.Thread(target=app.run, kwargs={"broker": kafka, "stop": stop})
    worker.start()
    try:
        wait_until(lambda: len(records()) == 1, what="the snapshot")
        with db.transaction():
            db.execute("insert into e values (2, 'A2', 2.20, 'infinity', 'ok', 'infinity', null)")
            db.execute("alter table e drop column a")
            db.execute("alter table e add column c text default 'C'")
            db.execute("alter table e alter n type numeric(12,4), alter id type bigint")
            db.execute("insert into e(id, n) values (3000000000, 1.2345)")
        db.execute("alter type mood add value 'new'")
        db.execute("alter table e rename column c to cc")
        db.execute("update e set m = 'new' where id = 1")
        db.execute("delete from e where id = 2")
        written = wait_until(lambda: found if len(found := records()) == 6 else None, what="all changes")
    finally:
        stop.set()
        worker.join(60)
    keys = list(key.deserialize([name for name, _ in written if name is not None]))
    assert [name["id"] for name in keys] == [1, 2, 3_000_000_000, 1, 2, 2]
    assert written[4][0] == written[1][0], "the key of a row stays the same"
    *changed, deletion = value.deserialize([change for _, change in written if change is not None])
    assert [change.after for change in changed] == [
        {
            "id": 1,
            "a": "A",
            "n": "1.10",
            "d": None,
            "m": "ok",
            "z": "2026-11-30T01:00:00.000000Z",
            "p": "(1.0,2.0)",
        },
        {"id": 2, "a": "A2", "n": "2.20", "d": "infinity", "m": "ok", "z": "infinity", "p": None},
        {"id": 3_000_000_000, "n": "1.2345", "d": "2020-01-01", "m": None, "z": None, "p": None, "c": "C"},
        {
            "id": 1,
            "n": "1.1000",
            "d": None,
            "m": "new",
            "z": "2026-11-30T01:00:00.000000Z",
            "p": "(1.0,2.0)",
            "cc": "C",
        },
    ]
    assert (deletion.op, deletion.before, written[5][1]) == ("d", {"id": 2}, None)
