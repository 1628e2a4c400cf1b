"""Change events as JSON, with and without Kafka Connect's schema part, and tombstones in topics."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streams import App, Json
from streams.connectors.change import Change, ChangeSource, Tombstone, change_topic, with_tombstones
from streams.connectors.change_json import ChangeJson
from streams.testing import TopologyDriver

CREATED = (
    b'{"before":null,"after":{"id":1,"name":"a"},"source":{"version":"3.6.3.Final","connector":"postgresql",'
    b'"name":"s","ts_ms":5,"snapshot":null,"db":"d","sequence":"[null,\\"7\\"]","ts_us":5000,"schema":"public",'
    b'"table":"t","txId":9,"lsn":7,"xmin":null},"transaction":null,"op":"c","ts_ms":6,"ts_us":6000}'
)


class Customer(msgspec.Struct):
    id: int
    name: str


def test_an_event_without_a_schema_part_is_read():
    (change,) = ChangeJson().deserialize([CREATED])
    assert change.op == "c"
    assert change.row == {"id": 1, "name": "a"}
    assert (change.source.schema, change.source.table, change.source.lsn) == ("public", "t", 7)


def test_an_event_of_kafka_connect_with_a_schema_part_is_read():
    wrapped = b'{"schema":{"type":"struct","fields":[{"field":"payload"}]},"payload":%s}' % CREATED
    serde = ChangeJson()
    assert list(serde.deserialize([wrapped, CREATED])) == list(serde.deserialize([CREATED, CREATED]))


def test_rows_have_the_type_that_is_given():
    (change,) = ChangeJson(Customer).deserialize([CREATED])
    assert change.row == Customer(1, "a")


def test_a_row_of_another_type_is_refused():
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        list(ChangeJson(Customer).deserialize([CREATED.replace(b'"id":1', b'"id":"x"')]))


def test_what_is_written_is_read_again():
    serde = ChangeJson()
    changes = list(serde.deserialize([CREATED]))
    assert list(serde.deserialize(list(serde.serialize(changes)))) == changes


def deleted(table: str = "t", schema: str | None = "public") -> Change[Any]:
    return Change(op="d", before={"id": 1}, source=ChangeSource(schema=schema, table=table))


def test_a_tombstone_follows_a_deletion_only():
    (created,) = ChangeJson().deserialize([CREATED])
    assert with_tombstones(created) == [created]
    change = deleted()
    assert with_tombstones(change) == [change, Tombstone(op="d", source=change.source)]


def test_a_tombstone_is_written_as_null():
    payloads = list(ChangeJson().serialize([deleted(), Tombstone(op="d", source=ChangeSource())]))
    assert payloads[0].startswith(b'{"op":"d"')
    assert payloads[1] is None


def test_each_table_has_its_topic():
    topic = change_topic("sync")
    assert topic(deleted()) == "sync.public.t"
    assert topic(deleted("Order Items")) == "sync.public.Order_Items"
    assert topic(deleted("t", None)) == "sync.t"


def test_changes_reach_their_tables_topics_with_tombstones():
    app = App("tables")
    changes = app.stream("in", key=Json(), value=ChangeJson())
    changes.flat_map(with_tombstones).to(change_topic("sync"), key=Json(), value=ChangeJson())
    driver = TopologyDriver(app)
    driver.send_bytes("in", CREATED, key=b'{"id":1}')
    driver.send("in", deleted(), key={"id": 1})
    records = driver.read("sync.public.t")
    assert [record.key for record in records] == [b'{"id":1}'] * 3
    assert [record.value is None for record in records] == [False, False, True]
    driver.close()
