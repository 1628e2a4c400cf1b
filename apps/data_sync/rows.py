"""The rows of the shop's tables, as far as the app reads them, and their keys."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the types of fields at run time
from decimal import Decimal  # noqa: TC003 - as above

import msgspec


class CustomerKey(msgspec.Struct, frozen=True):
    """The primary key of ``customers``."""

    id: int


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``customers``. The shop may add the column ``tier`` later: until then it is ``None``."""

    id: int
    name: str
    email: str | None = None
    phone: str | None = None
    notes: str | None = None
    tier: str | None = None
    updated_at: datetime


class OrderKey(msgspec.Struct, frozen=True):
    """The primary key of ``orders``."""

    id: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``orders``; without a customer if that was deleted."""

    id: int
    customer_id: int | None = None
    status: str
    placed_at: datetime


class OrderLineKey(msgspec.Struct, frozen=True):
    """The primary key of ``order_lines``."""

    order_id: int
    line: int


class OrderLine(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``order_lines``."""

    order_id: int
    line: int
    product: str
    quantity: int
    price: Decimal
