"""The app: ``streams run apps.orders.app:app`` checks orders, sums them up, and sends receipts as jobs.

``ORDERS_PREFIX`` precedes the names of the app and of its topics. ``ORDERS_CHECK_MS`` is how long the check
of an order takes, as if it asked another service: the step that is slow when many orders come.
"""

from __future__ import annotations

import os
import time
from typing import Final

import msgspec

from streams import (
    AlertRule,
    Alerts,
    App,
    Cron,
    Json,
    Retry,
    Tumbling,
    count,
    current_job,
    seconds,
    total,
)

PREFIX: Final = os.environ.get("ORDERS_PREFIX", "")
ORDERS: Final = f"{PREFIX}orders"
CHECKED: Final = f"{PREFIX}checked-orders"
TOTALS: Final = f"{PREFIX}order-totals"
CHECK_SECONDS: Final = float(os.environ.get("ORDERS_CHECK_MS", "2")) / 1000
RECEIPT_SECONDS: Final = 0.05
LARGE: Final = 900
"""Orders above this amount get a receipt by mail."""

RATES: Final = {"EUR": 1.0, "USD": 0.92, "GBP": 1.17}
"""What a unit of a currency is worth, in euros."""


class Order(msgspec.Struct):
    """An order as shops send it."""

    id: str
    customer: str
    country: str
    amount: float
    currency: str


class Checked(msgspec.Struct):
    """An order that was checked, with its amount in euros."""

    id: str
    customer: str
    country: str
    euros: float


class ReceiptRefused(Exception):
    """The mail server does not accept a receipt for now."""


app = App(
    f"{PREFIX}orders",
    alerts=Alerts(rules={"StreamsBehind": AlertRule(threshold=20, lasting=seconds(15))}),
)


def check(order: Order) -> Checked:
    """Ask the service that knows bad orders, and convert the amount. Takes a while."""
    time.sleep(CHECK_SECONDS)
    if order.amount <= 0:
        raise ValueError(f"order {order.id}: an amount of {order.amount} cannot be charged")
    return Checked(order.id, order.customer, order.country, round(order.amount * RATES[order.currency], 2))


def recipient(to: str) -> str:
    """Receipts to one address are sent one after another."""
    return to


@app.job(name="send-receipt", retry=Retry(3, backoff=seconds(5), on=(ReceiptRefused,)), key=recipient)
def send_receipt(to: str, order: str) -> str:
    """Send a receipt; some are refused at the first try, and those to nobody always."""
    time.sleep(RECEIPT_SECONDS)
    job = current_job()
    if to.startswith("nobody") or (job.attempt == 1 and order.endswith("7")):
        raise ReceiptRefused(f"the mail server does not accept mail for {to} now")
    return f"receipt of {order}"


@app.job(name="count-stock", schedule=Cron("* * * * *"))
def count_stock() -> str:
    """Each minute: what a schedule looks like."""
    scheduled = current_job().scheduled
    return f"counted for {scheduled}"


orders = app.stream(ORDERS, value=Json(Order))
checked = orders.map(check, name="check")
checked.to(CHECKED)
by_country = checked.group_by(lambda order: order.country)
totals = by_country.window(Tumbling(seconds=10), grace=seconds(5)).aggregate(
    "totals-by-country", orders=count(), euros=total(lambda order: order.euros)
)
totals.final().to(TOTALS)
large = checked.filter(lambda order: order.euros > LARGE, name="large")
large.enqueue(send_receipt, lambda order: send_receipt.call(order.customer, order.id), name="receipt")
