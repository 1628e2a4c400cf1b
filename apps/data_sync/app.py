"""The app: ``streams run apps.data_sync.app:app`` keeps a warehouse equal to a shop's database.

``SHOP_URL`` and ``WAREHOUSE_URL`` are connection strings of Postgres databases, with the tables in
``shop.sql`` and ``warehouse.sql``; ``ORDERS_FILE`` is an SQLite file for the order view, which is created.
The topics of changes are Avro, with a schema for each version of each table: in the folder ``SCHEMAS``, which
all workers share, or in a registry (``STREAMS_SCHEMA_REGISTRY_URL``).
``DATA_SYNC_PREFIX`` precedes the names of the app and of all topics.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from apps.data_sync.cleaning import clean_customer
from apps.data_sync.order_view import (
    OrderView,
    add_lines,
    as_document,
    as_lines,
    as_view,
    customer_of,
    order_of,
    remove_lines,
    with_customer,
    with_lines,
)
from apps.data_sync.rows import Customer, CustomerKey, Order, OrderKey, OrderLine, OrderLineKey
from apps.data_sync.versions import newest, row_of, version_serde, versions
from streams import App, Json
from streams.connectors.change_avro import ChangeAvro
from streams.connectors.debezium import Debezium
from streams.connectors.postgres import PostgresSink
from streams.connectors.sqlite import SqliteSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams import Table

K = TypeVar("K")
T = TypeVar("T")

PREFIX = os.environ.get("DATA_SYNC_PREFIX", "")
SHOP_URL = os.environ.get("SHOP_URL", "postgresql://localhost/shop")
WAREHOUSE_URL = os.environ.get("WAREHOUSE_URL", "postgresql://localhost/warehouse")
ORDERS_FILE = os.environ.get("ORDERS_FILE", "orders.db")
SCHEMAS = os.environ.get("SCHEMAS", "schemas")

SHOP = f"{PREFIX}shop"
CUSTOMERS = f"{SHOP}.public.customers"
ORDERS = f"{SHOP}.public.orders"
ORDER_LINES = f"{SHOP}.public.order_lines"
ORDER_DOCUMENTS = f"{PREFIX}order-documents"
PARTITIONS = 4

app = App(f"{PREFIX}data-sync", create_topics=True)


app.source(
    Debezium.postgres(SHOP_URL, ["public.customers", "public.orders", "public.order_lines"]), store="shop"
).to_change_topics(SHOP, partitions=PARTITIONS, value=ChangeAvro(schemas=SCHEMAS))


def table_of(
    topic: str, store: str, key: type[K], row: type[T], prepare: Callable[[T], T] | None = None
) -> Table[K, T]:
    """The rows of a captured table, from the topic of its changes, each as ``prepare`` returns it."""
    changes = app.stream(topic, key=Json(key), value=ChangeAvro(row, schemas=SCHEMAS), tombstones=True)
    rows = changes.flat_map(versions(prepare)).group_by_key()
    return rows.reduce(store, newest, value=version_serde(row)).map(row_of)


customers = table_of(CUSTOMERS, "customers", CustomerKey, Customer, clean_customer)
orders = table_of(ORDERS, "orders", OrderKey, Order)
order_lines = table_of(ORDER_LINES, "order-lines", OrderLineKey, OrderLine)

customers.sink(PostgresSink(WAREHOUSE_URL, "customers"), value=Json(Customer))

lines_of_orders = (
    order_lines.map(as_lines)
    .group_by(order_of, key=Json(OrderKey))
    .reduce("lines-of-orders", add_lines, remove_lines)
)
complete_orders = orders.join_foreign_key(
    customers,
    customer_of,
    with_customer,
    left=True,
    store="orders-with-customers",
    value=Json(Order),
    other_value=Json(Customer),
).left_join(lines_of_orders, with_lines)

order_view = complete_orders.map(as_view)
order_view.sink(PostgresSink(WAREHOUSE_URL, "order_view"))
order_view.sink(
    SqliteSink(ORDERS_FILE, table="order_view", key="id", row_type=OrderView, create=True),
    store="order-view-file",
)
complete_orders.map(as_document).to(ORDER_DOCUMENTS)
