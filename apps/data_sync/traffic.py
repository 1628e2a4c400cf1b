"""Traffic for the shop: random transactions, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

FIRST_NAMES = ("Ann", "Björn", "Chloé", "Dmitri", "Elif", "Fatou", "Grace", "Hiro", "Inés", "Jörg")
LAST_NAMES = ("Abe", "Brontë", "Çelik", "Diaz", "Eze", "Fischer", "García", "Hopper", "Ito", "Žižek")
HOSTS = ("example.com", "Example.ORG", "mail.example.net")
PRODUCTS = ("chair", "desk", "lamp", "shelf", "sofa", "table", 'mirror 24"', "rug, blue", "it's a vase")
STATUSES = ("placed", "paid", "packed", "sent", "returned")
TIERS = ("bronze", "silver", "gold")
OPENED = datetime(2026, 1, 1, 8, tzinfo=UTC)
LARGE_NOTE = 6_000
"""Characters of a large note: more than Postgres keeps in the row itself."""


class Statement(NamedTuple):
    """One insert, update or delete, with its parameters."""

    sql: str
    parameters: tuple[Any, ...]


@dataclass(slots=True)
class Ids:
    """Ids of live rows: one is chosen, added or removed in constant time."""

    members: list[int] = field(default_factory=list[int])
    places: dict[int, int] = field(default_factory=dict[int, int])

    def __len__(self) -> int:
        return len(self.members)

    def add(self, member: int) -> None:
        self.places[member] = len(self.members)
        self.members.append(member)

    def remove(self, member: int) -> None:
        place, last = self.places.pop(member), self.members.pop()
        if last != member:
            self.members[place] = last
            self.places[last] = place


class Traffic:
    """What happens in the shop. It knows which rows there are, so that each statement concerns one.

    Once ``evolved``, customers have a tier, and prices four decimal places (see ``EVOLUTION``).
    """

    def __init__(self, seed: int = 1) -> None:
        self.evolved = False
        self._random = random.Random(seed)  # noqa: S311 - test data
        self._customers = Ids()
        self._orders = Ids()
        self._lines: dict[int, list[int]] = {}
        """The numbers of each order's lines."""
        self._last_id = 0
        self._now = OPENED
        self._kinds: tuple[Callable[[], Statement], ...] = (
            self._add_customer,
            self._change_address,
            self._write_note,
            self._rename_customer,
            self._delete_customer,
            self._move_customer,
            self._add_order,
            self._change_status,
            self._reassign_order,
            self._delete_order,
            self._move_order,
            self._add_line,
            self._change_quantity,
            self._change_price,
            self._delete_line,
            self._move_line,
        )
        self._weights = (9, 10, 4, 5, 2, 1, 15, 10, 3, 2, 1, 24, 7, 4, 2, 1)

    def transaction(self, most: int) -> list[Statement]:
        """The next transaction: often a few statements, sometimes hundreds, at most ``most``."""
        size = min(most, self._random.choices((1, 4, 20, 100, 500), (20, 30, 40, 9, 1))[0])
        kinds = self._random.choices(self._kinds, self._weights, k=size)
        self._now += timedelta(milliseconds=self._random.randrange(1, 2_000))
        return [kind() for kind in kinds]

    def _add_customer(self) -> Statement:
        number = self._next_id()
        self._customers.add(number)
        return Statement(
            "insert into customers (id, name, email, phone, notes, updated_at) "
            "values (%s, %s, %s, %s, %s, %s)",
            (number, self._name(), self._email(number), self._phone(), self._note(), self._now),
        )

    def _change_address(self) -> Statement:
        if not self._customers:
            return self._add_customer()
        number = self._customer()
        return Statement(
            "update customers set email = %s, phone = %s, updated_at = %s where id = %s",
            (self._email(number), self._phone(), self._now, number),
        )

    def _write_note(self) -> Statement:
        if not self._customers:
            return self._add_customer()
        return Statement(
            "update customers set notes = %s, updated_at = %s where id = %s",
            (self._note(), self._now, self._customer()),
        )

    def _rename_customer(self) -> Statement:
        if not self._customers:
            return self._add_customer()
        if self.evolved:
            return Statement(
                "update customers set name = %s, tier = %s, updated_at = %s where id = %s",
                (self._name(), self._random.choice(TIERS), self._now, self._customer()),
            )
        return Statement(
            "update customers set name = %s, updated_at = %s where id = %s",
            (self._name(), self._now, self._customer()),
        )

    def _delete_customer(self) -> Statement:
        if not self._customers:
            return self._add_customer()
        number = self._customer()
        self._customers.remove(number)
        return Statement("delete from customers where id = %s", (number,))

    def _move_customer(self) -> Statement:
        """Change a primary key, which the orders of the customer follow."""
        if not self._customers:
            return self._add_customer()
        number, moved = self._customer(), self._next_id()
        self._customers.remove(number)
        self._customers.add(moved)
        return Statement("update customers set id = %s where id = %s", (moved, number))

    def _add_order(self) -> Statement:
        number = self._next_id()
        self._orders.add(number)
        self._lines[number] = []
        customer = self._customer() if self._customers and self._random.random() < 0.95 else None
        return Statement(
            "insert into orders (id, customer_id, status, placed_at) values (%s, %s, %s, %s)",
            (number, customer, STATUSES[0], self._now),
        )

    def _change_status(self) -> Statement:
        if not self._orders:
            return self._add_order()
        return Statement(
            "update orders set status = %s where id = %s", (self._random.choice(STATUSES), self._order())
        )

    def _reassign_order(self) -> Statement:
        if not self._orders:
            return self._add_order()
        customer = self._customer() if self._customers and self._random.random() < 0.8 else None
        return Statement("update orders set customer_id = %s where id = %s", (customer, self._order()))

    def _delete_order(self) -> Statement:
        """Delete an order and, by its foreign key, its lines."""
        if not self._orders:
            return self._add_order()
        number = self._order()
        self._orders.remove(number)
        del self._lines[number]
        return Statement("delete from orders where id = %s", (number,))

    def _move_order(self) -> Statement:
        """Change a primary key, which is also part of the keys of the order's lines."""
        if not self._orders:
            return self._add_order()
        number, moved = self._order(), self._next_id()
        self._orders.remove(number)
        self._orders.add(moved)
        self._lines[moved] = self._lines.pop(number)
        return Statement("update orders set id = %s where id = %s", (moved, number))

    def _add_line(self) -> Statement:
        if not self._orders:
            return self._add_order()
        number = self._order()
        lines = self._lines[number]
        line = max(lines, default=0) + 1
        lines.append(line)
        return Statement(
            "insert into order_lines (order_id, line, product, quantity, price) values (%s, %s, %s, %s, %s)",
            (number, line, self._random.choice(PRODUCTS), self._random.randrange(1, 10), self._price()),
        )

    def _change_quantity(self) -> Statement:
        number, line = self._line()
        if line is None:
            return self._add_line()
        return Statement(
            "update order_lines set quantity = %s where order_id = %s and line = %s",
            (self._random.randrange(1, 10), number, line),
        )

    def _change_price(self) -> Statement:
        number, line = self._line()
        if line is None:
            return self._add_line()
        return Statement(
            "update order_lines set price = %s where order_id = %s and line = %s",
            (self._price(), number, line),
        )

    def _delete_line(self) -> Statement:
        number, line = self._line()
        if line is None:
            return self._add_line()
        self._lines[number].remove(line)
        return Statement("delete from order_lines where order_id = %s and line = %s", (number, line))

    def _move_line(self) -> Statement:
        """Change one part of a composite key."""
        number, line = self._line()
        if line is None:
            return self._add_line()
        lines = self._lines[number]
        moved = max(lines) + 1
        lines[lines.index(line)] = moved
        return Statement(
            "update order_lines set line = %s where order_id = %s and line = %s", (moved, number, line)
        )

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _customer(self) -> int:
        return self._random.choice(self._customers.members)

    def _order(self) -> int:
        return self._random.choice(self._orders.members)

    def _line(self) -> tuple[int, int | None]:
        """An order and the number of one of its lines, ``None`` if it has none."""
        if not self._orders:
            return 0, None
        number = self._order()
        lines = self._lines[number]
        return number, self._random.choice(lines) if lines else None

    def _name(self) -> str:
        return f"{self._random.choice(FIRST_NAMES)} {self._random.choice(LAST_NAMES)}"

    def _email(self, number: int) -> str | None:
        """An address as people type it, no address at all, or none."""
        kind = self._random.random()
        if kind < 0.1:
            return None
        if kind < 0.15:
            return self._random.choice(("", "n/a", "ann at example.com", "@", "a@b@c"))
        address = f"Customer.{number}@{self._random.choice(HOSTS)}"
        return f"  {address} " if kind < 0.3 else address

    def _phone(self) -> str | None:
        if self._random.random() < 0.1:
            return None
        digits = self._random.randrange(10**6, 10**7)
        return self._random.choice((f"+49 30 {digits}", f"(030) {digits}", str(digits), "12"))

    def _note(self) -> str | None:
        kind = self._random.random()
        if kind < 0.4:
            return None
        if kind < 0.9:
            return f"prefers the {self._random.choice(PRODUCTS)}"
        return f"{self._random.randrange(10**9)} " * (LARGE_NOTE // 10)

    def _price(self) -> Decimal:
        places = 4 if self.evolved else 2
        factor = Decimal(10) ** (places - 2)
        return Decimal(self._random.randrange(1, 10**5)).scaleb(-places) * factor


EVOLUTION = (
    "alter table customers add column tier text",
    "alter table order_lines alter column price type numeric(14, 4)",
)
"""How the shop's tables change while the app runs."""


def write(shop: psycopg.Connection[Any], statements: list[Statement]) -> None:
    """Run a transaction. Its statements are sent without a wait for the answer to each."""
    with shop.transaction(), shop.pipeline():
        for statement in statements:
            shop.execute(statement.sql.encode(), statement.parameters)
