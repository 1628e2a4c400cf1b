"""Orders as shops send them: mostly good ones, in waves, and some that cannot be processed."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from apps.orders.app import ORDERS, RATES, Order
from streams.records import Output

if TYPE_CHECKING:
    from streams.broker import Broker

TICK_SECONDS: Final = 0.25
WAVE_SECONDS: Final = 180.0
"""Each wave begins with a rush of orders, more than the workers can check."""
RUSH_SECONDS: Final = 45.0
COUNTRIES: Final = {"DE": 60, "FR": 20, "PL": 10, "ES": 6, "PT": 4}
"""Countries and their weights."""

_WRITE_SECONDS: Final = 10.0


class Traffic:
    """Writes orders until it is stopped: ``per_second`` of them, and ``rush`` of them in a rush."""

    def __init__(self, broker: Broker, per_second: int, rush: int, *, seed: int = 1) -> None:
        self._broker = broker
        self._per_second = per_second
        self._rush = rush
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orders-traffic", daemon=True)
        self.sent = 0

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being written."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        producer = self._broker.producer()
        begun = time.monotonic()
        due = 0.0
        while not self._stop.wait(TICK_SECONDS):
            rush = (time.monotonic() - begun) % WAVE_SECONDS > WAVE_SECONDS - RUSH_SECONDS
            due += (self._rush if rush else self._per_second) * TICK_SECONDS
            orders = [self._order() for _ in range(int(due))]
            due -= len(orders)
            now = time.time_ns() // 1_000_000
            keys: list[bytes | None] = [customer.encode() for customer, _ in orders]
            values: list[bytes | None] = [value for _, value in orders]
            producer.produce(Output(ORDERS, keys, values, [now] * len(orders)))
            producer.flush(_WRITE_SECONDS)
            self.sent += len(orders)
        producer.close()

    def _order(self) -> tuple[str, bytes]:
        """A customer and an order's bytes; three in a thousand are faulty, each in one of three ways."""
        chance, number = self._chance.random, self.sent + self._chance.randrange(1_000_000)
        country = self._chance.choices(list(COUNTRIES), list(COUNTRIES.values()))[0]
        name = "nobody" if chance() < 0.002 else f"customer-{self._chance.randrange(500)}"
        customer = f"{name}@{country.lower()}.example"
        amount = round(self._chance.expovariate(1 / 150), 2)
        order = Order(f"{country}-{number}", customer, country, amount, self._chance.choice(list(RATES)))
        fault = chance()
        if fault < 0.001:
            # An amount that is text.
            return customer, msgspec.json.encode({**msgspec.to_builtins(order), "amount": f"{amount} EUR"})
        if fault < 0.002:
            order.currency = "XXX"
        elif fault < 0.003:
            order.amount = -order.amount
        return customer, msgspec.json.encode(order)
