"""An order with its customer and its lines: as one row of the warehouse, and as a document to search for."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the types of fields at run time
from decimal import Decimal

import msgspec

from apps.data_sync.rows import Customer, CustomerKey, Order, OrderKey, OrderLine


class Lines(msgspec.Struct, frozen=True):
    """The lines of an order, in the order of their numbers."""

    lines: tuple[OrderLine, ...]


class CustomerOrder(msgspec.Struct, frozen=True):
    """An order, and who placed it, if that is known."""

    order: Order
    customer: Customer | None


class CompleteOrder(msgspec.Struct, frozen=True):
    """An order with everything that belongs to it."""

    order: Order
    customer: Customer | None
    lines: tuple[OrderLine, ...]

    @property
    def total(self) -> Decimal:
        """The sum of all lines."""
        return sum((line.quantity * line.price for line in self.lines), Decimal(0))


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``order_view``."""

    id: int
    status: str
    placed_at: datetime
    customer_id: int | None
    customer_name: str | None
    customer_email: str | None
    customer_tier: str | None
    lines: int
    quantity: int
    total: Decimal


class DocumentLine(msgspec.Struct, frozen=True):
    """A line of a document."""

    product: str
    quantity: int
    price: Decimal


class OrderDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An order as a search engine indexes it."""

    id: int
    status: str
    placed_at: datetime
    customer: str | None
    email: str | None
    lines: list[DocumentLine]
    total: Decimal


def customer_of(order: Order) -> CustomerKey | None:
    """The foreign key of an order."""
    return None if order.customer_id is None else CustomerKey(order.customer_id)


def with_customer(order: Order, customer: Customer | None) -> CustomerOrder:
    """The order, joined with its customer, of whom only the warehouse's columns are kept."""
    return CustomerOrder(
        order, None if customer is None else msgspec.structs.replace(customer, notes=None, phone=None)
    )


def with_lines(order: CustomerOrder, lines: Lines | None) -> CompleteOrder:
    """The order, joined with its lines."""
    return CompleteOrder(order.order, order.customer, () if lines is None else lines.lines)


def order_of(lines: Lines) -> OrderKey:
    """The order that lines belong to."""
    return OrderKey(lines.lines[0].order_id)


def as_lines(line: OrderLine) -> Lines:
    """A single line, to be added to the others of its order."""
    return Lines((line,))


def add_lines(lines: Lines, more: Lines) -> Lines:
    """All of the lines; a line of ``more`` replaces the one with its number."""
    return Lines(tuple(sorted((*remove_numbers(lines, more), *more.lines), key=lambda line: line.line)))


def remove_lines(lines: Lines, gone: Lines) -> Lines | None:
    """The lines without others; ``None`` when the last one is gone."""
    left = remove_numbers(lines, gone)
    return Lines(left) if left else None


def remove_numbers(lines: Lines, gone: Lines) -> tuple[OrderLine, ...]:
    """The lines that have not the number of one of the others."""
    numbers = {line.line for line in gone.lines}
    return tuple(line for line in lines.lines if line.line not in numbers)


def as_view(complete: CompleteOrder) -> OrderView:
    """The row for the warehouse."""
    order, customer = complete.order, complete.customer
    return OrderView(
        id=order.id,
        status=order.status,
        placed_at=order.placed_at,
        customer_id=order.customer_id,
        customer_name=customer.name if customer else None,
        customer_email=customer.email if customer else None,
        customer_tier=customer.tier if customer else None,
        lines=len(complete.lines),
        quantity=sum(line.quantity for line in complete.lines),
        total=complete.total,
    )


def as_document(complete: CompleteOrder) -> OrderDocument:
    """The document for the search engine."""
    order, customer = complete.order, complete.customer
    return OrderDocument(
        id=order.id,
        status=order.status,
        placed_at=order.placed_at,
        customer=customer.name if customer else None,
        email=customer.email if customer else None,
        lines=[DocumentLine(line.product, line.quantity, line.price) for line in complete.lines],
        total=complete.total,
    )
