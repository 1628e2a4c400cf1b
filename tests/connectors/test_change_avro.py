"""Changes of tables as Avro, with the schema of each row's own version of its table."""

from __future__ import annotations

import datetime as dt
import sqlite3
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest
from hypothesis import given, strategies as st

from streams import App, Json, Text, key_value_store
from streams.connectors.change import Change, ChangeSource, Tombstone, TransactionBlock
from streams.connectors.change_avro import ChangeAvro, ChangeKeyAvro
from streams.connectors.change_json import ChangeJson
from streams.connectors.debezium import Debezium
from streams.connectors.debezium.control import Control
from streams.connectors.debezium.values import Column as CapturedColumn, Shape
from streams.connectors.postgres import PostgresSink
from streams.connectors.sqlite import SqliteSink
from streams.connectors.table_row import Column, TableColumns, table_row
from streams.errors import SchemaRefused, TopologyError
from streams.records import Record
from streams.schema_registry import ConfluentRegistry
from streams.serde.dynamic_avro import DynamicAvro, FolderSchemas
from streams.serde.subjects import Subjects
from streams.testing import TopologyDriver
from tests.support.sink_rows import ORDERS, TOPIC_ID, context, sink_rows
from tests.support.table_rows import EVERY, ID, SOURCE, TOPIC, created, every_row, row, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Order(msgspec.Struct):
    id: int
    price: Decimal | None
    day: dt.date | None
    at: dt.datetime | None
    raw: bytes | None
    code: uuid.UUID | None
    names: list[str | None] | None


FIELDS = table(
    ID,
    Column("price", "decimal", precision=10, scale=2),
    Column("day", "date"),
    Column("at", "timestamp"),
    Column("raw", "bytes"),
    Column("code", "uuid"),
    Column("names", "text", array=True),
)
CODE = "6f6d2a10-0f3c-4d7e-8a4e-9d6c5d1c2b3a"
VALUES: dict[str, Any] = {
    "id": 1,
    "price": "1.10",
    "day": "2026-11-30",
    "at": "2026-11-30T01:02:03.5",
    "raw": "\\x00ff",
    "code": CODE,
    "names": ["a", None, "b"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemas")


@pytest.fixture
def client(registry):
    client = ConfluentRegistry(registry.url, {"timeout": 60})
    yield client
    client.close()


def written(folder: Path, *changes: Change[Any]) -> list[bytes]:
    return list(ChangeAvro(schemas=folder).for_topic(TOPIC).serialize(changes))


def read(folder: Path, payloads: Sequence[bytes]) -> list[Change[dict[str, Any]]]:
    return list(ChangeAvro(schemas=folder).deserialize(payloads))


@given(every_row, st.sampled_from(["c", "r", "u"]), st.booleans())
def test_a_row_that_is_read_equals_the_one_that_was_written(folder, after, op, complete):
    before = None if op != "u" else after if complete else row(EVERY, id=after["id"])
    block = TransactionBlock(id="9:1", total_order=1, data_collection_order=1)
    change = Change(op=op, before=before, after=after, source=SOURCE, transaction=block, ts_ms=5)
    assert read(folder, written(folder, change)) == [change]


def test_a_schema_in_the_folder_can_be_read_by_other_users(tmp_path):
    written(tmp_path, created(row(FIELDS, **VALUES)))
    (path,) = tmp_path.iterdir()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


@given(every_row)
def test_stores_and_internal_topics_keep_changes_without_a_schema(after):
    serde = ChangeAvro()
    change = created(after)
    assert list(serde.deserialize(list(serde.serialize([change])))) == [change]


def test_ordinary_values_have_avros_own_types_and_others_stay_text(folder):
    ordinary = created(row(FIELDS, **VALUES))
    odd = created(row(FIELDS, **VALUES | {"price": "NaN", "day": "infinity", "at": "0044-03-15T12:00:00 BC"}))
    first, second = DynamicAvro(FolderSchemas(folder)).deserialize(written(folder, ordinary, odd))
    assert first["after"] == {
        "id": 1,
        "price": Decimal("1.10"),
        "day": dt.date(2026, 11, 30),
        "at": dt.datetime(2026, 11, 30, 1, 2, 3, 500_000),  # noqa: DTZ001 - a timestamp without a zone
        "raw": b"\x00\xff",
        "code": uuid.UUID(CODE),
        "names": ["a", None, "b"],
    }
    kept = {name: second["after"][name] for name in ("price", "day", "at")}
    assert kept == {"price": "NaN", "day": "infinity", "at": "0044-03-15T12:00:00 BC"}


def test_rows_can_be_read_as_a_type(folder):
    whole = row(FIELDS, **VALUES)
    payloads = written(
        folder,
        created(whole),
        Change(op="d", before=whole, source=SOURCE),
        Change(op="d", before=row(FIELDS, id=1), source=SOURCE),
    )
    order = Order(
        1,
        Decimal("1.10"),
        dt.date(2026, 11, 30),
        dt.datetime(2026, 11, 30, 1, 2, 3, 500_000),  # noqa: DTZ001 - a timestamp without a zone
        b"\x00\xff",
        uuid.UUID(CODE),
        ["a", None, "b"],
    )
    changes = list(ChangeAvro(Order, schemas=folder).deserialize(payloads))
    assert [change.after for change in changes] == [order, None, None]
    assert [change.before for change in changes] == [None, order, None], "not all its fields were sent"


def test_each_row_has_the_schema_of_its_version_of_the_table(folder):
    """A column was dropped, one was added with a default, one renamed, and types grew, all in one batch."""
    versions = [
        table(ID, Column("a", "text"), Column("b", "text")),
        table(ID, Column("b", "text"), Column("c", "text")),
        table(ID, Column("bb", "text"), Column("c", "text")),
        table(ID, Column("bb", "text"), Column("c", "decimal", precision=10, scale=2)),
        table(ID, Column("bb", "text"), Column("c", "decimal", precision=12, scale=4)),
    ]
    rows: list[dict[str, Any]] = [
        {"id": 1, "a": "A", "b": "B"},
        {"id": 2, "b": "b2", "c": None},
        {"id": 1, "bb": "b3", "c": "C"},
        {"id": 3, "bb": "b3", "c": "1.10"},
        {"id": 4, "bb": "b3", "c": "1.2345"},
    ]
    changes = [created(table_row(values, of)) for values, of in zip(rows, versions, strict=True)]
    payloads = written(folder, *changes, changes[0])
    assert [change.after for change in read(folder, payloads)] == [*rows, rows[0]]
    assert len({payload[:5] for payload in payloads}) == 5


def test_a_tombstone_is_null_and_truncate_has_the_schema_of_the_table(folder):
    truncate = Change[Any](op="t", source=SOURCE)
    tombstone = Tombstone(op="d", source=SOURCE)
    payloads: list[Any] = list(written(folder, created(row(FIELDS, **VALUES)), tombstone, truncate))
    assert payloads[1] is None
    assert read(folder, payloads[2:]) == [truncate]
    assert payloads[0][:5] == payloads[2][:5]


def test_names_of_any_kind_are_kept_and_those_that_are_equal_refused(folder):
    names = ["select", "a-b", "a_b", "1st", "Übung", 'x"y']
    odd = TableColumns(
        ("shop", "public", "Order Items"), tuple(Column(n, "text") for n in names), ("select",)
    )
    after = table_row({name: name for name in names}, odd)
    assert [change.after for change in read(folder, written(folder, created(after)))] == [after]
    twice = table(ID, Column("a-b", "text"), Column("a-b", "text"))
    with pytest.raises(SchemaRefused, match=r"shop\.public\.orders: columns 'a-b' and 'a-b'"):
        written(folder, created(row(twice, id=1)))


def test_keys_keep_their_bytes_when_the_table_changes(folder):
    serde = ChangeKeyAvro(schemas=folder).for_topic(TOPIC)
    old = table(ID, Column("v", "text"))
    new = table(Column("id", "long"), Column("w", "text"))
    first, second, other = serde.serialize([row(old, id=5), row(new, id=5), row(new, id=3_000_000_000)])
    assert first == second
    assert list(ChangeKeyAvro(schemas=folder).deserialize([first, other])) == [
        {"id": 5},
        {"id": 3_000_000_000},
    ]


def test_what_is_no_row_of_a_source_stops_the_app(folder):
    with pytest.raises(TopologyError, match="directly downstream of the source"):
        written(folder, Change(op="c", after={"id": 1}, source=SOURCE))
    app = App("plain")
    with pytest.raises(TopologyError, match=r"downstream of app\.source"):
        app.stream("in", key=Text(), value=ChangeJson()).to_change_topics(
            "out", value=ChangeAvro(schemas=folder)
        )
    with pytest.raises(TopologyError, match="schema_registry_url"):
        list(ChangeAvro().for_topic(TOPIC).serialize([created(row(FIELDS, **VALUES))]))


def test_a_row_that_lacks_a_column_is_refused(folder):
    with pytest.raises(ValueError, match="needs the columns"):
        written(folder, created(row(FIELDS, id=1)))


def test_payloads_that_cannot_be_read_fail_alone(folder):
    serde = ChangeAvro(schemas=folder)
    with pytest.raises(LookupError, match="no schema with id 1 "):
        list(serde.deserialize([b"\0\0\0\0\1\2"]))
    with pytest.raises(ValueError, match="wire format"):
        list(serde.deserialize([b'{"op":"c"}']))
    (key,) = ChangeKeyAvro(schemas=folder).for_topic(TOPIC).serialize([row(FIELDS, id=1)])
    with pytest.raises(ValueError, match="not that of a change"):
        list(serde.deserialize([key]))


def test_changes_in_debeziums_own_avro_are_read(folder):
    """Without what this project adds, with other fields in the source, and dates as numbers of days."""
    schema = {
        "type": "record",
        "name": "dbserver.public.orders.Envelope",
        "fields": [
            {
                "name": "before",
                "type": [
                    "null",
                    {
                        "type": "record",
                        "name": "Value",
                        "fields": [
                            {"name": "id", "type": "int"},
                            {"name": "day", "type": {"type": "int", "connect.name": "io.debezium.time.Date"}},
                        ],
                    },
                ],
            },
            {"name": "after", "type": ["null", "Value"]},
            {
                "name": "source",
                "type": {
                    "type": "record",
                    "name": "Source",
                    "fields": [{"name": "db", "type": "string"}, {"name": "schemata", "type": "string"}],
                },
            },
            {"name": "op", "type": "string"},
        ],
    }
    event = {"before": None, "after": {"id": 1, "day": 3}, "source": {"db": "d", "schemata": "x"}, "op": "c"}
    payloads = list(DynamicAvro(FolderSchemas(folder)).serialize("t", "value", schema, [event]))
    assert read(folder, payloads) == [Change(op="c", after={"id": 1, "day": 3}, source=ChangeSource(db="d"))]


@pytest.mark.parametrize("level", [None, "BACKWARD"], ids=["registry", "setting"])
def test_a_changed_table_is_a_new_version_in_the_registry_unless_it_is_refused(client, level):
    topic = f"orders-{uuid.uuid4().hex[:8]}"
    value = ChangeAvro().connected(Subjects(client, level=level), "value").for_topic(topic)
    first = table(ID, Column("n", "decimal", precision=10, scale=2), Column("k", "int"))
    second = table(
        ID, Column("n", "decimal", precision=12, scale=4), Column("k", "long"), Column("m", "text")
    )
    changes = [
        created(row(first, id=1, n="1.10", k=1)),
        created(row(second, id=2, n="1.2345", k=2**40, m="x")),
    ]
    payloads = list(value.serialize(changes))
    assert client.versions(f"{topic}-value") == [1, 2]
    assert list(ChangeAvro().connected(Subjects(client), "value").deserialize(payloads)) == changes
    refused = table(ID, Column("n", "boolean"), Column("k", "long"), Column("m", "text"))
    with pytest.raises(SchemaRefused, match=rf"(?s){topic}.*field 'after\.n': was null or bytes"):
        list(value.serialize([created(row(refused, id=3, n=True, k=2, m="x"))]))
    assert client.versions(f"{topic}-value") == [1, 2]


@pytest.mark.parametrize("typed", [False, True])
def test_changes_that_are_read_can_be_written_to_postgres_and_sqlite(
    folder, tmp_path, module_database, typed
):
    payloads = written(folder, created(row(FIELDS, **VALUES | {"names": ["a", "b"]})))
    serde: Any = ChangeAvro(Order, schemas=folder) if typed else ChangeAvro(schemas=folder)
    changes = list(serde.deserialize(payloads))
    with psycopg.connect(module_database) as connection:
        connection.execute("drop table if exists orders, streams_positions")
        connection.execute(
            "create table orders(id int primary key, price numeric(10,2), day date, at timestamp, raw bytea,"
            " code uuid, names text[])"
        )
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "create table orders(id integer primary key, price text, day text, at text, raw blob, code text,"
            " names text)"
        )
    database.close()
    for sink in (PostgresSink(module_database, "orders"), SqliteSink(path, table="orders")):
        sink.check(context())
        writer = sink.open(context())
        start = writer.claim({ORDERS: TOPIC_ID})[ORDERS]
        assert not writer.write([sink_rows(changes, keys=[1], start=start)])
        writer.commit()
        writer.close()
    with psycopg.connect(module_database) as connection:
        found = connection.execute("select * from orders").fetchall()
    at = dt.datetime(2026, 11, 30, 1, 2, 3, 500_000)  # noqa: DTZ001 - a timestamp without a zone
    assert found == [
        (1, Decimal("1.10"), dt.date(2026, 11, 30), at, b"\x00\xff", uuid.UUID(CODE), ["a", "b"])
    ]
    database = sqlite3.connect(path)
    ((_, price, day, _, raw, code, names),) = database.execute("select * from orders").fetchall()
    database.close()
    assert (price, day, raw, code, names) == ("1.10", "2026-11-30", b"\x00\xff", CODE, '["a","b"]')


def test_a_stream_of_changes_keeps_them_in_its_internal_topics(folder):
    app = App("counting")
    changes = app.stream("in", key=Json(), value=ChangeAvro(schemas=folder))
    changes.key_by(lambda change: change.op).repartition("by-op").map(lambda c: c.after).to(
        "out", value=Json()
    )
    (payload,) = written(folder, created(row(FIELDS, **VALUES)))
    with TopologyDriver(app) as driver:
        driver.send_all("in", [Record({"id": 1}, next(iter(read(folder, [payload]))), 0)])
        assert [record.value["price"] for record in driver.read("out", value=Json())] == ["1.10"]


def test_rows_before_and_after_ddl_in_one_batch_have_their_own_columns(folder):
    """Through the processor of a source, which is told a table's columns between the rows."""
    source = Debezium.postgres("postgresql://user@db/shop", ["orders"])
    key, value = ChangeKeyAvro(schemas=folder), ChangeAvro(schemas=folder)
    app = App("captured")
    stores = [key_value_store(name, key=k, value=v) for name, (k, v) in source.stores.items()]
    records = app.stream("in", key=source.key, value=source.value)
    records.process(source.process, stores=stores).to("out", key=key, value=value)
    at = ChangeSource(db="shop", schema="public", table="orders")
    text = CapturedColumn("TEXT", 0, 0, "STRING")

    def columns(**named: CapturedColumn) -> Record[Any, Any]:
        shape = Shape(named, full_identity=False)
        return Record(None, Control(control="table", snapshot=1, source=at, shape=shape), 0)

    def change(op: Any, number: int, **rows: Any) -> Record[Any, Any]:
        return Record({"id": number}, Change(op=op, source=at, **rows), 0)

    batch = [
        Record(None, Control(control="opened", snapshot=1, source=at), 0),
        columns(
            id=CapturedColumn("INT4", 10, 0, "INT32"), a=text, n=CapturedColumn("NUMERIC", 10, 2, "STRING")
        ),
        change("r", 1, after={"id": 1, "a": "A", "n": "1.10"}),
        columns(
            id=CapturedColumn("INT8", 19, 0, "INT64"), n=CapturedColumn("NUMERIC", 12, 4, "STRING"), c=text
        ),
        change("u", 1, after={"id": 1, "n": "1.1000", "c": None}),
        change("d", 1, before={"id": 1, "n": None, "c": None}),
    ]
    with TopologyDriver(app) as driver:
        driver.send_all("in", batch, partition=0)
        read = driver.read("out", key=key, value=value)
    assert [record.key for record in read] == [{"id": 1}] * 3
    assert [record.value.row for record in read] == [
        {"id": 1, "a": "A", "n": "1.10"},
        {"id": 1, "n": "1.1000", "c": None},
        None,
    ]
    assert read[2].value.before == {"id": 1}, "what the server did not send is no null"
