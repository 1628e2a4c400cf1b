"""Changes that a test sends with the columns of their tables."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from streams import App
from streams.connectors.change_avro import ChangeAvro, ChangeKeyAvro
from streams.connectors.debezium import Debezium
from streams.errors import TopologyError
from streams.serde.compatibility import incompatibilities
from streams.testing import TopologyDriver
from streams.testing.tables import CapturedTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOPIC = "shop.public.orders"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[TopologyDriver]:
    app = App("captured")
    app.source(
        Debezium.postgres("postgresql://shop@db1/shop", ["public.orders"]), store="shop"
    ).to_change_topics("shop", key=ChangeKeyAvro(schemas=tmp_path), value=ChangeAvro(schemas=tmp_path))
    with TopologyDriver(app) as opened:
        yield opened


@pytest.fixture
def read(driver: TopologyDriver, tmp_path: Path) -> Any:
    key, value = ChangeKeyAvro(schemas=tmp_path), ChangeAvro(schemas=tmp_path)
    return lambda: [(record.key, record.value) for record in driver.read(TOPIC, key=key, value=value)]


COLUMNS = {
    "id": "bigint",
    "paid": "boolean",
    "ratio": "double precision",
    "price": "numeric(10, 2)",
    "any": "numeric",
    "raw": "bytea",
    "code": "uuid",
    "day": "date",
    "hour": "time",
    "at": "timestamp(3)",
    "seen": "timestamp(6) with time zone",
    "names": "varchar(20)[]",
    "prices": "numeric(4,1)[]",
    "days": "date[]",
    "state": "order_state",
    "flags": "bit(3)",
}


def test_a_row_of_every_type_is_written_as_avro_and_read_again(driver, read):
    orders = CapturedTable(driver, "shop", "public.orders", COLUMNS, key=["id"])
    code = uuid.uuid4()
    row = {
        "id": 2**40,
        "paid": True,
        "ratio": 0.5,
        "price": Decimal("9.9"),
        "any": Decimal("1E+3"),
        "raw": b"\x00\xff",
        "code": code,
        "day": dt.date(2026, 11, 30),
        "hour": dt.time(1, 2, 3, 500_000),
        "at": dt.datetime(2026, 11, 30, 1, 2, 3),  # noqa: DTZ001 - a timestamp without a zone
        "seen": dt.datetime(2026, 11, 30, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        "names": ["a", None],
        "prices": ["1", Decimal(2)],
        "days": [dt.date(2026, 11, 30), "infinity"],
        "state": "open",
        "flags": "101",
    }
    orders.insert(row)
    ((key, change),) = read()
    assert key == {"id": 2**40}
    assert change.op == "c"
    assert change.after == {
        **row,
        "price": "9.90",
        "any": "1000",
        "code": str(code),
        "day": "2026-11-30",
        "hour": "01:02:03.5",
        "at": "2026-11-30T01:02:03",
        "seen": "2026-11-30T00:02:03.000000Z",
        "prices": ["1.0", "2.0"],
        "days": ["2026-11-30", "infinity"],
    }


def test_columns_change_with_the_table_in_schemas_that_are_compatible(driver, read, tmp_path):
    orders = CapturedTable(
        driver, "shop", "orders", {"id": "int", "price": "numeric(10,2)", "old": "text"}, key=["id"]
    )
    orders.read({"id": 1, "price": "1.1"})
    orders.alter({"id": "bigint", "price": "numeric(14,4)", "new": "text"})
    orders.update({"id": 1, "price": "1.1", "new": "n"})
    orders.update({"id": 1, "price": "NaN"}, before={"id": 1, "price": "1.1", "new": "n"})
    orders.delete({"id": 1}, position=500)
    first, second, third, last, tombstone = (change for _, change in read())
    assert tombstone is None
    assert (first.op, first.after) == ("r", {"id": 1, "price": "1.10", "old": None})
    assert (second.op, second.after) == ("u", {"id": 1, "price": "1.1000", "new": "n"})
    assert third.after == {"id": 1, "price": "NaN", "new": None}
    assert (last.op, last.after, last.before) == ("d", None, {"id": 1})
    assert first.source.lsn < second.source.lsn < third.source.lsn
    assert last.source.lsn == 500
    written = [path.read_text() for path in tmp_path.glob("test.public.orders.Envelope.*.avsc")]
    old, new = sorted(written, key=lambda text: '"old"' not in text)
    assert not list(incompatibilities(json.loads(old), json.loads(new), "BACKWARD"))


def test_a_table_with_full_identity_has_complete_rows_before_a_change(driver, read):
    columns = {"id": "int", "name": "text"}
    orders = CapturedTable(driver, "shop", "orders", columns, key=["id"], full_identity=True)
    orders.update({"id": 1, "name": "a"}, before={"id": 1})
    orders.delete({"id": 1, "name": "a"})
    assert [change.before for _, change in read() if change] == [
        {"id": 1, "name": None},
        {"id": 1, "name": "a"},
    ]


def test_mistakes_are_refused(driver):
    with pytest.raises(ValueError, match=r"the key of public\.orders has no columns \['id'\]"):
        CapturedTable(driver, "shop", "orders", {"number": "int"}, key=["id"])
    orders = CapturedTable(driver, "shop", "orders", {"id": "int"}, key=["id"])
    with pytest.raises(ValueError, match=r"has no columns \['tier'\], but \['id'\]"):
        orders.insert({"id": 1, "tier": "gold"})
    with pytest.raises(ValueError, match="has no id, which is its key"):
        orders.delete({})
    with pytest.raises(TopologyError, match="shop"):
        CapturedTable(driver, "shops", "orders", {"id": "int"}, key=["id"]).insert({"id": 1})
