"""The data sync app on the topology driver: changes of the shop in, rows and documents out."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from apps.data_sync.app import CUSTOMERS, ORDER_DOCUMENTS, ORDER_LINES, SCHEMAS, app
from apps.data_sync.cleaning import clean_email, mask_phone
from apps.data_sync.order_view import OrderDocument, OrderView
from apps.data_sync.rows import Customer
from streams.connectors.change_avro import ChangeAvro
from streams.testing import TopologyDriver
from streams.testing.tables import CapturedTable

if TYPE_CHECKING:
    from collections.abc import Iterator

TIME = "2026-01-01T08:00:00Z"
AT_EIGHT = datetime(2026, 1, 1, 8, tzinfo=UTC)
TABLES = {
    "customers": {
        "id": "bigint",
        "name": "text",
        "email": "text",
        "phone": "text",
        "notes": "text",
        "updated_at": "timestamptz",
    },
    "orders": {"id": "bigint", "customer_id": "bigint", "status": "text", "placed_at": "timestamptz"},
    "order_lines": {
        "order_id": "bigint",
        "line": "integer",
        "product": "text",
        "quantity": "integer",
        "price": "numeric(10, 2)",
    },
}
KEYS = {"customers": ["id"], "orders": ["id"], "order_lines": ["order_id", "line"]}


class Shop:
    """The app, and the tables of ``shop.sql``, whose changes are captured."""

    def __init__(self) -> None:
        self.driver = TopologyDriver(app, partitions=2)
        self.tables = {
            name: CapturedTable(self.driver, "shop", name, columns, key=KEYS[name], database="shop")
            for name, columns in TABLES.items()
        }

    def alter(self, table: str, **columns: str) -> None:
        """Add columns, or give them other types."""
        self.tables[table].alter(TABLES[table] | columns)

    def change(self, table: str, key: dict[str, Any], row: dict[str, Any] | None, **options: Any) -> None:
        """Write a row, or delete it; at an earlier position for a change that arrives late."""
        if row is None:
            self.tables[table].delete(key, **options)
        else:
            self.tables[table].update(key | row, **options)

    def customer(self, number: int, name: str | None, **fields: Any) -> None:
        options = {"position": fields.pop("position")} if "position" in fields else {}
        row = None if name is None else {"name": name, "updated_at": TIME, **fields}
        self.change("customers", {"id": number}, row, **options)

    def order(self, number: int, customer: int | None, status: str = "placed") -> None:
        self.change("orders", {"id": number}, {"customer_id": customer, "status": status, "placed_at": TIME})

    def line(self, order: int, line: int, quantity: int | None, price: str = "9.90") -> None:
        row = None if quantity is None else {"product": "lamp", "quantity": quantity, "price": price}
        self.change("order_lines", {"order_id": order, "line": line}, row)

    def written(self, sink: str) -> dict[int, Any]:
        """The last row of each key since the last call; ``None`` for one that was deleted."""
        return {record.key.id: record.value for record in self.driver.rows(sink)}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working folder, in which the app of this process keeps schemas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("data-sync"))
        yield


@pytest.fixture
def shop() -> Iterator[Shop]:
    opened = Shop()
    with opened.driver:
        yield opened


def test_customers_are_cleaned_and_deleted(shop):
    shop.customer(1, "Ann", email=" Ann@Example.ORG ", phone="+49 30 123456", notes="x" * 10_000)
    assert shop.written("customers") == {
        1: Customer(
            id=1,
            name="Ann",
            email="ann@example.org",
            phone="*******456",
            notes="x" * 10_000,
            updated_at=AT_EIGHT,
        )
    }
    shop.customer(1, None)
    assert shop.written("customers") == {1: None}


def test_a_column_that_the_shop_adds_arrives(shop):
    shop.customer(1, "Ann")
    shop.alter("customers", tier="text", unknown="jsonb")
    shop.customer(1, "Ann", tier="gold", unknown="{}")
    shop.customer(2, "Bob")
    found = shop.written("customers")
    assert (found[1].tier, found[2].tier) == ("gold", None)


def test_the_topics_are_avro_with_the_columns_of_each_moment(shop):
    shop.customer(1, "Ann")
    shop.line(7, 1, 2, "9.9")
    shop.alter("order_lines", price="numeric(14, 4)")
    shop.line(7, 1, 2, "9.9")
    shop.line(7, 1, None)
    rows: Any = ChangeAvro(schemas=SCHEMAS)
    (customer,) = shop.driver.read(CUSTOMERS, value=rows)
    assert customer.key == {"id": 1}
    assert customer.value.after["updated_at"] == "2026-01-01T08:00:00.000000Z"
    *lines, deleted, tombstone = (record.value for record in shop.driver.read(ORDER_LINES, value=rows))
    assert [line.after["price"] for line in lines] == ["9.90", "9.9000"]
    assert (deleted.op, deleted.before, tombstone) == ("d", {"order_id": 7, "line": 1}, None)


def test_a_change_that_arrives_after_a_later_one_has_no_effect(shop):
    shop.customer(1, "Ann", position=500)
    shop.customer(1, "Anne", position=400)
    assert shop.written("customers")[1].name == "Ann"
    shop.customer(1, None, position=700)
    shop.customer(1, "Anna", position=600)
    assert set(shop.written("customers").values()) == {None}
    shop.customer(1, "Anja", position=800)
    assert shop.written("customers")[1].name == "Anja"


def test_a_row_that_a_new_snapshot_does_not_have_is_deleted(shop):
    shop.customer(1, "Ann", position=500)
    shop.customer(1, None, position=None)
    assert shop.written("customers") == {1: None}
    shop.customer(1, "Anne", position=400)
    assert not any(shop.written("customers").values())
    shop.customer(1, "Anja", position=600)
    assert shop.written("customers")[1].name == "Anja"


def test_an_order_has_its_customer_and_the_sum_of_its_lines(shop):
    shop.order(7, 1)
    shop.line(7, 1, 2, "9.90")
    shop.alter("order_lines", price="numeric(14, 4)")
    shop.alter("customers", tier="text")
    shop.line(7, 2, 1, "0.0005")
    shop.customer(1, "Ann", email="ANN@example.org", tier="gold")
    view = OrderView(
        id=7,
        status="placed",
        placed_at=AT_EIGHT,
        customer_id=1,
        customer_name="Ann",
        customer_email="ann@example.org",
        customer_tier="gold",
        lines=2,
        quantity=3,
        total=Decimal("19.8005"),
    )
    assert shop.written("order_view") == shop.written("order-view-file") == {7: view}
    document: OrderDocument = shop.driver.values(ORDER_DOCUMENTS)[-1]
    assert (document.id, document.customer, document.total) == (7, "Ann", Decimal("19.8005"))
    assert [(line.product, line.quantity) for line in document.lines] == [("lamp", 2), ("lamp", 1)]


def test_an_order_follows_its_lines_and_its_customer(shop):
    shop.customer(1, "Ann")
    shop.order(7, 1)
    shop.line(7, 1, 2)
    shop.line(7, 1, 5)
    shop.line(7, 2, 1)
    shop.line(7, 2, None)
    assert shop.written("order_view")[7].quantity == 5
    shop.line(7, 1, None)
    assert shop.written("order_view")[7].total == 0
    # The key of a line changes: a deletion and a new row.
    shop.line(7, 3, 4)
    shop.customer(1, None)
    view = shop.written("order_view")[7]
    assert (view.customer_id, view.customer_name, view.lines, view.quantity) == (1, None, 1, 4)
    shop.order(7, None, "sent")
    view = shop.written("order_view")[7]
    assert (view.customer_id, view.status) == (None, "sent")
    shop.change("orders", {"id": 7}, None)
    assert shop.written("order_view") == {7: None}
    assert shop.driver.values(ORDER_DOCUMENTS)[-1] is None


@pytest.mark.parametrize(
    ("email", "cleaned"),
    [(None, None), ("", None), ("n/a", None), ("@", None), ("a@b@c", None), (" A.b@C.org", "a.b@c.org")],
)
def test_what_is_no_address_is_left_out(email, cleaned):
    assert clean_email(email) == cleaned


@pytest.mark.parametrize(
    ("phone", "masked"), [(None, None), ("", ""), ("12", "12"), ("(030) 1234", "****234")]
)
def test_the_last_digits_of_a_phone_number_can_be_read(phone, masked):
    assert mask_phone(phone) == masked
